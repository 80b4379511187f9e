"""The true sizes of SDXL's parts."""

import torch
from torch import nn

SDXL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 1024,
    "scaling_factor": 0.13025,
}
IDS = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
FIRST = {  # the text tower of ViT-L/14
    **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "projection_dim": 768,
    **IDS,
}
SECOND = {  # that of ViT-bigG/14
    **{"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    **{"projection_dim": 1280, "hidden_act": "gelu"},
    **IDS,
}


def filled(build: type, sizes: dict, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """A diffusers model of `sizes` with small random weights, made at once in `dtype`, its initialisation skipped."""
    with torch.device("meta"):
        model = build(**sizes)
    model = nn.Module.to(model, dtype).to_empty(device=device).eval()  # diffusers' own `to` warns of nothing here
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.03, 0.03)
    return model
