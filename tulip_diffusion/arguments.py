"""What the commands share in reading their arguments: types that refuse in one sentence, a parser, its help.

Nothing here imports more than Python's own library, so that every command answers wrong input at once.
"""

import argparse
import ast
import dataclasses
import importlib.util
import math
import os
import re
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
LARGEST_SEED = 2**64 - 1  # of torch's generators, which read a negative seed as a large one
LARGEST_GUIDANCE = 100  # far beyond this, pictures are noise, and then not numbers at all


def refuse(text: object, expected: str) -> NoReturn:
    """Raise argparse's error: what was expected, and what came."""
    raise argparse.ArgumentTypeError(f"must be {expected}, got {str(text)!r}")


@dataclass(frozen=True)
class Range:
    """The finite numbers from `low` to `high`; `above` leaves out `low` itself, `below` leaves out `high`."""

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        high_enough = self.low is None or value > self.low or (value == self.low and not self.above)
        return high_enough and (self.high is None or value < self.high or (value == self.high and not self.below))

    def __str__(self) -> str:
        if self.low is not None and self.high is not None and not self.above and not self.below:
            return f"from {self.low} to {self.high}"
        low = None if self.low is None else f"above {self.low}" if self.above else f"{self.low} or more"
        high = None if self.high is None else f"below {self.high}" if self.below else f"{self.high} or less"
        return " and ".join(bound for bound in (low, high) if bound) or "finite"


def whole(low: int | None = None, high: int | None = None) -> Callable[[str], int]:
    """A whole number from `low` to `high`, both allowed."""
    allowed = Range(low, high)

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,40}", text.strip()) or int(text) not in allowed:
            refuse(text, f"a whole number, {allowed}" if low is not None or high is not None else "a whole number")
        return int(text)

    return parse


def number(
    low: float | None = None, high: float | None = None, above: bool = False, below: bool = False
) -> Callable[[str], float]:
    """A number in that [`Range`]."""
    allowed = Range(low, high, above, below)

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        return value if value in allowed else refuse(text, f"a number, {allowed}")

    return parse


count = whole(1)
count_or_none = whole(0)
seed = whole(-(2**63), LARGEST_SEED)
steps = whole(1, 1000)  # the diffusion models were trained with 1,000
guidance = number(0, LARGEST_GUIDANCE)
positive = number(0, above=True)
not_negative = number(0)
share = number(0, 1)


def filled(text: str) -> str:
    """Any text that is not empty."""
    return text if text.strip() else refuse(text, "some text")


def device(text: str) -> str:
    """The name of a device that torch could know; whether it is there is seen when torch is loaded."""
    if not re.fullmatch(rf"({'|'.join(DEVICES)})(:[0-9]{{1,3}})?", text):
        refuse(text, "a device such as cpu, cuda, cuda:1 or mps")
    return text


def existing_file(text: str) -> Path:
    """For `type=`: the path of a file that exists."""
    path = Path(text)
    if path.is_dir():
        refuse(text, "a file, not a folder")
    return path if text and path.exists() else refuse(text, "a file that exists")


def existing_folder(text: str) -> Path:
    """For `type=`: the path of a folder that exists."""
    return Path(text) if text and Path(text).is_dir() else refuse(text, "a folder that exists")


def weights(text: str) -> str:
    """Where a model comes from: a file or a folder that exists, or what can be the id of a Hub repository."""
    if text.strip() and Path(text).expanduser().exists():
        return str(Path(text).expanduser())
    looks_like_a_file = re.search(r"\.(safetensors|pt|pth|ckpt|bin|gguf|json)$", text, re.IGNORECASE)
    if looks_like_a_file or not HUB_ID.fullmatch(text):
        refuse(text, "a file or a folder that exists, or a Hub id such as OWNER/NAME")
    return text


def picture(text: str) -> Path:
    """A picture that can be written: a known ending, in a folder that is there and takes files."""
    path = Path(text)
    if path.is_dir():
        refuse(text, "a file to write, not a folder")
    if path.suffix.lower() not in PICTURE_FORMATS:
        refuse(text, f"a file ending in {', '.join(PICTURE_FORMATS)}")
    if not path.parent.is_dir():
        refuse(text, f"in a folder that exists ({path.parent} does not)")
    return writable(path, path.parent)


def new_file(text: str) -> Path:
    """A file that can be written; folders on the way to it are made."""
    return refuse(text, "a file to write, not a folder") if Path(text).is_dir() else writable(Path(text))


def new_folder(text: str) -> Path:
    """A folder that can be written to, or made."""
    path = Path(text)
    if not text or (path.exists() and not path.is_dir()):
        refuse(text, "a folder")
    return writable(path, path)


def writable(path: Path, folder: Path | None = None) -> Path:
    """`path`, where the nearest folder that exists takes new files."""
    folder = path.parent if folder is None else folder
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        refuse(path, f"in a folder that can be written to ({folder}: {error.strerror})")
    return path


