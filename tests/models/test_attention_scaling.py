import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models.reference import text_tower
from tulip_diffusion import (
    TulipTextConfig,
    TulipTextModelWithProjection,
    export_open_clip,
    from_clip,
    load_text_encoder,
)
from tulip_diffusion.models.attention_scaling import query_scale

NTK = {"rope_type": "ntk", "rope_theta": 10000.0, "alpha": 8.0, "base_length": 77, "length": 248}
LOG = {"attention_scaling": "log"}


def scaled_and_plain(clip, position_encoding="rope", **fields):
    """The same weights with attention scaling and without."""
    plain = from_clip(clip, position_encoding=position_encoding, rope_parameters=NTK, attention_scaling="none")
    for name, parameter in plain.named_parameters():
        if ".cope." in name:
            nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)
    scaled = copy.deepcopy(plain)
    scaled.config.update({**LOG, **fields})
    return scaled, plain


@torch.no_grad()
def states(model, ids, **kwargs):
    return model(ids, output_hidden_states=True, **kwargs).hidden_states


@pytest.mark.parametrize("base", [2, 77, 160])
def test_the_factor_is_the_ratio_of_logarithms_and_exactly_one_up_to_the_base(base):
    factors = query_scale(3000, base)
    assert factors.dtype == torch.float32 and torch.equal(factors[:base], torch.ones(base))
    expected = [math.log(i) / math.log(base) for i in range(base + 1, 3001)]
    torch.testing.assert_close(factors[base:], torch.tensor(expected), atol=0, rtol=3e-7)


@pytest.mark.parametrize("base", [None, 20, 77])
@pytest.mark.parametrize("position_encoding", ["rope", "cope"])
def test_states_are_those_of_the_plain_formula(clip, long_ids, position_encoding, base):
    fields = {} if base is None else {"attention_scaling_base": base}
    scaled, plain = scaled_and_plain(clip, position_encoding, **fields)
    theta = 10000.0 * (8 * long_ids.shape[1] / 77 - 7) ** (64 / 62) if position_encoding == "rope" else None
    expected, embeds = text_tower(
        export_open_clip(plain),
        long_ids,
        2,
        lambda x: x * torch.sigmoid(1.702 * x),
        theta=theta,
        scaling_base=base or 77,
    )
    with torch.no_grad():
        output = scaled(long_ids, output_hidden_states=True)
    torch.testing.assert_close(output.text_embeds, embeds, atol=5e-5, rtol=0)
    for ours, reference in zip(output.hidden_states[:-1], expected, strict=False):
        torch.testing.assert_close(ours, reference, atol=3e-4, rtol=0)
    assert not torch.allclose(output.hidden_states[1][:, 100:], states(plain, long_ids)[1][:, 100:], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("position_encoding", "backend"), [("rope", "sdpa"), ("rope", "eager"), ("cope", "sdpa"), ("cope", "eager")]
)
def test_up_to_77_tokens_every_state_is_the_same_bits(clip, long_ids, position_encoding, backend, dtype):
    scaled, plain = (model.to(dtype) for model in scaled_and_plain(clip, position_encoding))
    for model in (scaled, plain):
        model.set_attn_implementation(backend)
    for tokens in (1, 20, 76, 77):
        ids = long_ids[:, :tokens]
        for on, off in zip(states(scaled, ids), states(plain, ids), strict=True):
            assert torch.equal(on, off), tokens
    assert not torch.equal(states(scaled, long_ids)[1][:, 77:], states(plain, long_ids)[1][:, 77:])


