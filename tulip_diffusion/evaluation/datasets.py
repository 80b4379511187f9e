"""Retrieval sets as they lie on disk, and those of the world of `tulip_diffusion.scenes`, rendered on the fly.

Unlike training data, an evaluation set is whole or it is an error: one missing image changes the figure.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from tulip_diffusion.data import (
    BadRow,
    Row,
    clean_caption,
    csv_rows,
    decode,
    image_path,
    inside,
    is_litter,
    json_rows,
    jsonl_rows,
    open_image,
    read_json,
)
from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import SPLITS, full_caption, window_caption
from tulip_diffusion.scenes.grammar import write_caption
from tulip_diffusion.scenes.render import PLACES, Scene, Thing, random_scene, render
from tulip_diffusion.scenes.sprites import COLOURS

CAPTIONS_PER_IMAGE = 5  # of COCO and Flickr30k
KARPATHY_FOLDS = 5  # of 1,000 images each
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
        data = LAYOUTS[name](Path(path), None if images is None else Path(images))
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
    return replace(data, name=name)


def existing(path: Path, *usual: str) -> Path:
    """`path` if it is a file, else the first of its `usual` members that exists. Raises FileNotFoundError."""
    if path.is_file():
        return path
    for member in usual:
        if (path / member).exists():
            return Path(os.path.normpath(path / member))
    raise FileNotFoundError(f"{path} is missing, or holds none of {', '.join(usual)}.")


def folder_of(path: Path) -> Path:
    return path.parent if path.is_file() else path


def grouped(pairs: Iterable[tuple[Path, str]]) -> RetrievalSet:
    """Pairs of image and caption; an image that comes again is the same image with a further caption."""
    numbers: dict[Path, int] = {}
    captions, image_of_text = [], []
    for image, caption in pairs:
        image_of_text.append(numbers.setdefault(image, len(numbers)))
        captions.append(caption)
    return RetrievalSet("", list(numbers), captions, image_of_text)


def same_number(data: RetrievalSet, source: Path, count: int = CAPTIONS_PER_IMAGE) -> RetrievalSet:
    """`data`, if every image has `count` captions. Raises ValueError naming the first that has not."""
    for image, found in enumerate(np.bincount(data.image_of_text, minlength=len(data.images))):
        if found != count:
            raise ValueError(f"{source} has {found} captions for {data.images[image]}, expected {count}.")
    return data


def from_rows(rows: Iterable[Row], root: Path) -> RetrievalSet:
    """Rows of `tulip_diffusion.data`'s readers, none of which may be bad; image paths are relative to `root`."""
    return grouped(pair_of(row, root) for row in rows)


def pair_of(row: Row, root: Path) -> tuple[Path, str]:
    """A row's image, under `root`, and its caption. Raises ValueError, with the row's name, if it has not both."""
    try:
        text = clean_caption(row.caption)
        return inside(root, image_path(row.image)), text
    except BadRow as reason:
        raise ValueError(f"{row.name} cannot be evaluated: {reason}.") from reason


def text_of(file: Path) -> str:
    """The text of a file. Raises ValueError if it is not UTF-8, or UTF-16 that says so."""
    try:
        return clean_caption(decode(file.read_bytes()))
    except BadRow as reason:
        raise ValueError(f"{file} cannot be evaluated: {reason}.") from reason


def files_of(folder: Path, pattern: str) -> list[Path]:
    return sorted(file for file in folder.glob(pattern) if not is_litter(file.name))


def coco(path: Path, images: Path | None) -> RetrievalSet:
    """COCO val2017 by captions_val2017.json: images in the order of their ids, the first five captions of each."""
    file = existing(path, "annotations/captions_val2017.json", "captions_val2017.json")
    annotations = read_json(file)
    root = images or existing(folder_of(path), "val2017", "../val2017", "images")
    names = {image["id"]: image["file_name"] for image in annotations["images"]}
    captions: dict[int, list[str]] = {number: [] for number in sorted(names)}
    for annotation in annotations["annotations"]:
        if annotation["image_id"] not in captions:
            raise ValueError(f"{file} has a caption for image {annotation['image_id']}, which it does not list.")
        captions[annotation["image_id"]].append(annotation["caption"])
    for number, texts in captions.items():
        if len(texts) < CAPTIONS_PER_IMAGE:
            raise ValueError(f"{file} has {len(texts)} captions for {names[number]}, expected {CAPTIONS_PER_IMAGE}.")
    return grouped(
        (root / names[number], text) for number, texts in captions.items() for text in texts[:CAPTIONS_PER_IMAGE]
    )


