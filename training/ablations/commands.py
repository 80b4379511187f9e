"""`tulip-diffusion ablate …`: what one choice is worth, by training with it and without."""

import argparse
import time
from importlib import import_module
from typing import Any

from tulip_diffusion.arguments import Help, Parser, add_family, docstring_of, fill_when_used
from tulip_diffusion.embedded import ASSETS

from .options import finelip, method

METHOD = {  # the rows of each stand in variants.py
    "positions": "rotary or contextual positions",
    "loss": "what the student is held to in stage 1",
    "length": "how long the texts of stage 2 are",
    "lambda": "the weight of short captions in stage 2",
    "ntk": "how far the rotations are stretched",
    "short": "what a short caption is in stage 2",
}
FINELIP = "what each part of FineLIP adds, on stretched CLIP and on TULIP"


def register(subparsers: Any) -> None:
    """Add `ablate` with its ablations; each trains the embedded family's CLIP in every variant and judges it."""
    ablate = subparsers.add_parser(
        "ablate",
        help="what one choice of the method is worth: train and judge every variant",
        description="Train from the embedded family's CLIP with one thing varied, and judge every variant on the same "
        "texts. What is there already is not trained again. Writes figures, a table and a plot.",
        epilog="example:\n  tulip-diffusion ablate loss --stage1-steps 60 --stage2-steps 20",
    )
    names = ablate.add_subparsers(dest="name", required=True, metavar="ABLATION", parser_class=Parser)
    for name, summary in {**METHOD, "finelip": FINELIP}.items():
        example = f"example:\n  tulip-diffusion ablate {name} --seed 1"
        fill_when_used(names.add_parser(name, help=summary, formatter_class=Help, epilog=example), fill, name)


def fill(parser: argparse.ArgumentParser, name: str) -> None:
    """Give `ablate NAME` its options and its run, importing what it measures only when it runs."""
    module = f"{__package__}.{'finelip' if name == 'finelip' else 'method'}"
    parser.description = docstring_of(module)
    (finelip if name == "finelip" else method)(parser)
    add_family(parser, ASSETS)

    def run(options: argparse.Namespace) -> None:
        from tulip_diffusion.evaluation.encoders import open_encoder
        from tulip_diffusion.evaluation.plots import check_installed
        from tulip_diffusion.evaluation.provenance import write_provenance
        from tulip_diffusion.progress import hide_loading_bars
        from tulip_diffusion.provenance import commit

        hide_loading_bars()
        check_installed("matplotlib")  # before anything is trained
        commit()  # of the code that runs, whatever is committed meanwhile
        start = time.perf_counter()
        import_module(module).run(options, lambda encoder="clip": open_encoder(encoder, options))
        write_provenance(parser, options, time.perf_counter() - start)

    parser.set_defaults(run=run)
