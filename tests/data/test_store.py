"""Captions kept on disk: the same rows as in memory, made once, made anew when the source changes."""

import json
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from tulip_diffusion.data import BadRow, open_captions

from .test_tars import packed, pairs

datasets = pytest.importorskip("datasets")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tulip_diffusion"


@pytest.fixture
def lines(tmp_path):
    """70 rows with images, a bad one among them."""
    rows = [{"caption": f"Picture {number}: é 海 “boat”", "image": f"{number % 3}.png"} for number in range(70)]
    rows[7]["caption"] = " "
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data.jsonl"


def in_memory(monkeypatch, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        data = open_captions(*arguments, **options)
    assert isinstance(data.captions, list)
    return data


def red(data, row):
    return int(np.asarray(data.image(row))[0, 0, 0])


@pytest.mark.parametrize("batch", [1, 7, 69, 10_000])
def test_rows_on_disk_are_those_in_memory(batch, lines, cache, monkeypatch):
    monkeypatch.setattr("tulip_diffusion.data.store.BATCH", batch)
    held = in_memory(monkeypatch, str(lines), with_images=True)
    kept = open_captions(str(lines), with_images=True)
    assert not isinstance(kept.captions, list)
    assert len(kept) == 69 and list(kept.captions) == held.captions == kept.captions[:] == kept.captions
    assert list(kept.images) == held.images and list(kept.names) == held.names
    assert kept.skipped == held.skipped and kept.skipped.skipped == 1
    assert [kept.captions[row] for row in (0, -1, 68)] == [held.captions[row] for row in (0, -1, 68)]
    assert kept.captions[3:9:2] == held.captions[3:9:2] and kept.captions != held.captions[1:]
    assert [kept.name(7), red(kept, 7)] == [held.name(7), red(held, 7)] == ["data.jsonl line 9", 8 % 3]
    with pytest.raises(IndexError):
        kept.captions[69]


@pytest.mark.parametrize("kind", ["tar", "packed tar", "parquet"])
def test_images_inside_other_files_are_found_from_disk(kind, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that the source is named by a relative path
    (tmp_path / "sub").mkdir()
    if kind == "parquet":
        images = [content for name, content in pairs("a", "b", "c") if name.endswith("png")]
        datasets.Dataset.from_dict({"text": ["a", "b", "c"], "image": images}).to_parquet("sub/s.parquet")
    name = {"tar": "sub/s.tar", "packed tar": "sub/s.tar.gz", "parquet": "sub/s.parquet"}[kind]
    if kind != "parquet":
        (tmp_path / name).write_bytes(packed(pairs("a", "b", "c"), "w" if kind == "tar" else "w:gz"))
    for _ in range(2):  # made, then found
        data = open_captions(name, with_images=True)
        assert [(caption, red(data, row)) for row, caption in enumerate(data.captions)] == [
            ("a", 0),
            ("b", 1),
            ("c", 2),
        ]


def test_a_second_start_parses_nothing_and_names_the_bad_rows_again(lines, cache, monkeypatch, caplog):
    first = open_captions(str(lines))
    monkeypatch.setattr("tulip_diffusion.data.formats.jsonl_rows", None)  # nobody may call it
    caplog.clear()
    second = open_captions(str(lines))
    assert second.captions == first.captions and second.skipped == first.skipped
    assert "Skipped data.jsonl line 8: its caption is empty" in caplog.text
    with pytest.raises(ValueError, match="1 of 70 rows cannot be used"):
        open_captions(str(lines), max_bad_share=0)


def append(lines):
    with lines.open("a") as file:
        file.write('{"caption": "one more", "image": "0.png"}\n')


def rewrite_in_the_same_size(lines):
    lines.write_text(lines.read_text().replace("boat", "ship"))
    os.utime(lines, ns=(time.time_ns(), lines.stat().st_mtime_ns + 1_000_000))


def replace(lines):
    (lines.parent / "new").write_text('{"caption": "another", "image": "0.png"}\n' * 30)
    os.replace(lines.parent / "new", lines)


@pytest.mark.parametrize("change", [append, rewrite_in_the_same_size, replace])
def test_a_changed_source_is_read_anew(change, lines, cache, monkeypatch):
    open_captions(str(lines), with_images=True)
    change(lines)
    changed = open_captions(str(lines), with_images=True)
    assert list(changed.captions) == in_memory(monkeypatch, str(lines), with_images=True).captions


def test_a_changed_file_of_a_folder_is_read_anew(tmp_path, cache):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(name)
    assert open_captions(str(folder)).captions == ["a", "b"]
    (folder / "b.txt").write_text("another")
    assert open_captions(str(folder)).captions == ["a", "another"]
    (folder / "a.png").unlink(), (folder / "a.txt").unlink()
    assert open_captions(str(folder)).captions == ["another"]


@pytest.mark.parametrize("options", [{"with_images": True}, {"image_root": "sub"}, {"split": "test"}])
def test_other_ways_of_opening_have_stores_of_their_own(options, tmp_path, cache):
    (tmp_path / "data.json").write_text(
        json.dumps({"train": [{"caption": "a"}, {"caption": "b", "image": "b.png"}], "test": [{"caption": "c"}]})
    )
    assert open_captions(str(tmp_path / "data.json")).captions == ["a", "b"]
    options = {name: str(tmp_path / value) if name == "image_root" else value for name, value in options.items()}
    found = open_captions(str(tmp_path / "data.json"), max_bad_share=1, **options)
    assert found.captions == (["c"] if "split" in options else ["b"] if "with_images" in options else ["a", "b"])


def test_a_broken_source_leaves_no_store(tmp_path, cache):
    (tmp_path / "data.json").write_text('[{"caption": "a"}, {"caption": ')
    for _ in range(2):
        with pytest.raises(ValueError, match="not valid JSON"):
            open_captions(str(tmp_path / "data.json"))
    assert [path.name for path in cache.rglob("*") if path.suffix != ".lock"] == ["captions"]


def test_a_cache_that_cannot_be_written_is_one_sentence(lines, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"HF_DATASETS_CACHE"):
        open_captions(str(lines))


def in_a_process(source, barrier, results):
    barrier.wait()
    made = []
    import tulip_diffusion.data.store as store

    write = store.write_rows
    store.write_rows = lambda *arguments: (made.append(1), time.sleep(0.3), write(*arguments))
    data = open_captions(source, with_images=True)
    results.put((len(made), list(data.captions), red(data, 1)))


def test_processes_that_start_together_make_one_store(lines, cache):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=in_a_process, args=(str(lines), barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(made for made, _, _ in found) == [0, 0, 1]
    assert all(captions == found[0][1] and len(captions) == 69 and pixel == 1 for _, captions, pixel in found)


def test_data_is_sent_to_another_process_as_the_name_of_its_file(lines, cache):
    data = open_captions(str(lines), with_images=True)
    sent = pickle.dumps(data)
    assert len(sent) < 20_000
    received = pickle.loads(sent)
    assert received.captions == data.captions and red(received, 5) == red(data, 5)
    (lines.parent / f"{5 % 3}.png").unlink()
    with pytest.raises(BadRow, match=r"data\.jsonl line 6"):
        received.image(5)


def test_several_parquet_files_are_one_set(tmp_path, cache, monkeypatch):
    for number in range(3):
        datasets.Dataset.from_dict({"text": [f"{number}-{row}" for row in range(4)]}).to_parquet(
            tmp_path / f"part-{number}.parquet"
        )
    pattern, expected = (
        str(tmp_path / "part-*.parquet"),
        [f"{number}-{row}" for number in range(3) for row in range(4)],
    )
    assert open_captions(pattern).captions == in_memory(monkeypatch, pattern).captions == expected
