"""Pictures side by side over the prompt, whose colours tell which words CLIP and Long-CLIP can see."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SEEN = {77: (34, 40, 49), 248: (206, 110, 0)}  # up to so many tokens: colour of the words
BEYOND = (176, 32, 90)
PAPER, QUIET = (253, 252, 249), (120, 124, 132)
PICTURE, MARGIN, LINE = 384, 24, 24

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Panel:
    """One picture of the strip, its title and a line of figures below."""

    picture: Image.Image
    title: str
    note: str = ""


def colour_at(position: int) -> tuple[int, int, int]:
    """EOS needs a place too, so the last word that fits into 77 tokens ends at position 75."""
    return next((colour for limit, colour in SEEN.items() if position <= limit - 2), BEYOND)


def make_strip(panels: Sequence[Panel], words: Sequence[tuple[str, int]]) -> Image.Image:
    """`panels` in a row, below them the prompt's `words` and what their colours mean."""
    width = MARGIN + len(panels) * (PICTURE + MARGIN)
    title, text = ImageFont.load_default(20), ImageFont.load_default(16)
    lines = wrap(words, text, width - 2 * MARGIN)
    top = MARGIN + PICTURE + 64
    strip = Image.new("RGB", (width, top + (len(lines) + 1) * LINE + MARGIN), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, panel in enumerate(panels):
        left = MARGIN + number * (PICTURE + MARGIN)
        small = panel.picture.width < PICTURE  # the embedded family's pixels stay pixels
        how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        strip.paste(panel.picture.resize((PICTURE, PICTURE), how), (left, MARGIN))
        draw.text((left, MARGIN + PICTURE + 6), panel.title, fill=SEEN[77], font=title)
        draw.text((left, MARGIN + PICTURE + 32), panel.note, fill=QUIET, font=text)
    for number, line in enumerate(lines):
        for left, word, colour in line:
            draw.text((MARGIN + left, top + number * LINE), word, fill=colour, font=text)
    add_legend(draw, top + (len(lines) + 0.5) * LINE, text)
    return strip


def add_legend(draw: ImageDraw.ImageDraw, top: float, font: Font) -> None:
    """What the words' colours mean, in a line."""
    left = float(MARGIN)
    for name, colour in (
        ("within CLIP's 77 tokens", SEEN[77]),
        ("up to Long-CLIP's 248", SEEN[248]),
        ("beyond both", BEYOND),
    ):
        draw.rectangle((left, top + 4, left + 12, top + 16), fill=colour)
        draw.text((left + 20, top), name, fill=QUIET, font=font)
        left += 20 + font.getlength(name) + 32


def wrap(words: Sequence[tuple[str, int]], font: Font, width: float) -> list[list[tuple]]:
    """Lines of (left edge, word, colour) no wider than `width` pixels."""
    lines: list[list[tuple]] = [[]]
    left = 0.0
    for word, position in words:
        if left and left + font.getlength(word) > width:
            lines.append([])
            left = 0.0
        lines[-1].append((left, word, colour_at(position)))
        left += font.getlength(word + " ")
    return lines
