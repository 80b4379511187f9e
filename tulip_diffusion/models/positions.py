"""Absolute positions, stretched: how Long-CLIP and FineLIP reach 248 tokens."""

import torch
from torch import Tensor


def stretch_position_embeddings(table: Tensor, keep: int = 20, factor: int = 4) -> Tensor:
    """Interpolate learned positions `factor` times; the first `keep` stay exact.

    Long-CLIP, section 3.1 (arXiv:2403.15378). `table` is (positions, dim); returns
    (keep + (positions - keep) * factor, dim) in its dtype, computed in float32. The last `factor` rows continue the
    line through the last two of `table`.

    Raises:
        ValueError: `keep` leaves fewer than two rows to interpolate, or `factor` is below 1.
    """
    positions, _ = table.shape
    if not 0 <= keep <= positions - 2:
        raise ValueError(
            f"keep must be between 0 and {positions - 2} for a table of {positions} positions, got {keep}."
        )
    if factor < 1:
        raise ValueError(f"factor must be 1 or more, got {factor}.")
    rows = table[keep:].float()
    following = torch.cat((rows[1:], 2 * rows[-1:] - rows[-2:-1]))
    weight = torch.arange(factor, device=table.device)[:, None] / factor  # (factor, 1)
    stretched = (1 - weight) * rows[:, None] + weight * following[:, None]  # (rows, factor, dim)
    return torch.cat((table[:keep].float(), stretched.flatten(0, 1))).to(table.dtype)
