"""The commands `evaluate …`: every evaluation, handed what it measures.

The evaluations themselves (`tulip_diffusion.evaluation`) know nothing of where models come from: each module has
`add_arguments(parser)` and `run(options, …)`. This door adds `--assets` and `--device` and gives `run` its loaders.
"""

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from .devices import best_device
from .embedded import ASSETS, ENCODERS, load_embedded_pipeline, load_embedded_towers, slots_of
from .evaluation import attention, embedding, fidelity, generation, positions, reading, relevance, retrieval, strips
from .evaluation.plan import ENCODERS as EVALUATED
from .evaluation.plan import SIZES
from .evaluation.plan import evaluations as planned
from .evaluation.provenance import command_line, read_provenance, write_provenance
from .evaluation.readers import Reader
from .evaluation.report import write_report
from .provenance import commit
from .training import ablations, finelip_ablation

Run = Callable[[argparse.Namespace], None]


def register(subparsers: Any) -> None:
    add(
        subparsers,
        "generation",
        generation,
        lambda options: generation.run(options, pipelines(options)),
        "detail accuracy by token position, reference accuracy by distance",
        "Draw prompts of the embedded family's world and read the pictures exactly. Writes figures "
        "(generation.json), plots and a contact sheet.",
    )
    add(
        subparsers,
        "reading",
        reading,
        lambda options: reading.run(options, pipelines(options), options.assets / "read_out"),
        "what can be read off the text states, references by distance",
        "Read place, kind and colour off the text states that the UNet is given, at the end of every sentence, with "
        "heads fitted to CLIP's own states. Writes reading.json.",
    )
    add(
        subparsers,
        "retrieval",
        retrieval,
        lambda options: retrieval.run(options, encoders(options)),
        "captions to images and back: R@1, R@5, R@10 beside the papers' figures",
        "Retrieve images by captions and captions by images, on the embedded family's world or on COCO, Flickr30k, "
        "ShareGPT4V-1k, Urban-1k, Long-DCI, DOCCI or data of your own, with any CLIP. Writes retrieval.json, "
        "retrieval.md, a plot and examples.",
    )
    add(
        subparsers,
        "fidelity",
        fidelity,
        lambda options: fidelity.run(options, pipelines(options)),
        "how closely encoders say what CLIP says, within 77 tokens and beyond",
        "Compare pooled and token states with CLIP's up to 77 tokens, token states with CLIP's on sub-captions beyond "
        "them, and the pictures of short prompts from the same seeds. Writes fidelity.json, tables and a plot.",
    )
    add(
        subparsers,
        "positions",
        positions,
        lambda options: positions.run(options, readers(options), pipelines(options)),
        "needles, hard negatives and changed words, by their place in the text",
        "Measure whether it matters where in a text something is said: needle retrieval, hard negatives, the move of "
        "states and of the UNet's prediction by one word. Writes positions.json, tables and plots, with chance.",
    )
    add(
        subparsers,
        "attention",
        attention,
        lambda options: attention.run(options, readers(options)),
        "how far the pooled state's attention spreads over long captions",
        "Attention of the EOS query in the last block, with its entropy (TULIP, Fig. 5). Writes attention.json, a "
        "table, curves and the words of one caption.",
    )
    add(
        subparsers,
        "relevance",
        relevance,
        lambda options: relevance.run(options, readers(options)),
        "how windows of a long caption relate to its image",
        "Compare windows of 20, 33 and 55 tokens at strides 5, 10 and 15 with the image (TULIP, Fig. 6). Writes "
        "relevance.json, a table and plots.",
    )
    add(
        subparsers,
        "strips",
        strips,
        lambda options: strips.run(options, pipelines(options), draw_strip),
        "the same prompts under several encoders, side by side",
        "Draw long prompts of the embedded family's world with each encoder from the same noise. Writes one PNG a "
        "prompt and strips.json.",
    )
    add(
        subparsers,
        "ablation",
        ablations,
        lambda options: ablations.run(options, lambda: readers(options)("clip")),
        "what one choice of the method is worth: trains and judges every variant",
        "Train TULIP from the embedded family's CLIP with one thing varied, stage 1 alone and both stages, and judge "
        "every variant on the same texts. A variant whose result is there is not run again. Writes ablation.json, a "
        "table and a plot.",
    )
    add(
        subparsers,
        "finelip",
        finelip_ablation,
        lambda options: finelip_ablation.run(options, readers(options)),
        "what each part of FineLIP adds: trains and judges every one",
        "Train FineLIP from the embedded family's CLIP and from its TULIP, comparing global tokens, refined tokens or "
        "each refined token, and judge them by R@1 beside stretched CLIP. Writes finelip.json and a table.",
    )
    register_all(subparsers)
    register_report(subparsers)


def add(subparsers: Any, name: str, module: ModuleType, run: Run, summary: str, description: str) -> None:
    """Register one evaluation, with the options that all of them have."""
    parser = subparsers.add_parser(name, help=summary, description=description)
    module.add_arguments(parser)
    parser.add_argument("--assets", type=Path, default=ASSETS, help="an embedded family trained by yourself")
    parser.add_argument("--device", help="cpu or cuda (default: the best there is)")

    def recorded(options: argparse.Namespace) -> None:
        commit()  # of the code that runs, whatever is committed meanwhile
        start = time.perf_counter()
        run(options)
        write_provenance(parser, options, time.perf_counter() - start)

    parser.set_defaults(run=recorded)


