"""Tiny towers and pipelines, and readers that understand the world perfectly."""

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from tests.pipelines import tiny_sdxl
from tulip_diffusion.evaluation.readers import Reader
from tulip_diffusion.models.checkpoints import ClipTowers, load_clip
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection, from_clip
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline
from tulip_diffusion.tokenization import load_tokenizer


@pytest.fixture(scope="session")
def tiny_reader(tmp_path_factory):
    """A [`Reader`] of an untrained CLIP, or of the TULIP made from it."""
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    text = tiny_sdxl.TEXT | {"initializer_factor": 3.0}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)

    def read(name: str) -> Reader:
        towers = load_clip(folder)
        if name == "tulip":
            towers = ClipTowers(from_clip(towers.text_encoder), *towers[1:])
        return Reader(towers, load_tokenizer())

    return read


@pytest.fixture(scope="session")
def tiny_pipeline():
    """A pipeline of untrained encoders: "clip", cut at 77 tokens, or "tulip" in both slots."""

    def load(name: str) -> StableDiffusionXLTulipPipeline:
        parts = tiny_sdxl.components(StableDiffusionXLTulipPipeline)
        if name == "tulip":
            parts["text_encoder"] = tiny_sdxl.tulip_encoder()
            parts["text_encoder_2"] = tiny_sdxl.tulip_encoder(1, TulipTextModelWithProjection)
        overflow = "windows" if name == "tulip" else "truncate"
        return tiny_sdxl.quiet(StableDiffusionXLTulipPipeline(**parts, overflow=overflow))

    return load
