"""What the text states know, apart from what the UNet draws.

The read-out heads were fitted to CLIP's own penultimate states inside its window. Put on any encoder's states, at a
sentence's last token, they tell whether place, kind and colour can be read there as the UNet would expect them; for a
sentence that takes its colour from another, by the token distance between the two.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import SPLITS
from tulip_diffusion.scenes.read_out import ReadOut, load_read_out, sentence_targets

from .generation import DISTANCES, POSITIONS, PROMPTS, Detail, as_json, by_bin, cell, prompts_of, share, table


@torch.no_grad()
def text_states(pipeline: Any, captions: Sequence[Caption], batch: int = 16, **call: Any) -> list[Tensor]:
    """What the UNet is given for each caption, (tokens, width of both encoders)."""
    states: list[Tensor] = []
    with pipeline.conditioned(**call):
        for first in tqdm(range(0, len(captions), batch), desc="texts", mininterval=5):
            texts = [caption.text for caption in captions[first : first + batch]]
            states += pipeline.encode_prompt(texts, do_classifier_free_guidance=False)[0].float().cpu().unbind(0)
    return states


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
                found[name].append(Detail(number, end, role, distance.get(end), right, right))
    return found


def summarize_reading(found: dict[str, list[Detail]]) -> dict[str, Any]:
    """Shares by position (independent sentences) and by distance (references), for place, kind and colour."""
    summary: dict[str, Any] = {}
    for name, details in found.items():
        plain = [detail for detail in details if detail.role == "thing"]
        referring = [detail for detail in details if detail.role == "colour"]
        summary[name] = share(plain)
        summary[f"{name} of references"] = share(referring)
        summary[f"{name} of references beyond 77"] = share([d for d in referring if (d.distance or 0) > 77])
        summary[f"{name} by position"] = by_bin(plain, POSITIONS, lambda detail: detail.position)
        summary[f"{name} by distance"] = by_bin(referring, DISTANCES, lambda detail: detail.distance)
    return summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoders", nargs="+", default=["clip", "longclip", "tulip-paper", "tulip"])
    parser.add_argument("--overflow", help="windows, stretch or truncate (default: the encoder's own)")
    parser.add_argument("--prompts", choices=PROMPTS, default="references", help="which kind (default references)")
    parser.add_argument("--count", type=int, default=256, help="how many prompts (default 256)")
    parser.add_argument("--split", choices=SPLITS, default="evaluation", help="tune on validation only")
    parser.add_argument("--out", type=Path, default=Path("outputs/reading"), help="folder for the results")


def run(options: argparse.Namespace, load: Callable[[str], Any], read_out: Path) -> None:
    """The command. `load` makes a pipeline out of an encoder's name; `read_out` holds the heads of both slots."""
    options.out.mkdir(parents=True, exist_ok=True)
    captions = prompts_of(options.prompts, options.count, options.split)
    call = {"overflow": options.overflow} if options.overflow else {}
    results: dict[str, Any] = {}
    for encoder in options.encoders:
        states = text_states(load(encoder), captions, **call)
        for slot, name in enumerate(("l", "g")):
            heads = load_read_out(read_out / f"{name}.safetensors")
            half = states[0].shape[1] // 2
            mine = [rows[:, slot * half : (slot + 1) * half].float() for rows in states]
            results[f"{encoder} {name}"] = summarize_reading(read(mine, captions, heads))
    for line in ("colour", "colour of references beyond 77", "place of references beyond 77"):
        print(line + ": " + ", ".join(f"{name} {cell(summary[line])}" for name, summary in results.items()))
    print(table(results, "colour by distance"))
    record = {"command": {k: v for k, v in vars(options).items() if k != "run"}, "results": as_json(results)}
    partial = options.out / "reading.json.part"
    partial.write_text(json.dumps(record, indent=1, default=str))
    partial.replace(options.out / "reading.json")
