"""From prompts to the tensors that condition SDXL: the options there are, and the lengths that follow from them."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import CLIPTokenizer, PreTrainedModel

from ..models.positions import CLIP_LENGTH, table_length, trained_length
from ..prompt_tokens import TokenizedPrompt
from .encoding import EncodingTask, context_length, encode


@dataclass(frozen=True)
class Conditioning:
    """How prompts become states.

    Args:
        sequence_length: `"exact"`, 77 tokens as SDXL up to 77, then as many as the longest text of the call has;
            `"bucket"`, then the next multiple of 77 with the rest masked out, for few different lengths; `"auto"`,
            `"bucket"` where the UNet is compiled and `"exact"` where it is not; or a number of tokens, padded as SDXL
            pads and cut there (the TULIP paper's own images: 248).
        overflow: what an encoder with a table of positions (CLIP, SDXL's second encoder) does with a prompt that
            outgrows it: `"windows"` reads whole sentences in windows of 75 tokens; `"stretch"` interpolates the table
            four times as Long-CLIP does; `"truncate"` leaves the rest out. TULIP encoders read everything.
        pooled: with `"windows"`, the pooled vector of the `"first"` window, of the `"last"`, or their `"mean"`.
        weighting: `"a1111"` reads `(word:1.3)`, `[word]` and `BREAK`, and takes `<lora:…>` tags out, as
            [`~tulip_diffusion.weighting`] says; None takes everything as text.
        attention_scale: sharpens cross-attention over prompts of more than 77 tokens: a factor on its logits, or
            `"log"` for ln(tokens) / ln(77). None leaves it alone.

    Raises:
        ValueError: a value is none of these.
    """

    sequence_length: int | str = "auto"
    overflow: str = "windows"
    pooled: str = "first"
    weighting: str | None = "a1111"
    attention_scale: float | str | None = None

    def __post_init__(self):
        choices = {
            "overflow": ("windows", "stretch", "truncate"),
            "pooled": ("first", "last", "mean"),
            "weighting": ("a1111", None),
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
        length, scale = self.sequence_length, self.attention_scale
        if length not in ("auto", "exact", "bucket") and not (isinstance(length, int) and length >= 3):
            raise ValueError(
                f'sequence_length must be "auto", "exact", "bucket" or a number of 3 or more, got {length!r}.'
            )
        if scale not in (None, "log") and not (isinstance(scale, int | float) and scale > 0):
            raise ValueError(f'attention_scale must be None, "log" or a number above 0, got {scale!r}.')


@dataclass(frozen=True)
class Slot:
    """One of SDXL's text encoders with its tokenizer; `name` is the pipeline's name for the encoder."""

    name: str
    tokenizer: CLIPTokenizer
    encoder: PreTrainedModel

    def context(self, options: Conditioning) -> int | None:
        """Tokens of a prompt that get to this encoder, BOS and EOS included, None for all of them."""
        limits = (context_length(self.encoder, options.overflow), options.sequence_length)
        return min((limit for limit in limits if isinstance(limit, int)), default=None)

    def losses(self, prompt: TokenizedPrompt, options: Conditioning) -> str:
        """A sentence of at most 100 characters on the words that this encoder does not see, or was not trained on."""
        context = self.context(options)
        limits = [(context, "are lost")] if context else []
        if table_length(self.encoder) is None:
            limits.append((trained_length(self.encoder), "it was not trained on"))
        for limit, fate in limits:
            if words := prompt.beyond(limit).split():
                count, (first, last) = len(prompt.ids) + 2 - limit, (word[:16] for word in (words[0], words[-1]))
                return f'{self.name}: {count} tokens beyond {limit} {fate}, from "{first}" to "{last}".'
        return ""


@dataclass(frozen=True)
class PromptEmbeds:
    """What SDXL is given, under the names of its arguments: states (batch, tokens, width), vectors (batch, width)."""

    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None

    def filled(self, states: Tensor, pooled: Tensor, count: int) -> "PromptEmbeds":
        """What is None taken from states and pooled vectors of `count` prompts, then those of negative prompts."""
        made = (states[:count], states[count:], pooled[:count], pooled[count:])
        pairs = zip(vars(self).values(), made, strict=True)
        return PromptEmbeds(*(new if given is None and len(new) else given for given, new in pairs))

    def of_one_length(self) -> "PromptEmbeds":
        """Prompt and negative prompt filled up to the longer of the two."""
        positive, negative = self.prompt_embeds, self.negative_prompt_embeds
        if positive is None or negative is None:
            return self
        length = max(positive.shape[1], negative.shape[1])
        return dataclasses.replace(
            self,
            prompt_embeds=pad_states(positive, length),
            negative_prompt_embeds=pad_states(negative, length),
        )


def encode_texts(
    slots: Sequence[Slot],
    positive: Sequence[Sequence[TokenizedPrompt]],
    negative: Sequence[Sequence[TokenizedPrompt]],
    clip_skip: int | None,
    options: Conditioning,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """States (texts, tokens, width) and pooled vectors of all positive, then all negative texts.

    Each text is one [`TokenizedPrompt`] for each slot. `clip_skip` moves only the positive ones, as in stock SDXL.
    """
    texts = [
        [tokens.cut(slot.context(options)) for tokens, slot in zip(text, slots, strict=True)]
        for text in (*positive, *negative)
    ]
    lengths = [text_length(text, options) for text in texts]
    layers = [-2 if clip_skip is None else -(clip_skip + 2)] * len(positive) + [-2] * len(negative)

    # One forward per encoder for everything; but where all is short, one for the prompts and one for the negatives, as
    # in the stock method, so that the results are the same bits.
    everything, first = range(len(texts)), len(positive)
    groups = [everything] if max(lengths) > CLIP_LENGTH else [everything[:first], everything[first:]]
    states, pooled = [], []
    for group in filter(len, groups):
        parts = []
        for i, slot in enumerate(slots):
            task = EncodingTask(
                [texts[row][i] for row in group],
                [lengths[row] for row in group],
                [layers[row] for row in group],
                options.overflow,
                options.pooled,
            )
            part, vectors = encode(slot.encoder, slot.tokenizer, task)
            parts.append(part.to(device))
        states.append(torch.cat(parts, dim=-1))
        assert vectors is not None  # the last slot's encoder has a projection, see checks.py
        pooled.append(vectors)
    return pad_states(torch.cat(states), padded_length(max(lengths), options)), torch.cat(pooled)


def text_length(text: Sequence[TokenizedPrompt], options: Conditioning) -> int:
    """Tokens that one image's text takes, shown pads included; it depends on no other text."""
    if isinstance(options.sequence_length, int):
        return options.sequence_length
    return max(CLIP_LENGTH, *(len(tokens.ids) + 2 for tokens in text))


def padded_length(length: int, options: Conditioning) -> int:
    """Length of the tensor that holds texts of up to `length` tokens."""
    if options.sequence_length == "bucket":
        return math.ceil(length / CLIP_LENGTH) * CLIP_LENGTH
    return length


def pad_states(states: Tensor, length: int) -> Tensor:
    """Fill `states` (texts, tokens, width) up to `length` tokens with zeros, which cross-attention leaves out."""
    return functional.pad(states, (0, 0, 0, length - states.shape[1]))
