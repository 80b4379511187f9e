"""Does the picture show what the prompt says, wherever in the prompt it says it?

Draws prompts of the embedded family's world and reads the pictures exactly. A killed run goes on where it stopped, and
`accelerate launch` shares the drawing. Writes figures (generation.json), tables, plots and a contact sheet.
"""

import argparse
import itertools
import textwrap
from typing import Any

import numpy as np

from tulip_diffusion.files import remove, replacing

from .details import changed, details, summarize
from .drawing import contact_sheet, draw_captions, open_pipeline
from .negatives import effect
from .plots import bins_figure
from .processes import is_first
from .prompts import prompts_of
from .records import bin_table, markdown, write_record

POLICIES = ("overflow", "pooled", "sequence_length", "attention_scale")
BINS = {"position": "token position", "distance": "tokens between reference and referent"}


def policies(options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """Every combination asked for: its name (of what varies), its encoder and the pipeline call's keywords.

    "own" leaves a policy to the pipeline.
    """
    choices = {name: getattr(options, name) for name in POLICIES}
    varied = [name for name, values in choices.items() if len(values) > 1]
    combined = []
    for encoder, values in itertools.product(options.encoders, itertools.product(*choices.values())):
        call = dict(zip(choices, values, strict=True))
        name = " ".join([encoder, *(f"{key}={call[key]}" for key in varied)])
        combined.append((name, encoder, {key: number_or_word(value) for key, value in call.items() if value != "own"}))
    return combined


def number_or_word(value: str) -> int | float | str | None:
    """For `type=`: None for "none", a number where it is one, else the word."""
    if value == "none":
        return None
    try:
        return int(value) if value.isdigit() else float(value)
    except ValueError:
        return value


def in_short(text: str) -> str:
    """`text` in quotes, its first words where it is long."""
    return f'"{textwrap.shorten(text, 40, placeholder=" …")}"'


def run(options: argparse.Namespace) -> None:
    """The command: draw, read, write."""
    captions = prompts_of(options.prompts, options.count, options.split)
    kept = options.out / "unfinished"
    drawing = {"steps": options.steps, "guidance": options.guidance, "batch": options.batch, "keep": kept}
    results: dict[str, Any] = {}
    pictures: dict[str, np.ndarray] = {}
    opened = None
    for name, encoder, call in policies(options):
        if encoder != opened:
            pipeline, opened = open_pipeline(encoder, options), encoder
        for number, negative in enumerate((None, *(options.negative or []))):
            row = name if negative is None else f"{name}, negative {number}: {in_short(negative)}"
            more = {} if negative is None else {"negative_prompt": negative}
            pictures[row] = draw_captions(pipeline, captions, **drawing, **call, **more)
            results[row] = summarize(details(pictures[row], captions))
            results[row]["changed"] = change = changed(pictures[row], next(iter(pictures.values())))
            if negative is not None:
                results[row]["negative"] = effect(negative, pictures[name], pictures[row], captions)
            print(f"{row}: {results[row]['all']}, {change['places']:.1%} of places changed", flush=True)
    if is_first():
        write(results, pictures, captions, options)
        remove(kept)


def write(results: dict[str, Any], pictures: dict[str, np.ndarray], captions: Any, options: Any) -> None:
    """Print tables; write them, the contact sheet, plots and the record."""
    told = {by: label for by, label in BINS.items() if any(result[by] for result in results.values())}
    parts = [f"Details right, by {label}\n\n{bin_table(results, by)}" for by, label in told.items()]
    if options.negative:
        parts.append(negative_table(results))
    print("\n" + "\n\n".join(parts))
    with replacing(options.out / "contact_sheet.png") as unfinished:
        contact_sheet(pictures, captions).save(unfinished)
    for by, label in told.items():
        bins_figure(results, by, label, "share of details drawn right", options.out / f"{by}.png")
    write_record("generation", options, results, "\n\n".join(parts))


def negative_table(results: dict[str, Any]) -> str:
    """What negative prompts do, as a Markdown table."""
    found = {name: result["negative"] for name, result in results.items() if "negative" in result}
    columns = list(dict.fromkeys(key for figures in found.values() for key in figures if key != "names"))
    rows = [[name, ", ".join(f["names"]) or "nothing", *map(f.get, columns)] for name, f in found.items()]
    title = "What negative prompts do: places a picture that show what they name, and the share of other details right"
    return f"{title}\n\n{markdown(['', 'names', *columns], rows)}"
