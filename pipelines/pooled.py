"""HunyuanVideo and Kandinsky 5 take CLIP's pooled vector of 77 tokens, whatever length their tokenizer has.

The number stands in their methods. A mixin before the stock class puts the tokenizer's own length there.
"""

import inspect
from typing import TYPE_CHECKING

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import HunyuanVideoPipeline as HunyuanVideo  # or another pipeline of the family
    from diffusers import Kandinsky5T2IPipeline as Kandinsky5
else:
    HunyuanVideo = Kandinsky5 = object


class HunyuanVideoPrompts(HunyuanVideo):
    """The pooled vector of as many tokens as `tokenizer_2` holds."""

    def _get_clip_prompt_embeds(self, *args, **kwargs) -> Tensor:
        return super()._get_clip_prompt_embeds(
            *args, **{**kwargs, "max_sequence_length": self.tokenizer_2.model_max_length}
        )


class Kandinsky5Prompts(Kandinsky5):
    """The pooled vector of as many tokens as `tokenizer_2` holds."""

    def _encode_prompt_clip(
        self, prompt: str | list[str], device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        tokens = self.tokenizer_2(prompt, padding="max_length", truncation=True, return_tensors="pt")
        pooled = self.text_encoder_2(**tokens.to(device or self._execution_device)).pooler_output
        return pooled.to(dtype or self.text_encoder_2.dtype)


def pooled_prompts(stock: type[DiffusionPipeline]) -> type | None:
    """The mixin for a pipeline class of HunyuanVideo or Kandinsky 5, None for all others."""
    if hasattr(stock, "_encode_prompt_clip"):
        return Kandinsky5Prompts
    encode = getattr(stock, "_get_clip_prompt_embeds", None)
    if encode is not None and "max_sequence_length" in inspect.signature(encode).parameters:
        return HunyuanVideoPrompts
    return None
