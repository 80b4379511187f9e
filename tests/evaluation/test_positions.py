"""The position probes, held against encoders that understand the world perfectly, whole or in its first 77 tokens."""

import json
import re

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tulip_diffusion.evaluation.needles import distinct_contents, hard_negatives, make_needle, two_colours
from tulip_diffusion.evaluation.probes import (
    early_bias,
    find_needles,
    match_shares,
    movement,
    one_word,
    prefer_right_colour,
)
from tulip_diffusion.scenes.dataset import full_caption
from tulip_diffusion.scenes.grammar import parse_caption
from tulip_diffusion.scenes.oracle import read_scene
from tulip_diffusion.scenes.sprites import COLOURS, KINDS


class PerfectEncoder:
    """Texts and pictures as what stands in each place, one number for every place, kind and colour."""

    def __init__(self, limit=None):
        self.limit = limit

    def encode_texts(self, texts):
        captions = [parse_caption(text) for text in texts]
        return self.embed([(caption.cut(self.limit) if self.limit else caption).scene for caption in captions])

    def encode_images(self, images):
        return self.embed([read_scene(image) for image in images])

    def embed(self, scenes):
        vectors = torch.zeros(len(scenes), 16, len(KINDS), len(COLOURS))
        for vector, scene in zip(vectors, scenes, strict=True):
            for place, thing in zip(vector, scene.things, strict=True):
                if thing:
                    place[KINDS.index(thing.kind), list(COLOURS).index(thing.colour)] = 1
        return normalize(vectors.flatten(1), dim=1)


def needle(tokens, seed=0, variants=8):
    rng = np.random.default_rng(seed)
    return make_needle(rng, tokens, distinct_contents(rng, variants))


@pytest.mark.parametrize("tokens", [77, 154, 248, 500])
def test_a_needles_texts_differ_in_one_sentence_that_says_what_their_scenes_show(tokens):
    found = needle(tokens)
    for slot in found.slots(5):
        captions = found.captions(slot)
        for caption in captions:
            assert parse_caption(caption.text).scene.things == caption.scene.things
            assert tokens - 40 < caption.tokens <= tokens
        for index in range(len(captions[0].sentences)):
            assert len({caption.sentences[index].text for caption in captions}) == (8 if index == slot else 1)


def test_a_slot_moves_the_needle_and_nothing_else():
    found = needle(154)
    first, *_, last = found.slots(8)
    sentences = [sorted(s.text for s in found.captions(slot)[3].sentences) for slot in (first, last)]
    assert sentences[0] == sentences[1]
    assert found.captions(last)[3].sentences[-1] == found.captions(first)[3].sentences[0]
    assert found.captions(found.slot_at(77))[0].token_spans[found.slot_at(77)][0] in range(60, 79)


def test_one_word_alone_is_exchanged():
    def words(text):
        return re.findall(r"\w+|[^\w\s]", text)

    for seed in range(5):
        rng = np.random.default_rng(seed)
        caption = full_caption(rng)
        pairs = [(caption.text, text) for _, text in hard_negatives(rng, caption)]
        pairs.append(tuple(c.text for c in make_needle(rng, 154, two_colours(rng)).captions(2)))
        for one, other in pairs:
            assert sum(a != b for a, b in zip(words(one), words(other), strict=True)) == 1
        for claim, text in hard_negatives(rng, caption):
            changed = parse_caption(text).scene.things[claim.place]
            assert changed.kind == claim.thing.kind and changed.colour != claim.thing.colour


def test_who_reads_everything_finds_every_needle_and_who_reads_77_tokens_none_beyond():
    needles = [needle(248, seed) for seed in range(4)]
    whole, cut = (find_needles(PerfectEncoder(limit), needles, slots=6) for limit in (None, 77))
    assert [slot["image to text"].mean for slot in whole["slots"].values()] == [1.0] * 6
    assert whole["last of first"] == 1.0 and whole["early bias"] == pytest.approx(0.2, abs=0.005)
    assert cut["slots"][0]["text to image"].mean == 1.0
    for slot in cut["slots"].values():
        if slot["position"] > 77:
            assert slot["image to text"].mean == slot["text to image"].mean == cut["chance"] == 1 / 8
    assert cut["early bias"] > 0.5


def test_a_wrong_colour_is_told_where_it_is_read_and_a_tie_elsewhere():
    whole, cut = (prefer_right_colour(PerfectEncoder(limit), "full", 4, "validation") for limit in (None, 77))
    assert all(share.mean == 1.0 for share in whole["position"].values())
    assert cut["position"]["0-77"].mean > 0.9
    assert {share.mean for bin_, share in cut["position"].items() if bin_ != "0-77"} == {0.5}


def test_the_early_bias_index_is_the_share_of_the_area_under_the_curve():
    places = np.linspace(0, 1, 6)
    assert early_bias(places, np.full(6, 0.3)) == pytest.approx(0.2)
    assert early_bias(places, places) == pytest.approx(0.2**2, abs=1e-3)
    assert early_bias(places, [1, 0, 0, 0, 0, 0]) == pytest.approx(1.0)
    assert early_bias(places, np.zeros(6)) is None


def test_matches_and_movement_against_their_formulas():
    angles = torch.tensor([0.0, 0.3, 2.0])
    texts = torch.stack([angles.cos(), angles.sin()], dim=1)
    turned = torch.tensor([0.2, 0.1, 2.0])
    images = torch.stack([turned.cos(), turned.sin()], dim=1)
    assert match_shares(images, texts) == ([0, 0, 1], [0, 0, 1])
    pairs = [(0.0, 0.3), (0.0, 2.0), (0.3, 2.0)]
    assert movement(texts) == pytest.approx(np.mean([1 - np.cos(a - b) for a, b in pairs]), abs=1e-6)


def test_a_word_beyond_what_an_encoder_reads_moves_nothing_and_any_other_does(tiny_pipeline):
    rng = np.random.default_rng(0)
    found = make_needle(rng, 160, two_colours(rng))
    near, far = found.slot_at(20), found.slot_at(120)
    clip, tulip = tiny_pipeline("clip"), tiny_pipeline("tulip")
    cut = one_word(clip, found, far, seed=0, timestep=500)
    assert (cut["word"], cut["after"]) == (None, None)
    assert (cut["pooled"], cut["noise"]) == pytest.approx((0, 0), abs=1e-5)
    for pipeline, slot in ((clip, near), (tulip, near), (tulip, far)):
        moved = one_word(pipeline, found, slot, seed=0, timestep=500)
        assert min(moved[name] for name in ("pooled", "word", "after", "noise")) > 0


def test_the_command_writes_figures_tables_and_plots(command, capsys):
    line = "--encoders clip tulip --tokens 77 --needles 2 --variants 3 --slots 2 --prompts full --count 2 --tail 1"
    out = command("positions", *line.split(), "--tail-tokens", 100)
    record = json.loads((out / "positions.json").read_text())
    assert record["command"]["encoders"] == ["clip", "tulip"]
    assert set(record["results"]["tulip"]) == {"needle", "negatives", "tail"}
    assert list(record["results"]["tulip"]["tail"]) == ["0", "40", "77"]
    assert capsys.readouterr().out.strip() == (out / "positions.md").read_text().strip()
    assert "| chance | 0.333 |" in (out / "positions.md").read_text()
    assert {path.name for path in out.glob("*.png")} == {"needle.png", "negatives.png", "tail.png"}
