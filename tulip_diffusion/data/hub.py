"""Data sets of Hugging Face's `datasets`, whole or streamed: from the Hub, from `save_to_disk`, from Parquet files."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .rows import CAPTION_KEYS, IMAGE_KEYS, BadRow, Row, find_key

PARQUET_ROWS = 256  # that are read at once


@dataclass(frozen=True)
class Cell:
    """An image in a column of a `datasets.Dataset`."""

    dataset: Any
    column: str
    row: int

    def read(self) -> bytes | str:
        """Its bytes, or the path of its file. Raises ValueError if there is neither."""
        value = image_content(self.dataset[self.row][self.column])
        if not isinstance(value, bytes | str):
            raise ValueError(f"column {self.column!r} holds {type(value).__name__}, not an image")
        return value


def image_content(value: Any) -> Any:
    """The bytes of an image as `datasets` stores one, or the path of its file; anything else as it is."""
    return value.get("bytes") or value.get("path") if isinstance(value, dict) else value


def need_datasets() -> Any:
    """The library `datasets`. Raises ImportError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Reading Hugging Face data sets needs: pip install '.[train]', in a clone of this project."
        ) from error
    return datasets


def load_dataset(files: list[str], split: str) -> Any:
    """The `datasets.Dataset` in Parquet or Arrow `files`, or that the only one of them names.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: there is no such data set or split, or it is broken.
    """
    datasets = need_datasets()
    source, path = files[0], Path(files[0])
    try:
        if path.suffix == ".arrow":
            return datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=files, split="train")
        saved = path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json"))
        dataset = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, split=split)
    except Exception as error:  # the library's own, pyarrow's, the network's
        place = "" if path.exists() else " from the Hub; no file or folder here has that name either"
        raise ValueError(f"{source} could not be loaded{place}: {error}") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise ValueError(f"{source} has the splits {', '.join(dataset)}, but not {split!r}.")
        dataset = dataset[split]
    return dataset


def load_stream(source: str, split: str, epoch: int, with_images: bool) -> Any:
    """The `datasets.IterableDataset` of a Parquet file, of a folder or of a data set on the Hub, in an epoch's order.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: there is no such data set or split, or it is broken.
    """
    datasets = need_datasets()
    try:
        if is_parquet(source):
            dataset = datasets.load_dataset("parquet", data_files=source, split="train", streaming=True)
        else:
            dataset = datasets.load_dataset(source, split=split, streaming=True)
            dataset.set_epoch(epoch)
    except Exception as error:  # the library's own, pyarrow's, the network's
        raise ValueError(f"{source} could not be streamed: {error}") from error
    if dataset.column_names is None:  # not known before the first row
        return dataset
    caption, image = columns_of(tuple(dataset.column_names))
    if image and isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    return dataset.select_columns([caption, image] if with_images and image else [caption])


def is_parquet(source: str) -> bool:
    return urlsplit(source).path.lower().endswith(".parquet")


def parquet_rows(file: Path, with_images: bool) -> Iterator[Row]:
    """Rows of one Parquet file; images are in memory, or paths."""
    number = 0
    for columns in load_stream(str(file), "train", 0, with_images).iter(PARQUET_ROWS):
        rows = column_rows(columns, file.name, number)
        number += len(rows)
        yield from rows


def column_rows(columns: dict[str, list], name: str, first: int) -> list[Row]:
    """Neighbouring rows of a data set, the first of which is number `first` of what people know as `name`."""
    caption, image = columns_of(tuple(columns))
    images = columns[image] if image else [None] * len(columns[caption])
    names = [f"{name} row {number}" for number, _ in enumerate(images, start=first)]
    return list(map(Row, names, columns[caption], map(in_memory, images)))


def in_memory(value: Any) -> Any:
    """An image out of a column: what has `read()`, or a path."""
    content = image_content(value)
    return io.BytesIO(content) if isinstance(content, bytes) else content


def columns_of(columns: tuple[str, ...]) -> tuple[str, str | None]:
    """The columns of captions and of images. Raises ValueError if there is none for captions, or two."""
    try:
        caption, image = find_key(columns, CAPTION_KEYS), find_key(columns, IMAGE_KEYS)
    except BadRow as reason:
        raise ValueError(f"The columns of the data set are ambiguous: {reason}.") from reason
    if caption is None:
        raise ValueError(f"The data set has none of the columns {', '.join(CAPTION_KEYS)}, but {', '.join(columns)}.")
    return caption, image


def image_cells(dataset: Any) -> tuple[Any, str] | None:
    """`dataset` with its column of images as bytes, and the column's name; None if it has none, or one of paths."""
    import datasets

    _, image = columns_of(tuple(dataset.column_names))
    if image is None or dataset.features[image] == datasets.Value("string"):
        return None
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    return dataset, image


def huggingface_rows(dataset: Any, name: str) -> Iterator[Row]:
    """Rows of a data set; images are [`Cell`]s of its column of images, or paths."""
    caption, image = columns_of(tuple(dataset.column_names))
    cells = image_cells(dataset)
    wanted = [caption, image] if image and cells is None else [caption]
    for number, row in enumerate(dataset.select_columns(wanted)):
        yield Row(f"{name} row {number}", row[caption], Cell(*cells, number) if cells else row.get(image))
