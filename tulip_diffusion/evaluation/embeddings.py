"""A cache of features on disk, so that nothing is encoded twice."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tulip_diffusion.files import replacing

from .datasets import RetrievalSet
from .encoders import Embeds, fingerprint
from .processes import is_first, shared, wait_for_all


def embed(
    encoder: Embeds, data: RetrievalSet, cache: Path | None = None, batch: int = 64, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """Features of all images and of all captions, from `cache` where this encoder has seen this data."""
    pictures = fingerprint(encoder.image_key, *map(data.image_identity, range(len(data.images))))
    captions = fingerprint(encoder.text_key, *data.captions)

    def encode_images(rows: range) -> Tensor:
        return encoder.encode_images([data.picture(row) for row in rows])

    def encode_texts(rows: range) -> Tensor:
        return encoder.encode_texts([data.captions[row] for row in rows])

    def all_of(encode: Callable[[range], Tensor], count: int, key: str, what: str) -> Tensor:
        file = None if cache is None else cache / f"{key}.safetensors"
        if file is not None and file.is_file():
            return load_file(file)["features"]
        name = f"{encoder.name}, {what} of {data.name}" if progress else None
        features = torch.cat(shared(encode, batches(count, batch), name))
        if file is not None and is_first():
            with replacing(file) as unfinished:
                save_file({"features": features}, unfinished)
        wait_for_all()
        return features

    return (
        all_of(encode_images, len(data.images), pictures, "images"),
        all_of(encode_texts, len(data.captions), captions, "captions"),
    )


def batches(count: int, batch: int) -> list[range]:
    """Ranges of at most `batch` rows that cover `count`."""
    return [range(start, min(start + batch, count)) for start in range(0, count, batch)]
