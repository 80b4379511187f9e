"""Tiny data sets in the layouts that the real ones have, written by hand."""

import json
import re

import pytest
from PIL import Image

from tulip_diffusion.evaluation.datasets import HARD_GROUP, load_retrieval_set, one_detail_apart, world_set
from tulip_diffusion.scenes.oracle import read_scene
from tulip_diffusion.scenes.wording import count_tokens

FIVE = [f"caption {number}" for number in range(5)]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def names(data):
    return [image.name for image in data.images]


@pytest.fixture
def coco(tmp_path):
    images = [{"id": 9, "file_name": "000000000009.jpg"}, {"id": 3, "file_name": "000000000003.jpg"}]
    texts = [{"image_id": i, "id": 10 * n + i, "caption": f"{n} of {i}"} for n in range(6) for i in (9, 3)]
    write(tmp_path / "annotations/captions_val2017.json", {"images": images, "annotations": texts})
    for image in images:
        picture(tmp_path / "val2017" / image["file_name"])
    return tmp_path


def test_coco_has_images_by_id_and_five_captions_each(coco):
    data = load_retrieval_set("coco", coco)
    assert names(data) == ["000000000003.jpg", "000000000009.jpg"]
    assert data.captions[:5] == [f"{n} of 3" for n in range(5)] and data.image_of_text == [0] * 5 + [1] * 5
    assert load_retrieval_set("coco", coco / "annotations/captions_val2017.json") == data


def test_a_missing_image_is_named(coco):
    (coco / "val2017/000000000009.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"000000000009\.jpg"):
        load_retrieval_set("coco", coco)


def test_an_image_that_is_no_image_is_named(coco):
    (coco / "val2017/000000000003.jpg").write_text("not a picture")
    data = load_retrieval_set("coco", coco)
    assert data.picture(1).size == (8, 8)
    with pytest.raises(ValueError, match=r"000000000003\.jpg"):
        data.picture(0)


def test_an_image_with_too_few_captions_is_named(coco):
    file = coco / "annotations/captions_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 3 or a["id"] < 30]
    write(file, content)
    with pytest.raises(ValueError, match=r"3 captions for 000000000009.jpg, expected 5"):
        load_retrieval_set("coco", coco)


def test_flickr30k_reads_the_published_csv_with_its_broken_line(tmp_path):
    lines = ["image_name| comment_number| comment"]
    lines += [f"1000092795.jpg| {n}| {text}" for n, text in enumerate(FIVE)]
    lines += [f"2199200615.jpg| {n}| A dog, {n} ." for n in range(4)]
    lines += ["2199200615.jpg| 4   A dog runs across the grass ."]
    write(tmp_path / "results.csv", "\n".join(lines) + "\n")
    for name in ("1000092795.jpg", "2199200615.jpg"):
        picture(tmp_path / "flickr30k_images/flickr30k_images" / name)
    data = load_retrieval_set("flickr30k", tmp_path)
    assert data.captions == [*FIVE, *(f"A dog, {n} ." for n in range(4)), "A dog runs across the grass ."]
    assert data.image_of_text == [0] * 5 + [1] * 5 and data.images[0].is_file()


def test_flickr30k_reads_the_token_file(tmp_path):
    write(tmp_path / "results_20130124.token", "".join(f"7.jpg#{n}\t{text}\n" for n, text in enumerate(FIVE)))
    picture(tmp_path / "flickr30k-images/7.jpg")
    assert load_retrieval_set("flickr30k", tmp_path).captions == FIVE


def test_a_flickr30k_image_without_its_fifth_caption_is_named(tmp_path):
    write(tmp_path / "results_20130124.token", "".join(f"7.jpg#{n}\t{text}\n" for n, text in enumerate(FIVE[:4])))
    picture(tmp_path / "flickr30k-images/7.jpg")
    with pytest.raises(ValueError, match=r"4 captions for .*7\.jpg, expected 5"):
        load_retrieval_set("flickr30k", tmp_path)


def test_karpathys_test_split_is_kept_apart_from_the_full_set(tmp_path):
    entries = [
        {"filename": f"{split}.jpg", "split": split, "sentences": [{"raw": f"{split} {text}"} for text in FIVE]}
        for split in ("train", "test", "val")
    ]
    write(tmp_path / "dataset_flickr30k.json", {"images": entries, "dataset": "flickr30k"})
    picture(tmp_path / "flickr30k-images/test.jpg")
    data = load_retrieval_set("flickr30k-1k", tmp_path)
    assert names(data) == ["test.jpg"] and data.captions[0] == "test caption 0"


def test_sharegpt4v_takes_the_first_thousand(tmp_path):
    entries = [
        {"id": n, "image": "sam/images/sa_1.jpg", "conversations": [{"value": "<image>\nDescribe"}, {"value": f"{n}"}]}
        for n in range(1001)
    ]
    write(tmp_path / "share-captioner_coco_lcs_sam_1246k_1107.json", entries)
    picture(tmp_path / "data/sam/images/sa_1.jpg")
    data = load_retrieval_set("sharegpt4v-1k", tmp_path)
    assert len(data.captions) == 1000 and data.captions[999] == "999"
    assert load_retrieval_set("sharegpt4v-1k", tmp_path, tmp_path / "data") == data


def test_an_entry_without_a_caption_is_named(tmp_path):
    file = write(tmp_path / "captions.json", [{"image": "1.jpg", "conversations": []}])
    with pytest.raises(ValueError, match=r"captions.json entry 0 .*conversations"):
        load_retrieval_set("sharegpt4v-1k", file)


@pytest.fixture
def urban(tmp_path):
    for number in (1, 10, 2):
        picture(tmp_path / f"image/{number}.jpg")
        write(tmp_path / f"caption/{number}.txt", f"street {number}\nsecond line")
    return tmp_path


def test_urban_1k_pairs_image_and_caption_by_name_and_reads_the_first_line(urban):
    data = load_retrieval_set("urban-1k", urban)
    pairs = {data.images[image].stem: text for image, text in zip(data.image_of_text, data.captions, strict=True)}
    assert pairs == {"1": "street 1", "2": "street 2", "10": "street 10"}


@pytest.mark.parametrize("lost", ["image/10.jpg", "caption/10.txt"])
def test_half_a_pair_of_urban_1k_is_named(urban, lost):
    (urban / lost).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(lost)):
        load_retrieval_set("urban-1k", urban)


