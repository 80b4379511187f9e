import re

import numpy
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from tests.models.reference import quick_gelu, text_tower
from tulip_diffusion import (
    TulipTextModelWithProjection,
    export_open_clip,
    from_clip,
    load_clip,
    load_image_encoder,
    load_text_encoder,
    stretch_position_embeddings,
)
from tulip_diffusion.models.layouts import detect_layout, to_transformers
from tulip_diffusion.models.rotary import ntk_theta

VISION = {"layers": 2, "width": 64, "patch_size": 16, "image_size": 32, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2}
IDS = torch.full((2, 248), 0)
IDS[0, :5] = torch.tensor([49406, 320, 256, 1125, 49407])
IDS[1] = torch.randint(300, 40000, (248,), generator=torch.Generator().manual_seed(0))
IDS[1, 0], IDS[1, -1] = 49406, 49407


def open_clip_model(quick_gelu=False):
    torch.manual_seed(0)
    model = open_clip.model.CLIP(embed_dim=32, vision_cfg=VISION, text_cfg=TEXT, quick_gelu=quick_gelu).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def whole_clip():
    """A whole CLIP's state dict under OpenAI's names."""
    return {key: value.detach() for key, value in open_clip_model().state_dict().items()}


@pytest.fixture(scope="module")
def text_only(whole_clip):
    return {key: value for key, value in whole_clip.items() if not key.startswith(("visual", "logit", "positional"))}


def assert_agrees(model, reference, ids):
    expected_states, expected_embeds = reference
    with torch.no_grad():
        output = model(ids, output_hidden_states=True)
    torch.testing.assert_close(output.text_embeds, expected_embeds, atol=5e-5, rtol=0)
    for ours, expected in zip(output.hidden_states, expected_states, strict=True):
        torch.testing.assert_close(ours, expected, atol=3e-4, rtol=0)


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


def longclip_state(whole_clip):
    stretched = stretch_position_embeddings(whole_clip["positional_embedding"])
    trained = stretched + 0.05 * torch.randn_like(stretched)
    return {**whole_clip, "positional_embedding": stretched, "positional_embedding_res": trained}


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


def test_export_gives_open_clip_its_tensors_back(whole_clip, tmp_path):
    towers = load_clip(whole_clip)
    exported = export_open_clip(*towers)
    assert exported.keys() == whole_clip.keys()
    assert all(torch.equal(exported[key], whole_clip[key]) for key in whole_clip)
    tulip = from_clip(towers.text_encoder)
    torch.save(export_open_clip(tulip), tmp_path / "tulip.pt")
    assert torch.equal(load_text_encoder(tmp_path / "tulip.pt")(IDS).text_embeds, tulip(IDS).text_embeds)


class NotATensor:
    pass


def without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda s: without(s, "transformer.resblocks.1.ln_2.bias"), "missing: transformer.resblocks.1.ln_2.bias"),
        (lambda s: without(s, "ln_final.weight"), "missing: ln_final.weight"),
        (lambda s: without(s, "token_embedding.weight"), "has no token_embedding.weight"),
        (lambda s: {**s, "ln_final.bias": torch.zeros(7)}, r"ln_final.bias gives \(7,\), expected \(128,\)"),
        (lambda s: {**s, "transformer.extra": torch.zeros(1)}, "unexpected: transformer.extra"),
        (lambda s: {**s, "cls_emb": torch.zeros(1)}, "has no cls_emb"),
        (lambda s: {"some.weight": torch.zeros(1)}, "no known CLIP layout: some.weight"),
        (lambda s: {}, "no tensors at all"),
    ],
)
def test_nothing_is_loaded_in_part(whole_clip, damage, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_text_encoder(damage(whole_clip))


def test_longclip_without_its_trained_positions_is_named(whole_clip):
    with pytest.raises(ValueError, match="needs positional_embedding_res"):
        load_text_encoder(whole_clip, layout="longclip")


def test_a_pickle_with_more_than_tensors_is_refused_with_the_way_out(whole_clip, tmp_path):
    torch.save({"state_dict": whole_clip, "args": NotATensor()}, tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match=r"holds more than tensors.*convert it: torch.save") as refusal:
        load_text_encoder(tmp_path / "pickle.pt")
    way_out = re.search(r"torch\.save\(.+?'tensors\.pt'\)", str(refusal.value))
    exec(way_out[0].replace("'tensors.pt'", repr(str(tmp_path / "tensors.pt"))))
    assert isinstance(load_text_encoder(tmp_path / "tensors.pt"), CLIPTextModelWithProjection)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_named(whole_clip, tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    if suffix == ".pt":
        torch.save(whole_clip, path)
    else:
        save_file({key: value.contiguous() for key, value in whole_clip.items()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"half{suffix} cannot be read"):
        load_text_encoder(path)


def test_a_truncated_folder_is_named(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"weights in .* cannot be loaded"):
        load_text_encoder(tmp_path)


def test_folders_and_paths_that_hold_no_model_are_named(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere.pt", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=re.escape(str(source))):
            load_text_encoder(source)
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(ValueError, match="no configuration that can be read"):
        load_text_encoder(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layout": "coca"}, "layout must be one of auto, openai"),
        ({"rope": "yarn"}, "rope must be 'released'"),
        ({"head_count": 3}, "has no field head_count"),
    ],
)
def test_wrong_arguments_name_the_allowed_ones(whole_clip, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_text_encoder(whole_clip, **arguments)


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
