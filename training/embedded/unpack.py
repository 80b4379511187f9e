"""Turns a family's assets back into the folders that the parts of its training read, to go on from what ships."""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer

from tulip_diffusion.embedded import ASSETS
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection

from .clip import ClipWithHeads, build_clip

SUFFIXES = {"l": "", "g": "_2"}


def unpack_clip(assets: Path, slot: str, target: Path) -> CLIPModel:
    """A whole CLIP with its read-out heads.

    Where the assets lack a part (the first slot's projection and image tower, the logit scale), it is a new model's.
    """
    torch.manual_seed(0)
    suffix = SUFFIXES[slot]
    tokenizer = CLIPTokenizer.from_pretrained(assets / f"tokenizer{suffix}")
    model = ClipWithHeads(build_clip(slot, tokenizer))
    weights = load_file(assets / "encoders" / "clip" / f"text_encoder{suffix}" / "model.safetensors")
    if slot == "g":
        weights |= load_file(assets / "image_encoder_2" / "model.safetensors")
    heads = load_file(assets / "read_out" / f"{slot}.safetensors")
    named = {f"clip.{name}": weight for name, weight in weights.items()}
    named |= {f"text_heads.{name}": weight for name, weight in heads.items()}
    _, unexpected = model.load_state_dict({name: weight.float() for name, weight in named.items()}, strict=False)
    assert not unexpected, unexpected
    model.clip.save_pretrained(target)
    tokenizer.save_pretrained(target)
    rest = {name: weight for name, weight in model.state_dict().items() if not name.startswith("clip.")}
    save_file(rest, target / "heads.safetensors")
    return model.clip


def unpack_student(assets: Path, slot: str, teacher: CLIPModel, target: Path) -> None:
    """The TULIP encoder of one slot, with its teacher's projection where it ships without one."""
    source = assets / "encoders" / "tulip" / f"text_encoder{SUFFIXES[slot]}"
    student = TulipTextModelWithProjection.from_pretrained(source, dtype=torch.float32)
    if slot == "l":
        student.text_projection.load_state_dict(teacher.text_projection.state_dict())
    student.save_pretrained(target)


def main(arguments: list[str] | None = None) -> None:
    """Unpack VAE, UNet, both CLIPs and both TULIP encoders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path, default=ASSETS)
    parser.add_argument("--out", type=Path, default=Path("outputs/embedded"), help="folder of the family")
    options = parser.parse_args(arguments)
    AutoencoderKL.from_pretrained(options.assets / "vae").float().save_pretrained(options.out / "vae")
    UNet2DConditionModel.from_pretrained(options.assets / "unet").float().save_pretrained(options.out / "unet")
    for slot in SUFFIXES:
        clip = unpack_clip(options.assets, slot, options.out / f"clip-{slot}")
        unpack_student(options.assets, slot, clip, options.out / f"tulip-{slot}")


if __name__ == "__main__":
    main()
