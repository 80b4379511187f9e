"""SDXL pipelines that read prompts of any length."""

from .conditioning import Conditioning
from .mixin import TulipPromptMixin
from .tasks import (
    PIPELINES,
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
    add_tasks,
    tulip_pipeline,
)

__all__ = [
    "PIPELINES",
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
    "TulipPromptMixin",
    "add_tasks",
    "tulip_pipeline",
]
