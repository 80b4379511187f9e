import numpy
import pytest
import torch
import torch.nn.functional as F

from tests.models.reference import IDS, assert_agrees, text_tower
from tulip_diffusion import (
    TulipTextModelWithProjection,
    load_text_encoder,
)
from tulip_diffusion.models.layouts import detect_layout
from tulip_diffusion.models.rotary import ntk_theta


@pytest.mark.parametrize("ids", [IDS[:1, :5], IDS], ids=["5 tokens", "248 tokens"])
@pytest.mark.parametrize("length", [None, 154, 248, 600])
def test_tulip_stage_one_agrees_with_the_published_approach(text_only, tmp_path, ids, length):
    wrapped = {f"module.{key}": value for key, value in text_only.items()}
    torch.save({"epoch": 20, "name": "distill", "state_dict": wrapped}, tmp_path / "epoch_20.pt")
    rope, theta = {}, 10000.0
    if length is not None:
        theta = ntk_theta(10000.0, 8.0, 77, max(length, ids.shape[1]), 64)  # beyond `length`: the sequence's own
        rope = {"rope_type": "ntk", "alpha": 8.0, "base_length": 77, "length": length, "rope_theta": 10000.0}
    model = load_text_encoder(tmp_path / "epoch_20.pt", **({"rope_parameters": rope} if rope else {}))
    assert isinstance(model, TulipTextModelWithProjection)
    assert_agrees(model, text_tower(text_only, ids, 2, F.gelu, theta=theta), ids)


def test_rope_chooses_what_the_published_file_forgot(text_only):
    released = load_text_encoder(text_only)
    paper = load_text_encoder(text_only, rope="paper")
    assert released.config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert_agrees(paper, text_tower(text_only, IDS, 2, F.gelu, theta=206278.0), IDS)
    assert paper.config.hidden_act == "gelu"
    assert load_text_encoder(text_only, hidden_act="quick_gelu").config.hidden_act == "quick_gelu"


def tulip_stage_two(whole_clip):
    """As the published code saves it: an optimizer that never saw a gradient for the stale positions."""
    parameters = {key: torch.nn.Parameter(value.clone()) for key, value in whole_clip.items()}
    small = [p for p in parameters.values() if p.ndim < 2]
    large = [p for p in parameters.values() if p.ndim >= 2]
    optimizer = torch.optim.AdamW([{"params": small}, {"params": large}], lr=1e-5)
    for key, parameter in parameters.items():
        if key != "positional_embedding":
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group["lr"] = numpy.float64(group["lr"])  # the published schedules leave numpy scalars behind
    return {"epoch": 1, "name": "expand", "state_dict": whole_clip, "optimizer": saved}


def test_tulip_stage_two_is_told_from_an_ordinary_clip_by_its_optimizer(whole_clip, tmp_path):
    torch.save(tulip_stage_two(whole_clip), tmp_path / "stage2.pt")
    model = load_text_encoder(tmp_path / "stage2.pt", rope="paper")
    assert isinstance(load_text_encoder(tmp_path / "stage2.pt"), TulipTextModelWithProjection)
    assert_agrees(model, text_tower(whole_clip, IDS, 2, F.gelu, theta=206278.0), IDS)
    assert detect_layout({"state_dict": whole_clip}) == "open_clip"
    stripped = load_text_encoder(whole_clip, layout="tulip")
    assert stripped.config.max_position_embeddings == 248


def test_a_rope_argument_says_that_a_clip_without_optimizer_is_tulip(whole_clip):
    assert isinstance(load_text_encoder(whole_clip, rope="released"), TulipTextModelWithProjection)


def test_tulip_cope_agrees_with_the_published_formula(text_only):
    state = dict(text_only)
    for layer in range(2):
        attention = f"transformer.resblocks.{layer}.attn"
        state[f"{attention}.cope.pos_emb"] = 0.3 * torch.randn(1, 64, 248)
        for norm in ("q_ln", "k_ln"):
            state[f"{attention}.{norm}.weight"] = 1 + 0.1 * torch.randn(64)
            state[f"{attention}.{norm}.bias"] = 0.1 * torch.randn(64)
    model = load_text_encoder(state)
    assert (model.config.position_encoding, model.config.max_position_embeddings) == ("cope", 248)
    assert_agrees(model, text_tower(state, IDS, 2, F.gelu), IDS)
