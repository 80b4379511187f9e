"""The world in words for the people who write prompts for it."""

from .grammar import parse_caption
from .render import CABINETS, COLUMNS, ROWS
from .sprites import COLOURS, KINDS


def listed(words) -> str:
    """ "red, blue or green"."""
    *most, last = words
    return f"{', '.join(most)} or {last}"


WORLD = (
    "The small family that comes with the package draws one world: a cabinet of four shelves with four places each."
)
EXAMPLES = (
    "Top shelf, first place: a red tulip.",
    "In the third place of the lower shelf is a blue cup.",
    "The cabinet is made of walnut.",
)
GRAMMAR = {
    "shelf": ROWS,
    "place, from the left": COLUMNS,
    "colour": tuple(COLOURS),
    "thing": KINDS,
    "cabinet": tuple(CABINETS),
}
HOW = (
    f"It understands sentences like “{EXAMPLES[0]}”: a shelf ({listed(ROWS)}), a place ({listed(COLUMNS)}), a colour "
)
HOW += f"({listed(COLOURS)}) and a thing ({listed(KINDS)})."


def is_outside(prompt: str) -> bool:
    """Whether `prompt` names nothing that the shipped family can draw."""
    try:
        parse_caption(prompt)
    except ValueError:
        return True
    return False


def outside_world(*prompts: str) -> str:
    """What to tell somebody of whose prompts some are outside the shipped family's world; "" if none is."""
    outside = sum(map(is_outside, prompts))
    if not outside:
        return ""
    which = "This prompt names" if len(prompts) == 1 else f"{outside} of {len(prompts)} prompts name"
    return f"{which} nothing that the small family can draw. {WORLD} {HOW}"
