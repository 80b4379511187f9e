"""Reads a picture of the world back into a scene, place by place, by comparing it with every drawing."""

from functools import cache
from itertools import product

import numpy as np
from PIL import Image

from .render import CABINETS, COLUMNS, ROWS, Scene, Thing, drawn_place, empty_place
from .sprites import COLOURS, KINDS

Content = tuple[str, str] | None  # kind and colour, or nothing


@cache
def templates(cabinet: str, pixels: int) -> tuple[list[Content], np.ndarray]:
    """What a place may hold, and how it then looks: (contents, pixels * pixels * 3)."""
    contents: list[Content] = [None, *product(KINDS, COLOURS)]
    pictures = [
        empty_place(cabinet, pixels) if content is None else drawn_place(cabinet, *content, pixels)
        for content in contents
    ]
    return contents, np.stack(pictures).reshape(len(contents), -1)


def split_places(picture: Image.Image | np.ndarray) -> np.ndarray:
    """The 16 places of a picture as rows, (16, pixels * pixels * 3) in 0..1. Arrays are floats in 0..1.

    Raises:
        ValueError: the picture is not square with a side that four places share evenly.
    """
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    height, width, _ = picture.shape
    if height != width or height % len(ROWS):
        raise ValueError(
            f"A picture of the world is square, with a side that 4 divides; got {width} × {height} pixels."
        )
    pixels = height // len(ROWS)
    grid = picture.reshape(len(ROWS), pixels, len(COLUMNS), pixels, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid).reshape(len(ROWS) * len(COLUMNS), -1)


def read_scene(picture: Image.Image | np.ndarray) -> Scene:
    """The scene whose render is nearest to `picture`, by squared error."""
    places = split_places(picture)
    pixels = round((places.shape[1] / 3) ** 0.5)
    best: tuple[float, Scene] | None = None
    for cabinet in CABINETS:
        contents, drawings = templates(cabinet, pixels)
        distances = (drawings**2).sum(1)[None] - 2 * places @ drawings.T  # less |place|², the same for all
        nearest = distances.argmin(1)
        things = tuple(Thing(*contents[index]) if contents[index] else None for index in nearest)
        total = float(distances.min(1).sum())
        if best is None or total < best[0]:
            best = total, Scene(cabinet, things)
    assert best is not None
    return best[1]
