"""The things of the world: ten small drawings, each in eight colours, with soft edges and a see-through ground.

Every drawing is a function of a brush whose coordinates run from 0 to 16, left to right and top to bottom, whatever
the size of the picture.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (222, 38, 44),
    "orange": (255, 138, 20),
    "yellow": (255, 221, 38),
    "green": (46, 178, 72),
    "blue": (38, 96, 228),
    "purple": (132, 52, 176),
    "pink": (255, 132, 190),
    "white": (248, 248, 252),
}
INK = (44, 32, 40)
LEAF = (58, 142, 62)
WOOD = (134, 84, 48)
CREAM = (250, 240, 214)
UNITS = 17  # the drawings use 16: a strip at the right and at the bottom stays free for the shelf
OVERSAMPLING = 8

Rgb = tuple[int, int, int]


def mix(colour: Rgb, other: Rgb, share: float) -> Rgb:
    """`colour` with a `share` of the `other`, from 0 to 1."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


class Brush:
    """Pillow's drawing in the units of the module, with an outline by default."""

    def __init__(self, pixels: int, colour: Rgb):
        self.scale = pixels * OVERSAMPLING / UNITS
        self.image = Image.new("RGBA", (pixels * OVERSAMPLING,) * 2, (*INK, 0))
        self.draw = ImageDraw.Draw(self.image)
        self.colour = colour
        self.shade = mix(colour, INK, 0.32)
        self.light = mix(colour, (255, 255, 255), 0.55)

    def scaled(self, points) -> list[tuple[float, float]]:
        """Points in pixels."""
        return [(x * self.scale, y * self.scale) for x, y in points]

    def polygon(self, points, fill: Rgb, outline: float = 0.75) -> None:
        """A filled polygon, outlined by so many units."""
        corners = self.scaled(points)
        if outline:
            width = round(outline * self.scale)
            self.draw.line([*corners, *corners[:2]], fill=INK, width=width, joint="curve")
        self.draw.polygon(corners, fill=fill)

    def ellipse(self, left: float, top: float, right: float, bottom: float, fill: Rgb, outline: float = 0.4) -> None:
        """A filled ellipse in a box, outlined by so many units."""
        if outline:
            grown = self.scaled([(left - outline, top - outline), (right + outline, bottom + outline)])
            self.draw.ellipse(grown, fill=INK)
        self.draw.ellipse(self.scaled([(left, top), (right, bottom)]), fill=fill)

    def line(self, points, fill: Rgb, width: float) -> None:
        """A line through points, so many units wide."""
        self.draw.line(self.scaled(points), fill=fill, width=round(width * self.scale), joint="curve")


def tulip(b: Brush) -> None:
    """A tulip with two leaves."""
    b.line([(8, 8), (8, 14.4)], INK, 1.9)
    b.polygon([(8, 14), (4.2, 12.6), (3.2, 9.6), (6.4, 10.8)], LEAF)
    b.polygon([(8, 14), (11.8, 12.6), (12.8, 9.6), (9.6, 10.8)], LEAF)
    b.line([(8, 8), (8, 14.4)], LEAF, 1.1)
    b.polygon(
        [(4.2, 2.2), (6, 3.8), (8, 1.4), (10, 3.8), (11.8, 2.2), (12, 6.4), (10.2, 8.8), (5.8, 8.8), (4, 6.4)],
        b.colour,
    )
    b.polygon([(8, 2), (9.6, 5), (8, 8.4), (6.4, 5)], b.light, 0)


def house(b: Brush) -> None:
    """A house with a chimney, a door and a window."""
    b.polygon([(10.8, 2.4), (12.6, 2.4), (12.6, 6), (10.8, 5)], b.shade)
    b.polygon([(3, 7.4), (13, 7.4), (13, 14), (3, 14)], CREAM)
    b.polygon([(8, 1.8), (14.6, 7.8), (1.4, 7.8)], b.colour)
    b.polygon([(4.2, 10), (6.9, 10), (6.9, 14), (4.2, 14)], b.colour, 0.4)
    b.polygon([(9, 9.6), (11.6, 9.6), (11.6, 12), (9, 12)], (120, 190, 226), 0.4)


def cat(b: Brush) -> None:
    """A sitting cat."""
    b.line([(11, 13), (13.4, 12), (13.8, 9), (12.8, 7.6)], INK, 2.2)
    b.line([(11, 13), (13.4, 12), (13.8, 9), (12.9, 7.8)], b.colour, 1.2)
    b.ellipse(4.2, 7.6, 11.4, 14.2, b.colour)
    b.polygon([(3.2, 6), (3.4, 1.6), (6.6, 3.4)], b.colour)
    b.polygon([(11.6, 6), (11.4, 1.6), (8.2, 3.4)], b.colour)
    b.ellipse(3, 2.8, 11.8, 9.6, b.colour)
    b.ellipse(5.9, 10.2, 8.9, 14, b.light, 0)
    for x in (5.4, 9.4):
        b.ellipse(x - 0.75, 5, x + 0.75, 6.8, INK, 0)
    b.ellipse(6.8, 7, 8, 7.9, (236, 120, 130), 0)


def boat(b: Brush) -> None:
    """A boat with two sails."""
    b.line([(8, 1.4), (8, 11)], INK, 1.0)
    b.polygon([(8.8, 2), (13.8, 9), (8.8, 9)], b.colour)
    b.polygon([(7.2, 3.2), (7.2, 9), (2.8, 9)], b.light)
    b.polygon([(1.6, 10.4), (14.4, 10.4), (12.2, 14), (3.8, 14)], b.colour)
    b.line([(2.4, 11.4), (13.6, 11.4)], CREAM, 0.8)