def test_long_dci_from_the_csv_and_from_the_annotations_is_the_same(tmp_path):
    for name, caption in (("sa_2", 'says "two"\tthen'), ("sa_1", "one"), ("sa_3", "")):
        entry = {"image": f"{name}.jpg", "short_caption": "short", "extra_caption": caption}
        write(tmp_path / f"dci/annotations/{name}.json", entry)
        picture(tmp_path / f"dci/photos/{name}.jpg")
    built = load_retrieval_set("long-dci", tmp_path / "dci")
    rows = 'filepath\ttitle\nsa_1.jpg\tone\nsa_2.jpg\t"says ""two""\tthen"\n'
    table = load_retrieval_set("long-dci", write(tmp_path / "dci_long.csv", rows), tmp_path / "dci/photos")
    assert built == table and built.captions == ["one", 'says "two"\tthen']


def test_summarised_dci_has_every_summary_of_the_whole_images_of_the_test_split(tmp_path):
    entries = {
        "sa_2": {"base": ["a boat", "a boat, moored"], "m-0-sc": ["a rope"]},
        "sa_1": {"base": "a house"},
        "sa_3": None,
        "sa_4": {"base": ["of another split"]},
    }
    for name, summaries in entries.items():
        entry = {"image": f"{name}.jpg", "short_caption": "short", "extra_caption": "long", "summaries": summaries}
        write(tmp_path / f"complete/{name}.json", entry)
        picture(tmp_path / f"photos/{name}.jpg")
    write(tmp_path / "complete/sa_5.json", {"image": "sa_5.jpg", "short_caption": "never summarised"})
    split = {"train": ["sa_4.json"], "test": ["sa_2.json", "sa_1.json", "sa_3.json", "sa_5.json"]}
    write(tmp_path / "splits.json", split)
    found = load_retrieval_set("sdci", tmp_path)
    assert names(found) == ["sa_2.jpg", "sa_1.jpg"] and found.image_of_text == [0, 0, 1]
    assert found.captions == ["a boat", "a boat, moored", "a house"]
    assert load_retrieval_set("sdci", tmp_path / "splits.json", tmp_path / "photos") == found
    (tmp_path / "photos/sa_1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"sa_1\.jpg"):
        load_retrieval_set("sdci", tmp_path)


def test_docci_takes_the_test_split(tmp_path):
    lines = [
        {"example_id": f"{split}_00000", "split": split, "image_file": f"{split}_00000.jpg", "description": split}
        for split in ("train", "test", "qual_dev")
    ]
    write(tmp_path / "docci_descriptions.jsonlines", "\n".join(map(json.dumps, lines)))
    picture(tmp_path / "images/test_00000.jpg")
    assert load_retrieval_set("docci", tmp_path).captions == ["test"]


def test_lines_of_any_jsonl_may_share_an_image(tmp_path):
    lines = [
        {"image": "a.jpg", "caption": "one"},
        {"image": "b.jpg", "caption": "two"},
        {"image": "a.jpg", "text": "3"},
    ]
    file = write(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, lines)))
    picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg")
    assert load_retrieval_set("jsonl", file).image_of_text == [0, 1, 0]
    write(file, '{"caption": "no image"}')
    with pytest.raises(ValueError, match=r"mine.jsonl line 1 .*names no image"):
        load_retrieval_set("jsonl", file)


