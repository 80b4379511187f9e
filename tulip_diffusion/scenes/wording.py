"""The sentences of the world, as templates that are both filled and parsed.

A blank in braces is one word of `WORDS`; a capital, as in `{Row}`, only capitalises it. Every word is a single token
of CLIP's vocabulary, and the place comes first in every sentence about a thing.
"""

import re
from collections.abc import Mapping
from functools import cache

from .render import CABINETS, COLUMNS, ROWS
from .sprites import COLOURS, KINDS

SIDES = {"to the right of": 1, "to the left of": -1, "above": -len(COLUMNS), "below": len(COLUMNS)}
WORDS = {
    "row": ROWS,
    "column": COLUMNS,
    "kind": KINDS,
    "other": KINDS,
    "colour": tuple(COLOURS),
    "cabinet": tuple(CABINETS),
    "side": tuple(SIDES),
}

# Role of a sentence -> wording -> templates. "long" reads well, "short" fits many into a window, "terse" fifteen.
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "thing": {
        "long": (
            "On the {row} shelf, {column} place, stands a {colour} {kind}.",
            "The {column} place on the {row} shelf holds a {colour} {kind}.",
            "In the {column} place of the {row} shelf is a {kind} painted {colour}.",
            "{Row} shelf, {column} place: a small {kind} in {colour}.",
            "Look at the {row} shelf, {column} from the left: a pretty {colour} {kind}.",
            "And the {row} shelf has, {column} from the left, a {kind} in {colour}.",
        ),
        "short": (
            "{Row} {column} {colour} {kind}.",
            "{Row} {column}: {colour} {kind}.",
            "{Row} {column}, a {colour} {kind}.",
        ),
        "terse": ("{Row} {column} {colour} {kind}.",),
    },
    "colourless": {
        "long": (
            "On the {row} shelf, {column} place, stands a {kind}.",
            "The {column} place on the {row} shelf holds a {kind}.",
            "In the {column} place of the {row} shelf is a {kind}.",
        ),
        "short": ("{Row} {column} {kind}.", "{Row} {column}, a {kind}."),
        "terse": ("{Row} {column} {kind}.",),
    },
    "colour": {
        "long": (
            "On the {row} shelf, {column} place, stands a {kind} in the same colour as the {other}.",
            "The {column} place on the {row} shelf holds a {kind} with the colour of the {other}.",
            "In the {column} place of the {row} shelf is a {kind} painted like the {other}.",
        ),
        "short": ("{Row} {column} {kind} like the {other}.", "{Row} {column}, a {kind} like the {other}."),
        "terse": ("{Row} {column} {kind} like the {other}.",),
    },
    "place": {
        "long": ("{Side} the {other} stands a {colour} {kind}.", "{Side} the {other} there is a {kind} in {colour}."),
        "short": ("{Side} the {other} a {colour} {kind}.",),
        "terse": ("{Side} the {other} a {colour} {kind}.",),
    },
    "it": {
        "long": ("It is {colour}.", "Its colour is {colour}.", "Somebody has painted it {colour}."),
        "short": ("It is {colour}.",),
        "terse": ("It is {colour}.",),
    },
    "every": {
        "long": ("Every {kind} mentioned so far is {colour}.",),
        "short": ("Every {kind} mentioned so far is {colour}.",),
        "terse": ("Every {kind} mentioned so far is {colour}.",),
    },
    "cabinet": {
        "long": (
            "The cabinet is made of {cabinet}.",
            "All of this stands in a {cabinet} cabinet.",
            "It is an old {cabinet} cabinet with four shelves.",
        ),
        "short": ("{Cabinet} cabinet.",),
        "terse": ("{Cabinet} cabinet.",),
    },
}
REMARKS = (
    "It was a present from a friend.",
    "It has been there for many years.",
    "Children always point at it.",
    "It was bought at a market by the sea.",
    "Nobody knows who made it.",
    "It is the owner's favourite piece.",
)
ASIDES = (
    "The morning light is soft and nobody is at home.",
    "Dust dances slowly in the quiet air.",
    "A clock ticks somewhere in the next room.",
    "Outside the window it has begun to rain.",
    "Nothing has been moved since last summer.",
    "The glass doors were cleaned yesterday.",
    "The room smells of old books and wax.",
    "Visitors often ask how the collection began.",
    "The owner will tell you a long story about each piece.",
    "Please do not touch anything.",
)
BLANK = re.compile(r"\{(\w+)\}")


def count_tokens(text: str) -> int:
    """CLIP tokens of a text of this world, BOS and EOS not counted: its words and runs of punctuation."""
    return len(re.findall(r"'s|[a-z]+|[^\sa-z]+", text.lower()))


def fill(template: str, words: Mapping[str, str]) -> str:
    """Put `words` into the blanks, with "an" before a vowel."""

    def word(blank: re.Match) -> str:
        value = words[blank[1].lower()]
        return value[0].upper() + value[1:] if blank[1][0].isupper() else value

    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", BLANK.sub(word, template))


@cache
def pattern(template: str) -> re.Pattern:
    """The regular expression that parses what `fill` wrote, whatever the case of its letters."""
    parts = BLANK.split(re.sub(r"\b([Aa]) \{", r"\1n? {", template))
    expression = ""
    for index, part in enumerate(parts):
        blank = part.lower()
        expression += f"(?P<{blank}>{'|'.join(WORDS[blank])})" if index % 2 else part.replace(".", r"\.")
    return re.compile(expression, re.IGNORECASE)


FREE = {  # blank -> word as a person may write it -> the world's word
    "row": {**{row: row for row in ROWS}, "topmost": "top", "bottommost": "bottom"},
    "column": {
        **{column: column for column in COLUMNS},
        **dict(zip(("1st", "2nd", "3rd", "4th"), COLUMNS, strict=True)),
        "leftmost": COLUMNS[0],
        "rightmost": COLUMNS[-1],
    },
    "kind": {kind: kind for kind in KINDS},
    "colour": {colour: colour for colour in COLOURS},
}
DENIALS = {"no", "not", "without", "never", "nor", "neither"}


def parse_freely(text: str) -> list[dict[str, str]]:
    """The things that a sentence in any wording puts into places, each with its `row`, `column`, `kind` and `colour`.

    The n-th kind goes with the n-th colour and the n-th place; one row, named once, holds for all of them. Nothing is
    taken from a sentence in which they do not add up, or which denies something.
    """
    words = re.findall(r"[a-z0-9]+", text.lower())
    found = {blank: [known[word] for word in words if word in known] for blank, known in FREE.items()}
    count = len(found["kind"])
    if len(found["row"]) == 1:
        found["row"] *= count
    if DENIALS & set(words) or any(len(values) != count for values in found.values()):
        return []
    return [dict(zip(found, thing, strict=True)) for thing in zip(*found.values(), strict=True)]


def parse_sentence(text: str) -> tuple[str, dict[str, str]] | None:
    """Role and words of one sentence of this world; None where it says nothing about the picture."""
    for role, wordings in TEMPLATES.items():
        for template in (template for templates in wordings.values() for template in templates):
            if match := pattern(template).fullmatch(text.strip()):
                return role, {blank: word.lower() for blank, word in match.groupdict().items()}
    return None
