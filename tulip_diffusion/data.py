"""Captions and the images they describe, from the formats people have them in.

All captions are read when the data is opened, and bad rows are sorted out there; an image is opened when it is used.
Every row can be reached by its number.
"""

import csv
import io
import json
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

logger = logging.getLogger(__name__)

NAMED_ROWS = 20  # bad rows that are named in the log before only their number is kept
FEWEST_JUDGED = 100  # rows to have seen before a share of bad ones means anything
CAPTION_KEYS = ("caption", "text", "title", "prompt")
IMAGE_KEYS = ("image", "filepath", "file_name", "path", "jpg", "png")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class BadRow(Exception):
    """A row that training cannot use; its message says why."""


@dataclass
class SkippedRows:
    """Counts unusable rows, names the first of them, and stops a run that meets too many."""

    max_share: float = 0.05
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, name: str, reason: object) -> None:
        self.skipped += 1
        if len(self.reasons) < NAMED_ROWS:
            self.reasons.append(f"{name}: {reason}")
            logger.warning("Skipped %s: %s", name, reason)

    def check(self, seen: int, final: bool = True) -> None:
        """Raise if more than `max_share` of `seen` rows were bad; before the end only once enough were seen."""
        if self.skipped > self.max_share * seen and (final or seen >= FEWEST_JUDGED):
            raise ValueError(
                f"{self.skipped} of {seen} rows cannot be used, more than the share of {self.max_share:g} that "
                f"max_bad_share allows. The first: {'; '.join(self.reasons[:3])}."
            )


@dataclass(frozen=True)
class TarMember:
    """An image inside a tar file: its bytes stand at `offset`."""

    tar: str
    offset: int
    size: int


@dataclass
class CaptionData:
    """Captions by number, and their images where there are any.

    `images` holds one reference a caption: a path, a [`TarMember`], or (a `datasets.Dataset`, its image column, row).
    `names` tells people which row is meant.
    """

    captions: list[str]
    images: list[Any] | None = None
    names: list[str] | None = None
    skipped: SkippedRows = field(default_factory=SkippedRows)

    def __len__(self) -> int:
        return len(self.captions)

    def name(self, index: int) -> str:
        return self.names[index] if self.names else f"row {index}"

    def image(self, index: int) -> Image.Image:
        """Row `index`'s picture in RGB. Raises `BadRow` if it is missing or broken."""
        if self.images is None:
            raise ValueError("This data has captions alone. Name an image_root, or a format that holds images.")
        try:
            return load_image(self.images[index]).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadRow(f"{self.name(index)}: {error}") from error


def load_image(reference: Any) -> Image.Image:
    if isinstance(reference, TarMember):
        with open(reference.tar, "rb") as file:
            file.seek(reference.offset)
            return Image.open(io.BytesIO(file.read(reference.size)))
    if isinstance(reference, tuple):
        dataset, column, row = reference
        value = dataset[row][column]
        if isinstance(value, dict):
            value = Image.open(io.BytesIO(value["bytes"]) if value.get("bytes") else value["path"])
        if not isinstance(value, Image.Image):
            raise ValueError(f"column {column!r} holds {type(value).__name__}, not an image")
        return value
    return Image.open(reference)


def inside(root: Path, path: str) -> Path:
    """`path` under `root`. A path that leads out of it is an attack or a mistake, so it stops the run.

    Links inside `root` are followed: whoever owns the folder put them there.

    Raises:
        ValueError: `path` leaves `root`.
    """
    base = os.path.abspath(root)
    full = os.path.normpath(os.path.join(base, path))
    if os.path.commonpath((base, full)) != base:
        raise ValueError(f"Image path {path!r} leaves the image root {base}. Correct the data, or name another root.")
    return Path(full)


def clean_caption(value: Any) -> str:
    """`value` without ShareGPT4V's <image> mark and outer white space. Raises `BadRow` if nothing is left."""
    if not isinstance(value, str):
        raise BadRow(f"its caption is {type(value).__name__}, not text")
    if not (caption := value.replace("<image>", " ").replace("\x00", " ").strip()):
        raise BadRow("its caption is empty")
    return caption


def first_value(row: dict, keys: Iterable[str]) -> Any:
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


Row = tuple[str, Any, Any]  # name, caption or BadRow, image path or reference


def sharegpt4v_rows(path: Path) -> Iterator[Row]:
    """ShareGPT4V as published: a JSON list of {"image", "conversations": [question, {"value": caption}]}."""
    for number, entry in enumerate(json.loads(path.read_bytes().decode("utf-8-sig", errors="replace"))):
        try:
            caption = entry["conversations"][1]["value"]
            yield f"{path.name} entry {number}", caption, entry.get("image")
        except (KeyError, IndexError, TypeError, AttributeError):
            yield f"{path.name} entry {number}", BadRow("it has no conversations[1].value"), None


def csv_rows(path: Path) -> Iterator[Row]:
    """Separated by tabs with a header, `filepath` and `title` in the TULIP and open_clip repositories."""
    csv.field_size_limit(10_000_000)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline().rstrip("\r\n")
        delimiter = "\t" if "\t" in header else ","
        columns = header.split(delimiter)
        for number, row in enumerate(csv.DictReader(file, fieldnames=columns, delimiter=delimiter), start=2):
            caption = first_value(row, CAPTION_KEYS)
            bad = BadRow("it has no caption") if caption is None else caption
            yield f"{path.name} line {number}", bad, first_value(row, IMAGE_KEYS)


