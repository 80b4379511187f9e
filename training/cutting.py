"""Cutting captions for student and teacher: whole sentences, token by token accountable.

The student reads a caption whole. The teacher has only `window` tokens (77), so beyond them it reads *sub-captions*:
some of the sentences, in their order, after a BOS. Everything is made of one tokenization of the caption, so a token
of a sub-caption and its place in the caption always agree.
"""

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from .config import CaptionArguments

MOST_MOVING_CANDIDATES = 3  # partitions that the most-moving choice picks from


@dataclass(frozen=True)
class TokenizedCaption:
    """Token ids of a caption and, as many as there was room for, of its sentences, without BOS and EOS."""

    whole: list[int]
    sentences: list[list[int]]

    @property
    def ids(self) -> list[int]:
        """Tokens of the sentences."""
        return [token for sentence in self.sentences for token in sentence]

    @property
    def starts(self) -> list[int]:
        """Where each sentence starts in the caption, whose BOS is at 0."""
        starts = [1]
        for sentence in self.sentences:
            starts.append(starts[-1] + len(sentence))
        return starts[:-1]


@dataclass(frozen=True)
class Piece:
    """`count` tokens that stand at `start` in a sub-caption and at `place` in the whole caption."""

    start: int
    place: int
    count: int


@dataclass(frozen=True)
class SubCaption:
    """What the teacher reads, (BOS, tokens, EOS), and which of its tokens the student is held to."""

    input_ids: list[int]
    pieces: list[Piece]


@dataclass(frozen=True)
class CutCaption:
    """One caption as a training step sees it."""

    short_ids: list[int]  # at most `window` tokens, read by both
    long_ids: list[int]  # at most `length` tokens, read by the student
    sub_captions: list[SubCaption] = field(default_factory=list)  # read by the teacher; empty if all fits its window
    long_positions: list[int] | None = None  # of `long_ids`, where they have gaps

    @property
    def tokens(self) -> int:
        """Tokens of the longer text."""
        return max(len(self.short_ids), len(self.long_ids))


@functools.cache
def ids_of_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[frozenset[int], frozenset[int]]:
    """Ids of the tokens that can end a sentence, and of those that hold a full stop."""
    texts = {index: token.removesuffix("</w>") for token, index in tokenizer.get_vocab().items()}
    ends = frozenset(index for index, text in texts.items() if text.endswith((".", "!", "?")))
    return ends, frozenset(index for index, text in texts.items() if "." in text)


