"""The commands `generate` and `compare`: prompts to pictures, with the embedded family or with real SDXL weights."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .devices import best_device
from .embedded import ASSETS, ENCODERS, load_embedded_pipeline

TITLES = {"clip": "CLIP", "longclip": "Long-CLIP", "finelip": "FineLIP", "tulip": "TULIP"}
COMPARED = {encoder: TITLES[encoder] for encoder in ("clip", "longclip", "tulip")}
EXAMPLE_SEED, EXAMPLE_TOKENS = 2_100_000_000, 300  # outside every split of `scenes.dataset`


def register(subparsers: Any) -> None:
    generate = subparsers.add_parser(
        "generate",
        help="turn prompts into pictures",
        description="Turn a prompt of any length, or a file of prompts, into pictures. Without --model the small "
        "embedded family draws them, in seconds and without a download.",
    )
    generate.add_argument("prompt", nargs="?", help="the prompt; or use --file")
    generate.add_argument("--file", type=Path, help="text file with one prompt in each line")
    generate.add_argument("--out", type=Path, default=Path("outputs/picture.png"), help="PNG; numbered for several")
    generate.set_defaults(run=run_generate)
    compare = subparsers.add_parser(
        "compare",
        help="one prompt under CLIP, Long-CLIP and TULIP, side by side",
        description="Draw one prompt with each text encoder, from the same noise, as one PNG. The prompt stands "
        "below, coloured by what 77 and 248 tokens can hold. A prompt of the embedded family's world also gets the "
        "share of its details that each picture shows. Without a prompt, an example of 300 tokens is drawn.",
    )
    compare.add_argument("prompt", nargs="?", help="the prompt; an example of the embedded family's world by default")
    compare.add_argument("--out", type=Path, default=Path("outputs/compare.png"), help="PNG to write")
    compare.set_defaults(run=run_compare)
    for command in (generate, compare):
        command.add_argument("--model", help="SDXL weights: a folder, a Hub id or a single file")
        command.add_argument(
            "--encoder",
            help=f"text encoder: one of {', '.join(ENCODERS)}, or with --model any encoder file, folder or Hub id for "
            "the first slot",
        )
        command.add_argument("--negative", help="what the picture should not show")
        command.add_argument("--seed", type=int, default=0, help="the starting noise (default 0)")
        command.add_argument("--steps", type=int, help="denoising steps (default 25, or 50 with --model)")
        command.add_argument("--guidance", type=float, help="guidance scale (default 3, or 5 with --model)")
        command.add_argument("--device", help="cpu, cuda, mps … (default: the best there is with --model, else cpu)")
        command.add_argument("--assets", type=Path, default=ASSETS, help="an embedded family trained by yourself")
        command.add_argument("--overwrite", action="store_true", help="replace files that exist")


def run_generate(options: argparse.Namespace) -> None:
    prompts = read_prompts(options.prompt, options.file)
    targets = targets_of(options.out, len(prompts))
    refuse_existing(targets, options.overwrite)
    pipeline = load_pipeline(options.encoder, options.model, options.device, options.assets)
    for number, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
        save(draw(pipeline, prompt, options, options.seed + number), target)
        print(target)


def run_compare(options: argparse.Namespace) -> None:
    from .evaluation.details import hits
    from .evaluation.strip import Panel, draw_strip, word_positions

    refuse_existing([options.out], options.overwrite)
    logging.getLogger("tulip_diffusion.pipelines").setLevel(logging.ERROR)  # the strip shows what encoders cannot see
    prompt = options.prompt or example_prompt()
    panels = []
    for encoder, title in compared(options).items():
        pipeline = load_pipeline(encoder, options.model, options.device, options.assets)
        picture = draw(pipeline, prompt, options, options.seed)
        panels.append(Panel(picture, title, "" if options.model else hits(prompt, picture)))
        print(f"{title}: {panels[-1].note}" if panels[-1].note else title)
    words = word_positions(prompt, pipeline.tokenizer)
    save(draw_strip(panels, words), options.out)
    print(options.out)


def compared(options: argparse.Namespace) -> dict[str | None, str]:
    """Encoders to compare, with their titles: the embedded three, or a model's own and the one given for it."""
    if options.model:
        if not options.encoder:
            raise ValueError("compare --model needs --encoder: the encoder to set beside the model's own.")
        return {None: "the model's own encoder", options.encoder: options.encoder}
    return {**COMPARED, **({options.encoder: TITLES.get(options.encoder, options.encoder)} if options.encoder else {})}


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
        ValueError: both are given, or neither, or the file has no prompt.
    """
    if (prompt is None) == (file is None):
        raise ValueError("Give either a prompt or --file, a text file with one prompt in each line.")
    if file is None:
        return [prompt or ""]
    prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise ValueError(f"{file} holds no prompt: every line is empty.")
    return prompts


def targets_of(out: Path, count: int) -> list[Path]:
    """`out` itself for one picture, `name-1.png`, `name-2.png` … for several."""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]


def refuse_existing(targets: Sequence[Path], overwrite: bool) -> None:
    existing = [str(target) for target in targets if target.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists. Pass --overwrite to replace it, or another --out.")


def load_pipeline(
    encoder: str | None,
    model: str | None = None,
    device: str | None = None,
    assets: Path = ASSETS,
    **components: Any,
) -> Any:
    """The embedded family with one of its encoders, or a real model, its first encoder replaced where one is given.

    `components` are parts of the family that need not be loaded again.
    """
    if model is None:
        return load_embedded_pipeline(encoder or "tulip", assets, **components).to(device or "cpu")
    import torch

    from .pipelines import StableDiffusionXLTulipPipeline

    device = device or best_device()
    single_file = Path(model).suffix in (".safetensors", ".ckpt")
    pipeline_class = StableDiffusionXLTulipPipeline
    load = pipeline_class.from_single_file if single_file else pipeline_class.from_pretrained
    return load(model, tulip=encoder, torch_dtype=torch.float32 if device == "cpu" else torch.float16).to(device)


def draw(pipeline: Any, prompt: str, options: argparse.Namespace, seed: int) -> Any:
    import torch

    return pipeline(
        prompt=prompt,
        negative_prompt=options.negative,
        num_inference_steps=options.steps or (50 if options.model else 25),
        guidance_scale=options.guidance or (5.0 if options.model else 3.0),
        generator=torch.Generator("cpu").manual_seed(seed),
    ).images[0]


def save(picture: Any, target: Path) -> None:
    """Write a PNG under a temporary name first, so that a file that is there is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    picture.save(partial, format="PNG")
    partial.replace(target)
