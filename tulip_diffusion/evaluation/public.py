"""Published sets of long prompts, drawn under each encoder and laid out for the sets' own scorers.

Draws every prompt with each encoder from the same noise and writes pictures and index files where the set's official
scorer looks for them. A killed run goes on where it stopped, and `accelerate launch` shares the drawing. With --score,
what the scorer has written becomes tables and plots; nothing is drawn then, and no score is made here.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor

from tulip_diffusion.data import open_image
from tulip_diffusion.files import replacing, write_text
from tulip_diffusion.tokenization import load_tokenizer

from .drawing import draw_texts, open_pipeline, pipeline_key, to_image
from .embeddings import batches
from .encoders import Embeds, open_pair
from .plots import bins_figure
from .processes import is_first, shared, wait_for_all
from .public_scores import read_scores, summarize_scores
from .public_sets import PUBLIC_SETS, Prompt, read_set
from .records import agree_on_settings, bin_table, markdown, mean_over, write_record

LENGTHS = (77, 154, 248, 500)


def run(options: argparse.Namespace) -> None:
    """The command: draw and lay out, or read scores."""
    name, prompts = read_set(options.data)
    prompts = prompts[: options.count]
    if PUBLIC_SETS[name].grid and options.pictures > 4:
        raise ValueError(f"{name} holds up to 4 pictures of a prompt in one file, got --pictures {options.pictures}.")
    names = {encoder: file_name(encoder) for encoder in options.encoders}
    if len(set(names.values())) < len(names):
        raise ValueError(f"Two of --encoders have one name, {', '.join(names.values())}: rename a file.")
    tokens = dict(zip((prompt.name for prompt in prompts), tokens_of(prompts), strict=True))
    results: dict[str, Any] = {"set": name, "prompts": len(prompts), "tokens": token_figures(list(tokens.values()))}
    print(tokens_table(results))
    if options.score:
        score(results, name, prompts, tokens, options)
    else:
        draw(results, name, prompts, names, options)


def tokens_of(prompts: Sequence[Prompt]) -> list[int]:
    """CLIP's tokens of each prompt, BOS and EOS included."""
    return [len(ids) for ids in load_tokenizer()([prompt.text for prompt in prompts], verbose=False).input_ids]


def token_figures(tokens: Sequence[int]) -> dict[str, float]:
    """Mean, percentiles and most of the prompts' tokens, and the shares beyond each encoder's limit."""
    figures = {"mean": float(np.mean(tokens))}
    figures |= {f"p{share}": float(np.percentile(tokens, share)) for share in (10, 50, 90)} | {"most": max(tokens)}
    return figures | {f"beyond {limit}": float(np.mean([count > limit for count in tokens])) for limit in LENGTHS}


def tokens_table(results: dict[str, Any]) -> str:
    """The set's lengths as a Markdown table."""
    cells = [
        f"{value:.1%}" if key.startswith("beyond") else f"{value:.0f}" for key, value in results["tokens"].items()
    ]
    title = f"{results['set']}: {results['prompts']} prompts, CLIP tokens of each"
    return f"{title}\n\n{markdown(list(results['tokens']), [cells])}"


def draw(
    results: dict[str, Any], name: str, prompts: Sequence[Prompt], names: dict[str, str], options: argparse.Namespace
) -> None:
    """Draw the set under every encoder and write what its scorer needs."""
    tower = open_pair(options.image_tower or "clip", options) if options.pictures > 1 and has_tower(options) else None
    for encoder, short in names.items():
        pipeline = open_pipeline(encoder, options)
        agree_on_settings(options.out / f"{short}.settings.json", settings_of(pipeline, options), "--out")
        diversity = draw_set(pipeline, PUBLIC_SETS[name], prompts, short, tower, options)
        results[short] = {"pictures": len(prompts) * options.pictures, "diversity": diversity}
        if is_first():
            for file, index in PUBLIC_SETS[name].index(prompts, short, options.pictures, options.out).items():
                write_text(options.out / file, json.dumps(index, indent=1, ensure_ascii=False))
    rows = [[short, results[short]["pictures"], results[short]["diversity"]] for short in names.values()]
    title = "Pictures, and their diversity: 1 - cosine of image features, over the pairs of one prompt's pictures"
    tables = f"{tokens_table(results)}\n\n{title}\n\n{markdown(['', 'pictures', 'diversity'], rows)}"
    print(f"\nThe score is made by {PUBLIC_SETS[name].scorer}. Give what it writes to --score.")
    if is_first():
        write_record("prompts", options, results, tables)


def has_tower(options: argparse.Namespace) -> bool:
    """Whether there is an image tower to measure diversity with."""
    return options.image_tower is not None or options.model is None


def settings_of(pipeline: Any, options: argparse.Namespace) -> dict[str, Any]:
    """What pictures depend on."""
    told = {key: getattr(options, key) for key in ("data", "seed", "steps", "guidance", "batch", "pictures")}
    return {**told, "weights": pipeline_key(pipeline)}


