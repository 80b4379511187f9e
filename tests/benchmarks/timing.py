"""Interleaved timings and peaks of memory: what every benchmark here shares."""

import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers

from tulip_diffusion.files import write_text


def interleave(
    variants: Mapping[str, Callable[[], object]], runs: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each variant, in turn A B C A B C …, after one warm-up each, so that a drifting machine hits all.

    Of the process's own time where there is no GPU: what else runs on the machine does not lengthen it.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for run in range(-int(warm_up), runs):
        for name, variant in variants.items():
            synchronize()
            start = clock()
            variant()
            synchronize()
            if run >= 0:
                times[name].append(clock() - start)
    return times


def clock() -> float:
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def paired_ratio(times: Mapping[str, list[float]], ours: str, other: str) -> float:
    """Median over the rounds of `ours` / `other`, each round's two runs being neighbours in time."""
    return statistics.median(a / b for a, b in zip(times[ours], times[other], strict=True))


def memory_mib(field: str) -> float:
    """A figure of Linux on this process: "VmRSS", what it holds now, or "VmHWM", the most that it held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def forget_peak() -> float:
    """Give back what the allocator kept, start the mark of `memory_mib("VmHWM")` anew; MiB held now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what it kept of earlier calls would not be counted again
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mib("VmRSS")


def peak_mib(call: Callable[[], object]) -> float:
    """MiB that `call` needs at most, above what the process held before it."""
    before = forget_peak()
    call()
    return memory_mib("VmHWM") - before


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
        "clock": "wall" if torch.cuda.is_available() else "process",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def command() -> str:
    """What was typed to run this, without where its results went."""
    words, module = sys.argv[1:], sys.modules["__main__"].__spec__
    if "--out" in words:
        place = words.index("--out")
        words = words[:place] + words[place + 2 :]
    return shlex.join(["python", "-m", module.name if module else "", *words])


def write(results: dict, path: Path) -> None:
    """Write `results` with the command and the machine's description as JSON, and say where."""
    write_text(path, json.dumps({"command": command(), "machine": machine(), **results}, indent=2) + "\n")
    print(f"written to {path}")
