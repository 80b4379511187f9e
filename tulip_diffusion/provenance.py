"""Where a result comes from: the code's commit, and the weights by their hash."""

import functools
import hashlib
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn


@functools.cache
def commit() -> str:
    """The checkout's commit, "+ changes" behind it where files differ; without a checkout the package's version.

    Read once: what counts is the code that was imported, so ask before a long run.
    """

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may lie inside another repository
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD")[:12] + (" + changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"tulip-diffusion {version('tulip-diffusion')}"


def files_hash(folder: Path) -> str:
    """SHA-256 of the names and contents of all `.safetensors` files below `folder`, as hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(f"{file.relative_to(folder).as_posix()} {file.stat().st_size}".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of names, shapes, dtypes and values of all weights, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
