"""What a picture of the world shows of its prompt. An oracle reads every place exactly, so no judge model is needed.

*Detail accuracy*: the share of things that stand in their place in their colour, by the position of the sentence that
names them. *Reference accuracy*: the same for things whose colour is only given by reference ("in
the same colour as the tulip"), by the token distance to the sentence referred to.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.grammar import parse_caption
from tulip_diffusion.scenes.oracle import read_scene

from .prompts import DISTANCES, POSITIONS, bin_means, position_of
from .records import Mean, mean_over

WINDOW = 77  # tokens


@dataclass(frozen=True)
class Detail:
    """One claim of one prompt and whether its picture bears it out.

    `position` counts tokens as [`position_of`] does; `own` is whether something of the right kind stands in the right
    place, in whatever colour.
    """

    prompt: int
    position: int
    role: str
    distance: int | None
    right: bool
    own: bool


def details(pictures: Iterable[np.ndarray | Image.Image], captions: Sequence[Caption]) -> list[Detail]:
    """Every claim of every caption held against its picture; arrays are (height, width, 3) in 0..1."""
    found = []
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        seen = read_scene(picture).things
        for claim in caption.claims:
            thing = seen[claim.place]
            own = thing is not None and thing.kind == claim.thing.kind
            right = own and thing == claim.thing
            found.append(Detail(number, position_of(claim), claim.role, claim.distance, right, own))
    return found


def sentences_shown(prompt: str, picture: np.ndarray | Image.Image) -> list[tuple[str, bool | None]]:
    """Every sentence of a prompt and whether `picture` shows it, None where it says nothing to show.

    A thing whose colour is told by a later sentence ("It is pink.") counts where that sentence stands. A prompt from
    beyond the world has no sentences here.
    """
    try:
        caption = parse_caption(prompt)
    except ValueError:
        return []
    shown: dict[int, bool] = {}
    for claim, detail in zip(caption.claims, details([picture], [caption]), strict=True):
        shown[claim.sentence] = shown.get(claim.sentence, True) and detail.right
    return [(sentence.text, shown.get(index)) for index, sentence in enumerate(caption.sentences)]


def hits(prompt: str, picture: np.ndarray | Image.Image) -> str:
    """ "12 of 16 details right (75%)", or "" for a prompt from beyond the world."""
    try:
        right = [detail.right for detail in details([picture], [parse_caption(prompt)])]
    except ValueError:
        return ""
    return f"{sum(right)} of {len(right)} details right ({sum(right) / len(right):.0%})" if right else ""


def share(found: Sequence[Detail], of: Callable[[Detail], bool] = lambda detail: detail.right) -> Mean | None:
    """The share of details for which `of` holds, None for no details.

    The interval is a bootstrap over prompts, since the details of one picture go together.
    """
    return mean_over([of(detail) for detail in found], [detail.prompt for detail in found])


def by_bin(found: Sequence[Detail], edges: Sequence[int], of: Callable[[Detail], int | None]) -> dict[str, Mean]:
    """Shares of the details whose `of` lies above one edge and up to the next."""
    right, prompts = [float(detail.right) for detail in found], [detail.prompt for detail in found]
    return bin_means([of(detail) for detail in found], right, prompts, edges)


def by_position(found: Sequence[Detail]) -> dict[str, Mean]:
    """Shares of what sentences say by themselves, by position."""
    return by_bin([d for d in found if d.role == "thing"], POSITIONS, lambda detail: detail.position)


def by_distance(found: Sequence[Detail]) -> dict[str, Mean]:
    """Shares of things in the colour of another, by the distance between the two sentences."""
    return by_bin([d for d in found if d.role == "colour"], DISTANCES, lambda detail: detail.distance)


def summarize(found: Sequence[Detail]) -> dict[str, Any]:
    """Detail accuracy over all, by position, and for references by distance, with what stands in their place.

    "far references" are those that CLIP's window can never hold with what they refer to.
    """
    references = [detail for detail in found if detail.role == "colour"]
    return {
        "all": share(found),
        "position": by_position(found),
        "distance": by_distance(found),
        "far references": share([detail for detail in references if (detail.distance or 0) > WINDOW]),
        "own place of references": share(references, lambda detail: detail.own),
    }


def changed(pictures: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How far pictures from the same noise are from others: the share of places read otherwise, and pixels.

    Both are (pictures, height, width, 3) in 0..1; "pixels" is the root of the mean squared difference.
    """
    pairs = [(read_scene(a).things, read_scene(b).things) for a, b in zip(pictures, reference, strict=True)]
    places = np.mean([a != b for one, other in pairs for a, b in zip(one, other, strict=True)])
    return {"places": float(places), "pixels": float(np.square(pictures - reference).mean() ** 0.5)}
