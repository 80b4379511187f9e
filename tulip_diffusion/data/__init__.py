"""Captions and the images they describe, from the formats people have them in."""

from .caption_data import CaptionData, inside, open_reference
from .formats import FORMATS
from .images import IMAGE_SUFFIXES, as_seen, open_image
from .opening import open_captions
from .records import json_rows, jsonl_rows
from .rows import BadRow, Row, SkippedRows, UsableRow, clean_caption, image_path
from .streaming import Captions, CaptionStream, ReaderState, StreamReader, open_stream
from .tables import csv_rows
from .tars import TarMember
from .text import decode, is_litter, read_json

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "BadRow",
    "CaptionData",
    "CaptionStream",
    "Captions",
    "ReaderState",
    "Row",
    "SkippedRows",
    "StreamReader",
    "TarMember",
    "UsableRow",
    "as_seen",
    "clean_caption",
    "csv_rows",
    "decode",
    "image_path",
    "inside",
    "is_litter",
    "json_rows",
    "jsonl_rows",
    "open_captions",
    "open_image",
    "open_reference",
    "open_stream",
    "read_json",
]
