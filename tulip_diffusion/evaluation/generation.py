"""Does the picture show what the prompt says, wherever in the prompt it says it?

Prompts come from the world of `tulip_diffusion.scenes`, whose oracle reads every place of a picture exactly, so no
judge model is needed. *Detail accuracy*: share of things that stand in their place in their colour, by the position of
the token with which the prompt has told it. *Reference accuracy*: the same for things whose colour is only given by
reference ("in the same colour as the tulip"), by the token distance to the sentence referred to.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import SPLITS, full_caption, reference_caption, window_caption
from tulip_diffusion.scenes.grammar import write_caption
from tulip_diffusion.scenes.oracle import read_scene
from tulip_diffusion.scenes.render import PLACES, random_scene

from .records import mean_over

WINDOW = 77
POSITIONS = (0, 77, 154, 231, 308, 500, 750, 1000)
DISTANCES = (0, 40, 77, 120, 160, 240)


def text_of_500(rng: np.random.Generator) -> Caption:
    return write_caption(rng, random_scene(rng, PLACES), tokens=500)


def text_of_1000(rng: np.random.Generator) -> Caption:
    return write_caption(rng, random_scene(rng, PLACES), tokens=1000)


def short_caption(rng: np.random.Generator) -> Caption:
    """A caption inside CLIP's window without references, up to 13 things in it."""
    while True:
        caption = window_caption(rng)
        if {claim.role for claim in caption.claims} == {"thing"}:
            return caption


PROMPTS: dict[str, Callable[[np.random.Generator], Caption]] = {
    "short": short_caption,
    "full": full_caption,
    "references": reference_caption,
    "500": text_of_500,
    "1000": text_of_1000,
}


@dataclass(frozen=True)
class Detail:
    """One claim of one prompt and whether its picture bears it out."""

    prompt: int
    position: int  # of the last token of the sentence that completes the claim
    role: str
    distance: int | None
    right: bool
    own: bool  # something of the right kind stands in the right place, in whatever colour


@dataclass(frozen=True)
class Share:
    """A share of details with its 95 % interval, drawn over prompts, since details of one picture go together."""

    right: float
    low: float
    high: float
    details: int


def prompts_of(name: str, count: int, split: str = "evaluation") -> list[Caption]:
    """The first `count` captions of a set of `PROMPTS`, always the same ones.

    Raises:
        ValueError: no such set.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompts must be one of {', '.join(PROMPTS)}, got {name!r}.")
    return [PROMPTS[name](np.random.default_rng(SPLITS[split] + index)) for index in range(count)]


def draw_captions(
    pipeline: Any, captions: Sequence[Caption], steps: int = 25, guidance: float = 3.0, batch: int = 8, **call: Any
) -> np.ndarray:
    """One picture for every caption, (captions, height, width, 3) in 0..1; caption i starts from noise of seed i."""
    import torch

    pictures = []
    for first in tqdm(range(0, len(captions), batch), desc="pictures", mininterval=5):
        rows = range(first, min(first + batch, len(captions)))
        pictures.append(
            pipeline(
                prompt=[captions[row].text for row in rows],
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator("cpu").manual_seed(row) for row in rows],
                output_type="np",
                **call,
            ).images
        )
    return np.concatenate(pictures)


def details(pictures: np.ndarray, captions: Sequence[Caption]) -> list[Detail]:
    found = []
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        seen = read_scene(picture).things
        for claim in caption.claims:
            thing = seen[claim.place]
            own = thing is not None and thing.kind == claim.thing.kind
            found.append(
                Detail(number, claim.tokens[1] - 1, claim.role, claim.distance, own and thing == claim.thing, own)
            )
    return found


def share(found: Iterable[Detail], of: Callable[[Detail], bool] = lambda detail: detail.right) -> Share | None:
    """The share of details for which `of` holds, None for no details; the interval is a bootstrap over prompts."""
    told = list(found)
    mean = mean_over((of(detail) for detail in told), (detail.prompt for detail in told))
    return None if mean is None else Share(mean.mean, mean.low, mean.high, mean.values)


def by_bin(found: Sequence[Detail], edges: Sequence[int], value: Callable[[Detail], int | None]) -> dict[str, Share]:
    """Shares of the details whose `value` lies above one edge and up to the next, by "low-high"."""
    shares = {}
    for low, high in itertools.pairwise(edges):
        inside = [detail for detail in found if (v := value(detail)) is not None and low < v <= high]
        if (accuracy := share(inside)) is not None:
            shares[f"{low}-{high}"] = accuracy
    return shares


def summarize(found: Sequence[Detail]) -> dict[str, Any]:
    """Detail accuracy over all, by position, and for references by distance, with what stands in their place."""
    plain = [detail for detail in found if detail.role == "thing"]
    referring = [detail for detail in found if detail.role == "colour"]
    return {
        "all": share(found),
        "position": by_bin(plain, POSITIONS, lambda detail: detail.position),
        "distance": by_bin(referring, DISTANCES, lambda detail: detail.distance),
        "own place of references": share(referring, lambda detail: detail.own),
    }


def changed(pictures: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How far pictures from the same noise are from those of another encoder: places read otherwise, and pixels."""
    pairs = [(read_scene(a).things, read_scene(b).things) for a, b in zip(pictures, reference, strict=True)]
    places = np.mean([a != b for one, other in pairs for a, b in zip(one, other, strict=True)])
    return {"places": float(places), "pixels": float(np.square(pictures - reference).mean() ** 0.5)}


