"""The world: what is drawn can be read back, and what is said can be too."""

import numpy as np
import pytest
import torch
from PIL import Image

from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import (
    SPLITS,
    SceneDataset,
    full_caption,
    reference_caption,
    window_caption,
)
from tulip_diffusion.scenes.grammar import landmark_scene, parse_caption, write_caption
from tulip_diffusion.scenes.guide import EXAMPLES, is_outside, outside_world
from tulip_diffusion.scenes.oracle import read_scene
from tulip_diffusion.scenes.render import CABINETS, PLACES, Scene, Thing, random_scene, render, render_array
from tulip_diffusion.scenes.sprites import COLOURS, KINDS
from tulip_diffusion.scenes.wording import REMARKS, TEMPLATES, WORDS, count_tokens, fill, parse_sentence
from tulip_diffusion.tokenization import load_tokenizer

EVERY_RELATION = {"colour": 0.25, "place": 0.1, "it": 0.1, "every": 0.5}


def captions(count: int, wording: str = "long", references=None, **options) -> list[Caption]:
    generators = (np.random.default_rng(seed) for seed in range(count))
    return [write_caption(rng, landmark_scene(rng, 16), wording, references, **options) for rng in generators]


@pytest.mark.parametrize("size", [64, 128])
def test_the_oracle_reads_every_render_without_a_mistake(size):
    rng = np.random.default_rng(0)
    for objects in range(PLACES + 1):
        scene = random_scene(rng, objects)
        assert read_scene(render(scene, size)) == scene


def test_the_oracle_tells_every_thing_in_every_cabinet_apart_under_noise():
    rng = np.random.default_rng(0)
    things = [Thing(kind, colour) for kind in KINDS for colour in COLOURS]
    for cabinet in CABINETS:
        for first in range(0, len(things), PLACES):
            scene = Scene(cabinet, tuple(things[first : first + PLACES]))
            picture = render_array(scene) + rng.normal(0, 0.2, (64, 64, 3)).astype(np.float32)
            assert read_scene(picture) == scene


def test_the_oracle_reads_a_picture_file_of_eight_bits_like_an_array():
    scene = random_scene(np.random.default_rng(3), 9)
    picture = render(scene)
    assert isinstance(picture, Image.Image) and read_scene(picture) == read_scene(np.asarray(picture) / 255) == scene


def test_a_picture_that_is_not_square_is_refused_by_name_of_its_size():
    with pytest.raises(ValueError, match="64 × 32"):
        read_scene(np.zeros((32, 64, 3)))


def test_a_thing_that_the_world_does_not_have_is_refused_with_what_it_has():
    with pytest.raises(ValueError, match="tulip"):
        Thing("zebra", "red")


@pytest.mark.parametrize("wording", ["long", "short", "mixed"])
@pytest.mark.parametrize("references", [None, EVERY_RELATION])
def test_every_caption_reads_back_as_the_claims_it_was_written_from(wording, references):
    for caption in captions(20, wording, references):
        parsed = parse_caption(caption.text)
        assert parsed.claims == caption.claims
        assert parsed.scene == caption.scene


def test_a_caption_with_remarks_and_asides_reads_back_too_and_has_the_length_asked_for():
    for tokens in (500, 1000):
        for caption in captions(5, tokens=tokens):
            assert tokens - 15 <= caption.tokens <= tokens
            assert parse_caption(caption.text).claims == caption.claims


def test_every_template_is_read_as_its_own_role_and_no_remark_is_taken_for_a_claim():
    words = {slot: options[-1] for slot, options in WORDS.items()} | {"colour": "orange"}
    for role, wordings in TEMPLATES.items():
        for template in (template for templates in wordings.values() for template in templates):
            found = parse_sentence(fill(template, words))
            assert found is not None and found[0] == role
            assert all(words[slot] == word for slot, word in found[1].items())
    assert all(parse_sentence(remark) is None for remark in REMARKS)


def test_token_counts_and_spans_are_those_of_clips_own_tokenizer():
    tokenizer = load_tokenizer(max_length=100_000)
    for caption in captions(10, "mixed", EVERY_RELATION, tokens=400):
        ids = tokenizer(caption.text).input_ids
        assert len(ids) == caption.tokens == count_tokens(caption.text) + 2
        for sentence, (start, end) in zip(caption.sentences, caption.token_spans, strict=True):
            assert ids[start:end] == tokenizer(sentence.text, add_special_tokens=False).input_ids


def test_a_full_caption_has_about_225_tokens_of_which_clip_sees_about_five_things():
    written = [full_caption(np.random.default_rng(seed)) for seed in range(50)]
    assert 215 <= np.mean([caption.tokens for caption in written]) <= 240
    assert 4 <= np.mean([len(caption.cut(77).claims) for caption in written]) <= 6
    assert all(len(caption.claims) == PLACES for caption in written)


def test_short_wording_puts_a_dozen_things_into_clips_window():
    written = captions(20, "short", cabinet=False)
    assert np.mean([len(caption.cut(77).claims) for caption in written]) > 11


