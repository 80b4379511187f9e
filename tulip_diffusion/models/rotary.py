"""Rotary position encoding (RoPE, arXiv:2104.09864) on interleaved channel pairs, and its NTK-aware scaling.

Pairs are (0, 1), (2, 3), … of each head, so q and k keep CLIP's row order and LoRAs trained for CLIP still fit.
Everything is computed anew in every call, in float32: nothing is remembered from earlier prompts, and casting a
model to half precision does not round its angles.
"""

from typing import TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def ntk_theta(theta: float, alpha: float, base_length: float, length: Number, head_dim: int) -> Number:
    """NTK-aware RoPE base for sequences of `length` tokens, of an encoder that learned `base_length`.

    theta' = theta · (alpha · length / base_length − (alpha − 1)) ** (head_dim / (head_dim − 2)), TULIP
    (arXiv:2410.10034), section 3.3: 10,000 becomes 206,278 for 77 → 248 tokens with alpha 8. `length` may be a tensor,
    and so is the result then.

    Raises:
        ValueError: `head_dim` is 2 or less, where the exponent is not defined.
    """
    if head_dim <= 2:
        raise ValueError(f"NTK scaling needs a head_dim above 2, got {head_dim}. Use fewer attention heads.")
    return theta * (alpha * length / base_length - (alpha - 1)) ** (head_dim / (head_dim - 2))


def rotary_cos_sin(
    position_ids: Tensor, rope_parameters: dict, head_dim: int, length: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair's angle, each (batch, tokens, head_dim / 2) in float32.

    `position_ids` is (1 or batch, tokens). `length` is the sequence length in tokens, one number or (batch, 1): with
    `rope_type` "ntk", sequences longer than the configured length get the base of their own length.
    """
    theta = rope_parameters["rope_theta"]
    if rope_parameters["rope_type"] == "ntk":
        configured = rope_parameters["length"]
        length = length.clamp(min=configured) if isinstance(length, Tensor) else max(length, configured)
        theta = ntk_theta(theta, rope_parameters["alpha"], rope_parameters["base_length"], length, head_dim)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=position_ids.device) / head_dim
    inverse_frequencies = 1.0 / theta**exponents  # (head_dim / 2,) or (batch, head_dim / 2)
    angles = position_ids[..., None].float() * inverse_frequencies.unsqueeze(-2)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each channel pair (2i, 2i + 1) of `states` (batch, tokens, heads, head_dim) by its token's angle.

    `cos` and `sin` are (1 or batch, tokens, head_dim / 2) in float32; the product is taken in float32 and returned in
    the dtype of `states`.
    """
    pairs = states.float().unflatten(-1, (-1, 2))
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # one angle for all heads
    if torch.compiler.is_compiling():  # inductor fuses this form and has no code for complex numbers
        even, odd = pairs.unbind(-1)
        rotated = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    else:  # one pass over memory where the form above takes eight: 0.15 ms against 1.2 ms at 8 × 248 × 768
        rotated = torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cos, sin))
    return rotated.flatten(-2).to(states.dtype)
