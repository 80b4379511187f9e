"""Captions in JSON, in JSON lines, in plain text, and in text files beside the images."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .images import IMAGE_SUFFIXES
from .rows import CAPTION_KEYS, TALK_KEYS, BadRow, Row, column_name, entry_row, image_path
from .tables import csv_rows
from .text import decode, is_litter, json_list, lines, open_text, parse_json

SPLITS = {"train", "test", "validation", "val", "valid"}  # names of folders that hold a part of a set
BESIDE = (".txt", ".caption", ".json")  # endings of a caption's file beside its image; the first one found counts


def json_rows(path: Path, split: str = "train") -> Iterator[Row]:
    """A JSON list of entries, ShareGPT4V as published among them, or an object that holds such lists by split.

    An entry has a caption and perhaps an image path, or is {"image", "conversations": [question, {"value": caption}]}.
    COCO's captions, one object a line, and an object of captions by image path are read as well.

    Raises:
        ValueError: it is not JSON, or holds nothing that `split` names.
    """
    try:
        with open_text(path) as file:
            start = file.read(1)
            while start.isspace():
                start = file.read(1)
            if start == "[":
                entries = json_list(file)
            else:
                text = start + file.read()
                entries = iter(object_entries(parse_json(text), split))
            for number, entry in enumerate(entries):
                yield entry_row(f"{path.name} entry {number}", entry)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise ValueError(f"{path} is not valid JSON: {error}.") from error
        yield from jsonl_rows(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error


def object_entries(found: Any, split: str) -> list:
    """Entries of a JSON object, whichever way it holds them."""
    if not isinstance(found, dict):
        raise ValueError("it is neither a list nor an object")
    if isinstance(found.get(split), list):
        return found[split]
    if isinstance(found.get("images"), list) and isinstance(found.get("annotations"), list):
        return coco_entries(found)
    if found and all(Path(key).suffix.lower() in IMAGE_SUFFIXES for key in found):
        return [
            {"image": key} | (value if isinstance(value, dict) else {"caption": value}) for key, value in found.items()
        ]
    if any(column_name(key) in (*CAPTION_KEYS, *TALK_KEYS) for key in found):
        return [found]
    keys = ", ".join(map(repr, list(found)[:8]))
    raise ValueError(f"no list of entries, and none under {split!r}; its keys are {keys}. Choose with --data-split")


def coco_entries(found: dict) -> list:
    """COCO's annotations, each with the file name of its image."""
    try:
        names = {image["id"]: image["file_name"] for image in found["images"]}
        return [{"image": names[each["image_id"]], "caption": each["caption"]} for each in found["annotations"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"images and annotations, but not as COCO writes them: {error!r}") from error


def jsonl_rows(path: Path) -> Iterator[Row]:
    """One JSON object a line: a caption, and an image path where there is one."""
    for number, line in lines(path):
        text = line.strip().removesuffix(",")
        if text in ("", "[", "]"):  # blank, or a list that was written one entry a line
            continue
        name = f"{path.name} line {number}"
        try:
            yield entry_row(name, parse_json(text))
        except (ValueError, RecursionError) as error:
            yield Row(name, BadRow(f"it is not a JSON object ({error})"))


def txt_rows(path: Path) -> Iterator[Row]:
    """One caption a line."""
    for number, line in lines(path):
        if line.strip():
            yield Row(f"{path.name} line {number}", line)


def row_beside(name: str, file: str, content: bytes, image: Any = None) -> Row:
    """The row of an image and of the `content` of the file beside it: a caption, or JSON that holds one."""
    try:
        text = decode(content)
        if not file.lower().endswith(".json"):
            return Row(name, text, image)
        return entry_row(name, parse_json(text))._replace(image=image)
    except BadRow as reason:
        return Row(name, reason)
    except (ValueError, RecursionError) as error:
        return Row(name, BadRow(f"{file} is not JSON ({error})"))


def folder_rows(folder: Path) -> Iterator[Row]:
    """Images with their captions beside them, `a.jpg` with `a.txt`, `a.caption` or `a.json`; or captions alone."""
    found = sorted(file for file in folder.rglob("*") if file.is_file() and not is_litter(file.as_posix()))
    pictures = {file.with_suffix(""): file for file in reversed(found) if file.suffix.lower() in IMAGE_SUFFIXES}
    captions: dict[Path, Path] = {}
    for suffix in BESIDE if pictures else BESIDE[:2]:
        for file in found:
            if file.suffix.lower() == suffix:
                captions.setdefault(file.with_suffix(""), file)
    for stem in [*sorted(pictures), *sorted(set(captions) - set(pictures))]:
        name = str(stem.relative_to(folder))
        if stem not in captions:
            yield Row(name, BadRow(f"no caption lies beside it ({', '.join(BESIDE)})"))
        elif pictures and stem not in pictures:
            yield Row(name, BadRow(f"no image lies beside {captions[stem].name}"))
        else:
            image = str(pictures[stem].relative_to(folder)) if pictures else None
            yield row_beside(name, captions[stem].name, captions[stem].read_bytes(), image)


def metadata_files(folder: Path, split: str) -> list[Path]:
    """Files that say what lies in a Hugging Face image folder: those of `split` where it has parts, else all.

    Raises:
        ValueError: it has other parts only.
    """
    found = sorted(file for name in ("metadata.jsonl", "metadata.csv") for file in folder.rglob(name))
    parts = {file: set(file.relative_to(folder).parts[:-1]) for file in found}
    mine = [file for file in found if split in parts[file]] or [file for file in found if not parts[file] & SPLITS]
    if found and not mine:
        raise ValueError(
            f"{folder} has no split {split!r}, but {found[0].relative_to(folder)}. Choose with --data-split."
        )
    return mine


def imagefolder_rows(metadata: Path, folder: Path) -> Iterator[Row]:
    """Rows of one metadata file, whose image paths are relative to its own place; here they are to `folder`."""
    place = metadata.parent.relative_to(folder)
    for row in csv_rows(metadata) if metadata.suffix == ".csv" else jsonl_rows(metadata):
        try:
            yield row if row.image is None else row._replace(image=str(place / image_path(row.image)))
        except BadRow:
            yield row
