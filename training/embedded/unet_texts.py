"""What the UNet is told about a picture: captions of its window, and texts that say nothing about it.

SDXL learned to draw without a prompt from empty captions, and its users write anything at all as a negative prompt:
nothing, a list of style words, a page of them. A UNet that only ever saw zeros there is lost with all of these.
"""

import functools
import re

import numpy as np

from tulip_diffusion.scenes.captions import Caption, Sentence
from tulip_diffusion.scenes.dataset import REFERENCES, window_caption
from tulip_diffusion.scenes.grammar import choose
from tulip_diffusion.scenes.render import PLACES, random_scene
from tulip_diffusion.scenes.wording import ASIDES, REMARKS
from tulip_diffusion.tokenization import clip_vocabulary
from tulip_diffusion.windows import CLIP_LENGTH

BYTES_PER_WORD = 6  # about; a word outside the world falls into its letters


@functools.cache
def english_words() -> tuple[str, ...]:
    """The whole words of CLIP's own vocabulary: what people write, nearly all of it outside the world."""
    tokens = (token.removesuffix("</w>") for token in clip_vocabulary()[0] if token.endswith("</w>"))
    return tuple(sorted({token for token in tokens if re.fullmatch("[a-z]{3,12}", token)}))


def random_words(rng: np.random.Generator, count: int) -> list[str]:
    """`count` English words, most of which the world does not have."""
    return [choose(rng, english_words()) for _ in range(count)]


def unrelated_text(rng: np.random.Generator) -> str:
    """Words, a list of words, or sentences, from one word to more than the window holds, about no picture."""
    count = int(np.exp(rng.uniform(0, np.log(40))))  # short ones as often as long ones
    kind = rng.random()
    if kind < 0.3:
        return " ".join(choose(rng, (*ASIDES, *REMARKS)) for _ in range(1 + count // 5))
    words = random_words(rng, count)
    if kind < 0.65:
        return ", ".join(words)
    return " ".join(words).capitalize() + "."


def named_things(rng: np.random.Generator) -> Caption:
    """A picture and a list of some things in it or of their colours, without their places."""
    scene = random_scene(rng, int(rng.integers(4, PLACES + 1)))
    places = rng.permutation(scene.occupied)[: int(rng.integers(1, 5))]
    things = [scene.things[place] for place in places]
    names = [choose(rng, (f"{thing.colour} {thing.kind}", thing.kind, thing.colour)) for thing in things]
    return Caption(scene, (Sentence(", ".join(names)),))


def with_unrelated(rng: np.random.Generator, caption: Caption) -> Caption:
    """`caption` with a sentence or some words anywhere in it that say nothing, inside the window again."""
    words = int(rng.integers(1, 5))
    if rng.random() < 0.6:
        added, room = choose(rng, (*ASIDES, *REMARKS)), CLIP_LENGTH
    else:
        added, room = ", ".join(random_words(rng, words)) + ".", CLIP_LENGTH - BYTES_PER_WORD * words
    sentences = list(caption.sentences)
    sentences.insert(int(rng.integers(len(sentences) + 1)), Sentence(added))
    return Caption(caption.scene, tuple(sentences)).cut(room)


def telling_caption(rng: np.random.Generator) -> Caption:
    """A caption of at most 77 tokens of all that a prompt may hold; most refer, most of those in most sentences."""
    kind = rng.random()
    if kind < 0.04:
        return named_things(rng)
    references = {**REFERENCES, "colour": 0.6} if kind < 0.7 else REFERENCES
    caption = window_caption(rng, dangling=0.1, references=references)
    return with_unrelated(rng, caption) if rng.random() < 0.15 else caption
