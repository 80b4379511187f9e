"""Tiny real components for every SDXL task: real classes, random weights, the real CLIP vocabulary."""

import inspect

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    ControlNetUnionModel,
    EulerDiscreteScheduler,
    T2IAdapter,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tulip_diffusion import TulipTextConfig, TulipTextModel
from tulip_diffusion.tokenization import load_tokenizer

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "vocab_size": 49408,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
    "attention_dropout": 0.0,
}
BLOCKS = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 1),
    "projection_class_embeddings_input_dim": 80,
    "cross_attention_dim": 64,
}


def text_encoder(seed: int = 0, **config) -> CLIPTextModel:
    torch.manual_seed(seed)
    return CLIPTextModel(CLIPTextConfig(**TEXT, **config)).eval()


def text_encoder_2(seed: int = 1, **config) -> CLIPTextModelWithProjection:
    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, **config)).eval()


def tulip_encoder(seed: int = 0, model_class=TulipTextModel, **config):
    torch.manual_seed(seed)
    ntk = {"rope_type": "ntk", "rope_theta": 10000.0}
    return model_class(TulipTextConfig(**TEXT, rope_parameters=ntk, **config)).eval()


def unet(states: int = 64, pooled: int = 32) -> UNet2DConditionModel:
    """One for text states and pooled states of these widths."""
    torch.manual_seed(0)
    up = ("CrossAttnUpBlock2D", "UpBlock2D")
    widths = {"cross_attention_dim": states, "projection_class_embeddings_input_dim": pooled + 6 * 8}
    sizes = {**BLOCKS, **widths, "in_channels": 4, "out_channels": 4, "sample_size": 8}
    return UNet2DConditionModel(**sizes, up_block_types=up).eval()


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=128,
    ).eval()


def wake(controlnet):
    """A fresh ControlNet adds nothing, its last convolutions being zero: give them weights."""
    torch.manual_seed(2)
    for name, parameter in controlnet.named_parameters():
        if "controlnet_" in name and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.1)
    return controlnet.eval()


def components(pipeline_class: type, **overrides) -> dict:
    """Components for `pipeline_class`, a stock or Tulip class, with a stock CLIP-L in the first slot."""
    parts = {
        "vae": vae(),
        "text_encoder": text_encoder(),
        "text_encoder_2": text_encoder_2(),
        "tokenizer": load_tokenizer(),
        "tokenizer_2": load_tokenizer(pad_token="!"),
        "unet": unet(),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
        ),
    }
    if "Union" in pipeline_class.__name__:
        torch.manual_seed(2)
        channels = {"num_trans_channel": 32, "num_proj_channel": 32, "conditioning_embedding_out_channels": (16, 32)}
        parts["controlnet"] = wake(ControlNetUnionModel(**BLOCKS, **channels))
    elif "ControlNet" in pipeline_class.__name__:
        torch.manual_seed(2)
        parts["controlnet"] = wake(ControlNetModel(**BLOCKS, conditioning_embedding_out_channels=(16, 32)))
    elif "Adapter" in pipeline_class.__name__:
        torch.manual_seed(2)
        parts["adapter"] = T2IAdapter(
            in_channels=3, channels=[32, 64], num_res_blocks=2, downscale_factor=4, adapter_type="full_adapter_xl"
        ).eval()
    parts.update(overrides)
    accepted = inspect.signature(pipeline_class.__init__).parameters
    return {name: part for name, part in parts.items() if name in accepted}


def picture(seed: int, size: int = 32) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (size, size, 3), dtype=np.uint8))


def inputs(pipeline_class: type, prompt, **overrides) -> dict:
    """Arguments of a short run of `pipeline_class` on `prompt`, a text, a list or None; the same noise for each."""
    batch = len(prompt) if isinstance(prompt, list) else 1
    arguments = {
        "prompt": prompt,
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
        "output_type": "np",
        "generator": [torch.Generator().manual_seed(7) for _ in range(batch)],
    }
    name = pipeline_class.__name__
    control = [picture(3)] * batch if batch > 1 else picture(3)
    start = [picture(4)] * batch if batch > 1 else picture(4)
    if "Img2Img" in name or "Inpaint" in name:
        arguments |= {"image": start, "strength": 0.9}
    if "Inpaint" in name:
        mask = Image.fromarray(np.uint8(np.tri(32) * 255))
        arguments["mask_image"] = [mask] * batch if batch > 1 else mask
    if "ControlNet" in name:
        if "Union" in name:  # a list would be several kinds of control
            arguments |= {"control_mode": [0], "control_image": picture(3)}
        else:
            arguments["control_image" if "image" in arguments else "image"] = control
    elif "Adapter" in name:
        arguments["image"] = control
    if "Img2Img" not in name and "Inpaint" not in name:
        arguments |= {"height": 32, "width": 32}
    return arguments | overrides


def words(count: int, start: int = 0) -> str:
    """A prompt of exactly `count` tokens, BOS and EOS left out, in sentences of seven."""
    nouns = ["cat", "dog", "house", "tree", "river", "boat", "stone", "cloud", "lamp", "door", "red", "blue", "old"]
    marks = {2: ",", 6: "."}
    text = [marks.get(i % 7) or nouns[(i * 5 + i // 7 + start) % len(nouns)] for i in range(count)]
    return " ".join(text)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
