"""Prompts of 248 tokens and more for Stable Diffusion XL.

Importing defines and registers classes and does nothing else.
"""

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
from .tokenization import load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "Conditioning",
    "StableDiffusionXLTulipAdapterPipeline",
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
    "StableDiffusionXLTulipPAGImg2ImgPipeline",
    "StableDiffusionXLTulipPAGInpaintPipeline",
    "StableDiffusionXLTulipPAGPipeline",
    "StableDiffusionXLTulipPipeline",
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
