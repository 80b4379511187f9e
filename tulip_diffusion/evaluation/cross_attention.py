"""Where a UNet looks in its text: the mean of its cross-attention on each token, over layers, heads, pixels and steps.

Hooks read along while a pipeline draws, so any SDXL UNet of diffusers works, with whatever attention back end it has.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn


@dataclass
class TokenAttention:
    """Sum over the layers and steps seen so far; `mean` is (tokens,) and sums to 1."""

    total: Tensor | None = None
    layers: int = 0

    def add(self, weights: Tensor) -> None:
        """Count the weights (tokens,) of one layer at one step."""
        self.total = weights if self.total is None else self.total + weights
        self.layers += 1

    @property
    def mean(self) -> Tensor:
        """Mean weights (tokens,) over layers and steps.

        Raises:
            ValueError: nothing was drawn.
        """
        if self.total is None:
            raise ValueError("No cross-attention was seen: draw inside the block, with a UNet that has any.")
        return self.total / self.layers


@contextlib.contextmanager
def watched_attention(unet: nn.Module) -> Iterator[TokenAttention]:
    """Watch every cross-attention of `unet` while one prompt is drawn within the block, and its last row of a batch.

    With guidance the last row is the prompt and the first one the negative prompt. Masked tokens have 0.
    """
    seen, handles = TokenAttention(), []

    def watch(attention: nn.Module, args: tuple, kwargs: dict) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        text = kwargs.get("encoder_hidden_states")
        if text is not None:
            seen.add(token_weights(attention, states[-1:], text[-1:], last(kwargs.get("attention_mask"))))

    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock) and module.attn2 is not None:
            handles.append(module.attn2.register_forward_pre_hook(watch, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def last(mask: Tensor | None) -> Tensor | None:
    """The mask of the batch's last row."""
    return None if mask is None else mask[-1:]


@torch.no_grad()
def token_weights(attention: Any, states: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
    """(tokens,) weights of one row's diffusers `Attention`, mean over heads and queries, in single precision.

    `states` are (1, pixels, width), `text` (1, tokens, width), `mask` what the block adds to the logits, if anything.
    """
    query = attention.head_to_batch_dim(attention.to_q(states))
    key = attention.head_to_batch_dim(attention.to_k(text))
    if mask is not None:
        mask = attention.prepare_attention_mask(mask, text.shape[1], 1)
    return attention.get_attention_scores(query, key, mask).float().mean(dim=(0, 1)).cpu()