def cup(b: Brush) -> None:
    """A steaming cup."""
    b.ellipse(10, 6.8, 14.4, 11.4, b.colour)
    b.ellipse(11.4, 8, 13, 10.2, CREAM, 0.3)
    b.polygon([(2.4, 5.4), (11.6, 5.4), (11.2, 11.6), (9.4, 14), (4.6, 14), (2.8, 11.6)], b.colour)
    b.ellipse(2.4, 4.2, 11.6, 6.8, (112, 66, 40))
    b.line([(4, 8), (4.4, 11.4)], b.light, 1.0)
    b.line([(5.6, 1), (6.4, 2), (5.6, 3.2)], (255, 255, 255), 0.8)
    b.line([(8.4, 1), (9.2, 2), (8.4, 3.2)], (255, 255, 255), 0.8)


def fish(b: Brush) -> None:
    """A fish with a belly."""
    b.polygon([(10.4, 8.4), (14.6, 4.8), (14, 8.4), (14.6, 12)], b.shade)
    b.polygon([(5.4, 5), (8.4, 2.8), (10, 5.6)], b.shade)
    b.ellipse(1.4, 4.4, 11.8, 12.6, b.colour)
    b.ellipse(3.4, 8.8, 9.6, 12, b.light, 0)
    b.ellipse(3, 6.2, 5.2, 8.4, (255, 255, 255), 0.2)
    b.ellipse(3.5, 6.9, 4.7, 8.1, INK, 0)


def tree(b: Brush) -> None:
    """A tree with fruits."""
    b.polygon([(6.8, 10), (9.2, 10), (9.6, 14.2), (6.4, 14.2)], WOOD)
    for left, top, right, bottom in ((1.8, 5.2, 8.4, 11.4), (7.6, 5.2, 14.2, 11.4), (4.2, 1.4, 11.8, 8.4)):
        b.ellipse(left, top, right, bottom, b.colour)
    for left, top, right, bottom in ((2.4, 5.8, 7.8, 10.8), (8.2, 5.8, 13.6, 10.8), (4.8, 4, 11.2, 9.8)):
        b.ellipse(left, top, right, bottom, b.colour, 0)
    for x, y in ((6, 3.4), (4, 7.2), (10.6, 7), (8.6, 5)):
        b.ellipse(x - 0.7, y - 0.7, x + 0.7, y + 0.7, b.light, 0)


def star(b: Brush) -> None:
    """A star with eyes."""
    radii = [(6.9 if corner % 2 == 0 else 3.0) for corner in range(10)]
    angles = np.pi * (np.arange(10) / 5 - 0.5)
    b.polygon([(8 + r * np.cos(a), 8.4 + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)], b.colour)
    b.polygon([(8, 4), (9, 7), (8, 8.4), (7, 7)], b.light, 0)
    for x in (6.8, 9.2):
        b.ellipse(x - 0.55, 8, x + 0.55, 9.4, INK, 0)


def mushroom(b: Brush) -> None:
    """A spotted mushroom."""
    b.polygon([(6, 8), (10, 8), (10.8, 14), (5.2, 14)], CREAM)
    b.draw.pieslice(b.scaled([(1.2, 1.4), (14.8, 16)]), 180, 360, fill=INK)
    b.draw.pieslice(b.scaled([(1.7, 2), (14.3, 15.2)]), 180, 360, fill=b.colour)
    b.line([(1.6, 8.8), (14.4, 8.8)], INK, 0.8)
    for x, y, r in ((5, 6, 1.2), (9, 4.2, 1.3), (11.8, 7, 0.9)):
        b.ellipse(x - r, y - r, x + r, y + r, CREAM if b.colour[2] < 240 else b.shade, 0)


def key(b: Brush) -> None:
    """A key, bow up."""
    b.line([(8, 6), (8, 14.6)], INK, 2.9)
    b.line([(8, 10.4), (12, 10.4)], INK, 2.5)
    b.line([(8, 13.4), (12, 13.4)], INK, 2.5)
    b.ellipse(4.2, 1.2, 11.8, 8.4, b.colour)
    b.line([(8, 8), (8, 14)], b.colour, 1.8)
    b.line([(8, 10.4), (11.4, 10.4)], b.colour, 1.4)
    b.line([(8, 13.4), (11.4, 13.4)], b.colour, 1.4)
    b.ellipse(6.6, 3.4, 9.4, 6.2, INK, 0)
    b.line([(5.6, 3.4), (6.4, 2.6)], b.light, 0.8)


DRAWINGS: dict[str, Callable[[Brush], None]] = {
    drawing.__name__: drawing for drawing in (tulip, house, cat, boat, cup, fish, tree, star, mushroom, key)
}
KINDS = tuple(DRAWINGS)


@cache
def sprite(kind: str, colour: str, pixels: int) -> np.ndarray:
    """The drawing as (pixels, pixels, 4) float32 in 0..1, colour already multiplied by its opacity."""
    brush = Brush(pixels, COLOURS[colour])
    DRAWINGS[kind](brush)
    rgba = np.asarray(brush.image, dtype=np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    blocks = rgba.reshape(pixels, OVERSAMPLING, pixels, OVERSAMPLING, 4)
    drawing = blocks.mean(axis=(1, 3))
    drawing.flags.writeable = False
    return drawing
