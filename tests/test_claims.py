"""What README and docs claim of the shipped weights is what the records of their evaluations in docs/records say.

Every claim is written here from its record and must stand on its page word for word; no other figure may stand there.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.documents import PAGES, ROOT
from tulip_diffusion.embedded import ASSETS
from tulip_diffusion.evaluation import generation, positions, reading, retrieval
from tulip_diffusion.evaluation.plan import ENCODERS
from tulip_diffusion.evaluation.provenance import read_provenance
from tulip_diffusion.evaluation.records import Mean, bin_table
from tulip_diffusion.evaluation.report import markdown_report, sections
from tulip_diffusion.evaluation.summary import summary_rows
from tulip_diffusion.provenance import files_hash
from tulip_diffusion.training.ablations import method

RECORDS = {section.label: section for section in sections(ROOT / "docs" / "records")}
RESULTS = {label: section.record["results"] for label, section in RECORDS.items()}
NO_SCALING = "1,000 tokens 0.46 → 0.78"
LOG = (ROOT / "training" / "LOG.md").read_text(encoding="utf-8")
README_ROWS = {
    "clip": "CLIP, cut at 77 tokens",
    "clip-windows": "CLIP, in windows of whole sentences",
    "compel": "CLIP in compel's windows",
    "longclip": "Long-CLIP",
    "finelip": "FineLIP, with our anchor",
    "tulip-paper": "TULIP, the published objective",
    "tulip-l": "TULIP in one slot, CLIP windows in the other",
    "tulip": "TULIP in both",
}
DRAWN = ("short prompts", "225 tokens", "500 tokens", "1,000 tokens", "2,000 tokens")
FOLDERS = ("generation-short", "generation-full", "generation-500", "generation-1000", "generation-2000")
DETAILS = {  # what docs/conditioning.md calls the rows
    "clip": "`clip`, cut off",
    "clip-windows": "`clip-windows`",
    "compel": "`compel`, its own windows",
    "longclip": "`longclip`",
    "finelip": "`finelip`, trained with our anchor",
    "tulip-paper": "`tulip-paper`, the published objective",
    "tulip-l": "`tulip-l`, the second slot in windows",
    "tulip": "`tulip`, both slots",
}


def short(mean: dict) -> str:
    return f"{mean['mean']:.2f}"


def half(mean: dict) -> float:
    return (mean["high"] - mean["low"]) / 2


def wide(mean: dict | None) -> str:
    return "–" if mean is None else f"{short(mean)} ± {half(mean):.2f}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def readme() -> Iterator[str]:
    rows = summary_rows(RESULTS, [*ENCODERS, "compel"])
    far = {name: result["far references"] for name, result in RESULTS["generation-references"].items()}
    for name, label in README_ROWS.items():
        figures = ["–" if rows[name][title] is None else f"{rows[name][title]:.2f}" for title in DRAWN]
        yield row(label, *figures, wide(far[name]))
    for folder, count in zip(FOLDERS, (100, 200, 100, 64, 64), strict=True):
        assert RECORDS[folder].record["command"]["count"] == count
    assert RECORDS["generation-references"].record["command"]["count"] == 200
    yield f"{far['tulip']['values']} of them in 200 other prompts"
    halves = sorted(f"{half(result['all']):.2f}" for folder in FOLDERS for result in RESULTS[folder].values())
    yield f"Intervals (95 %) are ± {halves[0]} to {halves[-1]} where none is given"
    behind = max(
        RESULTS[folder]["clip-windows"]["all"]["mean"] - RESULTS[folder]["tulip"]["all"]["mean"] for folder in FOLDERS
    )
    yield f"TULIP in both slots is up to {behind:.3f} behind windows"
    long = {name: figures["t2i_R@1"] for name, figures in RESULTS["retrieval"]["measured"]["world-long"].items()}
    short_ones = {
        name: figures["t2i_R@1"] for name, figures in RESULTS["retrieval"]["measured"]["world-short"].items()
    }
    assert RECORDS["retrieval"].record["command"]["count"] == 1000
    yield f"of 1,000 long captions {long['tulip']:.3f} find their picture"
    yield f"CLIP fine-tuned for 60 steps where this took 150: {long['clip-finetuned']:.3f}; CLIP: {long['clip']:.3f}"
    yield f"Of 1,000 short ones {short_ones['tulip']:.3f} do (CLIP: {short_ones['clip']:.3f})"


def conditioning() -> Iterator[str]:
    full, references = RESULTS["generation-full"], RESULTS["generation-references"]
    for name, label in DETAILS.items():
        yield row(label, wide(full[name]["all"]), *map(wide, full[name]["position"].values()))
        if name != "clip":
            figures = references[name]
            own = short(figures["own place of references"])
            yield row(f"`{name}`", *map(wide, figures["distance"].values()), own)
    for name in ("clip", "clip-windows", "compel", "tulip-l", "tulip"):
        found = [RESULTS[folder].get(name, {"all": None})["all"] for folder in FOLDERS[2:]]
        yield row(DETAILS["clip"] if name == "clip" else f"`{name}`", *map(wide, found))
    behind = (
        f"{100 * (RESULTS[folder]['clip-windows']['all']['mean'] - RESULTS[folder]['tulip']['all']['mean']):.1f}"
        for folder in FOLDERS[2:]
    )
    yield "TULIP in both slots is {} points behind them at 500 tokens, {} at 1,000 and {} at 2,000".format(*behind)
    yield from negatives()
    assert NO_SCALING in LOG  # of encoders that are not shipped, and said to be
    yield "drew 0.46 of 1,000 tokens' things, with it 0.78, before anything was trained"


def negatives() -> Iterator[str]:
    for folder, other in (("generation-full-negative", "clip-windows"), ("generation-short-negative", "clip")):
        found = RESULTS[folder]
        assert RECORDS[folder].record["command"]["count"] == 32
        assert max(half(result["all"]) for result in found.values()) < 0.025
        for name in (other, "tulip"):
            rows = [result for row, result in found.items() if row.split(",")[0] == name]
            none, empty, style, page, names = (f"{result['all']['mean']:.3f}" for result in rows)
            yield f"| `{name}` | {none} | {empty} | {style} | {page} | {names} |"
            effect = rows[-1]["negative"]
            assert effect["named with"] == effect["named without"]
    yield "32 prompts each, ± 0.02"
    yield f"{effect['named with']['mean']:.2f} places a picture of short prompts"


def encoder() -> Iterator[str]:
    assert NO_SCALING in LOG
    yield "from 0.46 to 0.78 at 1,000 tokens"


def evaluation() -> Iterator[str]:
    found = benchmark("retrieval")
    full = found["flickr30k"]["results"]["recall_at_k"]
    yield f"took {full['cpu seconds']:.0f} CPU seconds on one thread and {full['peak GB']} GB above the embeddings"
    plain = found["against the product"]
    yield f"At {plain['images']:,} × {plain['texts']:,} it takes {plain['time against the product']} times the plain"


def demo() -> Iterator[str]:
    found = benchmark("demo")
    results = list(found["results"].values())
    for label, key, digits in (
        ("time against three pipelines", "time against three pipelines", 2),
        ("weights, embedded family (MiB)", "weights MiB", 0),
        ("peak memory, embedded family (MiB)", "peak MiB", 0),
    ):
        yield row(label, *(f"{figures[key]:.{digits}f}" for figures in results))
    shared, three = found["sdxl weights GiB"].values()
    yield row("weights at SDXL's sizes, half precision (GiB)", *(f"{size:.1f}" for size in (shared, shared, three)))


def benchmark(name: str) -> Any:
    return json.loads((ROOT / "tests" / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def training() -> Iterator[str]:
    record = json.loads((ROOT / "training" / "runs" / "stage1_ablation.json").read_text(encoding="utf-8"))
    budget = record["budget"]
    yield f"{budget['steps']} steps of {budget['batch']} captions"
    yield f"{budget['count']} texts read and {budget['pictures']} pictures drawn of each kind"
    for name, figures in record["rows"].items():
        shares = (wide(figures[column]) for column in ("far references read", "drawn, 225", "drawn, 1,000"))
        yield row(name, f"{figures['token error']:.3f}", *shares)


CLAIMS = {
    "README.md": readme,
    "conditioning.md": conditioning,
    "encoder.md": encoder,
    "demo.md": demo,
    "evaluation.md": evaluation,
    "training.md": training,
}
OTHERS = {  # figures of a page that are no measurement of the shipped weights
    "README.md": (
        "Apache-2.0",
        "Python 3.11 or newer",
        "ShareGPT4V's 1.2 million",
        "1.4 H100-hours for the encoder, 0.9 more",
    ),  # called estimates
    "evaluation.md": ("0.8 of the cosine and 0.2 of the late interaction",),
    "pipelines.md": ("1.1 times, 1.21 times, 1/1.1 times", "1.3 times, from -5 to 5", "weighs 1.1"),
    "training.md": (  # in the log
        *("Pooled states take 1.5 kB", "(λ, 0.2)", "1.4 to 1.8 times as fast as `sdpa`"),
        *("| `penultimate` | 0.036 | 0.035 | 0.991 |", "| `last` | 0.060 | 0.030 | 0.991 |"),
        *(
            "| 0 | 75.2 / 89.0 | 97.8 / 98.4 |",
            "| 0.5 | 97.4 / 98.0 | 97.4 / 99.2 |",
            "| 0.85 | 98.8 / 99.4 | 97.2 / 99.2 |",
        ),
        *(
            "| **0.7** | 98.2 / 99.2 | 97.4 / 99.2 |",
            "| 1 | 98.8 / 99.2 | 96.4 / 98.8 |",
            "| CLIP | 4.4 / 11.8 | 98.2 / 99.2 |",
        ),
        *("0.047 for TULIP as it is, 0.031 with the difference added", "TULIP's own error is 0.027"),
    ),
}
# Made from records; of 0.1.0; of towers trained for it; of other libraries; held to records below.
ELSEWHERE = {"results.md", "results-0.1.0.md", "finelip.md", "versions.md", "performance.md"}
FIGURE = re.compile(r"(?<![\w.])\d*\.\d+(?![\w.]*\d)")
NUMBER = re.compile(r"\d+\.\d+")


def prose(page: str) -> str:
    """The page without blocks of code, its lines joined."""
    text = re.sub(r"^```.*?^```", "", PAGES[page].read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return " ".join(text.split())


@pytest.mark.parametrize("page", CLAIMS)
def test_a_pages_claims_are_what_the_records_say(page):
    text = prose(page)
    missing = [claim for claim in CLAIMS[page]() if claim not in text]
    assert not missing, f"the records say, and {page} does not:\n" + "\n".join(missing)


@pytest.mark.parametrize("page", sorted(PAGES.keys() - ELSEWHERE))
def test_a_page_has_no_other_figures(page):
    text = prose(page)
    for claim in (*CLAIMS.get(page, tuple)(), *OTHERS.get(page, ())):
        text = text.replace(claim, "")
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv:[\d.]+", "", text)  # code and addresses
    text = re.sub(r"Stable Diffusion [\d., and]*\d", "", text)  # names
    assert not FIGURE.findall(text)


def numbers(value: Any) -> Iterator[float]:
    """All numbers in a record."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def test_figures_of_the_performance_page_are_in_the_records_that_it_names():
    """Each section's in its own records, rounded; those of the last, which sums up, in any."""
    *sections_of_it, summary = re.split(r"^## ", PAGES["performance.md"].read_text(encoding="utf-8"), flags=re.M)
    named = [re.findall(r"results/(\w+)\.json", section) for section in sections_of_it]
    every = sorted({name for names in named for name in names})
    for section, names in zip([*sections_of_it, summary], [*named, every], strict=True):
        found = [number for name in names for number in numbers(benchmark(name))]
        for figure in FIGURE.findall(re.sub(r"`[^`]*`|compel [\d.]+", "", section)):
            digits = len(figure.partition(".")[2])
            assert any(f"{number:.{digits}f}" == figure for number in found), f"{figure} in {section[:40]!r}"
    for name in every:
        record = benchmark(name)
        assert record["machine"]["cpu"] and record["command"].startswith("python -m tests.benchmarks.bench_"), name


