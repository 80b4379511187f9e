"""R@K against the naive metric on a full matrix, and the command that writes it down."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPTokenizer

from tulip_diffusion.evaluation import retrieval
from tulip_diffusion.evaluation.choices import Choice, choice_accuracy, fg_ovd
from tulip_diffusion.evaluation.datasets import RetrievalSet, world_set
from tulip_diffusion.evaluation.encoders import open_encoder, open_pair
from tulip_diffusion.evaluation.options import OPTIONS
from tulip_diffusion.evaluation.retrieval import recall_at_k
from tulip_diffusion.evaluation.variants import varied
from tulip_diffusion.models.checkpoints import load_clip, load_image_encoder
from tulip_diffusion.models.text_encoder import from_clip
from tulip_diffusion.tokenization import load_tokenizer


def naive(images, texts, owner, k):
    """As the published scripts do it: the whole matrix, sorted, and a look at its first k columns."""
    similarity = F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    i2t = similarity.argsort(dim=1, descending=True)[:, :k]
    t2i = similarity.T.argsort(dim=1, descending=True)[:, :k]
    return {
        f"i2t_R@{k}": sum(any(owner[t] == i for t in row) for i, row in enumerate(i2t.tolist())) / len(images),
        f"t2i_R@{k}": sum(owner[t] in row for t, row in enumerate(t2i.tolist())) / len(texts),
    }


def related(count, captions, seed=0, noise=2.0):
    """Images and `captions` texts each, near enough that about half of them find each other."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 16, generator=generator)
    texts = images.repeat_interleave(captions, 0)
    owner = torch.arange(count).repeat_interleave(captions)
    return images, texts + noise * torch.randn(texts.shape, generator=generator), owner


@pytest.mark.parametrize("captions", [1, 5])
@pytest.mark.parametrize("block", [(1024, 4096), (7, 11)])
def test_recall_is_the_naive_metric_in_blocks_of_any_size(captions, block):
    images, texts, owner = related(60, captions)
    expected = {}
    for k in (1, 5, 10):
        expected |= naive(images, texts, owner.tolist(), k)
    found = recall_at_k(images, texts, owner, block=block)
    assert found == expected
    assert 0.1 < found["i2t_R@1"] < 0.9


def test_recall_does_not_depend_on_scale_or_on_the_order_of_the_texts():
    images, texts, owner = related(40, 3)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))
    scales = torch.linspace(0.1, 9, len(texts))[:, None]
    shuffled = recall_at_k(100 * images, (scales * texts)[order], owner[order].tolist(), block=(7, 11))
    assert shuffled == pytest.approx(recall_at_k(images, texts, owner))


def test_images_with_different_numbers_of_texts_agree_with_the_naive_metric():
    images, texts, _ = related(5, 4)
    owner = [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 3, 1]
    assert recall_at_k(images, texts, owner, (1,)) == naive(images, texts, owner, 1)


def test_a_model_that_says_the_same_of_everything_scores_as_a_blind_guess():
    same = torch.ones(20, 8)
    found = recall_at_k(same, same, range(20), (1, 5, 20))
    assert found["t2i_R@1"] == pytest.approx(1 / 20) and found["i2t_R@5"] == pytest.approx(5 / 20)
    assert found["i2t_R@20"] == 1
    five = recall_at_k(same, torch.ones(100, 8), torch.arange(20).repeat_interleave(5), (10,))
    assert five["i2t_R@10"] == pytest.approx(1 - np.prod([(95 - i) / (100 - i) for i in range(10)]))


def test_ties_count_as_the_mean_over_random_orders():
    levels = torch.tensor([[3.0, 2, 2, 2, 1, 2], [2, 2, 3, 1, 1, 1], [1, 1, 1, 3, 3, 3]])
    owner = torch.tensor([1, 0, 0, 1, 2, 2])
    found = recall_at_k(torch.arange(3), torch.arange(6), owner, (1, 2), score=lambda i, t: levels[i][:, t])
    generator = torch.Generator().manual_seed(0)
    draws = {name: [] for name in found}
    for _ in range(1000):
        jittered = levels + 1e-3 * torch.rand(levels.shape, generator=generator)
        once = recall_at_k(torch.arange(3), torch.arange(6), owner, (1, 2), score=lambda i, t, s=jittered: s[i][:, t])
        for name, share in once.items():
            draws[name].append(share)
    for name, share in found.items():
        assert share == pytest.approx(np.mean(draws[name]), abs=0.05), name


def test_equal_captions_tie_in_whichever_block_they_stand():
    images, texts, _ = related(64, 1, noise=1.0)
    texts[1::2] = texts[::2]
    assert recall_at_k(images, texts, range(64), block=(64, 64)) == recall_at_k(images, texts, range(64), block=(5, 9))


def test_any_score_can_stand_in_for_the_cosine():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(12, 4, 8, generator=generator), torch.randn(12, 6, 8, generator=generator)

    def late(one, other):
        pairs = torch.einsum("ipd,tqd->itpq", one, other)
        return pairs.amax(2).mean(-1) + pairs.amax(3).mean(-1)

    found = recall_at_k(images, texts, range(12), (1, 3), score=late, block=(5, 5))
    rows = late(images, texts).argsort(1, descending=True)
    assert found["i2t_R@3"] == sum(i in rows[i, :3] for i in range(12)) / 12


