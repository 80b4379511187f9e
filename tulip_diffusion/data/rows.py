"""One caption and the image it describes, as the formats' readers yield them, and the rows that cannot be used."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

NAMED_ROWS = 20  # bad rows that are named in the log before only their number is kept
FEWEST_JUDGED = 100  # rows to have seen before a share of bad ones means anything
CAPTION_KEYS = ("caption", "text", "title", "prompt", "description")
IMAGE_KEYS = ("image", "filepath", "file_name", "filename", "image_path", "path", "jpg", "jpeg", "png", "webp")
TALK_KEYS = ("conversations", "messages")


class BadRow(Exception):
    """A row that training cannot use; its message says why."""


class Row(NamedTuple):
    """What a reader found: a row's name for people, its caption or why there is none, and where its image is.

    `image` is a path, a reference with `read()` (see `tulip_diffusion.data.caption_data`), or None.
    """

    name: str
    caption: Any
    image: Any = None


class UsableRow(NamedTuple):
    """A row after its caption was cleaned and its image found to be a path or a reference."""

    name: str
    caption: str
    image: Any


class Ambiguous(dict):
    """A JSON object that has one key twice."""


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """`object_pairs_hook` for json: the last of two equal keys must not win unnoticed."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else Ambiguous(pairs)


@dataclass
class SkippedRows:
    """Counts unusable rows, names the first of them, and stops a run that meets too many."""

    max_share: float = 0.05
    skipped: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, name: str, reason: object) -> None:
        """Count one row; the first few are logged with the reason."""
        self.skipped += 1
        if len(self.reasons) < NAMED_ROWS:
            self.reasons.append(f"{name}: {reason}")
            logger.warning("Skipped %s: %s", name, reason)

    def take(self, skipped: int, reasons: list[str]) -> None:
        """Count, and name again, what was skipped when the rows were first read."""
        self.skipped, self.reasons = skipped, reasons
        for reason in reasons:
            logger.warning("Skipped %s", reason)

    def check(self, seen: int, final: bool = True) -> None:
        """Raise if more than `max_share` of `seen` rows were bad; before the end only once enough were seen."""
        if self.skipped > self.max_share * seen and (final or seen >= FEWEST_JUDGED):
            raise ValueError(
                f"{self.skipped} of {seen} rows cannot be used, more than the share of {self.max_share:g} that "
                f"max_bad_share allows. The first: {'; '.join(self.reasons[:3])}."
            )


def column_name(name: str) -> str:
    """`name` without what people vary: case, outer spaces, and spaces or hyphens for underscores."""
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


@lru_cache
def find_key(names: tuple[str, ...], wanted: tuple[str, ...]) -> str | None:
    """The name among `names` that is the first of `wanted`, however it is written. Raises `BadRow` if two are."""
    for key in wanted:
        if found := [name for name in names if name == key] or [name for name in names if column_name(name) == key]:
            if len(found) > 1:
                raise BadRow(f"it has {key!r} twice")
            return found[0]
    return None


def entry_row(name: str, entry: Any) -> Row:
    """The row of one JSON object: a caption beside an image path, or a conversation of ShareGPT4V's kind."""
    try:
        if not isinstance(entry, Mapping):
            raise BadRow(f"it is {kind_of(entry)}, not a JSON object")
        if isinstance(entry, Ambiguous):
            raise BadRow("one of its keys stands twice")
        keys = tuple(entry)
        image_key = find_key(keys, IMAGE_KEYS)
        image = None if image_key is None else entry[image_key]
        talk_key = find_key(keys, TALK_KEYS)
        if talk_key is not None:
            return Row(name, first_answer(entry[talk_key]), image)
        caption_key = find_key(keys, CAPTION_KEYS)
        if caption_key is None:
            raise BadRow(f"it has no caption (none of the keys {', '.join(CAPTION_KEYS)})")
        return Row(name, entry[caption_key], image)
    except BadRow as reason:
        return Row(name, reason)


def first_answer(turns: Any) -> Any:
    """The caption in a conversation: the model's first turn, or the second turn where turns do not say whose they are.

    Raises:
        BadRow: there is no such turn.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRow("its conversation is not a list of turns")
    speakers = [turn.get("from", turn.get("role")) for turn in turns]
    if any(speakers):
        answers = [turn for turn, who in zip(turns, speakers, strict=True) if who in ("gpt", "assistant", "model")]
    else:
        answers = turns[1:2]
    if not answers:
        raise BadRow("it has no conversations[1].value, or no turn from gpt")
    value = answers[0].get("value", answers[0].get("content"))
    return value.replace("<image>", " ") if isinstance(value, str) else value


def clean_caption(value: Any) -> str:
    """`value` without outer white space, otherwise as it is. Raises `BadRow` for what is not text, or no text."""
    if isinstance(value, BadRow):
        raise value
    if not isinstance(value, str):
        raise BadRow(f"its caption is {kind_of(value)}, not text")
    if not (caption := value.strip("\ufeff \t\r\n\f\v\u2028\u2029\x85\xa0")):
        raise BadRow("its caption is empty")
    if "\x00" in caption:
        raise BadRow("its caption holds a NUL byte")
    if not caption.isascii():
        check_text(caption)
    return caption


def check_text(text: str) -> None:
    """Raises `BadRow` if `text` came from bytes that are not UTF-8, or holds half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"the byte 0x{code - 0xDC00:02x}, which is" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X}, which is"
        raise BadRow(f"its text holds {what} not UTF-8") from None


def image_path(value: Any) -> Any:
    """What a row says its image is, as a path or a reference. Raises `BadRow` for anything else."""
    if isinstance(value, Mapping):  # as `datasets` stores an image
        value = value.get("path")
    if value is None or value == "":
        raise BadRow("it names no image")
    if isinstance(value, str):
        check_text(value)
        if "\x00" in value:
            raise BadRow("its image path holds a NUL byte")
    elif not hasattr(value, "read"):
        raise BadRow(f"its image is {kind_of(value)}, not a path")
    return value


KINDS = {"NoneType": "null", "dict": "an object", "list": "a list", "bool": "true or false", "float": "a number"}


def kind_of(value: Any) -> str:
    """What a JSON value is, in words: "a list"."""
    kind = type(value).__name__
    return KINDS.get(kind, "a number" if kind == "int" else kind)
