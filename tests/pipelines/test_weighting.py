"""A1111's prompt syntax: what its wiki says, and that nothing a user types is an error."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipelines.tiny_sdxl import components, tulip_encoder, words
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline
from tulip_diffusion.prompt_tokens import tokenize
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.weighting import network_tags, parse_weights

tokenizer_with = functools.cache(load_tokenizer)


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
        ("(cat: 1.05)", [("cat", 1.05)]),
        ("(a cat :1.2)", [("a cat ", 1.2)]),
        ("(cat:2)", [("cat", 2.0)]),
        ("(8k:1.2), (R2D2:1.2)", [("8k", 1.2), (", ", 1.0), ("R2D2", 1.2)]),
        ("(cyberpunk 2077:1.3)", [("cyberpunk 2077", 1.3)]),
        ("(Final Fantasy VII:1.1)", [("Final Fantasy VII", 1.1)]),
        ("(a clock, 16:9, 8k:1.2)", [("a clock, 16:9, 8k", 1.2)]),
        ("(a clock (at 9:05 pm):1.2)", [("a clock (at 9:05 pm)", 1.2)]),
        ("(a little dusty)", [("a little dusty", 1.1)]),
    ],
)
def test_weights(prompt, expected):
    assert spans(prompt) == expected


PROSE = [
    *("ratio 3:2, time 10:30", "(Seen at 10:30)", "(12:30:45)", "(at 9:05 pm)", "(half past:05)", "(lap 1:02.3)"),
    *("(Ratio 16:9)", "(Ratio: 16)", "(1:1)", "(2.35:1.0)", "(gold 1:1.618)", "((16:9))", "[10:30]", "[16:9 format]"),
    *("(John 3:16)", "(Psalm 119:105)", "(see fig. 2:3)", "(vol. 3: 12)", "(Act II:3)", "(Fig. A:2)", "(players: 2)"),
    *("(2:1)", "(3:2 win)", "(score 102:98)", "(Ajax 2 : 1 PSV)", "(rated: 4.5)", "(cat:30)", "(cat: 3)"),
    *("(1:24)", "(HO scale, 1:87.1)", "(N, 1:160)", "f/1:2.8", "(f/1:2.8)", "(50mm 1:1.4)"),
    *("(1912)", "(12/11/2026)", "(50 %)", "[1]", "f(x)", "photo(s)", ":-) and (-:", "[cat:dog:0.5]", "[cat|dog]"),
]


@pytest.mark.parametrize("prompt", PROSE)
def test_brackets_are_text_where_prose_has_numbers_in_them(prompt):
    for whole in (prompt, f"An old clock {prompt} on a wall."):
        assert spans(whole) == [(whole, 1.0)]


WORDS = ["a", "red", "café", "tulip,", "Seen", "10:30", "16:9", "3", "2077", "…", "🐈", "don't", '"so"', ":", "."]
ASIDES = ["at 9:05 pm", "scale 1:24", "1889-1890", "f/2:1.4", "No. 4:2", "50 %", "John 3:16", "won 2:1", "ratio: 3"]


@given(st.lists(st.sampled_from(WORDS), min_size=1), st.none() | st.sampled_from(ASIDES))
@settings(deadline=None)
def test_natural_sentences_are_read_as_without_weighting(sentence, aside):
    """Numbers, colons, quotes, emoji, and brackets that match no rule of the syntax."""
    prompt = " ".join(sentence) + (f" ({aside})" if aside else "")
    tokenizer = tokenizer_with()
    plain, read = (tokenize(prompt, tokenizer, weighting) for weighting in (None, "a1111"))
    assert (plain.ids, plain.weights, plain.breaks) == (read.ids, read.weights, read.breaks)


@given(st.lists(st.sampled_from([*"ab ()[]:\\.13é🐈", "BREAK", "<lora:a:1>"])).map("".join))
def test_every_character_knows_its_place_in_the_prompt(prompt):
    for span in parse_weights(prompt):
        assert "".join(prompt[offset] for offset in span.offsets) == span.text


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


@pytest.mark.parametrize("tag", ["<lora:style:0.8>", "<lyco:my style (v2):1>", "<hypernet:anime>", "<LoRA:a:1:0.5>"])
def test_network_tags_are_taken_out_and_named(tag):
    prompt = f"a cat {tag}, (a dog:1.2)"
    assert [text.split() for text, _ in spans(prompt)] == [["a", "cat", ","], ["a", "dog"]]
    assert network_tags(prompt) == [tag]
    assert not network_tags("a <b> of <lora> and <i:love you>")


@pytest.mark.parametrize("options", [{}, {"pad_token": "!"}, {"clean": True}], ids=["first", "second", "clean"])
@given(st.lists(st.sampled_from([*"abZ12 !!.,'&;<>|-_é猫🐈İß", "<|endoftext|>", "&amp;", " don't "])).map("".join))
@settings(max_examples=50, deadline=None)
def test_tokens_are_those_of_the_tokenizer_itself(options, prompt):
    tokenizer = tokenizer_with(**options)
    assert (
        tokenize(prompt, tokenizer, None).ids == tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    )
    if not options.get("clean"):
        plain = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        assert tokenize(prompt, tokenizer, None, plain=True).ids == plain


def test_threads_share_a_tokenizer():
    tokenizer = load_tokenizer(pad_token="!")
    prompts = {f"{words(n)} wow!!! {n}": n % 2 for n in range(20, 60)}
    expected = {prompt: tokenize(prompt, tokenizer, "a1111", plain=plain).ids for prompt, plain in prompts.items()}

    def encode(prompt):
        return prompt, tokenize(prompt, tokenizer, "a1111", plain=prompts[prompt]).ids

    with ThreadPoolExecutor(8) as pool:
        assert all(expected[prompt] == ids for prompt, ids in pool.map(encode, list(prompts) * 5))


@pytest.mark.parametrize(
    "prompt, ids",
    [
        ("a MyToy", [320, 0, 1, 2]),
        ("a mytoy, MYTOY", [320, 0, 1, 2, 267, 0, 1, 2]),
        ("(MyToy:1.2)", [0, 1, 2]),
        ("MyToyCar", [3, 4]),
        ("<mytoy> MyToyCar", [5, 3, 4]),
        ("a toys-mytoy-x", [320, 7162, 268, 0, 1, 2, 268, 343]),
    ],
)
def test_textual_inversions_give_all_their_vectors(prompt, ids):
    """Ids below 10 count from the first one added. Names in any letters, and inside of others' names."""
    tokenizer = load_tokenizer()
    first = len(tokenizer)
    tokenizer.add_tokens(["MyToy", "MyToy_1", "MyToy_2", "MyToyCar", "MyToyCar_1", "<mytoy>"])
    found = tokenize(prompt, tokenizer, "a1111")
    assert found.ids == [index + first if index < 10 else index for index in ids]
    pieces = [prompt[start:stop].lower() for start, stop in found.offsets]
    assert [piece for piece, index in zip(pieces, ids, strict=True) if index < 3] == ["mytoy"] * 3 * ids.count(0)