def register_all(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "all",
        help="every evaluation, and a report of all of them",
        description="Run every evaluation on the embedded family and write one page about them, report.html. What is "
        "already there from the same command is kept, so an interrupted run goes on where it stopped.",
    )
    parser.add_argument("--size", choices=SIZES, default="standard", help="how many prompts (default standard)")
    parser.add_argument("--encoders", nargs="+", choices=EVALUATED, help="of the family (default: all that are there)")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="an embedded family trained by yourself")
    parser.add_argument("--device", help="cpu or cuda (default: the best there is)")
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluation"), help="folder for all results")
    parser.add_argument("--results", type=Path, help="also write the tables as Markdown to this file")
    parser.set_defaults(run=lambda options: run_all(options, subparsers.choices))


def run_all(options: argparse.Namespace, parsers: dict[str, argparse.ArgumentParser]) -> None:
    root = options.assets / "encoders"
    there = [name for name in EVALUATED if all(slot.is_dir() for slot in slots_of(root, name))]
    shared = ["--assets", str(options.assets), *(["--device", options.device] if options.device else [])]
    for folder, (name, *line) in planned(options.size, options.encoders or there or list(EVALUATED)).items():
        one = parsers[name].parse_args([*line, *shared, "--out", str(options.out / folder)])
        if read_provenance(one.out).get("command") == command_line(parsers[name], one):
            print(f"{folder} is there already")
            continue
        print(f"\n{folder}", flush=True)
        one.run(one)
    run_report(argparse.Namespace(folder=options.out, out=options.out / "report.html", results=options.results))


def register_report(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="one page about all results in a folder",
        description="Collect the records below a folder into one HTML page that holds everything itself.",
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/evaluation"), help="where the results lie")
    parser.add_argument("--out", type=Path, help="the page (default: report.html in that folder)")
    parser.add_argument("--results", type=Path, help="also write the tables as Markdown to this file")
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> None:
    page = options.out or options.folder / "report.html"
    found = write_report(options.folder, page, options.results)
    print(f"{page}: {len(found)} records")


def draw_strip(prompt: str, panels: Sequence[tuple[Image.Image, str, str]]) -> Image.Image:
    """Pictures with titles and notes over their prompt, its words coloured by what encoders can see."""
    from . import strip
    from .tokenization import load_tokenizer

    return strip.draw_strip([strip.Panel(*panel) for panel in panels], strip.word_positions(prompt, load_tokenizer()))


def pipelines(options: argparse.Namespace) -> Callable[[str], Any]:
    """Makes a pipeline of the embedded family out of an encoder's name."""
    logging.getLogger("tulip_diffusion.pipelines").setLevel(logging.ERROR)  # what encoders cannot see is measured here
    device = options.device or best_device()
    return lambda encoder: load_embedded_pipeline(encoder, options.assets).to(device)


def encoders(options: argparse.Namespace) -> Callable[[str], embedding.Encoder]:
    """Makes an encoder for retrieval out of what `--encoders` of `evaluate retrieval` names."""
    device = options.device or best_device()

    def load(source: str) -> embedding.Encoder:
        if source in ENCODERS:
            from transformers import CLIPTokenizer

            from .models.finelip import FineLIP, FineLIPModel

            towers: Any = load_embedded_towers(source, options.assets)
            tokenizer = CLIPTokenizer.from_pretrained(options.assets / "tokenizer_2")
            fine = options.assets / "encoders" / source / "finelip_2"
            if fine.is_dir():
                refinement = FineLIPModel.from_pretrained(fine).float()
                towers = FineLIP(towers.text_encoder, towers.image_encoder, refinement)
            return embedding.from_towers(source, towers, tokenizer, length=options.length, device=device)
        if source.startswith("open_clip:"):
            _, architecture, weights = source.split(":", 2)
            return embedding.from_open_clip(architecture, weights, device)
        if source.startswith("finelip:"):
            return embedding.from_finelip(source.removeprefix("finelip:"), options.length, device)
        return embedding.from_source(source, options.length, device, layout=options.layout, rope=options.rope)

    return load


def readers(options: argparse.Namespace) -> Callable[[str], Reader]:
    """Makes a reader for the probes out of an encoder's name, or of a file, folder or Hub id of a checkpoint."""
    from transformers import CLIPTokenizer

    from .models.checkpoints import load_clip
    from .tokenization import load_tokenizer

    device = options.device or best_device()

    def read(source: str) -> Reader:
        if source in ENCODERS:
            towers = load_embedded_towers(source, options.assets)
            tokenizer = CLIPTokenizer.from_pretrained(options.assets / "tokenizer_2")
        else:
            towers, tokenizer = load_clip(source), load_tokenizer()
        for tower in (towers.text_encoder, towers.image_encoder):
            if tower is not None:
                tower.to(device)
        return Reader(towers, tokenizer)

    return read
