"""Attention scaling: queries that grow with the logarithm of their place, so that long texts do not dilute attention.

A softmax over more and more keys spreads thinner and thinner. Logits that grow with the logarithm of their number
keep it as sharp as it was: Chiang and Cholak, "Overcoming a Theoretical Limitation of Self-Attention" (2022,
arXiv:2202.12172); later the LogN-Scaling of Qwen (arXiv:2309.16609).
"""

import math

import torch
from torch import Tensor


def query_scale(tokens: int, base: int, device: torch.device | None = None) -> Tensor:
    """Factors (tokens,) in float32: max(1, ln i / ln base) for the i-th token, counted from 1.

    Up to `base` tokens they are exactly 1. `base` is 2 or more.
    """
    number = torch.arange(1, tokens + 1, device=device)
    # ln i / ln base in a form that rounds to exactly 1 at i = base.
    return 1 + (number.clamp(min=base) / base).log() / math.log(base)
