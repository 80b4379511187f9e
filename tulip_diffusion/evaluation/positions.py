"""Does it matter where in a text something is said?

*Needle*: N texts are identical but for one sentence, always at the same slot; among them each picture must find its
text, and each text its picture. Only the needle's slot changes between two measurements, neither words nor pictures.
*Hard negatives*: a picture must prefer its text to one that differs in one colour word. *Tail sensitivity*: how far
one changed word moves the pooled state, the token states and the UNet's prediction, wherever the word stands.
"""

import argparse

import numpy as np

from tulip_diffusion.scenes.dataset import SPLITS

from .drawing import open_pipeline
from .encoders import open_pair
from .needles import Needle, distinct_contents, make_needle
from .plots import curve, figure, legend, level, middles
from .probes import EARLY, Figures, find_needles, prefer_right_colour, tail_sensitivity
from .processes import is_first
from .records import markdown, write_record


def needles_of(tokens: int, options: argparse.Namespace) -> list[Needle]:
    """The same ones for every encoder."""
    rngs = [np.random.default_rng(SPLITS[options.split] + number) for number in range(options.needles)]
    return [make_needle(rng, tokens, distinct_contents(rng, options.variants)) for rng in rngs]


def run(options: argparse.Namespace) -> None:
    """The command."""
    results: dict[str, Figures] = {}
    opened = {name: open_pair(name, options) for name in options.encoders}  # fails early where one is missing
    pipelines = {name: open_pipeline(name, options) for name in options.encoders if options.tail}
    for name, encoder in opened.items():
        own: Figures = {"needle": {}, "negatives": {}, "tail": {}}
        results[name] = own
        if options.tail:
            own["tail"] = tail_sensitivity(pipelines[name], options.tail, options.tail_tokens, options.split)
        for tokens in options.tokens:
            needles = needles_of(tokens, options)
            own["needle"][str(tokens)] = find_needles(encoder, needles, options.slots, f"{name}, {tokens} tokens")
        for prompts in options.prompts:
            own["negatives"][prompts] = prefer_right_colour(encoder, prompts, options.count, options.split)
    print(tables(results))
    if is_first():
        write_record("positions", options, results, tables(results))
        plot_needles(results, options)
        plot_negatives(results, options)
        if options.tail:
            plot_tail(results, options)


def tables(results: dict[str, Figures]) -> str:
    """All figures as Markdown, chance included."""
    parts = []
    some = next(iter(results.values()))
    for tokens, figures in some["needle"].items():
        header = [
            "",
            *(f"at {slot['position']:.0f}" for slot in figures["slots"].values()),
            "last / first",
            "early bias",
        ]
        rows = [
            [name, *(slot["image to text"] for slot in own["slots"].values()), own["last of first"], own["early bias"]]
            for name, own in ((name, result["needle"][tokens]) for name, result in results.items())
        ]
        chance = ["chance", *(figures["chance"] for _ in figures["slots"]), None, EARLY]
        parts.append(f"Needle, image to text, {tokens} tokens\n\n{markdown(header, [*rows, chance])}")
    for prompts, figures in some["negatives"].items():
        bins = list(figures["position"])
        rows = [[name, *map(result["negatives"][prompts]["position"].get, bins)] for name, result in results.items()]
        chance = ["chance", *(0.5 for _ in bins)]
        parts.append(f"Right colour preferred, {prompts} prompts\n\n{markdown(['', *bins], [*rows, chance])}")
    for name, result in results.items():
        if result["tail"]:
            rows = [[f"{row['position']:.0f}", *list(row.values())[1:]] for row in result["tail"].values()]
            header = ["token", "pooled", "word", "after", "noise"]
            parts.append(f"Relative move by one changed word, {name}\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def plot_needles(results: dict[str, Figures], options: argparse.Namespace) -> None:
    """Needles found by position, one panel a length of text."""
    with figure(options.out / "needle.png", columns=len(options.tokens), size=(4, 3.5)) as panels:
        for axes, tokens in zip(panels[0], options.tokens, strict=True):
            for name, result in results.items():
                slots = result["needle"][str(tokens)]["slots"].values()
                curve(axes, [slot["position"] for slot in slots], [slot["image to text"] for slot in slots], name)
            level(axes, 1 / options.variants, "chance")
            axes.set(title=f"{tokens} tokens", xlabel="token where the needle starts", ylim=(0, 1.02))
        panels[0][0].set_ylabel(f"share of images that find their text of {options.variants}")
        legend(panels[0][-1])


def plot_negatives(results: dict[str, Figures], options: argparse.Namespace) -> None:
    """Hard negatives told apart by position, one panel a kind of prompt."""
    if not options.prompts:
        return
    with figure(options.out / "negatives.png", columns=len(options.prompts), size=(4, 3.5)) as panels:
        for axes, prompts in zip(panels[0], options.prompts, strict=True):
            for name, result in results.items():
                by_bin = result["negatives"][prompts]["position"]
                curve(axes, middles(by_bin), list(by_bin.values()), name)
            level(axes, 0.5, "chance")
            axes.set(title=f"{prompts} prompts", xlabel="token of the changed colour's sentence", ylim=(0, 1.02))
        panels[0][0].set_ylabel("share of images nearer to their text")
        legend(panels[0][-1])


def plot_tail(results: dict[str, Figures], options: argparse.Namespace) -> None:
    """How far one changed word moves the states, one panel a measure."""
    names = ("pooled", "word", "after", "noise")
    with figure(options.out / "tail.png", columns=len(names), size=(4, 3.5)) as panels:
        for axes, what in zip(panels[0], names, strict=True):
            for name, result in results.items():
                rows = result["tail"].values()
                curve(axes, [row["position"] for row in rows], [row[what] for row in rows], name)
            axes.set(title=what, xlabel="token where its sentence starts", xscale="symlog")
        panels[0][0].set_ylabel("move by one changed word")
        legend(panels[0][-1])
        legend(panels[0][-1])
