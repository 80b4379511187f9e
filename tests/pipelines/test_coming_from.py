"""docs/coming_from.md: each line of its tables against A1111's published formula, and against compel itself."""

import pytest
import torch

from tests.documents import PAGES, blocks
from tests.pipelines.tiny_sdxl import components, quiet, text_encoder, tulip_encoder, words
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline
from tulip_diffusion.weighting import parse_weights

CUT = 75


@pytest.fixture(scope="module")
def pipe():
    parts = components(StableDiffusionXLTulipPipeline)
    for name in ("text_encoder", "text_encoder_2"):
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in parts[name].parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))  # states that tell one text from another
    return quiet(StableDiffusionXLTulipPipeline(**parts))


def ours(pipe, prompt):
    with torch.no_grad():
        states, _, pooled, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    return states[0], pooled[0]


def a1111(pipe, chunks, restore_mean=False):
    """States and pooled vector as AUTOMATIC1111's web UI makes them, from chunks of (text, weight) fragments.

    Each chunk is filled to 75 tokens between its marks; states are multiplied; "Emphasis: Original" then restores each
    encoder's mean; chunks are laid end to end; the pooled vector is the first chunk's.
    """
    made, pooled = [], None
    for encoder, tokenizer in ((pipe.text_encoder, pipe.tokenizer), (pipe.text_encoder_2, pipe.tokenizer_2)):
        rows = []
        for fragments in chunks:
            ids, weights = [], []
            for text, weight in fragments:
                new = tokenizer(text, add_special_tokens=False).input_ids
                ids += new
                weights += [weight] * len(new)
            fill = CUT - len(ids)
            row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * fill]
            with torch.no_grad():
                output = encoder(torch.tensor([row]), output_hidden_states=True)
            states = output.hidden_states[-2][0]
            weighted = states * torch.tensor([1.0, *weights, *[1.0] * (fill + 1)])[:, None]
            rows.append(weighted * (states.mean() / weighted.mean()) if restore_mean else weighted)
            if encoder is pipe.text_encoder_2 and pooled is None:
                pooled = output.text_embeds[0]
        made.append(torch.cat(rows))
    return torch.cat(made, dim=-1), pooled


WEIGHTS = {
    "a red cat": [("a red cat", 1.0)],
    "a (red) cat": [("a", 1.0), ("red", 1.1), ("cat", 1.0)],
    "a ((red)) cat": [("a", 1.0), ("red", 1.1 * 1.1), ("cat", 1.0)],
    "a [red] cat": [("a", 1.0), ("red", 1 / 1.1), ("cat", 1.0)],
    "a (red:1.3) cat": [("a", 1.0), ("red", 1.3), ("cat", 1.0)],
    "(a (red:1.5) cat:0.5)": [("a", 0.5), ("red", 0.75), ("cat", 0.5)],
    r"a \(red\) cat": [("a (red) cat", 1.0)],
}


@pytest.mark.parametrize("prompt", WEIGHTS)
def test_states_and_pooled_vector_are_those_of_a1111_without_norm(pipe, prompt):
    states, pooled = ours(pipe, prompt)
    expected, expected_pooled = a1111(pipe, [WEIGHTS[prompt]])
    torch.testing.assert_close(states, expected)
    torch.testing.assert_close(pooled, expected_pooled)


@pytest.mark.parametrize("prompt", ["a (red:1.3) cat", "a [red] cat", "(a (red:1.5) cat:0.5)"])
def test_with_emphasis_original_all_states_of_an_encoder_differ_by_one_factor(pipe, prompt):
    states, _ = ours(pipe, prompt)
    restored, _ = a1111(pipe, [WEIGHTS[prompt]], restore_mean=True)
    width = pipe.text_encoder.config.hidden_size
    for part in (slice(None, width), slice(width, None)):
        ratio = restored[:, part] / states[:, part]
        torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1e-3, atol=1e-3)
        assert abs(ratio[0, 0] - 1) > 1e-4


def own_states(chunks, counts):
    """The states of the words alone, out of chunks of 77 laid end to end."""
    return torch.cat([chunks[77 * number + 1 : 77 * number + 1 + count] for number, count in enumerate(counts)])


@pytest.mark.parametrize("parts", [("a cat", "a red dog"), ("a", "blue tree on", "stone")])
def test_break_gives_the_words_a1111s_states_without_fill_between_the_parts(pipe, parts):
    states, pooled = ours(pipe, " BREAK ".join(parts))
    expected, expected_pooled = a1111(pipe, [[(part, 1.0)] for part in parts])
    counts = [len(part.split()) for part in parts]
    torch.testing.assert_close(states[1 : 1 + sum(counts)], own_states(expected, counts))
    torch.testing.assert_close(pooled, expected_pooled)
    assert len(states) == 77 and len(expected) == 77 * len(parts)