def test_a_window_caption_fits_clips_window_and_its_scene_holds_just_what_it_says():
    for seed in range(50):
        caption = window_caption(np.random.default_rng(seed))
        assert caption.tokens <= 77
        assert {place for s in caption.sentences for place in s.places} == set(caption.scene.occupied)


def test_a_reference_is_claimed_with_its_own_place_and_the_colour_of_what_it_refers_to():
    text = "Top first red tulip. Bottom fourth, a key like the tulip. To the right of the tulip a blue cup."
    claims = {claim.place: claim for claim in parse_caption(text).claims}
    assert claims[15].thing == Thing("key", "red") and claims[15].role == "colour"
    assert claims[15].distance == count_tokens("Bottom fourth, a key like the tulip.")
    assert claims[1].thing == Thing("cup", "blue") and claims[1].role == "place"


def test_it_and_every_give_their_colour_to_what_was_mentioned_before():
    text = "Top first cup. Lower second cup. Every cup mentioned so far is pink. Upper third key. It is white."
    found = {claim.place: (claim.thing, claim.role) for claim in parse_caption(text).claims}
    pink = (Thing("cup", "pink"), "every")
    assert found == {0: pink, 9: pink, 6: (Thing("key", "white"), "it")}


def test_a_reference_whose_referent_was_cut_off_claims_nothing():
    caption = parse_caption("Top first red tulip. Bottom fourth, a key like the tulip.")
    assert [claim.place for claim in caption.subset([0]).claims] == [0]
    assert caption.subset([1]).claims == []
    assert caption.subset([1]).scene.occupied == [15]


def test_references_span_short_and_long_token_distances():
    written = [reference_caption(np.random.default_rng(seed)) for seed in range(40)]
    distances = [claim.distance for caption in written for claim in caption.claims if claim.role == "colour"]
    assert min(distances) < 40 and np.mean([distance > 77 for distance in distances]) > 0.3
    assert len(distances) > 40 * 4


def test_a_text_that_says_nothing_about_the_world_cannot_be_parsed():
    with pytest.raises(ValueError, match="zebra"):
        parse_caption("A zebra walks through the rain.")


def test_words_beyond_the_world_do_not_hide_the_sentences_that_it_knows():
    caption = parse_caption("A zebra walks by. Top first red tulip. Very atmospheric!")
    assert [claim.place for claim in caption.claims] == [0]


def test_the_splits_never_share_a_seed_and_an_item_is_always_the_same():
    assert len(set(SPLITS.values())) == len(SPLITS)
    first, again = SceneDataset(4, "evaluation")[2], SceneDataset(9, "evaluation")[2]
    assert first["text"] == again["text"] and torch.equal(first["pixel_values"], again["pixel_values"])
    assert first["text"] != SceneDataset(4, "validation")[2]["text"]
    assert first["pixel_values"].shape == (3, 64, 64) and first["pixel_values"].abs().max() <= 1


def test_an_unknown_split_is_refused_with_the_splits_there_are():
    with pytest.raises(ValueError, match="validation"):
        SceneDataset(4, "test")


@pytest.mark.parametrize(
    ("prompt", "things"),
    [
        ("Top shelf, first place: a red tulip.", {0: ("tulip", "red")}),
        ("A red tulip stands on the top shelf, in the first place from the left!", {0: ("tulip", "red")}),
        ("bottom fourth blue key; upper second, a pink cat", {15: ("key", "blue"), 5: ("cat", "pink")}),
        ("There's a green boat in the leftmost place of the lower row and nothing else", {8: ("boat", "green")}),
        (
            "A red tulip in the first place and a blue cup in the 2nd place of the top shelf\nBottom 4th: white star",
            {0: ("tulip", "red"), 1: ("cup", "blue"), 15: ("star", "white")},
        ),
        (
            "On the top shelf, first place, stands a red tulip. Upper first: orange fish?",
            {0: ("tulip", "red"), 4: ("fish", "orange")},
        ),
    ],
)
def test_sentences_in_a_persons_own_words_are_read_like_the_grammars(prompt, things):
    caption = parse_caption(prompt)
    assert {claim.place: (claim.thing.kind, claim.thing.colour) for claim in caption.claims} == things


@pytest.mark.parametrize(
    "prompt",
    [
        "A small harbour town",
        "No red tulip on the top shelf, first place",
        "A red tulip and a cup on the top shelf, first place",
        "the first red tulip",
        "Bottom line: the first house is not blue",
    ],
)
def test_what_names_no_thing_in_a_place_is_outside_the_world_and_gets_a_note(prompt):
    with pytest.raises(ValueError, match="says which thing"):
        parse_caption(prompt)
    assert is_outside(prompt)
    assert "draws one world" in outside_world(prompt) and EXAMPLES[0] in outside_world(prompt)
    assert outside_world(prompt).startswith("This prompt names nothing")
    assert outside_world(prompt, EXAMPLES[0], prompt).startswith("2 of 3 prompts name nothing")


def test_the_guides_own_sentences_are_understood():
    assert not is_outside(" ".join(EXAMPLES)) and not outside_world(*EXAMPLES[:2])
    assert len(parse_caption(" ".join(EXAMPLES)).claims) == 2
