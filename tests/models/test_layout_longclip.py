import pytest
import torch
from transformers import (
    CLIPTextModelWithProjection,
)

from tests.models.reference import IDS, assert_agrees, longclip_state, quick_gelu, text_tower
from tulip_diffusion import (
    load_text_encoder,
)


def test_longclip_runs_with_its_merged_positions_and_rounded_weights(whole_clip, tmp_path):
    state = longclip_state(whole_clip)
    torch.save(state, tmp_path / "longclip.pt")
    model = load_text_encoder(tmp_path / "longclip.pt")
    assert type(model) is CLIPTextModelWithProjection and model.config.max_position_embeddings == 248
    rounded = {
        key: value.half().float() if ("resblocks" in key and ".ln_" not in key) or key == "text_projection" else value
        for key, value in state.items()
    }
    positions = torch.cat((state["positional_embedding"][:20], state["positional_embedding_res"][20:]))
    assert_agrees(model, text_tower(rounded, IDS, 2, quick_gelu, positions=positions), IDS)


def test_finelips_text_tower_loads_without_its_refinement_modules(whole_clip):
    state = longclip_state(whole_clip) | {"aggr_net.scale": torch.ones(1), "cap_aggr_net.scale": torch.ones(1)}
    model = load_text_encoder(state)
    positions = torch.cat((state["positional_embedding"][:20], state["positional_embedding_res"][20:]))
    assert_agrees(model, text_tower(state, IDS, 2, quick_gelu, positions=positions), IDS)


def test_longclip_without_its_trained_positions_is_named(whole_clip):
    with pytest.raises(ValueError, match="needs positional_embedding_res"):
        load_text_encoder(whole_clip, layout="longclip")
