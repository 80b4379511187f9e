"""Our encoders in clip-benchmark, a harness that many CLIPs are measured with: zero-shot classes, retrieval, captions.

    pip install ".[clip-benchmark]"
    python -m tulip_diffusion.evaluation.clip_benchmark eval --model_type tulip --model tulip --dataset …

`--model` is what `--encoders` of `evaluate retrieval` takes. Everything else is clip-benchmark's own command line.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from tulip_diffusion.data import as_seen
from tulip_diffusion.embedded import ASSETS

from .encoders import Encoder, open_pair

MODEL_TYPE = "tulip"


class BenchmarkModel(nn.Module):
    """An [`Encoder`] as clip-benchmark calls models: pixels and ids in, features out."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.towers = nn.ModuleList(encoder.parts)  # so that `to` and `eval` reach them

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(pictures, 3, size, size) as [`load_model`]'s transform makes them -> (pictures, dim)."""
        return self.encoder.encode_pixels(pixels).to(pixels.device)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Ids as [`load_model`]'s tokenizer pads them, (texts, tokens) -> (texts, dim)."""
        eos = self.encoder.tokenizer.eos_token_id
        rows = [row[1 : row.index(eos, 1)] for row in ids.tolist()]  # between BOS and the first EOS
        return self.encoder.encode_ids(rows).to(ids.device)


def load_model(
    model_name: str, pretrained: str = "", cache_dir: str | None = None, device: str = "cpu"
) -> tuple[BenchmarkModel, Callable[[Any], Tensor], Callable[[Sequence[str]], Tensor]]:
    """Model, transform and tokenizer, as clip-benchmark's registry wants them; `pretrained` names a layout, if any.

    Raises:
        ValueError: FineLIP's features, which are several a picture, or a text tower alone.
    """
    options = argparse.Namespace(assets=ASSETS, device=str(device), layout=pretrained or "auto")
    encoder = open_pair(model_name, options)
    if not isinstance(encoder, Encoder) or encoder.score is not None:
        raise ValueError(f"{model_name} cannot be compared by the cosine of two vectors, as clip-benchmark does.")

    def transform(picture: Any) -> Tensor:
        return encoder.processor([as_seen(picture)], return_tensors="pt").pixel_values[0]

    def tokenize(texts: Sequence[str]) -> Tensor:
        rows = [encoder.enclose(ids) for ids in encoder.tokenize([texts] if isinstance(texts, str) else texts)]
        return pad_sequence(rows, batch_first=True, padding_value=encoder.tokenizer.eos_token_id)

    return BenchmarkModel(encoder).eval(), transform, tokenize


def register() -> None:
    """Enter our encoders into clip-benchmark's registry, as the model type "tulip".

    Raises:
        ImportError: clip-benchmark is not installed.
    """
    try:
        from clip_benchmark import models
    except ImportError as error:
        raise ImportError('clip-benchmark is missing: pip install ".[clip-benchmark]"') from error
    if MODEL_TYPE not in models.TYPE2FUNC:
        models.TYPE2FUNC[MODEL_TYPE] = load_model
        models.MODEL_TYPES.append(MODEL_TYPE)


def main() -> None:
    """clip_benchmark's own command, with our encoders among its models."""
    register()
    from clip_benchmark.cli import main as benchmark

    with torch.inference_mode():
        benchmark()


if __name__ == "__main__":
    main()
