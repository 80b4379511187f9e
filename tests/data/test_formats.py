"""Which reader a name gets: files, folders, Hugging Face data sets, and what is not there."""

import json

import numpy as np
import pytest
from PIL import Image

from tulip_diffusion.data import open_captions

NAMES = ["a", "b", "c"]


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(NAMES):
        save(tmp_path / f"{name}.png", number)
    return tmp_path


def save(path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (red, 0, 0)).save(path)


def read(source, **options) -> list[tuple[str, int]]:
    data = open_captions(str(source), with_images=True, **options)
    return [(caption, int(np.asarray(data.image(row))[0, 0, 0])) for row, caption in enumerate(data.captions)]


ALL = [("a", 0), ("b", 1), ("c", 2)]


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".json", ".TXT"])
def test_captions_beside_their_images(suffix, folder):
    for name in NAMES:
        (folder / f"{name}{suffix}").write_text(json.dumps({"caption": name}) if suffix == ".json" else name)
    assert read(folder, max_bad_share=0) == ALL


def test_captions_beside_images_in_folders_of_any_name(tmp_path):
    for number, name in enumerate(("10_a dog/x", "v1.5/x", "v1.5/y.z")):
        save(tmp_path / f"{name}.jpg", 8 * number)
        (tmp_path / f"{name}.txt").write_text(name)
    found = read(tmp_path, max_bad_share=0)
    assert [caption for caption, _ in found] == ["10_a dog/x", "v1.5/x", "v1.5/y.z"]
    assert np.abs(np.array([red for _, red in found]) - [0, 8, 16]).max() < 3


def test_half_a_pair_beside_others_is_skipped_and_named(folder):
    for name in ("a", "b", "README", "._a"):
        (folder / f"{name}.txt").write_text(name)
    (folder / "Thumbs.db").write_bytes(b"junk")
    data = open_captions(str(folder), with_images=True, max_bad_share=1)
    assert list(data.captions) == ["a", "b"]
    assert [reason.split(":")[0] for reason in data.skipped.reasons] == ["c", "README"]


@pytest.mark.parametrize("split", [None, "train", "test"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_image_folders_of_hugging_face(kind, split, tmp_path):
    place = tmp_path / split if split else tmp_path
    for number, name in enumerate(NAMES):
        save(place / f"{name}.png", number)
    rows = [{"file_name": f"{name}.png", "text": name} for name in NAMES]
    if kind == "jsonl":
        (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        (place / "metadata.csv").write_text("file_name,text\n" + "".join(f"{n}.png,{n}\n" for n in NAMES))
    assert read(tmp_path, split=split or "train", max_bad_share=0) == ALL
    if split == "test":
        with pytest.raises(ValueError, match=r"no split 'train', but test.*--data-split"):
            read(tmp_path)


def test_the_library_reads_the_same_image_folder(folder):
    datasets = pytest.importorskip("datasets")
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{n}.png", "text": n}) + "\n" for n in NAMES)
    )
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    assert read(folder) == [(row["text"], np.asarray(row["image"])[0, 0, 0]) for row in theirs]


@pytest.mark.parametrize("kind", ["images", "paths", "bytes"])
@pytest.mark.parametrize("form", ["file", "folder", "saved"])
def test_parquet_and_saved_data_sets(kind, form, folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = [str(folder / f"{name}.png") for name in NAMES]
    images = files if kind != "bytes" else [(folder / f"{name}.png").read_bytes() for name in NAMES]
    dataset = datasets.Dataset.from_dict({"Caption": NAMES, "image": images})
    if kind == "images":
        dataset = dataset.cast_column("image", datasets.Image())
    place = tmp_path / "set"
    if form == "saved":
        dataset.save_to_disk(str(place))
    else:
        dataset.to_parquet(str(place / "data" / "train-00000-of-00001.parquet"))
    source = place / "data" / "train-00000-of-00001.parquet" if form == "file" else place
    assert read(source, image_root=str(folder)) == ALL


def test_a_broken_parquet_file_is_one_sentence(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ValueError, match=r"t\.parquet could not be loaded"):
        open_captions(str(tmp_path / "t.parquet"))


def test_a_split_that_a_saved_data_set_has_not_is_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": NAMES})}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"the splits test, but not 'train'"):
        open_captions(str(tmp_path / "set"))
    assert list(open_captions(str(tmp_path / "set"), split="test").captions) == NAMES


@pytest.fixture
def no_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(*args, **options):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", refuse)


@pytest.mark.parametrize("name", ["captions.dat", "captions", "captions.json.bak", "captions.docx"])
def test_a_file_of_an_unknown_kind_is_never_looked_for_on_the_hub(name, tmp_path, no_hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text('{"caption": "a"}\n')
    for source in (name, f"./{name}", str(tmp_path / name)):
        with pytest.raises(ValueError, match="--data-format"):
            open_captions(source)
        assert list(open_captions(source, data_format="jsonl").captions) == ["a"]


@pytest.mark.parametrize(
    "name", ["none.jsonl", "./none", "../none", "/none/at/all", "here/none", "a/b/c", "none.tar.gz", "~/none.x"]
)
def test_a_path_to_nothing_is_one_sentence_and_not_looked_for_on_the_hub(name, tmp_path, no_hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(FileNotFoundError, match=f"There is no caption data at .*{name.lstrip('~')}"):
        open_captions(name)


def test_files_of_one_format_in_a_folder_are_read_in_order(folder):
    for number in (1, 0):
        (folder / f"part-{number}.jsonl").write_text(json.dumps({"caption": f"{number}", "image": "a.png"}) + "\n")
    (folder / "README.txt").write_text("Read me.")
    assert read(folder) == [("0", 0), ("1", 0)]
    (folder / "more.csv").write_text("image,caption\na.png,x\n")
    with pytest.raises(ValueError, match="several formats, csv, jsonl"):
        open_captions(str(folder))


def test_a_folder_without_captions_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="no usable caption"):
        open_captions(str(tmp_path))
    with pytest.raises(ValueError, match="auto or one of"):
        open_captions(str(tmp_path), data_format="xml")
