"""Prompt weights and BREAK in the syntax that AUTOMATIC1111's web UI made common.

`(word)` weighs 1.1, `((word))` 1.21, `(word:1.3)` 1.3, `[word]` 1 / 1.1; `\\(`, `\\)`, `\\[`, `\\]` and `\\\\` are the
characters themselves; `BREAK` asks for a window's end. Brackets without a partner, or with nothing in them, are text.
"""

import re
from dataclasses import dataclass

from transformers import CLIPTokenizer

TOKENS = re.compile(
    r"\\[\\()\[\]]"  # an escaped character
    r"|:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\)"  # `:1.3)`
    r"|[()\[\]]"
    r"|[^\\()\[\]:]+|.",
    re.DOTALL,
)
BREAK = re.compile(r"\s*\bBREAK\b\s*")
PARTNER = {")": "(", "]": "["}
ROUND, SQUARE = 1.1, 1 / 1.1
TINY = 1e-4  # stands for a weight of 0: states of exact zeros would mean "no token here", see attention.py


@dataclass
class Span:
    """A stretch of text with one weight; `after_break` where a BREAK stood before it."""

    text: str
    weight: float = 1.0
    after_break: bool = False


def parse_weights(prompt: str) -> list[Span]:
    """Split `prompt` into spans of one weight. A prompt without syntax gives itself, unchanged, at weight 1."""
    spans: list[Span] = []
    opened: list[
        tuple[str, int]
    ] = []  # each open bracket and its place in `spans`, where it stands as text till closed
    for token in TOKENS.findall(prompt):
        bracket = token[-1]
        if token in ("(", "["):
            opened.append((token, len(spans)))
            spans.append(Span(token))
        elif bracket in PARTNER and token[0] != "\\" and (start := _partner(opened, bracket, len(spans))) is not None:
            weight = float(token[1:-1]) if token[0] == ":" else ROUND if bracket == ")" else SQUARE
            for span in spans[start + 1 :]:
                span.weight *= weight
            spans[start].text = ""
        else:
            spans.append(Span(token[1] if token[0] == "\\" and len(token) == 2 else token))
    return _split_breaks(_merge(spans))


def _partner(opened: list[tuple[str, int]], bracket: str, end: int) -> int | None:
    """Place of the bracket that `bracket` closes, taken off `opened` with all inside it; None if that is text."""
    for depth in reversed(range(len(opened))):
        kind, start = opened[depth]
        if kind == PARTNER[bracket]:
            del opened[depth:]
            return start if start + 1 < end else None  # nothing between them: text
    return None


def _merge(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for span in spans:
        if merged and merged[-1].weight == span.weight:
            merged[-1].text += span.text
        elif span.text:
            merged.append(span)
    return merged or [Span("")]


def _split_breaks(spans: list[Span]) -> list[Span]:
    split = []
    for span in spans:
        texts = BREAK.split(span.text)
        split += [Span(text, span.weight, after_break=i > 0) for i, text in enumerate(texts)]
    return split


@dataclass(frozen=True)
class TokenizedPrompt:
    """Ids and weights of one prompt's tokens, BOS and EOS left out; `breaks` are the positions after a BREAK."""

    ids: list[int]
    weights: list[float]
    breaks: frozenset[int]

    def cut(self, context: int | None) -> "TokenizedPrompt":
        """The tokens that fit, with BOS and EOS, into `context`."""
        room = context and context - 2
        return TokenizedPrompt(self.ids[:room], self.weights[:room], self.breaks)


def tokenize(prompt: str, tokenizer: CLIPTokenizer, weighting: str | None, plain: bool = False) -> TokenizedPrompt:
    """All tokens of `prompt`. `plain` takes special tokens' names in it as text.

    SDXL's second tokenizer pads with "!", so only a `plain` reading of "!!!" is the one token that the first sees.
    """
    ids: list[int] = []
    weights: list[float] = []
    breaks = []
    for span in parse_weights(prompt) if weighting else [Span(prompt)]:
        if span.after_break:
            breaks.append(len(ids))
        new = tokenizer(span.text, add_special_tokens=False, split_special_tokens=plain, verbose=False).input_ids
        ids += new
        weights += [span.weight or TINY] * len(new)
    return TokenizedPrompt(ids, weights, frozenset(breaks))