@pytest.mark.parametrize("label", RECORDS)
def test_records_are_of_the_weights_that_ship(label):
    found = read_provenance(ROOT / "docs" / "records" / label)
    assert found["weights"] == files_hash(ASSETS)
    assert re.fullmatch(r"[0-9a-f]{12}", found["commit"]), "measured with changed files"
    command = RECORDS[label].record["command"]
    assert str(command["out"]).startswith("outputs/") and command["assets"] == "tulip_diffusion/assets"
    assert "/home" not in json.dumps(command) and "/tmp" not in json.dumps(command)


def revived(value: Any) -> Any:
    """Means of a record as they were before they were written."""
    if not isinstance(value, dict):
        return value
    is_mean = value.keys() == {"mean", "low", "high", "values"}
    return Mean(**value) if is_mean else {key: revived(item) for key, item in value.items()}


def tables(section) -> list[str]:
    """The tables that a record's figures make."""
    results = revived(section.record["results"])
    if section.name == "generation":
        found = [bin_table(results, by) for by in generation.BINS if any(result[by] for result in results.values())]
        negative = any("negative" in result for result in results.values())
        return [*found, generation.negative_table(results)] if negative else found
    if section.name == "reading":
        return [bin_table(results, by) for by in reading.BINS]
    if section.name == "ablation":
        return [method.table(results, section.record["command"]["count"])]
    if section.name == "positions":
        return positions.tables(results).split("\n\n")[1::2]
    assert section.name == "retrieval"
    return [retrieval.recall_table(name, rows) for name, rows in results["measured"].items()]


def holds(written: str, table: str) -> bool:
    """Whether `table` stands in `written`, but for the last digit of a figure: a record keeps five."""
    shape, wanted = NUMBER.sub("\0", written), [float(number) for number in NUMBER.findall(table)]
    numbers = [float(number) for number in NUMBER.findall(written)]
    starts = (shape[: found.start()].count("\0") for found in re.finditer(re.escape(NUMBER.sub("\0", table)), shape))
    return any(np.allclose(numbers[start : start + len(wanted)], wanted, atol=0.0011) for start in starts)


@pytest.mark.parametrize("label", RECORDS)
def test_tables_are_what_their_records_figures_make(label):
    for table in tables(RECORDS[label]):
        assert holds(RECORDS[label].tables, table), table


def test_the_results_page_is_made_from_the_records():
    page = PAGES["results.md"]
    assert page.read_text(encoding="utf-8") == markdown_report(list(RECORDS.values()), page.parent)
