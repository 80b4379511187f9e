"""Captions and pictures on disk, in a form that `tulip-diffusion train …` reads: the long stages' training data."""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import MOST_THINGS, REFERENCES, SPLITS, window_caption
from tulip_diffusion.scenes.grammar import choose, landmark_scene, write_caption
from tulip_diffusion.scenes.render import PLACES, random_scene, render

FIRST_SEED = SPLITS["train"] + 500_000_000  # away from the scenes of the other parts


def training_caption(rng: np.random.Generator, references: float = REFERENCES["colour"]) -> Caption:
    """Three captions in ten fit CLIP's window; the others have up to 16 things, one in four up to 520 tokens.

    `references` is the share of things with another's colour in those captions that refer, seven in ten.
    """
    kind = rng.random()
    if kind < 0.3:
        return window_caption(rng)
    things = int(rng.integers(6, PLACES + 1))
    refers = rng.random() < 0.7
    scene = landmark_scene(rng, things) if refers else random_scene(rng, things)
    wording = choose(rng, tuple(MOST_THINGS))
    tokens = int(rng.integers(200, 520)) if kind > 0.75 else None
    roles = {**REFERENCES, "colour": references} if refers else None
    return write_caption(rng, scene, wording, roles, cabinet=rng.random() < 0.8, tokens=tokens)


def main(arguments: list[str] | None = None) -> None:
    """Write captions.jsonl and its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/embedded/captions"))
    parser.add_argument("--count", type=int, default=8000)
    parser.add_argument(
        "--references", type=float, default=REFERENCES["colour"], help="how much captions refer, 0 to 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    (options.out / "pictures").mkdir(parents=True, exist_ok=True)
    partial = options.out / "captions.jsonl.part"
    with partial.open("w", encoding="utf-8") as file:
        for number in tqdm(range(options.count), desc="captions"):
            caption = training_caption(
                np.random.default_rng(FIRST_SEED + options.seed * 10_000_000 + number), options.references
            )
            name = f"pictures/{number:06d}.png"
            render(caption.scene).save(options.out / name)
            file.write(json.dumps({"caption": caption.text, "image": name}) + "\n")
    partial.replace(options.out / "captions.jsonl")


if __name__ == "__main__":
    main()