def draw_set(
    pipeline: Any,
    layout: Any,
    prompts: Sequence[Prompt],
    encoder: str,
    tower: Embeds | None,
    options: argparse.Namespace,
) -> Any:
    """Draw what is not there yet; returns the diversity, None where it is not measured.

    A batch that is not whole is drawn again as a whole: a picture's last bits may depend on its batch.
    """
    rows = batches(len(prompts), options.batch)

    def files_of(row: int) -> list[Path]:
        count = 1 if layout.grid else options.pictures
        return [options.out / layout.file(prompts[row], encoder, number) for number in range(count)]

    def draw_batch(rows: range) -> list[Tensor]:
        if not all(file.is_file() for row in rows for file in files_of(row)):
            texts = [prompts[row].text for row in rows]
            drawn = [
                draw_texts(
                    pipeline, texts, [seed_of(row, number, options) for row in rows], options.steps, options.guidance
                )
                for number in range(options.pictures)
            ]
            for pictures, row in zip(zip(*drawn, strict=True), rows, strict=True):
                images = [to_image(picture) for picture in pictures]
                for image, file in zip([grid(images)] if layout.grid else images, files_of(row), strict=True):
                    save(image, file)
        if tower is None:
            return []
        return [features(tower, files_of(row), options.pictures) for row in rows]

    found = [one for part in shared(draw_batch, rows, f"{encoder}, batches") for one in part]
    wait_for_all()
    return mean_over([spread(one) for one in found], range(len(found)))


def seed_of(row: int, number: int, options: argparse.Namespace) -> int:
    """The same for every encoder, and for the first pictures whatever the number of pictures."""
    return options.seed + row + 1_000_000 * number


def save(image: Image.Image, file: Path) -> None:
    """Write a picture whole or not at all; a JPEG in good quality."""
    quality: dict[str, Any] = {"quality": 95} if file.suffix == ".jpg" else {}
    with replacing(file) as unfinished:
        image.save(unfinished, **quality)


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """Up to four pictures, two in a row; one is itself."""
    if len(images) == 1:
        return images[0]
    blank = Image.new("RGB", images[0].size)
    return make_image_grid([*images, *[blank] * (4 - len(images))], rows=2, cols=2)


def features(tower: Embeds, files: Sequence[Path], count: int) -> Tensor:
    """Unit features (count, dim) of one prompt's pictures, cut out of the grid where one file holds them all."""
    images = [open_image(file) for file in files]
    if len(images) < count:
        width, height = images[0].width // 2, images[0].height // 2
        corners = [(number % 2 * width, number // 2 * height) for number in range(count)]
        images = [images[0].crop((left, top, left + width, top + height)) for left, top in corners]
    return F.normalize(tower.encode_images(images), dim=-1)


def spread(found: Tensor) -> float:
    """Mean of 1 - cosine over the pairs of unit vectors (n, dim)."""
    first, second = torch.triu_indices(len(found), len(found), 1)
    return float((1 - (found[first] * found[second]).sum(-1)).mean())


def score(
    results: dict[str, Any],
    name: str,
    prompts: Sequence[Prompt],
    tokens: dict[str, int],
    options: argparse.Namespace,
) -> None:
    """Tables and plots of what the scorer has written."""
    summaries: dict[str, Any] = {}
    for entry in options.score:
        encoder, _, file = entry.partition("=")
        if not file:
            raise ValueError(f"--score {entry}: give ENCODER=FILE.")
        found = read_scores(name, Path(file), prompts, encoder, options.pictures)
        summaries[encoder] = summarize_scores(found, prompts, tokens)
    parts = [tokens_table(results), f"Scores by {PUBLIC_SETS[name].scorer}", all_table(summaries)]
    told = {by: what for by, what in BINS.items() if any(summary[by] for summary in summaries.values())}
    parts += [f"Score by {what}\n\n{bin_table(summaries, by)}" for by, what in told.items()]
    print("\n" + "\n\n".join(parts[1:]))
    if not is_first():
        return
    for by in ("tokens", "position"):
        if by in told:
            bins_figure(summaries, by, told[by], "score", options.out / f"score_{by}.png")
    write_record("scores", options, results | {"scores": summaries}, "\n\n".join(parts))


BINS = {"kind": "kind", "tokens": "tokens of the prompt", "position": "token position of what is asked"}


def all_table(summaries: dict[str, Any]) -> str:
    """Mean scores of each encoder as a Markdown table."""
    columns = [key for key in ("all", "short", "long", "fall") if any(key in found for found in summaries.values())]
    return markdown(["", *columns], [[name, *map(found.get, columns)] for name, found in summaries.items()])


def file_name(encoder: str) -> str:
    """An encoder's name as a folder's name: the last part of a path or Hub id."""
    return Path(encoder).stem if Path(encoder).suffix in (".pt", ".safetensors", ".ckpt") else Path(encoder).name
