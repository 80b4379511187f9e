"""webdataset shards: tar files in which files of one name belong together."""

import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tulip_diffusion.files import replacing

from .cache import cache_folder, file_state
from .images import IMAGE_SUFFIXES
from .records import BESIDE, row_beside
from .rows import BadRow, Row
from .text import is_litter

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
BROKEN = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, zlib.error, lzma.LZMAError)
PACKED = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ": "xz"}  # how packed files begin, and tarfile's names for them


@dataclass(frozen=True)
class TarMember:
    """An image inside a tar file: its bytes stand at `offset`."""

    tar: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The member's bytes, read without going through the tar."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def webdataset_rows(shard: Path, with_images: bool = True) -> Iterator[Row]:
    """A row for every picture or caption of a shard: `KEY.jpg` with `KEY.txt`, `KEY.caption` or `KEY.json`.

    A packed shard (.tar.gz) is unpacked once into the cache where its images are needed.

    Raises:
        ValueError: the shard is no tar, is broken, or is cut off.
    """
    name, shard = shard.name, shard.absolute()
    try:
        if with_images and packing(shard):
            shard = unpacked(shard)
        with tarfile.open(shard, f"r:{packing(shard)}") as tar:  # type: ignore[call-overload]  # the mode is no literal
            members = list(files_in(tar))
            for sample in samples(members):
                key, pictures, _ = sample
                image = TarMember(str(shard), pictures[0].offset_data, pictures[0].size) if pictures else None
                yield row_of(f"{name} {key}", tar, sample, image)
    except BROKEN as error:
        raise ValueError(f"The shard {name} cannot be read: {error}. Fetch or write it again.") from error


def files_in(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Members that are files, to the end of the tar. Raises `tarfile.ReadError` where tarfile would stop unnoticed."""
    seen: dict[str, tarfile.TarInfo] = {}
    offset = -1
    for member in tar:
        if tar.offset <= offset:
            raise tarfile.ReadError(f"it is broken at byte {offset}")
        offset = tar.offset
        member.name = str(PurePosixPath(member.name))  # without a leading ./
        if member.islnk() and member.linkname in seen:  # a second name of the same file
            target = seen[member.linkname]
            member.offset_data, member.size, member.type = target.offset_data, target.size, target.type
        if member.isreg() and not member.issparse() and not is_litter(member.name):
            seen[member.name] = member
            yield member
    check_end(tar)


def check_end(tar: tarfile.TarFile) -> None:
    """Raises `tarfile.ReadError` unless `tar` was read to the mark at its end, and nothing follows that."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut off at byte {tar.offset}")
    while end:
        if end.strip(b"\0"):
            raise tarfile.ReadError(f"it is broken, or a second tar begins, at byte {tar.offset}")
        end = tar.fileobj.read(1 << 20)


Sample = tuple[str, list[tarfile.TarInfo], list[tarfile.TarInfo]]  # key, pictures, captions


def samples(members: list[tarfile.TarInfo]) -> Iterator[Sample]:
    """Members that belong together: those of one name up to its last dot, or, as in webdataset, up to its first.

    `v1.5/a.b.jpg` and `v1.5/a.b.txt` are one sample, and so are `7.left.jpg`, `7.right.jpg` and `7.txt`, of which the
    first picture counts.
    """
    by_first_dot: dict[str, list[tarfile.TarInfo]] = {}
    for member in members:
        folder, base = PurePosixPath(member.name).parent, PurePosixPath(member.name).name
        if suffix_of(member) in IMAGE_SUFFIXES or suffix_of(member) in BESIDE:
            by_first_dot.setdefault(str(folder / (base[:1] + base[1:].partition(".")[0])), []).append(member)
    for key, together in by_first_dot.items():
        by_stem: dict[str, list[tarfile.TarInfo]] = {}
        for member in together:
            by_stem.setdefault(str(PurePosixPath(member.name).with_suffix("")), []).append(member)
        parts = [(stem, *sorted_out(found)) for stem, found in by_stem.items()]
        rest = [part for part in parts if not (part[1] and part[2])]
        yield from (part for part in parts if part[1] and part[2])
        if sum(bool(captions) for _, _, captions in rest) == 1:
            yield key, [p for _, pictures, _ in rest for p in pictures], [c for _, _, found in rest for c in found]
        else:
            yield from rest


def suffix_of(member: tarfile.TarInfo) -> str:
    """The ending of a member's name, in lower case."""
    return PurePosixPath(member.name).suffix.lower()


def sorted_out(members: list[tarfile.TarInfo]) -> tuple[list[tarfile.TarInfo], list[tarfile.TarInfo]]:
    """Pictures, and captions in the order in which they count."""
    pictures = [member for member in members if suffix_of(member) in IMAGE_SUFFIXES]
    captions = [member for suffix in BESIDE for member in members if suffix_of(member) == suffix]
    return pictures, captions


def row_of(name: str, tar: tarfile.TarFile, sample: Sample, image: TarMember | None) -> Row:
    """The row of one sample, or why it has none."""
    _, pictures, captions = sample
    names = [member.name for member in (*pictures, *captions)]
    if len(set(names)) < len(names):
        return Row(name, BadRow(f"one of {', '.join(dict.fromkeys(names))} stands twice in the tar"))
    if not captions:
        return Row(name, BadRow(f"it has no caption ({', '.join(BESIDE)})"))
    content = tar.extractfile(captions[0]).read()  # type: ignore[union-attr]  # None for folders alone
    return row_beside(name, captions[0].name, content, image)


def packing(shard: Path) -> str:
    """How a tar is packed, by its first bytes; "" if it is not."""
    with shard.open("rb") as file:
        head = file.read(6)
    return next((name for start, name in PACKED.items() if head.startswith(start)), "")


def unpacked(shard: Path) -> Path:
    """`shard` as a plain tar in the cache, where its images can be reached by their offsets."""
    plain = cache_folder() / "unpacked" / f"{file_state(shard)[:32]}.tar"
    if not plain.exists():
        with replacing(plain) as unfinished:
            unpack(shard, unfinished)
    return plain


def unpack(shard: Path, plain: Path) -> None:
    """Write the packed tar `shard` as a tar that is not packed."""
    with tarfile.open(shard, f"r:{packing(shard)}") as tar, plain.open("wb") as file:  # type: ignore  # as above
        tar.fileobj.seek(0)
        shutil.copyfileobj(tar.fileobj, file, 1 << 20)


BRACES = re.compile(r"\{([^{}]*)\}")


def expand_braces(pattern: str) -> list[str]:
    """`shard-{000..002}.tar` and `{a,b}.tar` as a shell writes them out."""
    if (match := BRACES.search(pattern)) is None:
        return [pattern]
    first, dots, last = match[1].partition("..")
    if dots and first.isdigit() and last.isdigit():
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        choices = [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        return [pattern]
    return [
        text
        for choice in choices
        for text in expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])
    ]
