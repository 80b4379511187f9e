"""Tiny untrained towers, a family's folder made of them, and the commands as the command line parses them."""

import argparse

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel

from tests.pipelines import tiny_sdxl
from tulip_diffusion import evaluate
from tulip_diffusion.evaluation.drawing import open_pipeline
from tulip_diffusion.evaluation.encoders import Encoder
from tulip_diffusion.models.checkpoints import ClipTowers, load_clip, load_image_encoder
from tulip_diffusion.models.text_encoder import TulipTextModel, TulipTextModelWithProjection, from_clip
from tulip_diffusion.tokenization import load_tokenizer

VISION = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A whole CLIP as transformers saves it."""
    torch.manual_seed(0)
    vision = VISION | {"image_size": 32, "patch_size": 16}
    text = tiny_sdxl.TEXT | {"initializer_factor": 3.0}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(clip_folder):
    """An [`Encoder`] of the CLIP in that folder, or of the TULIP made from it."""

    def load(name: str) -> Encoder:
        towers = load_clip(clip_folder)
        if name == "tulip":
            towers = ClipTowers(from_clip(towers.text_encoder), *towers[1:])
        return Encoder(name, towers, load_tokenizer())

    return load


@pytest.fixture(scope="session")
def family(tmp_path_factory, clip_folder):
    """The folder of an embedded family with the encoders "clip" and "tulip"; its pictures have 64 × 64 pixels."""
    folder = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    up = ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(**tiny_sdxl.BLOCKS, in_channels=4, out_channels=4, sample_size=32, up_block_types=up)
    for name, part in (("unet", unet), ("vae", tiny_sdxl.vae()), ("scheduler", DDIMScheduler())):
        part.save_pretrained(folder / name)
    load_tokenizer().save_pretrained(folder / "tokenizer")
    load_tokenizer(pad_token="!").save_pretrained(folder / "tokenizer_2")
    load_image_encoder(clip_folder).save_pretrained(folder / "image_encoder_2")
    encoders = {
        "clip": (tiny_sdxl.text_encoder(), load_clip(clip_folder).text_encoder),
        "tulip": (
            tiny_sdxl.tulip_encoder(0, TulipTextModel),
            tiny_sdxl.tulip_encoder(1, TulipTextModelWithProjection),
        ),
    }
    for name, slots in encoders.items():
        for slot, encoder in zip(("text_encoder", "text_encoder_2"), slots, strict=True):
            encoder.save_pretrained(folder / "encoders" / name / slot)
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(family):
    """The family's pipeline with one of its encoders: "clip", cut at 77 tokens, or "tulip" in both slots."""
    return lambda name: open_pipeline(name, argparse.Namespace(assets=family, device="cpu"))


@pytest.fixture
def parsers():
    """The parser of every `evaluate` command, by its name."""
    parser = argparse.ArgumentParser(prog="tulip-diffusion evaluate")
    subparsers = parser.add_subparsers()
    evaluate.register(subparsers)
    return subparsers.choices


@pytest.fixture
def command(parsers, family, tmp_path):
    """Run `evaluate NAME …` on the tiny family; returns the folder of the results."""

    def run(name: str, *line: object, out: str = "out"):
        words = [*map(str, line), "--assets", str(family), "--device", "cpu", "--out", str(tmp_path / out)]
        options = parsers[name].parse_args(words)
        options.run(options)
        return tmp_path / out

    return run
