"""Text files as people have them: any line ending, a byte-order mark or none, packed with gzip or not.

Bytes that are not UTF-8 stay recognisable as lone surrogates, so that the row they stand in can be skipped and named.
"""

import codecs
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from .rows import BadRow, without_repeats

CHUNK = 1 << 20  # characters of a JSON list that are read at once
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which begins alike
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LITTER = {".ds_store", "thumbs.db", "desktop.ini", ".directory"}


def is_litter(name: str) -> bool:
    """Whether `name` is what macOS, Windows or KDE leave in folders and archives, `._photo.jpg` for instance."""
    *folders, base = name.split("/")
    return base.startswith("._") or base.lower() in LITTER or "__MACOSX" in folders


def encoding_of(head: bytes) -> tuple[str, str]:
    """Encoding and error handler, by the byte-order mark: UTF-8 where there is none."""
    found = next((name for mark, name in MARKS if head.startswith(mark)), None)
    return (found, "strict") if found else ("utf-8-sig", "surrogateescape")


def decode(data: bytes) -> str:
    """Text of `data`. Raises `BadRow` if it is UTF-16 or UTF-32 and broken."""
    try:
        return data.decode(*encoding_of(data))
    except UnicodeDecodeError as error:
        raise BadRow(f"its text is not {error.encoding}, as its first bytes say") from None


def open_text(path: Path) -> TextIO:
    """Open a text file whose lines end in LF or CR LF, or in CR where it has no LF."""
    raw: Any = gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # noqa: SIM115 (the caller closes)
    head = raw.read(1 << 16)
    raw.seek(0)
    encoding, errors = encoding_of(head)
    text = head.decode(encoding, "replace")
    newline = "\r" if "\r" in text and "\n" not in text else "\n"
    return io.TextIOWrapper(raw, encoding, errors, newline=newline)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of every line, without its ending."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip("\r\n").lstrip("\ufeff")  # a mark may stand where two files were joined


def read_json(path: Path) -> Any:
    """The whole content of a JSON file. Raises ValueError, naming the file, if it is not JSON."""
    try:
        with open_text(path) as file:
            return json.loads(file.read())
    except (ValueError, RecursionError, EOFError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


DECODER = json.JSONDecoder(object_pairs_hook=without_repeats)  # made once: that takes as long as to parse a line
parse_json = DECODER.decode


def json_list(file: TextIO) -> Iterator[Any]:
    """Entries of a JSON list one after the other; only the one at hand is held in memory.

    Raises:
        ValueError: the list is broken or ends too early.
    """
    text, at, entries = file.read(CHUNK).lstrip().removeprefix("["), 0, 0
    while True:
        at = skip_space(text, at)
        if text[at : at + 1] == "]":
            break
        try:
            entry, end = DECODER.raw_decode(text, at)
            end = skip_space(text, end)
            separator, problem = text[end : end + 1], "it ends inside the list"
        except json.JSONDecodeError as error:
            separator, problem = "", f"{error.msg} behind entry {entries}"
        if not separator:
            more = file.read(max(CHUNK, len(text) - at))
            if not more:
                raise ValueError(problem)
            text, at = text[at:] + more, 0
            continue
        if separator not in ",]":
            raise ValueError(f"{separator!r} instead of a comma behind entry {entries}")
        yield entry
        entries += 1
        at = end + (separator == ",")
    if (text[at + 1 :] + file.read()).strip():
        raise ValueError(f"it goes on behind the list of {entries} entries")


def skip_space(text: str, at: int) -> int:
    """The first place from `at` on that holds no white space."""
    while text[at : at + 1].isspace():
        at += 1
    return at
