"""Captions by number, and their images where there are any."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .images import open_image
from .rows import BadRow, Row, SkippedRows, UsableRow, clean_caption, image_path


@dataclass
class CaptionData:
    """Captions by number, and their images where there are any.

    `images` holds one reference a caption: a path, a Pillow image, or what has `read()` for the bytes or the path of
    an image, such as a [`TarMember`]. `names` says which row is meant, in people's words.
    """

    captions: Sequence[str]
    images: Sequence[Any] | None = None
    names: Sequence[str] | None = None
    skipped: SkippedRows = field(default_factory=SkippedRows)

    def __len__(self) -> int:
        return len(self.captions)

    def name(self, index: int) -> str:
        """Row `index` in people's words."""
        return self.names[index] if self.names else f"row {index}"

    @property
    def has_images(self) -> bool:
        return self.images is not None

    def image(self, index: int) -> Image.Image:
        """Row `index`'s picture in RGB, see [`as_seen`]. Raises `BadRow` if it is missing or broken."""
        return open_reference(self.images[index] if self.images is not None else None, self.name(index))


def open_reference(reference: Any, name: str) -> Image.Image:
    """The picture of the row called `name`, in RGB, see [`as_seen`].

    Raises:
        BadRow: it is missing or broken.
        ValueError: `reference` is None.
    """
    if reference is None:
        raise ValueError("This data has captions alone. Name an image_root, or a format that holds images.")
    try:
        return open_image(reference.read() if hasattr(reference, "read") else reference)
    except (OSError, ValueError) as error:
        raise BadRow(f"{name}: {error}") from error


def usable_row(row: Row, root: str | None) -> UsableRow:
    """`row` with its caption clean and, where there is a `root`, an image inside of it. Raises `BadRow` otherwise."""
    caption, image = clean_caption(row.caption), None
    if root is not None:
        image = image_path(row.image)
        if isinstance(image, str):
            check_inside(root, image)
    return UsableRow(row.name, caption, image)


def check_inside(root: str, path: str) -> None:
    """Raise ValueError if `path` leads out of `root`, an absolute folder: an attack or a mistake, so it stops the run.

    Links inside `root` are followed: whoever owns the folder put them there.
    """
    if not os.path.isabs(path) and ".." not in path:
        return
    if os.path.commonpath((root, os.path.normpath(os.path.join(root, path)))) != root:
        raise ValueError(f"Image path {path!r} leaves the image root {root}. Correct the data, or name another root.")


def inside(root: Path, path: str) -> Path:
    """`path` under `root`. Raises ValueError if it leaves it, see [`check_inside`]."""
    base = os.path.abspath(root)
    check_inside(base, path)
    return Path(os.path.normpath(os.path.join(base, path)))
