"""Prompts of 248 tokens and more for Stable Diffusion XL.

Importing defines and registers classes and does nothing else.
"""

from .models.checkpoints import export_open_clip, load_clip, load_image_encoder, load_text_encoder
from .models.positions import stretch_position_embeddings
from .models.text_encoder import TulipTextConfig, TulipTextModel, TulipTextModelWithProjection, from_clip
from .tokenization import load_tokenizer

__version__ = "0.1.0"

__all__ = [
    "TulipTextConfig",
    "TulipTextModel",
    "TulipTextModelWithProjection",
    "export_open_clip",
    "from_clip",
    "load_clip",
    "load_image_encoder",
    "load_text_encoder",
    "load_tokenizer",
    "stretch_position_embeddings",
]
