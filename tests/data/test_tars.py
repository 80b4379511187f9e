"""webdataset shards as tar, webdataset, macOS and broken downloads make them."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from tulip_diffusion.data import open_captions
from tulip_diffusion.data.tars import expand_braces


def picture(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def packed(files, mode="w", format=tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=format) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pairs(*names: str) -> list[tuple[str, bytes]]:
    return [
        (f"{name}.{suffix}", content)
        for number, name in enumerate(names)
        for suffix, content in (("png", picture(number)), ("txt", name.encode()))
    ]


def read(path, **options) -> list[tuple[str, int]]:
    data = open_captions(str(path), with_images=True, **options)
    return [(caption, int(np.asarray(data.image(row))[0, 0, 0])) for row, caption in enumerate(data.captions)]


NAMES = {
    "plain": ("a", "b"),
    "a leading dot and slash": ("./a", "./b"),
    "a dotted folder": ("v1.5/a", "v1.5/b"),
    "dotted base names": ("photo.v2.a", "photo.v2.b"),
    "both": ("./set.1/img.0", "./set.1/img.1"),
    "a hidden folder": (".cache/a", ".cache/b"),
    "one name in two folders": ("x/a", "y/a"),
    "dates": ("2024-01-01T10.30.15", "2024-01-01T10.30.16"),
    "letters beyond ASCII": ("été/海", "été/犬"),
    "long": ("folder/" * 40 + "a", "folder/" * 40 + "b"),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_are_found_by_their_names(kind, format, tmp_path):
    names = NAMES[kind]
    (tmp_path / "s.tar").write_bytes(packed(pairs(*names), format=format))
    assert read(tmp_path / "s.tar", max_bad_share=0) == [(name, number) for number, name in enumerate(names)]


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz"), ("tar", "w:gz")],
)
def test_packed_tars_are_read_and_unpacked_once(suffix, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / f"s.{suffix}").write_bytes(packed(pairs("a", "b"), mode))
    assert read(tmp_path / f"s.{suffix}") == [("a", 0), ("b", 1)]
    plain = list((tmp_path / "cache").rglob("*.tar"))
    written = plain[0].stat().st_mtime_ns
    assert read(tmp_path / f"s.{suffix}") == [("a", 0), ("b", 1)]
    assert len(plain) == 1 and plain[0].stat().st_mtime_ns == written
    (tmp_path / f"s.{suffix}").write_bytes(packed(pairs("c", "d", "e"), mode))
    assert read(tmp_path / f"s.{suffix}") == [("c", 0), ("d", 1), ("e", 2)]


def test_captions_come_from_json_and_from_kohyas_files_too(tmp_path):
    files = [
        ("a.png", picture(1)), ("a.json", json.dumps({"caption": "one"}).encode()),
        ("b.jpg", picture(2)), ("b.caption", b"two"),
        ("c.PNG", picture(3)), ("c.TXT", b"three"), ("c.json", b"{}"),
        ("d.webp", picture(4)), ("d.json", json.dumps({"conversations": [{"from": "gpt", "value": "four"}]}).encode()),
    ]  # fmt: skip
    (tmp_path / "s.tar").write_bytes(packed(files))
    assert read(tmp_path / "s.tar") == [("one", 1), ("two", 2), ("three", 3), ("four", 4)]


def test_a_caption_of_several_pictures_goes_to_the_first(tmp_path):
    files = [("7.left.png", picture(1)), ("7.right.png", picture(2)), ("7.txt", b"a pair"), ("7.depth.npy", b"x")]
    (tmp_path / "s.tar").write_bytes(packed(files))
    assert read(tmp_path / "s.tar") == [("a pair", 1)]


@pytest.mark.parametrize(
    "litter", ["._a.png", "x/._a.txt", "__MACOSX/._a.png", "__MACOSX/a.txt", ".DS_Store", "Thumbs.db"]
)
def test_what_systems_leave_behind_is_no_sample(litter, tmp_path):
    (tmp_path / "s.tar").write_bytes(packed([(litter, b"junk"), *pairs("a", "x/a"), (f"./{litter}", b"junk")]))
    assert read(tmp_path / "s.tar", max_bad_share=0) == [("a", 0), ("x/a", 1)]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_hard_link_is_the_file_it_names_and_a_symbolic_one_no_sample(kind, tmp_path):
    buffer = io.BytesIO(packed(pairs("a")))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = kind, "a.png"
        tar.addfile(link)
        text = tarfile.TarInfo("b.txt")
        text.size = 1
        tar.addfile(text, io.BytesIO(b"b"))
    (tmp_path / "s.tar").write_bytes(buffer.getvalue())
    assert read(tmp_path / "s.tar", max_bad_share=1) == [("a", 0), ("b", 0)][: 1 + (kind == tarfile.LNKTYPE)]


@pytest.mark.parametrize("twice", ["a.txt", "a.png", "./a.txt"])
def test_a_name_that_stands_twice_decides_nothing(twice, tmp_path):
    (tmp_path / "s.tar").write_bytes(packed([*pairs("a", "b"), (twice, b"other")]))
    assert read(tmp_path / "s.tar", max_bad_share=1) == [("b", 1)]


def test_samples_without_a_caption_or_with_broken_text_are_skipped_and_named(tmp_path):
    files = [*pairs("fine"), ("a.png", picture(1)), *pairs("b", "c", "d")]
    files[-1] = ("d.txt", b"caf\xe9")
    files[-3] = ("c.json", b"{broken")
    (tmp_path / "s.tar").write_bytes(packed(files))
    data = open_captions(str(tmp_path / "s.tar"), with_images=True, max_bad_share=1)
    assert list(data.captions) == ["fine", "b"]
    assert [reason.split(":")[0] for reason in data.skipped.reasons] == ["s.tar a", "s.tar c", "s.tar d"]


WHOLE = packed(pairs("a", "b", "c"))
CONTENT = len(WHOLE.rstrip(b"\0")) // 512 * 512 + 512  # where the last member ends
BROKEN = {
    "nothing": b"",
    "half a header": WHOLE[:300],
    "half a member": WHOLE[:600],
    "the end cut off": WHOLE[:CONTENT],
    "a header lost": WHOLE[:2048] + b"\xff" * 512 + WHOLE[2560:],
    "two tars joined": WHOLE + WHOLE,
    "no tar": b"<html>not found</html>" * 100,
    "half a packed one": packed(pairs("a", "b"), "w:gz")[:-40],
    "a packed one with a wrong byte": gzip.compress(WHOLE)[:60] + b"\0\0\0\0" + gzip.compress(WHOLE)[64:],
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("with_images", [True, False])
def test_a_broken_tar_is_one_sentence_and_never_half_read(kind, with_images, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "s.tar").write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=r"The shard s\.tar cannot be read: .*Fetch or write it again"):
        open_captions(str(tmp_path / "s.tar"), with_images=with_images)
    assert not list(tmp_path.rglob("*unfinished*"))


def test_a_tar_without_members_holds_no_caption(tmp_path):
    (tmp_path / "s.tar").write_bytes(packed([]))
    with pytest.raises(ValueError, match="no usable caption"):
        open_captions(str(tmp_path / "s.tar"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s-{00..02}.tar", ["s-00.tar", "s-01.tar", "s-02.tar"]),
        ("s-{9..11}.tar", ["s-9.tar", "s-10.tar", "s-11.tar"]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("s.tar", ["s.tar"]),
        ("s-{x}.tar", ["s-{x}.tar"]),
    ],
)
def test_braces_are_written_out_as_a_shell_does(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["s-{00..01}.tar", "s-{00,01}.tar", "s-*.tar", "s-0[01].tar", ""])
def test_patterns_and_folders_of_shards_are_read_in_order(pattern, tmp_path):
    (tmp_path / "s-01.tar").write_bytes(packed(pairs("c")))
    (tmp_path / "s-00.tar").write_bytes(packed(pairs("a", "b")))
    assert read(tmp_path / pattern) == [("a", 0), ("b", 1), ("c", 0)]


def test_a_missing_shard_of_a_pattern_is_named(tmp_path):
    (tmp_path / "s-00.tar").write_bytes(packed(pairs("a")))
    with pytest.raises(FileNotFoundError, match=r"s-01\.tar"):
        open_captions(str(tmp_path / "s-{00..02}.tar"))
