import json
import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPTextModelWithProjection,
)

from tulip_diffusion import load_clip, load_image_encoder, load_text_encoder


class NotATensor:
    pass


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 246144152\n"
OTHER_FILES = {
    "random.pt": (bytes(range(256)) * 20, "cannot be read"),
    "random.bin": (bytes(reversed(range(256))) * 20, "cannot be read"),
    "random.safetensors": (bytes(range(7, 256)) * 20, "cannot be read"),
    "text.pt": (b"These are my notes on CLIP.\n" * 40, "cannot be read"),
    "text.ckpt": ("é".encode() * 90, "cannot be read"),
    "page.pt": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "is a web page"),
    "page.safetensors": (b"\n <HTML><head><title>Sign in</title>", "is a web page"),
    "empty.pt": (b"", "is empty"),
    "empty.safetensors": (b"", "is empty"),
    "pointer.safetensors": (LFS.encode(), "is a Git LFS pointer"),
    "pointer.bin": (LFS.encode(), "is a Git LFS pointer"),
    "model.gguf": (b"GGUF" + bytes(300), "is a GGUF file"),
    "renamed.pt": (b"GGUF" + bytes(300), "is a GGUF file"),
    "list.json": (b'{"weights": [1, 2, 3]}', "cannot be read"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path, name):
    content, sentence = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    for load in (load_text_encoder, load_clip, load_image_encoder):
        with pytest.raises(ValueError, match=sentence) as refusal:
            load(tmp_path / name)
        assert "\n" not in str(refusal.value) and name in str(refusal.value)


@pytest.mark.parametrize("name", ["clip.SAFETENSORS", "clip.Safetensors", "safetensors-in-disguise.bin", "no-ending"])
def test_content_counts_and_not_the_name(clip, tmp_path, name):
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, tmp_path / name)
    ids = torch.tensor([[49406, 320, 49407]])
    loaded = load_text_encoder(tmp_path / name, hidden_act="quick_gelu")
    assert torch.equal(loaded(ids).text_embeds, clip(ids).text_embeds)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("hidden_size", 256, "says hidden_size 256, but the weights in .* have 128"),
        ("num_hidden_layers", 10**9, "says num_hidden_layers 1000000000, but .* have 2"),
        ("vocab_size", 5, "says vocab_size 5"),
        ("max_position_embeddings", 248, "says max_position_embeddings 248"),
        ("num_attention_heads", 0, "no configuration that can be read"),
        ("num_attention_heads", 3, "attention heads"),
        ("hidden_act", "gelv", "got 'gelv'"),
        ("model_type", "bert", "holds a bert; expected clip"),
        ("projection_dim", 64, r"text_projection.weight gives \(32, 128\), expected \(64, 128\)"),
        ("hidden_size", "wide", "no configuration that can be read"),
    ],
)
def test_a_config_that_disagrees_with_the_weights_is_one_sentence(clip, tmp_path, field, value, sentence):
    clip.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, field: value}))
    with pytest.raises(ValueError, match=sentence) as refusal:
        load_text_encoder(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("heads", [0, 3, -2])
def test_heads_that_do_not_divide_the_width_are_refused(whole_clip, heads):
    with pytest.raises(ValueError, match=r"head|zero"):
        load_text_encoder(whole_clip, num_attention_heads=heads)


def test_a_missing_shard_is_named(clip, tmp_path):
    clip.save_pretrained(tmp_path, max_shard_size="5MB")
    shard = sorted(tmp_path.glob("*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=shard.name):
        load_text_encoder(tmp_path)


def test_whole_numbers_in_the_place_of_weights_are_named(clip):
    state = clip.state_dict()
    state["text_model.final_layer_norm.weight"] = torch.ones(128, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"no floating-point numbers: text_model.final_layer_norm.weight"):
        load_text_encoder(state, hidden_act="gelu")


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
