"""What long prompts cost: the time of one denoising step at 77 tokens and at more, as our pipelines take it.

    python -m tests.benchmarks.bench_pipelines [--runs 20] [--full-size] [--picture 512] [--tokens 77 248 1000]
        [--unmasked] [--out outputs/bench_pipelines.json]

A step is one UNet pass on a prompt and its negative. `--full-size` is SDXL's own UNet with random weights: in float16
on a GPU, in float32 elsewhere, which takes 10.3 GB; without it a narrow UNet of the same build runs anywhere.
`--picture` is the side in pixels. Runs are interleaved; a ratio is the median over rounds of two neighbouring runs, a
step at 77 tokens being 1. A prompt has its own length, as one prompt or a batch of one length has, or is filled up to
the next multiple of 77 and masked (`sequence_length="bucket"`).
"""

import argparse
import statistics
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from tests.benchmarks.sizes import SDXL, filled
from tests.benchmarks.timing import interleave, paired_ratio, write
from tulip_diffusion.models.positions import CLIP_LENGTH
from tulip_diffusion.pipelines.attention import long_context_attention

SMALL = {
    **SDXL,
    "sample_size": 32,
    "block_out_channels": (32, 64, 128),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 256,
}
POOLED = 1280
LATENT = 8  # pixels a side of a latent
TOKENS = (77, 154, 248, 500, 1000)


def prompts(counts: Iterable[int], masked: bool) -> dict[str, tuple[int, int]]:
    """By name the tokens of a prompt, and those of the tensor that holds it; also masked ones if `masked`."""
    found = {}
    for tokens in counts:
        found[f"{tokens:,} tokens"] = tokens, tokens
        if masked and (bucket := -tokens % CLIP_LENGTH):
            found[f"{tokens:,} tokens, masked to {tokens + bucket:,}"] = tokens, tokens + bucket
    return found


@torch.no_grad()
def step(unet: UNet2DConditionModel, latents: torch.Tensor, states: torch.Tensor, conditions: dict) -> None:
    unet(latents, 500, encoder_hidden_states=states, added_cond_kwargs=conditions, return_dict=False)


def compare(
    unet: UNet2DConditionModel, side: int, counts: list[int], masked: bool, runs: int
) -> dict[str, dict[str, float]]:
    """Steps of a picture of `side` latents a side, by [`prompts`] of `counts` tokens, the first being 1."""
    width = unet.config.cross_attention_dim
    place = {"device": unet.device, "dtype": unet.dtype}
    latents = torch.randn(2, 4, side, side, **place)
    conditions = {"text_embeds": torch.randn(2, POOLED, **place), "time_ids": torch.ones(2, 6, **place)}
    steps = {}
    for name, (tokens, length) in prompts(counts, masked).items():
        states = torch.randn(2, length, width, **place)
        states[:, tokens:] = 0
        steps[name] = partial(step, unet, latents, states, conditions)
    with long_context_attention([unet]):
        times = interleave(steps, runs)
    return {
        name: {
            "seconds": round(statistics.median(times[name]), 5),
            f"against {counts[0]}": round(paired_ratio(times, name, f"{counts[0]:,} tokens"), 4),
        }
        for name in steps
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="rounds counted, after one warm-up")
    parser.add_argument("--full-size", action="store_true", help="SDXL's own UNet")
    parser.add_argument("--picture", type=int, help="pixels a side; default: 1024, the narrow UNet's 256")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="lengths, the shortest first")
    parser.add_argument("--unmasked", action="store_true", help="only lengths without pads and mask")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet first")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_pipelines.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    unet = filled(
        UNet2DConditionModel,
        SDXL if options.full_size else SMALL,
        options.device,
        torch.float32 if options.device == "cpu" else torch.float16,
    )
    if options.compile:
        unet.compile()
    side = options.picture // LATENT if options.picture else unet.config.sample_size
    figures = compare(unet, side, options.tokens, not options.unmasked, options.runs)
    for name, row in figures.items():
        print(f"{name:28}", "  ".join(f"{key} {value}" for key, value in row.items()))
    size = {"size": "SDXL" if options.full_size else "narrow", "picture": side * LATENT, "runs": options.runs}
    write({**size, "device": options.device, "dtype": str(unet.dtype), "steps": figures}, options.out)


if __name__ == "__main__":
    main()
