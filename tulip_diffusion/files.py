"""Files and folders that are there whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(target: str | Path) -> Iterator[Path]:
    """A temporary path beside `target`, for a file or a folder, that takes its name when the block ends well.

    Parents of `target` are made. An error inside the block leaves `target` as it was and the temporary path removed.
    A folder that stands there already is replaced as a whole.

    ```python
    with replacing("outputs/picture.png") as unfinished:
        picture.save(unfinished, format="PNG")
    ```
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The process's number keeps two writers of one target apart; the ending stays, because some writers go by it.
    unfinished = target.with_name(f".{target.stem}.{os.getpid()}.unfinished{target.suffix}")
    remove(unfinished)
    try:
        yield unfinished
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)  # a folder cannot be renamed over one that holds anything
        os.replace(unfinished, target)
    except BaseException as error:
        remove(unfinished)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(target)  # a full disk does not say where
        raise


def write_text(target: str | Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with replacing(target) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
