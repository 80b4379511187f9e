"""Checks of a pipeline's components, each with a sentence that says what to pass instead."""

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from ..models.checkpoints import load_text_encoder

NO_LIMIT = 10**6  # a tokenizer that was not told its model_max_length says 10**30


def first_encoder(encoder: PreTrainedModel) -> PreTrainedModel:
    """`encoder` as SDXL's first slot takes it: without its projection, which SDXL would take for the pooled vector."""
    return encoder.text_model if isinstance(encoder, CLIPTextModelWithProjection) else encoder


def load_first_encoder(source: str, dtype: torch.dtype | dict | None = None, **options: str) -> PreTrainedModel:
    """Load an encoder for SDXL's first slot from any `source` that [`load_text_encoder`] knows.

    `dtype` is what [`~diffusers.DiffusionPipeline.from_pretrained`] takes: one for all, or one for each component;
    `options` are `layout` and `rope` of [`load_text_encoder`].
    """
    if isinstance(dtype, dict):
        dtype = dtype.get("text_encoder", dtype.get("default"))
    return first_encoder(load_text_encoder(source, dtype=dtype or torch.float32, **options))


def check_folder(folder: str | os.PathLike, passed: Collection[str]) -> None:
    """Look through a pipeline's folder for parts that are missing or cut short; a Hub id is let through.

    Raises:
        ValueError: a component that is not among those `passed` has no folder, or a damaged file.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        return
    entries = json.loads(index.read_text(encoding="utf-8"))
    for name in (name for name, entry in entries.items() if isinstance(entry, list) and entry[0]):
        part = index.parent / name
        if name in passed:
            continue
        if not part.is_dir():
            raise ValueError(f"{folder} has no folder {name!r}. Complete it, or pass {name}=… to from_pretrained.")
        for file in part.glob("*.safetensors"):
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged ({error}). Save or download it again.") from error


def check_components(components: dict[str, Any]) -> None:
    """Refuse components that do not fit together. Absent ones, and those of other kinds, are not looked at.

    Raises:
        ValueError: a tokenizer without `model_max_length`, a second encoder without projection, or encoders whose
            widths are not those that the UNet was trained with.
    """
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = components.get(name)
        if tokenizer is not None and tokenizer.model_max_length > NO_LIMIT:
            raise ValueError(
                f"{name} has no model_max_length and would pad every prompt to {tokenizer.model_max_length} tokens. "
                f"Set {name}.model_max_length = 77, or pass {name}=load_tokenizer()."
            )
    first, second = components.get("text_encoder"), components.get("text_encoder_2")
    if isinstance(second, CLIPTextModel):
        raise ValueError(
            f"text_encoder_2 is a {type(second).__name__}, which gives no pooled vector. "
            "Pass a model with projection, such as CLIPTextModelWithProjection or TulipTextModelWithProjection."
        )
    unet = components.get("unet")
    if unet is not None and second is not None:
        _check_widths(unet.config, first, second)


def _check_widths(unet, first: PreTrainedModel | None, second: PreTrainedModel) -> None:
    widths = [encoder.config.hidden_size for encoder in (first, second) if encoder is not None]
    expected = unet.cross_attention_dim
    if isinstance(expected, int) and sum(widths) != expected:
        given = " + ".join(map(str, widths))
        raise ValueError(
            f"The UNet reads text states of width {expected}, but the text encoders give {given} = {sum(widths)}. "
            "Pass encoders of the widths that the UNet was trained with (SDXL: 768 and 1280)."
        )
    if unet.addition_embed_type != "text_time":
        return
    projection = second.config.projection_dim
    ids = unet.projection_class_embeddings_input_dim - projection  # 6 numbers of size and crop, the refiner's 5
    if ids not in (5 * unet.addition_time_embed_dim, 6 * unet.addition_time_embed_dim):
        expected = unet.projection_class_embeddings_input_dim - 6 * unet.addition_time_embed_dim
        raise ValueError(
            f"The UNet takes a pooled vector of width {expected}, but text_encoder_2 projects to {projection}. "
            "Pass the second encoder that the UNet was trained with (SDXL: projection_dim 1280)."
        )
