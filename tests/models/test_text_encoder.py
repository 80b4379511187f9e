import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel
from transformers.utils import is_flash_attn_2_available

from tulip_diffusion import TulipTextConfig, TulipTextModel, TulipTextModelWithProjection, from_clip

NTK = {"rope_type": "ntk", "rope_theta": 10000.0, "alpha": 8.0, "base_length": 77, "length": 248}


@pytest.fixture
def tulip(clip):
    return from_clip(clip, rope_parameters=NTK)


@torch.no_grad()
def states(model, ids, **kwargs):
    return model(ids, output_hidden_states=True, **kwargs).hidden_states


def test_without_rotation_and_with_positions_it_is_clip(clip, tulip, long_ids):
    """The difference from CLIP is the positions and nothing else."""
    ids = long_ids[:, :77]
    positions = clip.text_model.embeddings.position_embedding.weight[: ids.shape[1]]
    tulip.text_model.embeddings.register_forward_hook(lambda module, args, output: output + positions)
    identity = (torch.ones(1, ids.shape[1], 32), torch.zeros(1, ids.shape[1], 32))
    tulip.text_model.rotary_embeddings = lambda *args: identity
    for ours, stock in zip(states(tulip, ids), states(clip, ids), strict=True):
        torch.testing.assert_close(ours, stock)


def test_from_clip_shares_every_weight_by_name_and_drops_the_positions(clip):
    tulip = from_clip(clip)
    stock = dict(clip.named_parameters())
    for name, parameter in tulip.named_parameters():
        assert parameter.data_ptr() == stock.pop(name).data_ptr(), name
    assert list(stock) == ["text_model.embeddings.position_embedding.weight"]


def test_from_clip_takes_each_kind_of_clip(clip, long_ids):
    with_projection = from_clip(clip)
    text_only = CLIPTextModel(clip.config).eval()
    text_only.load_state_dict(clip.text_model.state_dict())
    assert isinstance(from_clip(text_only), TulipTextModel)
    whole = CLIPModel(
        CLIPConfig(
            text_config=clip.config.to_dict(),
            vision_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32},
            projection_dim=32,
        )
    ).eval()
    whole.text_model.load_state_dict(clip.text_model.state_dict())
    whole.text_projection.load_state_dict(clip.text_projection.state_dict())
    torch.testing.assert_close(from_clip(whole)(long_ids).text_embeds, with_projection(long_ids).text_embeds)
    torch.testing.assert_close(from_clip(text_only)(long_ids)[0], with_projection(long_ids).last_hidden_state)
    with pytest.raises(TypeError, match="got Linear"):
        from_clip(nn.Linear(2, 2))