@pytest.mark.parametrize("position_encoding", ["rope", "cope"])
def test_a_tokens_state_knows_neither_later_tokens_nor_batch_mates_nor_earlier_calls(
    clip, long_ids, position_encoding
):
    scaled, _ = scaled_and_plain(clip, position_encoding)
    alone = states(scaled, long_ids[:, :248])
    changed = long_ids[:, :248].clone()
    changed[:, 200] = 320
    batch = torch.cat((torch.randint(0, 49000, (1, 248)), long_ids[:, :248]))
    scaled(torch.randint(0, 49000, (1, 900)))
    for mine, causal, together, again, prefix in zip(
        alone,
        states(scaled, changed),
        states(scaled, batch),
        states(scaled, long_ids[:, :248]),
        states(scaled, long_ids[:, :150]),
        strict=True,
    ):
        assert torch.equal(again, mine)
        torch.testing.assert_close(causal[:, :200], mine[:, :200], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[1:], mine, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(prefix, mine[:, :150], atol=2e-5, rtol=1e-5)
        assert not torch.allclose(causal[:, 200], mine[:, 200])


@pytest.mark.parametrize("position_encoding", ["rope", "cope"])
def test_padding_to_the_right_changes_nothing(clip, long_ids, position_encoding):
    scaled, _ = scaled_and_plain(clip, position_encoding)
    tokens = long_ids.shape[1]
    padded = F.pad(long_ids, (0, 90), value=49407)
    mask = (torch.arange(tokens + 90) < tokens).long()[None]
    for alone, inside in zip(states(scaled, long_ids), states(scaled, padded, attention_mask=mask), strict=True):
        torch.testing.assert_close(inside[:, :tokens], alone, atol=2e-5, rtol=1e-5)


def test_the_place_in_the_sequence_counts_and_not_the_position_id(clip, long_ids):
    scaled, _ = scaled_and_plain(clip)
    ids = long_ids[:, :200]
    moved = scaled(ids, position_ids=torch.arange(200)[None] + 500).text_embeds
    torch.testing.assert_close(moved, scaled(ids).text_embeds, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("position_encoding", ["rope", "cope"])
def test_back_ends_agree_beyond_the_window(clip, long_ids, position_encoding):
    scaled, _ = scaled_and_plain(clip, position_encoding)
    scaled.set_attn_implementation("eager")
    eager = states(scaled, long_ids)
    scaled.set_attn_implementation("sdpa")
    for ours, reference in zip(states(scaled, long_ids), eager, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close(clip, long_ids, dtype):
    scaled, _ = scaled_and_plain(clip)
    exact = scaled(long_ids).text_embeds
    output = copy.deepcopy(scaled).to(dtype)(long_ids)
    assert output.last_hidden_state.dtype == dtype
    assert torch.cosine_similarity(output.text_embeds.float(), exact).item() > 0.999


def test_gradient_checkpointing_gives_the_same_gradients(clip, long_ids):
    gradients = []
    for checkpointing in (False, True):
        scaled = scaled_and_plain(clip)[0].train()
        if checkpointing:
            scaled.gradient_checkpointing_enable()
        scaled(long_ids).text_embeds.square().sum().backward()
        gradients.append([parameter.grad for parameter in scaled.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_compiles_as_one_graph_for_every_length_with_the_same_bits_up_to_77(clip, long_ids):
    scaled, plain = scaled_and_plain(clip)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(scaled, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (50, 77, 78, 120, 248):
        ids = long_ids[:, :tokens]
        for ours, eager in zip(states(compiled, ids), states(scaled, ids), strict=True):
            torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-5)
    assert len(graphs) <= 2  # NTK branches at its configured length; attention scaling does not branch
    torch.compiler.reset()
    compiled_plain = torch.compile(plain, fullgraph=True, dynamic=True, backend="eager")
    ids = long_ids[:, :77]
    for on, off in zip(states(compiled, ids), states(compiled_plain, ids), strict=True):
        assert torch.equal(on, off)


def test_it_is_saved_and_loaded_with_the_weights(clip, long_ids, tmp_path):
    scaled = from_clip(clip, rope_parameters=NTK, attention_scaling="log", attention_scaling_base=100)
    scaled.save_pretrained(tmp_path)
    for loaded in (TulipTextModelWithProjection.from_pretrained(tmp_path), load_text_encoder(tmp_path)):
        assert (loaded.config.attention_scaling, loaded.config.attention_scaling_base) == ("log", 100)
        assert torch.equal(loaded(long_ids).text_embeds, scaled(long_ids).text_embeds)
    off = load_text_encoder(tmp_path, attention_scaling="none")
    expected = from_clip(clip, rope_parameters=NTK, attention_scaling="none")
    assert torch.equal(off(long_ids).text_embeds, expected(long_ids).text_embeds)


def test_published_tulip_files_run_without_it_unless_asked(clip, long_ids):
    published = export_open_clip(from_clip(clip))
    assert load_text_encoder(published).config.attention_scaling == "none"
    asked = load_text_encoder(published, attention_scaling="log", attention_scaling_base=60, hidden_act="quick_gelu")
    expected = from_clip(clip, attention_scaling="log", attention_scaling_base=60)
    assert torch.equal(asked(long_ids).text_embeds, expected(long_ids).text_embeds)
    assert TulipTextConfig.from_dict({"hidden_size": 64}).attention_scaling == "none"  # saved before there was any


def test_a_clip_has_no_attention_scaling_to_set(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no field attention_scaling"):
        load_text_encoder(tmp_path, attention_scaling="log")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"attention_scaling": "yarn"}, 'must be "none" or "log", got \'yarn\''),
        ({"attention_scaling": "Log"}, 'must be "none" or "log", got \'Log\''),
        ({"attention_scaling_base": 1}, "must be 2 tokens or more, such as CLIP's 77, got 1"),
        ({"attention_scaling_base": -77}, "got -77"),
        ({"attention_scaling_base": 77.5}, "attention_scaling_base"),
        ({"attention_scaling": None}, "attention_scaling"),
    ],
)
def test_values_that_mean_nothing_are_refused(fields, sentence):
    with pytest.raises(Exception, match=sentence):
        TulipTextConfig(**fields)
