"""Damages data byte by byte and opens it: it must be read whole, row by row accounted for, or refused in one sentence.

python -m tests.data.mutations --count 1000
"""

import argparse
import io
import json
import logging
import random
import tarfile
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tulip_diffusion.data import BadRow, open_captions, open_image

ROWS = 6
REFUSALS = (ValueError, OSError)  # what the command line prints as one line


def mutated(data: bytes, generator: random.Random) -> bytes:
    """`data` with one to three bytes or blocks changed, lost, doubled, inserted or cut off."""
    damaged = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        if not damaged:
            break
        at = generator.randrange(len(damaged))
        block = slice(at, at + generator.choice((1, 4, 64, 512)))
        match generator.randrange(7):
            case 0:
                damaged[at] ^= 1 << generator.randrange(8)
            case 1:
                damaged[at] = generator.choice(b'\x00\xff"{}[],:\n\r\t\\0-')
            case 2:
                del damaged[block]
            case 3:
                damaged[at:at] = damaged[block]
            case 4:
                damaged[block] = bytes(len(damaged[block]))
            case 5:
                damaged[at:at] = generator.randbytes(4)
            case _:
                del damaged[at:]
    return bytes(damaged)


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


def open_rows(file: Path) -> int:
    """Open captions and images; returns how many rows there were, bad ones included."""
    data = open_captions(str(file), with_images=True, max_bad_share=1)
    for row, caption in enumerate(data.captions):
        assert caption.strip() and caption.encode()
        try:
            assert data.image(row).mode == "RGB"
        except BadRow as reason:
            assert "\n" not in str(reason)
    return len(data) + data.skipped.skipped


def check_json_lines(data: bytes, file: Path) -> None:
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n" if b"\n" in data else b"\r")
    marks = (b"\xff\xfe", b"\xfe\xff")
    found = open_rows(file)
    blank = sum(line.decode(errors="replace").strip().strip("\ufeff,[]") == "" for line in lines)
    assert data.startswith(marks) or found >= len(lines) - blank, f"{found} rows of {len(lines)} lines"


def check_tar(data: bytes, file: Path) -> None:
    assert open_rows(file) == ROWS


def check_picture(data: bytes, file: Path) -> None:
    assert open_image(file).mode == "RGB"


KINDS: dict[str, tuple[str, bytes, Callable[[bytes, Path], None]]] = {
    "json lines": ("data.jsonl", json_lines(), check_json_lines),
    "tar": ("data.tar", tar(), check_tar),
    **{
        f"{format} picture": (f"a.{format}", picture(4, format), check_picture)
        for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP")
    },
}


def run(kind: str, count: int, folder: Path, seed: int = 0) -> tuple[int, int]:
    """How many of `count` mutations were read and how many refused. Raises whatever is neither."""
    name, original, check = KINDS[kind]
    file, read, refused = folder / name, 0, 0
    for number in range(ROWS):
        (folder / f"{number}.png").write_bytes(picture(number))
    for number in range(count):
        damaged = mutated(original, random.Random(f"{seed}-{kind}-{number}"))
        file.write_bytes(damaged)
        try:
            check(damaged, file)
            read += 1
        except REFUSALS as error:
            assert str(error) and "\n" not in str(error), f"{kind} {number}: {error!r}"
            refused += 1
        except Exception as error:
            raise AssertionError(f"{kind}, mutation {number} of seed {seed}: {error!r}") from error
    return read, refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            read, refused = run(kind, options.count, Path(folder), options.seed)
            print(f"{kind}: {options.count} mutations, {read} read, {refused} refused in one sentence")


if __name__ == "__main__":
    main()
