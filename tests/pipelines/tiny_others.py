"""Tiny real pipelines of the other families that read CLIP: real classes, random weights, the real CLIP vocabulary."""

from collections.abc import Callable
from dataclasses import dataclass, field

import diffusers
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5Modulation
from transformers import (
    LlamaConfig,
    LlamaModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from tests.pipelines import tiny_sdxl
from tulip_diffusion import TulipTextModelWithProjection, load_tokenizer

WIDTH = tiny_sdxl.TEXT["hidden_size"]
VOCABULARY = tiny_sdxl.TEXT["vocab_size"]  # the language models read CLIP's ids here


@dataclass(frozen=True)
class Family:
    """One family: its class, all parts but CLIP's, its CLIP slots, and the arguments of a short call."""

    pipeline: type
    parts: Callable[[], dict]
    slots: dict[str, str] = field(default_factory=lambda: {"text_encoder": "tokenizer"})
    projected: bool = False
    call: dict = field(default_factory=dict)
    output: str = "images"

    def clip(self) -> dict:
        """Stock CLIPs and tokenizers of 77 tokens."""
        build = tiny_sdxl.text_encoder_2 if self.projected else tiny_sdxl.text_encoder
        return self.filled(lambda seed: build(seed), 77)

    def tulip(self) -> dict:
        """TULIP encoders and tokenizers of 248 tokens."""
        projected = {"model_class": TulipTextModelWithProjection} if self.projected else {}
        return self.filled(lambda seed: tiny_sdxl.tulip_encoder(seed, **projected), 248)

    def filled(self, build: Callable, length: int) -> dict:
        encoders = {encoder: build(seed) for seed, encoder in enumerate(self.slots)}
        return encoders | {tokenizer: load_tokenizer(max_length=length) for tokenizer in self.slots.values()}

    def build(self, clips: dict, pipeline: type | None = None):
        torch.manual_seed(0)
        pipe = (pipeline or self.pipeline)(**self.parts(), **clips)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        return tiny_sdxl.quiet(pipe)

    def draw(self, pipe, prompt: str, **arguments) -> torch.Tensor:
        """The picture, the frames, or the prior's embedding of a picture."""
        generator = torch.Generator().manual_seed(7)
        arguments = {"num_inference_steps": 2, "output_type": "pt", "generator": generator, **self.call, **arguments}
        return pipe(prompt, **arguments)[self.output]


def unet(**config) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        cross_attention_dim=WIDTH,
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **config,
    )


def vae(channels: int = 4, **config) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=2, latent_channels=channels, **config)


def stable_diffusion(**config) -> dict:
    return {
        "unet": unet(**config),
        "vae": vae(),
        "scheduler": diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def animatediff() -> dict:
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    )
    parts = {name: part for name, part in stable_diffusion().items() if "safety" not in name}
    return parts | {"motion_adapter": adapter}


def stable_diffusion_3() -> dict:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=2 * WIDTH,
        pooled_projection_dim=2 * WIDTH,
    )
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.06), "scheduler": FlowMatchEulerDiscreteScheduler()}
    return parts | {"text_encoder_3": None, "tokenizer_3": None}  # as many run it


def flux() -> dict:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    t5 = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return {
        "transformer": transformer,
        "vae": vae(1, shift_factor=0.06),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder_2": T5EncoderModel(t5),
        "tokenizer_2": load_tokenizer(),
    }


def stable_cascade() -> dict:
    prior = diffusers.StableCascadeUNet(
        conditioning_dim=32,
        block_out_channels=(32, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        switch_level=(False,),
        clip_image_in_channels=32,
        clip_text_in_channels=WIDTH,
        clip_text_pooled_in_channels=WIDTH,
    )
    return {"prior": prior, "scheduler": diffusers.DDPMWuerstchenScheduler()}


def video_vae(channels: int) -> diffusers.AutoencoderKLHunyuanVideo:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=channels,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )


def hunyuan_video() -> dict:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=16,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    llama = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    return {
        "transformer": transformer,
        "vae": video_vae(4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder": LlamaModel(llama),
        "tokenizer": load_tokenizer(),
    }


def kandinsky_5(vae: torch.nn.Module) -> dict:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=WIDTH,
        time_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(1, 1, 2),
    )
    for module in transformer.modules():
        if isinstance(module, Kandinsky5Modulation):  # fresh ones are zero: no text would matter
            torch.nn.init.normal_(module.out_layer.weight, std=0.1)
    sizes = {"hidden_size": 32, "intermediate_size": 32}
    rope = {"mrope_section": [2, 2, 4], "rope_type": "default", "rope_theta": 10000.0}
    qwen = Qwen2_5_VLConfig(
        text_config={
            **sizes,
            "vocab_size": VOCABULARY,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": rope,
        },
        vision_config={**sizes, "depth": 1, "num_heads": 2, "out_hidden_size": 32},
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(qwen),
        "tokenizer": load_tokenizer(max_length=1000),
    }


SECOND = {"text_encoder_2": "tokenizer_2"}
VIDEO = {"height": 16, "width": 16, "num_frames": 5}
FAMILIES = {
    "Stable Diffusion 1.5": Family(
        diffusers.StableDiffusionPipeline, stable_diffusion, call={"height": 16, "width": 16}
    ),
    "Stable Diffusion 2": Family(
        diffusers.StableDiffusionPipeline,
        lambda: stable_diffusion(use_linear_projection=True, attention_head_dim=(2, 4)),
        call={"height": 16, "width": 16},
    ),
    "AnimateDiff": Family(
        diffusers.AnimateDiffPipeline,
        animatediff,
        call={"height": 16, "width": 16, "num_frames": 2},
        output="frames",
    ),
    "Stable Diffusion 3": Family(
        diffusers.StableDiffusion3Pipeline,
        stable_diffusion_3,
        {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"},
        projected=True,
        call={"height": 16, "width": 16},
    ),
    "FLUX.1": Family(diffusers.FluxPipeline, flux, call={"height": 16, "width": 16, "max_sequence_length": 16}),
    "Stable Cascade": Family(
        diffusers.StableCascadePriorPipeline,
        stable_cascade,
        projected=True,
        call={"height": 64, "width": 64},
        output="image_embeddings",
    ),
    "HunyuanVideo": Family(
        diffusers.HunyuanVideoPipeline,
        hunyuan_video,
        SECOND,
        call={**VIDEO, "max_sequence_length": 16, "prompt_template": {"template": "{}", "crop_start": 0}},
        output="frames",
    ),
    "Kandinsky 5 pictures": Family(
        diffusers.Kandinsky5T2IPipeline,
        lambda: kandinsky_5(vae()),
        SECOND,
        call={"num_inference_steps": 1, "guidance_scale": 1.0, "max_sequence_length": 32},  # of 128 × 128 at least
        output="image",
    ),
    "Kandinsky 5 videos": Family(
        diffusers.Kandinsky5T2VPipeline,
        lambda: kandinsky_5(video_vae(4)),
        SECOND,
        call={**VIDEO, "height": 32, "width": 32, "max_sequence_length": 32},
        output="frames",
    ),
}
