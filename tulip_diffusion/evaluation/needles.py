"""Texts of the world that differ in one sentence or in one word, at any place of the text."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tulip_diffusion.scenes.captions import Caption, Claim, Sentence
from tulip_diffusion.scenes.grammar import choose, write_caption
from tulip_diffusion.scenes.render import COLUMNS, PLACES, ROWS, Scene, Thing, random_scene
from tulip_diffusion.scenes.sprites import COLOURS, KINDS
from tulip_diffusion.scenes.wording import TEMPLATES, fill

TOKENS_A_THING = 14  # about, in the long wording
# Colours that can stand for each other in any sentence: "orange" would change the article before it too.
EXCHANGEABLE = tuple(colour for colour in COLOURS if colour[0] not in "aeiou")


@dataclass(frozen=True)
class Needle:
    """A text without one of its sentences, and variants of that sentence, each with the scene that it makes true.

    `scenes` and `sentences` hold one entry a variant; the scenes differ in one thing alone.
    """

    others: tuple[Sentence, ...]
    sentences: tuple[Sentence, ...]
    scenes: tuple[Scene, ...]

    def slots(self, count: int) -> list[int]:
        """Up to `count` places for the needle, evenly spread, before all the others first and behind all last."""
        return sorted({round(slot) for slot in np.linspace(0, len(self.others), count)})

    def slot_at(self, token: int) -> int:
        """The place behind the last of the others that ends by `token`."""
        spans = Caption(self.scenes[0], self.others).token_spans
        return sum(end <= token for _, end in spans)

    def captions(self, slot: int) -> list[Caption]:
        """The text of every variant, with the needle as sentence number `slot`."""
        return [
            Caption(scene, (*self.others[:slot], sentence, *self.others[slot:]))
            for scene, sentence in zip(self.scenes, self.sentences, strict=True)
        ]


def make_needle(rng: np.random.Generator, tokens: int, contents: Sequence[tuple[str, str]]) -> Needle:
    """A text of about `tokens` tokens and never more, whose needle puts each of `contents` into one place.

    `contents` are (kind, colour). The text describes up to 16 things; what is left is filled with sentences that say
    nothing about the picture.
    """
    things = min(PLACES, max(2, (tokens - 12) // TOKENS_A_THING))
    while True:
        caption = write_caption(rng, random_scene(rng, things), tokens=tokens)
        told = [index for index, sentence in enumerate(caption.sentences) if sentence.role == "thing"]
        index = told[int(rng.integers(len(told)))]
        needle = replace_thing(rng, caption, index, contents)
        if max(variant.tokens for variant in needle.captions(0)) <= tokens:
            return needle


def replace_thing(
    rng: np.random.Generator, caption: Caption, index: int, contents: Sequence[tuple[str, str]]
) -> Needle:
    """Take sentence `index` out of `caption` and say in one wording that each of `contents` stands in its place."""
    (place,) = caption.sentences[index].places
    template = choose(rng, TEMPLATES["thing"]["long"])
    where = {"row": ROWS[place // len(COLUMNS)], "column": COLUMNS[place % len(COLUMNS)]}
    sentences, scenes = [], []
    for kind, colour in contents:
        things = list(caption.scene.things)
        things[place] = Thing(kind, colour)
        scenes.append(Scene(caption.scene.cabinet, tuple(things)))
        sentences.append(Sentence(fill(template, {**where, "kind": kind, "colour": colour}), "thing", (place,)))
    others = caption.sentences[:index] + caption.sentences[index + 1 :]
    return Needle(others, tuple(sentences), tuple(scenes))


def distinct_contents(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """`count` different (kind, colour), 80 at most."""
    everything = list(itertools.product(KINDS, COLOURS))
    return [everything[index] for index in rng.choice(len(everything), count, replace=False)]


def two_colours(rng: np.random.Generator) -> list[tuple[str, str]]:
    """One kind in two colours: one word of a sentence differs."""
    kind = choose(rng, KINDS)
    first, second = rng.choice(EXCHANGEABLE, 2, replace=False)
    return [(kind, str(first)), (kind, str(second))]


def hard_negatives(rng: np.random.Generator, caption: Caption) -> list[tuple[Claim, str]]:
    """For every plain claim of `caption` a text in which the colour of that thing alone is another, one word."""
    negatives = []
    for claim in caption.claims:
        colour = claim.thing.colour
        if claim.role != "thing" or colour not in EXCHANGEABLE:
            continue
        other = choose(rng, [name for name in EXCHANGEABLE if name != colour])
        sentence = caption.sentences[claim.sentence]
        text = re.sub(rf"\b{colour}\b", other, sentence.text, count=1)
        sentences = list(caption.sentences)
        sentences[claim.sentence] = replace(sentence, text=text)
        negatives.append((claim, Caption(caption.scene, tuple(sentences)).text))
    return negatives
