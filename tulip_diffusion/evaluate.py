"""The commands `evaluate …`: every evaluation, handed what it measures.

The evaluations themselves (`tulip_diffusion.evaluation`) know nothing of where models come from: each module has
`add_arguments(parser)` and `run(options, …)`. This door adds `--assets` and `--device` and gives `run` its loaders.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .embedded import ASSETS, load_embedded_pipeline
from .evaluation import generation, reading
from .generate import best_device

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


def add(subparsers: Any, name: str, module: ModuleType, run: Run, summary: str, description: str) -> None:
    """Register one evaluation, with the options that all of them have."""
    parser = subparsers.add_parser(name, help=summary, description=description)
    module.add_arguments(parser)
    parser.add_argument("--assets", type=Path, default=ASSETS, help="an embedded family trained by yourself")
    parser.add_argument("--device", help="cpu or cuda (default: the best there is)")
    parser.set_defaults(run=run)


def pipelines(options: argparse.Namespace) -> Callable[[str], Any]:
    """Makes a pipeline of the embedded family out of an encoder's name."""
    device = options.device or best_device()
    return lambda encoder: load_embedded_pipeline(encoder, options.assets).to(device)
