"""Interleaved timings: what every benchmark here shares."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers

from tulip_diffusion.files import write_text


def interleave(variants: Mapping[str, Callable[[], None]], runs: int) -> dict[str, list[float]]:
    """Seconds of each variant, in turn A B C A B C …, after one warm-up each, so that a drifting machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in range(-1, runs):
        for name, variant in variants.items():
            synchronize()
            start = time.perf_counter()
            variant()
            synchronize()
            if run >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired_ratio(times: Mapping[str, list[float]], ours: str, other: str) -> float:
    """Median over the rounds of `ours` / `other`, each round's two runs being neighbours in time."""
    return statistics.median(a / b for a, b in zip(times[ours], times[other], strict=True))


def machine() -> dict[str, str | int]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 0,
        "gpu": gpu,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def write(results: dict, path: Path) -> None:
    """Write `results` with the machine's description as JSON, and say where."""
    write_text(path, json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    print(f"written to {path}")
