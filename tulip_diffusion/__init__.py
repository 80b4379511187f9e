"""Prompts of 248 tokens and more for Stable Diffusion XL.

Importing is light: a public name is imported when it is first used. transformers and diffusers find our classes by
name all the same, see `tulip_diffusion.registration`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import registration

if TYPE_CHECKING:
    from .embedded import load_embedded_pipeline
    from .models.checkpoints import export_open_clip, load_clip, load_image_encoder, load_text_encoder
    from .models.positions import stretch_position_embeddings
    from .models.text_encoder import TulipTextConfig, TulipTextModel, TulipTextModelWithProjection, from_clip
    from .pipelines import (
        Conditioning,
        StableDiffusionXLTulipAdapterPipeline,
        StableDiffusionXLTulipControlNetImg2ImgPipeline,
        StableDiffusionXLTulipControlNetInpaintPipeline,
        StableDiffusionXLTulipControlNetPAGImg2ImgPipeline,
        StableDiffusionXLTulipControlNetPAGPipeline,
        StableDiffusionXLTulipControlNetPipeline,
        StableDiffusionXLTulipControlNetUnionImg2ImgPipeline,
        StableDiffusionXLTulipControlNetUnionInpaintPipeline,
        StableDiffusionXLTulipControlNetUnionPipeline,
        StableDiffusionXLTulipImg2ImgPipeline,
        StableDiffusionXLTulipInpaintPipeline,
        StableDiffusionXLTulipPAGImg2ImgPipeline,
        StableDiffusionXLTulipPAGInpaintPipeline,
        StableDiffusionXLTulipPAGPipeline,
        StableDiffusionXLTulipPipeline,
        tulip_pipeline,
    )
    from .pipelines.modular import (
        StableDiffusionXLTulipAutoBlocks,
        StableDiffusionXLTulipModularPipeline,
        StableDiffusionXLTulipTextEncoderStep,
    )
    from .tokenization import load_tokenizer

__version__ = "0.2.0"

__all__ = [
    "Conditioning",
    "StableDiffusionXLTulipAdapterPipeline",
    "StableDiffusionXLTulipAutoBlocks",
    "StableDiffusionXLTulipControlNetImg2ImgPipeline",
    "StableDiffusionXLTulipControlNetInpaintPipeline",
    "StableDiffusionXLTulipControlNetPAGImg2ImgPipeline",
    "StableDiffusionXLTulipControlNetPAGPipeline",
    "StableDiffusionXLTulipControlNetPipeline",
    "StableDiffusionXLTulipControlNetUnionImg2ImgPipeline",
    "StableDiffusionXLTulipControlNetUnionInpaintPipeline",
    "StableDiffusionXLTulipControlNetUnionPipeline",
    "StableDiffusionXLTulipImg2ImgPipeline",
    "StableDiffusionXLTulipInpaintPipeline",
    "StableDiffusionXLTulipModularPipeline",
    "StableDiffusionXLTulipPAGImg2ImgPipeline",
    "StableDiffusionXLTulipPAGInpaintPipeline",
    "StableDiffusionXLTulipPAGPipeline",
    "StableDiffusionXLTulipPipeline",
    "StableDiffusionXLTulipTextEncoderStep",
    "TulipTextConfig",
    "TulipTextModel",
    "TulipTextModelWithProjection",
    "export_open_clip",
    "from_clip",
    "load_clip",
    "load_embedded_pipeline",
    "load_image_encoder",
    "load_text_encoder",
    "load_tokenizer",
    "stretch_position_embeddings",
    "tulip_pipeline",
]

# Where a public name is defined; those that are not named here, the pipelines, in `.pipelines`.
_HOMES = {
    "StableDiffusionXLTulipAutoBlocks": ".pipelines.modular",
    "StableDiffusionXLTulipModularPipeline": ".pipelines.modular",
    "StableDiffusionXLTulipTextEncoderStep": ".pipelines.modular",
    "TulipTextConfig": ".models.text_encoder",
    "TulipTextModel": ".models.text_encoder",
    "TulipTextModelWithProjection": ".models.text_encoder",
    "export_open_clip": ".models.checkpoints",
    "from_clip": ".models.text_encoder",
    "load_clip": ".models.checkpoints",
    "load_embedded_pipeline": ".embedded",
    "load_image_encoder": ".models.checkpoints",
    "load_text_encoder": ".models.checkpoints",
    "load_tokenizer": ".tokenization",
    "stretch_position_embeddings": ".models.positions",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, ".pipelines"), __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


registration.register()
