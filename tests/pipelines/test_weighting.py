"""A1111's prompt syntax: what its wiki says, and that nothing a user types is an error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pipelines.tiny_sdxl import components, tulip_encoder, words
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline
from tulip_diffusion.pipelines.weighting import parse_weights, tokenize
from tulip_diffusion.tokenization import load_tokenizer


def spans(prompt: str) -> list[tuple[str, float]]:
    return [(span.text, round(span.weight, 4)) for span in parse_weights(prompt)]


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("a cat", [("a cat", 1.0)]),
        ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
        ("a ((cat)) on", [("a ", 1.0), ("cat", 1.21), (" on", 1.0)]),
        ("a (cat:1.3)", [("a ", 1.0), ("cat", 1.3)]),
        ("(a (blue:1.5) cat:0.5)", [("a ", 0.5), ("blue", 0.75), (" cat", 0.5)]),
        ("[cat]", [("cat", 0.9091)]),
        ("([cat])", [("cat", 1.0)]),
        ("(cat : 1.3 )", [("cat ", 1.3)]),
        ("(cat:.5)(dog:2.)", [("cat", 0.5), ("dog", 2.0)]),
        ("(cat:-1)", [("cat", -1.0)]),
        (r"a \(cat\) \[b\] \\", [("a (cat) [b] \\", 1.0)]),
        (r"(\(cat\):1.2)", [("(cat)", 1.2)]),
        ("ratio 3:2, time 10:30", [("ratio 3:2, time 10:30", 1.0)]),
    ],
)
def test_weights(prompt, expected):
    assert spans(prompt) == expected


@pytest.mark.parametrize(
    "prompt", ["a (cat", "a cat)", "[", "())(", ":)", ":1.3)", "a (b] c", "()", "\\", "(:1.3)", "", "[]("]
)
def test_malformed_syntax_is_text(prompt):
    assert spans(prompt) == [(prompt, 1.0)]


def test_a_weight_that_is_no_number_is_text_in_brackets():
    assert spans("(cat:1.2.3)") == [("cat:1.2.3", 1.1)]
    assert spans("(a [b) c") == [("a [b", 1.1), (" c", 1.0)]


@given(st.text(alphabet="ab ()[]:\\.13BREAK"))
def test_any_text_parses_and_loses_no_letter(prompt):
    parsed = parse_weights(prompt)
    letters = "".join(span.text for span in parsed)
    assert letters.count("a") == prompt.count("a") and letters.count("b") == prompt.count("b")


def test_break_is_taken_out_and_remembered():
    parsed = parse_weights("a cat BREAK (a dog BREAK:1.2) a BREAKER")
    assert [(span.text, span.after_break) for span in parsed] == [
        ("a cat", False),
        ("", True),
        ("a dog", False),
        ("", True),
        (" a BREAKER", False),
    ]
    tokens = tokenize("a cat BREAK a dog", load_tokenizer(), "a1111")
    assert tokens.breaks == {2} and len(tokens.ids) == 4


@pytest.fixture
def pipe():
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder())
    return StableDiffusionXLTulipPipeline(**parts)


@pytest.mark.parametrize("length", [20, 200])
def test_weights_scale_their_own_tokens_states_and_nothing_else(pipe, length):
    text = words(length).replace("cat", "(cat:1.5)", 1)
    plain, weighted = (pipe.encode_prompt([prompt, "a dog"]) for prompt in (words(length), text))
    place = 1 + words(length).split().index("cat")
    expected = plain[0].clone()
    expected[0, place] *= 1.5
    torch.testing.assert_close(weighted[0], expected)
    assert torch.equal(weighted[2], plain[2]), "the pooled vector has no weights"


def test_a_weight_of_zero_is_not_taken_for_padding(pipe):
    states = pipe.encode_prompt(f"(cat:0) {words(100)}")[0][0]
    assert states[1].any() and states[1].abs().max() < 1e-3


def test_weighting_none_takes_brackets_as_text(pipe):
    stock = StableDiffusionXLTulipPipeline.__bases__[1](**pipe.components)
    pipe.set_conditioning(weighting=None)
    prompt = "a (cat:1.3) [dog] BREAK"
    assert torch.equal(pipe.encode_prompt(prompt)[0], stock.encode_prompt(prompt)[0])
    pipe.set_conditioning(weighting="a1111")
    assert torch.equal(pipe.encode_prompt(r"a \(cat\)")[0], stock.encode_prompt("a (cat)")[0])
    assert not torch.equal(pipe.encode_prompt(prompt)[0], stock.encode_prompt(prompt)[0])
