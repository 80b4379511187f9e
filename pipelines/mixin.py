"""What turns a stock SDXL pipeline into one that reads prompts of any length: one mixin placed before its class."""

import contextlib
import dataclasses
import functools
import inspect
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor, nn

from ..windows import CONTEXTS, PromptDescription, describe_prompt
from .attention import long_context_attention
from .checks import check_components, check_folder, first_encoder, load_first_encoder
from .conditioning import Conditioning, Slot, encode_texts, pad_states, tokenize_texts
from .weighting import parse_weights, tokenize

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline as Stock  # or whichever class the mixin stands before
else:
    Stock = object

logger = logging.getLogger(__name__)

OPTIONS = {field.name: field for field in dataclasses.fields(Conditioning)}


class TulipPromptMixin(Stock):
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *, tulip: str | None = None, **kwargs):
        """Load a pipeline, stock SDXL or saved by this class, from a folder or Hub id.

        `tulip` names the file, folder or Hub id of an encoder to put in the first slot. Everything else is as in
        [`~diffusers.DiffusionPipeline.from_pretrained`].
        """
        if tulip is not None:
            kwargs["text_encoder"] = load_first_encoder(tulip, kwargs.get("dtype") or kwargs.get("torch_dtype"))
        check_folder(pretrained_model_name_or_path, passed=kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path, *, tulip: str | None = None, **kwargs):
        """[`~diffusers.loaders.FromSingleFileMixin.from_single_file`], with `tulip` as in [`from_pretrained`]."""
        if tulip is not None:
            kwargs["text_encoder"] = load_first_encoder(tulip, kwargs.get("dtype") or kwargs.get("torch_dtype"))
        return super().from_single_file(pretrained_model_link_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """[`~diffusers.DiffusionPipeline.from_pipe`], but components keep their dtype unless `dtype` is given."""
        if "dtype" in kwargs or "torch_dtype" in kwargs:
            return super().from_pipe(pipeline, **kwargs)
        components = {**pipeline.components, **kwargs}
        dtypes = [(module, module.dtype) for module in components.values() if isinstance(module, nn.Module)]
        # diffusers casts all components to one dtype, float32 if none is given, which loses nothing on the way back.
        shared = {dtype for _, dtype in dtypes}
        dtype = shared.pop() if len(shared) == 1 else torch.float32
        made = super().from_pipe(pipeline, dtype=dtype, **kwargs)
        for module, own in dtypes:
            if module.dtype != own:
                module.to(own)
        return made

    def register_modules(self, **modules) -> None:
        """Called by every stock constructor with all components, so this is where they are checked."""
        if modules.get("text_encoder") is not None:
            modules["text_encoder"] = first_encoder(modules["text_encoder"])
        check_components(modules)
        super().register_modules(**modules)

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
        positive = _per_image(prompt, prompt_2) if prompt_embeds is None else []
        zeroed = negative_prompt is None and self.config.force_zeros_for_empty_prompt
        negative = []
        if do_classifier_free_guidance and negative_prompt_embeds is None and not zeroed:
            batch = len(positive) if prompt_embeds is None else len(prompt_embeds)
            negative = _per_image(negative_prompt or "", negative_prompt_2, batch)
        if positive or negative:
            with self._lora_scaled(lora_scale):
                states, pooled = self._encode(positive, negative, clip_skip, device)
        if positive:
            prompt_embeds = states[: len(positive)]
            if pooled_prompt_embeds is None:
                pooled_prompt_embeds = pooled[: len(positive)]
        if negative:
            negative_prompt_embeds = states[len(positive) :]
            if negative_pooled_prompt_embeds is None:
                negative_pooled_prompt_embeds = pooled[len(positive) :]
        if prompt_embeds is not None and negative_prompt_embeds is not None:
            length = max(prompt_embeds.shape[1], negative_prompt_embeds.shape[1])
            prompt_embeds = pad_states(prompt_embeds, length)
            negative_prompt_embeds = pad_states(negative_prompt_embeds, length)

        # The stock method does the rest: zeroed negatives, dtype, device and repeats.
        prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds = (
            super().encode_prompt(
                prompt=None,
                device=device,
                num_images_per_prompt=num_images_per_prompt,
                do_classifier_free_guidance=do_classifier_free_guidance,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            )
        )
        # diffusers' tests read these names off the source.
        return prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds

    def describe_prompt(self, prompt: str) -> PromptDescription:
        """Tokens and windows of `prompt`, and which words this pipeline's encoders and others cannot see.

        `print()` it. Weights and BREAK are read first, as in generation.
        """
        slots, options = self._slots(), self._conditioning
        contexts = {**CONTEXTS, **{slot.name: slot.context(options) for slot in slots}}
        tokenizer = slots[0].tokenizer
        prompt = self._convert(prompt, tokenizer)
        breaks = tokenize(prompt, tokenizer, options.weighting).breaks
        if options.weighting:
            prompt = "".join(" " * span.after_break + span.text for span in parse_weights(prompt))
        return describe_prompt(prompt, tokenizer, contexts, breaks)

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
        tokenized = []
        for pair in (*positive, *negative):
            # Where the first slot is empty, stock SDXL gives the first text to the second one.
            texts = [self._convert(text, slot.tokenizer) for text, slot in zip(pair, slots, strict=False)]
            tokenized.append(tokenize_texts(texts, slots, options))
            self._warn_of_losses(pair, tokenized[-1], slots)
        count = len(positive)
        return encode_texts(slots, tokenized[:count], tokenized[count:], clip_skip, options, device)

    def _convert(self, text: str, tokenizer) -> str:
        """Write out textual inversions of several vectors, if there are any: diffusers tokenizes to find out."""
        several = any(token.endswith("_1") for token in tokenizer.added_tokens_encoder)
        return self.maybe_convert_prompt(text, tokenizer) if several else text

    def _warn_of_losses(self, texts: tuple[str, ...], tokenized: list, slots: list[Slot]) -> None:
        """Once for each text: one line on the words that an encoder loses, if any does."""
        pairs = zip(tokenized, slots, strict=True)
        losses = [sentence for tokens, slot in pairs for sentence in slot.losses(tokens, self._conditioning)]
        if losses and hash(texts) not in self._warned:
            self._warned.add(hash(texts))
            logger.warning(" ".join(losses))

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
