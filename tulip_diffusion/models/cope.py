"""Contextual Position Encoding (CoPE, arXiv:2405.18719) as TULIP's ablation uses it."""

import torch
from torch import Tensor, nn


class ContextualPositions(nn.Module):
    """Attention bias whose positions are counted from the content: the CoPE part of one attention layer.

    Queries and keys are layer-normalised per head; sigmoid gates on their logits say how far each key advances the
    position, and the query reads a learned table at that (fractional) position.

    Args:
        head_dim: channels per head.
        positions: rows of the learned table; counted positions are clamped to `positions - 1`.
    """

    def __init__(self, head_dim: int, positions: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(head_dim)
        self.key_norm = nn.LayerNorm(head_dim)
        self.table = nn.Parameter(torch.zeros(head_dim, positions))

    def reset_parameters(self) -> None:
        """Norms as new, and a table of zeros: no bias yet."""
        self.query_norm.reset_parameters()
        self.key_norm.reset_parameters()
        nn.init.zeros_(self.table)

    def bias(self, query: Tensor, logits: Tensor) -> Tensor:
        """Bias (batch, heads, queries, keys) to add to `logits`, which are masked already (−inf where hidden).

        `query` is (batch, heads, queries, head_dim), scaled as it was for `logits`.
        """
        gates = logits.sigmoid()  # a masked key has gate 0, so it advances nothing
        position = gates.flip(-1).cumsum(dim=-1).flip(-1).clamp(max=self.table.shape[-1] - 1)
        floor, ceil = position.floor().long(), position.ceil().long()
        at_integers = query @ self.table  # (batch, heads, queries, positions)
        fraction = position - floor
        return at_integers.gather(-1, ceil) * fraction + at_integers.gather(-1, floor) * (1 - fraction)
