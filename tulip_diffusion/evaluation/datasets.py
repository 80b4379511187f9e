"""Retrieval sets as they lie on disk, and those of the world of `tulip_diffusion.scenes`, rendered on the fly.

Unlike training data, an evaluation set is whole or it is an error: one missing image changes the figure.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from tulip_diffusion.data import BadRow, clean_caption, open_image
from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import SPLITS, full_caption, window_caption
from tulip_diffusion.scenes.grammar import write_caption
from tulip_diffusion.scenes.render import PLACES, Scene, Thing, random_scene, render
from tulip_diffusion.scenes.sprites import COLOURS

from .retrieval_sets import FOLDS, LAYOUTS, Pair

HARD_GROUP = 4  # captions that differ from each other in one detail alone


@dataclass(frozen=True)
class RetrievalSet:
    """Images and captions; caption t belongs to image `image_of_text[t]`. An image is a path or a scene to render."""

    name: str
    images: list[Path | Scene]
    captions: list[str]
    image_of_text: list[int]
    folds: int = 1  # parts of equal size among which alone is searched; figures are their mean

    def picture(self, index: int) -> Image.Image:
        """Image `index` in RGB, as training sees it. Raises `ValueError` for a file that is no image."""
        image = self.images[index]
        if isinstance(image, Scene):
            return render(image)
        try:
            return open_image(image)
        except (OSError, ValueError) as error:
            raise ValueError(f"{image} of {self.name} is not an image that can be read: {error}") from error

    def image_identity(self, index: int) -> str:
        """Changes when the picture does: a scene's content, or a file's path, size and time."""
        image = self.images[index]
        if isinstance(image, Scene):
            return repr(image)
        state = image.stat()
        return f"{image.resolve()} {state.st_size} {state.st_mtime_ns}"


def load_retrieval_set(name: str, path: str | Path, images: str | Path | None = None) -> RetrievalSet:
    """Open a data set by its name, a key of `LAYOUTS`.

    `path` is the data set's folder or its annotation file, `images` the folder with its images where that is not in
    its usual place.

    Raises:
        ValueError: no such data set, or its files contradict each other.
        FileNotFoundError: an annotation file, a folder or an image is missing.
    """
    if name not in LAYOUTS:
        raise ValueError(f"The data set must be one of {', '.join(LAYOUTS)}, got {name!r}.")
    try:
        data = grouped(LAYOUTS[name](Path(path), None if images is None else Path(images)))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not written as {name} is ({type(error).__name__}: {error}).") from error
    missing = [str(image) for image in data.images if isinstance(image, Path) and not image.is_file()]
    if missing:
        others = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{name} names an image that is not there: {missing[0]}{others}.")
    if not data.captions:
        raise ValueError(f"{path} holds no caption of {name}.")
    for image, caption in zip(data.image_of_text, data.captions, strict=True):
        try:
            clean_caption(caption)
        except BadRow as reason:
            raise ValueError(f"{path} cannot be evaluated: {reason} ({data.images[image]}).") from reason
    return replace(data, name=name, folds=FOLDS.get(name, 1))


def grouped(pairs: Iterable[Pair]) -> RetrievalSet:
    """Pairs of image and caption; an image that comes again is the same image with a further caption."""
    numbers: dict[Path, int] = {}
    captions, image_of_text = [], []
    for image, caption in pairs:
        image_of_text.append(numbers.setdefault(image, len(numbers)))
        captions.append(caption)
    return RetrievalSet("", list(numbers), captions, image_of_text)


def mixed_caption(rng: np.random.Generator) -> Caption:
    """Sixteen things, each in long or in short wording: about 165 tokens."""
    return write_caption(rng, random_scene(rng, PLACES), "mixed")


def one_detail_apart(seed: int, late: bool) -> list[Caption]:
    """`HARD_GROUP` full captions that are the same but for the colour of one thing, told late or early.

    Late is one of the last four things told, behind token 150 or so; early one of the first four.
    """
    rng = np.random.default_rng(seed)
    scene, words = random_scene(rng, PLACES), int(rng.integers(2**31))
    told = sorted(write_caption(np.random.default_rng(words), scene).claims, key=lambda claim: claim.tokens)
    claim = (told[-4:] if late else told[:4])[int(rng.integers(4))]
    others = [colour for colour in COLOURS if colour != claim.thing.colour]
    captions = []
    for colour in (claim.thing.colour, *rng.permutation(others)[: HARD_GROUP - 1]):
        things = list(scene.things)
        things[claim.place] = Thing(claim.thing.kind, str(colour))
        changed = Scene(scene.cabinet, tuple(things))
        captions.append(write_caption(np.random.default_rng(words), changed))  # the same words: colours draw nothing
    return captions


def single(write: Callable[[np.random.Generator], Caption]) -> Callable[[int, int], list[Caption]]:
    """`first` and `count` to captions, each of its own seed."""
    return lambda first, count: [write(np.random.default_rng(first + index)) for index in range(count)]


def groups(late: bool) -> Callable[[int, int], list[Caption]]:
    """`first` and `count` to captions in groups that differ in one detail."""

    def captions(first: int, count: int) -> list[Caption]:
        return [c for index in range(-(-count // HARD_GROUP)) for c in one_detail_apart(first + index, late)][:count]

    return captions


WORLD: dict[str, Callable[[int, int], list[Caption]]] = {
    "world-long": single(full_caption),
    "world-mixed": single(mixed_caption),
    "world-short": single(window_caption),
    "world-hard": groups(late=True),
    "world-hard-early": groups(late=False),
}


def world_set(name: str, count: int, split: str = "evaluation") -> RetrievalSet:
    """`count` pictures with one caption each, always the same ones.

    "world-long" has about 230 tokens a caption, "world-mixed" 165, "world-short" at most 77; "world-hard" and
    "world-hard-early" are groups of captions that differ in one detail, see [`one_detail_apart`].

    Raises:
        ValueError: no such set or split.
    """
    if name not in WORLD or split not in SPLITS:
        raise ValueError(f"Got {name!r} ({split!r}), expected one of {', '.join(WORLD)} and of {', '.join(SPLITS)}.")
    captions = WORLD[name](SPLITS[split], count)
    return RetrievalSet(name, [c.scene for c in captions], [c.text for c in captions], list(range(count)))
