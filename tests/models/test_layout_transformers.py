import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
)

from tests.models.reference import IDS
from tulip_diffusion import (
    from_clip,
    load_clip,
    load_text_encoder,
)


def test_transformers_folders_sharded_or_in_half_precision(clip, tmp_path):
    ids = IDS[:, :77]
    clip.save_pretrained(tmp_path / "sharded", max_shard_size="5MB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    torch.testing.assert_close(load_text_encoder(tmp_path / "sharded")(ids).text_embeds, clip(ids).text_embeds)
    clip.half().save_pretrained(tmp_path / "half", variant="fp16")
    loaded = load_text_encoder(tmp_path / "half")
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded(ids).text_embeds, clip.float()(ids).text_embeds, atol=1e-5, rtol=1e-5)


def test_a_whole_transformers_clip_gives_both_towers(clip, tmp_path):
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=clip.config.to_dict(), vision_config=vision, projection_dim=32)
    assert config.vision_config.projection_dim == 512  # a default that the whole model overrules
    whole = CLIPModel(config).eval()
    whole.save_pretrained(tmp_path)
    towers = load_clip(tmp_path)
    pixels = torch.randn(1, 3, 32, 32)
    output = whole(input_ids=IDS[:1, :77], pixel_values=pixels)
    embeds = towers.text_encoder(IDS[:1, :77]).text_embeds
    torch.testing.assert_close(F.normalize(embeds), output.text_embeds)
    torch.testing.assert_close(F.normalize(towers.image_encoder(pixels).image_embeds), output.image_embeds)
    assert towers.logit_scale == pytest.approx(whole.logit_scale.item())


def test_a_tulip_folder_round_trips_with_its_rope(clip, tmp_path):
    tulip = from_clip(clip, rope_parameters={"rope_type": "ntk"})
    tulip.save_pretrained(tmp_path)
    loaded = load_text_encoder(tmp_path)
    assert loaded.config.rope_parameters == tulip.config.rope_parameters
    assert torch.equal(loaded(IDS).text_embeds, tulip(IDS).text_embeds)


def test_a_text_model_without_projection_gets_the_identity(clip, tmp_path):
    text_model = CLIPTextModel(clip.config).eval()
    text_model.save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "model_index.json").write_text("{}")
    loaded = load_text_encoder(tmp_path, projection_dim=128)
    ids = IDS[:1, :77]
    torch.testing.assert_close(loaded(ids).text_embeds, text_model(ids).pooler_output)


def sdxl_file(clip, path, big):
    first = {f"conditioner.embedders.0.transformer.{key}": value for key, value in clip.state_dict().items()}
    first.pop("conditioner.embedders.0.transformer.text_projection.weight")
    second = {f"conditioner.embedders.1.model.{key}": value for key, value in big.items() if "visual" not in key}
    unet = {"model.diffusion_model.out.2.weight": torch.zeros(4)}
    save_file({key: value.contiguous() for key, value in (first | second | unet).items()}, path)


def test_both_text_encoders_of_an_sdxl_single_file(clip, whole_clip, tmp_path):
    path = tmp_path / "sdxl.safetensors"
    sdxl_file(clip, path, whole_clip)
    ids = IDS[:, :77]
    with torch.no_grad():
        first, stock = load_text_encoder(path), clip.text_model(ids)
        torch.testing.assert_close(first(ids).last_hidden_state, stock.last_hidden_state)
        torch.testing.assert_close(first(ids).text_embeds, stock.pooler_output)  # there is no projection in the file
    second = load_text_encoder(path, subfolder="text_encoder_2", hidden_act="gelu")
    assert torch.equal(second(ids).text_embeds, load_text_encoder(whole_clip)(ids).text_embeds)
