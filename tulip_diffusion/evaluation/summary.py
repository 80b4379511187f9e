"""The table on top of the report: one figure from each record, the encoders as rows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .records import markdown


@dataclass(frozen=True)
class Column:
    """One figure: the folder of its record, how it is read from the results for one encoder, and what it says."""

    title: str
    folder: str
    value: Callable[[Any, str], float | None]
    sentence: str


def drawn(results: Any, encoder: str) -> float:
    """Share of details drawn right."""
    return results[encoder]["all"]["mean"]


def far_references(results: Any, encoder: str) -> float:
    """Share of far references drawn right."""
    return results[encoder]["far references"]["mean"]


def recall(name: str) -> Callable[[Any, str], float]:
    """How to read text-to-image R@1 of the set `name` off a record."""
    return lambda results, encoder: results["measured"][name][encoder]["t2i_R@1"]


COLUMNS = (
    Column("short prompts", "generation-short", drawn, "Details drawn right of prompts that fit CLIP's 77 tokens."),
    Column("225 tokens", "generation-full", drawn, "The same for prompts of sixteen things, about 225 tokens."),
    Column("500 tokens", "generation-500", drawn, "The same for prompts of 500 tokens."),
    Column("1,000 tokens", "generation-1000", drawn, "The same for prompts of 1,000 tokens."),
    Column("2,000 tokens", "generation-2000", drawn, "The same for prompts of 2,000 tokens."),
    Column(
        "far references",
        "generation-references",
        far_references,
        "Things drawn right whose colour is that of another, told more than 77 tokens before.",
    ),
    Column("short captions", "retrieval", recall("world-short"), "Short captions that find their picture (R@1)."),
    Column("long captions", "retrieval", recall("world-long"), "Captions of about 230 tokens that do."),
    Column(
        "needle",
        "positions",
        lambda results, encoder: results[encoder]["needle"]["1000"]["last of first"],
        "How well a sentence at the end of 1,000 tokens is found, as a share of one at the beginning.",
    ),
    Column(
        "kept of CLIP",
        "fidelity",
        lambda results, encoder: results[encoder]["near"]["g"]["penultimate_cosine"],
        "Cosine of the second encoder's token states with CLIP's, up to 77 tokens.",
    ),
)


def summary_rows(records: Mapping[str, Any], encoders: list[str]) -> dict[str, dict[str, float | None]]:
    """Encoder to its figures by column title, None where a record does not have one; empty rows are left out."""
    rows = {}
    for encoder in encoders:
        row = {column.title: figure(column, records, encoder) for column in COLUMNS}
        if any(value is not None for value in row.values()):
            rows[encoder] = row
    return rows


def figure(column: Column, records: Mapping[str, Any], encoder: str) -> float | None:
    """A column's figure for one encoder, None where it was not measured."""
    try:
        return column.value(records[column.folder], encoder)
    except (KeyError, TypeError):  # no such record, or this encoder is not in it
        return None


def summary(records: Mapping[str, Any], encoders: Mapping[str, str]) -> str:
    """The summary in Markdown: a table, the best of each column in bold, and one sentence a column and an encoder.

    `records` are results by their folder; `encoders` names to what they are. Empty where nothing is known.
    """
    rows = summary_rows(records, list(encoders))
    columns = [column for column in COLUMNS if any(row[column.title] is not None for row in rows.values())]
    if not columns:
        return ""
    best = {c.title: max(row[c.title] or 0 for row in rows.values()) for c in columns}

    def cell(title: str, value: float | None) -> str | None:
        if value is None:
            return None
        return f"**{value:.2f}**" if len(rows) > 1 and value == best[title] else f"{value:.2f}"

    table = [[name, *(cell(c.title, row[c.title]) for c in columns)] for name, row in rows.items()]
    meanings = "\n".join(f"- **{column.title}**: {column.sentence}" for column in columns)
    names = "\n".join(f"- **{name}**: {encoders[name]}." for name in rows)
    parts = [markdown(["", *(column.title for column in columns)], table), meanings, "The encoders:", names]
    return "\n\n".join(parts)
