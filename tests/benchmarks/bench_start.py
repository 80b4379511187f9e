"""How long the front door takes to open: whole processes, one after the other in turn, against the stock import.

    python -m tests.benchmarks.bench_start --runs 7

Writes medians of wall-clock and CPU seconds, and `import tulip_diffusion` as a share of the stock pipeline's import.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from .timing import paired_ratio, write

COMMAND = [sys.executable, "-m", "tulip_diffusion.cli"]
PROCESSES = {
    "python alone": [sys.executable, "-c", "pass"],
    "stock import": [sys.executable, "-c", "from diffusers import StableDiffusionXLPipeline"],
    "import": [sys.executable, "-c", "import tulip_diffusion"],
    "import of a pipeline": [sys.executable, "-c", "from tulip_diffusion import StableDiffusionXLTulipPipeline"],
    "--help": [*COMMAND, "--help"],
    "--version": [*COMMAND, "--version"],
    "a usage error": [*COMMAND, "generate", "a prompt", "--steps", "0"],
    "a usage error of an evaluation": [*COMMAND, "evaluate", "generation", "--count", "0"],
    "describe": [*COMMAND, "describe", "a red tulip on a shelf"],
}


def spent(command: list[str]) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one process, its children included."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def first_word(command: list[str]) -> float:
    """Seconds until a command says something."""
    start = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stderr is not None
        process.stderr.read(1)
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="rounds (default 7), after one that warms up the disk")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/start.json"))
    options = parser.parse_args()
    wall: dict[str, list[float]] = {name: [] for name in [*PROCESSES, "compare speaks"]}
    cpu: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for run in range(-1, options.runs):
        for name, command in PROCESSES.items():
            seconds, cpu_seconds = spent(command)
            if run >= 0:
                wall[name].append(seconds)
                cpu[name].append(cpu_seconds)
        if run >= 0:
            wall["compare speaks"].append(first_word([*COMMAND, "compare"]))
    results = {
        "runs": options.runs,
        "median_seconds": {name: round(statistics.median(times), 3) for name, times in wall.items()},
        "median_cpu_seconds": {name: round(statistics.median(times), 3) for name, times in cpu.items()},
        "cpu_against_stock_import": {
            name: round(paired_ratio(cpu, name, "stock import"), 3) for name in ("import", "import of a pipeline")
        },
    }
    for name, seconds in results["median_seconds"].items():
        print(f"{name:22} {seconds:6.2f} s  {results['median_cpu_seconds'].get(name, float('nan')):6.2f} s CPU")
    write(results, options.out)


if __name__ == "__main__":
    main()
