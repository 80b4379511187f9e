"""diffusers' modular pipelines: a text encoder block for prompts of any length, to put in the stock one's place.

A block returns before the UNet runs, so it cannot hide pads for the time of a call as a pipeline does:
[`StableDiffusionXLTulipModularPipeline`] does, which `init_pipeline` makes of blocks that begin with ours.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ModularPipelineBlocks, StableDiffusionXLAutoBlocks, StableDiffusionXLModularPipeline
from diffusers.modular_pipelines.modular_pipeline import PipelineState
from diffusers.modular_pipelines.modular_pipeline_utils import ConfigSpec
from diffusers.modular_pipelines.stable_diffusion_xl.encoders import StableDiffusionXLTextEncoderStep
from torch import Tensor, nn

from ..files import write_text
from .attention import CURRENT, long_context_attention, visible_tokens
from .checks import check_components
from .conditioning import Conditioning, PromptEmbeds
from .prompts import Texts, embed_prompts

MODEL_NAME = "stable-diffusion-xl-tulip"  # in diffusers' table of modular pipelines, see registration.py
OPTIONS = [ConfigSpec(field.name, field.default) for field in dataclasses.fields(Conditioning)]


class SavedBlocks(ModularPipelineBlocks):
    """Blocks whose saved folder loads with `trust_remote_code=True` wherever this package is installed."""

    _requirements: ClassVar[dict[str, str]] = {"tulip_diffusion": ">=0.2.0"}

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write the module that the folder's `modular_config.json` names: diffusers writes the name alone."""
        cls = type(self)
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        module = Path(save_directory) / f"{cls.__module__.rpartition('.')[2]}.py"
        write_text(module, f"from tulip_diffusion import {cls.__name__}\n\n__all__ = [{cls.__name__!r}]\n")
        super().save_config(save_directory, push_to_hub, **kwargs)


class StableDiffusionXLTulipTextEncoderStep(SavedBlocks, StableDiffusionXLTextEncoderStep):
    """The stock block for prompts of any length; every option of [`Conditioning`] is a config of its pipeline.

    Example:

    ```python
    >>> from diffusers import StableDiffusionXLAutoBlocks
    >>> from tulip_diffusion import StableDiffusionXLTulipTextEncoderStep

    >>> blocks = StableDiffusionXLAutoBlocks()
    >>> blocks.sub_blocks["text_encoder"] = StableDiffusionXLTulipTextEncoderStep()
    >>> pipe = blocks.init_pipeline("stabilityai/stable-diffusion-xl-base-1.0")
    ```
    """

    model_name = MODEL_NAME

    @property
    def description(self) -> str:
        return "Text encoder step for prompts of any length, in which prompt and negative prompt get one length"

    @property
    def expected_configs(self) -> list[ConfigSpec]:
        return [*super().expected_configs, *OPTIONS]

    def __call__(self, components: Any, state: PipelineState) -> tuple[Any, PipelineState]:
        components, state = super().__call__(components, state)
        if (state.get("num_images_per_prompt") or 1) > 1:
            # diffusers' next step repeats pooled vectors as if they had tokens: (1, images, width) out of two
            # dimensions, which gives pictures each other's vectors. A token of their own keeps them in order.
            for name in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds"):
                if (pooled := state.get(name)) is not None:
                    state.set(name, pooled[:, None], "denoiser_input_fields")
        return components, state

    @staticmethod
    def encode_prompt(
        components: Any,
        prompt: str | list[str] | None,
        prompt_2: str | list[str] | None = None,
        device: torch.device | None = None,
        num_images_per_prompt: int = 1,
        prepare_unconditional_embeds: bool = True,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_2: str | list[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ):
        """As the stock method; [`TulipPromptMixin.encode_prompt`] says what the four tensors are.

        Raises:
            ValueError: components do not fit together, an option has a value that it cannot have, or the states need
                a mask and the pipeline is another than [`StableDiffusionXLTulipModularPipeline`].
        """
        check_components(components.components)
        options = Conditioning(**{option.name: components.config[option.name] for option in OPTIONS})
        device = device or components._execution_device
        texts = Texts(prompt, prompt_2, negative_prompt, negative_prompt_2)
        embeds = PromptEmbeds(
            prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds
        )
        guided = prepare_unconditional_embeds
        embeds = embed_prompts(components, texts, embeds, options, guided, device, lora_scale, clip_skip)
        check_masking(embeds, options)
        return StableDiffusionXLTextEncoderStep.encode_prompt(
            components,
            None,
            device=device,
            num_images_per_prompt=num_images_per_prompt,
            prepare_unconditional_embeds=prepare_unconditional_embeds,
            **vars(embeds),
        )


class StableDiffusionXLTulipAutoBlocks(SavedBlocks, StableDiffusionXLAutoBlocks):
    """diffusers' blocks for all tasks of Stable Diffusion XL, with our text encoder block."""

    block_classes: ClassVar[list] = [
        StableDiffusionXLTulipTextEncoderStep,
        *StableDiffusionXLAutoBlocks.block_classes[1:],
    ]


class StableDiffusionXLTulipModularPipeline(StableDiffusionXLModularPipeline):
    """The stock modular pipeline, which hides pads from cross-attention while its blocks run."""

    default_blocks_name = "StableDiffusionXLTulipAutoBlocks"

    def __call__(self, *args, **kwargs):
        models = [part for part in self.components.values() if isinstance(part, nn.Module)]
        with long_context_attention(models, getattr(self.config, "attention_scale", None)):
            return super().__call__(*args, **kwargs)


def check_masking(embeds: PromptEmbeds, options: Conditioning) -> None:
    """Refuse to draw without the mask or the scale that `embeds` need.

    Raises:
        ValueError: no [`long_context_attention`] is in force, and they need one.
    """
    states = [part for part in (embeds.prompt_embeds, embeds.negative_prompt_embeds) if part is not None]
    padded = not all(visible_tokens(part).all() for part in states)
    if CURRENT.get() is None and (padded or options.attention_scale is not None):
        raise ValueError(
            "Prompts of different lengths, or attention_scale, need StableDiffusionXLTulipModularPipeline. "
            "blocks.init_pipeline() makes it where StableDiffusionXLTulipTextEncoderStep is the first block."
        )
