"""SDXL at its true size with TULIP in both slots: one picture from a long prompt, random weights.

    python -m tests.benchmarks.bench_full_size [--picture 256] [--tokens 300] [--steps 1] [--dtype float32]
        [--out outputs/bench_full_size.json]

Nothing is downloaded: 2.57 billion weights of the UNet, 0.8 of the text encoders and 0.08 of the VAE are filled at
random, 14 GB in float32, 7 in bfloat16. A CPU that does not multiply bfloat16 runs it, too, but takes up to 70 times
as long. What each part took, and the most memory that the process held.
"""

import argparse
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.benchmarks.sizes import FIRST, SDXL, SECOND, VAE, filled
from tests.benchmarks.timing import memory_mib, write
from tests.pipelines import tiny_sdxl
from tulip_diffusion import StableDiffusionXLTulipPipeline, TulipTextModelWithProjection, from_clip
from tulip_diffusion.devices import best_device, fast_bfloat16

PARTS = ("text_encoder", "text_encoder_2", "unet")


def build(device: str, dtype: torch.dtype) -> StableDiffusionXLTulipPipeline:
    torch.manual_seed(0)
    first = from_clip(CLIPTextModel(CLIPTextConfig(**FIRST))).to(device, dtype).eval()
    second = from_clip(CLIPTextModelWithProjection(CLIPTextConfig(**SECOND))).to(device, dtype).eval()
    assert isinstance(second, TulipTextModelWithProjection)
    parts = {"text_encoder": first, "text_encoder_2": second}
    parts["unet"] = filled(UNet2DConditionModel, SDXL, device, dtype)
    parts["vae"] = filled(AutoencoderKL, VAE, device, dtype)
    return tiny_sdxl.quiet(
        StableDiffusionXLTulipPipeline(**tiny_sdxl.components(StableDiffusionXLTulipPipeline, **parts))
    )


@contextmanager
def clocks(pipeline: StableDiffusionXLTulipPipeline) -> Iterator[dict[str, float]]:
    """Seconds that each of [`PARTS`] takes in its forward passes."""
    seconds = dict.fromkeys(PARTS, 0.0)

    def start(name: str, module: nn.Module, args: Any) -> None:
        seconds[name] -= time.perf_counter()

    def stop(name: str, module: nn.Module, args: Any, output: Any) -> None:
        seconds[name] += time.perf_counter()

    handles = []
    for name in PARTS:
        handles.append(getattr(pipeline, name).register_forward_pre_hook(partial(start, name)))
        handles.append(getattr(pipeline, name).register_forward_hook(partial(stop, name)))
    yield seconds
    for handle in handles:
        handle.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=int, default=256, help="pixels a side")
    parser.add_argument("--tokens", type=int, default=300, help="of the prompt")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: a fast one")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_full_size.json"))
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    device = best_device()
    name = options.dtype or ("bfloat16" if fast_bfloat16(device) else "float32")
    began = time.perf_counter()
    pipeline = build(device, getattr(torch, name))
    seconds = {"building": time.perf_counter() - began}
    began = time.perf_counter()
    with clocks(pipeline) as parts:
        picture = pipeline(
            tiny_sdxl.words(options.tokens - 2),
            num_inference_steps=options.steps,
            height=options.picture,
            width=options.picture,
        ).images[0]
    seconds |= {"picture": time.perf_counter() - began, **parts}
    assert picture.size == (options.picture, options.picture)
    weights = {part: getattr(pipeline, part).num_parameters() for part in (*PARTS, "vae")}
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else memory_mib("VmHWM") / 1024
    result = {
        **{"picture": options.picture, "tokens": options.tokens, "steps": options.steps, "dtype": name},
        "weights": weights,
        "wall seconds": {part: round(value, 2) for part, value in seconds.items()},
        "peak GiB": round(peak, 2),
    }
    print(result["weights"], result["wall seconds"], f"peak {peak:.1f} GiB")
    write(result, options.out)


if __name__ == "__main__":
    main()
