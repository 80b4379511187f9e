"""Data that is read as it comes, shard by shard: too large to be listed first, or not on this machine."""

import io
import os
import random
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from .caption_data import CaptionData, usable_row
from .formats import Source, is_remote, named_source
from .hub import column_rows, is_parquet, load_stream, need_datasets, parquet_rows
from .rows import Row, SkippedRows, UsableRow
from .tars import packing, unpack

STREAMED = ("jsonl", "csv", "txt", "json", "sharegpt4v", "webdataset", "datasets")
WITH_THEIR_IMAGES = ("webdataset", "datasets")  # others name paths of images
AGENT = {"User-Agent": "tulip-diffusion"}  # some servers refuse Python's own name
REFUSALS = (400, 401, 403, 404, 410)  # of a web server, which would say the same again
TIMEOUT = 60  # seconds without a byte
WAITS = (1, 5, 25)  # seconds before a shard that could not be fetched is asked for again


@dataclass(frozen=True)
class CaptionStream:
    """Captions, and perhaps their images, in shards that nobody has listed.

    Each `shuffle_rows` neighbouring rows are held in memory and given in random order. Image paths are relative to
    `root`.
    """

    source: Source
    root: str
    has_images: bool = False
    split: str = "train"
    shuffle_rows: int = 1000
    skipped: SkippedRows = field(default_factory=SkippedRows)  # its share; a run counts by itself

    @property
    def is_data_set(self) -> bool:
        """Whether `datasets` knows the shards, and not we."""
        return self.source.format == "datasets" and not is_parquet(self.source.files[0])

    @cached_property
    def shards(self) -> int:
        """How many parts can be read without the others."""
        return self.dataset(epoch=0, seed=0).n_shards

    def dataset(self, epoch: int, seed: int) -> Any:
        """The `datasets.IterableDataset` of one epoch, its files in that epoch's order."""
        if self.is_data_set:
            return load_stream(self.source.files[0], self.split, epoch, self.has_images)
        files = list(self.source.files)
        random.Random(f"{seed}-{epoch}").shuffle(files)
        return need_datasets().IterableDataset.from_generator(self.examples, gen_kwargs={"shards": files})

    def examples(self, shards: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of `shards` as `datasets` takes them."""
        for shard in shards:
            with at_hand(shard, plain=self.has_images and self.source.format == "webdataset") as file:
                for row in self.rows_of(file):
                    image = row.image
                    if file != Path(shard) and hasattr(image, "read"):
                        image = io.BytesIO(image.read())  # the file will be gone when it is looked at
                    yield {"name": row.name, "caption": row.caption, "image": image}

    def rows_of(self, file: Path) -> Iterator[Row]:
        """The rows of one file, good and bad."""
        if self.source.format == "datasets":
            return parquet_rows(file, self.has_images)
        return self.source.rows_of(str(file), self.split, self.has_images)

    def rows(self, columns: dict[str, list], first: int, share: int) -> list[Row]:
        """The rows of a block of the data set; the first of them is row number `first` of a reader's `share`."""
        if self.is_data_set:
            return column_rows(columns, f"{self.source.files[0]} share {share}", first)
        return list(map(Row, columns["name"], columns["caption"], columns["image"]))

    def usable(self, row: Row) -> UsableRow:
        """`row` with its caption clean and where its image is. Raises `BadRow` if training cannot use it."""
        found = usable_row(row, self.root if self.has_images else None)
        if isinstance(found.image, str):
            found = found._replace(image=os.path.normpath(os.path.join(self.root, found.image)))
        return found


Captions = CaptionData | CaptionStream


def open_stream(
    source: str,
    data_format: str = "auto",
    image_root: str | None = None,
    with_images: bool = False,
    split: str = "train",
    max_bad_share: float = 0.05,
    shuffle_rows: int = 1000,
) -> CaptionStream:
    """Captions in shards that are read as they come. Arguments and formats are those of [`open_captions`], and URLs.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is nothing that could be streamed, or its images could not be found.
        ImportError: `datasets` is not installed.
    """
    need_datasets()
    found = named_source(source, data_format, split)
    mapped = found.files[:1] and Path(found.files[0]).suffix == ".arrow"
    saved = Path(source).is_dir() and any(Path(source, name).exists() for name in ("state.json", "dataset_dict.json"))
    if found.format not in STREAMED or saved or mapped:
        raise ValueError(f"{source} is no set of shards, and can be listed: leave out --stream.")
    if not found.files:
        raise ValueError(f"{source} holds no file of the format {data_format}.")
    if with_images and is_remote(source) and image_root is None and found.format not in WITH_THEIR_IMAGES:
        raise ValueError(
            f"{source} names images by their paths: say with --image-root where on this machine they are, or stream "
            "tars or Parquet files, which hold their images."
        )
    root = os.path.abspath(image_root or found.root)
    stream = CaptionStream(found, root, with_images, split, shuffle_rows, SkippedRows(max_bad_share))
    if stream.is_data_set:
        _ = stream.shards  # which opens it
    elif not is_remote(source):
        next(stream.examples(found.files[:1]), None)  # so that a wrong file is refused now
    return stream


@dataclass(frozen=True)
class ReaderState:
    """Where a reader stands: behind `used` rows of a block that begins at `source`, a state of the data set."""

    epoch: int = 0
    block: int = 0
    used: int = 0
    source: dict[str, Any] | None = None


class StreamReader:
    """One of `readers` that share a stream; it never ends, but begins the next epoch, in another order.

    Readers of an epoch see disjoint rows. They share the shards where these can be dealt evenly; else each of them
    reads all shards and takes its own rows. One that starts in another's `state` goes on as that one would have.
    """

    def __init__(
        self, stream: CaptionStream, seed: int = 0, reader: int = 0, readers: int = 1, state: ReaderState | None = None
    ):
        self.stream, self.seed, self.reader, self.readers = stream, seed, reader, readers
        self.state = state or ReaderState()

    def __iter__(self) -> Iterator[tuple[Row, int]]:
        """Rows, each with its epoch; `state` is behind the one that was given last."""
        while True:
            start = self.state
            for rows in self.blocks():
                for row in rows[self.state.used :]:
                    self.state = replace(self.state, used=self.state.used + 1)
                    yield row, start.epoch
                self.state = self.behind
            if self.state == start == ReaderState(start.epoch):
                share = f"Share {self.reader} of {self.readers}"
                raise ValueError(f"{share} of the stream that begins with {self.stream.source.files[0]} holds no row.")
            self.state = ReaderState(start.epoch + 1)

    def blocks(self) -> Iterator[list[Row]]:
        """The shuffled blocks of this epoch, from that on in which `state` is; `behind` is the state behind each."""
        from datasets.distributed import split_dataset_by_node

        stream, epoch, first = self.stream, self.state.epoch, self.state.block
        dataset = split_dataset_by_node(stream.dataset(epoch, self.seed), self.reader, self.readers)
        if self.state.source is not None:
            dataset.load_state_dict(self.state.source)
        # iter() leaves it to us to share the rows among a loader's workers, as iterating over `dataset` would not.
        for number, columns in enumerate(dataset.iter(stream.shuffle_rows), start=first):
            rows = stream.rows(columns, number * stream.shuffle_rows, self.reader)
            random.Random(f"{self.seed}-{epoch}-{self.reader}-{number}").shuffle(rows)
            self.behind = ReaderState(epoch, number + 1, 0, dataset.state_dict())
            yield rows


@contextmanager
def at_hand(shard: str, plain: bool) -> Iterator[Path]:
    """`shard` as a file of this machine for as long as it is read, fetched if it is remote; `plain` unpacks a tar.

    Raises:
        OSError: it cannot be fetched.
    """
    with tempfile.TemporaryDirectory(prefix="tulip-diffusion-") as folder:
        file = Path(shard)
        if is_remote(shard):
            file = Path(folder, PurePosixPath(urlsplit(shard).path).name)
            fetch(shard, file)
        if plain and packing(file):
            unpack(file, unpacked := Path(folder, f"plain-{file.name}"))
            file = unpacked
        yield file


def fetch(url: str, file: Path) -> None:
    """Write what `url` holds to `file`, with some patience. Raises OSError if it cannot be had."""
    for wait in (*WAITS, None):
        try:
            with open_remote(url) as remote, file.open("wb") as local:
                shutil.copyfileobj(remote, local, 1 << 20)
                size = remote.headers["Content-Length"] if hasattr(remote, "headers") else remote.size
                if size is not None and int(size) != local.tell():
                    raise ConnectionError(f"it was cut off after {local.tell()} of {size} bytes")
            return
        except Exception as error:  # of any file system, of the network
            if wait is None or isinstance(error, FileNotFoundError) or getattr(error, "code", 500) in REFUSALS:
                raise OSError(f"The shard {url} cannot be fetched: {error or type(error).__name__}.") from error
            time.sleep(wait)


def open_remote(url: str) -> Any:
    """The content of `url` as an open file."""
    if url.startswith(("http://", "https://")):  # for which fsspec needs another package
        return urllib.request.urlopen(urllib.request.Request(url, headers=AGENT), timeout=TIMEOUT)
    import fsspec

    return fsspec.open(url, "rb").open()
