"""Embeddings of prompts that come again, for those who ask for it."""

from collections import OrderedDict
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class PromptCache:
    """Remembers what `pipe.encode_prompt` returned for the last `size` prompts.

    The key is every argument, the pipeline's conditioning options, and the state of its encoders: their parameters,
    and each LoRA's scale, whether it is active, and whether it is merged. Weights that are edited in place behind
    their back (`fuse_lora` followed by `unload_lora_weights`, for one) need a [`clear`].

    Example:

    ```python
    >>> cache = PromptCache(pipe)
    >>> image = pipe(**cache(prompt, negative_prompt="blurry")).images[0]
    ```
    """

    def __init__(self, pipe: DiffusionPipeline, size: int = 32):
        self.pipe = pipe
        self.size = size
        self._embeds: OrderedDict[Any, dict[str, Tensor]] = OrderedDict()

    def __call__(self, prompt: str | list[str], **arguments) -> dict[str, Tensor]:
        """The embeddings of `prompt` under the names that a pipeline takes; `arguments` are `encode_prompt`'s.

        Raises:
            ValueError: an argument is a tensor, which says nothing of its text.
        """
        if tensors := [name for name, value in arguments.items() if isinstance(value, Tensor)]:
            raise ValueError(f"PromptCache goes by texts, got tensors for {tensors}. Pass them to the pipeline.")
        encoders = [encoder for encoder in (self.pipe.text_encoder, self.pipe.text_encoder_2) if encoder is not None]
        states = [encoder_state(encoder) for encoder in encoders]
        key = repr((prompt, sorted(arguments.items()), self.pipe._conditioning, states))
        if key not in self._embeds:
            with torch.no_grad():
                self._embeds[key] = dict(zip(EMBEDS, self.pipe.encode_prompt(prompt, **arguments), strict=True))
        self._embeds.move_to_end(key)
        while len(self._embeds) > self.size:
            self._embeds.popitem(last=False)
        return dict(self._embeds[key])

    def clear(self) -> None:
        self._embeds.clear()


def encoder_state(encoder: torch.nn.Module) -> list:
    """What tells one state of `encoder` from another without reading its weights."""
    parameters = [(id(weight), weight._version, weight.dtype) for weight in encoder.parameters()]
    adapters = [
        (sorted(module.scaling.items()), module.active_adapters, module.merged_adapters, module.disable_adapters)
        for module in encoder.modules()
        if isinstance(module, BaseTunerLayer)
    ]
    return [parameters, adapters]
