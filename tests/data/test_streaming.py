"""Streams of shards: the rows of listed data, shared without overlap, and gone on with where a reader stopped."""

import functools
import gzip
import http.server
import io
import json
import threading
from dataclasses import asdict
from itertools import islice

import numpy as np
import pytest

from tulip_diffusion.data import (
    BadRow,
    ReaderState,
    StreamReader,
    open_captions,
    open_reference,
    open_stream,
    streaming,
)

from .test_tars import packed, picture

datasets = pytest.importorskip("datasets")

KINDS = ("jsonl", "jsonl.gz", "csv", "txt", "json", "tar", "tar.gz", "parquet")
PICTURES = ("jsonl", "csv", "tar", "tar.gz", "parquet")


def write_shard(folder, kind, shard, rows=range(7)):
    """A shard of captions `shard-row`, each with a picture whose red is 20 x shard + row where the kind has any."""
    file = folder / f"part-{shard}.{kind}"
    captions = [f"{shard}-{row}" for row in rows]
    reds = [20 * shard + row for row in rows]
    lines = [json.dumps({"caption": c, "image": f"{red}.png"}) for c, red in zip(captions, reds, strict=True)]
    match kind:
        case "jsonl":
            file.write_text("\n".join(lines))
        case "jsonl.gz":
            file.write_bytes(gzip.compress("\n".join(lines).encode()))
        case "json":
            file.write_text(f"[{', '.join(lines)}]")
        case "csv":
            table = [f"{red}.png,{caption}" for caption, red in zip(captions, reds, strict=True)]
            file.write_text("\n".join(["image,caption", *table]))
        case "txt":
            file.write_text("\n".join(captions))
        case "tar" | "tar.gz":
            pictures = [(f"{c}.png", picture(red)) for c, red in zip(captions, reds, strict=True)]
            texts = [(f"{c}.txt", c.encode()) for c in captions]
            file.write_bytes(packed(sorted(pictures + texts), "w" if kind == "tar" else "w:gz"))
        case "parquet":
            rows = {"caption": captions, "image": [picture(red) for red in reds]}
            datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(file)
    if kind in ("jsonl", "csv", "json"):
        for red in reds:
            (folder / f"{red}.png").write_bytes(picture(red))