def test_a_name_inside_a_word_is_not_the_name():
    tokenizer = load_tokenizer()
    prompt = "a toyota, mytoys, notmytoy"
    plain = tokenize(prompt, tokenizer, None).ids
    tokenizer.add_tokens(["oyot", "mytoy", "mytoy_1"])
    assert tokenize(prompt, tokenizer, None).ids == plain


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


@pytest.fixture(scope="module")
def one_pipe():
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder())
    return StableDiffusionXLTulipPipeline(**parts)


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=120), st.none() | st.sampled_from(ASIDES))
@settings(max_examples=20, deadline=None)
def test_natural_sentences_have_the_states_of_no_weighting(one_pipe, sentence, aside):
    prompt = " ".join(sentence) + (f" ({aside})" if aside else "")
    with torch.no_grad(), one_pipe.conditioned(weighting=None):
        plain = one_pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    with torch.no_grad():
        read = one_pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    assert torch.equal(read[0], plain[0]) and torch.equal(read[2], plain[2])


def test_weighting_none_takes_brackets_as_text(pipe):
    stock = StableDiffusionXLTulipPipeline.__bases__[1](**pipe.components)
    pipe.set_conditioning(weighting=None)
    prompt = "a (cat:1.3) [dog] BREAK"
    assert torch.equal(pipe.encode_prompt(prompt)[0], stock.encode_prompt(prompt)[0])
    pipe.set_conditioning(weighting="a1111")
    assert torch.equal(pipe.encode_prompt(r"a \(cat\)")[0], stock.encode_prompt("a (cat)")[0])
    assert not torch.equal(pipe.encode_prompt(prompt)[0], stock.encode_prompt(prompt)[0])
