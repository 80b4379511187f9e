"""Pictures and captions as PyTorch data sets."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from .captions import Caption
from .grammar import choose, landmark_scene, write_caption
from .render import PLACES, random_scene, render_array
from .splits import SPLITS

REFERENCES = {"colour": 0.35, "place": 0.05, "it": 0.08, "every": 0.1}
MOST_THINGS = {"long": 6, "mixed": 9, "short": 13, "terse": 16}  # about what a window of 77 tokens holds


def window_caption(
    rng: np.random.Generator, dangling: float = 0.0, references: Mapping[str, float] = REFERENCES
) -> Caption:
    """A caption of at most 77 tokens in any wording, with references or without, its scene as full as the text.

    `dangling` is the chance that a caption lost its beginning, so that some of its references lead nowhere;
    `references` are those of the six captions in ten that refer, as in `write_caption`.
    """
    wording = choose(rng, tuple(MOST_THINGS))
    things = int(rng.integers(1, MOST_THINGS[wording] + 1, 2).max())  # rather many: each one is something to learn
    refers = rng.random() < 0.6
    scene = landmark_scene(rng, things) if refers else random_scene(rng, things)
    caption = write_caption(rng, scene, wording, references if refers else None, cabinet=rng.random() < 0.7)
    if rng.random() < dangling and len(caption.sentences) > 2:
        caption = caption.subset(range(int(rng.integers(1, 3)), len(caption.sentences)))
    return caption.cut(77)


def full_caption(rng: np.random.Generator) -> Caption:
    """Sixteen things in long wording: about 225 tokens, of which CLIP's window holds five things."""
    return write_caption(rng, random_scene(rng, PLACES))


def reference_caption(rng: np.random.Generator) -> Caption:
    """Sixteen things, about a third of which have their colour "in the same colour as the tulip"."""
    return write_caption(rng, landmark_scene(rng, PLACES), references={"colour": 0.5})


class SceneDataset(Dataset):
    """Pictures and captions, made on the fly.

    An item is a dict: `pixel_values` (3, size, size) in -1..1, `text`, and the `caption` itself with all its claims.
    `write` makes the caption from a random generator; its seed is the split's first seed plus the index.

    Raises:
        ValueError: no such split.
    """

    def __init__(
        self,
        length: int,
        split: str = "train",
        write: Callable[[np.random.Generator], Caption] = window_caption,
        size: int = 64,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}.")
        self.length, self.split, self.write, self.size = length, split, write, size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        caption = self.write(np.random.default_rng(SPLITS[self.split] + index))
        picture = torch.from_numpy(render_array(caption.scene, self.size)).permute(2, 0, 1) * 2 - 1
        return {"pixel_values": picture, "text": caption.text, "caption": caption}

    def batch(self, first: int, count: int) -> tuple[torch.Tensor, list[Caption]]:
        """Items `first` to `first + count` together: (count, 3, size, size) and their captions."""
        items = [self[(first + offset) % self.length] for offset in range(count)]
        return torch.stack([item["pixel_values"] for item in items]), [item["caption"] for item in items]
