"""Which texts evaluations use, and how they count the place where a text says something.

**One rule.** A sentence's position is the number of tokens that its text has when the sentence has ended, with BOS and
EOS, as encoders count. So the bin "0-77" holds what an encoder of 77 positions can be told, and nothing else: it reads
75 tokens of words.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from tulip_diffusion.scenes.captions import Caption, Claim
from tulip_diffusion.scenes.dataset import SPLITS, full_caption, reference_caption, window_caption
from tulip_diffusion.scenes.grammar import write_caption
from tulip_diffusion.scenes.render import PLACES, random_scene

from .records import Mean, mean_over

POSITIONS = (0, 77, 154, 231, 308, 500, 750, 1000, 1500, 2000)  # edges of bins, in tokens
DISTANCES = (0, 40, 77, 120, 160, 240)


def short_caption(rng: np.random.Generator) -> Caption:
    """A caption inside CLIP's window without references, up to 13 things in it."""
    while True:
        caption = window_caption(rng)
        if {claim.role for claim in caption.claims} == {"thing"}:
            return caption


def long_caption(rng: np.random.Generator, tokens: int) -> Caption:
    """Sixteen things and, between them, sentences that say nothing about the picture: `tokens` tokens at most."""
    return write_caption(rng, random_scene(rng, PLACES), tokens=tokens)


PROMPTS: dict[str, Callable[[np.random.Generator], Caption]] = {
    "short": short_caption,
    "full": full_caption,
    "references": reference_caption,
    "500": partial(long_caption, tokens=500),
    "1000": partial(long_caption, tokens=1000),
    "2000": partial(long_caption, tokens=2000),
}


def prompts_of(name: str, count: int, split: str = "evaluation") -> list[Caption]:
    """The first `count` captions of a set of `PROMPTS`, always the same ones.

    Raises:
        ValueError: no such set.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompts must be one of {', '.join(PROMPTS)}, got {name!r}.")
    return [PROMPTS[name](np.random.default_rng(SPLITS[split] + index)) for index in range(count)]


def position_after(token: int) -> int:
    """Tokens of a text that ends with its token number `token`, BOS being number 0: EOS comes behind it."""
    return token + 2


def position_of(claim: Claim) -> int:
    """Tokens of the caption up to the sentence that completes `claim`, BOS and EOS included."""
    return position_after(claim.tokens[1] - 1)


def bin_means(
    places: Sequence[float | None], values: Sequence[float], groups: Sequence[int], edges: Sequence[int]
) -> dict[str, Mean]:
    """Means of the values whose place lies above one edge and up to the next, by "low-high"; empty bins are left out.

    The three sequences go together; a place of None lies in no bin. Intervals are drawn over `groups`.
    """
    means = {}
    for low, high in itertools.pairwise(edges):
        inside = [index for index, place in enumerate(places) if place is not None and low < place <= high]
        if mean := mean_over(pick(values, inside), pick(groups, inside)):
            means[f"{low}-{high}"] = mean
    return means


def pick(values: Sequence, indices: Iterable[int]) -> list:
    """The values at `indices`."""
    return [values[index] for index in indices]
