r"""Prompt weights, `BREAK` and network tags, in the syntax that AUTOMATIC1111's web UI made common.

- `(word)` weighs 1.1, `((word))` 1.21, `[word]` 1 / 1.1, `(word:1.3)` 1.3; `\(`, `\)`, `\[`, `\]` and `\\` are the
  characters themselves.
- `BREAK` ends a text: what stands behind it is read on its own.
- `<lora:name:0.8>`, `<lyco:…>` and `<hypernet:…>` are taken out.

Everything else is text, brackets included. Prose has brackets too, so these are text as well:

- brackets without a partner, with no letter in them (`(1912)`), or behind a letter or digit (`photo(s)`);
- square brackets with a colon or a bar in them, which is another syntax of that web UI (`[cat:dog:0.5]`);
- round brackets with a number on both sides of a colon (`(at 9:05 pm)`), unless they end in a weight;
- round brackets that end in a number which is no weight: see [`is_weight`].
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

TOKENS = re.compile(
    r"\\[\\()\[\]]"  # an escaped character
    r"|(?P<tag><(?:lora|lyco|lycoris|hypernet):[^<>]*>)"
    r"|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)"  # `:1.3)`
    r"|[()\[\]]"
    r"|[^\\()\[\]:<]+|.",
    re.DOTALL | re.IGNORECASE,
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")
RATIO = re.compile(r"\d\s*:\s*\d")
NUMBER_AT_END = re.compile(r"(?:^|[^\w.,])(\d[\d.,]*|[IVXLCDM]+|[A-Z])$")
PARTNER = {")": "(", "]": "["}
ROUND, SQUARE = 1.1, 1 / 1.1
HIGHEST, HIGHEST_AFTER_SPACE = 5, 2


@dataclass
class Span:
    """A stretch of text with one weight; `after_break` where a BREAK stood before it.

    `offsets` says where in the prompt each character of `text` stands.
    """

    text: str
    offsets: list[int] = field(default_factory=list, repr=False)
    weight: float = 1.0
    after_break: bool = False


def parse_weights(prompt: str) -> list[Span]:
    """Split `prompt` into spans of one weight. A prompt without syntax gives itself, unchanged, at weight 1."""
    spans: list[Span] = []
    opened: list[tuple[str, int]] = []  # open brackets and their places in `spans`, where they are text until closed
    for match in TOKENS.finditer(prompt):
        token, start = match[0], match.start()
        if match["tag"]:
            continue
        if token in ("(", "["):
            opened.append((token, len(spans)))
        elif token[-1] in PARTNER and token[0] != "\\" and (partner := _partner(opened, token[-1])) is not None:
            glued = spans[partner].offsets[0] > 0 and prompt[spans[partner].offsets[0] - 1].isalnum()
            weight = _weight(token, "".join(span.text for span in spans[partner + 1 :]), glued)
            if weight is not None:
                for span in spans[partner + 1 :]:
                    span.weight *= weight
                spans[partner] = Span("")
                continue
        escaped = token[0] == "\\" and len(token) == 2
        text = token[escaped:]
        spans.append(Span(text, list(range(start + escaped, start + len(token)))))
    return _split_breaks(_merge(spans))


def network_tags(prompt: str) -> list[str]:
    """The tags of LoRAs and their like in `prompt`, which [`parse_weights`] takes out."""
    return [match["tag"] for match in TOKENS.finditer(prompt) if match["tag"]]


def is_weight(before: str, number: str) -> bool:
    """Whether `:number)` behind `before` is a weight. It is text, as times, ratios, verses, scores and scales are,

    - where it is beyond 5 or -5 (`(Ratio:16)`), or has a zero in front (`(half past:05)`);
    - behind a space, unless it has a point and is no more than 2 (`(players: 2)`; but `(cat: 1.3)` is a weight);
    - behind a digit, a Roman numeral or a single capital, unless it has a point (`(John 3:16)`, `(Act II:3)`; but
      `(R2D2:1.2)` is one);
    - behind a number that stands alone, unless that has three digits or more as well (`(f/1:2.8)`; but
      `(cyberpunk 2077:1.3)` is one).
    """
    size, has_point = abs(float(number)), "." in number
    if size > HIGHEST or re.match(r"\s*[+-]?0\d", number):
        return False
    if number[0].isspace() and not (has_point and size <= HIGHEST_AFTER_SPACE):
        return False
    before = before.rstrip()
    if alone := NUMBER_AT_END.search(before):
        return has_point and (alone[1].isalpha() or (alone[1].isdigit() and len(alone[1]) >= 3))
    return has_point or not before[-1:].isdigit()


def _weight(closing: str, content: str, glued: bool) -> float | None:
    """The weight that `closing`, a bracket or `:1.3)`, gives to the `content` before it; None if all that is text."""
    if closing[0] == ":":
        return float(closing[1:-1]) if content and is_weight(content, closing[1:-1]) else None
    if glued or not any(character.isalpha() for character in content):
        return None
    if closing == "]":
        return None if ":" in content or "|" in content else SQUARE
    return None if RATIO.search(content) else ROUND


def _partner(opened: list[tuple[str, int]], bracket: str) -> int | None:
    """Place of the bracket that `bracket` closes, taken off `opened` with all inside it; None if there is none."""
    for depth in reversed(range(len(opened))):
        kind, start = opened[depth]
        if kind == PARTNER[bracket]:
            del opened[depth:]
            return start
    return None


def _merge(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].weight == span.weight:
            merged[-1].text += span.text
            merged[-1].offsets += span.offsets
        elif span.text:
            merged.append(span)
    return merged or [Span("")]


def _split_breaks(spans: list[Span]) -> list[Span]:
    split = []
    for span in spans:
        edges = [0, *(edge for match in BREAK.finditer(span.text) for edge in match.span()), len(span.text)]
        for number, (start, stop) in enumerate(list(pairwise(edges))[::2]):
            split.append(Span(span.text[start:stop], span.offsets[start:stop], span.weight, after_break=number > 0))
    return split
