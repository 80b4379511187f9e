"""What a negative prompt does: things that it names should appear less often, and nothing else should change."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.oracle import read_scene
from tulip_diffusion.scenes.render import Thing
from tulip_diffusion.scenes.sprites import COLOURS, KINDS

from .records import mean_over

Named = tuple[str | None, str | None]  # colour and kind, either of which may be left open
NAMED = re.compile(rf"\b(?:(?:({'|'.join(COLOURS)}) )?({'|'.join(KINDS)})(?:s|es)?|({'|'.join(COLOURS)}))\b")


def named_things(text: str) -> list[Named]:
    """What `text` names of the world: "no red tulips, boats or blue" is red tulip, any boat and anything blue."""
    return [(colour or alone or None, kind or None) for colour, kind, alone in NAMED.findall(text.lower())]


def is_named(thing: Thing | None, named: Sequence[Named]) -> bool:
    """Whether a thing is one of those that a text names."""
    return thing is not None and any(
        colour in (None, thing.colour) and kind in (None, thing.kind) for colour, kind in named
    )


def effect(negative: str, without: np.ndarray, pictures: np.ndarray, captions: Sequence[Caption]) -> dict[str, Any]:
    """What `negative` changes in `pictures`, against those drawn `without` it from the same noise and prompts.

    Of what it names, in places a picture: "named without" and "named with", and of those in how many the prompt asks
    for it ("asked without", "asked with"); None where it names nothing of the world. "others right without" and
    "others right with" are the shares of the prompts' other details that are drawn right.
    """
    named = named_things(negative)
    figures: dict[str, Any] = {"names": [" ".join(filter(None, pair)) for pair in named]}
    for when, drawn in (("without", without), ("with", pictures)):
        counts, asked, others = [], [], []
        for number, (picture, caption) in enumerate(zip(drawn, captions, strict=True)):
            seen = read_scene(picture).things
            wanted = {claim.place: claim.thing for claim in caption.claims}
            shown = [place for place, thing in enumerate(seen) if is_named(thing, named)]
            counts.append((float(len(shown)), number))
            asked.append((float(sum(is_named(wanted.get(place), named) for place in shown)), number))
            others += [
                (float(seen[place] == thing), number) for place, thing in wanted.items() if not is_named(thing, named)
            ]
        for what, values in (("named", counts), ("asked", asked), ("others right", others)):
            known = what == "others right" or named
            figures[f"{what} {when}"] = mean_over(*zip(*values, strict=True)) if known and values else None
    return figures
