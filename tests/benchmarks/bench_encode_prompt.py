"""What it takes to encode a prompt: `encode_prompt` against compel 2.5 and, at 77 tokens, plain diffusers.

    python -m tests.benchmarks.bench_encode_prompt [--runs 5] [--size tiny] [--out outputs/bench_encode_prompt.json]

All of them make prompt and negative prompt for SDXL from encoders of one size: TULIP in the first slot of ours, CLIP
in that of the others, CLIP in the second slot of all. `--size sdxl` is ViT-L/14's and bigG's text tower with random
weights, 3.3 GB in float32. Compel cuts a long prompt into windows of 75 tokens, as our second slot does; its weighted
prompts are in its own syntax. Runs are interleaved; a ratio is the median over rounds of two neighbouring runs, above
1 ours is faster. Needs: pip install '.[bench]'.
"""

import argparse
import logging
import statistics
from functools import partial
from pathlib import Path

import torch
from compel import CompelForSDXL
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.benchmarks.sizes import FIRST, SECOND
from tests.benchmarks.timing import interleave, paired_ratio, write
from tests.pipelines import tiny_sdxl
from tulip_diffusion import StableDiffusionXLTulipPipeline, TulipTextModel, from_clip

LENGTHS = (77, 300, 1000)
WEIGHTED = 20  # every so many words one has a weight


def encoders(size: str) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    if size == "tiny":
        return tiny_sdxl.text_encoder(), tiny_sdxl.text_encoder_2()
    first = CLIPTextModel(CLIPTextConfig(**FIRST)).eval()
    return first, CLIPTextModelWithProjection(CLIPTextConfig(**SECOND)).eval()


def prompts(tokens: int, weighted: bool) -> tuple[str, str]:
    """One prompt of `tokens` tokens, BOS and EOS among them, in A1111's syntax and in compel's."""
    words = tiny_sdxl.words(tokens - 2).split()
    chosen = [number for number in range(0, len(words), WEIGHTED) if weighted and words[number].isalpha()]
    ours = [f"({word}:1.3)" if number in chosen else word for number, word in enumerate(words)]
    theirs = [f"({word})1.3" if number in chosen else word for number, word in enumerate(words)]
    return " ".join(ours), " ".join(theirs)


@torch.no_grad()
def encode(pipeline: StableDiffusionXLPipeline, prompt: str) -> None:
    pipeline.encode_prompt(prompt, negative_prompt="blurry, low quality", device="cpu")


@torch.no_grad()
def compel(wrapper: CompelForSDXL, prompt: str) -> None:
    wrapper(prompt, negative_prompt="blurry, low quality")


def compare(size: str, runs: int) -> dict:
    torch.manual_seed(0)
    first, second = encoders(size)
    widths = first.config.hidden_size + second.config.hidden_size, second.config.projection_dim
    parts = {"text_encoder_2": second, "unet": tiny_sdxl.unet(*widths)}
    tulip = from_clip(first)
    assert isinstance(tulip, TulipTextModel)
    ours = StableDiffusionXLTulipPipeline(
        **tiny_sdxl.components(StableDiffusionXLTulipPipeline, text_encoder=tulip, **parts)
    )
    plain = StableDiffusionXLPipeline(**tiny_sdxl.components(StableDiffusionXLPipeline, text_encoder=first, **parts))
    wrapper = CompelForSDXL(plain)
    results = {}
    for tokens in LENGTHS:
        for weighted in (False, True):
            mine, theirs = prompts(tokens, weighted)
            calls = {"ours": partial(encode, ours, mine), "compel": partial(compel, wrapper, theirs)}
            if tokens <= 77 and not weighted:
                calls["diffusers"] = partial(encode, plain, mine)
            times = interleave(calls, runs)
            name = f"{tokens} tokens{', weighted' if weighted else ''}"
            results[name] = {f"{who} seconds": round(statistics.median(taken), 4) for who, taken in times.items()}
            for other in calls:
                if other != "ours":
                    results[name][f"times as fast as {other}"] = round(paired_ratio(times, other, "ours"), 2)
            print(f"{name:24}", "  ".join(f"{key} {value}" for key, value in results[name].items()), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", choices=("tiny", "sdxl"), default="tiny")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_encode_prompt.json"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    results = compare(options.size, options.runs)
    write({"size": options.size, "runs": options.runs, **results}, options.out)


if __name__ == "__main__":
    main()
