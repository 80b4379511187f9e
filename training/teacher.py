"""What the teacher says about a batch of cut captions, and the batch itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

from .captions import CutCaption

Batch = dict[str, Tensor]


@dataclass
class Targets:
    """The teacher's outputs for a chunk of captions.

    `token_row`, `token_place` and `token_states` hold one entry for each token of the long captions that the student
    is held to: the caption's row in the chunk, the token's place in it, and the teacher's penultimate state.
    """

    pooled: Tensor  # (captions, projection_dim)
    short_states: Tensor | None = None  # (captions, window, width)
    token_row: Tensor | None = None  # (tokens,)
    token_place: Tensor | None = None  # (tokens,)
    token_states: Tensor | None = None  # (tokens, width)


def padding_id(tokenizer: PreTrainedTokenizerBase, pad: str) -> int:
    """SDXL pads its first encoder's prompts with EOS ("eos"), its second's with id 0 ("zero")."""
    return tokenizer.eos_token_id if pad == "eos" else 0


def pad_ids(ids: Sequence[Sequence[int]], pad_id: int, length: int | None = None) -> Tensor:
    """Ids as (rows, tokens), filled up on the right to `length`, or to the longest row."""
    padded = pad_sequence([torch.tensor(row) for row in ids], batch_first=True, padding_value=pad_id)
    if length is not None:
        padded = torch.nn.functional.pad(padded, (0, length - padded.shape[1]), value=pad_id)
    return padded


def short_batch(cuts: Sequence[CutCaption], pad_id: int, window: int) -> Batch:
    return {"short_ids": pad_ids([cut.short_ids for cut in cuts], pad_id, window)}


def long_batch(cuts: Sequence[CutCaption], pad_id: int, rows: Sequence[int]) -> Batch:
    """The long captions of `rows`, masked where padded; `long_of_row` finds a caption among them."""
    ids = [cuts[row].long_ids for row in rows]
    long_of_row = torch.full((len(cuts),), -1)
    long_of_row[list(rows)] = torch.arange(len(rows))
    return {
        "long_ids": pad_ids(ids, pad_id),
        "long_mask": pad_sequence([torch.ones(len(row), dtype=torch.long) for row in ids], batch_first=True),
        "long_of_row": long_of_row,
    }


def sub_caption_batch(cuts: Sequence[CutCaption], pad_id: int) -> Batch:
    """All sub-captions of a chunk, and for every matched token where it stands in both texts.

    Tokens of one piece, a sentence in one sub-caption, share a `piece` number; pieces that hold the same sentence
    share a `sentence` number. `alone_ids` and `alone_positions` are each piece without its context, where it stood.
    """
    subs = [(row, sub) for row, cut in enumerate(cuts) for sub in cut.sub_captions]
    tokens: dict[str, list[int]] = {name: [] for name in ("row", "place", "sub", "start", "piece", "offset")}
    sentences: dict[tuple[int, int], int] = {}
    piece_sentence: list[int] = []
    alone_ids: list[list[int]] = []
    alone_positions: list[list[int]] = []
    for number, (row, sub) in enumerate(subs):
        for piece in sub.pieces:
            stands = range(piece.start, piece.start + piece.count)
            tokens["row"] += [row] * piece.count
            tokens["place"] += range(piece.place, piece.place + piece.count)
            tokens["sub"] += [number] * piece.count
            tokens["start"] += stands
            tokens["piece"] += [len(piece_sentence)] * piece.count
            tokens["offset"] += range(1, piece.count + 1)
            piece_sentence.append(sentences.setdefault((row, piece.place), len(sentences)))
            alone_ids.append([sub.input_ids[0], *(sub.input_ids[place] for place in stands)])
            alone_positions.append([0, *stands])
    batch = {f"token_{name}": torch.tensor(values, dtype=torch.long) for name, values in tokens.items()}
    if subs:
        batch["sub_ids"] = pad_ids([sub.input_ids for _, sub in subs], pad_id)
        batch["piece_sentence"] = torch.tensor(piece_sentence)
        batch["alone_ids"] = pad_ids(alone_ids, pad_id)
        batch["alone_positions"] = pad_ids(alone_positions, 0)
    return batch


def refuse_shared_weights(student: nn.Module, teacher: nn.Module) -> None:
    """`from_clip` shares the teacher's tensors; training them would move the teacher along.

    Raises:
        ValueError: a weight of `student` is one of `teacher`.
    """
    taught = {weight.data_ptr() for weight in teacher.parameters()}
    if any(weight.data_ptr() in taught for weight in student.parameters()):
        raise ValueError("The student shares weights with its teacher. Train copy.deepcopy(student) instead.")


class Teacher:
    """A frozen CLIP text encoder that turns batches of cut captions into [`Targets`].

    Args:
        encoder: with projection; it is frozen and put into evaluation mode.
        objective: "default", or "paper" for the pooled state alone.
        most_moving: of all sub-captions that hold a sentence, keep the one that moves its states most.
    """

    def __init__(self, encoder: CLIPTextModelWithProjection, objective: str = "default", most_moving: bool = False):
        self.encoder = encoder.requires_grad_(False).eval()
        self.objective = objective
        self.most_moving = most_moving

    @property
    def window(self) -> int:
        return self.encoder.config.max_position_embeddings

    @torch.no_grad()
    def targets(self, batch: Batch) -> Targets:
        with_states = self.objective == "default"
        short = self.encoder(batch["short_ids"], output_hidden_states=with_states)
        targets = Targets(short.text_embeds.float())
        if with_states:
            targets.short_states = short.hidden_states[-2].float()
        if with_states and "token_row" in batch:
            width = self.encoder.config.hidden_size
            targets.token_row, targets.token_place = batch["token_row"], batch["token_place"]
            targets.token_states = targets.pooled.new_zeros(0, width)
            if "sub_ids" in batch:
                self.read_sub_captions(batch, targets)
        return targets

    def penultimate(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        output = self.encoder(input_ids, position_ids=position_ids, output_hidden_states=True)
        return output.hidden_states[-2].float()

    def read_sub_captions(self, batch: Batch, targets: Targets) -> None:
        targets.token_states = self.penultimate(batch["sub_ids"])[batch["token_sub"], batch["token_start"]]
        if self.most_moving:
            alone = self.penultimate(batch["alone_ids"], batch["alone_positions"])
            kept = most_moving_tokens(batch, targets.token_states, alone)
            for name in ("token_row", "token_place", "token_states"):
                setattr(targets, name, getattr(targets, name)[kept])


def most_moving_tokens(batch: Batch, states: Tensor, alone: Tensor) -> Tensor:
    """Mask of the tokens to keep: for each sentence, those of the piece that its context moves most.

    `states` (tokens, width) are read within the sub-captions, `alone` (pieces, tokens, width) without any context but
    at the same positions, so that their distance is the context's doing.
    """
    piece, sentence = batch["token_piece"], batch["piece_sentence"]
    moved = (states - alone[piece, batch["token_offset"]]).square().sum(dim=-1)
    per_piece = moved.new_zeros(len(sentence)).index_add_(0, piece, moved)
    # A stable sort by movement, then by sentence, puts each sentence's most moved piece last.
    order = per_piece.argsort(stable=True)
    order = order[sentence[order].argsort(stable=True)]
    last = torch.ones_like(order, dtype=torch.bool)
    last[:-1] = sentence[order[1:]] != sentence[order[:-1]]
    keep = torch.zeros_like(last)
    keep[order[last]] = True
    return keep[piece]
