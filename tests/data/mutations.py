"""Captions, tars and pictures to damage: each must be read whole, row by row accounted for, or refused."""

import io
import json
import logging
import tarfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from tests.mutations import Subject
from tulip_diffusion.data import BadRow, open_captions, open_image

ROWS = 6


def picture(number: int = 0, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((24, 16), 20 * number + 10).convert("RGB").save(buffer, format)
    return buffer.getvalue()


def json_lines() -> bytes:
    rows = [{"caption": f"Číslo {number}: a boat.", "image": f"{number}.png", "width": 24} for number in range(ROWS)]
    return "".join(json.dumps(row, ensure_ascii=bool(number % 2)) + "\n" for number, row in enumerate(rows)).encode()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(ROWS):
            for name, content in ((f"{number}.png", picture(number)), (f"{number}.txt", f"boat {number}".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def make(content: Callable[[], bytes]) -> Callable[[Path], None]:
    """Writes `content` to a path, and the pictures that its rows name beside it."""

    def write(path: Path) -> None:
        path.write_bytes(content())
        for number in range(ROWS):
            (path.parent / f"{number}.png").write_bytes(picture(number))

    return write


def open_rows(file: Path) -> int:
    """Open captions and images; returns how many rows there were, bad ones included."""
    logging.getLogger("tulip_diffusion.data").setLevel(logging.ERROR)  # it names every bad row
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of broken pictures
        data = open_captions(str(file), with_images=True, max_bad_share=1)
        for row, caption in enumerate(data.captions):
            assert caption.strip() and caption.encode()
            try:
                assert data.image(row).mode == "RGB"
            except BadRow as reason:
                assert "\n" not in str(reason)
    return len(data) + data.skipped.skipped


def load_json_lines(file: Path) -> None:
    found, content = open_rows(file), file.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return  # it says that it is UTF-16: its lines are others
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n" if b"\n" in content else b"\r")
    blank = sum(line.decode(errors="replace").strip().strip("\ufeff,[]") == "" for line in lines)
    assert found >= len(lines) - blank, f"{found} rows of {len(lines)} lines"


def load_picture(file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_image(file).mode == "RGB"


def check_rows(rows: int) -> None:
    assert rows == ROWS, f"{rows} rows of {ROWS}"


SUBJECTS = {
    "jsonl": Subject("data.jsonl", make(json_lines), load_json_lines),
    "tar": Subject("data.tar", make(tar), open_rows, check_rows),
    **{
        form.lower(): Subject(f"picture.{form.lower()}", make(partial(picture, 4, form)), load_picture)
        for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")
    },
}
