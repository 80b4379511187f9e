"""Which words of a prompt each encoder sees, counted as the pipelines encode them. Needs a tokenizer and no model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import CLIPTokenizer

from .models.positions import CLIP_LENGTH, LONGCLIP_LENGTH
from .prompt_tokens import tokenize_prompts
from .weighting import network_tags, parse_weights
from .windows import split_windows

CONTEXTS: dict[str, int | None] = {"CLIP": CLIP_LENGTH, "Long-CLIP": LONGCLIP_LENGTH, "TULIP": None}


@dataclass(frozen=True)
class Reading:
    """What one encoder sees of a prompt.

    Args:
        limit: the tokens that it reads, BOS and EOS included, or None where there is no limit.
        seen: how many of the prompt's tokens it sees, BOS and EOS left out.
        lost: the rest of the prompt, as it was typed.
    """

    limit: int | None
    seen: int
    lost: str


@dataclass(frozen=True)
class PromptDescription:
    """A prompt as encoders see it; `str()` of it is the report to show. All texts are as they were typed.

    Args:
        pieces: the prompt's tokens as text, BOS and EOS left out.
        windows: the text of each 75-token window.
        readings: what each encoder sees, by its name.
        weights: the parts that were read as weighted, `("red cat", 1.3)`.
        tags: LoRA tags and their like, which are taken out.
    """

    pieces: tuple[str, ...]
    windows: tuple[str, ...]
    readings: Mapping[str, Reading]
    weights: tuple[tuple[str, float], ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that the prompt takes, BOS and EOS included."""
        return len(self.pieces) + 2

    def __str__(self) -> str:
        windows = "1 window" if len(self.windows) == 1 else f"{len(self.windows)} windows"
        lines = [f"{self.tokens} tokens, {windows} of up to {CLIP_LENGTH - 2} tokens"]
        column = max(map(len, self.readings))
        for name, reading in self.readings.items():
            lost = f'cannot see: "{reading.lost}"' if reading.lost else "sees every word"
            lines.append(f"{name:<{column}}  {reading.seen:>5} of {len(self.pieces)}  {lost}")
        if self.weights:
            lines.append("weights: " + ", ".join(f'"{text}" {weight:.4g}' for text, weight in self.weights))
        if self.tags:
            lines.append(f"left out: {', '.join(self.tags)}")
        return "\n".join(lines)


def describe_prompt(
    prompt: str,
    tokenizer: CLIPTokenizer,
    contexts: Mapping[str, int | None] = CONTEXTS,
    weighting: str | None = "a1111",
) -> PromptDescription:
    """Count `prompt`'s tokens as the pipelines do, and say which of its words each encoder cannot see.

    `contexts` maps an encoder's name to the tokens it reads, BOS and EOS included, or None where it reads any number.
    A word cut in two counts as lost. `weighting` is [`~tulip_diffusion.Conditioning`]'s.
    """
    (tokens,) = tokenize_prompts([prompt], [tokenizer], weighting)
    readings = {
        name: Reading(limit, len(tokens.cut(limit).ids), tokens.beyond(limit)) for name, limit in contexts.items()
    }
    windows = [
        prompt[tokens.offsets[window[0]][0] : tokens.offsets[window[-1]][1]]
        for window in split_windows(tokens.tokens, breaks=tokens.breaks)
        if window
    ]
    spans = parse_weights(prompt) if weighting else []
    return PromptDescription(
        pieces=tuple(prompt[start:stop] for start, stop in tokens.offsets),
        windows=tuple(windows or [""]),
        readings=readings,
        weights=tuple((span.text.strip(), span.weight) for span in spans if span.weight != 1 and span.text.strip()),
        tags=tuple(network_tags(prompt) if weighting else ()),
    )


def word_positions(prompt: str, tokenizer: CLIPTokenizer, weighting: str | None = "a1111") -> list[tuple[str, int]]:
    """The words of `prompt` as typed, each with the position of its last token; BOS is position 0.

    What takes no token, such as BREAK, has the position of the word before it.
    """
    (tokens,) = tokenize_prompts([prompt], [tokenizer], weighting)
    words = []
    for word in re.finditer(r"\S+", prompt):
        words.append((word[0], sum(start < word.end() for start, _ in tokens.offsets)))
    return words
