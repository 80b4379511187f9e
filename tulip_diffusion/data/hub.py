"""Data sets of Hugging Face's `datasets`: from the Hub, from `save_to_disk`, or from Parquet files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import CAPTION_KEYS, IMAGE_KEYS, BadRow, Row, find_key


@dataclass(frozen=True)
class Cell:
    """An image in a column of a `datasets.Dataset`."""

    dataset: Any
    column: str
    row: int

    def read(self) -> bytes | str:
        """Its bytes, or the path of its file. Raises ValueError if there is neither."""
        value = self.dataset[self.row][self.column]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, bytes | str):
            raise ValueError(f"column {self.column!r} holds {type(value).__name__}, not an image")
        return value


def load_dataset(files: list[str], split: str) -> Any:
    """The `datasets.Dataset` in Parquet or Arrow `files`, or that the only one of them names.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: there is no such data set or split, or it is broken.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Reading Hugging Face data sets needs: pip install '.[train]', in a clone of this project."
        ) from error
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


def columns_of(dataset: Any) -> tuple[str, str | None]:
    """The columns of captions and of images. Raises ValueError if it has none for captions, or two."""
    columns = tuple(dataset.column_names)
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

    _, image = columns_of(dataset)
    if image is None or dataset.features[image] == datasets.Value("string"):
        return None
    if isinstance(dataset.features[image], datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    return dataset, image


def huggingface_rows(dataset: Any, name: str) -> Iterator[Row]:
    """Rows of a data set; images are [`Cell`]s of its column of images, or paths."""
    caption, image = columns_of(dataset)
    cells = image_cells(dataset)
    wanted = [caption, image] if image and cells is None else [caption]
    for number, row in enumerate(dataset.select_columns(wanted)):
        yield Row(f"{name} row {number}", row[caption], Cell(*cells, number) if cells else row.get(image))
