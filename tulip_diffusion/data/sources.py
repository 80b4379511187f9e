"""Opening captions and images from the formats people have them in.

All captions are read when the data is opened, and bad rows are sorted out there; an image is opened when it is used.
Every row can be reached by its number.
"""

import glob
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from .captions import CaptionData, inside
from .hub import huggingface_rows
from .images import IMAGE_SUFFIXES
from .records import folder_rows, imagefolder_rows, json_rows, jsonl_rows, metadata_files, txt_rows
from .rows import BadRow, Row, SkippedRows, clean_caption, image_path
from .tables import csv_rows
from .tars import TAR_SUFFIXES, expand_braces, webdataset_rows
from .text import is_litter

FORMATS = ("sharegpt4v", "json", "csv", "jsonl", "txt", "webdataset", "folder", "datasets")
SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".jsonlines": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "txt",
    ".parquet": "datasets",
    ".arrow": "datasets",
    **dict.fromkeys(TAR_SUFFIXES, "webdataset"),
}


@dataclass(frozen=True)
class Source:
    """What a name stands for: files or folders of one format, and the folder that image paths are relative to."""

    format: str
    files: list[str]
    root: Path

    def rows(self, split: str, with_images: bool) -> Iterator[Row]:
        return chain.from_iterable(self.rows_of(file, split, with_images) for file in self.files)

    def rows_of(self, file: str, split: str, with_images: bool) -> Iterator[Row]:
        path = Path(file)
        match self.format:
            case "datasets":
                return huggingface_rows(file, split)
            case "webdataset":
                return webdataset_rows(path, with_images)
            case "imagefolder":
                return imagefolder_rows(path, self.root)
            case "json" | "sharegpt4v":
                return json_rows(path, split)
            case "csv":
                return csv_rows(path)
            case "jsonl":
                return jsonl_rows(path)
            case "folder":
                return folder_rows(path)
            case _:
                return txt_rows(path)


def format_of(file: str) -> str | None:
    """The format that a file's name ends in, .gz or not."""
    name = file.lower()
    by_suffix = (found for suffix, found in SUFFIXES.items() if name.endswith(suffix))
    return next(by_suffix, None) or (format_of(name.removesuffix(".gz")) if name.endswith(".gz") else None)


def find_source(source: str, data_format: str, split: str) -> Source:
    """What `source` names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a file or folder of no known format.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return folder_source(path, data_format, split)
    files = [str(path)] if path.exists() else matching(str(path))
    missing = next((file for file in files if not Path(file).exists()), None)
    found = format_of(source) if data_format == "auto" else data_format
    if missing or (not files and (found not in (None, "datasets") or looks_local(source))):
        raise FileNotFoundError(f"There is no caption data at {missing or source}.")
    if not files:
        return Source("datasets", [source], Path())
    if found is None:
        known = ", ".join(SUFFIXES)
        raise ValueError(f"{source} ends in none of {known}. Rename it, or say what it is with --data-format.")
    return Source(found, files, Path(files[0]).parent)


def matching(pattern: str) -> list[str]:
    """Files that a pattern with braces or stars names, in order; none if it is no pattern."""
    expanded = expand_braces(pattern)
    if len(expanded) > 1 and not glob.has_magic(expanded[0]):
        return expanded
    return sorted(found for part in expanded for found in glob.glob(part)) if glob.has_magic(pattern) else []


def looks_local(source: str) -> bool:
    """Whether a name that no file has can only have been meant as a path: the Hub knows NAME and OWNER/NAME."""
    parts = source.split("/")
    return (
        len(parts) > 2
        or source.startswith((".", "~", "/"))
        or "\\" in source
        or (len(parts) == 2 and Path(parts[0]).is_dir())
        or format_of(source) is not None
    )


def folder_source(folder: Path, data_format: str, split: str) -> Source:
    """What lies in `folder`: shards, a saved data set, an image folder, files of one format, or images and texts."""
    if data_format == "auto" and any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        return Source("datasets", [str(folder)], folder)
    if data_format in ("auto", "folder") and (metadata := metadata_files(folder, split)):
        return Source("imagefolder", [str(file) for file in metadata], folder)
    names = sorted(file.name for file in folder.iterdir() if not is_litter(file.name))
    pictures = {Path(name).stem for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}
    by_format: dict[str, list[str]] = {}
    for name in names:
        found = format_of(name)
        if found and Path(name).stem not in pictures:
            by_format.setdefault(found, []).append(str(folder / name))
    if pictures or len(by_format) > 1:
        by_format.pop("txt", None)  # captions beside images, or a README.txt
    if data_format == "auto":
        data_format = "webdataset" if "webdataset" in by_format else next(iter(by_format), "folder")
        if data_format != "webdataset" and len(by_format) > 1:
            raise ValueError(f"{folder} holds files of several formats, {', '.join(by_format)}. Name one file.")
        if data_format == "folder" and any(folder.rglob("*.parquet")):
            data_format = "datasets"
    if data_format in ("folder", "datasets"):
        return Source(data_format, [str(folder)], folder)
    return Source(data_format, by_format.get(data_format, []), folder)


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
        source: a .json, .jsonl, .csv, .tsv, .txt, .tar or .parquet file (text also as .gz), a pattern of such files
            with braces or stars, a folder of them, a folder of images with text files beside them, a Hugging Face
            image folder, or a data set that `datasets` loads. What exists here is never looked for on the Hub.
        data_format: one of `FORMATS`, or "auto" to go by the name.
        image_root: folder that image paths are relative to; the folder of `source` by default.
        split: which part of a Hugging Face data set, or of a JSON object of lists.
        max_bad_share: share of rows that may be unusable, 0 to 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the format is not known, a file is broken, an image path leaves `image_root`, too many rows are
            bad, or none is left.
    """
    if data_format not in ("auto", *FORMATS):
        raise ValueError(f"The data format must be auto or one of {', '.join(FORMATS)}, got {data_format!r}.")
    found = find_source(source, data_format, split)
    root = Path(image_root) if image_root else found.root
    data = CaptionData([], [] if with_images else None, [], SkippedRows(max_bad_share))
    try:
        for row in found.rows(split, with_images):
            add_row(data, row, root)
    except (EOFError, zlib.error, UnicodeError) as error:
        raise ValueError(f"{source} is broken: {error}. Fetch or write it again.") from error
    data.skipped.check(len(data) + data.skipped.skipped)
    if not data.captions:
        raise ValueError(f"{source} holds no usable caption.")
    return data


def add_row(data: CaptionData, row: Row, root: Path) -> None:
    """Append one row to `data`, or count it as skipped."""
    try:
        text = clean_caption(row.caption)
        if data.images is not None:
            image = image_path(row.image)
            data.images.append(str(inside(root, image)) if isinstance(image, str) else image)
        data.captions.append(text)
        data.names.append(row.name)
    except BadRow as reason:
        data.skipped.add(row.name, reason)
