"""Facts about text encoders: how many tokens they take, which one ends a text, how a table of positions stretches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever counts tokens needs the numbers below, not torch
    from torch import Tensor
    from transformers import CLIPTextConfig, PreTrainedModel

CLIP_LENGTH = 77  # tokens that CLIP and SDXL were trained with, BOS and EOS included
CLIP_EOS = 49407  # the last of CLIP's own ids; a textual inversion's tokens come behind it
LONGCLIP_KEEP, LONGCLIP_FACTOR = 20, 4  # rows that stay exact, and how far the others are stretched
TULIP_MODEL_TYPE = "tulip_text_model"


def is_tulip(config: CLIPTextConfig) -> bool:
    """Whether `config` is a [`TulipTextConfig`]: positions in the attention, no table to run out of."""
    return config.model_type == TULIP_MODEL_TYPE


def table_length(encoder: PreTrainedModel) -> int | None:
    """Rows of `encoder`'s table of absolute positions, None if it has no such table."""
    return None if is_tulip(encoder.config) else encoder.config.max_position_embeddings


def trained_length(encoder: PreTrainedModel) -> int:
    """Tokens of the longest texts that `encoder` was trained on, as far as its config tells."""
    return length_told(encoder.config.max_position_embeddings, getattr(encoder.config, "rope_parameters", None))


def length_told(max_position_embeddings: int, rope_parameters: Mapping[str, Any] | None) -> int:
    """The trained length in tokens that these fields of a config tell."""
    return max(max_position_embeddings, (rope_parameters or {}).get("length", 0))


def stretched_length(table: int, keep: int = LONGCLIP_KEEP, factor: int = LONGCLIP_FACTOR) -> int:
    """Rows of a table of `table` rows after [`stretch_position_embeddings`]: 248 for CLIP's 77."""
    return keep + (table - keep) * factor


LONGCLIP_LENGTH = stretched_length(CLIP_LENGTH)


def default_eos(vocab_size: int) -> int:
    """CLIP's EOS in a vocabulary of `vocab_size`: its own id, or the last one of a smaller vocabulary."""
    return min(CLIP_EOS, vocab_size - 1)


def eos_token_id(config: CLIPTextConfig) -> int:
    """The id at which `config`'s encoder pools. Configs published with CLIP and SDXL say 2 and mean CLIP's own EOS."""
    return default_eos(config.vocab_size) if config.eos_token_id == 2 else config.eos_token_id


def first_eos(input_ids: Tensor, config: CLIPTextConfig) -> Tensor:
    """Where each row's text ends, (rows,). Pads have no say: they may be EOS as well, or "!", which is a word.

    Raises:
        ValueError: a row has no EOS.
    """
    eos = eos_token_id(config)
    found = input_ids == eos
    if not found.any(dim=-1).all():
        raise ValueError(f"A text has no EOS (id {eos}) within its {input_ids.shape[1]} tokens; cut it before EOS.")
    return found.int().argmax(dim=-1)


def stretch_position_embeddings(table: Tensor, keep: int = LONGCLIP_KEEP, factor: int = LONGCLIP_FACTOR) -> Tensor:
    """Interpolate learned positions `factor` times; the first `keep` stay exact.

    Long-CLIP, section 3.1 (arXiv:2403.15378). `table` is (positions, dim); returns
    (keep + (positions - keep) * factor, dim) in its dtype, computed in float32. The last `factor` rows continue the
    line through the last two of `table`.

    Raises:
        ValueError: `keep` leaves fewer than two rows to interpolate, or `factor` is below 1.
    """
    import torch

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
