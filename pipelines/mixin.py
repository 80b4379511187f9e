"""What turns a stock SDXL pipeline into one that reads prompts of any length: one mixin placed before its class."""

import contextlib
import dataclasses
import functools
import inspect
import logging
from collections.abc import Iterator

import torch
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from ..prompt_description import CONTEXTS, PromptDescription, describe_prompt
from ..prompt_tokens import TokenizedPrompt, tokenize_prompts
from ..weighting import network_tags
from .attention import is_compiled, long_context_attention
from .conditioning import Conditioning, PromptEmbeds, Slot, encode_texts
from .loading import TulipLoadingMixin

logger = logging.getLogger(__name__)

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
        positive = [] if prompt_embeds is not None else _per_image(prompt, prompt_2)
        zeroed = negative_prompt is None and self.config.force_zeros_for_empty_prompt
        negative = []
        if do_classifier_free_guidance and negative_prompt_embeds is None and not zeroed:
            count = len(positive) if prompt_embeds is None else len(prompt_embeds)
            negative = _per_image(negative_prompt or "", negative_prompt_2, count)
        if positive or negative:
            with self._lora_scaled(lora_scale):
                states, pooled = self._encode(positive, negative, clip_skip, device)
            embeds = embeds.filled(states, pooled, len(positive))

        # The stock method does the rest: zeroed negatives, dtype, device and repeats.
        prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds = (
            super().encode_prompt(
                prompt=None,
                device=device,
                num_images_per_prompt=num_images_per_prompt,
                do_classifier_free_guidance=do_classifier_free_guidance,
                **vars(embeds.of_one_length()),
            )
        )
        # diffusers' tests read these names off the source.
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def describe_prompt(self, prompt: str) -> PromptDescription:
        """Tokens and windows of `prompt`, which words this pipeline's encoders and others cannot see, and weights.

        `print()` it. It counts what generation encodes.
        """
        slots, options = self._slots(), self._conditioning
        contexts = {**CONTEXTS, **{slot.name: slot.context(options) for slot in slots}}
        return describe_prompt(prompt, slots[0].tokenizer, contexts, options.weighting)

    def _slots(self) -> list[Slot]:
        """SDXL's slots that are filled; the refiner fills the second only."""
        slots = [
            Slot("text_encoder", self.tokenizer, self.text_encoder),
            Slot("text_encoder_2", self.tokenizer_2, self.text_encoder_2),
        ]
        if self.text_encoder_2 is None:
            raise ValueError("This pipeline has no text_encoder_2. Pass one, or prompt_embeds with pooled vectors.")
        slots = [slot for slot in slots if slot.encoder is not None]
        for slot in slots:
            if slot.tokenizer is None:
                missing = slot.name.replace("text_encoder", "tokenizer")
                raise ValueError(f"This pipeline has a {slot.name} and no {missing}. Pass {missing}=load_tokenizer().")
        return slots

    def _encode(self, positive: list[tuple[str, str]], negative: list[tuple[str, str]], clip_skip: int | None, device):
        """States and pooled vectors of all positive, then all negative texts; each is a pair, one for each slot."""
        slots, options = self._slots(), self._conditioning
        if options.sequence_length == "auto" and self.unet is not None and is_compiled(self.unet):
            options = dataclasses.replace(options, sequence_length="bucket")  # a graph or less for each length
        tokenized = []
        for pair in (*positive, *negative):
            # Where the first slot is empty, stock SDXL gives the first text to the second one.
            texts = pair[: len(slots)]
            tokenized.append(tokenize_prompts(texts, [slot.tokenizer for slot in slots], options.weighting))
            self._warn(texts, tokenized[-1], slots)
        count = len(positive)
        return encode_texts(slots, tokenized[:count], tokenized[count:], clip_skip, options, device)

    def _warn(self, texts: tuple[str, ...], tokenized: list[TokenizedPrompt], slots: list[Slot]) -> None:
        """Once for each image's texts: a line on the words that an encoder loses, one on tags that are left out."""
        if hash(texts) in self._warned:
            return
        pairs = zip(tokenized, slots, strict=True)
        lines = [" ".join(filter(None, (slot.losses(tokens, self._conditioning) for tokens, slot in pairs)))]
        if self._conditioning.weighting and (tags := {tag: None for text in texts for tag in network_tags(text)}):
            lines.append(f"Left out {', '.join(tags)}: tags load nothing here, load_lora_weights does.")
        for line in filter(None, lines):
            self._warned.add(hash(texts))
            logger.warning(line)

    @contextlib.contextmanager
    def _lora_scaled(self, scale: float | None) -> Iterator[None]:
        """Scale the text encoders' LoRA layers, as the stock method does around its own forward passes."""
        encoders = [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]
        if scale is None:
            yield
            return
        self._lora_scale = scale
        for encoder in encoders:
            scale_lora_layers(encoder, scale)
        try:
            yield
        finally:
            for encoder in encoders:
                unscale_lora_layers(encoder, scale)


def _with_options(stock_init):
    """The stock constructor with the fields of [`Conditioning`] as further keywords."""

    @functools.wraps(stock_init)
    def __init__(self, *args, **kwargs):
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        conditioning = Conditioning(**options)  # before the stock constructor's heavier work
        stock_init(self, *args, **kwargs)
        self._warned: set[int] = set()
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


def _per_image(
    prompt: str | list[str], prompt_2: str | list[str] | None, batch: int | None = None
) -> list[tuple[str, str]]:
    """The texts of each image for the first and the second slot; one text stands for a batch of the same.

    Raises:
        ValueError: there are not as many of one as of the other, or not `batch` of them.
    """
    count = batch or (1 if isinstance(prompt, str) else len(prompt))
    both = [[texts] * count if isinstance(texts, str) else list(texts) for texts in (prompt, prompt_2 or prompt)]
    for texts in both:
        if len(texts) != count:
            raise ValueError(f"Got {len(texts)} texts for a batch of {count}. Pass one text, or one for each image.")
    return list(zip(*both, strict=True))
