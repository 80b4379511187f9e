"""Where what was made of people's data is kept, and how it is told apart."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants


def cache_folder() -> Path:
    """The folder beside the caches of Hugging Face's `datasets`; HF_DATASETS_CACHE and HF_HOME move it."""
    root = os.environ.get("HF_DATASETS_CACHE") or os.path.join(constants.HF_HOME, "datasets")
    return Path(root).expanduser() / "tulip_diffusion"


def file_state(*paths: Path) -> str:
    """A hash that changes with the place, size or time of any of `paths` and of what lies in folders among them."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(files_below(str(path))) if path.is_dir() else [str(path)]:
            state = os.stat(file) if os.path.exists(file) else os.lstat(file)  # a link may lead nowhere
            digest.update(os.fsencode(f"{os.path.abspath(file)}\0{state.st_size}\0{state.st_mtime_ns}\0"))
    return digest.hexdigest()


def files_below(folder: str) -> Iterator[str]:
    """Paths of all files below `folder`."""
    for place, _, names in os.walk(folder):
        yield from (os.path.join(place, name) for name in names)
