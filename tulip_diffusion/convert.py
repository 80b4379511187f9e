"""The command `convert`: from any layout of checkpoints to a transformers folder or to open_clip's keys."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import add_command, refuse, weights, whole, writable

CLIP_VOCABULARY = 49408
LAYOUTS = ("auto", "openai", "open_clip", "tulip", "tulip_cope", "longclip", "finelip", "transformers", "sdxl")
FILES = (".pt", ".safetensors")
OTHER_FILES = (".bin", ".ckpt", ".pth", ".gguf", ".onnx", ".json", ".zip")


def destination(text: str) -> Path:
    """A file under open_clip's keys, or a folder."""
    path = Path(text)
    if not text or path.suffix.lower() in OTHER_FILES:
        refuse(text, "a folder, or a file ending in .pt or .safetensors")
    return writable(path)


def register(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "convert",
        convert,
        "turn any CLIP, TULIP, Long-CLIP or FineLIP checkpoint into a transformers folder, or open_clip's keys",
        "Read a text encoder from a checkpoint file, a folder or a Hub id, and write a transformers folder (with "
        "tokenizer, for CLIP's vocabulary), or a file under open_clip's keys where DEST ends in .pt or .safetensors. "
        "Whole CLIPs keep their image tower in open_clip's layout.",
        "tulip-diffusion convert tulip_stage2.pt outputs/tulip --layout tulip --rope paper",
    )
    parser.add_argument("source", type=weights, help="checkpoint file, transformers folder, pipeline folder or Hub id")
    parser.add_argument("dest", type=destination, help="folder, or file ending in .pt or .safetensors")
    parser.add_argument("--layout", default="auto", choices=LAYOUTS, help="layout of SOURCE; auto goes by its keys")
    parser.add_argument(
        "--subfolder", choices=("text_encoder", "text_encoder_2"), help="which of an SDXL folder's or file's encoders"
    )
    parser.add_argument("--rope", choices=("released", "paper"), help="the rotation, which TULIP's files do not store")
    parser.add_argument("--hidden-act", choices=("gelu", "quick_gelu"), help="activation, where the file is silent")
    parser.add_argument("--heads", type=whole(1, 1024), help="attention heads (default: width / 64)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the weights"
    )
    parser.add_argument("--to-tulip", action="store_true", help="swap a CLIP's positions for rotary ones, untrained")
    parser.add_argument("--overwrite", action="store_true", help="replace DEST if it exists")


def convert(options: argparse.Namespace) -> None:
    to_file = options.dest.suffix.lower() in FILES
    check_destination(options, to_file)

    import torch

    from .models.checkpoints import load_clip, load_text_encoder
    from .models.text_encoder import from_clip
    from .progress import hide_loading_bars

    hide_loading_bars()
    config = {"hidden_act": options.hidden_act, "num_attention_heads": options.heads}
    config = {field: value for field, value in config.items() if value is not None}
    dtype = getattr(torch, options.dtype)
    image_encoder = logit_scale = None
    if to_file and options.subfolder is None:
        towers = load_clip(options.source, options.layout, rope=options.rope, dtype=dtype, **config)
        text_encoder, image_encoder, logit_scale = towers
    else:
        text_encoder = load_text_encoder(
            options.source, options.layout, subfolder=options.subfolder, rope=options.rope, dtype=dtype, **config
        )
    if options.to_tulip:
        text_encoder = from_clip(text_encoder)
    write(options.dest, text_encoder, image_encoder, logit_scale, to_file)
    print(f"{type(text_encoder).__name__} of {text_encoder.num_parameters():,} parameters written to {options.dest}")


def check_destination(options: argparse.Namespace, to_file: bool) -> None:
    dest, source = options.dest, Path(options.source)
    if source.exists() and source.resolve() == dest.resolve():
        raise ValueError(f"{dest} is SOURCE itself. Name another DEST.")
    if dest.exists() and not options.overwrite:
        raise FileExistsError(f"{dest} exists. Pass --overwrite to replace it.")
    if dest.exists() and dest.is_dir() == to_file:
        there, wanted = ("folder", "file") if dest.is_dir() else ("file", "folder")
        raise FileExistsError(f"{dest} is a {there}, and a {wanted} would be written. Name another DEST.")


def write(dest: Path, text_encoder: Any, image_encoder: Any, logit_scale: float | None, to_file: bool) -> None:
    """Write a transformers folder, or a file under open_clip's keys, whole or not at all."""
    from safetensors import SafetensorError

    from .files import replacing

    try:
        with replacing(dest) as unfinished:
            if to_file:
                _write_open_clip(unfinished, text_encoder, image_encoder, logit_scale)
            else:
                _write_folder(unfinished, text_encoder)
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors raise where the disk is full
        raise OSError(f"{dest} could not be written: {error}") from error


def _write_folder(folder: Path, text_encoder: Any) -> None:
    from .tokenization import load_tokenizer

    text_encoder.save_pretrained(folder)
    if text_encoder.config.vocab_size == CLIP_VOCABULARY:
        load_tokenizer(max(text_encoder.config.max_position_embeddings, 77)).save_pretrained(folder)


def _write_open_clip(file: Path, text_encoder: Any, image_encoder: Any, logit_scale: float | None) -> None:
    import torch
    from safetensors.torch import save_file

    from .models.checkpoints import export_open_clip

    state = export_open_clip(text_encoder, image_encoder, logit_scale)
    if file.suffix.lower() == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, file)
    else:
        torch.save(state, file)
