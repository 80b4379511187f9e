"""What ablations train on, and the held-out captions that they judge by."""

import numpy as np
from PIL import Image
from tqdm import tqdm

from tulip_diffusion.data import CaptionData
from tulip_diffusion.evaluation.datasets import WORLD
from tulip_diffusion.evaluation.prompts import prompts_of
from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import SPLITS, full_caption, window_caption
from tulip_diffusion.scenes.grammar import write_caption
from tulip_diffusion.scenes.render import PLACES, random_scene, render

FIRST_SEED = SPLITS["train"] + 700_000_000  # away from the scenes that the family was trained on
SETS = ("short", "long", "hard", "500 tokens")


class WorldPairs(CaptionData):
    """Captions of the world with pictures that are drawn when they are needed; `images` holds the scenes."""

    def image(self, index: int) -> Image.Image:
        """The picture of scene `index`, drawn now."""
        assert self.images is not None
        return render(self.images[index])


def ablation_caption(rng: np.random.Generator) -> Caption:
    """Three in ten fit CLIP's window, four have about 225 tokens, three have 300 to 1,000."""
    kind = rng.random()
    if kind < 0.3:
        return window_caption(rng)
    if kind < 0.7:
        return full_caption(rng)
    return write_caption(rng, random_scene(rng, PLACES), tokens=int(rng.integers(300, 1000)))


def training_pairs(count: int, seed: int) -> WorldPairs:
    """`count` captioned scenes that no evaluation shows; the same for the same `seed`."""
    first = FIRST_SEED + seed * 10_000_000
    captions = [
        ablation_caption(np.random.default_rng(first + number)) for number in tqdm(range(count), desc="captions")
    ]
    return WorldPairs([caption.text for caption in captions], [caption.scene for caption in captions])


def held_out(count: int, split: str) -> dict[str, list[Caption]]:
    """What every variant is judged on, by the names of `SETS`."""
    first = SPLITS[split]
    sets = {name: WORLD[f"world-{name}"](first, count) for name in ("short", "long", "hard")}
    return {**sets, "500 tokens": prompts_of("500", count, split)}
