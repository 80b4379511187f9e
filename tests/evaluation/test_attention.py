import json
import math

import numpy as np
import pytest
import torch

from tulip_diffusion.evaluation.attention import by_position, entropy, eos_attention, spread, words_of
from tulip_diffusion.scenes.dataset import full_caption


def test_an_even_spread_has_the_entropy_of_its_number_and_a_single_word_none():
    assert entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(math.log(8))
    assert entropy(torch.tensor([0.0, 1.0, 0.0])).item() == 0


def test_figures_of_an_even_spread_are_one_and_bos_is_counted_apart():
    even = torch.full((2, 202), 0.5 / 201)
    even[:, 0] = 0.5
    figures = spread(even)
    assert figures["bos"] == 0.5
    assert figures["effective words"] == pytest.approx(200, rel=1e-3)
    for name in ("of uniform", "beyond 77", "last quarter"):
        assert figures[name] == pytest.approx(1, rel=1e-3)
    assert all(value == pytest.approx(1, rel=1e-3) for value in by_position(words_of(even).mean(dim=0)).values())


def test_attention_on_the_last_words_alone_is_seen_there():
    late = torch.zeros(1, 102)
    late[0, -11:-1] = 0.1
    figures = spread(late)
    assert figures["last quarter"] == pytest.approx(4) and figures["effective words"] == pytest.approx(10)
    assert list(by_position(words_of(late)[0]).values()) == pytest.approx([0, 0, 0, 0, 5])


def test_clips_attention_is_that_of_its_last_block_written_out(tiny_encoder):
    opened = tiny_encoder("clip")
    encoder = opened.towers.text_encoder
    tokens, found = eos_attention(opened, "a red tulip in the first place")
    assert tokens[0] == "<|startoftext|>" and tokens[-1] == "<|endoftext|>" and tokens[3] == "tulip</w>"
    ids = opened.enclose(opened.tokenize(["a red tulip in the first place"])[0])
    block = encoder.text_model.encoder.layers[-1]
    with torch.no_grad():
        states = block.layer_norm1(encoder(ids[None], output_hidden_states=True).hidden_states[-2])[0]
        heads = block.self_attn.num_heads
        query = block.self_attn.q_proj(states)[-1].view(heads, -1)
        key = block.self_attn.k_proj(states).view(len(ids), heads, -1)
        logits = torch.einsum("hd,thd->ht", query, key) / query.shape[1] ** 0.5
    torch.testing.assert_close(found, logits.softmax(dim=-1))


def test_long_texts_are_read_as_far_as_the_encoder_can_and_its_back_end_is_put_back(tiny_encoder):
    text = full_caption(np.random.default_rng(0)).text
    for name, read in (("clip", range(77, 78)), ("tulip", range(200, 260))):
        encoder = tiny_encoder(name)
        before = encoder.towers.text_encoder.config._attn_implementation
        tokens, found = eos_attention(encoder, text)
        assert len(tokens) == found.shape[1] and len(tokens) in read
        torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))
        assert encoder.towers.text_encoder.config._attn_implementation == before


def test_the_command_writes_figures_a_table_and_two_pictures(command):
    out = command("attention", "--encoders", "clip", "tulip", "--count", 2)
    results = json.loads((out / "attention.json").read_text())["results"]
    assert 0 < results["tulip"]["of uniform"]["mean"] <= 1 and "beyond 77" not in results["clip"]
    assert {path.name for path in out.glob("*.png")} == {"attention.png", "attention_words.png"}
