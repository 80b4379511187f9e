"""The options of every evaluation. Nothing heavy is imported here, so that a mistyped one is refused at once.

The names of prompts and data sets stand here without what they name; the tables that have both are in `prompts`,
`datasets` and `retrieval_sets`.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from tulip_diffusion import arguments
from tulip_diffusion.embedded import COMPARED
from tulip_diffusion.scenes.splits import SPLITS

from .public_sets import PUBLIC_SETS
from .variants import VARIANTS

PROMPTS = ("short", "full", "references", "500", "1000", "2000")
WORLD = ("world-long", "world-mixed", "world-short", "world-hard", "world-hard-early")
LAYOUTS = (
    "coco",
    "coco-karpathy-5k",
    "coco-karpathy-1k",
    "flickr30k",
    "flickr30k-1k",
    "sharegpt4v-1k",
    "urban-1k",
    "long-dci",
    "sdci",
    "docci",
    "jsonl",
)
PEERS = {"compel": "the towers of clip, a long prompt cut at sentences into windows by compel"}  # in `generation`
BASELINES = ("clip", "longclip", "tulip-paper", "tulip")
ENCODERS = (
    "encoders of the embedded family; CLIP checkpoint files, folders or Hub ids; finelip:FILE for FineLIP with its "
    "fine score; open_clip:ARCHITECTURE:WEIGHTS"
)


def add_encoders(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """The options that [`open_encoder`] goes by, but for --assets and --device, which all evaluations have."""
    parser.add_argument("--encoders", nargs="+", default=list(default), metavar="ENCODER", help=ENCODERS)
    parser.add_argument(
        "--length", type=arguments.whole(3), help="tokens at which texts are cut (default: each encoder's own)"
    )
    parser.add_argument("--layout", default="auto", help="of checkpoint files; 'tulip' for TULIP's second stage")
    parser.add_argument("--rope", choices=("released", "paper"), help="what TULIP's files forgot to store")


def add_drawing(parser: argparse.ArgumentParser) -> None:
    """The options that [`draw_captions`] goes by."""
    parser.add_argument("--steps", type=arguments.steps, default=25, help="denoising steps (default 25)")
    parser.add_argument("--guidance", type=arguments.guidance, default=3.0, help="guidance scale (default 3)")
    parser.add_argument("--batch", type=arguments.count, default=8, help="pictures drawn at once (default 8)")


def add_captions(parser: argparse.ArgumentParser) -> None:
    """A kind of the world's captions."""
    parser.add_argument("--prompts", choices=PROMPTS, default="full", help="captions of the world (default full)")


def add_split(parser: argparse.ArgumentParser) -> None:
    """The split that the world's captions are from."""
    parser.add_argument("--split", choices=SPLITS, default="evaluation", help="tune on validation only")


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """The folder of the results."""
    parser.add_argument(
        "--out", type=arguments.new_folder, default=Path("outputs") / name, help="folder for the results"
    )


