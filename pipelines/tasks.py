"""The fifteen SDXL pipelines of diffusers that share `encode_prompt`, each with long prompts."""

import functools
import inspect
from types import ModuleType

from diffusers import (
    DiffusionPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPAGImg2ImgPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionInpaintPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPAGImg2ImgPipeline,
    StableDiffusionXLPAGInpaintPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
)

from .mixin import TulipPromptMixin
from .pooled import pooled_prompts


class StableDiffusionXLTulipPipeline(TulipPromptMixin, StableDiffusionXLPipeline):
    """Text to image, from prompts of any length."""


class StableDiffusionXLTulipImg2ImgPipeline(TulipPromptMixin, StableDiffusionXLImg2ImgPipeline):
    """Image to image, the refiner included, from prompts of any length."""


class StableDiffusionXLTulipInpaintPipeline(TulipPromptMixin, StableDiffusionXLInpaintPipeline):
    """Inpainting, from prompts of any length."""


class StableDiffusionXLTulipAdapterPipeline(TulipPromptMixin, StableDiffusionXLAdapterPipeline):
    """Text to image with a T2I-Adapter, from prompts of any length."""


class StableDiffusionXLTulipControlNetPipeline(TulipPromptMixin, StableDiffusionXLControlNetPipeline):
    """Text to image with ControlNets, from prompts of any length."""


class StableDiffusionXLTulipControlNetImg2ImgPipeline(TulipPromptMixin, StableDiffusionXLControlNetImg2ImgPipeline):
    """Image to image with ControlNets, from prompts of any length."""


class StableDiffusionXLTulipControlNetInpaintPipeline(TulipPromptMixin, StableDiffusionXLControlNetInpaintPipeline):
    """Inpainting with ControlNets, from prompts of any length."""


class StableDiffusionXLTulipControlNetUnionPipeline(TulipPromptMixin, StableDiffusionXLControlNetUnionPipeline):
    """Text to image with a ControlNet Union, from prompts of any length."""


class StableDiffusionXLTulipControlNetUnionImg2ImgPipeline(
    TulipPromptMixin, StableDiffusionXLControlNetUnionImg2ImgPipeline
):
    """Image to image with a ControlNet Union, from prompts of any length."""


class StableDiffusionXLTulipControlNetUnionInpaintPipeline(
    TulipPromptMixin, StableDiffusionXLControlNetUnionInpaintPipeline
):
    """Inpainting with a ControlNet Union, from prompts of any length."""


class StableDiffusionXLTulipPAGPipeline(TulipPromptMixin, StableDiffusionXLPAGPipeline):
    """Text to image with perturbed-attention guidance, from prompts of any length."""


class StableDiffusionXLTulipPAGImg2ImgPipeline(TulipPromptMixin, StableDiffusionXLPAGImg2ImgPipeline):
    """Image to image with perturbed-attention guidance, from prompts of any length."""


class StableDiffusionXLTulipPAGInpaintPipeline(TulipPromptMixin, StableDiffusionXLPAGInpaintPipeline):
    """Inpainting with perturbed-attention guidance, from prompts of any length."""


class StableDiffusionXLTulipControlNetPAGPipeline(TulipPromptMixin, StableDiffusionXLControlNetPAGPipeline):
    """Text to image with ControlNets and perturbed-attention guidance, from prompts of any length."""


class StableDiffusionXLTulipControlNetPAGImg2ImgPipeline(
    TulipPromptMixin, StableDiffusionXLControlNetPAGImg2ImgPipeline
):
    """Image to image with ControlNets and perturbed-attention guidance, from prompts of any length."""


PIPELINES: tuple[type[DiffusionPipeline], ...] = (
    StableDiffusionXLTulipPipeline,
    StableDiffusionXLTulipImg2ImgPipeline,
    StableDiffusionXLTulipInpaintPipeline,
    StableDiffusionXLTulipAdapterPipeline,
    StableDiffusionXLTulipControlNetPipeline,
    StableDiffusionXLTulipControlNetImg2ImgPipeline,
    StableDiffusionXLTulipControlNetInpaintPipeline,
    StableDiffusionXLTulipControlNetUnionPipeline,
    StableDiffusionXLTulipControlNetUnionImg2ImgPipeline,
    StableDiffusionXLTulipControlNetUnionInpaintPipeline,
    StableDiffusionXLTulipPAGPipeline,
    StableDiffusionXLTulipPAGImg2ImgPipeline,
    StableDiffusionXLTulipPAGInpaintPipeline,
    StableDiffusionXLTulipControlNetPAGPipeline,
    StableDiffusionXLTulipControlNetPAGImg2ImgPipeline,
)


@functools.cache
def tulip_pipeline(stock: type[DiffusionPipeline]) -> type[DiffusionPipeline]:
    """The class that gives long prompts to `stock`, a class of diffusers or anyone's own SDXL pipeline class.

    Those of HunyuanVideo and Kandinsky 5 become classes of the same name, whose saved folders any diffusers loads.

    Raises:
        TypeError: `stock` is no pipeline class, or its `encode_prompt` takes other arguments than SDXL's.
    """
    for known in PIPELINES:
        if known.__bases__ == (TulipPromptMixin, stock):
            return known
    if mixin := pooled_prompts(stock):
        return type(stock.__name__, (mixin, stock), {"__module__": stock.__module__})
    encode_prompt = getattr(stock, "encode_prompt", None)
    expected = inspect.signature(StableDiffusionXLPipeline.encode_prompt).parameters
    if encode_prompt is None or inspect.signature(encode_prompt).parameters.keys() != expected.keys():
        raise TypeError(
            f"tulip_pipeline takes a class whose encode_prompt is StableDiffusionXLPipeline's, got {stock!r}. "
            "For others, encode with StableDiffusionXLTulipPipeline.encode_prompt and pass prompt_embeds."
        )
    name = stock.__name__.replace("StableDiffusionXL", "")
    return type(f"StableDiffusionXLTulip{name}", (TulipPromptMixin, stock), {"__module__": stock.__module__})


def add_tasks(auto_pipeline: ModuleType) -> None:
    """Let the AutoPipelines of `diffusers.pipelines.auto_pipeline` find our classes."""
    for mapping in (
        auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING,
        auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
    ):
        for pipeline in PIPELINES:
            stock = pipeline.__bases__[1]
            if key := next((key for key, known in mapping.items() if known is stock), None):
                mapping[f"{key}-tulip"] = pipeline
