"""Where windows end, and the report on which words who sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipelines.tiny_sdxl import components, tulip_encoder, words
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline
from tulip_diffusion.prompt_description import describe_prompt
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.windows import split_windows


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def windows_of(text: str, tokenizer, size: int) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return [tokenizer.decode(ids[window.start : window.stop]) for window in split_windows(tokens, size)]


@pytest.mark.parametrize(
    "text, size, expected",
    [
        ("a cat. a dog. a boat.", 6, ["a cat. a dog .", "a boat ."]),
        ("a cat, a dog, a boat and a tree", 6, ["a cat, a dog ,", "a boat and a tree"]),
        ("a cat and a dog and a boat", 5, ["a cat and a dog", "and a boat"]),
        ("a cat", 5, ["a cat"]),
        ("", 5, [""]),
        ("antidisestablishmentarianism", 3, None),
    ],
)
def test_windows_end_at_sentences_then_clauses_then_words(text, size, expected, tokenizer):
    got = windows_of(text, tokenizer, size)
    if expected is None:  # one word longer than a window is cut, there being nowhere else
        assert "".join(got) == text and len(got) > 1
    else:
        assert [window.replace(" ", "") for window in got] == [window.replace(" ", "") for window in expected]


@given(st.lists(st.sampled_from(["cat</w>", "do", ".</w>", ",</w>", "!"]), max_size=60), st.integers(1, 9))
def test_windows_cover_every_token_once_and_fit(tokens, size):
    windows = split_windows(tokens, size)
    assert [i for window in windows for i in window] == list(range(len(tokens)))
    assert all(len(window) <= size for window in windows)
    assert all(windows) or not tokens


def test_breaks_end_windows_whatever_their_length():
    tokens = ["cat</w>"] * 10
    assert [window.stop for window in split_windows(tokens, 6, breaks={4})] == [4, 10]
    assert [window.stop for window in split_windows(tokens, 20, breaks={1, 9})] == [1, 9, 10]
    assert [window.stop for window in split_windows(tokens, None, breaks={0, 5, 10, 12})] == [5, 10]
    assert [window.stop for window in split_windows([*tokens, ".</w>"], 6, breaks={8})] == [6, 8, 11]


def test_the_report_names_the_words_that_are_lost(tokenizer):
    prompt = f"{words(74)} and a zebra under an Umbrella"
    report = describe_prompt(prompt, tokenizer)
    assert report.tokens == 82
    assert report.readings["CLIP"].lost == "a zebra under an Umbrella"
    assert report.readings["Long-CLIP"].lost == report.readings["TULIP"].lost == ""
    assert 'CLIP          75 of 80  cannot see: "a zebra under an Umbrella"' in str(report)
    assert len(report.pieces) == 80 and report.pieces[-1] == "Umbrella"
    assert len(report.windows) == 2


def test_a_word_cut_in_two_is_lost_whole(tokenizer):
    report = describe_prompt("a unicycling cat", tokenizer, {"small": 2 + 2})
    assert report.readings["small"].lost == "unicycling cat"


def test_texts_of_other_scripts_and_none_are_described(tokenizer):
    assert describe_prompt("", tokenizer).tokens == 2
    assert "кот" in "".join(describe_prompt("ein кот 猫 🐈", tokenizer).pieces)
    cleaned = describe_prompt("a  &amp;  b", load_tokenizer(clean=True))
    assert cleaned.pieces == ("a", "&", "b")


def test_a_pipeline_describes_its_own_encoders():
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder())
    pipe = StableDiffusionXLTulipPipeline(**parts, overflow="truncate")
    report = pipe.describe_prompt(f"(a cat:1.2) BREAK {words(90)}")
    assert report.tokens == 94
    assert report.readings["text_encoder"].lost == ""
    assert report.readings["text_encoder_2"].lost == report.readings["CLIP"].lost != ""
    assert "BREAK" not in "".join(report.pieces)
    assert report.windows[0] == "a cat" and len(report.windows) == 3


def test_the_report_speaks_of_the_prompt_as_it_was_typed(tokenizer):
    prompt = f"A (Red:1.3) Cat <lora:x:1> at ({words(70)} 10:30) BREAK [Zebra] \\(far\\)"
    report = describe_prompt(prompt, tokenizer)
    assert report.pieces[:3] == ("A", "Red", "Cat") and report.pieces[-3:] == ("(", "far", ")")
    assert report.readings["CLIP"].lost == prompt[prompt.index("10:30") :]
    assert report.weights == (("Red", 1.3), ("Zebra", 1 / 1.1))
    assert 'weights: "Red" 1.3, "Zebra" 0.9091' in str(report)
    assert str(report).endswith("left out: <lora:x:1>")
    assert describe_prompt(prompt, tokenizer, weighting=None).weights == ()
