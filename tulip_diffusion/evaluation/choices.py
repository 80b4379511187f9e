"""One picture and several captions of which one is right: does an encoder notice the detail in which they differ?

*FG-OVD's layout* (Bianchi et al., CVPR 2024): a COCO-like JSON file for each difficulty, with `images`, `categories`,
whose names are the captions, and `annotations` with a `bbox`, a `category_id` and ten `neg_category_ids`. As in later
work on CLIP, the box is cut out and its caption must be the most similar one. *The world's own*: a text of sixteen
things and its variants in which the colour of one thing is another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tulip_diffusion.data import open_image
from tulip_diffusion.scenes.render import Scene, render

from .encoders import Embeds
from .needles import hard_negatives
from .processes import shared
from .prompts import prompts_of
from .records import Mean, mean_over

TIE = 1e-6  # likenesses closer than this are of captions that the encoder does not tell apart


@dataclass(frozen=True)
class Choice:
    """A picture, or the part of one in `box` (left, top, right, bottom), and captions, the right one first."""

    picture: Path | Scene
    captions: tuple[str, ...]
    box: tuple[float, float, float, float] | None = None

    def image(self) -> Image.Image:
        """The picture in RGB, cut out where a box says so."""
        if isinstance(self.picture, Scene):
            return render(self.picture)
        image = open_image(self.picture)
        return image if self.box is None else image.crop(self.box)


def fg_ovd(file: Path, images: Path) -> list[Choice]:
    """The boxes of one FG-OVD file; `images` is COCO's folder, below which the file's names lie.

    Raises:
        ValueError: an annotation names an image or a caption that the file does not have, or has no negatives.
        FileNotFoundError: an image is missing.
    """
    told = json.loads(file.read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in told["categories"]}
    pictures = {image["id"]: found_below(images, image["file_name"]) for image in told["images"]}
    choices = []
    for annotation in told["annotations"]:
        ids = [annotation["category_id"], *annotation["neg_category_ids"]]
        unknown = [number for number in ids if number not in names]
        if unknown or annotation["image_id"] not in pictures or len(ids) < 2:
            raise ValueError(f"{file}: annotation {annotation.get('id')} names what is not there, or no negatives.")
        left, top, width, height = annotation["bbox"]
        box = (left, top, left + max(1, width), top + max(1, height))
        choices.append(Choice(pictures[annotation["image_id"]], tuple(names[number] for number in ids), box))
    if not choices:
        raise ValueError(f"{file} has no annotations.")
    return choices


def found_below(folder: Path, name: str) -> Path:
    """FG-OVD's names have their split before them ("val2017/1.jpg"); `folder` may be that split or the one above."""
    for candidate in (folder / name, folder / Path(name).name):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"{folder} has no image {name}.")


def world_choices(count: int, split: str = "evaluation") -> list[Choice]:
    """Full captions of the world with, as wrong ones, the same text with one colour exchanged, for every thing."""
    choices = []
    for number, caption in enumerate(prompts_of("full", count, split)):
        wrong = [text for _, text in hard_negatives(np.random.default_rng(number), caption)]
        if wrong:
            choices.append(Choice(caption.scene, (caption.text, *wrong)))
    return choices


def choice_accuracy(encoder: Embeds, choices: Sequence[Choice], name: str | None = None) -> dict[str, Any]:
    """Share of pictures nearest to their right caption; one of n captions that tie counts 1 / n.

    "chance" is what a blind guess gives.
    """

    def score(choice: Choice) -> float:
        image = encoder.encode_images([choice.image()])
        texts = encoder.encode_texts(choice.captions)
        compare = encoder.score or (lambda one, other: F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T)
        likeness = compare(image, texts)[0]
        level = int((likeness >= likeness[0] - TIE).sum())
        return 0.0 if likeness.max() > likeness[0] + TIE else 1 / level

    with torch.no_grad():
        right = shared(score, choices, name)
    chance = float(np.mean([1 / len(choice.captions) for choice in choices]))
    accuracy: Mean | None = mean_over(right, range(len(right)))
    return {"right": accuracy, "chance": chance}
