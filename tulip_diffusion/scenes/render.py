"""Pictures of the world: a cabinet of four shelves with four places each, and a thing or nothing in every place."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from .sprites import COLOURS, KINDS, sprite

ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("first", "second", "third", "fourth")
PLACES = len(ROWS) * len(COLUMNS)
# Back panel, plank and edge of each cabinet.
CABINETS = {
    "birch": ((238, 222, 190), (202, 162, 106), (150, 110, 64)),
    "walnut": ((122, 84, 62), (84, 52, 36), (48, 28, 20)),
    "slate": ((142, 160, 176), (92, 108, 126), (54, 66, 82)),
}


@dataclass(frozen=True)
class Thing:
    """What stands in one place. Raises ValueError for a kind or colour that the world does not have."""

    kind: str
    colour: str

    def __post_init__(self):
        if self.kind not in KINDS or self.colour not in COLOURS:
            raise ValueError(
                f"The world has no {self.colour} {self.kind}. Kinds: {', '.join(KINDS)}; "
                f"colours: {', '.join(COLOURS)}."
            )


@dataclass(frozen=True)
class Scene:
    """A cabinet and its places, row by row from the top left; None is an empty place."""

    cabinet: str
    things: tuple[Thing | None, ...]

    @property
    def occupied(self) -> list[int]:
        """Places that hold a thing."""
        return [place for place, thing in enumerate(self.things) if thing is not None]


def random_scene(rng: np.random.Generator, count: int) -> Scene:
    """A scene with `count` things of random kinds and colours in random places."""
    if not 0 <= count <= PLACES:
        raise ValueError(f"A cabinet has {PLACES} places, so count must be between 0 and {PLACES}, got {count}.")
    things: list[Thing | None] = [None] * PLACES
    for place in rng.choice(PLACES, count, replace=False):
        things[place] = Thing(str(rng.choice(KINDS)), str(rng.choice(tuple(COLOURS))))
    return Scene(str(rng.choice(tuple(CABINETS))), tuple(things))


@cache
def empty_place(cabinet: str, pixels: int) -> np.ndarray:
    """One compartment, (pixels, pixels, 3) float32 in 0..1: a shaded back panel, a plank below and an edge beside."""
    panel, plank, edge = (np.array(colour, dtype=np.float32) / 255 for colour in CABINETS[cabinet])
    place = np.broadcast_to(panel, (pixels, pixels, 3)).copy()
    depth = np.linspace(0, 1, pixels, dtype=np.float32)
    shadow = 1 - 0.24 * np.exp(-depth * 7)[:, None] - 0.10 * np.exp(-depth * 7)[None, :]
    place *= shadow[..., None]
    thickness = max(1, pixels // 12)
    place[-thickness:] = plank
    place[-1:] = edge
    place[:, -thickness:] = plank
    place[:, -1:] = edge
    place.flags.writeable = False
    return place


@cache
def drawn_place(cabinet: str, kind: str, colour: str, pixels: int) -> np.ndarray:
    """The compartment with a thing in it, (pixels, pixels, 3) float32 in 0..1."""
    drawing = sprite(kind, colour, pixels)
    place = empty_place(cabinet, pixels) * (1 - drawing[..., 3:]) + drawing[..., :3]
    place.flags.writeable = False
    return place


def render_array(scene: Scene, size: int = 64) -> np.ndarray:
    """`scene` as (size, size, 3) float32 in 0..1. `size` is a multiple of 4, 64 by default."""
    if size % len(ROWS) or size < 32:
        raise ValueError(f"size must be a multiple of {len(ROWS)} and at least 32, got {size}.")
    pixels = size // len(ROWS)
    places = [
        drawn_place(scene.cabinet, thing.kind, thing.colour, pixels) if thing else empty_place(scene.cabinet, pixels)
        for thing in scene.things
    ]
    grid = np.stack(places).reshape(len(ROWS), len(COLUMNS), pixels, pixels, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(size, size, 3)


def render(scene: Scene, size: int = 64) -> Image.Image:
    """`scene` as an RGB picture of `size` × `size` pixels."""
    return Image.fromarray((render_array(scene, size) * 255).round().astype(np.uint8))