@pytest.mark.parametrize(
    "name", ["coco", "flickr30k", "sharegpt4v-1k", "urban-1k", "long-dci", "sdci", "docci", "jsonl"]
)
def test_a_folder_that_is_not_there_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_retrieval_set(name, tmp_path / "nowhere")


def test_unknown_names_are_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="urban-1k"):
        load_retrieval_set("urban", tmp_path)
    with pytest.raises(ValueError, match="world-hard"):
        world_set("world-easy", 3)


@pytest.mark.parametrize(("late", "first", "last"), [(True, 120, 260), (False, 0, 80)])
def test_hard_captions_differ_in_one_word_at_the_right_end_and_their_pictures_show_it(late, first, last):
    group = one_detail_apart(7, late)
    texts = [caption.text.split() for caption in group]
    assert len({caption.text for caption in group}) == HARD_GROUP
    for words in texts[1:]:
        differing = [at for at, pair in enumerate(zip(texts[0], words, strict=True)) if len(set(pair)) > 1]
        at = differing[-1]
        assert len(differing) == 1 or (differing == [at - 1, at] and words[at - 1] in ("a", "an"))
        assert first < count_tokens(" ".join(words[:at])) < last
    for caption in group:
        assert world_set("world-long", 1).picture(0).size == (64, 64)
        assert all(caption.scene.things[claim.place] == claim.thing for claim in caption.claims)


def test_pictures_of_the_world_show_what_their_captions_say():
    import numpy as np

    data = world_set("world-mixed", 2)
    assert read_scene(np.asarray(data.picture(1)) / 255.0).things == data.images[1].things


