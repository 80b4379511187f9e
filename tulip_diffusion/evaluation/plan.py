"""What `evaluate all` runs."""

ENCODERS = ("clip", "longclip", "clip-finetuned", "tulip-paper", "tulip")
SIZES = {"quick": (1 / 16, 10), "standard": (1.0, 25), "thorough": (4.0, 25)}  # factor of all counts; denoising steps
PROMPTS = {"short": 256, "full": 256, "references": 256, "500": 128, "1000": 64}  # kind of prompts -> how many


def evaluations(size: str, encoders: list[str]) -> dict[str, list[str]]:
    """Folder to command, without the options that all share. The first encoder is what others are held against."""
    factor, steps = SIZES[size]

    def count(standard: int) -> str:
        return str(max(4, round(standard * factor)))

    every = ["--encoders", *encoders]
    others = ["--encoders", *(encoders[1:] or encoders)]
    pictures = ["--steps", str(steps)]
    generation = {
        f"generation-{prompts}": ["generation", "--prompts", prompts, "--count", count(number), *every, *pictures]
        for prompts, number in PROMPTS.items()
    }
    return {
        **generation,
        "strips": ["strips", *every, *pictures],
        "reading": ["reading", "--count", count(256), *every],
        "retrieval": ["retrieval", "--count", count(1000), *every],
        "positions": ["positions", "--needles", count(16), "--count", count(64), *every],
        "fidelity": ["fidelity", "--count", count(256), "--pictures", count(128), *others, *pictures],
        "attention": ["attention", "--count", count(64), *others],
        "relevance": ["relevance", "--count", count(64), *every],
    }
