"""The same prompt and noise under several encoders, side by side, with the share of details that each picture shows.

As in the papers' figures, but with a judge that is exact: the prompts are texts of the world of
`tulip_diffusion.scenes`, the first of their set, not the best.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .generation import PROMPTS, details, draw_captions, prompts_of
from .records import markdown, write_record

DrawStrip = Callable[[str, Sequence[tuple[Image.Image, str, str]]], Image.Image]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoders", nargs="+", default=["clip", "longclip", "tulip"], help="of the family")
    parser.add_argument("--prompts", nargs="+", choices=PROMPTS, default=["full", "references", "500"])
    parser.add_argument("--count", type=int, default=2, help="strips of each kind of prompts (default 2)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("outputs/strips"), help="folder for the results")


def run(options: argparse.Namespace, load: Callable[[str], Any], draw_strip: DrawStrip) -> None:
    """The command. `draw_strip` sets pictures, each with its title and a line below, over the prompt."""
    options.out.mkdir(parents=True, exist_ok=True)
    captions = {f"{name}-{i}": c for name in options.prompts for i, c in enumerate(prompts_of(name, options.count))}
    panels: dict[str, list[tuple[Image.Image, str, str]]] = {name: [] for name in captions}
    results: dict[str, dict[str, Any]] = {
        name: {"prompt": caption.text, "tokens": caption.tokens, "right": {}} for name, caption in captions.items()
    }
    for encoder in options.encoders:
        pipeline = load(encoder)
        pipeline.set_progress_bar_config(disable=True)
        for name, caption in captions.items():
            picture = draw_captions(pipeline, [caption], options.steps, options.guidance)
            right = [detail.right for detail in details(picture, [caption])]
            results[name]["right"][encoder] = sum(right) / len(right)
            image = Image.fromarray((picture[0].clip(0, 1) * 255).round().astype("uint8"))
            panels[name].append((image, encoder, f"{sum(right)} of {len(right)} details right"))
    for name, drawn in panels.items():
        draw_strip(captions[name].text, drawn).save(options.out / f"{name}.png")
    rows = [[name, entry["tokens"], *entry["right"].values()] for name, entry in results.items()]
    write_record("strips", options, results, markdown(["prompt", "tokens", *options.encoders], rows))
