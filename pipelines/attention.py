"""Cross-attention over prompts of different lengths.

A batch of prompts has one length, so shorter ones are filled up with states of exact zeros, and zeros mean "no token
here": while a pipeline runs, hooks on its cross-attention mask them out. The mask is read off the states themselves,
so it survives whatever is done to them between encoding and denoising: repeats, guidance's [negative, positive],
PAG's third copy, callbacks, saved embeddings, a ControlNet that gets half of the batch.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ..models.positions import CLIP_LENGTH


def visible_tokens(states: Tensor) -> Tensor:
    """Which tokens of `states` (batch, tokens, width) are there, (batch, tokens).

    A row of nothing but zeros is SDXL's way to say "no negative prompt"; all its tokens are there.
    """
    visible = states.any(dim=-1)
    return visible | ~visible.any(dim=-1, keepdim=True)


def mask_absent_tokens(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
    """Forward pre-hook of a [`Transformer2DModel`]: hide absent tokens. Up to 77 tokens everything is stock SDXL's."""
    states = kwargs.get("encoder_hidden_states")
    text = states[0] if isinstance(states, tuple) else states  # IP-Adapter: (text, images)
    if text is None or text.shape[1] <= CLIP_LENGTH or kwargs.get("encoder_attention_mask") is not None:
        return None
    return args, {**kwargs, "encoder_attention_mask": visible_tokens(text)}


def scale_keys(module: nn.Module, args: tuple, keys: Tensor, scale: float | str) -> Tensor | None:
    """Forward hook of a cross-attention's `to_k`: multiply the logits of prompts of more than 77 tokens.

    By `scale`, or with `"log"` by ln(n) / ln(77) for n tokens, which keeps the softmax over a longer context as sharp.
    """
    (states,) = args
    if states.shape[1] <= CLIP_LENGTH:
        return None
    tokens = visible_tokens(states).sum(dim=-1).float()
    factor = tokens.log() / math.log(CLIP_LENGTH) if isinstance(scale, str) else torch.full_like(tokens, scale)
    return keys * factor.where(tokens > CLIP_LENGTH, 1.0).to(keys.dtype)[:, None, None]


@contextlib.contextmanager
def long_context_attention(models: Iterable[nn.Module], scale: float | str | None = None) -> Iterator[None]:
    """Install the hooks above on every cross-attention of `models`, and take them off again whatever happens."""
    handles = []
    try:
        for module in (module for model in models for module in model.modules()):
            if isinstance(module, Transformer2DModel):
                handles.append(module.register_forward_pre_hook(mask_absent_tokens, with_kwargs=True))
            elif isinstance(module, BasicTransformerBlock) and scale is not None and module.attn2 is not None:
                hook = functools.partial(scale_keys, scale=scale)
                handles.append(module.attn2.to_k.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()
