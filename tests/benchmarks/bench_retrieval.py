"""Ranks of retrieval at the size of all of Flickr30k, against the plain matrix product in the same blocks.

    python -m tests.benchmarks.bench_retrieval [--images 31783] [--dim 512] [--out outputs/bench_retrieval.json]

Random unit vectors, five texts an image. Each variant runs once in a process of its own. CPU seconds are compared, on
which other work on the machine has little effect; memory is the peak above what the embeddings took. Both directions'
ranks come from one pass over all similarities, which are never held at once.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from tests.benchmarks.timing import write
from tulip_diffusion.evaluation.retrieval import recall_at_k

BLOCK = (1024, 4096)  # images and texts that recall_at_k compares at a time
TEXTS = 5  # an image


def product(images: torch.Tensor, texts: torch.Tensor) -> None:
    """Every block of similarities, computed in double precision as recall_at_k does, and thrown away."""
    images, texts = images.double(), texts.double()
    for rows in images.split(BLOCK[0]):
        for columns in texts.split(BLOCK[1]):
            rows @ columns.T


VARIANTS = {
    "recall_at_k": lambda images, texts: recall_at_k(images, texts, torch.arange(len(texts)) // TEXTS, block=BLOCK),
    "matrix product": product,
}


def measure(variant: str, images: int, dim: int) -> dict[str, float]:
    """CPU and wall seconds, and peak memory above that of the embeddings in GB."""
    torch.manual_seed(0)
    pictures, texts = (F.normalize(torch.randn(count, dim), dim=-1) for count in (images, TEXTS * images))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    VARIANTS[variant](pictures, texts)
    seconds = {"cpu seconds": time.process_time() - cpu, "wall seconds": time.perf_counter() - wall}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {**{name: round(value, 1) for name, value in seconds.items()}, "peak GB": round(peak * 1024 / 1e9, 2)}


def apart(variant: str, options: argparse.Namespace) -> dict[str, float]:
    """[`measure`] in a process of its own, whose highest mark nobody else has set."""
    size = ["--images", str(options.images), "--dim", str(options.dim)]
    command = [sys.executable, "-m", "tests.benchmarks.bench_retrieval", *size, "--variant", variant]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=31_783)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_retrieval.json"))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        return print(json.dumps(measure(options.variant, options.images, options.dim)))
    results = {}
    for variant in VARIANTS:
        results[variant] = apart(variant, options)
        print(variant, results[variant], flush=True)
    ours, plain = (results[variant]["cpu seconds"] for variant in VARIANTS)
    size = {"images": options.images, "texts": TEXTS * options.images, "dim": options.dim}
    write({**size, "results": results, "time against the product": round(ours / plain, 2)}, options.out)


if __name__ == "__main__":
    main()
