"""Tiny pipelines of other families: real classes, random weights, a T5 vocabulary of a few words of one token each."""

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tests.pipelines import tiny_sdxl
from tulip_diffusion import load_tokenizer

WORDS = ("red", "blue", "tulip", "key", "cup", "top", "first", "lower", "second")
WIDTH = 32


def t5(positions: int = 512) -> tuple[T5EncoderModel, T5Tokenizer]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -5.0), *((f"▁{word}", -1.0) for word in WORDS)]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=positions)
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval(), tokenizer


def vae(channels: int) -> AutoencoderKL:
    torch.manual_seed(1)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
        latent_channels=channels,
        shift_factor=0.1 if channels == 16 else None,
        **blocks,
    ).eval()


def pixart(pipeline_class: type = PixArtAlphaPipeline):
    encoder, tokenizer = t5()
    torch.manual_seed(2)
    transformer = PixArtTransformer2DModel(
        sample_size=32, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        out_channels=8, cross_attention_dim=24, caption_channels=WIDTH, norm_type="ada_norm_single", norm_eps=1e-6,
        attention_bias=True, norm_elementwise_affine=False, use_additional_conditions=False,
    ).eval()  # fmt: skip
    return pipeline_class(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae(4),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


def sd3(with_t5: bool = True):
    torch.manual_seed(3)
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=16, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=WIDTH * 2, pooled_projection_dim=64, out_channels=16,
    ).eval()  # fmt: skip
    encoder, tokenizer = t5() if with_t5 else (None, None)
    if encoder is not None:  # SD 3 puts CLIP's states, 32 + 32 wide here, before T5's
        encoder = T5EncoderModel(T5Config(**{**encoder.config.to_dict(), "d_model": WIDTH * 2})).eval()
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(16),
        text_encoder=tiny_sdxl.text_encoder_2(1),
        tokenizer=load_tokenizer(),
        text_encoder_2=tiny_sdxl.text_encoder_2(2),
        tokenizer_2=load_tokenizer(),
        text_encoder_3=encoder,
        tokenizer_3=tokenizer,
    )


FAMILIES = {"pixart-alpha": pixart, "pixart-sigma": lambda: pixart(PixArtSigmaPipeline), "sd3": sd3}


def words(count: int) -> str:
    """`count` words of one token each, in T5's vocabulary above and in CLIP's."""
    return " ".join(WORDS[number % len(WORDS)] for number in range(count))