@pytest.fixture
def shards(tmp_path, monkeypatch):
    """Writes `count` shards of a kind and returns the pattern that names them."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def write(kind, count=4, **options):
        folder = tmp_path / "shards"
        folder.mkdir(exist_ok=True)
        for shard in range(count):
            write_shard(folder, kind, shard, **options)
        return str(folder / f"part-*.{kind}")

    return write


def read(stream, count, **options):
    """The next `count` usable rows of a reader."""
    return [stream.usable(row) for row, _ in islice(StreamReader(stream, **options), count)]


def red_of(row):
    return int(np.asarray(open_reference(row.image, row.name))[0, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_of_a_stream_holds_the_rows_of_the_listed_data(kind, shards):
    pattern = shards(kind)
    with_images = kind in PICTURES
    stream, listed = open_stream(pattern, with_images=with_images), open_captions(pattern, with_images=with_images)
    rows = read(stream, 28)
    assert sorted(row.caption for row in rows) == sorted(listed.captions) and len(listed) == 28
    assert len({row.name for row in rows}) == 28
    if with_images:
        for row in rows:
            shard, number = map(int, row.caption.split("-"))
            assert red_of(row) == 20 * shard + number


def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides(shards):
    stream = open_stream(shards("jsonl"), shuffle_rows=10)
    captions = [row.caption for row in read(stream, 84, seed=3)]
    epochs = [captions[start : start + 28] for start in (0, 28, 56)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[0])
    assert captions == [row.caption for row in read(stream, 84, seed=3)]
    assert captions != [row.caption for row in read(stream, 84, seed=4)]
    assert [epoch for _, epoch in islice(StreamReader(stream), 84)] == [0] * 28 + [1] * 28 + [2] * 28


@pytest.mark.parametrize("kind", ["jsonl", "tar", "parquet"])
@pytest.mark.parametrize(("count", "readers"), [(4, 2), (4, 4), (3, 2), (1, 2), (2, 3)])
def test_readers_share_an_epoch_without_overlap_and_evenly(kind, count, readers, shards):
    stream = open_stream(shards(kind, count), shuffle_rows=3)
    seen = []
    for reader in range(readers):
        epochs = StreamReader(stream, reader=reader, readers=readers)
        seen.append([row.caption for row, epoch in islice(epochs, 7 * count) if epoch == 0])
    together = sorted(caption for mine in seen for caption in mine)
    assert together == sorted(f"{shard}-{row}" for shard in range(count) for row in range(7))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


@pytest.mark.parametrize(
    ("kind", "reader", "readers"),
    [("jsonl", 0, 1), ("jsonl", 2, 3), ("tar", 1, 2), ("tar.gz", 0, 1), ("parquet", 1, 2), ("csv", 0, 1)],
)
def test_a_reader_goes_on_in_any_state_as_if_it_had_never_stopped(kind, reader, readers, shards):
    stream = open_stream(shards(kind), shuffle_rows=5)
    whole, states = [], []
    unbroken = StreamReader(stream, seed=1, reader=reader, readers=readers)
    for row, epoch in islice(unbroken, 70):
        whole.append((row.name, row.caption, epoch))
        states.append(json.dumps(asdict(unbroken.state)))
    for stopped in (1, 4, 5, 6, 13, 14, 15, 27, 28, 29, 41, 56, 60):
        state = ReaderState(**json.loads(states[stopped - 1]))
        again = StreamReader(stream, seed=1, reader=reader, readers=readers, state=state)
        found = [(row.name, row.caption, epoch) for row, epoch in islice(again, 70 - stopped)]
        assert found == whole[stopped:], f"stopped behind row {stopped}"


def test_bad_rows_are_named_as_in_listed_data(shards, tmp_path):
    pattern = shards("jsonl", 1)
    file = tmp_path / "shards" / "part-0.jsonl"
    file.write_text(file.read_text() + '\n{"caption": " "}\n{"caption": 3}\nno JSON\n{"caption": "x", "image": null}')
    stream = open_stream(pattern, with_images=True)
    reasons = []
    for row, _ in islice(StreamReader(stream), 11):
        try:
            stream.usable(row)
        except BadRow as reason:
            reasons.append(f"{row.name}: {reason}")
    assert sorted(reasons) == sorted(open_captions(pattern, with_images=True, max_bad_share=1).skipped.reasons)
    assert len(reasons) == 4


def test_a_column_without_a_caption_or_an_image_is_a_bad_row(tmp_path):
    rows = {"text": ["a", None, "c"], "image": [picture(1), picture(2), None]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(tmp_path / "data.parquet")
    stream = open_stream(str(tmp_path / "data.parquet"), with_images=True)
    found = []
    for row, _ in islice(StreamReader(stream), 3):
        try:
            found.append(stream.usable(row).caption)
        except BadRow as reason:
            found.append(str(reason))
    assert sorted(found) == ["a", "it names no image", "its caption is null, not text"]


def test_an_image_path_that_leaves_its_root_stops_the_stream(shards, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"caption": "a", "image": "../secret.png"}')
    stream = open_stream(str(tmp_path / "data.jsonl"), with_images=True)
    with pytest.raises(ValueError, match="leaves the image root"):
        read(stream, 1)


def test_a_shard_that_is_cut_off_stops_the_stream(shards, tmp_path):
    pattern = shards("tar", 1)
    file = tmp_path / "shards" / "part-0.tar"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"part-0\.tar cannot be read"):
        read(open_stream(pattern), 7)


class Site(http.server.ThreadingHTTPServer):
    """A web server that notes what it is asked for, and cuts off as many of its next answers as `cut` says."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
        self.asked, self.cut = [], 0
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        self.server.asked.append(self.path)

    def copyfile(self, source, target):
        if self.server.cut:
            self.server.cut -= 1
            source = io.BytesIO(source.read()[:-1])
        super().copyfile(source, target)