def as_json(value: Any) -> Any:
    """Shares as dictionaries with four digits, anywhere inside `value`."""
    if isinstance(value, Share):
        return {k: round(v, 4) for k, v in asdict(value).items()}
    if isinstance(value, dict):
        return {key: as_json(item) for key, item in value.items()}
    return value


def table(summaries: dict[str, Any], by: str) -> str:
    """A Markdown table of one kind of bin, half the interval's width behind each share."""
    bins = list(dict.fromkeys(name for summary in summaries.values() for name in summary[by]))
    lines = ["| | " + " | ".join(bins) + " |", "|---" * (len(bins) + 1) + "|"]
    for name, summary in summaries.items():
        cells = [cell(summary[by].get(bin_)) for bin_ in bins]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(accuracy: Share | None) -> str:
    return "–" if accuracy is None else f"{accuracy.right:.2f} ± {(accuracy.high - accuracy.low) / 2:.2f}"


def plot(summaries: dict[str, Any], by: str, label: str, out: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, summary in summaries.items():
        shares = summary[by]
        middles = [sum(map(int, bin_.split("-"))) / 2 for bin_ in shares]
        right = np.array([s.right for s in shares.values()])
        errors = np.array([(s.right - s.low, s.high - s.right) for s in shares.values()]).T
        axes.errorbar(middles, right, yerr=np.abs(errors), marker="o", capsize=3, label=name)
    axes.axvline(WINDOW, color="0.7", linestyle=":")
    axes.set(xlabel=label, ylabel="share drawn rightly", ylim=(0, 1.02))
    axes.legend(frameon=False)
    figure.savefig(out, dpi=150)
    pyplot.close(figure)


def contact_sheet(pictures: dict[str, np.ndarray], captions: Sequence[Caption], count: int = 8) -> Any:
    """The first `count` prompts as columns: what they describe in the first row, then a row for each pipeline."""
    from PIL import Image

    from tulip_diffusion.scenes.render import render_array

    size = next(iter(pictures.values())).shape[1]
    truth = np.stack([render_array(caption.scene, size) for caption in captions[:count]])
    rows = [truth, *(drawn[:count] for drawn in pictures.values())]
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    image = Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8))
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=["clip", "longclip", "tulip-paper", "tulip"],
        help="text encoders of the family; changes are counted against the first",
    )
    parser.add_argument("--prompts", choices=PROMPTS, default="full", help="which kind of prompts (default full)")
    parser.add_argument("--count", type=int, default=256, help="how many prompts (default 256)")
    parser.add_argument("--split", choices=SPLITS, default="evaluation", help="tune on validation only")
    parser.add_argument("--overflow", nargs="+", default=["own"], help="windows, stretch, truncate")
    parser.add_argument("--pooled", nargs="+", default=["own"], help="first, last, mean")
    parser.add_argument("--sequence-length", nargs="+", default=["own"], help="auto, exact or a number")
    parser.add_argument("--attention-scale", nargs="+", default=["own"], help="none, log or a factor")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("outputs/generation"), help="folder for the results")


def policies(options: argparse.Namespace) -> list[tuple[str, str, dict[str, Any]]]:
    """Every combination asked for: its name (of what varies), its encoder and the pipeline call's keywords.

    "own" leaves a policy to the pipeline.
    """
    choices = {name: getattr(options, name) for name in ("overflow", "pooled", "sequence_length", "attention_scale")}
    varied = [name for name, values in choices.items() if len(values) > 1]
    combined = []
    for encoder, values in itertools.product(options.encoders, itertools.product(*choices.values())):
        call = dict(zip(choices, values, strict=True))
        name = " ".join([encoder, *(f"{key}={call[key]}" for key in varied)])
        combined.append((name, encoder, {key: number_or_word(value) for key, value in call.items() if value != "own"}))
    return combined


def number_or_word(value: str) -> int | float | str | None:
    if value == "none":
        return None
    try:
        return int(value) if value.isdigit() else float(value)
    except ValueError:
        return value


def run(options: argparse.Namespace, load: Callable[[str], Any]) -> None:
    """The command: draw, read, write. `load` makes a pipeline out of an encoder's name."""
    options.out.mkdir(parents=True, exist_ok=True)
    captions = prompts_of(options.prompts, options.count, options.split)
    summaries, pictures = {}, {}
    for name, encoder, call in policies(options):
        pipeline = load(encoder)
        pipeline.set_progress_bar_config(disable=True)
        pictures[name] = draw_captions(pipeline, captions, options.steps, options.guidance, **call)
        summaries[name] = summarize(details(pictures[name], captions))
        summaries[name]["changed"] = change = changed(pictures[name], next(iter(pictures.values())))
        print(f"{name}: {cell(summaries[name]['all'])}, {change['places']:.1%} of places changed", flush=True)
    record = {
        "command": {key: value for key, value in vars(options).items() if key != "run"},
        "results": as_json(summaries),
    }
    partial = options.out / "generation.json.part"
    partial.write_text(json.dumps(record, indent=1, default=str))
    partial.replace(options.out / "generation.json")
    contact_sheet(pictures, captions).save(options.out / "contact_sheet.png")
    for by, label in (("position", "token position"), ("distance", "tokens between reference and referent")):
        if any(summary[by] for summary in summaries.values()):
            print(f"\n{table(summaries, by)}")
            plot(summaries, by, label, options.out / f"{by}.png")
