"""Opening data: bad rows are sorted out once, then every row can be reached by its number."""

import importlib.util
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .caption_data import CaptionData, usable_row
from .formats import Source, find_source
from .rows import BadRow, SkippedRows, UsableRow
from .store import store_folder, stored


def open_captions(
    source: str,
    data_format: str = "auto",
    image_root: str | None = None,
    with_images: bool = False,
    split: str = "train",
    max_bad_share: float = 0.05,
) -> CaptionData:
    """Open captions of any supported format; without `with_images` no image is looked for.

    Captions are kept in the cache of Hugging Face's `datasets` (HF_DATASETS_CACHE moves it) and read from there, so a
    process holds none of them in memory, and a source is parsed once for each of its states. Without `datasets` they
    are held in memory. An image is opened when it is used.

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
        OSError: a file may not be read, or the cache not be written.
    """
    found = find_source(source, data_format, split)
    root = os.path.abspath(image_root or found.root)
    skipped = SkippedRows(max_bad_share)
    rows = usable_rows(found, source, split, root if with_images else None, skipped)
    if importlib.util.find_spec("datasets"):
        folder = store_folder(found.state(), found.format, split, with_images, root)
        data = stored(folder, rows, skipped, root, found.cells(), with_images)
    else:
        data = held(rows, skipped, root, with_images)
    data.skipped.check(len(data) + data.skipped.skipped)
    return data


def held(rows: Iterator[UsableRow], skipped: SkippedRows, root: str, with_images: bool) -> CaptionData:
    """`rows` in memory."""
    captions: list[str] = []
    images: list[Any] = []
    names: list[str] = []
    for row in rows:
        captions.append(row.caption)
        names.append(row.name)
        if with_images:
            images.append(os.path.normpath(os.path.join(root, row.image)) if isinstance(row.image, str) else row.image)
    return CaptionData(captions, images if with_images else None, names, skipped)


def usable_rows(found: Source, source: str, split: str, root: str | None, skipped: SkippedRows) -> Iterator[UsableRow]:
    """Rows that training can use, with their images where there is a `root`; the others are counted in `skipped`."""
    usable = 0
    try:
        for row in tqdm(
            found.rows(split, root is not None), f"Reading {Path(source).name}", unit=" rows", delay=2, mininterval=1
        ):
            try:
                found_row = usable_row(row, root)
            except BadRow as reason:
                skipped.add(row.name, reason)
                continue
            usable += 1
            yield found_row
    except (EOFError, zlib.error, UnicodeError) as error:
        raise ValueError(f"{source} is broken: {error}. Fetch or write it again.") from error
    if not usable:
        skipped.check(skipped.skipped)
        raise ValueError(f"{source} holds no usable caption.")
