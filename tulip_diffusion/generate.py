"""The commands `generate` and `compare`: prompts to pictures, with the embedded family or with real SDXL weights."""

import argparse
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, arguments
from .arguments import add_command, numbered, read_prompt, read_text
from .embedded import ASSETS, COMPARED, ENCODERS, checked, load_embedded_pipeline
from .files import replacing
from .other_models import check_other_model, draw_other_model, load_other_model, lost_words, titles_of
from .progress import hide_loading_bars, is_watched, say

EXAMPLE_SEED, EXAMPLE_TOKENS = 2_100_000_000, 300  # outside every split of `scenes.dataset`
SINGLE_FILES = (".safetensors", ".ckpt")


def register(subparsers: Any) -> None:
    """Add the commands `generate` and `compare`."""
    generate = add_command(
        subparsers,
        "generate",
        run_generate,
        "turn prompts into pictures",
        "Turn a prompt of any length, or a file of prompts, into pictures. Without --model the small embedded family "
        "draws them, in seconds and without a download. Prompt, seed and settings are written into each picture.",
        'tulip-diffusion generate "Top first red tulip." --out tulip.png',
        "tulip-diffusion generate --file prompts.txt --seed 7",
    )
    generate.add_argument("prompt", nargs="?", help="the prompt, '-' for standard input; or use --file")
    generate.add_argument("--file", type=arguments.existing_file, help="text file with one prompt in each line")
    generate.add_argument(
        "--out",
        type=arguments.picture,
        help="PNG or JPEG to write, numbered for several prompts (default: outputs/picture.png, or the next number)",
    )
    compare = add_command(
        subparsers,
        "compare",
        run_compare,
        "one prompt under CLIP, Long-CLIP and TULIP, side by side",
        "Draw one prompt with each text encoder, from the same noise, as one picture. The prompt stands below, "
        "coloured by what 77 and 248 tokens can hold. A prompt of the embedded family's world also gets the share of "
        "its details that each picture shows. Without a prompt, an example of 300 tokens is drawn.",
        "tulip-diffusion compare --seed 3",
        "tulip-diffusion compare --model sdxl/ --encoder tulip.pt - < prompt.txt",
        "tulip-diffusion compare --also PixArt-alpha/PixArt-XL-2-1024-MS --also sd3/ --seed 3",
    )
    compare.add_argument(
        "prompt", nargs="?", help="the prompt, '-' for standard input (default: an example of the family's world)"
    )
    compare.add_argument(
        "--out",
        type=arguments.picture,
        help="PNG or JPEG to write (default: outputs/compare.png, or the next number)",
    )
    for command in (generate, compare):
        add_drawing_options(command)
    add_also(compare)


def add_also(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--also",
        action="append",
        default=[],
        type=arguments.weights,
        metavar="MODEL",
        help="one more column: any text-to-image pipeline of diffusers, its folder or Hub id, with the same prompt "
        "and seed and its own encoders (repeat for several)",
    )


