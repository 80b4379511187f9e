"""What turns a stock SDXL pipeline into one that reads prompts of any length: one mixin placed before its class."""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..prompt_description import CONTEXTS, PromptDescription, describe_prompt
from .attention import long_context_attention
from .conditioning import Conditioning, PromptEmbeds
from .loading import TulipLoadingMixin
from .prompts import Texts, embed_prompts, slots_of

OPTIONS = {field.name: field for field in dataclasses.fields(Conditioning)}


class TulipPromptMixin(TulipLoadingMixin):
    """Long prompts, prompt weights and prompt descriptions for a stock SDXL pipeline class.

    Every option of [`Conditioning`] is a keyword of the constructor, of [`set_conditioning`], and of a single call:
    `pipe(prompt, sequence_length=248)`. It is saved with the pipeline.
    """

    _conditioning = Conditioning()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if TulipPromptMixin in cls.__bases__:  # the stock class's own signatures are what diffusers inspects
            _, stock = cls.__bases__
            cls.__init__ = _with_options(stock.__init__)
            cls.__call__ = _with_conditioning(stock.__call__)

    def set_conditioning(self, **options) -> None:
        """Change options of [`Conditioning`] for all calls to come, `pipe.set_conditioning(overflow="stretch")`.

        Raises:
            ValueError: an option's value is not one of those listed there.
        """
        self._conditioning = dataclasses.replace(self._conditioning, **options)
        self.register_to_config(**dataclasses.asdict(self._conditioning))

    @contextlib.contextmanager
    def conditioned(self, **options) -> Iterator[None]:
        """Options of [`Conditioning`] for the time of a `with` block."""
        before = self._conditioning
        self._conditioning = dataclasses.replace(before, **options)
        try:
            yield
        finally:
            self._conditioning = before

    def encode_prompt(
        self,
        prompt: str | list[str],
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ):
        """Encode prompts as the stock method does, whatever their lengths.

        Same arguments, same four tensors: states (batch · images, tokens, width) of prompt and negative prompt, which
        share one length, and their pooled vectors. States of exact zeros are padding that cross-attention leaves out.
        """
        device = device or self._execution_device
        embeds = PromptEmbeds(
            prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds
        )
        texts = Texts(prompt, prompt_2, negative_prompt, negative_prompt_2)
        guided = do_classifier_free_guidance
        embeds = embed_prompts(self, texts, embeds, self._conditioning, guided, device, lora_scale, clip_skip)
        # The stock method does the rest: zeroed negatives, dtype, device and repeats.
        prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds = (
            super().encode_prompt(
                prompt=None,
                device=device,
                num_images_per_prompt=num_images_per_prompt,
                do_classifier_free_guidance=do_classifier_free_guidance,
                **vars(embeds),
            )
        )
        # diffusers' tests read these names off the source.
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def describe_prompt(self, prompt: str) -> PromptDescription:
        """Tokens and windows of `prompt`, which words this pipeline's encoders and others cannot see, and weights.

        `print()` it. It counts what generation encodes.
        """
        slots, options = slots_of(self), self._conditioning
        contexts = {**CONTEXTS, **{slot.name: slot.context(options) for slot in slots}}
        return describe_prompt(prompt, slots[0].tokenizer, contexts, options.weighting)


def _with_options(stock_init):
    """The stock constructor with the fields of [`Conditioning`] as further keywords."""

    @functools.wraps(stock_init)
    def __init__(self, *args, **kwargs):
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        conditioning = Conditioning(**options)  # before the stock constructor's heavier work
        stock_init(self, *args, **kwargs)
        self.set_conditioning(**dataclasses.asdict(conditioning))

    signature = inspect.signature(stock_init)
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for name, field in OPTIONS.items()
    ]
    __init__.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *further])
    return __init__


def _with_conditioning(stock_call):
    """The stock `__call__`, which takes options of [`Conditioning`] as well, and masks padding in cross-attention."""

    @functools.wraps(stock_call)
    def __call__(self, *args, **kwargs):
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        models = [model for model in self.components.values() if isinstance(model, nn.Module)]
        with self.conditioned(**options), long_context_attention(models, self._conditioning.attention_scale):
            return stock_call(self, *args, **kwargs)

    return __call__
