"""The command `convert`: from any layout of checkpoints to a transformers folder or to open_clip's keys."""

import argparse
import fnmatch
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_command, refuse, weights, whole, writable

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig

    from .models.checkpoints import ClipTowers

LAYOUTS = ("auto", "openai", "open_clip", "tulip", "tulip_cope", "longclip", "finelip", "transformers", "sdxl")
FILES = (".pt", ".safetensors")
# What a folder holds that `convert` wrote: --overwrite replaces these and nothing else.
WRITTEN = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
# Fields of a configuration that no tensor under open_clip's names tells.
UNSAID = ("hidden_act", "num_attention_heads", "layer_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")
UNSAID_OF_TULIP = ("position_encoding", "rope_parameters", "attention_scaling", "attention_scaling_base")
OTHER_FILES = (".bin", ".ckpt", ".pth", ".gguf", ".onnx", ".json", ".zip")


def destination(text: str) -> Path:
    """A file under open_clip's keys, or a folder."""
    path = Path(text)
    if not text or path.suffix.lower() in OTHER_FILES:
        refuse(text, "a folder, or a file ending in .pt or .safetensors")
    return writable(path)


def register(subparsers: Any) -> None:
    """Add the command `convert`."""
    parser = add_command(
        subparsers,
        "convert",
        convert,
        "turn any CLIP, TULIP, Long-CLIP or FineLIP checkpoint into a transformers folder, or open_clip's keys",
        "Read a text encoder from a checkpoint file, a folder or a Hub id, and write a transformers folder (with "
        "tokenizer, for CLIP's vocabulary), or a file under open_clip's keys where DEST ends in .pt or .safetensors. "
        "A file keeps a whole CLIP's image tower and temperature; a folder has the text encoder alone. A .safetensors "
        "file also holds what its tensors do not tell: rotation, activation, heads, attention scaling. What to pass "
        "when you load a .pt file is printed.",
        "tulip-diffusion convert tulip_stage2.pt outputs/tulip --layout tulip --rope paper",
        "tulip-diffusion convert outputs/tulip tulip.safetensors --single-file",
        "tulip-diffusion convert checkpoint.safetensors outputs/own --add outputs/tulip openai/clip-vit-large-patch14",
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
    parser.add_argument("--attention-scaling", choices=("none", "log"), help="of a TULIP encoder (default: as stored)")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the weights"
    )
    parser.add_argument("--to-tulip", action="store_true", help="swap a CLIP's positions for rotary ones, untrained")
    parser.add_argument(
        "--add",
        nargs=2,
        type=weights,
        metavar=("TULIP", "CLIP"),
        help="add TULIP - CLIP to SOURCE, a fine-tuned CLIP: an encoder of any length for it without training, where "
        "TULIP was distilled from CLIP and SOURCE fine-tuned from it",
    )
    parser.add_argument(
        "--single-file",
        action="store_true",
        help="write a TULIP encoder to a .safetensors file under names of its own, which programs that know CLIP "
        "alone refuse; under CLIP's names some load it without an error and draw wrong pictures",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace DEST, if it is a file or convert's own folder"
    )


def convert(options: argparse.Namespace) -> None:
    """The command: read, write, and say what the file cannot hold."""
    to_file = options.dest.suffix.lower() in FILES
    check_destination(options, to_file)

    from .progress import hide_loading_bars

    hide_loading_bars()
    towers = read(options, whole=to_file and not options.single_file)
    notes = write_single_file(options.dest, towers) if options.single_file else write(options.dest, towers, to_file)
    text_encoder = towers.text_encoder
    print(f"{type(text_encoder).__name__} of {text_encoder.num_parameters():,} parameters written to {options.dest}")
    for note in notes:
        print(note)


def check_destination(options: argparse.Namespace, to_file: bool) -> None:
    """Refuse to overwrite the source, or what `convert` did not write, before anything is read."""
    dest, source = options.dest, Path(options.source)
    if options.add and options.to_tulip:
        raise ValueError("--add and --to-tulip both make a TULIP encoder. Choose one.")
    if options.single_file and dest.suffix.lower() != ".safetensors":
        raise ValueError(f"--single-file writes a .safetensors file. Name DEST so, got {str(dest)!r}.")
    if source.exists() and source.resolve() == dest.resolve():
        raise ValueError(f"{dest} is SOURCE itself. Name another DEST.")
    if dest.exists() and not options.overwrite:
        raise FileExistsError(f"{dest} exists. Pass --overwrite to replace it.")
    if dest.exists() and dest.is_dir() == to_file:
        there, wanted = ("folder", "file") if dest.is_dir() else ("file", "folder")
        raise FileExistsError(f"{dest} is a {there}, and a {wanted} would be written. Name another DEST.")
    if dest.is_dir() and (others := others_in(dest)):
        raise FileExistsError(
            f"{dest} holds what convert did not write: {', '.join(others[:3])}{' …' * (len(others) > 3)}. "
            "Name another DEST."
        )


