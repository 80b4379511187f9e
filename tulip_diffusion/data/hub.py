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


def load_dataset(source: str, split: str) -> Any:
    """The `datasets.Dataset` that `source` names.

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
    path = Path(source)
    try:
        if path.suffix == ".arrow":
            return datasets.Dataset.from_file(source)
        if path.is_file():
            return datasets.load_dataset("parquet", data_files=source, split="train")
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


def huggingface_rows(source: str, split: str = "train") -> Iterator[Row]:
    """Rows of a `datasets` data set; images are [`Cell`]s of its column of images, or paths."""
    import datasets

    dataset = load_dataset(source, split)
    columns = tuple(dataset.column_names)
    try:
        caption_key, image_key = find_key(columns, CAPTION_KEYS), find_key(columns, IMAGE_KEYS)
    except BadRow as reason:
        raise ValueError(f"The columns of {source} are ambiguous: {reason}.") from reason
    if caption_key is None:
        raise ValueError(f"{source} has none of the columns {', '.join(CAPTION_KEYS)}, but {', '.join(columns)}.")
    paths = image_key is not None and dataset.features[image_key] == datasets.Value("string")
    if image_key and isinstance(dataset.features[image_key], datasets.Image):
        dataset = dataset.cast_column(image_key, datasets.Image(decode=False))
    wanted = [caption_key, image_key] if paths else [caption_key]
    for number, row in enumerate(dataset.select_columns(wanted)):
        image = row[image_key] if paths else image_key and Cell(dataset, image_key, number)
        yield Row(f"{source} row {number}", row[caption_key], image)