def tokenize_sentences(caption: str, tokenizer: PreTrainedTokenizerBase, limit: int) -> TokenizedCaption:
    """Tokenize `caption` once, and take as many of its whole sentences as fit into `limit` tokens.

    A sentence ends with a full stop, an exclamation or a question mark that white space follows. A first sentence that
    is too long by itself is cut.
    """
    encoding = tokenizer(caption, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = encoding.input_ids, encoding.offset_mapping
    ends, _ = ids_of_tokens(tokenizer)
    kept: list[list[int]] = []
    start = 0
    for place in range(1, len(ids) + 1):
        if place == len(ids) or (ids[place - 1] in ends and offsets[place][0] > offsets[place - 1][1]):
            if place > limit:
                break
            kept.append(ids[start:place])
            start = place
    return TokenizedCaption(ids, kept or [ids[:limit]])


def partition(order: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """Cut the sentence numbers `order` into groups that fit into `room` tokens, each group back in reading order."""
    groups: list[list[int]] = [[]]
    used = 0
    for sentence in order:
        if groups[-1] and used + lengths[sentence] > room:
            groups.append([])
            used = 0
        groups[-1].append(sentence)
        used += lengths[sentence]
    return [sorted(group) for group in groups if group]


class CaptionCutter:
    """Cuts captions; the same caption, number and draw always give the same cut, in any process.

    Args:
        tokenizer: gives ids without special tokens, and knows `bos_token_id` and `eos_token_id`.
        length: tokens that the student reads at most, with BOS and EOS.
        window: tokens that the teacher can read, with BOS and EOS.
        short: what the short text is: "cut" (the caption cut anywhere at `window`, as published), "prefix" (the same
            half of the time, else only its first 1, 2, … tokens: people's prompts are short and seldom end in a full
            stop), "first-sentence" (the tokens before the first that holds a full stop) or "random-subset" (random
            sentences, the first left out).
        sub_captions: "subsets", "windows", "both" or "none".
        candidates: how many times every far sentence is covered by subsets, to choose from.
        position_gaps: positions that a long text is spread over by random gaps before its sentences; 0 for none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        window: int = 77,
        short: str = "prefix",
        sub_captions: str = "subsets",
        candidates: int = 1,
        seed: int = 0,
        position_gaps: int = 0,
    ):
        if length < window:
            raise ValueError(f"length must be at least the teacher's window of {window} tokens, got {length}.")
        self.tokenizer = tokenizer
        self.length = length
        self.window = window
        self.short = short
        self.sub_captions = sub_captions
        self.candidates = candidates
        self.seed = seed
        self.position_gaps = position_gaps

    def __call__(self, caption: str, index: int | str, draw: int = 0) -> CutCaption:
        generator = random.Random(f"{self.seed}-{index}-{draw}")  # strings seed alike on every machine
        tokenized = tokenize_sentences(caption, self.tokenizer, self.length - 2)
        return CutCaption(
            short_ids=self.enclose(self.short_tokens(tokenized, generator)[: self.window - 2]),
            long_ids=self.enclose(tokenized.ids),
            sub_captions=self.cut_far(caption, tokenized, generator),
            long_positions=self.spread(tokenized, generator) if self.position_gaps else None,
        )

    def enclose(self, ids: list[int]) -> list[int]:
        """`ids` between BOS and EOS."""
        return [self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id]

    def spread(self, tokenized: TokenizedCaption, generator: random.Random) -> list[int]:
        """Positions of BOS, tokens and EOS, with random gaps before sentences, all below `position_gaps`.

        A sentence's states should not depend on how far from the start it stands, so short captions can train far
        positions (PoSE, arXiv:2309.10400).
        """
        tokens = len(tokenized.ids) + 2
        room = generator.randint(0, max(0, self.position_gaps - tokens))
        shifts = sorted(generator.randint(0, room) for _ in tokenized.sentences)
        positions = [0]
        for start, ids, shift in zip(tokenized.starts, tokenized.sentences, shifts, strict=True):
            positions += range(start + shift, start + shift + len(ids))
        return [*positions, positions[-1] + 1]

    def near_sentences(self, tokenized: TokenizedCaption) -> int:
        """How many sentences from the start fit into the window; the first counts even if it is cut there."""
        ends = [start + len(ids) for start, ids in zip(tokenized.starts, tokenized.sentences, strict=True)]
        return max(1, sum(end <= self.window - 1 for end in ends))

    def short_tokens(self, tokenized: TokenizedCaption, generator: random.Random) -> list[int]:
        """The short text that the policy `short` asks for; the window may still cut it."""
        if self.short in ("cut", "prefix"):
            ids = tokenized.whole[: self.window - 2]
            whole = self.short == "cut" or generator.random() < 0.5
            return ids if whole else ids[: generator.randint(1, max(1, len(ids)))]
        if self.short == "first-sentence":
            _, stops = ids_of_tokens(self.tokenizer)
            return list(itertools.takewhile(lambda token: token not in stops, tokenized.whole))
        sentences = tokenized.sentences
        others = list(range(1, len(sentences))) or [0]
        generator.shuffle(others)
        chosen = partition(others, [len(ids) for ids in sentences], self.window - 2)[0]
        return [token for sentence in chosen for token in sentences[sentence]]

    def cut_far(self, caption: str, tokenized: TokenizedCaption, generator: random.Random) -> list[SubCaption]:
        """Sub-captions of a caption that is longer than the window: its prefix, then those that cover the rest.

        Sentences inside the prefix window are matched there alone, where the teacher has all that precedes them; in
        the other sub-captions they are context.
        """
        near, count = self.near_sentences(tokenized), len(tokenized.sentences)
        if near == count or self.sub_captions == "none":
            return []
        groups: list[list[int]] = []
        lengths = [len(ids) for ids in tokenized.sentences]
        if self.sub_captions in ("windows", "both"):
            groups += self.windows(near, lengths, generator)
        if self.sub_captions in ("subsets", "both"):
            for _ in range(self.candidates):
                order = generator.sample(range(count), count)
                groups += partition(order, lengths, self.window - 2)
        far = range(near, count)
        cuts = [self.sub_caption(tokenized, group, [s for s in group if s in far]) for group in groups]
        prefix = list(range(near))
        return [self.sub_caption(tokenized, prefix, prefix), *(cut for cut in cuts if cut.pieces)]

    def windows(self, near: int, lengths: list[int], generator: random.Random) -> list[list[int]]:
        """Neighbouring sentences after the first `near`, cut at random places: the first window may be shorter."""
        far = list(range(near, len(lengths)))
        first = generator.randint(1, len(far))
        room = self.window - 2
        return partition(far[:first], lengths, room) + partition(far[first:], lengths, room)

    def sub_caption(self, tokenized: TokenizedCaption, group: list[int], matched: list[int]) -> SubCaption:
        """The sentences numbered in `group` as one text; the student is held to those in `matched`."""
        ids: list[int] = []
        pieces = []
        for sentence in group:
            tokens = tokenized.sentences[sentence][: self.window - 2 - len(ids)]
            if sentence in matched and tokens:
                pieces.append(Piece(start=1 + len(ids), place=tokenized.starts[sentence], count=len(tokens)))
            ids += tokens
        return SubCaption(self.enclose(ids), pieces)


def caption_cutter(
    tokenizer: PreTrainedTokenizerBase,
    arguments: CaptionArguments,
    seed: int,
    window: int,
    short: str,
    far: bool = True,
) -> CaptionCutter:
    """The cutter that a stage's arguments ask for; without `far` the teacher reads short texts alone."""
    return CaptionCutter(
        tokenizer,
        length=max(arguments.length, window),
        window=window,
        short=short,
        sub_captions=arguments.sub_captions if far and arguments.length > window else "none",
        candidates=MOST_MOVING_CANDIDATES if arguments.subset_choice == "most-moving" else 1,
        seed=seed,
        position_gaps=getattr(arguments, "position_gaps", 0),
    )
