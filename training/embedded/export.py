"""Gathers the trained parts into one folder in half precision: the layout of `tulip_diffusion/assets`."""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from tulip_diffusion.embedded import ENCODERS
from tulip_diffusion.models.finelip import FineLIPModel
from tulip_diffusion.models.text_encoder import TulipTextConfig, TulipTextModel, TulipTextModelWithProjection

from .unet import build_scheduler


def export_encoder(first: Path, second: Path, target: Path) -> None:
    """One pair of text encoders, in the forms that SDXL's two slots take, and the second one's own image tower."""
    tulip = AutoConfig.from_pretrained(first).model_type == TulipTextConfig.model_type
    models = (TulipTextModel, TulipTextModelWithProjection) if tulip else (CLIPTextModel, CLIPTextModelWithProjection)
    for model_class, source, slot in zip(models, (first, second), ("text_encoder", "text_encoder_2"), strict=True):
        config = AutoConfig.from_pretrained(source)
        if config.model_type == "clip":  # a whole CLIP: the text tower's own config has the projection's width
            config = CLIPTextModelWithProjection(config.text_config).config
        model_class.from_pretrained(source, config=config, dtype=torch.float16).save_pretrained(target / slot)
    tuned = second / "image_encoder"
    if tuned.is_dir():
        vision = CLIPVisionModelWithProjection.from_pretrained(tuned, dtype=torch.float16)
        vision.save_pretrained(target / "image_encoder_2")
    if (second / "finelip").is_dir():
        FineLIPModel.from_pretrained(second / "finelip", dtype=torch.float16).save_pretrained(target / "finelip_2")


def image_tower(folder: Path) -> CLIPVisionModelWithProjection:
    """The image half of a whole CLIP. The first slot's is left out: as in SDXL, its text tower has no projection."""
    clip = CLIPModel.from_pretrained(folder)
    vision = CLIPVisionModelWithProjection(clip.config.vision_config)
    vision.load_state_dict({name: weight for name, weight in clip.state_dict().items() if name.startswith("vis")})
    return vision


def main(arguments: list[str] | None = None) -> None:
    """Write the family's assets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/embedded"))
    parser.add_argument("--out", type=Path, default=Path("outputs/embedded/assets"))
    options = parser.parse_args(arguments)
    folder, out = options.folder, options.out
    AutoencoderKL.from_pretrained(folder / "vae").half().save_pretrained(out / "vae")
    UNet2DConditionModel.from_pretrained(folder / "unet").half().save_pretrained(out / "unet")
    build_scheduler().save_pretrained(out / "scheduler")
    for slot, suffix in (("l", ""), ("g", "_2")):
        source = folder / f"clip-{slot}"
        CLIPTokenizer.from_pretrained(source).save_pretrained(out / f"tokenizer{suffix}")
        heads = {k.removeprefix("text_heads."): v.half() for k, v in load_file(source / "heads.safetensors").items()}
        (out / "read_out").mkdir(exist_ok=True)
        save_file({k: v for k, v in heads.items() if "image_heads" not in k}, out / "read_out" / f"{slot}.safetensors")
    image_tower(folder / "clip-g").half().save_pretrained(out / "image_encoder_2")
    for name in (name for name, encoder in ENCODERS.items() if encoder.slots is None):
        first, second = folder / f"{name}-l", folder / f"{name}-g"
        if first.is_dir() and second.is_dir():
            export_encoder(first, second, out / "encoders" / name)
        else:
            print(f"{name} is not there yet: left out")
    total = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
