"""Pictures of prompts, drawn by a pipeline under one encoder after the other from the same noise."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from tulip_diffusion.embedded import load_embedded_pipeline
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline
from tulip_diffusion.provenance import weights_hash
from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.render import render_array

from .embeddings import batches
from .encoders import fingerprint
from .peers import load_compel
from .processes import device_of, shared, shared_arrays

LABEL = 150  # width of the names of a contact sheet's rows


def open_pipeline(encoder: str, options: argparse.Namespace) -> Any:
    """The embedded family's pipeline with one of its encoders, or with `options.model` a real one's; quiet.

    A real model's own encoder is "clip", cut at 77 tokens, or "clip-windows"; anything else is loaded for its first
    slot.
    """
    logging.getLogger("tulip_diffusion.pipelines").setLevel(logging.ERROR)  # what encoders cannot see is measured here
    device = device_of(options.device)
    if model := getattr(options, "model", None):
        pipeline = open_model(model, encoder, device)
    elif encoder == "compel":
        pipeline = load_compel(options.assets).to(device)
    else:
        pipeline = load_embedded_pipeline(encoder, options.assets).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_model(model: str, encoder: str, device: str) -> Any:
    """A real SDXL with its own encoder, or with another one in its first slot."""
    single_file = Path(model).suffix in (".safetensors", ".ckpt")
    load = getattr(StableDiffusionXLTulipPipeline, "from_single_file" if single_file else "from_pretrained")
    own = {"clip": "truncate", "clip-windows": "windows"}
    dtype = torch.float32 if device == "cpu" else torch.float16
    pipeline = load(model, tulip=None if encoder in own else encoder, torch_dtype=dtype).to(device)
    if encoder in own:
        pipeline.set_conditioning(overflow=own[encoder])
    return pipeline


def draw_captions(
    pipeline: Any,
    captions: Sequence[Caption],
    steps: int = 25,
    guidance: float = 3.0,
    batch: int = 8,
    keep: Path | None = None,
    **call: Any,
) -> np.ndarray:
    """One picture for every caption, (captions, height, width, 3) in 0..1; caption i starts from noise of seed i.

    Several processes share the work. With `keep`, a folder, what an interrupted run has drawn is not drawn again;
    pictures of other weights, prompts or settings are never taken for it.
    """

    def draw(rows: range) -> np.ndarray:
        return draw_texts(pipeline, [captions[row].text for row in rows], rows, steps, guidance, **call)

    parts = batches(len(captions), batch)
    if keep is None:
        return np.concatenate(shared(draw, parts, "pictures"))
    settings = pipeline_key(pipeline), [caption.text for caption in captions], steps, guidance, batch, call
    return np.concatenate(shared_arrays(draw, parts, keep / fingerprint(*settings)[:16], "pictures"))


def draw_texts(
    pipeline: Any, texts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float, **call: Any
) -> np.ndarray:
    """One picture for every text, drawn in one batch, (texts, height, width, 3) in 0..1."""
    return pipeline(
        prompt=list(texts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        output_type="np",
        **call,
    ).images


def pipeline_key(pipeline: Any) -> str:
    """Changes with any weight or setting of `pipeline`."""
    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return fingerprint(*(weights_hash(model) for model in models), dict(pipeline.config), pipeline.scheduler.config)


def to_image(picture: np.ndarray) -> Image.Image:
    """(height, width, 3) in 0..1 as a picture of 8 bits."""
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


def contact_sheet(pictures: dict[str, np.ndarray], captions: Sequence[Caption], count: int = 8) -> Image.Image:
    """The first `count` prompts as columns: what they describe in the first row, then one row for each entry."""
    size = next(iter(pictures.values())).shape[1]
    described = np.stack([render_array(caption.scene, size) for caption in captions[:count]])
    rows = {"described": described, **{name: drawn[:count] for name, drawn in pictures.items()}}
    sheet = Image.new("RGB", (LABEL + size * 2 * len(described), size * 2 * len(rows)), "white")
    write = ImageDraw.Draw(sheet)
    for number, (name, drawn) in enumerate(rows.items()):
        row = to_image(np.concatenate(list(drawn), axis=1))
        sheet.paste(row.resize((row.width * 2, row.height * 2), Image.Resampling.NEAREST), (LABEL, number * size * 2))
        label = "\n".join(name.split(" "))
        write.multiline_text((6, number * size * 2 + 6), label, fill="black", font=ImageFont.load_default(13))
    return sheet