@pytest.mark.parametrize("folder", ["val2014", "."])
def test_karpathys_coco_is_five_captions_of_each_test_image_in_one_set_or_in_five_folds(folder, tmp_path):
    (tmp_path / folder).mkdir(exist_ok=True)
    entries = []
    for number in range(12):
        Image.new("RGB", (4, 4)).save(tmp_path / folder / f"{number}.jpg")
        sentences = [{"raw": f"{number} {caption}"} for caption in range(6 if number == 3 else 5)]
        split = "test" if number < 10 else "restval"
        entry = {"filepath": "val2014", "filename": f"{number}.jpg", "split": split, "sentences": sentences}
        entries.append(entry)
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    whole, folds = (load_retrieval_set(name, tmp_path) for name in ("coco-karpathy-5k", "coco-karpathy-1k"))
    assert len(whole.images) == 10 and len(whole.captions) == 50 and (whole.folds, folds.folds) == (1, 5)
    assert whole.captions[15:20] == [f"3 {caption}" for caption in range(5)] and folds.captions == whole.captions
    entries[0]["sentences"].pop()
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    with pytest.raises(ValueError, match="4 captions"):
        load_retrieval_set("coco-karpathy-5k", tmp_path)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_byte_order_marks_and_line_endings_are_no_part_of_a_caption(encoding, ending, tmp_path, urban, coco):
    (urban / "caption/1.txt").write_bytes(f"Étude{ending}more".encode(encoding))
    data = load_retrieval_set("urban-1k", urban)
    assert data.captions[data.image_of_text.index(names(data).index("1.jpg"))] == "Étude"

    file = coco / "annotations/captions_val2017.json"
    file.write_bytes(json.dumps(json.loads(file.read_text()), indent=1).replace("\n", ending).encode(encoding))
    assert load_retrieval_set("coco", coco).captions[0] == "0 of 3"

    tokens = tmp_path / "results_20130124.token"
    tokens.write_bytes("".join(f"7.jpg#{n}\tÉtude {n}{ending}" for n in range(5)).encode(encoding))
    picture(tmp_path / "flickr30k-images/7.jpg")
    assert load_retrieval_set("flickr30k", tmp_path).captions == [f"Étude {n}" for n in range(5)]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c"])
def test_other_separators_do_not_end_a_caption(mark, tmp_path):
    text = f"A boat{mark}at sea"
    line = {"split": "test", "image_file": "a.jpg", "description": text}
    write(tmp_path / "docci_descriptions.jsonlines", json.dumps(line, ensure_ascii=False))
    write(tmp_path / "caption/a.txt", f"{text}\nmore")
    for file in ("images/a.jpg", "image/a.jpg"):
        picture(tmp_path / file)
    assert load_retrieval_set("docci", tmp_path).captions == [text]
    assert load_retrieval_set("urban-1k", tmp_path).captions == [text]


@pytest.mark.parametrize("litter", ["image/._1.jpg", "caption/._1.txt", "caption/._10.txt"])
def test_what_macos_leaves_behind_is_no_pair(litter, urban):
    (urban / litter).write_bytes(b"\x00\x05\x16\x07")
    assert len(load_retrieval_set("urban-1k", urban).captions) == 3


@pytest.mark.parametrize("caption", [None, 7, "", "  ", ["a"], "\ud83d", "a\x00b"])
def test_a_caption_that_is_no_text_is_an_error(caption, coco):
    file = coco / "annotations/captions_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["caption"] = caption
    write(file, content)
    with pytest.raises(ValueError, match=r"cannot be evaluated: .*000000000009\.jpg"):
        load_retrieval_set("coco", coco)


@pytest.mark.parametrize("content", ["{", "[]", '{"images": [{}], "annotations": []}', '{"images": 3}', "[" * 9999])
def test_annotations_of_another_shape_are_one_sentence(content, coco):
    (coco / "annotations/captions_val2017.json").write_text(content)
    with pytest.raises(ValueError, match=r"coco|not valid JSON"):
        load_retrieval_set("coco", coco)


@pytest.mark.parametrize("bad", [b"caf\xe9", b"\xff\xfe\x00", b""])
def test_a_caption_in_another_encoding_is_named(bad, urban):
    (urban / "caption/10.txt").write_bytes(bad)
    with pytest.raises(ValueError, match=r"10\.txt cannot be evaluated"):
        load_retrieval_set("urban-1k", urban)
