"""How costs grow with the length of texts and the size of batches: time, peak memory, and the exponents of both.

    python -m tests.benchmarks.bench_costs [--runs 2] [--tokens 77 154 …] [--batches 1 4 16 64]
        [--only encoder] [--out outputs/bench_costs.json] [--plot docs/costs.png]

- `encoder`: forward of a TULIP encoder, 4 of ViT-L/14's 12 layers, texts that fill their length.
- `encode_prompt`: prompt and negative prompt for SDXL, TULIP in the first slot and CLIP in windows in the second, both
  4 layers x 256.
- `UNet step`: one pass on a prompt and its negative, the narrow UNet of `bench_pipelines`, pictures of 128 pixels.
- `training step`: a step of stage 1 with its teacher, on 4 x 256, captions that fill their length, in one chunk.

Runs over all lengths are interleaved and the medians kept; an exponent is the slope of the least-squares line through
the logarithms. Memory is the peak of a call above what the process held before, where the C library's allocator can
say so. `--most` tokens in a batch bound what is measured.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.benchmarks import bench_training_lengths
from tests.benchmarks.bench_encode_prompt import encode
from tests.benchmarks.bench_pipelines import POOLED, SMALL, step
from tests.benchmarks.sizes import FIRST, filled
from tests.benchmarks.timing import interleave, peak_mib, write
from tests.pipelines import tiny_sdxl
from tulip_diffusion import StableDiffusionXLTulipPipeline, from_clip
from tulip_diffusion.evaluation.plots import curve, figure, legend
from tulip_diffusion.pipelines.attention import long_context_attention

TOKENS = (77, 154, 248, 500, 1000, 2000, 4000)
BATCHES = (1, 4, 16, 64)
SIDE = 16  # latents
RANGES = ((77, 500), (500, 4000))  # of tokens, over which exponents are fitted
MIDDLE = {**FIRST, **bench_training_lengths.SIZE}

Call = Callable[[], object]


@torch.no_grad()
def read(encoder: torch.nn.Module, ids: torch.Tensor) -> None:
    encoder(ids)


def encoder_calls(shapes: list[tuple[int, int]]) -> Iterator[Call]:
    encoder = from_clip(CLIPTextModel(CLIPTextConfig(**{**FIRST, "num_hidden_layers": 4}))).eval()
    for batch, tokens in shapes:
        ids = torch.randint(0, 49000, (batch, tokens))
        ids[:, -1] = 49407
        yield partial(read, encoder, ids)


def encode_prompt_calls(shapes: list[tuple[int, int]]) -> Iterator[Call]:
    config = CLIPTextConfig(**MIDDLE)
    parts = {
        "text_encoder": from_clip(CLIPTextModel(config)).eval(),
        "text_encoder_2": CLIPTextModelWithProjection(config).eval(),
        "unet": tiny_sdxl.unet(2 * config.hidden_size, config.projection_dim),
    }
    pipeline = StableDiffusionXLTulipPipeline(**tiny_sdxl.components(StableDiffusionXLTulipPipeline, **parts))
    for batch, tokens in shapes:
        yield partial(encode, pipeline, [tiny_sdxl.words(tokens - 2, number) for number in range(batch)])


def unet_calls(shapes: list[tuple[int, int]]) -> Iterator[Call]:
    unet = filled(UNet2DConditionModel, SMALL)
    for batch, tokens in shapes:
        conditions = {"text_embeds": torch.randn(2 * batch, POOLED), "time_ids": torch.ones(2 * batch, 6)}
        latents = torch.randn(2 * batch, 4, SIDE, SIDE)
        states = torch.randn(2 * batch, tokens, SMALL["cross_attention_dim"])
        yield partial(denoise, unet, latents, states, conditions)


def denoise(unet: UNet2DConditionModel, latents: torch.Tensor, states: torch.Tensor, conditions: dict) -> None:
    with long_context_attention([unet]):
        step(unet, latents, states, conditions)


def training_calls(shapes: list[tuple[int, int]]) -> Iterator[Call]:
    for batch, tokens in shapes:
        captions = [f"{number} {tiny_sdxl.words(tokens - 3, number)}" for number in range(batch)]
        with tempfile.TemporaryDirectory() as folder:
            yield bench_training_lengths.Step(captions, Path(folder), tokens, None)


KINDS = {
    "encoder": encoder_calls,
    "encode_prompt": encode_prompt_calls,
    "UNet step": unet_calls,
    "training step": training_calls,
}


def measure(kind: str, shapes: list[tuple[int, int]], runs: int) -> list[dict]:
    torch.manual_seed(0)
    calls = {f"{batch} x {tokens}": call for (batch, tokens), call in zip(shapes, KINDS[kind](shapes), strict=True)}
    next(iter(calls.values()))()  # what only a first call allocates is no part of its shape's peak
    peaks = {name: peak_mib(call) for name, call in calls.items()}  # these calls warm up, too
    times = interleave(calls, runs, warm_up=False)
    rows = []
    for name, (batch, tokens) in zip(calls, shapes, strict=True):
        row = {"batch": batch, "tokens": tokens, "seconds": round(statistics.median(times[name]), 4)}
        rows.append({**row, "peak MiB": round(peaks[name], 1)})
        print(kind, rows[-1], flush=True)
    return rows


def exponent(rows: list[dict], over: str, of: str) -> float | None:
    """The slope of log `of` over log `over`; None for fewer than two rows."""
    if len(rows) < 2:
        return None
    slope, _ = np.polyfit([np.log(row[over]) for row in rows], [np.log(max(row[of], 1e-9)) for row in rows], 1)
    return round(float(slope), 2)


def exponents(rows: list[dict]) -> dict[str, dict[str, float | None]]:
    """How time and memory grow: of one text with its tokens, over [`RANGES`], and of one length with the batch."""
    found = {}
    for low, high in RANGES:
        part = [row for row in rows if row["batch"] == 1 and low <= row["tokens"] <= high]
        found[f"{low} to {high} tokens"] = {of: exponent(part, "tokens", of) for of in ("seconds", "peak MiB")}
    for tokens in sorted({row["tokens"] for row in rows if row["batch"] > 1}):
        part = [row for row in rows if row["tokens"] == tokens]
        name = f"batch 1 to {part[-1]['batch']} at {tokens} tokens"
        found[name] = {of: exponent(part, "batch", of) for of in ("seconds", "peak MiB")}
    return found


def plot(results: dict[str, list[dict]], out: Path) -> None:
    """Time of one text against the shortest's, and its memory, over its tokens; in few colours, for a small file."""
    with figure(out, columns=2, size=(4.6, 3.4)) as ((left, right),):
        for kind, rows in results.items():
            part = [row for row in rows if row["batch"] == 1]
            tokens = [row["tokens"] for row in part]
            curve(left, tokens, [row["seconds"] / part[0]["seconds"] for row in part], kind)
            curve(right, tokens, [row["peak MiB"] for row in part], kind)
        left.set(xscale="log", yscale="log", xlabel="tokens", ylabel="time, shortest = 1")
        right.set(xscale="log", yscale="log", xlabel="tokens", ylabel="peak memory, MiB")
        legend(right)
    Image.open(out).convert("RGB").quantize(32).save(out, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--most", type=int, default=5000, help="tokens of the largest batch")
    parser.add_argument("--only", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_costs.json"))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    shapes = [
        (batch, tokens)
        for batch in options.batches
        for tokens in options.tokens
        if batch == 1 or batch * tokens <= options.most
    ]
    results = {kind: measure(kind, shapes, options.runs) for kind in options.only}
    fitted = {kind: exponents(rows) for kind, rows in results.items()}
    for kind, found in fitted.items():
        print(kind, found)
    write({"runs": options.runs, "exponents": fitted, "rows": results}, options.out)
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
