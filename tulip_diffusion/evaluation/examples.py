"""Retrieval examples as one picture: queries of both directions with what they found, right and wrong."""

import textwrap
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from .datasets import RetrievalSet
from .encoders import Score

POOL = 256  # queries of each direction among which examples are looked for
TILE, GAP, LINE = 144, 8, 13
TEXT_WIDTH, TEXT_LETTERS, TEXT_LINES = 380, 76, 11
RIGHT, WRONG, INK, PAPER = "#1a7f37", "#cf222e", "#1f2328", "white"


def retrieval_examples(
    data: RetrievalSet, images: Tensor, texts: Tensor, score: Score | None = None, queries: int = 4, shown: int = 3
) -> Image.Image:
    """`queries` captions with the first images they find, then `queries` images with the first captions.

    Half of the queries are the first that find their match and half the first that do not, as far as there are both.
    Green frames are right, red ones wrong. `images` and `texts` are the set's features, compared by `score` (of a
    block of images and a block of texts), by default by cosine.
    """
    owner, score = torch.tensor(data.image_of_text), score or cosine
    rows = []
    found = best_matches(score(images, texts[:POOL]).T, shown)
    for query in chosen(found[:, 0] == owner[:POOL], queries):
        match = [(int(image), bool(image == owner[query])) for image in found[query]]
        pictures = [framed(tile(data, image), right) for image, right in match]
        rows.append(beside([text_block(data.captions[query], INK), *pictures]))
    found = best_matches(score(images[:POOL], texts), shown)
    for query in chosen(owner[found[:, 0]] == torch.arange(len(found)), queries):
        match = [(int(text), bool(owner[text] == query)) for text in found[query]]
        blocks = [text_block(data.captions[text], RIGHT if right else WRONG) for text, right in match]
        rows.append(beside([framed(tile(data, query), None), *blocks]))
    return below(rows)


def cosine(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines (images, texts) of features (n, dim)."""
    return F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T


def best_matches(scores: Tensor, count: int) -> Tensor:
    """The `count` best candidates of every query, best first, of (queries, candidates) scores."""
    return scores.topk(min(count, scores.shape[1]), dim=1).indices


def chosen(right: Tensor, count: int) -> list[int]:
    """Numbers of the first right and the first wrong queries, `count` in all if there are as many."""
    hits, misses = right.nonzero().flatten().tolist(), (~right).nonzero().flatten().tolist()
    wrong = misses[: max(count // 2, count - len(hits))]
    return hits[: count - len(wrong)] + wrong


def tile(data: RetrievalSet, index: int) -> Image.Image:
    """The picture of a set as a small square."""
    picture = data.picture(index)
    small = max(picture.size) < TILE
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC)


def framed(picture: Image.Image, right: bool | None) -> Image.Image:
    """`picture` in a green frame where it is right, a red one where it is wrong, and a dark one for a query."""
    return ImageOps.expand(picture, border=4, fill=INK if right is None else RIGHT if right else WRONG)


def text_block(text: str, colour: str) -> Image.Image:
    """The text in small letters, its end shown where its middle has no room."""
    lines = textwrap.wrap(text, TEXT_LETTERS)
    if len(lines) > TEXT_LINES:
        kept = TEXT_LINES // 2
        lines = [*lines[:kept], "[…]", *lines[-kept:]]
    block = Image.new("RGB", (TEXT_WIDTH, TILE + 8), PAPER)
    draw = ImageDraw.Draw(block)
    draw.rectangle((0, 0, 3, block.height), fill=colour)
    draw.multiline_text((10, 0), "\n".join(lines), fill=INK, font=ImageFont.load_default(10), spacing=LINE - 10)
    return block


def beside(parts: Sequence[Image.Image]) -> Image.Image:
    """`parts` in a row, with gaps."""
    row = Image.new("RGB", (sum(part.width + GAP for part in parts), max(part.height for part in parts)), PAPER)
    left = 0
    for part in parts:
        row.paste(part, (left, 0))
        left += part.width + GAP
    return row


def below(rows: Sequence[Image.Image]) -> Image.Image:
    """`rows` one below the other, with gaps."""
    size = max(row.width for row in rows), sum(row.height + 2 * GAP for row in rows)
    sheet = Image.new("RGB", size, PAPER)
    top = GAP
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 2 * GAP
    return sheet