def test_long_prompts_are_equal_where_both_cut_at_one_place_and_only_there(pipe):
    at_75 = f"{'red ' * 74}. {'blue ' * 20}".strip()
    expected, _ = a1111(pipe, [[(f"{'red ' * 74}.", 1.0)], [("blue " * 20, 1.0)]])
    torch.testing.assert_close(ours(pipe, at_75)[0][1:96], own_states(expected, [75, 20]))
    at_60 = f"{'red ' * 59}. {'blue ' * 35}".strip()
    expected, _ = a1111(pipe, [[(f"{'red ' * 59}. {'blue ' * 15}", 1.0)], [("blue " * 20, 1.0)]])
    sentences, _ = a1111(pipe, [[(f"{'red ' * 59}.", 1.0)], [("blue " * 35, 1.0)]])
    states = ours(pipe, at_60)[0][1:96]
    torch.testing.assert_close(states, own_states(sentences, [60, 35]))
    assert not torch.allclose(states, own_states(expected, [75, 20]), atol=1e-3)


TEXT = ["a (cat", "(16:9)", "(John 3:16)", "(1912)", "photo(s)", "(cat:7)", "[cat:dog:0.5]", "[cat|dog]", "a AND b"]


@pytest.mark.parametrize("prompt", TEXT)
def test_what_the_page_calls_text_is_text(prompt):
    (span,) = parse_weights(prompt)
    assert (span.text, span.weight) == (prompt, 1.0)


def test_every_such_case_stands_on_the_page():
    page = PAGES["coming_from.md"].read_text().replace("&#124;", "|")
    assert all(prompt.removeprefix("a (") in page for prompt in TEXT)


def test_a_lora_tag_is_taken_out(pipe):
    assert torch.equal(ours(pipe, "a cat <lora:name:0.8>")[0], ours(pipe, "a cat")[0])


@pytest.fixture(scope="module")
def compel(pipe):
    return pytest.importorskip("compel").CompelForSDXL(pipe, device="cpu")


def compels(compel, prompt):
    with torch.no_grad():
        made = compel(prompt)
    return made.embeds[0], made.pooled_embeds[0]


def test_without_syntax_compels_embeddings_are_ours(pipe, compel):
    for prompt in ("a red cat", words(60)):
        for mine, theirs in zip(ours(pipe, prompt), compels(compel, prompt), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_compels_weights_above_1_move_away_from_the_empty_prompt_and_ours_multiply(pipe, compel):
    plain, empty = ours(pipe, "a red cat")[0], ours(pipe, "")[0]
    for theirs, mine, weight in (
        ("a red++ cat", "a (red:1.21) cat", 1.21),
        ("a (red)1.3 cat", "a (red:1.3) cat", 1.3),
    ):
        torch.testing.assert_close(compels(compel, theirs)[0][2], empty[2] + weight * (plain[2] - empty[2]))
        torch.testing.assert_close(ours(pipe, mine)[0][2], weight * plain[2])


def test_compels_weights_below_1_change_other_words_and_ours_do_not(pipe, compel):
    plain = ours(pipe, "a red cat")[0]
    theirs, mine = compels(compel, "a (red)0.5 cat")[0], ours(pipe, "a (red:0.5) cat")[0]
    assert torch.equal(mine[3], plain[3]) and not torch.allclose(theirs[3], plain[3], atol=1e-4)


def test_compels_and_has_breaks_states_in_two_chunks(pipe, compel):
    theirs = compels(compel, '("a cat", "a red dog").and()')[0]
    mine = ours(pipe, "a cat BREAK a red dog")[0]
    assert len(theirs) == 154
    torch.testing.assert_close(mine[1:6], own_states(theirs, [2, 3]))


def test_compels_blend_is_the_mix_that_the_page_writes(pipe, compel):
    theirs = compels(compel, '("a cat", "a dog").blend(0.6, 0.4)')[0]
    cat, dog = (ours(pipe, prompt)[0] for prompt in ("a cat", "a dog"))
    torch.testing.assert_close(theirs, 0.6 * cat + 0.4 * dog)


def test_the_pages_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from diffusers import StableDiffusionXLPipeline

    StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline)).save_pretrained("sdxl")
    tulip_encoder().save_pretrained("tulip")
    text_encoder(max_position_embeddings=248).save_pretrained("longclip")
    code = "\n".join(blocks("coming_from.md", "python"))
    for name, tiny in {
        "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
        "path/to/tulip": "tulip",
        "longclip-L.pt": "longclip",
        "torch.float16": "torch.float32",
        '"cuda"': '"cpu"',
        ").images[0]": "num_inference_steps=1, height=32, width=32).images[0]",
        'negative_prompt="blurry"num': 'negative_prompt="blurry", num',
    }.items():
        assert name in code, name
        code = code.replace(name, tiny)
    namespace: dict = {}
    exec(compile(code, "docs/coming_from.md", "exec"), namespace)
    assert namespace["blended"].size == namespace["image"].size == (32, 32)
    assert namespace["pipe"].config.overflow == "stretch"
    assert namespace["prompt_embeds"].shape[1] == namespace["negative_embeds"].shape[1]
