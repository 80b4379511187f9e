"""Does every part of a long caption speak of its picture? Windows of text against images (TULIP, Fig. 6).

A window of 20, 33 or 55 tokens moves along the caption in strides of 5, 10 or 15, and each window's text is compared
with the image. All windows are short, so this shows how an encoder reads pieces of text, from whichever part of the
caption they come; how it reads the caption as a whole is what `evaluate positions` measures.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tulip_diffusion.data import open_captions
from tulip_diffusion.scenes.render import render

from .encoders import Encoder, open_towers
from .plots import curve, figure, legend, level, middles
from .processes import is_first, shared
from .prompts import POSITIONS, bin_means, prompts_of
from .records import markdown, mean_over, write_record

EDGES = (0, *range(25, 301, 25), *POSITIONS[5:])


def window_starts(tokens: int, window: int, stride: int) -> list[int]:
    """First tokens of the windows that fit into `tokens` tokens; one window, cut short, where none does."""
    return list(range(0, max(1, tokens - window + 1), stride))


def relevance(
    encoder: Encoder, ids: Sequence[Sequence[int]], images: Tensor, window: int, stride: int
) -> dict[str, Any]:
    """How the windows of captions, given as ids, are related to the captions' images, unit vectors (captions, dim).

    Over all windows: "similarity", the cosine with the own image; "margin", how far that is above the mean over the
    other images; "closest", the share of windows that no image is closer to than their own; each also by the position
    of the window's middle. "chance" is that of "closest". "curve" is the first caption's (middles, similarities).
    """
    rows: list[int] = []
    places: list[float] = []
    pieces: list[Sequence[int]] = []
    for row, caption in enumerate(ids):
        for start in window_starts(len(caption), window, stride):
            piece = caption[start : start + window]
            rows.append(row)
            pieces.append(piece)
            places.append(2 + start + len(piece) / 2)
    similarity = F.normalize(encoder.encode_ids(pieces), dim=-1) @ images.T  # (windows, images)
    own = similarity[torch.arange(len(rows)), rows]
    others = (similarity.sum(dim=1) - own) / max(1, len(images) - 1)
    values = {
        "similarity": own.tolist(),
        "margin": (own - others).tolist(),
        "closest": (similarity.argmax(dim=1) == torch.tensor(rows)).float().tolist(),
    }
    first = [index for index, row in enumerate(rows) if row == 0]
    figures: dict[str, Any] = {"chance": 1 / len(images), "windows": len(rows)}
    figures["curve"] = [[places[index] for index in first], [own[index].item() for index in first]]
    for name, of_windows in values.items():
        figures[name] = mean_over(of_windows, rows)
        figures[f"{name} by position"] = bin_means(places, of_windows, rows, EDGES)
    return figures


def pairs_of(options: argparse.Namespace) -> tuple[list[str], list[Image.Image]]:
    """The captions and images that the options name."""
    if options.data:
        data = open_captions(options.data, image_root=options.image_root, with_images=True)
        numbers = range(min(options.count, len(data)))
        return list(data.captions[: options.count]), [data.image(number) for number in numbers]
    captions = prompts_of(options.prompts, options.count, options.split)
    return [caption.text for caption in captions], [render(caption.scene) for caption in captions]


def run(options: argparse.Namespace) -> None:
    """The command."""
    opened = {name: open_towers(name, options) for name in options.encoders}  # fails early where one is missing
    texts, images = pairs_of(options)
    grid = list(product(options.windows, options.strides))
    results: dict[str, dict[str, Any]] = {}
    for name, encoder in opened.items():
        ids, embeds = encoder.tokenize(texts), encoder.embed_images(images)
        figures = shared(partial(relevance_of, encoder, ids, embeds), grid, name)
        results[name] = {f"{window}/{stride}": found for (window, stride), found in zip(grid, figures, strict=True)}
    print(tables(results))
    if is_first():
        write_record("relevance", options, results, tables(results))
        plot_curves(results, options, "closest by position", "share closest to their image")
        plot_curves(results, options, "similarity by position", "cosine with the image")


def relevance_of(encoder: Encoder, ids: Any, images: Tensor, sizes: tuple[int, int]) -> dict[str, Any]:
    """As [`relevance`], of one (window, stride)."""
    return relevance(encoder, ids, images, *sizes)


def tables(results: dict[str, dict[str, Any]]) -> str:
    """The means of each encoder as a Markdown table."""
    rows = [
        [name, sizes, figures["similarity"], figures["margin"], figures["closest"], figures["chance"]]
        for name, result in results.items()
        for sizes, figures in result.items()
    ]
    header = ["", "window/stride", "similarity", "margin", "closest", "chance of closest"]
    return f"Windows of a caption against images\n\n{markdown(header, rows)}"


def plot_curves(results: dict[str, dict[str, Any]], options: argparse.Namespace, what: str, label: str) -> None:
    """Rows are windows, columns strides, one line an encoder."""
    name = f"relevance_{what.split()[0]}.png"
    with figure(options.out / name, len(options.windows), len(options.strides), size=(4, 3)) as panels:
        for row, window in enumerate(options.windows):
            for column, stride in enumerate(options.strides):
                axes = panels[row][column]
                for encoder, result in results.items():
                    by_position = result[f"{window}/{stride}"][what]
                    curve(axes, middles(by_position), list(by_position.values()), encoder)
                if what.startswith("closest"):
                    level(axes, next(iter(results.values()))[f"{window}/{stride}"]["chance"], "chance")
                axes.set(title=f"window {window}, stride {stride}", xlabel="tokens up to the window's middle")
        panels[0][0].set_ylabel(label)
        legend(panels[0][-1])
