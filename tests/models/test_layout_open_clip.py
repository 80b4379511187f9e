import open_clip
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from tests.models.reference import IDS, assert_agrees, open_clip_model, quick_gelu, text_tower
from tulip_diffusion import (
    TulipTextModelWithProjection,
    export_open_clip,
    from_clip,
    load_clip,
    load_image_encoder,
    load_text_encoder,
)
from tulip_diffusion.models.layouts import to_transformers


@pytest.mark.parametrize("quick", [False, True])
def test_an_open_clip_model_gives_open_clips_own_embeddings(quick):
    model = open_clip_model(quick)
    act = {"hidden_act": "quick_gelu" if quick else "gelu"}
    towers = load_clip(model.state_dict(), **act)
    image_encoder = load_image_encoder(model.state_dict(), **act, num_attention_heads=2)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ids = IDS[:, :77].clone()
        ids[1, -1] = 49407
        torch.testing.assert_close(towers.text_encoder(ids).text_embeds, model.encode_text(ids), atol=5e-5, rtol=0)
        torch.testing.assert_close(image_encoder(pixels).image_embeds, model.encode_image(pixels), atol=5e-5, rtol=0)
    assert towers.logit_scale == pytest.approx(model.logit_scale.item())


def test_the_reference_statement_agrees_with_open_clip(whole_clip):
    ids = IDS[:1, :77]
    _, embeds = text_tower(whole_clip, ids, 2, F.gelu, positions=whole_clip["positional_embedding"])
    torch.testing.assert_close(embeds, open_clip_model().encode_text(ids), atol=1e-5, rtol=0)


def test_openai_archives_load_scripted_or_plain_in_half_precision(whole_clip, tmp_path):
    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for key, value in whole_clip.items():
                owner = self
                *path, last = key.split(".")
                for name in path:
                    if not hasattr(owner, name):
                        owner.add_module(name, torch.nn.Module())
                    owner = getattr(owner, name)
                owner.register_parameter(last, torch.nn.Parameter(value.half()))
            for name, size in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
                self.register_buffer(name, torch.tensor(size))

        def forward(self):
            return self.logit_scale

    torch.jit.script(Archive()).save(str(tmp_path / "ViT.pt"))
    scripted = load_text_encoder(tmp_path / "ViT.pt")
    half = {key: value.half().float() for key, value in whole_clip.items()}
    ids = IDS[:1, :77]
    assert_agrees(scripted, text_tower(half, ids, 2, quick_gelu, positions=half["positional_embedding"]), ids)
    assert isinstance(load_image_encoder(tmp_path / "ViT.pt"), CLIPVisionModelWithProjection)


def test_open_clips_custom_text_tower_and_compiled_prefixes(whole_clip):
    custom = {
        key if key.startswith(("visual", "logit")) else f"text.{key}": value for key, value in whole_clip.items()
    }
    compiled = {f"_orig_mod.{key}": value for key, value in custom.items()}
    plain = load_text_encoder(whole_clip)(IDS[:, :77]).text_embeds
    assert torch.equal(load_text_encoder({"state_dict": compiled})(IDS[:, :77]).text_embeds, plain)


def test_export_gives_open_clip_its_tensors_back(whole_clip, tmp_path):
    towers = load_clip(whole_clip)
    exported = export_open_clip(*towers)
    assert exported.keys() == whole_clip.keys()
    assert all(torch.equal(exported[key], whole_clip[key]) for key in whole_clip)
    tulip = from_clip(towers.text_encoder)
    torch.save(export_open_clip(tulip), tmp_path / "tulip.pt")
    assert torch.equal(load_text_encoder(tmp_path / "tulip.pt")(IDS).text_embeds, tulip(IDS).text_embeds)


FULL_SIZES = {  # open_clip's name: text width, layers, heads; image width, heads; projection, of the published configs
    "ViT-B-32": (512, 12, 8, 768, 12, 512),
    "ViT-B-16": (512, 12, 8, 768, 12, 512),
    "ViT-L-14": (768, 12, 12, 1024, 16, 768),
    "ViT-L-14-336": (768, 12, 12, 1024, 16, 768),
    "ViT-H-14": (1024, 24, 16, 1280, 16, 1024),
    "ViT-bigG-14": (1280, 32, 20, 1664, 16, 1280),
}


@pytest.mark.parametrize("name", FULL_SIZES)
def test_every_key_and_shape_of_the_true_sizes_is_mapped(name):
    """On the meta device: what open_clip would save has exactly the tensors that transformers' model wants."""

    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        state = open_clip.model.CLIP(**config).state_dict()
        towers = to_transformers(state)
        text_encoder = CLIPTextModelWithProjection(CLIPTextConfig(**towers.text_config))
        image_encoder = CLIPVisionModelWithProjection(
            CLIPVisionModelWithProjection.config_class(**towers.image_config)
        )
        tulip = TulipTextModelWithProjection(
            TulipTextModelWithProjection.config_class(**to_transformers(state, rope="paper").text_config)
        )
    for model, tower in ((text_encoder, towers.text), (image_encoder, towers.image)):
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in tower.items()}
    assert tulip.state_dict().keys() == towers.text.keys() - {"text_model.embeddings.position_embedding.weight"}
    text, image = towers.text_config, towers.image_config
    assert FULL_SIZES[name] == (
        text["hidden_size"],
        text["num_hidden_layers"],
        text["num_attention_heads"],
        image["hidden_size"],
        image["num_attention_heads"],
        text["projection_dim"],
    )
    assert image["image_size"] == config["vision_cfg"]["image_size"]
    assert image["patch_size"] == config["vision_cfg"]["patch_size"]