@pytest.fixture
def site(tmp_path):
    with Site(tmp_path / "shards") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("kind", ["jsonl.gz", "txt", "tar", "tar.gz", "parquet"])
def test_remote_shards_are_read_from_urls(kind, shards, site):
    shards(kind)
    with_images = kind in PICTURES
    stream = open_stream(f"{site.address}/part-{{0..3}}.{kind}", with_images=with_images, shuffle_rows=10)
    rows = read(stream, 28)
    assert sorted(row.caption for row in rows) == sorted(f"{shard}-{row}" for shard in range(4) for row in range(7))
    if with_images:
        assert [red_of(row) for row in rows] == [
            20 * shard + number for shard, number in (map(int, row.caption.split("-")) for row in rows)
        ]


def test_a_reader_fetches_only_the_shards_of_its_share_and_leaves_no_file(shards, site, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "room"))
    (tmp_path / "room").mkdir()
    shards("txt")
    rows = read(open_stream(f"{site.address}/part-{{0..3}}.txt"), 14, reader=0, readers=2)
    assert len(site.asked) == 2 and len({row.caption.split("-")[0] for row in rows}) == 2
    assert not list((tmp_path / "room").iterdir())


def test_stars_in_a_url_are_looked_up(shards, tmp_path):
    pattern = shards("jsonl", 3)
    assert len(open_stream(f"file://{pattern}").source.files) == 3
    assert sorted(row.caption for row in read(open_stream(f"file://{pattern}"), 21))[0] == "0-0"


def test_a_shard_that_arrives_cut_off_is_asked_for_again_a_few_times(shards, site, monkeypatch):
    monkeypatch.setattr(streaming, "WAITS", (0, 0))
    shards("txt", 1)
    stream = open_stream(f"{site.address}/part-0.txt")
    site.cut = 2
    assert len(read(stream, 7)) == 7 and len(site.asked) == 3
    site.cut = 3
    with pytest.raises(OSError, match=r"part-0\.txt cannot be fetched: it was cut off after 26 of 27 bytes"):
        read(stream, 7)


def test_what_cannot_be_streamed_is_refused_in_one_sentence(tmp_path, shards, site):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(picture(0))
    (tmp_path / "images" / "a.txt").write_text("a")
    datasets.Dataset.from_dict({"caption": ["a"]}).save_to_disk(tmp_path / "saved")
    for source, message in (
        (tmp_path / "images", "can be listed: leave out --stream"),
        (tmp_path / "saved", "can be listed: leave out --stream"),
        (tmp_path / "nowhere.jsonl", "There is no caption data"),
        ("nobody://shards/data.jsonl", "cannot be read: Protocol not known"),
        (f"{site.address}/*.jsonl", "a web server does not list its files"),
        (f"{site.address}/data", "ends in none of"),
        (f"file://{tmp_path}/*.jsonl", "There is no caption data"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_stream(str(source))
    with pytest.raises(ValueError, match="--image-root"):
        open_stream(f"{site.address}/data.jsonl", with_images=True)
    with pytest.raises(ValueError, match="Add --stream"):
        open_captions(f"{site.address}/data.jsonl")
    with pytest.raises(OSError, match="cannot be fetched: HTTP Error 404"):
        read(open_stream(f"{site.address}/nothing.txt"), 1)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no row"):
        read(open_stream(str(tmp_path / "empty.jsonl")), 1)
    datasets.Dataset.from_dict({"words": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="none of the columns caption"):
        open_stream(str(tmp_path / "other.parquet"))
