"""What long prompts cost: the time of one denoising step at 77 tokens and at more, as our pipelines take it.

    python -m tests.benchmarks.bench_pipelines [--runs 20] [--full-size] [--out outputs/bench_pipelines.json]

A step is one UNet pass on a prompt and its negative. `--full-size` is SDXL's own UNet with random weights at 1024²,
in float16, and wants a GPU; without it a narrow UNet of the same build runs anywhere. Runs are interleaved; a ratio is
the median over rounds of two neighbouring runs, a step at 77 tokens being 1. A prompt has its own length, or is filled
up to the next multiple of 77 and masked (`sequence_length="bucket"`).
"""

import argparse
import statistics
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from tests.benchmarks.timing import interleave, paired_ratio, write
from tulip_diffusion.pipelines.attention import long_context_attention

SDXL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = {
    **SDXL,
    "sample_size": 32,
    "block_out_channels": (32, 64, 128),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": 256,
}
POOLED = 1280
PROMPTS = {  # name: tokens of the prompt, tokens of the tensor that holds it
    "77 tokens": (77, 77),
    "154 tokens": (154, 154),
    "248 tokens": (248, 248),
    "248 tokens, masked to 308": (248, 308),
    "500 tokens": (500, 500),
    "500 tokens, masked to 539": (500, 539),
}


@torch.no_grad()
def step(unet: UNet2DConditionModel, latents: torch.Tensor, states: torch.Tensor, conditions: dict) -> None:
    unet(latents, 500, encoder_hidden_states=states, added_cond_kwargs=conditions, return_dict=False)


def compare(unet: UNet2DConditionModel, runs: int) -> dict[str, dict[str, float]]:
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    place = {"device": unet.device, "dtype": unet.dtype}
    latents = torch.randn(2, 4, size, size, **place)
    conditions = {"text_embeds": torch.randn(2, POOLED, **place), "time_ids": torch.ones(2, 6, **place)}
    steps = {}
    for name, (tokens, length) in PROMPTS.items():
        states = torch.randn(2, length, width, **place)
        states[:, tokens:] = 0
        steps[name] = partial(step, unet, latents, states, conditions)
    with long_context_attention([unet]):
        times = interleave(steps, runs)
    return {
        name: {
            "seconds": round(statistics.median(times[name]), 5),
            "against 77": round(paired_ratio(times, name, "77 tokens"), 4),
        }
        for name in steps
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="rounds counted, after one warm-up")
    parser.add_argument("--full-size", action="store_true", help="SDXL's own UNet at 1024²")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet first")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_pipelines.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.device(options.device):
        unet = UNet2DConditionModel(**(SDXL if options.full_size else SMALL)).eval()
    if options.device != "cpu":
        unet = unet.half()
    if options.compile:
        unet.compile()
    figures = compare(unet, options.runs)
    for name, row in figures.items():
        print(f"{name:28}", "  ".join(f"{key} {value}" for key, value in row.items()))
    write({"size": "SDXL" if options.full_size else "small", "device": options.device, **figures}, options.out)


if __name__ == "__main__":
    main()
