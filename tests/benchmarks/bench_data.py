"""Opening captions: start-up time and memory of a process, by rows and processes, on disk and as Python lists.

    python -m tests.benchmarks.bench_data --rows 200000 1000000 5000000 --processes 1 4 --folder /tmp/bench-data

`first` is a start that parses the source, `second` one that finds the store; both in fresh processes that start
together. Memory is what a process holds of its own (anonymous pages, /proc/self/status) beyond what it held before
opening, after 20,000 captions were read at random; the mapped file is not part of it.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path

from .timing import machine

READ = 20_000  # captions that each process reads before its memory is taken
SENTENCE = "A small red boat lies beside the old stone bridge while two people in long coats watch the water. "


def write_rows(file: Path, rows: int, length: int) -> None:
    """JSON lines like ShareGPT4V's captions: `length` characters on average, from half of that to one and a half."""
    text = SENTENCE * (2 * length // len(SENTENCE) + 1)
    generator = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for row in range(rows):
            caption = f"{row}. {text[: generator.randint(length // 2, 3 * length // 2)]}"
            out.write(json.dumps({"image": f"folder/{row:09d}.jpg", "caption": caption}) + "\n")


def own_memory() -> int:
    """Bytes of this process's anonymous pages."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def open_once(source: str, as_lists: bool, barrier, results) -> None:
    started = time.perf_counter()
    import datasets  # noqa: F401

    from tulip_diffusion.data import open_captions, opening

    if as_lists:
        opening.importlib.util.find_spec = lambda name: None
    imported = time.perf_counter()
    before = own_memory()
    barrier.wait()
    opening_started = time.perf_counter()
    data = open_captions(source, with_images=True)
    opened = time.perf_counter()
    generator = random.Random(os.getpid())
    characters = sum(len(data.captions[generator.randrange(len(data))]) for _ in range(READ))
    read = time.perf_counter()
    results.put(
        {
            "rows": len(data),
            "seconds": opened - opening_started,
            "import_seconds": imported - started,
            "own_MB": (own_memory() - before) / 1e6,
            "own_MB_with_imports": own_memory() / 1e6,
            "microseconds_per_caption": (read - opened) / READ * 1e6,
            "characters_per_caption": characters / READ,
        }
    )


def start(source: str, processes: int, as_lists: bool = False) -> dict[str, float]:
    """The worst of `processes` that open `source` together."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=open_once, args=(source, as_lists, barrier, results)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    found = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return {name: round(max(each[name] for each in found), 3) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--characters", type=int, default=1000, help="of a caption, on average")
    parser.add_argument(
        "--lists-up-to", type=int, default=1_000_000, help="rows up to which lists and every first start are run"
    )
    parser.add_argument("--folder", type=Path, required=True, help="place for the data and the cache")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    os.environ["HF_DATASETS_CACHE"] = str(options.folder / "cache")
    figures = []
    for rows in options.rows:
        options.folder.mkdir(parents=True, exist_ok=True)
        source = options.folder / f"{rows}.jsonl"
        write_rows(source, rows, options.characters)
        for processes in options.processes:
            kinds = {"second": False}
            if rows <= options.lists_up_to or processes == options.processes[0]:
                shutil.rmtree(options.folder / "cache", ignore_errors=True)
                kinds = {"first": False, "second": False}
            if rows <= options.lists_up_to:
                kinds["lists"] = True
            for kind, as_lists in kinds.items():
                figure = {
                    "rows": rows,
                    "processes": processes,
                    "kind": kind,
                    **start(str(source), processes, as_lists),
                }
                figures.append(figure)
                print(json.dumps(figure), flush=True)
        source.unlink()
    if options.output:
        options.output.write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
