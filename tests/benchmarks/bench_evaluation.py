"""How much an evaluation gets through: pictures drawn and judged, pictures and captions encoded for retrieval.

    python -m tests.benchmarks.bench_evaluation [--runs 3] [--out outputs/bench_evaluation.json]

The embedded family, on the prompts of `evaluate generation` and the pairs of `evaluate retrieval`. Beside each stands
what is done without evaluation: the same pipeline called on the same prompts, the towers called on ready tensors.
Runs are interleaved; a ratio is the median over rounds of two neighbouring runs, above 1 the evaluation takes longer.
"""

import argparse
import statistics
from pathlib import Path

import torch

from tests.benchmarks.timing import interleave, paired_ratio, write
from tulip_diffusion.embedded import ASSETS
from tulip_diffusion.evaluation.datasets import world_set
from tulip_diffusion.evaluation.details import details
from tulip_diffusion.evaluation.drawing import draw_captions, open_pipeline
from tulip_diffusion.evaluation.encoders import Encoder, open_towers
from tulip_diffusion.evaluation.prompts import prompts_of

STEPS = 12
OPTIONS = argparse.Namespace(assets=ASSETS, device=None)


def drawing(prompts: str, count: int, runs: int) -> dict[str, float]:
    """Pictures a minute of prompts of one kind, and the time against the pipeline alone."""
    pipeline, captions = open_pipeline("tulip", OPTIONS), prompts_of(prompts, count)

    def plain() -> None:
        texts = [caption.text for caption in captions]
        pipeline(texts, num_inference_steps=STEPS, guidance_scale=3.0, output_type="np")

    def judged() -> None:
        details(draw_captions(pipeline, captions, STEPS, batch=count), captions)

    return rate(interleave({"evaluation": judged, "alone": plain}, runs), count)


def encoding(name: str, count: int, runs: int) -> dict[str, dict[str, float]]:
    """Captions and pictures a minute that retrieval encodes, and the time against the towers alone."""
    encoder, pairs = open_towers("tulip", OPTIONS), world_set(name, count)
    assert isinstance(encoder, Encoder) and encoder.towers.image_encoder is not None
    pictures = [pairs.picture(number) for number in range(count)]
    pixels = encoder.processor(pictures, return_tensors="pt").pixel_values
    ids = encoder.tokenize(pairs.captions)
    texts = {"evaluation": lambda: encoder.encode_texts(pairs.captions), "alone": lambda: encoder.encode_ids(ids)}
    images = {"evaluation": lambda: encoder.encode_images(pictures), "alone": lambda: encoder.encode_pixels(pixels)}
    return {what: rate(interleave(calls, runs), count) for what, calls in (("captions", texts), ("pictures", images))}


def rate(times: dict[str, list[float]], count: int) -> dict[str, float]:
    return {
        "a minute": round(60 * count / statistics.median(times["evaluation"]), 1),
        "time against alone": round(paired_ratio(times, "evaluation", "alone"), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--count", type=int, default=8, help="prompts drawn, and sixteen times as many pairs encoded")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_evaluation.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    results: dict = {"steps": STEPS, "drawn": {}, "encoded": {}}
    for prompts in ("short", "full", "1000"):
        results["drawn"][prompts] = drawing(prompts, options.count, options.runs)
        print(prompts, results["drawn"][prompts], flush=True)
    for name in ("world-short", "world-long"):
        results["encoded"][name] = encoding(name, 16 * options.count, options.runs)
        print(name, results["encoded"][name], flush=True)
    write(results, options.out)


if __name__ == "__main__":
    main()
