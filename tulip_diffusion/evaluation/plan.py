"""What `evaluate all` runs, on which encoders of the family, and how many pictures that draws."""

import argparse

from tulip_diffusion.embedded import COMPARED
from tulip_diffusion.embedded import ENCODERS as FAMILY

# In the order of tables and plots; the first is what the others are held against.
ENCODERS = ("clip", "clip-windows", "clip-finetuned", "longclip", "finelip", "tulip-paper", "tulip-l", "tulip")
DRAWN = tuple(name for name in ENCODERS if name != "clip-finetuned")  # a baseline of retrieval
READ = tuple(name for name in ENCODERS if FAMILY[name].slots is None)  # the others differ in drawing alone
SIZES = {"quick": (1 / 16, 10), "standard": (1.0, 12), "thorough": (4.0, 25)}  # factor of all counts; denoising steps
COUNTS = {"short": 200, "full": 200, "references": 200, "500": 200, "1000": 64, "2000": 64}  # prompts of each kind


def evaluations(size: str, encoders: list[str]) -> dict[str, list[str]]:
    """Folder to command, without the options that all share. The first encoder is what others are held against."""
    factor, steps = SIZES[size]

    def count(standard: int) -> str:
        return str(max(4, round(standard * factor)))

    def among(names: tuple[str, ...]) -> list[str]:
        return ["--encoders", *([name for name in names if name in encoders] or encoders)]

    pictures = ["--steps", str(steps)]
    generation = {
        f"generation-{kind}": ["generation", "--prompts", kind, "--count", count(number), *among(DRAWN), *pictures]
        for kind, number in COUNTS.items()
    }
    return {
        **generation,
        "strips": ["strips", *among(COMPARED), *pictures],
        "attribution": ["attribution", *among(("clip", "clip-windows", "tulip")), *pictures],
        "reading": ["reading", "--count", count(200), *among(DRAWN)],
        "retrieval": ["retrieval", "--count", count(1000), *among(READ)],
        "positions": ["positions", "--needles", count(8), "--count", count(32), *among(COMPARED)],
        "fidelity": ["fidelity", "--count", count(128), "--pictures", count(64), *among(DRAWN[2:]), *pictures],
        "attention": ["attention", "--count", count(64), *among(COMPARED[1:])],
        "relevance": ["relevance", "--count", count(64), *among(COMPARED)],
    }


def denoisings(name: str, options: argparse.Namespace) -> int:
    """Pictures times steps that the command `name` draws."""
    pictures = {
        "generation": lambda: options.count * len(options.encoders),
        "strips": lambda: options.count * len(options.prompts) * len(options.encoders),
        "attribution": lambda: len(options.encoders),
        "fidelity": lambda: options.pictures * (len(options.encoders) + 1),
    }
    return pictures[name]() * options.steps if name in pictures else 0
