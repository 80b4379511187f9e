"""From a call's prompts to what SDXL is given, for whatever holds SDXL's components as attributes: any pipeline."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers
from torch import Tensor

from ..prompt_tokens import TokenizedPrompt, tokenize_prompts
from ..weighting import network_tags
from .attention import is_compiled
from .conditioning import Conditioning, PromptEmbeds, Slot, encode_texts

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Texts:
    """A call's texts under the names of SDXL's arguments, each one text or one for each image."""

    prompt: str | list[str] | None
    prompt_2: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    negative_prompt_2: str | list[str] | None = None


def slots_of(pipe: Any) -> list[Slot]:
    """SDXL's slots that are filled; the refiner fills the second only.

    Raises:
        ValueError: there is no second encoder, or an encoder without its tokenizer.
    """
    slots = [
        Slot("text_encoder", pipe.tokenizer, pipe.text_encoder),
        Slot("text_encoder_2", pipe.tokenizer_2, pipe.text_encoder_2),
    ]
    if pipe.text_encoder_2 is None:
        raise ValueError("This pipeline has no text_encoder_2. Pass one, or prompt_embeds with pooled vectors.")
    slots = [slot for slot in slots if slot.encoder is not None]
    for slot in slots:
        if slot.tokenizer is None:
            missing = slot.name.replace("text_encoder", "tokenizer")
            raise ValueError(f"This pipeline has a {slot.name} and no {missing}. Pass {missing}=load_tokenizer().")
    return slots


def embed_prompts(
    pipe: Any,
    texts: Texts,
    embeds: PromptEmbeds,
    options: Conditioning,
    guidance: bool,
    device: torch.device,
    lora_scale: float | None = None,
    clip_skip: int | None = None,
) -> PromptEmbeds:
    """`embeds`, and in place of what is None there `texts` encoded; prompt and negative prompt get one length.

    A negative prompt stays None where SDXL zeroes it, and without `guidance`.
    """
    positive = [] if embeds.prompt_embeds is not None else per_image(texts.prompt, texts.prompt_2)
    zeroed = texts.negative_prompt is None and pipe.config.force_zeros_for_empty_prompt
    negative = []
    if guidance and embeds.negative_prompt_embeds is None and not zeroed:
        count = len(positive) if embeds.prompt_embeds is None else len(embeds.prompt_embeds)
        negative = per_image(texts.negative_prompt or "", texts.negative_prompt_2, count)
    if positive or negative:
        with _lora_scaled(pipe, lora_scale):
            states, pooled = _encode(pipe, options, positive, negative, clip_skip, device)
        embeds = embeds.filled(states, pooled, len(positive))
    return embeds.of_one_length()


def per_image(
    prompt: str | list[str] | None, prompt_2: str | list[str] | None, batch: int | None = None
) -> list[tuple[str, str]]:
    """The texts of each image for the first and the second slot; one text stands for a batch of the same.

    Raises:
        ValueError: there is no prompt, there are not as many of one as of the other, or not `batch` of them.
    """
    if prompt is None:
        raise ValueError("There is no prompt. Pass prompt=…, one text or a list of them.")
    count = batch or (1 if isinstance(prompt, str) else len(prompt))
    both = [[texts] * count if isinstance(texts, str) else list(texts) for texts in (prompt, prompt_2 or prompt)]
    for texts in both:
        if len(texts) != count:
            raise ValueError(f"Got {len(texts)} texts for a batch of {count}. Pass one text, or one for each image.")
    return list(zip(*both, strict=True))


def _encode(
    pipe: Any,
    options: Conditioning,
    positive: list[tuple[str, str]],
    negative: list[tuple[str, str]],
    clip_skip: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """States and pooled vectors of all positive, then all negative texts; each is a pair, one for each slot."""
    slots, unet = slots_of(pipe), getattr(pipe, "unet", None)
    if options.sequence_length == "auto" and unet is not None and is_compiled(unet):
        options = dataclasses.replace(options, sequence_length="bucket")  # a graph or less for each length
    tokenized = []
    for pair in (*positive, *negative):
        # Where the first slot is empty, stock SDXL gives the first text to the second one.
        texts = pair[: len(slots)]
        tokenized.append(tokenize_prompts(texts, [slot.tokenizer for slot in slots], options.weighting))
        _warn(pipe, texts, tokenized[-1], slots, options)
    count = len(positive)
    return encode_texts(slots, tokenized[:count], tokenized[count:], clip_skip, options, device)


def _warn(
    pipe: Any, texts: tuple[str, ...], tokenized: list[TokenizedPrompt], slots: list[Slot], options: Conditioning
) -> None:
    """Once for each image's texts: a line on the words that an encoder loses, one on tags that are left out."""
    warned: set[int] = vars(pipe).setdefault("_warned", set())
    if hash(texts) in warned:
        return
    pairs = zip(tokenized, slots, strict=True)
    lines = [" ".join(filter(None, (slot.losses(tokens, options) for tokens, slot in pairs)))]
    if options.weighting and (tags := {tag: None for text in texts for tag in network_tags(text)}):
        lines.append(f"Left out {', '.join(tags)}: tags load nothing here, load_lora_weights does.")
    for line in filter(None, lines):
        warned.add(hash(texts))
        logger.warning(line)


@contextlib.contextmanager
def _lora_scaled(pipe: Any, scale: float | None) -> Iterator[None]:
    """Scale the text encoders' LoRA layers, as the stock method does around its own forward passes."""
    if scale is None:
        yield
        return
    encoders = [encoder for encoder in (pipe.text_encoder, pipe.text_encoder_2) if encoder is not None]
    pipe._lora_scale = scale
    for encoder in encoders:
        scale_lora_layers(encoder, scale)
    try:
        yield
    finally:
        for encoder in encoders:
            unscale_lora_layers(encoder, scale)