def read_prompt(prompt: str) -> str:
    """`prompt`, or standard input where it is "-".

    Raises:
        ValueError: the prompt is empty or not UTF-8.
    """
    if prompt == "-":
        try:
            prompt = sys.stdin.read().removeprefix("\ufeff").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"Standard input is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise ValueError("The prompt is not UTF-8 text. Put it into a UTF-8 file and pass that with --file.") from None
    if not prompt.strip():
        raise ValueError("The prompt is empty. Write what the picture should show.")
    return prompt


def read_text(file: Path) -> str:
    """The text of a UTF-8 file, without the mark that some editors put in front of it.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from error


class Help(argparse.HelpFormatter):
    """Help with every default, each option once, and examples as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "".join(indent + line for line in text.splitlines(keepends=True))
        return super()._fill_text(text, width, indent)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = (action.help or "").replace(" (default: %(default)s)", "")  # Python 3.12 and older add it to some
        silent = action.required or not action.option_strings or action.default in (None, argparse.SUPPRESS)
        return text if silent or "default" in text else f"{text} (default: {as_text(action.default)})"


def as_text(default: Any) -> str:
    """A default as the help page shows it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default).replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line, and that reads `--batch_size` as `--batch-size`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Help, "allow_abbrev": False, **keywords})

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and exit with status 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}. See {self.prog} --help.\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with underscores in options read as hyphens."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([*map(with_hyphens, words[:end]), *words[end:]], namespace)


def with_hyphens(word: str) -> str:
    """`--batch_size=8` as `--batch-size=8`; other words as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def add_command(
    subparsers: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, text: str, *examples: str
) -> argparse.ArgumentParser:
    """Add a command with its `run`, its help and at least one example of its use."""
    epilog = "\n".join(("examples:" if len(examples) > 1 else "example:", *(f"  {line}" for line in examples)))
    parser = subparsers.add_parser(name, help=summary, description=text, epilog=epilog)
    parser.set_defaults(run=run)
    return parser


def docstring_of(module: str) -> str | None:
    """The docstring of `module`, read off its file: importing it may bring torch."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))


def fill_when_used(parser: argparse.ArgumentParser, fill: Callable[..., None], name: str) -> None:
    """Give `parser` its options when it parses for the first time."""
    parse, filled = parser.parse_known_args, False

    def parse_known_args(*line: Any, **keywords: Any) -> Any:
        nonlocal filled
        if not filled:
            fill(parser, name)
        filled = True
        return parse(*line, **keywords)

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]  # of this one parser


def add_family(parser: argparse.ArgumentParser, assets: Path) -> None:
    """Which embedded family to open, by default that in `assets`, and where it runs."""
    parser.add_argument(
        "--assets",
        type=existing_folder,
        default=assets,
        help="an embedded family trained by yourself (default: the package's)",
    )
    parser.add_argument("--device", type=device, help="cpu or cuda (default: the best there is)")


def add_fields(parser: argparse.ArgumentParser, options: type) -> None:
    """One option for each field of the dataclass `options`: `batch_size` is `--batch-size`.

    A field's metadata has its `help`. A field without a default is required; a flag that is on has `--no-…`.
    """
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        flag = "--" + field.name.replace("_", "-")
        text = field.metadata["help"].rstrip(".").replace("%", "%%")
        if field.default is dataclasses.MISSING:
            parser.add_argument(flag, dest=field.name, required=True, help=text, **_kind(hints[field.name]))
        elif field.default is True:
            parser.add_argument(flag, dest=field.name, action=argparse.BooleanOptionalAction, default=True, help=text)
        elif field.default is False:
            parser.add_argument(flag, dest=field.name, action="store_true", help=text)
        else:
            parser.add_argument(flag, dest=field.name, default=field.default, help=text, **_kind(hints[field.name]))


def without_none(hint: Any) -> Any:
    """`int` of `int | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _kind(hint: Any) -> dict[str, Any]:
    """argparse's keywords for `str`, `int`, `float` or a `Literal`, each perhaps with None."""
    hint = without_none(hint)
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    return {"type": {int: whole(), float: number(), str: str}[hint]}


def one_line(error: BaseException) -> str:
    """What went wrong, in one line; system errors with the file that they are about."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fspath(error.filename)}: {error.strerror}."
    return " ".join(str(error).split()) or type(error).__name__


def numbered(first: Path, amount: int = 1) -> Sequence[Path]:
    """The first `amount` of `name.png`, `name-2.png`, `name-3.png` … that do not exist."""
    free: list[Path] = []
    number = 1
    while len(free) < amount:
        path = first if number == 1 else first.with_stem(f"{first.stem}-{number}")
        if not path.exists():
            free.append(path)
        number += 1
    return free
