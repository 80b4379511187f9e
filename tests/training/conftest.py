"""Tiny CLIPs with the real vocabulary, and captions of known sentences."""

import json
import random

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from tulip_diffusion import from_clip
from tulip_diffusion.models.checkpoints import load_clip
from tulip_diffusion.tokenization import load_tokenizer

COLORS = ("red", "blue", "green", "yellow", "black", "white")
THINGS = ("boat", "tulip", "house", "dog", "lamp", "chair", "tree", "clock")
PLACES = ("left", "right", "top", "bottom", "centre")


def sentence(generator: random.Random) -> str:
    color, thing, place = generator.choice(COLORS), generator.choice(THINGS), generator.choice(PLACES)
    return f"A {color} {thing} stands near the {place} of the picture."


def make_caption(number: int, sentences: int) -> str:
    generator = random.Random(number)
    return " ".join(sentence(generator) for _ in range(sentences))


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(max_length=248)


def tiny_text_config(**changes) -> dict:
    return {
        "vocab_size": 49408,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "projection_dim": 16,
        "max_position_embeddings": 77,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
        "initializer_factor": 3.0,
    } | changes


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return CLIPTextModelWithProjection(CLIPTextConfig(**tiny_text_config())).eval()


def sdxl_single_file(path, big_width: int = 64):
    """Write a checkpoint as SDXL's are published, in half precision, and return its two text encoders."""
    from safetensors.torch import save_file

    from tulip_diffusion import export_open_clip

    torch.manual_seed(3)
    first = CLIPTextModelWithProjection(CLIPTextConfig(**tiny_text_config()))
    sizes = {"hidden_size": big_width, "num_attention_heads": 1, "projection_dim": big_width, "hidden_act": "gelu"}
    second = CLIPTextModelWithProjection(CLIPTextConfig(**tiny_text_config(**sizes)))
    for encoder in (first, second):
        encoder.half().float()  # what a half-precision file can hold
    state = {
        f"conditioner.embedders.0.transformer.text_model.{n}": v for n, v in first.text_model.state_dict().items()
    }
    state |= {f"conditioner.embedders.1.model.{name}": value for name, value in export_open_clip(second).items()}
    state["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(4, 4, 3, 3)
    state["first_stage_model.decoder.conv_in.weight"] = torch.zeros(4, 4, 3, 3)
    save_file({name: value.half().contiguous() for name, value in state.items()}, path)
    return {"text_encoder": first.eval(), "text_encoder_2": second.eval()}


@pytest.fixture
def clip():
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 16,
    }
    config = CLIPConfig(text_config=tiny_text_config(), vision_config=vision, projection_dim=16)
    return CLIPModel(config).eval()


@pytest.fixture
def load_towers(clip, tmp_path):
    """Loads `clip`'s towers, anew in each call."""
    clip.save_pretrained(tmp_path / "clip")
    return lambda: load_clip(tmp_path / "clip")


@pytest.fixture
def workplace(tmp_path, load_towers):
    """A CLIP, its untrained student, and 64 captioned images, as flags for the command line."""
    from_clip(load_towers().text_encoder).save_pretrained(tmp_path / "student")
    lines = []
    for number in range(64):
        color = (4 * number, 255 - 4 * number, 128)
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"caption": make_caption(number, 3 + number % 12), "image": f"{number}.png"}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return tmp_path
