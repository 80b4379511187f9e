"""Published retrieval sets as they lie on disk: pairs of an image's path and a caption."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

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
    read_json,
)

CAPTIONS_PER_IMAGE = 5  # of COCO and Flickr30k
FOLDS = {"coco-karpathy-1k": 5}  # of 1,000 images each

Pair = tuple[Path, str]


def existing(path: Path, *usual: str) -> Path:
    """`path` if it is a file, else the first of its `usual` members that exists. Raises FileNotFoundError."""
    if path.is_file():
        return path
    for member in usual:
        if (path / member).exists():
            return Path(os.path.normpath(path / member))
    raise FileNotFoundError(f"{path} is missing, or holds none of {', '.join(usual)}.")


def folder_of(path: Path) -> Path:
    """The folder itself, or that of a file."""
    return path.parent if path.is_file() else path


def same_number(pairs: Iterable[Pair], source: Path, count: int = CAPTIONS_PER_IMAGE) -> list[Pair]:
    """`pairs`, if every image has `count` captions. Raises ValueError naming the first that has not."""
    pairs = list(pairs)
    for image, found in Counter(image for image, _ in pairs).items():
        if found != count:
            raise ValueError(f"{source} has {found} captions for {image}, expected {count}.")
    return pairs


def from_rows(rows: Iterable[Row], root: Path) -> Iterator[Pair]:
    """Rows of `tulip_diffusion.data`'s readers, none of which may be bad; image paths are relative to `root`."""
    return (pair_of(row, root) for row in rows)


def pair_of(row: Row, root: Path) -> Pair:
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
    """Files of `folder` in order, without what systems leave behind."""
    return sorted(file for file in folder.glob(pattern) if not is_litter(file.name))


def coco(path: Path, images: Path | None) -> Iterable[Pair]:
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
    return ((root / names[number], text) for number, texts in captions.items() for text in texts[:CAPTIONS_PER_IMAGE])


FLICKR_IMAGES = ("flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "images")


def flickr30k(path: Path, images: Path | None) -> Iterable[Pair]:
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
    return same_number(pairs, file)


def flickr30k_1k(path: Path, images: Path | None) -> Iterable[Pair]:
    """The 1,000 test images of Karpathy's split, by `dataset_flickr30k.json`."""
    file = existing(path, "dataset_flickr30k.json", "karpathy/dataset_flickr30k.json")
    root = images or existing(folder_of(path), *FLICKR_IMAGES)
    entries = read_json(file)["images"]
    test = [entry for entry in entries if entry["split"] == "test"]
    pairs = ((root / entry["filename"], sentence["raw"]) for entry in test for sentence in entry["sentences"])
    return same_number(pairs, file)


def coco_karpathy(path: Path, images: Path | None) -> list[Pair]:
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
    return same_number(pairs, file)


def coco_names(entry: dict) -> list[str]:
    """Where an image may lie below its folder: in its split's, as published, or in the folder itself."""
    return [f"{entry.get('filepath', '.')}/{entry['filename']}", entry["filename"]]


def coco_karpathy_1k(path: Path, images: Path | None) -> list[Pair]:
    """The same 5,000 images as five folds of 1,000, whose figures are averaged."""
    pairs, folds = coco_karpathy(path, images), FOLDS["coco-karpathy-1k"]
    count = len({image for image, _ in pairs})
    if count % folds:
        raise ValueError(f"{path} has {count} test images, which {folds} folds cannot share.")
    return pairs


def sharegpt4v_1k(path: Path, images: Path | None) -> Iterable[Pair]:
    """The first 1,000 entries of ShareGPT4V's captions of SAM images."""
    file = existing(path, "share-captioner_coco_lcs_sam_1246k_1107.json")
    root = images or existing(folder_of(path), "data", ".")
    return from_rows(islice(json_rows(file), 1000), root)


def urban_1k(path: Path, images: Path | None) -> Iterable[Pair]:
    """`image/NAME.jpg` and `caption/NAME.txt`, of which the first line counts."""
    captions, root = path / "caption", images or path / "image"
    if not captions.is_dir():
        raise FileNotFoundError(f"{captions} is missing: urban-1k has the folders image and caption.")
    described = {file.stem: file for file in files_of(captions, "*.txt")}
    for image in files_of(root, "*.jpg"):
        if image.stem not in described:
            raise ValueError(f"{image} has no caption {captions / image.stem}.txt.")
    return ((root / f"{name}.jpg", first_line(file)) for name, file in described.items())


def first_line(file: Path) -> str:
    """The first line of a text file, stripped."""
    return re.split(r"[\r\n]", text_of(file))[0].strip()


def long_dci(path: Path, images: Path | None) -> Iterable[Pair]:
    """A tab-separated `dci_long.csv` (filepath, title), or DCI's own annotations: `extra_caption` where not empty."""
    file = existing(path, "dci_long.csv", "annotations")
    if file.is_file():
        return from_rows(csv_rows(file), images or folder_of(path))
    root = images or existing(path, "photos")
    entries = [read_json(annotation) for annotation in files_of(file, "*.json")]
    return ((root / entry["image"], entry["extra_caption"]) for entry in entries if entry["extra_caption"])


def sdci(path: Path, images: Path | None) -> Iterator[Pair]:
    """DCI's captions as a language model has shortened them to CLIP's window: every one of the whole image (`base`).

    The test split of `splits.json`; as in DCI's own loader, an image without summaries is left out.
    """
    file = existing(path, "splits.json")
    root = images or file.parent / "photos"
    for name in read_json(file)["test"]:
        entry = read_json(file.parent / "complete" / name)
        captions = (entry.get("summaries") or {}).get("base") or []
        for caption in [captions] if isinstance(captions, str) else captions:
            yield root / entry["image"], caption


def docci(path: Path, images: Path | None) -> Iterable[Pair]:
    """DOCCI's test split, by `docci_descriptions.jsonlines`."""
    file = existing(path, "docci_descriptions.jsonlines")
    root = images or folder_of(path) / "images"
    test = (entry for entry in json_lines(file) if entry["split"] == "test")
    return ((root / entry["image_file"], entry["description"]) for entry in test)


def json_lines(file: Path) -> Iterator[dict]:
    """The object on every line. Raises ValueError, with the line's number, if one is no JSON."""
    for number, line in enumerate(text_of(file).split("\n"), start=1):
        try:
            if line.strip():
                yield json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} line {number} is not JSON: {error}.") from error


def any_jsonl(path: Path, images: Path | None) -> Iterable[Pair]:
    """One object a line: `image` and `caption`; several lines may name the same image."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return from_rows(jsonl_rows(path), images or path.parent)


LAYOUTS: dict[str, Callable[[Path, Path | None], Iterable[Pair]]] = {
    "coco": coco,
    "coco-karpathy-5k": coco_karpathy,
    "coco-karpathy-1k": coco_karpathy_1k,
    "flickr30k": flickr30k,
    "flickr30k-1k": flickr30k_1k,
    "sharegpt4v-1k": sharegpt4v_1k,
    "urban-1k": urban_1k,
    "long-dci": long_dci,
    "sdci": sdci,
    "docci": docci,
    "jsonl": any_jsonl,
}