def add_drawing_options(command: argparse.ArgumentParser) -> None:
    """The options that both commands have."""
    command.add_argument("--model", type=arguments.weights, help="SDXL weights: a folder, a Hub id or a single file")
    command.add_argument(
        "--encoder",
        type=arguments.filled,
        help=f"text encoder: one of {', '.join(ENCODERS)}, or with --model any encoder file, folder or Hub id for the "
        "first slot (default: tulip, or with --model its own)",
    )
    command.add_argument("--negative", help="what the picture should not show (default: nothing in particular)")
    command.add_argument("--seed", type=arguments.seed, default=0, help="the starting noise")
    command.add_argument("--steps", type=arguments.steps, help="denoising steps (default: 25, or 50 with --model)")
    command.add_argument(
        "--guidance", type=arguments.guidance, help="guidance scale, 0 for none (default: 3, or 5 with --model)"
    )
    command.add_argument(
        "--device", type=arguments.device, help="cpu, cuda, mps … (default: the best there is with --model, else cpu)"
    )
    command.add_argument(
        "--assets",
        type=arguments.existing_folder,
        default=ASSETS,
        help="an embedded family trained by yourself (default: the package's)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run_generate(options: argparse.Namespace) -> None:
    """The command: one picture for each prompt."""
    prompts = read_prompts(options.prompt, options.file)
    targets = targets_of(options.out, Path("outputs/picture.png"), len(prompts), options.overwrite)
    check_sources(options, [options.encoder])
    say(f"Drawing {counted(len(prompts), 'picture')}; loading {source_of(options)} …")
    note_outside(prompts, options)
    pipeline = load_pipeline(options.encoder, options.model, options.device, options.assets)
    for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        seed = (options.seed + number) % (arguments.LARGEST_SEED + 1)
        picture = draw(pipeline, prompt, options, seed)
        save(picture, target, {"prompt": prompt, "encoder": encoder_of(options), **settings_of(options, seed)})
        print(target)


def run_compare(options: argparse.Namespace) -> None:
    """The command: one prompt under several encoders, side by side."""
    prompt = None if options.prompt is None else read_prompt(options.prompt)
    (target,) = targets_of(options.out, Path("outputs/compare.png"), 1, options.overwrite)
    encoders = compared(options)
    check_sources(options, encoders)
    for source in options.also:
        check_other_model(source)
    others = titles_of(options.also, encoders.values())
    drawn_by = [*encoders.values(), *others.values()]
    say(f"Drawing one prompt with {', '.join(drawn_by)}; loading {source_of(options)} …")

    from .evaluation.details import hits
    from .evaluation.side_by_side import Panel, make_strip
    from .prompt_description import word_positions

    logging.getLogger("tulip_diffusion.pipelines").setLevel(logging.ERROR)  # the strip shows what encoders cannot see
    prompt = prompt or example_prompt()
    note_outside([prompt], options)
    panels = []
    for encoder, title in encoders.items():
        pipeline = load_pipeline(encoder, options.model, options.device, options.assets)
        picture = draw(pipeline, prompt, options, options.seed)
        panels.append(Panel(picture, title, "" if options.model else hits(prompt, picture)))
        print(f"{title}: {panels[-1].note}" if panels[-1].note else title)
    words = word_positions(prompt, pipeline.tokenizer)
    for source, title in others.items():
        panels.append(panel_of_other(source, title, prompt, options))
    record = {"prompt": prompt, "encoder": [*encoders.values()], **settings_of(options, options.seed)}
    save(make_strip(panels, words), target, record | ({"also": options.also} if options.also else {}))
    print(target)


def note_outside(prompts: Sequence[str], options: argparse.Namespace) -> None:
    """One line about prompts that name nothing of the small family's world, whose pictures then mean nothing."""
    from .scenes.guide import outside_world

    if not options.model and (note := outside_world(*prompts)):
        say(f"{note} With --model, SDXL weights draw anything.")


def panel_of_other(source: str, title: str, prompt: str, options: argparse.Namespace) -> Any:
    """A column of another model: its own call's picture, and how many words its encoders cannot see."""
    from .evaluation.side_by_side import Panel

    say(f"Loading {source} …")
    pipeline = load_other_model(source, options.device)
    pipeline.set_progress_bar_config(disable=not is_watched())
    settings = {"steps": options.steps, "guidance": options.guidance, "negative": options.negative}
    picture = draw_other_model(pipeline, prompt, options.seed, **settings)
    lost = lost_words(pipeline, prompt)
    print(
        f'{title}: cannot see {counted(len(lost.split()), "word")}: "{lost}"' if lost else f"{title}: sees every word"
    )
    return Panel(picture, title, f"cannot see {counted(len(lost.split()), 'word')}" if lost else "sees every word")


def compared(options: argparse.Namespace) -> dict[str | None, str]:
    """Encoders to compare, with their titles: the embedded three, or a model's own and the one given for it."""
    if options.model:
        if options.encoder:
            return {None: "the model's own encoder", options.encoder: options.encoder}
        if options.also:
            return {None: "the model's own encoder"}
        raise ValueError("compare --model needs --encoder: the encoder to set beside the model's own.")
    more = [checked(options.encoder, options.assets)] if options.encoder else []
    return {name: ENCODERS[name].title for name in (*COMPARED, *more)}


def check_sources(options: argparse.Namespace, encoders: Any) -> None:
    """Refuse a model or an encoder that cannot be there, before anything is loaded."""
    if options.model is None:
        for encoder in encoders:
            checked(encoder or "tulip", options.assets)
        return
    if options.encoder is not None:
        try:
            arguments.weights(options.encoder)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"With --model, --encoder {error}.") from None
    model = Path(options.model)
    if model.is_file() and model.suffix not in SINGLE_FILES:
        raise ValueError(f"{model}: a single file of SDXL's weights ends in {' or '.join(SINGLE_FILES)}.")
    if model.is_dir() and not (model / "model_index.json").is_file():
        raise ValueError(f"{model} is no pipeline's folder: it holds no model_index.json.")


