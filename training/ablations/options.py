"""The options of the ablations. Nothing heavy is imported here, so that a mistyped one is refused at once."""

import argparse
from pathlib import Path

from tulip_diffusion import arguments
from tulip_diffusion.scenes.splits import SPLITS


def add_data(parser: argparse.ArgumentParser) -> None:
    """How many captions to train on, and how many pairs to judge by."""
    parser.add_argument("--captions", type=arguments.count, default=4000, help="training captions (default 4000)")
    parser.add_argument("--count", type=arguments.count, default=256, help="held-out pairs of each set (default 256)")


def method(parser: argparse.ArgumentParser) -> None:
    """The options of the method's ablations."""
    parser.add_argument("--stage1-steps", type=arguments.count, default=250)
    parser.add_argument("--stage2-steps", type=arguments.count, default=100)
    parser.add_argument("--batch", type=arguments.count, default=64, help="captions a step (default 64)")
    parser.add_argument(
        "--stage1-rate", type=arguments.positive, default=5e-4, help="peak learning rate (default 5e-4)"
    )
    parser.add_argument(
        "--stage2-rate", type=arguments.positive, default=1e-4, help="peak learning rate (default 1e-4)"
    )
    add_data(parser)
    parser.add_argument("--split", choices=SPLITS, default="evaluation", help="tune on validation only")
    parser.add_argument("--attn", choices=("eager", "sdpa"), help="default: eager for bfloat16 on a CPU, else sdpa")
    parser.add_argument("--seed", type=arguments.whole(0, 2**32 - 1), default=0)
    parser.add_argument(
        "--work",
        type=arguments.new_folder,
        default=Path("outputs/ablations/encoders"),
        help="trained encoders, which ablations share",
    )
    parser.add_argument(
        "--out", type=arguments.new_folder, help="folder for the results (default: outputs/ablations/NAME)"
    )


def finelip(parser: argparse.ArgumentParser) -> None:
    """The options of `ablate finelip`."""
    parser.add_argument("--steps", type=arguments.steps, default=100, help="of every row (default 100)")
    parser.add_argument("--batch", type=arguments.count, default=64, help="pairs a step (default 64)")
    parser.add_argument(
        "--rate", type=arguments.positive, default=1e-4, help="peak learning rate of the towers (default 1e-4)"
    )
    parser.add_argument(
        "--refinement-rate", type=arguments.positive, default=1e-3, help="and of the refinement (default 1e-3)"
    )
    parser.add_argument(
        "--anchor", type=arguments.not_negative, default=0.0, help="weight of the per-token anchor (default 0)"
    )
    add_data(parser)
    parser.add_argument("--attn", choices=("eager", "sdpa"), default="eager", help="sdpa is the faster one on a GPU")
    parser.add_argument("--seed", type=arguments.whole(0, 2**32 - 1), default=0)
    parser.add_argument(
        "--work", type=arguments.new_folder, default=Path("outputs/ablations/finelip-encoders"), help="what is trained"
    )
    parser.add_argument(
        "--out", type=arguments.new_folder, default=Path("outputs/ablations/finelip"), help="folder for the results"
    )
