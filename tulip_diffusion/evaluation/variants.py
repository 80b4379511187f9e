"""The same captions, with their sentences in other places: who reads the beginning alone gives himself away.

Long captions begin with a sentence that sums them up, and encoders tuned on them may learn to read little else
(DeBias-CLIP, arXiv:2602.22419). So retrieval is measured again without the first sentence, with it at the end, and
with all sentences shuffled.
"""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .datasets import RetrievalSet

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def shuffled(sentences: list[str], number: int) -> list[str]:
    """In an order drawn from the caption's number, the same for every encoder."""
    return random.Random(number).sample(sentences, len(sentences))


VARIANTS: dict[str, Callable[[list[str], int], list[str]]] = {
    "without-first": lambda sentences, number: sentences[1:],
    "first-last": lambda sentences, number: [*sentences[1:], sentences[0]],
    "shuffled": shuffled,
}


def varied(data: "RetrievalSet", variant: str) -> "RetrievalSet":
    """`data` with every caption rearranged; a caption of one sentence stays as it is."""
    captions = []
    for number, caption in enumerate(data.captions):
        sentences = SENTENCE_END.split(caption.strip())
        rearranged = VARIANTS[variant](sentences, number) if len(sentences) > 1 else sentences
        captions.append(" ".join(rearranged))
    return replace(data, name=f"{data.name} {variant}", captions=captions)
