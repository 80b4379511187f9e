"""Encoders as people have them: one file under transformers' names, with all that programs put before these names."""

import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tulip_diffusion import from_clip, load_clip, load_image_encoder, load_text_encoder
from tulip_diffusion.models.layouts import published_activation, to_transformers

IDS = torch.tensor([[598, 320, 125, 599]])
SMALL = {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}  # a reduced vocabulary, to be quick
VISION = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32, "patch_size": 16}


def save(state, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().clone().contiguous() for key, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def embeds(model):
    with torch.no_grad():
        return model(IDS).text_embeds


def prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.fixture
def clip(make_clip):
    return make_clip(**SMALL)


@pytest.fixture
def whole(make_clip):
    config = make_clip(hidden_act="gelu", **SMALL).config.to_dict()
    model = CLIPModel(CLIPConfig(text_config=config, vision_config=VISION, projection_dim=32)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


WRAPPERS = [
    "",
    "model.",
    "clip.",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "transformer.",
    "text_encoder.",
    "clip_l.transformer.",
    "clip_g.transformer.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
    "text_encoders.clip_l.transformer.",
    "anything.at.all.",
]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("bare", [False, True], ids=["text_model.", "no text_model."])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_stands_before_the_names_comes_off(clip, tmp_path, wrapper, bare, suffix):
    state = clip.state_dict()
    if bare:
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    path = save(prefixed(state, wrapper), tmp_path / f"clip{suffix}")
    assert torch.equal(embeds(load_text_encoder(path, hidden_act="quick_gelu")), embeds(clip))


@pytest.mark.parametrize("wrapper", ["cond_stage_model.model.", "conditioner.embedders.1.model.", "model.", "a.b.c."])
def test_openais_names_have_wrappers_too(whole_clip, wrapper):
    state = {key: value for key, value in whole_clip.items() if not key.startswith("visual")}
    plain = load_text_encoder(state, hidden_act="gelu")
    assert torch.equal(embeds(load_text_encoder(prefixed(state, wrapper), hidden_act="gelu")), embeds(plain))


@pytest.mark.parametrize("wrapper", ["clip_l.", "clip_g."])
@pytest.mark.parametrize("transposed", [False, True])
def test_projection_and_temperature_one_level_up_are_found(clip, wrapper, transposed):
    state = prefixed(clip.state_dict(), f"{wrapper}transformer.")
    projection = state.pop(f"{wrapper}transformer.text_projection.weight")
    if transposed:  # as a parameter that multiplies from the right
        state[f"{wrapper}text_projection"] = projection.T
    else:
        state[f"{wrapper}text_projection.weight"] = projection
    state[f"{wrapper}logit_scale"] = torch.tensor(4.6)
    assert torch.equal(embeds(load_text_encoder(state, hidden_act="quick_gelu")), embeds(clip))
    assert load_clip(state, hidden_act="quick_gelu").logit_scale == pytest.approx(4.6)


def test_one_file_with_both_of_sdxls_encoders(make_clip, tmp_path):
    first, second = make_clip(**SMALL), make_clip(**SMALL, hidden_size=64, num_attention_heads=1)
    state = prefixed(first.state_dict(), "clip_l.transformer.") | prefixed(second.state_dict(), "clip_g.transformer.")
    path = save(state | {"t5xxl.shared.weight": torch.zeros(3)}, tmp_path / "both.safetensors")
    assert torch.equal(embeds(load_text_encoder(path)), embeds(first))
    loaded = load_text_encoder(path, subfolder="text_encoder_2", hidden_act="quick_gelu")
    assert torch.equal(embeds(loaded), embeds(second))
    with pytest.raises(ValueError, match=r"no single text_encoder_3.*text_encoder \(clip_l.transformer.\)"):
        load_text_encoder(path, subfolder="text_encoder_3")


def test_two_encoders_that_nothing_tells_apart_are_refused(clip):
    state = prefixed(clip.state_dict(), "student.") | prefixed(clip.state_dict(), "teacher.")
    with pytest.raises(ValueError, match=r"text_encoder \(student.\), text_encoder \(teacher.\)"):
        load_text_encoder(state, hidden_act="gelu")


def test_what_is_beside_a_wrapped_encoder_is_named(clip):
    state = prefixed(clip.state_dict(), "model.") | {"head.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"unexpected: head.weight"):
        load_text_encoder(state, hidden_act="gelu")


@pytest.mark.parametrize("hidden_act", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("name", ["model.safetensors", "clip.pt", "pytorch_model.bin"])
def test_a_config_beside_the_file_says_the_activation(make_clip, tmp_path, name, hidden_act):
    clip = make_clip(**SMALL, hidden_act=hidden_act, num_attention_heads=4)
    clip.config.save_pretrained(tmp_path)
    path = save(clip.state_dict(), tmp_path / name)
    assert torch.equal(embeds(load_text_encoder(path)), embeds(clip))
    assert load_text_encoder(path, hidden_act="relu").config.hidden_act == "relu"


@pytest.mark.parametrize("position_encoding", ["rope", "cope"])
def test_a_tulip_file_with_its_config_beside_it(make_clip, tmp_path, position_encoding):
    rope = {"rope_type": "ntk", "length": 300}
    tulip = from_clip(
        make_clip(**SMALL, num_attention_heads=4),
        position_encoding=position_encoding,
        rope_parameters=rope,
        attention_scaling="log",
    )
    tulip.save_pretrained(tmp_path)
    loaded = load_text_encoder(tmp_path / "model.safetensors")
    assert loaded.config.rope_parameters == tulip.config.rope_parameters
    assert torch.equal(embeds(loaded), embeds(tulip))


def test_a_tulip_file_without_a_config_asks_for_it(clip, tmp_path):
    path = save(from_clip(clip).state_dict(), tmp_path / "tulip.safetensors")
    with pytest.raises(ValueError, match=r"config.json that was saved with it"):
        load_text_encoder(path)
    assert torch.equal(
        embeds(load_text_encoder(path, rope="released", hidden_act="quick_gelu")), embeds(from_clip(clip))
    )


def test_a_config_of_another_model_beside_the_file_is_told(make_clip, tmp_path):
    make_clip(**SMALL, hidden_size=64, num_attention_heads=1).config.save_pretrained(tmp_path)
    path = save(make_clip(**SMALL).state_dict(), tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"config.json says hidden_size 64, but the weights in .* have 128"):
        load_text_encoder(path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    assert load_text_encoder(path, hidden_act="gelu").config.hidden_size == 128  # somebody else's


def test_sizes_that_nobody_published_ask_for_the_activation(clip, whole):
    for state in (clip.state_dict(), whole.state_dict()):
        with pytest.raises(ValueError, match=r"Pass hidden_act='quick_gelu'.*--hidden-act"):
            load_clip(state)


@pytest.mark.parametrize(
    ("width", "layers", "expected"),
    [(512, 12, "quick_gelu"), (768, 12, "quick_gelu"), (1024, 24, "gelu"), (1280, 32, "gelu"), (640, 12, None)],
)
def test_published_text_towers_are_known_by_their_sizes(width, layers, expected):
    """B/32 and B/16, L/14, H/14 and bigG/14, read off a file's shapes on the meta device."""
    fields = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    with torch.device("meta"):
        model = CLIPTextModelWithProjection(CLIPTextConfig(**fields, num_attention_heads=width // 64))
    known = published_activation(to_transformers(model.state_dict()).text_config)
    assert (known and known[1]) == expected


@pytest.mark.parametrize("wrapper", ["", "model.", "module."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_whole_clip_in_one_file_keeps_image_tower_temperature_and_activation(whole, tmp_path, wrapper, suffix):
    path = save(prefixed(whole.state_dict(), wrapper), tmp_path / f"whole{suffix}")
    towers = load_clip(path, hidden_act="gelu")
    image_encoder = load_image_encoder(path, hidden_act="gelu")
    pixels = torch.randn(2, 3, 32, 32)
    whole.vision_model.encoder.layers[0].mlp.activation_fn = torch.nn.GELU()  # its config said nothing of the images
    with torch.no_grad():
        expected = whole.visual_projection(whole.vision_model(pixels).pooler_output)
        for encoder in (towers.image_encoder, image_encoder):
            assert encoder.config.hidden_act == "gelu"
            torch.testing.assert_close(encoder(pixels).image_embeds, expected)
        states = whole.text_model(IDS).pooler_output
        torch.testing.assert_close(embeds(towers.text_encoder), whole.text_projection(states))
    assert towers.logit_scale == pytest.approx(whole.logit_scale.item())


def test_an_image_tower_alone_in_a_file(whole, tmp_path):
    state = {key: value for key, value in whole.state_dict().items() if key.startswith("vis")}
    path = save(state, tmp_path / "image_encoder.safetensors")
    assert load_image_encoder(path, hidden_act="gelu").config.hidden_size == 64
    with pytest.raises(ValueError, match="has no text tower"):
        load_text_encoder(path)


def test_the_image_tower_and_temperature_that_training_left_in_a_folder(whole, tmp_path):
    whole.save_pretrained(tmp_path / "clip")
    towers = load_clip(tmp_path / "clip")
    from_clip(towers.text_encoder).save_pretrained(tmp_path / "out")
    towers.image_encoder.save_pretrained(tmp_path / "out" / "image_encoder")
    (tmp_path / "out" / "run.json").write_text(json.dumps({"stage": "expand", "logit_scale": 3.5}))
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = towers.image_encoder(pixels).image_embeds
        again = load_clip(tmp_path / "out")
        assert torch.equal(again.image_encoder(pixels).image_embeds, expected)
        assert torch.equal(load_image_encoder(tmp_path / "out")(pixels).image_embeds, expected)
    assert again.logit_scale == 3.5
    assert again.text_encoder.config.model_type == "tulip_text_model"


def test_rope_sets_the_rotation_of_a_tulip_folder_and_is_refused_where_there_is_none(clip, tmp_path):
    from_clip(clip).save_pretrained(tmp_path / "tulip")
    clip.save_pretrained(tmp_path / "clip")
    assert load_text_encoder(tmp_path / "tulip", rope="paper").config.rope_parameters["rope_type"] == "ntk"
    from_clip(clip, position_encoding="cope").save_pretrained(tmp_path / "cope")
    for name in ("clip", "cope"):
        with pytest.raises(
            ValueError, match=f"rope='paper' is the rotation of a TULIP encoder, and .*{name} has none"
        ):
            load_text_encoder(tmp_path / name, rope="paper")


def test_positions_that_older_files_hold_as_a_buffer_are_not_unexpected(clip):
    state = clip.state_dict() | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    assert torch.equal(embeds(load_text_encoder(state, hidden_act="quick_gelu")), embeds(clip))


def test_a_first_encoder_without_projection_has_its_pooled_state(make_clip, tmp_path):
    text_model = CLIPTextModel(make_clip(**SMALL, projection_dim=64).config).eval()
    path = save(text_model.state_dict(), tmp_path / "clip_l.safetensors")
    loaded = load_text_encoder(path, hidden_act="quick_gelu")
    torch.testing.assert_close(embeds(loaded), text_model(IDS).pooler_output)
    text_model.save_pretrained(tmp_path / "folder")  # its config says projection_dim 64
    torch.testing.assert_close(embeds(load_text_encoder(tmp_path / "folder")), text_model(IDS).pooler_output)