@pytest.mark.parametrize("position_encoding", ["rope", "cope"])
def test_a_tokens_state_does_not_depend_on_later_tokens(clip, long_ids, position_encoding):
    tulip = from_clip(clip, position_encoding=position_encoding, rope_parameters=NTK)
    randomise_cope(tulip)
    changed = long_ids.clone()
    changed[:, 100] = 320
    for before, after in zip(states(tulip, long_ids), states(tulip, changed), strict=True):
        torch.testing.assert_close(before[:, :100], after[:, :100], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(before[:, 100], after[:, 100])


@pytest.mark.parametrize("length", [1, 5, 77, 248])
def test_a_prefix_has_the_states_it_has_in_a_longer_text(tulip, long_ids, length):
    whole = states(tulip, long_ids[:, :248])[-2]
    torch.testing.assert_close(states(tulip, long_ids[:, :length])[-2], whole[:, :length], atol=2e-5, rtol=1e-5)


def test_thousands_of_tokens_run_and_leave_no_trace(tulip, long_ids):
    before = tulip(long_ids).text_embeds
    tulip(torch.randint(0, 49000, (1, 2000)))
    assert torch.equal(tulip(long_ids).text_embeds, before)


@pytest.mark.parametrize("position_encoding", ["rope", "cope"])
def test_masked_padding_changes_nothing_even_beyond_the_trained_length(clip, long_ids, position_encoding):
    """Right-padded rows of a batch get what they get alone, though NTK beyond 248 tokens follows each row's length."""
    tulip = from_clip(clip, position_encoding=position_encoding, rope_parameters=NTK)
    randomise_cope(tulip)
    tokens = long_ids.shape[1]
    assert tokens > 248
    short = torch.randint(0, 49000, (1, 30))
    short[:, -1] = 49407
    batch = torch.full((2, tokens + 90), 49407)
    mask = torch.zeros_like(batch)
    for row, ids in enumerate((long_ids, short)):
        batch[row, : ids.shape[1]], mask[row, : ids.shape[1]] = ids, 1
    together = tulip(batch, attention_mask=mask).text_embeds
    torch.testing.assert_close(together[0], tulip(long_ids).text_embeds[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1], tulip(short).text_embeds[0], atol=1e-5, rtol=1e-5)


def test_position_ids_shift_nothing_when_all_move_together(tulip, long_ids):
    ids = long_ids[:, :100]
    shifted = tulip(ids, position_ids=torch.arange(100)[None] + 37).text_embeds
    torch.testing.assert_close(shifted, tulip(ids).text_embeds, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("eos_token_id", [2, 49407])
def test_pooling_takes_the_first_eos_even_beside_larger_ids(make_clip, eos_token_id):
    """Published configs say eos_token_id 2 and mean CLIP's; a textual inversion's token has a larger id."""
    tulip = from_clip(make_clip(vocab_size=49410, eos_token_id=eos_token_id))
    ids = torch.tensor([[49406, 320, 49408, 49409, 1125, 49407, 49407, 49407]])
    pooled = tulip.text_model(ids).pooler_output
    assert torch.equal(pooled[0], tulip.text_model(ids).last_hidden_state[0, 5])


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention", "flash_attention_2"])
def test_attention_back_ends_agree_with_eager(tulip, long_ids, backend):
    if backend == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("flash-attn is not installed")
    if backend == "flex_attention" and not torch.cuda.is_available():
        pytest.skip("flex attention compiles for minutes on a CPU")
    tulip.set_attn_implementation("eager")
    eager = states(tulip, long_ids)
    attentions = tulip(long_ids, output_attentions=True).attentions
    assert len(attentions) == 2 and attentions[0].shape == (1, 2, long_ids.shape[1], long_ids.shape[1])
    torch.testing.assert_close(attentions[0].sum(-1), torch.ones(attentions[0].shape[:-1]))
    tulip.set_attn_implementation(backend)
    for ours, reference in zip(states(tulip, long_ids), eager, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_and_its_angles_exact(tulip, long_ids, dtype):
    exact_angles = tulip.text_model.rotary_embeddings(long_ids)
    exact = tulip(long_ids).text_embeds
    half = copy.deepcopy(tulip).to(dtype)
    for ours, reference in zip(half.text_model.rotary_embeddings(long_ids), exact_angles, strict=True):
        assert torch.equal(ours, reference)
    cosine = torch.cosine_similarity(half(long_ids).text_embeds.float(), exact)
    assert cosine.item() > 0.999


def test_no_buffers(tulip):
    assert not list(tulip.buffers())


def test_gradient_checkpointing_gives_the_same_gradients(clip, long_ids):
    gradients = []
    for checkpointing in (False, True):
        tulip = copy.deepcopy(from_clip(clip)).train()
        if checkpointing:
            tulip.gradient_checkpointing_enable()
        tulip(long_ids).text_embeds.square().sum().backward()
        gradients.append([parameter.grad for parameter in tulip.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_compiles_as_one_graph(tulip, long_ids):
    compiled = torch.compile(tulip, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(states(compiled, long_ids), states(tulip, long_ids), strict=True):
        torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-5)


def test_saved_and_reloaded_in_a_new_process_is_bit_exact(tulip, long_ids, tmp_path):
    tulip.save_pretrained(tmp_path / "tulip")
    torch.save({"ids": long_ids, "embeds": tulip(long_ids).text_embeds}, tmp_path / "expected.pt")
    program = """
import sys, torch
from tulip_diffusion import TulipTextModelWithProjection
expected = torch.load(sys.argv[2])
model = TulipTextModelWithProjection.from_pretrained(sys.argv[1])
assert model.config.rope_parameters["length"] == 248, model.config
assert torch.equal(model(expected["ids"]).text_embeds, expected["embeds"])
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "tulip"), str(tmp_path / "expected.pt")]
    subprocess.run(arguments, check=True, capture_output=True)


def test_each_class_reads_the_others_folder(tulip, long_ids, tmp_path):
    tulip.save_pretrained(tmp_path)
    text_only = TulipTextModel.from_pretrained(tmp_path)
    assert torch.equal(text_only(long_ids)[0], tulip(long_ids).last_hidden_state)
    text_only.save_pretrained(tmp_path / "text-only")
    assert isinstance(AutoModel.from_pretrained(tmp_path / "text-only"), TulipTextModel)
    again = TulipTextModelWithProjection.from_pretrained(tmp_path / "text-only")
    assert torch.equal(again.text_model(long_ids)[0], text_only(long_ids)[0])


def test_slot_one_puts_states_first_and_slot_two_the_pooled_vector(tulip, long_ids):
    """SDXL takes a 2-D tensor in first place for the pooled vector."""
    assert tulip.text_model(long_ids)[0].ndim == 3
    assert tulip(long_ids)[0].ndim == 2


def randomise_cope(model):
    for name, parameter in model.named_parameters():
        if ".cope." in name:
            nn.init.normal_(parameter, mean=float("norm.weight" in name), std=0.3)


def test_cope_agrees_with_the_published_formula(clip, long_ids):
    """A naive statement, pair by pair, of the first layer's attention (arXiv:2405.18719, section 4)."""
    tulip = from_clip(clip, position_encoding="cope")
    randomise_cope(tulip)
    attention = tulip.text_model.encoder.layers[0].self_attn
    ids, head_dim = long_ids[:, :40], 64
    hidden = tulip.text_model.encoder.layers[0].layer_norm1(tulip.text_model.embeddings(ids))[0]
    expected = torch.zeros(40, 128)
    for head in range(2):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        query = attention.cope.query_norm(attention.q_proj(hidden)[:, rows]) / head_dim**0.5
        key = attention.cope.key_norm(attention.k_proj(hidden)[:, rows])
        value = attention.v_proj(hidden)[:, rows]
        for i in range(40):
            logits = torch.stack([query[i] @ key[j] / head_dim**0.5 for j in range(i + 1)])
            biased = []
            for j in range(i + 1):
                position = logits[j:].sigmoid().sum().clamp(max=76)
                low, high = int(position.floor()), int(position.ceil())
                at = query[i] @ attention.cope.table
                biased.append(logits[j] + at[high] * (position - low) + at[low] * (1 - (position - low)))
            expected[i, rows] = torch.stack(biased).softmax(0) @ value[: i + 1]
    mask = tulip.text_model.contextual_mask(ids)
    ours, _ = attention(hidden[None], mask)
    torch.testing.assert_close(ours[0], attention.out_proj(expected), atol=1e-5, rtol=1e-4)


def test_cope_refuses_back_ends_that_hide_the_logits(clip, long_ids):
    tulip = from_clip(clip, position_encoding="cope")
    tulip.text_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match='Use "eager" or "sdpa"'):
        tulip(long_ids)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"position_encoding": "alibi"}, 'must be "rope" or "cope", got \'alibi\''),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'must be "default" or "ntk", got \'yarn\''),
        ({"rope_parameters": {"rope_type": "ntk", "factor": 8}}, r"got also \['factor'\]"),
        ({"rope_parameters": {**NTK, "alpha": -1}}, "must be a positive number, got -1"),
        ({"rope_parameters": {**NTK, "length": 50}}, "NTK scaling lengthens"),
        ({"hidden_size": 15, "num_attention_heads": 5}, "must be even, got 15 / 5"),
    ],
)
def test_configurations_that_mean_nothing_are_refused(fields, sentence):
    with pytest.raises(Exception, match=sentence):
        TulipTextConfig(**fields)


def test_the_callers_rope_parameters_are_not_changed():
    given = {"rope_type": "ntk"}
    assert TulipTextConfig(rope_parameters=given).rope_parameters == NTK
    assert given == {"rope_type": "ntk"}


def test_missing_ids_are_named(tulip):
    with pytest.raises(ValueError, match="input_ids is missing"):
        tulip()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_cpus_states(tulip, long_ids):
    cpu = tulip(long_ids).text_embeds
    torch.testing.assert_close(tulip.cuda()(long_ids.cuda()).text_embeds.cpu(), cpu, atol=1e-4, rtol=1e-3)


def test_a_clip_config_reads_as_a_tulip_config():
    assert TulipTextConfig.from_dict(CLIPTextConfig(hidden_size=64).to_dict()).hidden_size == 64