FLICKR_IMAGES = ("flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "images")


def flickr30k(path: Path, images: Path | None) -> RetrievalSet:
    """All 31,783 images, by `results.csv` ("image_name| comment_number| comment") or `results_20130124.token`."""
    file = existing(path, "results.csv", "results_20130124.token")
    root = images or existing(folder_of(path), *FLICKR_IMAGES)
    lines = text_of(file).split("\n")
    if file.suffix == ".csv":
        # One line of the published file lacks its second bar: "2199200615.jpg| 4   A dog runs across the grass ."
        rows, pattern = lines[1:], re.compile(r"(?P<image>[^|]+)\|\s*\d+\s*(?:\||\s)\s*(?P<caption>.+)")
    else:
        rows, pattern = lines, re.compile(r"(?P<image>[^#\t]+)#\d+\t(?P<caption>.+)")
    pairs = []
    for line in filter(str.strip, rows):
        if (match := pattern.fullmatch(line.rstrip())) is None:
            raise ValueError(f"{file} has a line without image, number and caption: {line[:80]!r}.")
        pairs.append((root / match["image"].strip(), match["caption"].strip()))
    return same_number(grouped(pairs), file)


def flickr30k_1k(path: Path, images: Path | None) -> RetrievalSet:
    """The 1,000 test images of Karpathy's split, by `dataset_flickr30k.json`."""
    file = existing(path, "dataset_flickr30k.json", "karpathy/dataset_flickr30k.json")
    root = images or existing(folder_of(path), *FLICKR_IMAGES)
    entries = read_json(file)["images"]
    test = [entry for entry in entries if entry["split"] == "test"]
    pairs = ((root / entry["filename"], sentence["raw"]) for entry in test for sentence in entry["sentences"])
    return same_number(grouped(pairs), file)


def coco_karpathy(path: Path, images: Path | None) -> RetrievalSet:
    """The 5,000 test images of Karpathy's split, by `dataset_coco.json`, the first five captions of each."""
    file = existing(path, "dataset_coco.json", "karpathy/dataset_coco.json")
    root = images or folder_of(path)
    pairs = []
    for entry in read_json(file)["images"]:
        if entry["split"] == "test":
            image = next(
                (root / name for name in coco_names(entry) if (root / name).is_file()), root / entry["filename"]
            )
            pairs += [(image, sentence["raw"]) for sentence in entry["sentences"][:CAPTIONS_PER_IMAGE]]
    return same_number(grouped(pairs), file)


def coco_names(entry: dict) -> list[str]:
    """Where an image may lie below its folder: in its split's, as published, or in the folder itself."""
    return [f"{entry.get('filepath', '.')}/{entry['filename']}", entry["filename"]]


def coco_karpathy_1k(path: Path, images: Path | None) -> RetrievalSet:
    """The same 5,000 images as five folds of 1,000, whose figures are averaged."""
    data = coco_karpathy(path, images)
    if len(data.images) % KARPATHY_FOLDS:
        raise ValueError(f"{path} has {len(data.images)} test images, which {KARPATHY_FOLDS} folds cannot share.")
    return replace(data, folds=KARPATHY_FOLDS)


def sharegpt4v_1k(path: Path, images: Path | None) -> RetrievalSet:
    """The first 1,000 entries of ShareGPT4V's captions of SAM images."""
    file = existing(path, "share-captioner_coco_lcs_sam_1246k_1107.json")
    root = images or existing(folder_of(path), "data", ".")
    return from_rows(islice(json_rows(file), 1000), root)


def urban_1k(path: Path, images: Path | None) -> RetrievalSet:
    """`image/NAME.jpg` and `caption/NAME.txt`, of which the first line counts."""
    captions, root = path / "caption", images or path / "image"
    if not captions.is_dir():
        raise FileNotFoundError(f"{captions} is missing: urban-1k has the folders image and caption.")
    described = {file.stem: file for file in files_of(captions, "*.txt")}
    for image in files_of(root, "*.jpg"):
        if image.stem not in described:
            raise ValueError(f"{image} has no caption {captions / image.stem}.txt.")
    return grouped((root / f"{name}.jpg", first_line(file)) for name, file in described.items())


def first_line(file: Path) -> str:
    return re.split(r"[\r\n]", text_of(file))[0].strip()


def long_dci(path: Path, images: Path | None) -> RetrievalSet:
    """A tab-separated `dci_long.csv` (filepath, title), or DCI's own annotations: `extra_caption` where not empty."""
    file = existing(path, "dci_long.csv", "annotations")
    if file.is_file():
        return from_rows(csv_rows(file), images or folder_of(path))
    root = images or existing(path, "photos")
    entries = [read_json(annotation) for annotation in files_of(file, "*.json")]
    return grouped((root / entry["image"], entry["extra_caption"]) for entry in entries if entry["extra_caption"])


def docci(path: Path, images: Path | None) -> RetrievalSet:
    """DOCCI's test split, by `docci_descriptions.jsonlines`."""
    file = existing(path, "docci_descriptions.jsonlines")
    root = images or folder_of(path) / "images"
    test = (entry for entry in json_lines(file) if entry["split"] == "test")
    return grouped((root / entry["image_file"], entry["description"]) for entry in test)


def json_lines(file: Path) -> Iterator[dict]:
    """The object on every line. Raises ValueError, with the line's number, if one is no JSON."""
    for number, line in enumerate(text_of(file).split("\n"), start=1):
        try:
            if line.strip():
                yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} line {number} is not JSON: {error}.") from error


def any_jsonl(path: Path, images: Path | None) -> RetrievalSet:
    """One object a line: `image` and `caption`; several lines may name the same image."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return from_rows(jsonl_rows(path), images or path.parent)


LAYOUTS: dict[str, Callable[[Path, Path | None], RetrievalSet]] = {
    "coco": coco,
    "coco-karpathy-5k": coco_karpathy,
    "coco-karpathy-1k": coco_karpathy_1k,
    "flickr30k": flickr30k,
    "flickr30k-1k": flickr30k_1k,
    "sharegpt4v-1k": sharegpt4v_1k,
    "urban-1k": urban_1k,
    "long-dci": long_dci,
    "docci": docci,
    "jsonl": any_jsonl,
}


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
    return lambda first, count: [write(np.random.default_rng(first + index)) for index in range(count)]


def groups(late: bool) -> Callable[[int, int], list[Caption]]:
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
