"""Other tools' ways to give SDXL a long prompt, on the embedded family, so that tables hold them beside ours."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput

from tulip_diffusion.embedded import load_embedded_pipeline


class CompelPipeline(StableDiffusionXLPipeline):
    """diffusers' own SDXL pipeline, its prompts encoded by compel (2.5) as its documentation says for SDXL.

    Compel cuts a long prompt at sentences into windows of 77 tokens. Each prompt is encoded alone, and drawn beside
    those of as many windows: in a batch compel pads the shorter ones with windows of the empty prompt, which the UNet
    sees. Without a negative prompt the unconditional branch is zeros, as SDXL has it.
    """

    def __call__(
        self,
        prompt: Sequence[str],
        negative_prompt: str | None = None,
        generator: Sequence[torch.Generator] = (),
        **call: Any,
    ) -> StableDiffusionXLPipelineOutput:
        """One picture for each of `prompt` from its own `generator`, (prompts, height, width, 3) in 0..1."""
        from compel import CompelForSDXL

        encode = CompelForSDXL(self, device=self.device.type)
        told = [encode(text, negative_prompt=negative_prompt) for text in prompt]
        alike: dict[int, list[int]] = {}  # prompts of as many windows
        for row, one in enumerate(told):
            alike.setdefault(one.embeds.shape[1], []).append(row)
        pictures: dict[int, np.ndarray] = {}
        for rows in alike.values():
            negative = {}
            if negative_prompt is not None:
                negative["negative_prompt_embeds"] = torch.cat([told[row].negative_embeds for row in rows])
                pooled = torch.cat([told[row].negative_pooled_embeds for row in rows])
                negative["negative_pooled_prompt_embeds"] = pooled
            drawn = super().__call__(
                prompt_embeds=torch.cat([told[row].embeds for row in rows]),
                pooled_prompt_embeds=torch.cat([told[row].pooled_embeds for row in rows]),
                **negative,
                generator=[generator[row] for row in rows],
                **call,
            )
            pictures |= dict(zip(rows, drawn.images, strict=True))
        return StableDiffusionXLPipelineOutput(np.stack([pictures[row] for row in range(len(prompt))]))


def load_compel(assets: Path) -> CompelPipeline:
    """The pipeline with the embedded family's CLIP, VAE and UNet."""
    clip = load_embedded_pipeline("clip", assets)
    return CompelPipeline(**clip.components, force_zeros_for_empty_prompt=True, add_watermarker=False)
