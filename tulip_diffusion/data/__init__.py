"""Captions and the images they describe, from the formats people have them in."""

from .caption_data import CaptionData, inside
from .formats import FORMATS
from .images import IMAGE_SUFFIXES, as_seen, open_image
from .opening import open_captions
from .records import json_rows, jsonl_rows
from .rows import BadRow, Row, SkippedRows, clean_caption, image_path
from .tables import csv_rows
from .tars import TarMember
from .text import decode, is_litter, read_json

__all__ = [
    "FORMATS",
    "IMAGE_SUFFIXES",
    "BadRow",
    "CaptionData",
    "Row",
    "SkippedRows",
    "TarMember",
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
    "read_json",
]
