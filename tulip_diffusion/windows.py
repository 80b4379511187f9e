"""Token windows, and which words of a prompt each encoder sees. Needs a tokenizer and no model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from transformers import CLIPTokenizer

from .models.positions import CLIP_LENGTH, LONGCLIP_LENGTH
from .tokenization import OpenClipTokenizer, clean_text

CONTEXTS: dict[str, int | None] = {"CLIP": CLIP_LENGTH, "Long-CLIP": LONGCLIP_LENGTH, "TULIP": None}
SENTENCE_ENDS, CLAUSE_ENDS = ".!?", ",;:"


def split_windows(tokens: Sequence[str], size: int = CLIP_LENGTH - 2, breaks: Collection[int] = ()) -> list[range]:
    """Cut `tokens` (as the vocabulary spells them, BOS and EOS left out) into windows of at most `size`.

    A window ends after its last sentence, or before one of the token positions in `breaks`; where a sentence is longer
    than a window, after its last clause, then after its last word. An empty prompt is one empty window.
    """
    marks = [token.removesuffix("</w>")[-1:] for token in tokens]
    ends = (  # in order of preference, the positions at which a window may stop
        {i + 1 for i, mark in enumerate(marks) if mark and mark in SENTENCE_ENDS} | set(breaks),
        {i + 1 for i, mark in enumerate(marks) if mark and mark in CLAUSE_ENDS},
        {i + 1 for i, token in enumerate(tokens) if token.endswith("</w>")},
    )
    windows, start = [], 0
    while len(tokens) - start > size:
        reachable = range(start + size, start, -1)
        stop = next((i for kind in ends for i in reachable if i in kind), start + size)
        windows.append(range(start, stop))
        start = stop
    return [*windows, range(start, len(tokens))]


@dataclass(frozen=True)
class Reading:
    """What one encoder sees of a prompt. `limit` counts BOS and EOS and is None where there is no limit."""

    limit: int | None
    seen: int
    lost: str


@dataclass(frozen=True)
class PromptDescription:
    """A prompt as encoders see it; `str()` of it is the report to show.

    `pieces` are the prompt's tokens as text, BOS and EOS left out; `windows` the text of each 75-token window;
    `readings` what each encoder sees, by its name.
    """

    pieces: tuple[str, ...]
    windows: tuple[str, ...]
    readings: Mapping[str, Reading]

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
        return "\n".join(lines)


def describe_prompt(
    prompt: str, tokenizer: CLIPTokenizer, contexts: Mapping[str, int | None] = CONTEXTS, breaks: Collection[int] = ()
) -> PromptDescription:
    """Count `prompt`'s tokens and say which of its words each encoder cannot see.

    `contexts` maps an encoder's name to the tokens it reads, BOS and EOS included, or None where it reads any number.
    A word cut in two counts as lost. `breaks` are as in [`split_windows`].
    """
    text = clean_text(prompt) if isinstance(tokenizer, OpenClipTokenizer) else prompt  # what the offsets refer to
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    starts = [start for start, _ in encoded.offset_mapping]
    word_starts: list[int] = []  # for each token, where the word that it belongs to begins
    for i, start in enumerate(starts):
        inside_word = i > 0 and not tokens[i - 1].endswith("</w>")
        word_starts.append(word_starts[-1] if inside_word else start)
    readings = {}
    for name, limit in contexts.items():
        seen = len(tokens) if limit is None else min(len(tokens), limit - 2)
        readings[name] = Reading(limit, seen, text[word_starts[seen] :].strip() if seen < len(tokens) else "")
    windows = [
        text[starts[window.start] : [*starts, len(text)][window.stop]].strip()
        for window in split_windows(tokens, breaks=breaks)
        if window
    ]
    return PromptDescription(
        tuple(text[start:stop] for start, stop in encoded.offset_mapping), tuple(windows or [""]), readings
    )