def jsonl_rows(path: Path) -> Iterator[Row]:
    """One JSON object a line: a caption, and an image path where there is one."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield f"{path.name} line {number}", first_value(row, CAPTION_KEYS), first_value(row, IMAGE_KEYS)
            except (ValueError, AttributeError) as error:
                yield f"{path.name} line {number}", BadRow(f"it is not a JSON object ({error})"), None


def webdataset_rows(path: Path) -> Iterator[Row]:
    """webdataset shards: files of one name in a tar belong together, KEY.jpg with KEY.txt or KEY.json."""
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    for shard in shards:
        with tarfile.open(shard) as tar:
            samples: dict[str, dict[str, tarfile.TarInfo]] = {}
            for member in tar:
                key, dot, suffix = member.name.partition(".")
                if member.isfile() and dot:
                    samples.setdefault(key, {})["." + suffix.lower()] = member
            for key, members in samples.items():
                picture = next((members[suffix] for suffix in members if suffix in IMAGE_SUFFIXES), None)
                image = picture and TarMember(str(shard), picture.offset_data, picture.size)
                yield f"{shard.name} {key}", tar_caption(tar, members), image


def tar_caption(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> Any:
    def read(suffix: str) -> str:
        return tar.extractfile(members[suffix]).read().decode("utf-8-sig", errors="replace")  # type: ignore[union-attr]

    if ".txt" in members:
        return read(".txt")
    try:
        return first_value(json.loads(read(".json")), CAPTION_KEYS)
    except (KeyError, ValueError, AttributeError):
        return BadRow("it has no .txt, and no .json with a caption")


def huggingface_rows(source: str, split: str) -> Iterator[Row]:
    """A `datasets` data set: a folder that `save_to_disk` wrote, or whatever `load_dataset` takes."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Reading Hugging Face data sets needs: pip install 'tulip-diffusion[train]'.") from error
    dataset = datasets.load_from_disk(source) if Path(source).is_dir() else datasets.load_dataset(source, split=split)
    if isinstance(dataset, datasets.DatasetDict):
        dataset = dataset[split]
    caption_key = next((key for key in CAPTION_KEYS if key in dataset.column_names), None)
    image_key = next((key for key in IMAGE_KEYS if key in dataset.column_names), None)
    if caption_key is None:
        raise ValueError(f"{source} has none of the columns {CAPTION_KEYS}, but {dataset.column_names}.")
    if image_key and isinstance(dataset.features[image_key], datasets.Image):
        dataset = dataset.cast_column(image_key, datasets.Image(decode=False))
    for number, caption in enumerate(dataset.select_columns(caption_key)):
        yield f"{source} row {number}", caption[caption_key], image_key and (dataset, image_key, number)


READERS = {"sharegpt4v": sharegpt4v_rows, "csv": csv_rows, "jsonl": jsonl_rows, "webdataset": webdataset_rows}
SUFFIXES = {".json": "sharegpt4v", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".tar": "webdataset"}


def guess_format(source: str) -> str:
    path = Path(source)
    if path.is_dir() and any(path.glob("*.tar")):
        return "webdataset"
    return SUFFIXES.get(path.suffix.lower(), "datasets")


def open_captions(
    source: str,
    data_format: str = "auto",
    image_root: str | None = None,
    with_images: bool = False,
    split: str = "train",
    max_bad_share: float = 0.05,
) -> CaptionData:
    """Open captions of any supported format; without `with_images` no image is looked for.

    Args:
        source: a .json, .csv, .tsv, .jsonl or .tar file, a folder of .tar files, or a Hugging Face data set.
        data_format: "sharegpt4v", "csv", "jsonl", "webdataset", "datasets", or "auto" to go by the name.
        image_root: folder that image paths are relative to; the folder of `source` by default.
        split: which part of a Hugging Face data set.
        max_bad_share: share of rows that may be unusable.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an image path leaves `image_root`, too many rows are bad, or none is left.
    """
    data_format = guess_format(source) if data_format == "auto" else data_format
    if data_format in READERS and not Path(source).exists():
        raise FileNotFoundError(f"There is no caption data at {source}.")
    rows = huggingface_rows(source, split) if data_format == "datasets" else READERS[data_format](Path(source))
    root = Path(image_root) if image_root else Path(source).parent
    data = CaptionData([], [] if with_images else None, [], SkippedRows(max_bad_share))
    for name, caption, image in rows:
        add_row(data, name, caption, image, root)
    data.skipped.check(len(data) + data.skipped.skipped)
    if not data.captions:
        raise ValueError(f"{source} holds no usable caption.")
    return data


def add_row(data: CaptionData, name: str, caption: Any, image: Any, root: Path) -> None:
    """Append one row to `data`, or count it as skipped."""
    assert data.names is not None
    try:
        if isinstance(caption, BadRow):
            raise caption
        text = clean_caption(caption)
        if data.images is not None:
            if image is None:
                raise BadRow("it names no image")
            data.images.append(str(inside(root, image)) if isinstance(image, str) else image)
        data.captions.append(text)
        data.names.append(name)
    except BadRow as reason:
        data.skipped.add(name, reason)