def others_in(folder: Path) -> list[str]:
    """Names in `folder` that are not convert's."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in WRITTEN)]


def read(options: argparse.Namespace, whole: bool) -> "ClipTowers":
    """The encoder as asked for; with its image tower and temperature if `whole`."""
    import torch

    from .models.checkpoints import ClipTowers, load_clip, load_text_encoder
    from .models.text_encoder import from_clip

    config = {
        "hidden_act": options.hidden_act,
        "num_attention_heads": options.heads,
        "attention_scaling": None if options.to_tulip else options.attention_scaling,
    }
    config = {field: value for field, value in config.items() if value is not None}
    how: dict[str, Any] = {"rope": options.rope, "dtype": getattr(torch, options.dtype), **config}
    if whole and options.subfolder is None:
        towers = load_clip(options.source, options.layout, **how)
    else:
        text_encoder = load_text_encoder(options.source, options.layout, subfolder=options.subfolder, **how)
        towers = ClipTowers(text_encoder, None, None)
    if options.add:
        from .models.difference import add_difference

        tulip, clip = (load_text_encoder(source, dtype=how["dtype"]) for source in options.add)
        towers = towers._replace(text_encoder=add_difference(towers.text_encoder, tulip, clip))
    if options.to_tulip:
        scaling = {"attention_scaling": options.attention_scaling} if options.attention_scaling else {}
        towers = towers._replace(text_encoder=from_clip(towers.text_encoder, **scaling))
    return towers


def write(dest: Path, towers: "ClipTowers", to_file: bool) -> list[str]:
    """Write a folder or a file, whole or not at all; returns what the user should know about it."""
    from safetensors import SafetensorError

    from .files import replacing

    try:
        with replacing(dest) as unfinished:
            if not to_file:
                _write_folder(unfinished, towers.text_encoder)
                return []
            state = _write_open_clip(unfinished, towers)
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors raise where the disk is full
        raise OSError(f"{dest} could not be written: {error}") from error
    notes = [] if dest.suffix.lower() == ".safetensors" else how_to_load(dest, towers, state)
    missed = missed_elsewhere(towers.text_encoder.config)
    return notes if missed is None else [*notes, missed]


def write_single_file(dest: Path, towers: "ClipTowers") -> list[str]:
    """Write a TULIP encoder alone, under names of its own, whole or not at all; returns what the user should know.

    Raises:
        ValueError: it is no TULIP encoder.
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from .files import replacing
    from .models.layouts import to_own_names
    from .models.positions import is_tulip

    encoder = towers.text_encoder
    if not is_tulip(encoder.config):
        raise ValueError(
            f"--single-file is for TULIP encoders, and this is a {type(encoder).__name__}: under CLIP's own names "
            "every program reads it as what it is. Leave --single-file out."
        )
    state = {name: value.contiguous() for name, value in to_own_names(encoder.state_dict()).items()}
    try:
        with replacing(dest) as unfinished:
            save_file(state, unfinished, metadata(towers))
    except SafetensorError as error:
        raise OSError(f"{dest} could not be written: {error}") from error
    return ["load_text_encoder reads it; programs that know CLIP alone refuse it."]


def _write_folder(folder: Path, text_encoder: Any) -> None:
    from .tokenization import tokenizer_of

    text_encoder.save_pretrained(folder)
    if (tokenizer := tokenizer_of(text_encoder.config)) is not None:
        tokenizer.save_pretrained(folder)


def _write_open_clip(file: Path, towers: "ClipTowers") -> "dict[str, Tensor]":
    import torch
    from safetensors.torch import save_file

    from .models.checkpoints import export_open_clip

    state = {name: value.contiguous() for name, value in export_open_clip(*towers).items()}
    if file.suffix.lower() == ".safetensors":
        save_file(state, file, metadata(towers))
    else:
        torch.save(state, file)
    return state


def metadata(towers: "ClipTowers") -> dict[str, str]:
    """A safetensors file's metadata: the configurations that its tensors do not tell."""
    from .models.checkpoint_files import METADATA

    said = {"text": unsaid(towers.text_encoder.config)}
    if towers.image_encoder is not None:
        said["image"] = unsaid(towers.image_encoder.config)
    return {"format": "pt", METADATA: json.dumps(said)}


def unsaid(config: "PreTrainedConfig") -> dict[str, Any]:
    """Fields of a tower's `config` that no tensor tells."""
    from .models.positions import is_tulip

    fields = UNSAID if not is_tulip(config) else (*UNSAID, *UNSAID_OF_TULIP, "max_position_embeddings")
    return {field: value for field, value in config.to_dict().items() if field in fields}


def how_to_load(file: Path, towers: "ClipTowers", state: dict[str, "Tensor"]) -> list[str]:
    """The calls that read a .pt file back as it was, where plain ones would not."""
    from transformers import CLIPTextConfig, CLIPVisionConfig

    from .models.layouts import to_transformers
    from .models.text_encoder import TulipTextConfig

    renamed, encoder = to_transformers(state), towers.text_encoder
    text_class = TulipTextConfig if "position_encoding" in renamed.text_config else CLIPTextConfig
    calls = [("load_text_encoder", encoder.config, text_class(**renamed.text_config))]
    if towers.image_encoder is not None:
        calls.append(("load_image_encoder", towers.image_encoder.config, CLIPVisionConfig(**renamed.image_config)))
    lines = []
    for name, config, assumed in calls:
        guess = assumed.to_dict()
        passed = {field: value for field, value in unsaid(config).items() if guess[field] != value}
        if passed:
            arguments = ", ".join([repr(str(file)), *(f"{field}={value!r}" for field, value in passed.items())])
            lines.append(f"A .pt file cannot say how it runs. Load it with {name}({arguments})")
    return lines


def missed_elsewhere(config: "PreTrainedConfig") -> str | None:
    """One line on what programs other than this one make of a TULIP encoder under open_clip's names."""
    from .models.positions import is_tulip

    if not is_tulip(config):
        return None
    scaling = " and its attention scaling" if config.attention_scaling != "none" else ""
    return f"Other programs do not know this encoder's positions{scaling}: as a plain CLIP its states are wrong."
