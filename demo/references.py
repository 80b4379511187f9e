"""Sentences that need another one to be understood, and whether each encoder's states have understood them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.grammar import parse_caption
from tulip_diffusion.scenes.read_out import ReadOut, load_read_out
from tulip_diffusion.scenes.sprites import COLOURS

SLOTS = ("l", "g")  # as the heads' files are called


@dataclass(frozen=True)
class Reference:
    """A sentence that takes its colour from an earlier one, by their numbers; `resolved` says by encoder's title
    whether the colour can be read off the states of the first and of the second slot. Nobody reads a state that is
    not there: False."""

    sentence: int
    source: int
    colour: str
    resolved: Mapping[str, tuple[bool, ...]]


def references(text: str, pipelines: Mapping[str, Any], heads: Path) -> tuple[list[str], list[Reference]]:
    """The sentences of `text`, and those among them that refer, read off the states that the UNet is given.

    `heads` is the folder of read-out heads, one for each slot. A text from beyond the world has no references.
    """
    try:
        caption = parse_caption(text)
    except ValueError:
        return [], []
    referring = [claim for claim in caption.claims if claim.role in ("colour", "it", "every")]
    if not referring or not heads.is_dir():
        return [sentence.text for sentence in caption.sentences], []
    ends = sentence_ends(text, caption, next(iter(pipelines.values())).tokenizer)
    fitted = [load_read_out(heads / f"{slot}.safetensors") for slot in SLOTS]
    at = [ends[claim.sentence] for claim in referring]
    read = {title: colours_at(pipeline, text, at, fitted) for title, pipeline in pipelines.items()}
    found = [
        Reference(
            claim.sentence,
            needed(caption, claim.sentence, claim.place),
            claim.thing.colour,
            {title: tuple(slot[number] == claim.thing.colour for slot in slots) for title, slots in read.items()},
        )
        for number, claim in enumerate(referring)
    ]
    return [sentence.text for sentence in caption.sentences], found


def needed(caption: Caption, sentence: int, place: int) -> int:
    """The sentence without which `sentence` leaves the thing in `place` without a colour, or a colour without it."""
    referent = caption.sentences[sentence].referent
    source = caption.first_mention(place if referent is None else referent)
    assert source is not None  # a claim that refers has been resolved
    return source


def sentence_ends(text: str, caption: Caption, tokenizer: Any) -> list[int]:
    """The place of each sentence's last token among all, BOS being 0."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False).offset_mapping
    ends, position = [], 0
    for sentence in caption.sentences:
        position = text.index(sentence.text, position) + len(sentence.text)
        ends.append(sum(start < position for start, _ in offsets))
    return ends


@torch.no_grad()
def colours_at(pipeline: Any, text: str, positions: Sequence[int], heads: Sequence[ReadOut]) -> list[list[str | None]]:
    """For each slot the colours that its head reads at `positions`, None beyond what the encoder was given."""
    states = pipeline.encode_prompt(text, do_classifier_free_guidance=False)[0][0].float().cpu()
    names = list(COLOURS)
    read = []
    for head, half in zip(heads, states.chunk(len(heads), dim=-1), strict=True):
        inside = [position for position in positions if position < len(half) - 1 and half[position].any()]
        guesses = dict(zip(inside, head(half[inside])[2].argmax(-1).tolist(), strict=True)) if inside else {}
        read.append([names[guesses[position]] if position in guesses else None for position in positions])
    return read
