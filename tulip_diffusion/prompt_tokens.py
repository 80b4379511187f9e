"""From a prompt to its tokens, with weights and windows' ends: the one function that encodes and that counts."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import PreTokenizedString
from transformers import CLIPTokenizer

from .models.positions import CLIP_LENGTH
from .tokenization import OpenClipTokenizer, clean_text
from .weighting import Span, parse_weights

TINY = 1e-4  # stands for a weight of 0: states of exact zeros would mean "no token here", see pipelines/attention.py


@dataclass(frozen=True)
class TokenizedPrompt:
    """One prompt's tokens, BOS and EOS left out.

    Args:
        prompt: as it was typed.
        ids: as the text encoder takes them.
        tokens: as the vocabulary spells them; a word's last one ends in `</w>`.
        weights: what each token's state is multiplied by.
        offsets: where in the prompt each token begins and ends. Vectors of a textual inversion share theirs.
        breaks: the positions of tokens that follow a BREAK.
    """

    prompt: str
    ids: list[int]
    tokens: list[str]
    weights: list[float]
    offsets: list[tuple[int, int]]
    breaks: frozenset[int]

    def cut(self, context: int | None) -> "TokenizedPrompt":
        """The tokens that fit, with BOS and EOS, into `context`."""
        room = context and context - 2
        kept = (self.ids[:room], self.tokens[:room], self.weights[:room], self.offsets[:room])
        return TokenizedPrompt(self.prompt, *kept, self.breaks)

    def beyond(self, context: int | None) -> str:
        """The rest of the prompt that does not fit into `context`. A word cut in two is in it whole."""
        first = len(self.ids) if context is None else context - 2
        if first >= len(self.ids):
            return ""
        while first and not self.tokens[first - 1].endswith("</w>"):
            first -= 1
        return self.prompt[self.offsets[first][0] :].strip()


def tokenize_prompts(
    prompts: Sequence[str], tokenizers: Sequence[CLIPTokenizer], weighting: str | None
) -> list[TokenizedPrompt]:
    """The tokens of one image's `prompts`, one for each of SDXL's tokenizers.

    Up to 77 tokens they are stock SDXL's. Beyond, they are the same for all tokenizers: SDXL's second one pads with
    "!" and gives that mark in a text the pad's id, so special tokens' names are then taken as text.
    """
    pairs = list(zip(prompts, tokenizers, strict=True))
    tokenized = [tokenize(prompt, tokenizer, weighting) for prompt, tokenizer in pairs]
    if all(len(tokens.ids) <= CLIP_LENGTH - 2 for tokens in tokenized):
        return tokenized
    for i, (prompt, tokenizer) in enumerate(pairs):
        if any(name in prompt for name in tokenizer.all_special_tokens):
            tokenized[i] = tokenize(prompt, tokenizer, weighting, plain=True)
    return tokenized


def tokenize(prompt: str, tokenizer: CLIPTokenizer, weighting: str | None, plain: bool = False) -> TokenizedPrompt:
    """All tokens of `prompt`. `weighting` is None or "a1111"; `plain` takes special tokens' names as text.

    It changes nothing on `tokenizer`, so threads may share one.
    """
    names = added_names(tokenizer, plain)
    spans = parse_weights(prompt) if weighting else [Span(prompt, list(range(len(prompt))))]
    found, breaks = TokenizedPrompt(prompt, [], [], [], [], frozenset()), set()
    for span in spans:
        if span.after_break:
            breaks.add(len(found.ids))
        for token in _tokens(span.text, tokenizer, names):
            found.ids.append(token.id)
            found.tokens.append(token.spelling)
            found.weights.append(span.weight or TINY)
            found.offsets.append((span.offsets[token.start], span.offsets[token.stop - 1] + 1))
    return dataclasses.replace(found, breaks=frozenset(breaks))


class Token(NamedTuple):
    """One token and where it begins and ends in its text."""

    id: int
    spelling: str
    start: int
    stop: int


def added_names(tokenizer: CLIPTokenizer, plain: bool) -> dict[str, list[int]]:
    """The names that `tokenizer` was taught beyond CLIP's vocabulary, and the ids that each stands for.

    Special tokens' names (none if `plain`) as they are, textual inversions' in lower case. diffusers calls the vectors
    of one inversion `name`, `name_1`, `name_2` …, with ids in a row.
    """
    added = {token.content: (index, token.special) for index, token in tokenizer.added_tokens_decoder.items()}
    names = {}
    for name, (index, special) in added.items():
        ids = [index]
        while not special and added.get(f"{name}_{len(ids)}", (None,))[0] == index + len(ids):
            ids.append(index + len(ids))
        if not (special and plain):
            names[name if special else name.lower()] = ids
    return names


def _tokens(text: str, tokenizer: CLIPTokenizer, names: dict[str, list[int]]) -> Iterator[Token]:
    cleaned, offsets = _clean(text, tokenizer)
    last = 0
    for match in _pattern(names).finditer(cleaned) if names else ():
        yield from _words(cleaned, last, match.start(), tokenizer, offsets)
        ids = names.get(match[0]) or names[match[0].lower()]
        for number, index in enumerate(ids, 1):
            spelling = match[0] + "</w>" * (number == len(ids))
            yield Token(index, spelling, offsets[match.start()], offsets[match.end() - 1] + 1)
        last = match.end()
    yield from _words(cleaned, last, len(cleaned), tokenizer, offsets)


def _pattern(names: dict[str, list[int]]) -> re.Pattern:
    """Matches a name where it stands as a word of its own, whatever its letters' case; the longest one wins."""
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("|".join(rf"(?<!\w(?=\w)){re.escape(name)}(?!(?<=\w)\w)" for name in ordered), re.IGNORECASE)


def _words(text: str, start: int, stop: int, tokenizer: CLIPTokenizer, offsets: Sequence[int]) -> Iterator[Token]:
    """Tokens of `text[start:stop]` by the vocabulary alone; `offsets` are those of its characters."""
    backend = tokenizer.backend_tokenizer
    part = PreTokenizedString(text[start:stop])
    part.normalize(backend.normalizer.normalize)
    backend.pre_tokenizer.pre_tokenize(part)
    part.tokenize(backend.model.tokenize)
    encoding = part.to_encoding()
    for index, spelling, (first, last) in zip(encoding.ids, encoding.tokens, encoding.offsets, strict=True):
        yield Token(index, spelling, offsets[start + first], offsets[start + last - 1] + 1)


def _clean(text: str, tokenizer: CLIPTokenizer) -> tuple[str, Sequence[int]]:
    """`text` as `tokenizer` cleans it, and where each of its characters comes from: at least from which word."""
    if not isinstance(tokenizer, OpenClipTokenizer):
        return text, range(len(text))
    cleaned = clean_text(text)
    words, origins = cleaned.split(" "), [match.span() for match in re.finditer(r"\S+", text)]
    if len(words) != len(origins):  # an entity or mended letters that hold a space
        words, origins = [cleaned], [(0, len(text))]
    offsets = []
    for word, (start, stop) in zip(words, origins, strict=True):
        offsets += [start + number * (stop - start) // len(word) for number in range(len(word))] + [stop]
    return cleaned, offsets
