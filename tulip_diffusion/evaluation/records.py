"""What an evaluation leaves behind: means with intervals, one JSON record, Markdown tables."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tulip_diffusion.files import write_text

from .processes import is_first, wait_for_all


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval, drawn over groups of values that go together, such as those of one text."""

    mean: float
    low: float
    high: float
    values: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {(self.high - self.low) / 2:.3f}"


def mean_over(values: Iterable[float], groups: Iterable[int]) -> Mean | None:
    """Mean of all values, None for none; the interval is a bootstrap over `groups`, one group number a value."""
    by_group: dict[int, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        by_group.setdefault(group, []).append(value)
    if not by_group:
        return None
    sums = np.array([sum(of_group) for of_group in by_group.values()])
    counts = np.array([len(of_group) for of_group in by_group.values()])
    draws = np.random.default_rng(0).integers(len(counts), size=(1000, len(counts)))
    low, high = np.quantile(sums[draws].sum(1) / counts[draws].sum(1), (0.025, 0.975))
    return Mean(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()))


def plain(value: Any) -> Any:
    """`value` as JSON holds it: means as dictionaries, numbers with five digits."""
    if isinstance(value, Mean):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; None is a dash, a float has three digits."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join(map(cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """A value as a table's cell; None is a dash."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def bin_table(results: dict[str, Any], by: str) -> str:
    """Means by bin as Markdown, one row an entry of `results`, whose `by` is a dictionary of bins."""
    bins = list(dict.fromkeys(bin_ for result in results.values() for bin_ in result[by]))
    return markdown(["", *bins], [[name, *map(result[by].get, bins)] for name, result in results.items()])


def write_record(name: str, options: argparse.Namespace, results: dict[str, Any], tables: str) -> None:
    """Write NAME.json (command and results) and NAME.md (tables) to `options.out`."""
    command = {key: value for key, value in vars(options).items() if key != "run"}
    record = json.dumps({"command": command, "results": plain(results)}, indent=1, default=str)
    write_text(options.out / f"{name}.json", record)
    write_text(options.out / f"{name}.md", tables + "\n")


def agree_on_settings(file: Path, settings: dict[str, Any], folders: str) -> None:
    """Note `settings` in `file`, or compare them with what is noted there.

    Args:
        folders: the options that name another folder.

    Raises:
        ValueError: what lies beside `file` was made with other settings.
    """
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        if name := next((name for name, value in settings.items() if found.get(name) != value), None):
            raise ValueError(
                f"{file.parent} was made with {name} {found.get(name)}, and now it is {settings[name]}. Use the same, "
                f"or another {folders}."
            )
    wait_for_all()
    if is_first():
        write_text(file, json.dumps(settings, indent=1))