def generation(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate generation`."""
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=[*BASELINES],
        help="text encoders of the family, or compel: the family's CLIP as compel encodes prompts for it, with "
        "pip install '.[bench]'; changes are counted against the first",
    )
    parser.add_argument("--prompts", choices=PROMPTS, default="full", help="which kind of prompts (default full)")
    parser.add_argument("--count", type=arguments.count, default=256, help="how many prompts (default 256)")
    add_split(parser)
    parser.add_argument("--overflow", nargs="+", default=["own"], help="windows, stretch, truncate")
    parser.add_argument("--pooled", nargs="+", default=["own"], help="first, last, mean")
    parser.add_argument("--sequence-length", nargs="+", default=["own"], help="auto, exact, bucket or a number")
    parser.add_argument("--attention-scale", nargs="+", default=["own"], help="none, log or a factor")
    parser.add_argument(
        "--negative",
        nargs="+",
        metavar="TEXT",
        help="negative prompts, one after the other, beside none; says what each does to the things that it names",
    )
    add_drawing(parser)
    add_out(parser, "generation")


def reading(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate reading`."""
    parser.add_argument("--encoders", nargs="+", default=[*BASELINES])
    parser.add_argument("--overflow", help="windows, stretch or truncate (default: the encoder's own)")
    parser.add_argument("--prompts", choices=PROMPTS, default="references", help="which kind (default references)")
    parser.add_argument("--count", type=arguments.count, default=256, help="how many prompts (default 256)")
    add_split(parser)
    add_out(parser, "reading")


def public(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate prompts`."""
    sets = ", ".join(PUBLIC_SETS)
    parser.add_argument("--data", required=True, metavar="NAME=PATH", help=f"the set and where it lies: {sets}")
    parser.add_argument("--count", type=arguments.count, help="the first so many prompts only")
    parser.add_argument(
        "--model", help="SDXL weights: a folder, a Hub id or a single file (default: the small family)"
    )
    parser.add_argument(
        "--encoders",
        nargs="+",
        default=["clip", "clip-windows", "tulip"],
        metavar="ENCODER",
        help="of the family; with --model: clip (its own, cut at 77 tokens), clip-windows (its own, in windows) or "
        "any encoder file, folder or Hub id for the first slot",
    )
    parser.add_argument(
        "--pictures", type=arguments.count, default=1, help="pictures of each prompt, from other noise (default 1)"
    )
    parser.add_argument("--seed", type=arguments.seed, default=0, help="of the first prompt's noise (default 0)")
    add_drawing(parser)
    parser.add_argument("--image-tower", metavar="ENCODER", help="a CLIP to measure the diversity of --pictures with")
    parser.add_argument(
        "--score", nargs="+", metavar="ENCODER=FILE", help="what the set's scorer has written about the pictures"
    )
    parser.add_argument(
        "--out", type=arguments.new_folder, default=Path("outputs/prompts"), help="folder for pictures and results"
    )


def retrieval(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate retrieval`."""
    add_encoders(parser, BASELINES)
    parser.add_argument(
        "--data",
        nargs="+",
        default=["world-long", "world-mixed", "world-short", "world-hard"],
        metavar="NAME[=PATH]",
        help=f"sets of the embedded world ({', '.join(WORLD)}, world-details), or data on disk as NAME=PATH, the "
        f"folder or the annotation file ({', '.join(LAYOUTS)}, fg-ovd)",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=[],
        help="measure every set again with its captions' first sentence removed, moved to the end, or all shuffled",
    )
    parser.add_argument(
        "--images", type=arguments.existing_folder, help="folder of the images, where it is not in its usual place"
    )
    parser.add_argument(
        "--count", type=arguments.count, default=1000, help="pictures in a set of the world (default 1000)"
    )
    parser.add_argument(
        "--batch", type=arguments.count, default=64, help="pictures or captions encoded at once (default 64)"
    )
    parser.add_argument(
        "--cache", type=arguments.new_folder, default=Path("outputs/embeddings"), help="folder of kept embeddings"
    )
    add_out(parser, "retrieval")


def fidelity(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate fidelity`."""
    parser.add_argument(
        "--encoders", nargs="+", default=["longclip", "tulip-paper", "tulip-l", "tulip"], help="of the family"
    )
    parser.add_argument("--teacher", default="clip", help="what they are held against (default clip)")
    parser.add_argument(
        "--prompts", choices=PROMPTS, nargs="*", default=["full", "500"], help="texts beyond 77 tokens"
    )
    parser.add_argument("--count", type=arguments.count, default=256, help="texts of each kind (default 256)")
    parser.add_argument(
        "--pictures", type=arguments.count_or_none, default=128, help="short prompts to draw, 0 for none (default 128)"
    )
    add_drawing(parser)
    add_split(parser)
    add_out(parser, "fidelity")


def positions(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate positions`."""
    add_encoders(parser, COMPARED)
    parser.add_argument(
        "--tokens", type=arguments.whole(3), nargs="+", default=[77, 154, 248, 500, 1000], help="lengths of the texts"
    )
    parser.add_argument("--needles", type=arguments.count, default=16, help="texts of each length (default 16)")
    parser.add_argument(
        "--variants", type=arguments.count, default=16, help="sentences that a needle can be (default 16, up to 80)"
    )
    parser.add_argument("--slots", type=arguments.count, default=8, help="places of the needle in a text (default 8)")
    parser.add_argument("--prompts", choices=PROMPTS, nargs="*", default=["full", "500", "1000"], help="for negatives")
    parser.add_argument(
        "--count", type=arguments.count, default=64, help="prompts of each kind for hard negatives (default 64)"
    )
    parser.add_argument(
        "--tail",
        type=arguments.count_or_none,
        default=4,
        help="texts for the tail sensitivity (default 4); 0 where there is no UNet",
    )
    parser.add_argument("--tail-tokens", type=arguments.whole(3), default=2048, help="their length (default 2048)")
    add_split(parser)
    add_out(parser, "positions")


def attention(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate attention`."""
    add_encoders(parser, ["longclip", "tulip"])
    add_captions(parser)
    parser.add_argument("--data", help="other captions: any file that `train` reads; needs no images")
    parser.add_argument("--count", type=arguments.count, default=64, help="how many captions (default 64)")
    add_split(parser)
    add_out(parser, "attention")


def relevance(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate relevance`."""
    add_encoders(parser, COMPARED)
    add_captions(parser)
    parser.add_argument("--data", help="other images with captions: any file that `train` reads")
    parser.add_argument("--image-root", help="folder that image paths are relative to; the data file's own by default")
    parser.add_argument(
        "--windows", type=arguments.count, nargs="+", default=[20, 33, 55], help="tokens (default 20 33 55)"
    )
    parser.add_argument(
        "--strides", type=arguments.count, nargs="+", default=[5, 10, 15], help="tokens (default 5 10 15)"
    )
    parser.add_argument("--count", type=arguments.count, default=64, help="how many captions (default 64)")
    add_split(parser)
    add_out(parser, "relevance")


def attribution(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate attribution`."""
    parser.add_argument(
        "prompt", nargs="?", help="the prompt, '-' for standard input (default: the first of --prompts)"
    )
    add_captions(parser)
    parser.add_argument("--model", help="SDXL weights: a folder, a Hub id or a single file (default: the family)")
    parser.add_argument(
        "--encoders", nargs="+", default=["clip", "clip-windows", "tulip"], help="as in `evaluate prompts`"
    )
    parser.add_argument("--seed", type=arguments.seed, default=0, help="the starting noise (default 0)")
    add_drawing(parser)
    add_out(parser, "attribution")


def strips(parser: argparse.ArgumentParser) -> None:
    """The options of `evaluate strips`."""
    parser.add_argument("--encoders", nargs="+", default=[*COMPARED], help="of the family")
    parser.add_argument("--prompts", nargs="+", choices=PROMPTS, default=["full", "references", "500"])
    parser.add_argument("--count", type=arguments.count, default=2, help="strips of each kind of prompts (default 2)")
    add_drawing(parser)
    add_out(parser, "strips")


OPTIONS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "generation": generation,
    "reading": reading,
    "prompts": public,
    "retrieval": retrieval,
    "fidelity": fidelity,
    "positions": positions,
    "attention": attention,
    "relevance": relevance,
    "attribution": attribution,
    "strips": strips,
}
