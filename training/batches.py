"""From captions to the chunks of a step: rows cut, sorted by length, padded and made tensors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from tulip_diffusion.data import CaptionData, Captions, UsableRow

from .cutting import CaptionCutter, CutCaption
from .stage import Chunk, Rows

Batch = dict[str, Tensor]

BUCKET_SHARE = 0.8  # of a bucket's longest text, that the others have at least
BUCKET_TOKENS = 1024  # that a bucket holds at least, because many small ones cost more than their pads


class CutRow(NamedTuple):
    """One caption, cut for one of its draws."""

    row: int  # its number, -1 in a stream
    draw: int
    cut: CutCaption


class CutRows(Rows):
    """(row, epoch) to a [`CutRow`]."""

    def __init__(self, data: Captions, cutter: CaptionCutter, draws: int):
        self.data, self.cutter, self.draws = data, cutter, draws

    def __getitem__(self, key: tuple[int, int]) -> CutRow:
        assert isinstance(self.data, CaptionData)
        row, epoch = key
        draw = epoch % self.draws
        return CutRow(row, draw, self.cutter(self.data.captions[row], row, draw))

    def of(self, row: UsableRow, epoch: int) -> CutRow:
        """The same of a row out of a stream, which is known by its name."""
        draw = epoch % self.draws
        return CutRow(-1, draw, self.cutter(row.caption, row.name, draw))


@dataclass(frozen=True)
class StepCollate:
    """One process's share of a step as chunks of captions of like length, the longest first.

    A chunk is padded to its own longest caption only. It holds at most `chunk_size` captions and, where `chunk_tokens`
    is given, as many as do not pass it when padded; one at least. The longest come first so that a chunk that does not
    fit into memory is met at the first step.
    """

    collate: Callable[[Sequence[Any]], Chunk]
    chunk_size: int
    chunk_tokens: int | None = None

    def __call__(self, items: Sequence[Any]) -> list[Chunk]:
        items = sorted(items, key=lambda item: item.cut.tokens, reverse=True)
        return [self.collate(items[part]) for part in self.parts([item.cut.tokens for item in items])]

    def parts(self, lengths: Sequence[int]) -> Iterator[slice]:
        """Where to cut captions of `lengths` tokens, the longest first."""
        start = 0
        while start < len(lengths):
            room = self.chunk_size if self.chunk_tokens is None else self.chunk_tokens // lengths[start]
            end = min(start + max(1, min(room, self.chunk_size)), len(lengths))
            yield slice(start, end)
            start = end


def padding_id(tokenizer: PreTrainedTokenizerBase, pad: str) -> int:
    """SDXL pads its first encoder's prompts with EOS ("eos"), its second's with id 0 ("zero")."""
    return tokenizer.eos_token_id if pad == "eos" else 0


def pad_ids(ids: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> Tensor:
    """Ids as (rows, tokens), filled up on the right to `length`, or to the longest row."""
    padded = pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=pad_id)
    if length is not None:
        padded = torch.nn.functional.pad(padded, (0, length - padded.shape[1]), value=pad_id)
    return padded


def short_batch(cuts: Sequence[CutCaption], pad_id: int, window: int | None) -> Batch:
    """`short_ids` (captions, window), padded as SDXL pads; without a `window` to the longest."""
    return {"short_ids": pad_ids([cut.short_ids for cut in cuts], pad_id, window)}


def long_batch(cuts: Sequence[CutCaption], pad_id: int, rows: Sequence[int]) -> Batch:
    """The long captions of `rows`, masked where padded; `long_of_row` finds a caption among them.

    `long_positions` are there where the captions were cut with gaps.
    """
    ids = [cuts[row].long_ids for row in rows]
    long_of_row = torch.full((len(cuts),), -1)
    long_of_row[list(rows)] = torch.arange(len(rows))
    positions = [cuts[row].long_positions or [] for row in rows]
    gaps = {"long_positions": pad_ids(positions, 0)} if all(positions) else {}
    return gaps | {
        "long_ids": pad_ids(ids, pad_id),
        "long_mask": pad_sequence([torch.ones(len(row), dtype=torch.long) for row in ids], batch_first=True),
        "long_of_row": long_of_row,
    }


def padded_buckets(texts: Sequence[Sequence[int]], pad_id: int) -> tuple[list[Tensor], list[int]]:
    """Texts of like length padded together, and where each one starts when all buckets are laid end to end."""
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]), reverse=True)
    buckets: list[Tensor] = []
    starts, laid = [0] * len(texts), 0
    while order:
        longest = len(texts[order[0]])
        count = sum(len(texts[number]) >= BUCKET_SHARE * longest for number in order)
        count = min(len(order), max(count, BUCKET_TOKENS // longest))
        for number in order[:count]:
            starts[number] = laid
            laid += longest
        buckets.append(pad_ids([texts[number] for number in order[:count]], pad_id))
        order = order[count:]
    return buckets, starts


def sub_caption_batch(cuts: Sequence[CutCaption], pad_id: int) -> Chunk:
    """All sub-captions of a chunk in buckets of like length, and where every matched token stands in both texts.

    `token_at` counts from the first bucket's first token to the last one's last, pads included. Tokens of one piece,
    a sentence in one sub-caption, share a `piece` number; pieces that hold the same sentence share a `sentence`
    number. `sub_row` is each sub-caption's caption, in the order in which the buckets hold them. `alone_ids` and
    `alone_positions` are each piece without its context, where it stood.
    """
    subs = [(row, sub) for row, cut in enumerate(cuts) for sub in cut.sub_captions]
    tokens: dict[str, list[int]] = {name: [] for name in ("row", "place", "at", "piece", "offset")}
    sentences: dict[tuple[int, int], int] = {}
    piece_sentence: list[int] = []
    alone_ids: list[list[int]] = []
    alone_positions: list[list[int]] = []
    buckets, starts = padded_buckets([sub.input_ids for _, sub in subs], pad_id)
    for (row, sub), first in zip(subs, starts, strict=True):
        for piece in sub.pieces:
            stands = range(piece.start, piece.start + piece.count)
            tokens["row"] += [row] * piece.count
            tokens["place"] += range(piece.place, piece.place + piece.count)
            tokens["at"] += range(first + piece.start, first + piece.start + piece.count)
            tokens["piece"] += [len(piece_sentence)] * piece.count
            tokens["offset"] += range(1, piece.count + 1)
            piece_sentence.append(sentences.setdefault((row, piece.place), len(sentences)))
            alone_ids.append([sub.input_ids[0], *(sub.input_ids[place] for place in stands)])
            alone_positions.append([0, *stands])
    batch: Chunk = {f"token_{name}": torch.tensor(values, dtype=torch.long) for name, values in tokens.items()}
    if subs:
        batch["sub_ids"] = buckets
        by_length = sorted(subs, key=lambda each: len(each[1].input_ids), reverse=True)  # as the buckets are
        batch["sub_row"] = torch.tensor([row for row, _ in by_length])
        batch["piece_sentence"] = torch.tensor(piece_sentence)
        batch["alone_ids"] = pad_ids(alone_ids, pad_id)
        batch["alone_positions"] = pad_ids(alone_positions, 0)
    return batch