@pytest.mark.parametrize(
    ("owner", "message"), [([0, 1], "each of 3 texts"), ([0, 1, 3], "numbers of 3 images"), ([0, 1, 1], "Image 2")]
)
def test_owners_that_do_not_fit_are_named(owner, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(torch.randn(3, 4), torch.randn(3, 4), owner)


def test_a_broken_model_is_an_error_and_not_a_figure():
    images = torch.randn(3, 4)
    images[1, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        recall_at_k(images, torch.randn(3, 4), range(3))
    with pytest.raises(ValueError, match="one dim"):
        recall_at_k(torch.randn(3, 4), torch.randn(3, 5), range(3))


@pytest.fixture
def options():
    parser = argparse.ArgumentParser()
    OPTIONS["retrieval"](parser)
    return lambda *line: parser.parse_args([str(word) for word in line])


@pytest.fixture
def world(command, tmp_path):
    """Run retrieval on small sets of the world; returns what it measured and the folder."""

    def run(*encoders, count=12):
        line = ["--data", "world-short", "world-hard", "--count", count, "--cache", tmp_path / "cache"]
        out = command("retrieval", *line, "--encoders", *encoders)
        return json.loads((out / "retrieval.json").read_text())["results"]["measured"], out

    return run


def test_the_command_writes_json_markdown_plot_and_examples(world, family, clip_folder):
    measured, out = world("clip", clip_folder)
    embeds = {}
    captions = world_set("world-hard", 12)
    encoder = open_encoder("clip", argparse.Namespace(assets=family, device="cpu"))
    embeds = encoder.encode_images([captions.picture(i) for i in range(12)]), encoder.encode_texts(captions.captions)
    expected = naive(*embeds, captions.image_of_text, 1)
    assert {name: measured["world-hard"]["clip"][name] for name in expected} == pytest.approx(expected, abs=0.2)
    names = {path.name for path in out.iterdir()}
    assert {"retrieval.md", "retrieval.png", "examples-world-short-clip.png", "provenance.json"} <= names
    share = 100 * measured["world-short"][clip_folder.name]["i2t_R@1"]
    assert f"| {clip_folder.name} | {share:.1f} ± " in (out / "retrieval.md").read_text()


@pytest.mark.parametrize("image_folder", ["image_encoder", None])
def test_a_training_stages_folder_is_read_with_the_tokenizer_and_image_tower_that_lie_in_it(
    image_folder, world, clip_folder, family, tmp_path
):
    stage = tmp_path / "stage2"
    tulip = from_clip(load_clip(clip_folder).text_encoder)
    tulip.save_pretrained(stage)
    CLIPTokenizer.from_pretrained(family / "tokenizer_2").save_pretrained(stage)
    if image_folder is None:
        with pytest.raises(ValueError, match="no image tower"):
            world(stage)
        return
    load_image_encoder(clip_folder).save_pretrained(stage / image_folder)
    measured, _ = world(stage)
    assert measured["world-short"]["stage2"]["length"] == 248
    encoder = open_pair(str(stage), argparse.Namespace(device="cpu"))
    assert encoder.tokenizer.pad_token == "!" and encoder.length is None
    ids = load_tokenizer()(["a red tulip"], return_tensors="pt").input_ids
    torch.testing.assert_close(encoder.encode_texts(["a red tulip"]), tulip(ids).text_embeds)


def test_published_figures_stand_beside_measured_ones_and_say_so():
    row = {f"{d}_R@{k}": 0.5 for d in ("i2t", "t2i") for k in (1, 5, 10)} | {"images": 1000, "texts": 1000}
    table = retrieval.recall_table("urban-1k", {"mine": row})
    assert "| mine | 50.0 ± 3.1 | 50.0 | 50.0 | 50.0 ± 3.1 | 50.0 | 50.0 |" in table
    assert "| *TULIP L/14, published* | *90.1* |  |  | *91.1* |  |  |" in table
    assert "published" not in retrieval.recall_table("world-long", {"mine": row})


def test_data_that_the_command_does_not_know_is_named(options, tmp_path):
    for entry in ("urban-1k", "nothing=here"):
        with pytest.raises(ValueError, match=entry.split("=")[0]):
            retrieval.open_data(options("--data", entry))


def test_sets_of_the_world_are_the_same_everywhere():
    one, two = world_set("world-long", 3), world_set("world-long", 5)
    assert one.captions == two.captions[:3] and one.images == two.images[:3]


def test_the_interval_of_a_share_stays_open_where_every_query_hits():
    assert retrieval.half_width(1.0, 200) == pytest.approx(0.0094, abs=1e-4)
    assert retrieval.half_width(0.5, 10_000) == pytest.approx(1.96 * 0.005, rel=1e-3)


def test_variants_move_sentences_and_nothing_else():
    data = RetrievalSet("any", [], ["One. Two! Three?", "Only one sentence", "A. B."], [0, 1, 2])
    assert varied(data, "without-first").captions == ["Two! Three?", "Only one sentence", "B."]
    assert varied(data, "first-last").captions == ["Two! Three? One.", "Only one sentence", "B. A."]
    mixed = varied(data, "shuffled")
    assert mixed.name == "any shuffled" and mixed.captions == varied(data, "shuffled").captions
    assert [sorted(text.split()) for text in mixed.captions] == [sorted(text.split()) for text in data.captions]


def test_folds_are_searched_apart_and_averaged():
    images, texts, owner = related(40, 5)
    data = RetrievalSet("any", list(range(40)), [""] * 200, owner.tolist(), folds=4)
    parts = [recall_at_k(images[f : f + 10], texts[5 * f : 5 * f + 50], owner[:50]) for f in range(0, 40, 10)]
    expected = {name: np.mean([part[name] for part in parts]) for name in parts[0]}
    assert retrieval.recall_over_folds(images, texts, data, None) == pytest.approx(expected)
    whole = retrieval.recall_over_folds(images, texts, replace(data, folds=1), None)
    assert whole == recall_at_k(images, texts, owner) and whole["t2i_R@1"] < expected["t2i_R@1"]


class Partial:
    """Likes the caption `right` best, those in `same` less, and all others the same."""

    score = None

    def __init__(self, right, same=()):
        self.right, self.same = right, same

    def encode_images(self, pictures):
        return torch.tensor([[1.0, 0.0]] * len(pictures))

    def encode_texts(self, captions):
        angles = [0.0 if c == self.right else 0.5 if c in self.same else 1.0 for c in captions]
        return torch.tensor([[np.cos(angle), np.sin(angle)] for angle in angles]).float()


def test_a_choice_is_right_wrong_or_shared_among_those_that_tie():
    scene = world_set("world-short", 1).images[0]
    choices = [
        Choice(scene, ("a", "b", "c", "d")),
        Choice(scene, ("b", "a", "c")),
        Choice(scene, ("c", "d", "e", "f")),
    ]
    found = choice_accuracy(Partial("a", same=("b",)), choices)
    assert found["right"].mean == pytest.approx((1 + 0 + 1 / 4) / 3)
    assert found["chance"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 4) / 3)


@pytest.fixture
def ovd(tmp_path):
    """Two boxes of one picture, red and blue, in FG-OVD's layout."""
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    (tmp_path / "coco/val2017").mkdir(parents=True)
    picture.save(tmp_path / "coco/val2017/1.jpg", quality=100, subsampling=0)
    names = ["a red chair", "a blue chair", "a green chair"]
    boxes = [{"id": 1, "image_id": 7, "bbox": [0, 0, 20, 20], "category_id": 1, "neg_category_ids": [2, 3]}]
    boxes.append({"id": 2, "image_id": 7, "bbox": [20.0, 0, 20, 20], "category_id": 2, "neg_category_ids": [1, 3]})
    told = {
        "images": [{"id": 7, "file_name": "val2017/1.jpg"}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "annotations": boxes,
    }
    (tmp_path / "3_attributes.json").write_text(json.dumps(told))
    return told, tmp_path / "3_attributes.json", tmp_path / "coco"


def test_fg_ovds_boxes_are_cut_out_with_their_caption_first(ovd):
    told, file, images = ovd
    first, second = fg_ovd(file, images / "val2017")
    assert first.captions == ("a red chair", "a blue chair", "a green chair")
    assert second.captions[0] == "a blue chair"
    colours = [np.asarray(choice.image()).mean(axis=(0, 1)) for choice in (first, second)]
    assert np.allclose(colours, [(255, 0, 0), (0, 0, 255)], atol=8)
    told["annotations"][1]["neg_category_ids"] = [9]
    file.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="annotation 2 names what is not there"):
        fg_ovd(file, images)
    told["images"][0]["file_name"] = "val2017/2.jpg"
    file.write_text(json.dumps(told))
    with pytest.raises(FileNotFoundError, match=r"no image val2017/2\.jpg"):
        fg_ovd(file, images)


def test_the_command_measures_variants_and_details(command, ovd, tmp_path):
    _, file, images = ovd
    line = ["--data", "world-short", "world-details", f"fg-ovd={file}", "--images", images, "--count", 4]
    out = command("retrieval", *line, "--variants", "first-last", "--encoders", "clip", "--cache", tmp_path / "cache")
    results = json.loads((out / "retrieval.json").read_text())["results"]
    assert list(results["measured"]) == ["world-short", "world-short first-last"]
    assert list(results["choices"]) == ["world-details", "fg-ovd 3_attributes"]
    assert results["choices"]["fg-ovd 3_attributes"]["clip"]["chance"] == pytest.approx(1 / 3, abs=1e-4)
    assert "| fg-ovd 3_attributes |" in (out / "retrieval.md").read_text()
    assert len(list((tmp_path / "cache").iterdir())) == 3  # the pictures once, the captions in both orders