def counted(number: int, noun: str) -> str:
    """ "1 picture", "3 pictures"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def source_of(options: argparse.Namespace) -> str:
    """What draws, in words."""
    return options.model or "the embedded family"


def encoder_of(options: argparse.Namespace) -> str:
    """Which encoder draws, in words."""
    return options.encoder or ("the model's own" if options.model else "tulip")


def example_prompt() -> str:
    """Sixteen things and some small talk: 300 tokens, more than Long-CLIP's 248."""
    import numpy as np

    from .scenes.grammar import write_caption
    from .scenes.render import PLACES, random_scene

    rng = np.random.default_rng(EXAMPLE_SEED)
    return write_caption(rng, random_scene(rng, PLACES), tokens=EXAMPLE_TOKENS).text


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, or the lines of the file that are not empty.

    Raises:
        ValueError: both are given, or neither, or there is no prompt in what is given.
    """
    if (prompt is None) == (file is None):
        raise ValueError("Give either a prompt or --file, a text file with one prompt in each line.")
    if prompt is not None:
        return [read_prompt(prompt)]
    assert file is not None
    prompts = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{file} holds no prompt: every line is empty.")
    return prompts


def targets_of(out: Path | None, default: Path, count: int, overwrite: bool) -> Sequence[Path]:
    """Where `count` pictures go: `out` itself or `out-1.png`, `out-2.png` …; without `out`, names that are free.

    Raises:
        FileExistsError: `out` was named, it exists, and `overwrite` is off.
    """
    if out is None and not overwrite:
        arguments.writable(default)
        return numbered(default, count)
    out = out or arguments.writable(default)
    targets = [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]
    existing = [target for target in targets if target.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists. Pass --overwrite to replace it, or another --out.")
    return targets


def load_pipeline(
    encoder: str | None,
    model: str | None = None,
    device: str | None = None,
    assets: Path = ASSETS,
    **components: Any,
) -> Any:
    """The embedded family with one of its encoders, or a real model, its first encoder replaced where one is given.

    `components` are parts of the family that need not be loaded again.

    Raises:
        ValueError: this machine has no such device.
    """
    from .devices import best_device, check_device

    device = check_device(device or (best_device() if model else "cpu"))
    hide_loading_bars()
    if model is None:
        pipeline = load_embedded_pipeline(encoder or "tulip", assets, **components)
    else:
        import torch

        from .pipelines import StableDiffusionXLTulipPipeline as pipeline_class

        single_file = Path(model).suffix in SINGLE_FILES
        load = pipeline_class.from_single_file if single_file else pipeline_class.from_pretrained
        pipeline = load(model, tulip=encoder, dtype=torch.float32 if device == "cpu" else torch.float16)
    pipeline.set_progress_bar_config(disable=not is_watched())
    return pipeline.to(device)


def draw(pipeline: Any, prompt: str, options: argparse.Namespace, seed: int) -> Any:
    """The picture of `prompt` from the noise of `seed`."""
    import torch

    settings = settings_of(options, seed)
    return pipeline(
        prompt=prompt,
        negative_prompt=options.negative,
        num_inference_steps=settings["steps"],
        guidance_scale=settings["guidance"],
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]


def settings_of(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What a picture depends on beside its prompt and its encoder."""
    steps, guidance = (50, 5.0) if options.model else (25, 3.0)
    return {
        "seed": seed,
        "steps": steps if options.steps is None else options.steps,
        "guidance": guidance if options.guidance is None else options.guidance,
        "negative_prompt": options.negative or "",
        "model": options.model or "embedded family",
        "software": f"tulip-diffusion {__version__}",
    }


def save(picture: Any, target: Path, settings: dict[str, Any]) -> None:
    """Write a PNG with `settings` as its text, or a JPEG with them as its comment, whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    encoded = io.BytesIO()  # first, so that a full disk is met by Python, whose errors say what happened
    if arguments.PICTURE_FORMATS[target.suffix.lower()] == "PNG":
        text = PngInfo()
        for name, value in written.items():
            text.add_itxt(name, value)
        picture.save(encoded, format="PNG", pnginfo=text)
    else:
        comment = json.dumps(written, ensure_ascii=False).encode()
        picture.convert("RGB").save(encoded, format="JPEG", quality=95, comment=comment[:65000])
    with replacing(target) as unfinished:
        unfinished.write_bytes(encoded.getvalue())
