"""Figures as PNG files, drawn without a display."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tulip_diffusion.files import replacing
from tulip_diffusion.models.positions import CLIP_LENGTH

from .records import Mean


def check_installed(*packages: str, extra: str = "eval") -> None:
    """Raise ImportError, before any work, where an optional package is missing that is needed after it."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ImportError(f'This needs {", ".join(missing)}, not installed here: pip install ".[{extra}]", in a clone')


@contextlib.contextmanager
def figure(out: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] = (7, 4)) -> Iterator[Any]:
    """A grid of axes, (rows, columns), each panel of `size` inches; written to `out` at the end of the block."""
    from matplotlib.figure import Figure

    width, height = size
    drawing = Figure(figsize=(width * columns, height * rows), layout="constrained")
    yield drawing.subplots(rows, columns, squeeze=False)
    with replacing(out) as unfinished:
        drawing.savefig(unfinished, dpi=150, format="png")


def curve(axes: Any, positions: Sequence[float], values: Sequence[Mean | float | None], label: str) -> None:
    """One line with markers, and with the intervals of means; None leaves a gap."""
    known = [(x, y) for x, y in zip(positions, values, strict=True) if y is not None]
    across = [x for x, _ in known]
    heights = [y.mean if isinstance(y, Mean) else y for _, y in known]
    means = [y for _, y in known if isinstance(y, Mean)]
    errors = None
    if means:
        errors = [[max(0.0, y.mean - y.low) for y in means], [max(0.0, y.high - y.mean) for y in means]]
    axes.errorbar(across, heights, yerr=errors, marker="o", markersize=4, capsize=3, label=label)


def level(axes: Any, height: float, text: str) -> None:
    """A dotted line at `height`, such as chance."""
    axes.axhline(height, color="0.6", linestyle=":", label=text)


def legend(axes: Any) -> None:
    """Names of the lines, beside the panel where they hide none."""
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def bins_figure(results: Mapping[str, Any], by: str, across: str, up: str, out: Path) -> None:
    """Shares by bin, one line an entry of `results`, whose `by` is a dictionary of bins; CLIP's window is marked."""
    with figure(out) as ((axes,),):
        for name, result in results.items():
            curve(axes, middles(result[by]), list(result[by].values()), name)
        axes.axvline(CLIP_LENGTH, color="0.7", linestyle=":")
        axes.set(xlabel=across, ylabel=up, ylim=(0, 1.02))
        legend(axes)


def shaded_words(axes: Any, words: Sequence[str], shades: Sequence[float], title: str, columns: int = 100) -> None:
    """Words as running text of `columns` characters a line, each on a ground as dark as its shade, 0 to 1."""
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_axis_off()
    line, column = 0, 0
    for word, shade in zip(words, shades, strict=True):
        if column + len(word) > columns:
            line, column = line + 1, 0
        ground = {"facecolor": (1.0, 1 - 0.75 * shade, 1 - shade), "edgecolor": "none", "pad": 1.2}
        axes.text(column, -line, word, family="monospace", fontsize=7, va="center", bbox=ground)
        column += len(word) + 1
    axes.set(xlim=(0, columns), ylim=(-line - 1, 1))


def middles(bins: Mapping[str, Any]) -> list[float]:
    """The middle of each bin named "low-high"."""
    return [sum(map(int, name.split("-"))) / 2 for name in bins]
