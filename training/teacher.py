"""The teacher's outputs for a chunk of cut captions."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from .stage import Chunk


def token_states(output: Any, match: str) -> Tensor:
    """The token states that `match` names, (texts, tokens, width): "last" ones are behind the final norm."""
    return output.last_hidden_state if match == "last" else output.hidden_states[-2]


@dataclass
class Targets:
    """The teacher's outputs for a chunk of captions.

    `token_row`, `token_place` and `token_states` hold one entry for each token of the long captions that the student
    is held to: the caption's row in the chunk, the token's place in it, and the teacher's state.
    """

    pooled: Tensor  # (captions, projection_dim)
    short_states: Tensor | None = None  # (captions, window, width)
    token_row: Tensor | None = None  # (tokens,)
    token_place: Tensor | None = None  # (tokens,)
    token_states: Tensor | None = None  # (tokens, width)
    long_pooled: Tensor | None = None  # (captions, projection_dim); zeros where there are no sub-captions

    def float(self) -> "Targets":
        """The same with states in float32."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Targets(**{n: v.float() if v is not None and v.is_floating_point() else v for n, v in values.items()})


class Teacher:
    """A frozen CLIP text encoder that turns batches of cut captions into [`Targets`].

    Args:
        encoder: with projection; it is frozen and put into evaluation mode.
        objective: "default", or "paper" for the pooled state alone.
        match: [`token_states`]'s, of the default objective.
        most_moving: of all sub-captions that hold a sentence, keep the one that moves its states most.
    """

    def __init__(
        self,
        encoder: CLIPTextModelWithProjection,
        objective: str = "default",
        most_moving: bool = False,
        match: str = "penultimate",
    ):
        self.encoder = encoder.requires_grad_(False).eval()
        self.objective = objective
        self.most_moving = most_moving
        self.match = match

    @property
    def window(self) -> int:
        """Tokens that the teacher can read."""
        return self.encoder.config.max_position_embeddings

    @torch.no_grad()
    def targets(self, batch: Chunk) -> Targets:
        """The teacher's outputs for a chunk; of far tokens only where the chunk holds sub-captions."""
        with_states = self.objective == "default"
        short = self.encoder(batch["short_ids"], output_hidden_states=with_states)
        targets = Targets(short.text_embeds.float())
        if with_states:
            targets.short_states = token_states(short, self.match).float()
        if with_states and "token_row" in batch:
            width = self.encoder.config.hidden_size
            targets.token_row, targets.token_place = batch["token_row"], batch["token_place"]
            targets.token_states = targets.pooled.new_zeros(0, width)
            targets.long_pooled = torch.zeros_like(targets.pooled)
            if "sub_ids" in batch:
                self.add_sub_captions(batch, targets)
        return targets

    def states(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The matched token states, (texts, tokens, width) in float32."""
        output = self.encoder(input_ids, position_ids=position_ids, output_hidden_states=True)
        return token_states(output, self.match).float()

    def add_sub_captions(self, batch: Chunk, targets: Targets) -> None:
        """Add the far tokens' states, and long captions' pooled targets, to `targets`."""
        read = [self.encoder(bucket, output_hidden_states=True) for bucket in batch["sub_ids"]]
        laid = torch.cat([token_states(output, self.match).float().flatten(0, 1) for output in read])
        targets.token_states = laid[batch["token_at"]]
        pooled = torch.cat([output.text_embeds.float() for output in read])
        targets.long_pooled = mean_pooled(pooled, batch["sub_row"], len(targets.pooled))
        if self.most_moving:
            alone = self.states(batch["alone_ids"], batch["alone_positions"])
            kept = most_moving_tokens(batch, targets.token_states, alone)
            for name in ("token_row", "token_place", "token_states"):
                setattr(targets, name, getattr(targets, name)[kept])


def mean_pooled(pooled: Tensor, row: Tensor, rows: int) -> Tensor:
    """The mean direction of each row's vectors at their mean norm, (rows, width); zeros for a row without any.

    `pooled` is (vectors, width), `row` (vectors,). The plain mean of vectors that differ is shorter than any of them,
    which nobody who reads a pooled state has ever seen.
    """
    norms = pooled.norm(dim=-1)
    count = torch.bincount(row, minlength=rows).clamp(min=1)
    direction = pooled.new_zeros(rows, pooled.shape[1]).index_add_(0, row, pooled / norms[:, None])
    norm = norms.new_zeros(rows).index_add_(0, row, norms) / count
    return torch.nn.functional.normalize(direction, dim=-1) * norm[:, None]


def most_moving_tokens(batch: Chunk, states: Tensor, alone: Tensor) -> Tensor:
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
