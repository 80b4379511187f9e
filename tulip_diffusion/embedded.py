"""The embedded model family: real classes, small sizes, no download.

SDXL's architecture on pictures of 64 × 64 pixels, trained from scratch on the world of `tulip_diffusion.scenes` by
`training/runs/embedded.sh`. Its UNet never saw more than 77 tokens; the encoders change, the UNet stays. The package
ships one, in `assets/`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tulip_diffusion.models.checkpoints import ClipTowers
    from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class EmbeddedEncoder:
    """One way to fill the family's two slots.

    Args:
        name: what commands and `load_embedded_pipeline` call it.
        title: its name in print.
        colour: of its curves and columns, for a page or a plot.
        overflow: what happens to a prompt longer than the encoders' tables, see `Conditioning`.
        description: what it is, in a sentence.
        slots: whose text encoder stands in which slot, its own in both by default.
    """

    name: str
    title: str
    colour: str
    overflow: str
    description: str
    slots: tuple[str, str] | None = None


# A baseline shows what its own positions hold, so it truncates.
ENCODERS = {
    encoder.name: encoder
    for encoder in (
        EmbeddedEncoder(
            "tulip", "TULIP", "#b0205a", "windows", "RoPE in both slots, distilled on pooled and penultimate states"
        ),
        EmbeddedEncoder(
            "tulip-l",
            "TULIP, first slot",
            "#d7679a",
            "windows",
            "that in the first slot only, as the paper swaps it; the second keeps CLIP, in windows",
            ("tulip", "clip"),
        ),
        EmbeddedEncoder(
            "clip",
            "CLIP",
            "#222831",
            "truncate",
            "the towers that the UNet was trained with: 77 tokens, the rest is cut off",
        ),
        EmbeddedEncoder(
            "clip-windows",
            "CLIP in windows",
            "#787c84",
            "windows",
            "the same towers, a long prompt in windows of whole sentences",
            ("clip", "clip"),
        ),
        EmbeddedEncoder(
            "longclip",
            "Long-CLIP",
            "#ce6e00",
            "truncate",
            "the towers with stretched positions, trained as Long-CLIP",
        ),
        EmbeddedEncoder(
            "finelip",
            "FineLIP",
            "#2f7d4f",
            "truncate",
            "the towers with stretched positions, trained as FineLIP: refined tokens aligned one by one",
        ),
        EmbeddedEncoder(
            "clip-finetuned",
            "CLIP, fine-tuned",
            "#4a6fa5",
            "truncate",
            "the towers with stretched positions, trained by plain contrast",
        ),
        EmbeddedEncoder(
            "tulip-paper",
            "TULIP as published",
            "#7b4fa3",
            "windows",
            "RoPE in both slots, distilled on the pooled state only as published, then expanded",
        ),
    )
}
COMPARED = ("clip", "longclip", "tulip")  # side by side, where nobody names encoders


def load_embedded_pipeline(
    encoder: str = "tulip", assets: str | Path = ASSETS, **components: Any
) -> "StableDiffusionXLTulipPipeline":
    """A pipeline of the embedded family, ready to call, from the package's own files.

    `encoder` is a key of `ENCODERS`; all of them share VAE, UNet and scheduler. Those that you already hold can be
    passed as `components`, as in diffusers: `unet=pipe.unet`.

    Raises:
        ValueError: no such encoder.
        FileNotFoundError: `assets` lacks the encoder's files.
    """
    root = Path(assets)
    first, second = slots_of(root / "encoders", checked(encoder, root))

    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import AutoModelForTextEncoding, CLIPTokenizer

    from tulip_diffusion.models.checkpoints import load_text_encoder
    from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline

    exact = {"dtype": torch.float32}  # stored in half precision, run in full: half is slow on a CPU
    loaded = {
        "vae": lambda: AutoencoderKL.from_pretrained(root / "vae", **exact),
        "unet": lambda: UNet2DConditionModel.from_pretrained(root / "unet", **exact),
        "scheduler": lambda: DDIMScheduler.from_pretrained(root / "scheduler"),
        "text_encoder": lambda: AutoModelForTextEncoding.from_pretrained(first, dtype=torch.float32),
        "text_encoder_2": lambda: load_text_encoder(second),
        "tokenizer": lambda: CLIPTokenizer.from_pretrained(root / "tokenizer"),
        "tokenizer_2": lambda: CLIPTokenizer.from_pretrained(root / "tokenizer_2"),
    }
    return StableDiffusionXLTulipPipeline(
        **{name: load() for name, load in loaded.items() if name not in components},
        **components,
        add_watermarker=False,
        overflow=ENCODERS[encoder].overflow,
    )


def load_embedded_towers(encoder: str = "tulip", assets: str | Path = ASSETS) -> "ClipTowers":
    """Text and image tower of the second slot, for retrieval; the first slot's has no projection, as in SDXL.

    The image tower is the one that the encoder was tuned with, CLIP's own for those that were not.

    Raises:
        ValueError: no such encoder.
        FileNotFoundError: `assets` lacks the encoder's files.
    """
    from tulip_diffusion.models.checkpoints import ClipTowers, load_image_encoder, load_text_encoder

    root = Path(assets)
    _, text = slots_of(root / "encoders", checked(encoder, root))
    tuned = text.parent / "image_encoder_2"
    image_encoder = load_image_encoder(tuned if tuned.is_dir() else root / "image_encoder_2")
    return ClipTowers(load_text_encoder(text), image_encoder, None)


def checked(encoder: str, root: Path) -> str:
    """`encoder`, where it is known and its files are there."""
    if encoder not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, got {encoder!r}.")
    for folder in slots_of(root / "encoders", encoder):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is missing. Reinstall the package, or pass the folder of a family that "
                "training/runs/embedded.sh has trained as `assets` (--assets)."
            )
    return encoder


def slots_of(folder: Path, encoder: str) -> tuple[Path, Path]:
    """Folders of the encoders in both slots."""
    first, second = ENCODERS[encoder].slots or (encoder, encoder)
    return folder / first / "text_encoder", folder / second / "text_encoder_2"
