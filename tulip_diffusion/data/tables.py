"""Tables of captions: .csv and .tsv with a header, as pandas, spreadsheets and hands write them."""

import csv
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from .images import IMAGE_SUFFIXES
from .rows import CAPTION_KEYS, IMAGE_KEYS, BadRow, Row, find_key
from .text import lines

DELIMITERS = "\t,;|"
LONGEST_FIELD = 10_000_000  # characters
MOST_LINES = 1000  # that one quoted caption may take
MISSING = {"nan", "none", "null", "n/a", "<na>"}  # how tables mark what is not there

Line = tuple[int, str]


def csv_rows(path: Path) -> Iterator[Row]:
    """Rows of a table whose header has a column for captions and perhaps one for image paths.

    In the TULIP and open_clip repositories: separated by tabs, `filepath` and `title`. Commas, semicolons and bars
    separate as well. A row whose fields do not fit the header, or whose quotes do not close, is bad; it takes no other
    row with it.

    Raises:
        ValueError: there is no header with a column for captions.
    """
    csv.field_size_limit(LONGEST_FIELD)
    numbered = lines(path)
    headers = (text for _, text in numbered if text.strip() and not text.lower().startswith("sep="))  # as Excel writes
    table = Table(path, next(headers, ""))
    for number, fields in table.records(numbered):
        name = f"{path.name} line {number}"
        if isinstance(fields, BadRow):
            yield Row(name, fields)
            continue
        caption = fields[table.caption]
        bad = caption.strip().lower() in MISSING
        image = None if table.image is None else fields[table.image].strip()
        yield Row(name, BadRow(f"its caption is {caption.strip()!r}, a missing value") if bad else caption, image)


class Table:
    """How a table is written, by its header: the delimiter, and where captions and image paths stand."""

    def __init__(self, path: Path, header: str):
        readings = [(delimiter, split(header, delimiter) or []) for delimiter in DELIMITERS]
        self.delimiter, columns = max(readings, key=lambda reading: len(reading[1]))
        self.columns = tuple(columns)
        try:
            caption, image = (find_key(self.columns, keys) for keys in (CAPTION_KEYS, IMAGE_KEYS))
        except BadRow as reason:
            raise ValueError(f"The header of {path} is ambiguous: {reason}.") from reason
        if caption is None:
            raise ValueError(
                f"{path} has no column of captions: its first line must name one of {', '.join(CAPTION_KEYS)}, "
                f"but is {header[:80]!r}."
            )
        self.caption = self.columns.index(caption)
        self.image = None if image is None else self.columns.index(image)

    def records(self, numbered: Iterator[Line]) -> Iterator[tuple[int, list[str] | BadRow]]:
        """The number of each record's first line, and its fields or why there are none."""
        ahead: deque[Line] = deque()
        while line := (ahead.popleft() if ahead else next(numbered, None)):
            number, text = line
            if not text.strip():
                continue
            fields = split(text, self.delimiter)
            if fields is None and open_quote(text, self.delimiter):
                fields = self.joined(text, ahead, numbered)
                if fields is None:
                    yield number, BadRow("it has a quote that does not close")
                    continue
            if fields is None:  # quotes that are no quotes: "Stop" says the sign
                fields = text.split(self.delimiter)
            yield number, self.fitting(fields)

    def fitting(self, fields: list[str]) -> list[str] | BadRow:
        """`fields` without empty ones behind the last column."""
        while len(fields) > len(self.columns) and not fields[-1].strip():
            fields.pop()
        if len(fields) != len(self.columns):
            return BadRow(f"it has {len(fields)} fields, but the header has {len(self.columns)}")
        return fields

    def joined(self, text: str, ahead: deque[Line], numbered: Iterator[Line]) -> list[str] | None:
        """Fields of a record whose quoted caption goes on in the next lines; None if its quote never closes.

        Lines that turn out not to belong to it are left in `ahead`.
        """
        taken: list[Line] = []
        while len(taken) < MOST_LINES:
            line = ahead.popleft() if ahead else next(numbered, None)
            if line is None:
                break
            taken.append(line)
            if self.looks_whole(line[1]):
                break
            text = f"{text}\n{line[1]}"
            fields = split(text, self.delimiter) if '"' in line[1] else None
            if fields is not None and len(fields) == len(self.columns):
                return fields
        ahead.extendleft(reversed(taken))
        return None

    def looks_whole(self, text: str) -> bool:
        """Whether a line is a record of its own, and so cannot be the inside of a quoted caption."""
        fields = split(text, self.delimiter) or text.split(self.delimiter)
        if len(fields) != len(self.columns):
            return False
        if self.image is not None:
            return Path(fields[self.image].strip('" ')).suffix.lower() in IMAGE_SUFFIXES
        return self.delimiter == "\t" and len(fields) > 1  # captions hold commas, but no tabs


def split(text: str, delimiter: str) -> list[str] | None:
    """Fields of a record, or None where its quotes are not those of a table."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True, skipinitialspace=True))
    except (csv.Error, StopIteration):
        return None


def open_quote(text: str, delimiter: str) -> bool:
    """Whether `text` ends inside quotes."""
    try:
        next(csv.reader([f'{text}"'], delimiter=delimiter, strict=True, skipinitialspace=True))
    except (csv.Error, StopIteration):
        return False
    return True
