"""Which words of one prompt each encoder's conditioning gives the UNet's attention.

Draws one prompt with each encoder from the same noise and averages the cross-attention on every token over layers,
heads, pixels and steps. Start and end token, where much attention rests that says nothing, are counted apart; the
words' attention is given as a multiple of an even spread. Writes attribution.json, the words shaded by it
(attribution.png), and the pictures side by side (strip.png). With --model it works on any SDXL.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tulip_diffusion import arguments
from tulip_diffusion.files import replacing

from .cross_attention import watched_attention
from .details import hits
from .drawing import draw_texts, open_pipeline, to_image
from .plots import figure, shaded_words
from .processes import is_first
from .prompts import position_after, prompts_of
from .records import markdown, write_record
from .side_by_side import Panel, make_strip

BINS = (77, 154, 248)


@dataclass(frozen=True)
class Attribution:
    """What one encoder's conditioning of one prompt does: the picture, and the UNet's attention on its text.

    `words` are the prompt's tokens as text and `attention` their attention over that of an even spread, 0 for those
    that the encoder does not read; `start` and `end` are the shares that rest on BOS, and on EOS and pads.
    """

    picture: Image.Image
    words: tuple[str, ...]
    attention: tuple[float, ...]
    start: float
    end: float

    def beyond(self, limit: int) -> float | None:
        """Share of the words' attention on those that an encoder of `limit` positions cannot be told."""
        far = [position_after(token) > limit for token in range(1, len(self.words) + 1)]
        if not any(far):
            return None
        return sum(a for a, is_far in zip(self.attention, far, strict=True) if is_far) / max(sum(self.attention), 1e-9)


def attribute(
    pipeline: Any, prompt: str, seed: int = 0, steps: int = 25, guidance: float = 3.0, **call: Any
) -> Attribution:
    """Draw `prompt` and tell where its UNet looked; `call` holds more keywords for the pipeline."""
    words = pipeline.describe_prompt(prompt).pieces
    with watched_attention(pipeline.unet) as seen:
        (picture,) = draw_texts(pipeline, [prompt], [seed], steps, guidance, **call)
    own, attention = seen.mean, torch.zeros(len(words))
    read = min(len(words), len(own) - 2)  # BOS, the words that there is room for, EOS, pads
    attention[:read] = own[1 : 1 + read]
    total = attention.sum().clamp(min=1e-12)
    even = (attention / total * len(words)).tolist()
    return Attribution(to_image(picture), words, tuple(even), own[0].item(), own[1 + read :].sum().item())


def run(options: argparse.Namespace) -> None:
    """The command."""
    given = options.prompt is not None
    prompt = arguments.read_prompt(options.prompt) if given else prompts_of(options.prompts, 1)[0].text
    found = {}
    for name in options.encoders:
        pipeline = open_pipeline(name, options)
        found[Path(name).name] = attribute(pipeline, prompt, options.seed, options.steps, options.guidance)
    results = {name: record_of(one) for name, one in found.items()}
    rows = [[name, *map(row.get, ("start", "end")), *row["beyond"].values()] for name, row in results.items()]
    table = markdown(["", "on the start token", "on the end token", *(f"beyond {limit}" for limit in BINS)], rows)
    title = "The UNet's attention on its text, over layers, heads, pixels and steps; of the words', the share beyond"
    print(f"{title}\n\n{table}")
    if is_first():
        panels = [Panel(one.picture, name, hits(prompt, one.picture)) for name, one in found.items()]
        with replacing(options.out / "strip.png") as unfinished:
            make_strip(panels, list(zip(*words_of(found), strict=True))).save(unfinished)
        plot_words(found, options.out / "attribution.png")
        write_record("attribution", options, {"prompt": prompt, **results}, f"{title}\n\n{table}")


def record_of(one: Attribution) -> dict[str, Any]:
    """What the JSON record holds of one encoder."""
    beyond = {str(limit): one.beyond(limit) for limit in BINS}
    return {"words": one.words, "attention": one.attention, "start": one.start, "end": one.end, "beyond": beyond}


def words_of(found: dict[str, Attribution]) -> tuple[Sequence[str], range]:
    """The prompt's tokens with their positions, BOS being 0."""
    words = next(iter(found.values())).words
    return words, range(1, len(words) + 1)


def plot_words(found: dict[str, Attribution], out: Path) -> None:
    """The prompt word by word, one panel an encoder, all on one scale; what an encoder does not read is white."""
    most = max(max(one.attention, default=0) for one in found.values())
    lines = max(3.0, 0.16 * sum(len(word) + 1 for word in next(iter(found.values())).words) / 100 + 0.6)
    with figure(out, rows=len(found), size=(6.5, lines)) as panels:
        for axes, (name, one) in zip(panels[:, 0], found.items(), strict=True):
            far = one.beyond(BINS[0])
            told = "" if far is None else f": {far:.0%} of the words' attention lies beyond {BINS[0]} tokens"
            shaded_words(axes, one.words, [weight / max(most, 1e-9) for weight in one.attention], f"{name}{told}")
        bottom = min(axes.get_ylim()[0] for axes in panels[:, 0])
        for axes in panels[:, 0]:
            axes.set_ylim(bottom, 1)
