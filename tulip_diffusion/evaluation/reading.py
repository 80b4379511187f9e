"""What the text states know, apart from what the UNet draws.

The read-out heads were fitted to CLIP's own penultimate states inside its window. Put on any encoder's states, at a
sentence's last token, they tell whether place, kind and colour can be read there as the UNet would expect them; for a
sentence that takes its colour from another, by the token distance between the two.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.read_out import ReadOut, load_read_out, sentence_targets

from .details import Detail, by_distance, by_position, share
from .drawing import open_pipeline
from .embeddings import batches
from .processes import is_first, shared
from .prompts import position_after, prompts_of
from .records import bin_table, write_record

BINS = {"colour by position": "token position", "colour by distance": "token distance of references"}


def text_states(pipeline: Any, captions: Sequence[Caption], batch: int = 16, **call: Any) -> list[Tensor]:
    """What the UNet is given for each caption, (tokens, width of both encoders)."""

    def states(rows: range) -> list[Tensor]:
        texts = [captions[row].text for row in rows]
        with torch.no_grad(), pipeline.conditioned(**call):
            return list(pipeline.encode_prompt(texts, do_classifier_free_guidance=False)[0].float().cpu().unbind(0))

    return [rows for part in shared(states, batches(len(captions), batch), "texts") for rows in part]


@torch.no_grad()
def read(states: Sequence[Tensor], captions: Sequence[Caption], heads: ReadOut) -> dict[str, list[Detail]]:
    """One [`Detail`] for every claim and each of place, kind and colour; beyond the states nothing is right."""
    found: dict[str, list[Detail]] = {"place": [], "kind": [], "colour": []}
    for number, (rows, caption) in enumerate(zip(states, captions, strict=True)):
        where, what = sentence_targets([caption])
        ends = where[:, 1]
        inside = ends < len(rows)
        guesses = [logits.argmax(-1) for logits in heads(rows[ends.clamp(max=len(rows) - 1)])]
        distance = {claim.tokens[1] - 1: claim.distance for claim in caption.claims if claim.role == "colour"}
        for name, guess, target in zip(found, guesses, what.unbind(1), strict=True):
            for index in (target >= 0).nonzero().flatten().tolist():
                end = int(ends[index])
                right = bool(inside[index] and guess[index] == target[index])
                role = "colour" if end in distance else "thing"
                found[name].append(Detail(number, position_after(end), role, distance.get(end), right, right))
    return found


def summarize_reading(found: dict[str, list[Detail]]) -> dict[str, Any]:
    """Shares by position (independent sentences) and by distance (references), for place, kind and colour."""
    summary: dict[str, Any] = {}
    for name, details in found.items():
        alone = [detail for detail in details if detail.role == "thing"]
        referring = [detail for detail in details if detail.role == "colour"]
        summary[name] = share(alone)
        summary[f"{name} of references"] = share(referring)
        summary[f"{name} of references beyond 77"] = share([d for d in referring if (d.distance or 0) > 77])
        summary[f"{name} by position"] = by_position(details)
        summary[f"{name} by distance"] = by_distance(details)
    return summary


def run(options: argparse.Namespace) -> None:
    """The command."""
    captions = prompts_of(options.prompts, options.count, options.split)
    call = {"overflow": options.overflow} if options.overflow else {}
    results: dict[str, Any] = {}
    for encoder in options.encoders:
        states = text_states(open_pipeline(encoder, options), captions, **call)
        for slot, name in enumerate(("l", "g")):
            heads = load_read_out(options.assets / "read_out" / f"{name}.safetensors")
            half = states[0].shape[1] // 2
            mine = [rows[:, slot * half : (slot + 1) * half].float() for rows in states]
            results[f"{encoder} {name}"] = summarize_reading(read(mine, captions, heads))
    told = {by: f"colour, by {what}" for by, what in BINS.items() if any(result[by] for result in results.values())}
    tables = "\n\n".join(f"{title}\n\n{bin_table(results, by)}" for by, title in told.items())
    print(tables)
    if is_first():
        write_record("reading", options, results, tables)
