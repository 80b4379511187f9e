"""What a picture is asked for with, and the bounds within which the page keeps it."""

from dataclasses import asdict, dataclass
from typing import Any

MAX_CHARACTERS = 20_000
MAX_TOKENS = 2_000
MAX_STEPS = 100
MAX_GUIDANCE = 20
MAX_SEED = 2**32 - 1
MAX_IMAGES = 4
OVERFLOWS = ("own", "windows", "stretch", "truncate")
LENGTHS = ("own", "auto", "bucket", "exact", "77", "248")


@dataclass(frozen=True)
class Settings:
    """One comparison. `overflow` and `length` are [`Conditioning`]'s, for all encoders, or "own" for each its own.

    Raises:
        ValueError: something is out of bounds; the message is a sentence for the page.
    """

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 25
    guidance: float = 3.0
    size: int = 64
    overflow: str = "own"
    length: str = "own"

    def __post_init__(self):
        check_text("prompt", self.prompt)
        check_text("negative prompt", self.negative)
        if not self.prompt.strip():
            raise ValueError("The prompt is empty. Write what the picture should show, or choose an example.")
        check_number("seed", self.seed, 0, MAX_SEED, whole=True)
        check_number("number of steps", self.steps, 1, MAX_STEPS, whole=True)
        check_number("guidance", self.guidance, 0, MAX_GUIDANCE)
        for name, value, allowed in (("overflow", self.overflow, OVERFLOWS), ("length", self.length, LENGTHS)):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")

    @property
    def conditioning(self) -> dict[str, Any]:
        """The keywords for [`Conditioning`] that differ from the encoders' own."""
        options: dict[str, Any] = {}
        if self.overflow != "own":
            options["overflow"] = self.overflow
        if self.length != "own":
            options["sequence_length"] = int(self.length) if self.length.isdigit() else self.length
        return options

    def as_dict(self) -> dict[str, Any]:
        """Every setting by its name, ready for JSON."""
        return asdict(self)


def check_text(name: str, text: str) -> None:
    """Raises ValueError where `text` is no text, or longer than the page takes."""
    if not isinstance(text, str):
        raise ValueError(f"The {name} must be text, got {text!r:.100}.")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"The {name} has {len(text):,} characters, and this page takes up to {MAX_CHARACTERS:,}. Shorten it."
        )


def check_tokens(name: str, tokens: int) -> None:
    """Raises ValueError where a text has more tokens than the page takes."""
    if tokens > MAX_TOKENS:
        raise ValueError(f"The {name} has {tokens:,} tokens, and this page takes up to {MAX_TOKENS:,}. Shorten it.")


def check_number(name: str, value: float, low: float, high: float, whole: bool = False) -> None:
    """Raises ValueError where `value` is no number from `low` to `high`."""
    if not isinstance(value, int if whole else int | float) or not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise ValueError(f"The {name} must be a {kind} from {low:,} to {high:,}, got {value!r}.")
