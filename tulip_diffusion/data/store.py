"""Captions on disk, in Arrow: memory-mapped, so that processes and workers share one copy and none parses the source.

A store is made once, by whichever process comes first, and belongs to one state of its source: it is made anew when a
file of the source changes.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tulip_diffusion.files import replacing

from .cache import cache_folder
from .caption_data import CaptionData
from .hub import Cell
from .rows import SkippedRows, UsableRow
from .tars import TarMember

VERSION = 1  # changes when the same source gives other rows
BATCH = 10_000  # rows that are written at once
COLUMNS = {"caption": "string", "name": "string", "image": "string", "offset": "int64", "size": "int64"}


class Column(Sequence):
    """A column of a `datasets.Dataset`, each value read from disk when it is asked for."""

    def __init__(self, dataset: Any, name: str):
        self.dataset, self.column = dataset, name
        self.values = dataset.data.column(name)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self.values[int(index)].as_py()

    def __iter__(self) -> Iterator[Any]:
        for chunk in self.values.chunks:
            yield from chunk.to_pylist()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it compares by content, as lists do

    def __reduce__(self) -> tuple:
        return Column, (self.dataset, self.column)  # a data set is sent to another process as the name of its file


class Images(Sequence):
    """References to the images of a store, see [`CaptionData`]."""

    def __init__(self, dataset: Any, root: str, cells: tuple[Any, str] | None = None):
        self.dataset, self.root, self.cells = dataset, root, cells
        self.image, self.offset, self.size = (Column(dataset, name) for name in ("image", "offset", "size"))

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        path, offset = self.image[index], self.offset[index]
        if path is None:
            assert self.cells is not None
            return Cell(*self.cells, offset)
        path = os.path.normpath(os.path.join(self.root, path))
        return path if offset is None else TarMember(path, offset, self.size[index])


def store_folder(*parts: object) -> Path:
    """Where the store of a source is that is identified by `parts`."""
    key = hashlib.sha256(json.dumps([VERSION, *map(str, parts)]).encode(errors="surrogatepass")).hexdigest()
    return cache_folder() / "captions" / key[:32]


def stored(
    folder: Path,
    rows: Iterator[UsableRow],
    skipped: SkippedRows,
    root: str,
    cells: tuple[Any, str] | None,
    images: bool,
) -> CaptionData:
    """The captions of the store in `folder`, which is made of `rows` if it is not there.

    Args:
        skipped: counts the bad ones among `rows` while they are read.
        root: folder that image paths are relative to.
        cells: data set and column of the images that `rows` name by their number alone.

    Raises:
        OSError: the cache cannot be written.
    """
    import datasets
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"Captions cannot be kept on disk: {error}. Name another folder with HF_DATASETS_CACHE."
        ) from error
    with FileLock(f"{folder}.lock"):  # every rank comes by: the first one writes, the others wait
        if not folder.is_dir():
            with replacing(folder) as unfinished:
                unfinished.mkdir()
                write_rows(rows, unfinished / "rows.arrow")
                found = {"skipped": skipped.skipped, "reasons": skipped.reasons}
                (unfinished / "skipped.json").write_text(json.dumps(found), encoding="utf-8")
        else:
            skipped.take(**json.loads((folder / "skipped.json").read_text(encoding="utf-8")))
    dataset = datasets.Dataset.from_file(str(folder / "rows.arrow"))
    return CaptionData(
        Column(dataset, "caption"), Images(dataset, root, cells) if images else None, Column(dataset, "name"), skipped
    )


def write_rows(rows: Iterator[UsableRow], file: Path) -> None:
    """Write `rows` as an Arrow file, a batch at a time."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    features = datasets.Features({name: datasets.Value(kind) for name, kind in COLUMNS.items()})
    with ArrowWriter(path=str(file), features=features) as writer:
        while batch := [(row.caption, row.name, *fields_of(row.image)) for row in islice(rows, BATCH)]:
            columns = map(list, zip(*batch, strict=True))
            writer.write_batch(dict(zip(COLUMNS, columns, strict=True)))
        writer.finalize()


def fields_of(image: Any) -> tuple[str | None, int | None, int | None]:
    """A reference as it is stored: path, offset and size."""
    if isinstance(image, TarMember):
        return image.tar, image.offset, image.size
    if isinstance(image, Cell):
        return None, image.row, None
    return image, None, None
