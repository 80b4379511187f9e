"""The formats of captions, and what a name stands for: files, folders or a data set of one of them."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from .cache import file_state
from .hub import huggingface_rows, image_cells, load_dataset
from .images import IMAGE_SUFFIXES
from .records import folder_rows, imagefolder_rows, json_rows, jsonl_rows, metadata_files, txt_rows
from .rows import Row
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
    """Files or folders of one format, the folder of their image paths, and the data set where they are one."""

    format: str
    files: list[str]
    root: Path
    dataset: Any = None

    def state(self) -> str:
        """What changes when the source does."""
        return self.dataset._fingerprint if self.dataset is not None else file_state(*map(Path, self.files))

    def cells(self) -> tuple[Any, str] | None:
        """The data set and its column of images, if it has one."""
        return None if self.dataset is None else image_cells(self.dataset)

    def rows(self, split: str, with_images: bool) -> Iterator[Row]:
        """The rows of all files, good and bad, in order."""
        if self.dataset is not None:
            return huggingface_rows(self.dataset, self.files[0])  # one data set, however many files it has
        return chain.from_iterable(self.rows_of(file, split, with_images) for file in self.files)

    def rows_of(self, file: str, split: str, with_images: bool) -> Iterator[Row]:
        """The rows of one file."""
        path = Path(file)
        match self.format:
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
    """What `source` names; a data set is loaded.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is a file or folder of no known format, a data set that cannot be loaded, or on another machine.
    """
    if is_remote(source):
        raise ValueError(f"{source} is on another machine. Add --stream to read it as it comes.")
    found = named_source(source, data_format, split)
    return replace(found, dataset=load_dataset(found.files, split)) if found.format == "datasets" else found


def named_source(source: str, data_format: str, split: str) -> Source:
    """What `source` names; a data set is not loaded, and nothing fetched from a URL, yet. Raises as `find_source`."""
    if data_format not in ("auto", *FORMATS):
        raise ValueError(f"The data format must be auto or one of {', '.join(FORMATS)}, got {data_format!r}.")
    if is_remote(source):
        return remote_source(source, data_format)
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
    return Source(found or refuse_name(source), files, Path(files[0]).parent)


def refuse_name(source: str) -> NoReturn:
    known = ", ".join(SUFFIXES)
    raise ValueError(f"{source} ends in none of {known}. Rename it, or say what it is with --data-format.")


def is_remote(source: str) -> bool:
    """Whether `source` is a URL that fsspec may know: https://…, s3://…, hf://…"""
    return "://" in source


def remote_source(url: str, data_format: str) -> Source:
    """The files that a URL names, with braces or stars in it or not.

    Raises:
        ValueError: nobody knows such URLs, or how its files are written.
        FileNotFoundError: its stars match nothing.
    """
    from fsspec.core import url_to_fs

    files = expand_braces(url)
    found = format_of(urlsplit(files[0]).path) if data_format == "auto" else data_format
    if found is None:
        refuse_name(url)
    if url.startswith(("http://", "https://")):
        if "*" in url:
            raise ValueError(f"{url} has a star, but a web server does not list its files: write {{000..099}} for it.")
        return Source(found, files, Path())
    try:
        system, _ = url_to_fs(files[0])
        if "*" in url:
            files = [system.unstrip_protocol(match) for each in files for match in sorted(system.glob(each))]
    except (ValueError, ImportError, OSError) as error:
        raise ValueError(f"{url} cannot be read: {str(error).rstrip('.')}.") from error
    if not files:
        raise FileNotFoundError(f"There is no caption data at {url}.")
    return Source(found, files, Path())


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
