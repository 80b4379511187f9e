"""The demo's one UNet for three encoders, against three separate pipelines.

    python -m tests.benchmarks.bench_demo [--assets FOLDER] [--runs 5] [--steps 25] [--out outputs/bench_demo.json]

Prompt: 300 tokens of the embedded family's world. Times are interleaved; a ratio is the median over rounds of two
neighbouring runs, below 1 the demo is faster. Memory is that of the distinct weights, and the peak that a fresh
process reaches above what it held after a first small picture.
"""

import argparse
import logging
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.benchmarks.sizes import FIRST, SDXL, SECOND, VAE
from tests.benchmarks.timing import interleave, paired_ratio, peak_mib, write
from tulip_diffusion.demo.settings import Settings
from tulip_diffusion.demo.studio import Studio
from tulip_diffusion.demo.weights import Weights
from tulip_diffusion.embedded import ASSETS, load_embedded_pipeline
from tulip_diffusion.generate import COMPARED, example_prompt

VARIANTS = ("one batch", "one after the other", "three pipelines")


def weights_mib(pipelines: Iterable[Any]) -> float:
    """Memory of the pipelines' distinct parameters."""
    modules = (part for pipeline in pipelines for part in pipeline.components.values() if isinstance(part, nn.Module))
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    return sum(parameter.nbytes for parameter in parameters.values()) / 2**20


def sdxl_weights_gib() -> dict[str, float]:
    """Half-precision weights at SDXL's sizes, counted without making them: its UNet, VAE and two text encoders."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
        vae = AutoencoderKL(**VAE)
        first, second = CLIPTextModel(CLIPTextConfig(**FIRST)), CLIPTextModelWithProjection(CLIPTextConfig(**SECOND))
    rest = sum(module.num_parameters() for module in (unet, vae, second))
    own = first.num_parameters()
    return {"shared": 2 * (rest + 3 * own) / 2**30, "three pipelines": 2 * 3 * (rest + own) / 2**30}


def prepare(variant: str, assets: Path, steps: int) -> tuple[Callable[[], None], Iterable[Any]]:
    """What draws the three pictures, and the pipelines that it does it with."""
    settings = Settings(example_prompt(), steps=steps)
    if variant == "three pipelines":
        pipelines = [load_embedded_pipeline(encoder, assets) for encoder in COMPARED]
        for pipeline in pipelines:
            pipeline.set_progress_bar_config(disable=True)

        def draw() -> None:
            for pipeline in pipelines:
                generator = torch.Generator().manual_seed(settings.seed)
                pipeline(
                    settings.prompt, num_inference_steps=steps, guidance_scale=settings.guidance, generator=generator
                )

        return draw, pipelines
    studio = Studio(Weights(assets=assets))
    pipelines = studio.pipelines.values()
    studio.batched = variant == "one batch"
    return lambda: [*studio.draw(settings)] and None, pipelines


def print_peak(variant: str, assets: Path, steps: int) -> None:
    """What this process, which does nothing else, needs for loading and one comparison; in MiB."""
    load_embedded_pipeline("clip", assets)("A tulip.", num_inference_steps=1)  # libraries load on first use
    print(peak_mib(lambda: prepare(variant, assets, steps)[0]()))


def peak_of(variant: str, assets: Path, steps: int) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.bench_demo", "--assets", str(assets), "--steps", str(steps)]
    printed = subprocess.run([*command, "--peak", variant], check=True, capture_output=True, text=True).stdout
    return float(printed.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_demo.json"))
    parser.add_argument("--peak", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # the words that CLIP cannot see, at every call
    if options.peak:
        return print_peak(options.peak, options.assets, options.steps)
    prepared = {variant: prepare(variant, options.assets, options.steps) for variant in VARIANTS}
    times = interleave({variant: draw for variant, (draw, _) in prepared.items()}, options.runs)
    results = {
        variant: {
            "seconds": round(statistics.median(times[variant]), 3),
            "time against three pipelines": round(paired_ratio(times, variant, "three pipelines"), 3),
            "weights MiB": round(weights_mib(pipelines), 1),
            "peak MiB": round(peak_of(variant, options.assets, options.steps)),
        }
        for variant, (_, pipelines) in prepared.items()
    }
    for variant, figures in results.items():
        print(f"{variant:20}", *(f"{name} {value}" for name, value in figures.items()), sep="  ")
    sdxl = {name: round(gib, 2) for name, gib in sdxl_weights_gib().items()}
    print("SDXL's weights in half precision, GiB:", sdxl)
    write({"sdxl weights GiB": sdxl, "steps": options.steps, "results": results}, options.out)


if __name__ == "__main__":
    main()
