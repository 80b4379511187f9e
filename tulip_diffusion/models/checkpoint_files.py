"""Read checkpoint files, folders and Hub ids onto the CPU, running no code from them.

What is no checkpoint is told by its content, whatever its name. Pickles are read with `weights_only=True` alone.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

Source: TypeAlias = str | Path | Mapping[str, Any]
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
METADATA = "tulip_diffusion"  # the key of a safetensors file's metadata under which `convert` keeps configurations
CLIP_TYPES = ("clip", "clip_text_model", "clip_vision_model", "tulip_text_model")
# A model's files, as transformers names them, best first; shards come with an index.
WEIGHT_FILES = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "pytorch_model.fp16.bin")
WEIGHT_INDEXES = ("model.safetensors.index.json", "model.safetensors.index.fp16.json", "pytorch_model.bin.index.json")
# Parts of single-file pipelines that hold no text encoder, and most of the bytes.
OTHER_PARTS = ("model.diffusion_model.", "first_stage_model.", "model_ema.", "vae.")
# Words in torch's errors about a pickle that needs code, as opposed to one that is damaged.
CODE_SIGNS = ("GLOBAL", "new object", "reduce", "build")
# TULIP's and open_clip's training checkpoints keep learning rates as numpy scalars: these types, and no others.
_scalar = numpy.float64(0).__reduce__()[0]
NUMPY_SCALARS: list[Any] = [
    (_scalar, "numpy.core.multiarray.scalar"),  # the name before numpy 2
    (_scalar, "numpy._core.multiarray.scalar"),
    numpy.dtype,
    numpy.dtypes.Float64DType,
    numpy.dtypes.Float32DType,
    numpy.dtypes.Int64DType,
]


@dataclass
class Checkpoint:
    """A checkpoint as it is stored.

    `config` is the configuration that goes with `weights` for certain (a folder's), `beside` one that lies next to a
    file and may belong to another; `said` holds fields of both towers that `convert` left in a file's metadata.
    """

    name: str
    weights: Mapping[str, Any]
    config: PreTrainedConfig | None = None
    beside: PreTrainedConfig | None = None
    said: dict[str, dict[str, Any]] = field(default_factory=dict)
    folder: Path | None = None


def open_checkpoint(source: Source, subfolder: str | None = None) -> Checkpoint:
    """Find and read what `source` names: a state dict, a file, a folder, or a Hub id.

    Raises:
        FileNotFoundError: a path that does not exist, or a folder without a model.
        ValueError: a file that is damaged or no checkpoint, a configuration that cannot be used.
        OSError: a Hub id that cannot be fetched.
    """
    if isinstance(source, Mapping):
        return Checkpoint("The state dict", source)
    path = Path(source)
    if path.is_file():
        return _open_file(path)
    if not path.is_dir():
        path = _fetch(source, subfolder)
    if subfolder is None and (path / "model_index.json").is_file():
        subfolder = "text_encoder"
    if subfolder is not None and (path / subfolder).is_dir():
        path = path / subfolder
    if not (path / "config.json").is_file():
        return _open_file(_only_file(path))
    config = read_config(path)
    if config.model_type not in CLIP_TYPES:
        raise ValueError(f"{path} holds a {config.model_type}; expected {', '.join(CLIP_TYPES)}.")
    try:
        weights = _read_folder(path)
    except ValueError as error:
        raise ValueError(f"The weights in {path} cannot be loaded: {error}") from error
    return Checkpoint(str(path), weights, config, folder=path)


def read_config(folder: Path) -> PreTrainedConfig:
    """`folder`'s config.json.

    Raises:
        ValueError: it cannot be read, or makes no sense.
    """
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # a damaged file fails in as many ways as it has fields
        raise ValueError(f"{folder} has no configuration that can be read: {in_one_line(error)}") from error


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU, running no code from it.

    Of a pipeline's single file the text encoders' tensors alone are read. TorchScript archives (OpenAI's) are read by
    torch's own C++ reader and give their state dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or no checkpoint, or its pickle needs more than tensors and numpy scalars.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    _refuse_other_files(path)
    try:
        if _is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                names = file.keys()
                return {name: file.get_tensor(name) for name in names if not name.startswith(OTHER_PARTS)}
        if _is_torchscript(path):
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0]
        if not any(sign in refused for sign in CODE_SIGNS):
            raise ValueError(f"{path} cannot be read; it is damaged or no checkpoint: {refused}") from error
        raise ValueError(
            f"{path} holds more than tensors, and unpickling that could run any code. If you trust its author, "
            f"convert it: torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], 'tensors.pt'). "
            f"What was refused: {refused}"
        ) from error
    except Exception as error:  # a damaged pickle lets any error of the code behind its opcodes through
        raise ValueError(f"{path} cannot be read; it is truncated or no checkpoint: {in_one_line(error)}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a state dict.")
    return dict(checkpoint)


def read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """Configurations that `convert` left in a safetensors file: {"text": fields, "image": fields}, or nothing.

    Raises:
        ValueError: they are damaged.
    """
    if not _is_safetensors(path):
        return {}
    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(METADATA)
    if written is None:
        return {}
    try:
        said = json.loads(written)
        return {tower: dict(said[tower]) for tower in ("text", "image") if tower in said}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} has damaged metadata ({METADATA}): {in_one_line(error)}") from error


def _open_file(path: Path) -> Checkpoint:
    weights, said = read_checkpoint(path), read_metadata(path)
    beside = None
    if not said and (path.parent / "config.json").is_file():
        config = read_config(path.parent)
        beside = config if config.model_type in CLIP_TYPES else None
    return Checkpoint(str(path), weights, beside=beside, said=said, folder=path.parent)


def _read_folder(folder: Path) -> dict[str, Any]:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return read_checkpoint(folder / name)
    for name in WEIGHT_INDEXES:
        if (folder / name).is_file():
            return _read_shards(folder / name)
    return read_checkpoint(_only_file(folder))


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [index.parent / Path(name).name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards: {in_one_line(error)}") from error
    weights: dict[str, Tensor] = {}
    for path in paths:
        weights |= read_checkpoint(path)
    return weights


def _only_file(folder: Path) -> Path:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in FILE_SUFFIXES and path.is_file()]
    if len(files) == 1:
        return files[0]
    found = f"several ({', '.join(path.name for path in files[:4])})" if files else "none"
    raise FileNotFoundError(
        f"{folder} has no config.json or model_index.json beside weights, and of checkpoint files {found}. Pass the "
        "file itself."
    )


def _fetch(source: str | Path, subfolder: str | None) -> Path:
    """The local copy of a Hub id's configurations, and of the weights that are needed."""
    name, path = str(source), Path(source)
    if path.suffix.lower() in FILE_SUFFIXES or path.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise FileNotFoundError(f"There is no file or folder {path}.")
    try:
        folder = Path(snapshot_download(name, allow_patterns="*.json"))
        if subfolder is None and (folder / "model_index.json").is_file():
            subfolder = "text_encoder"
        inside = "" if subfolder is None else f"{subfolder}/"
        for weights in ("model*.safetensors", "pytorch_model*.bin"):
            snapshot_download(name, allow_patterns=inside + weights)
            if any((folder / inside).glob(weights)):
                break
    except Exception as error:  # whatever the network makes of it
        raise OSError(
            f"There is no folder {name}, and it cannot be fetched from the Hub: {in_one_line(error)}"
        ) from error
    return folder


def _refuse_other_files(path: Path) -> None:
    """One sentence for what people often have in a checkpoint's place."""
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        raise ValueError(f"{path} is empty. Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself. Fetch it with git lfs pull.")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ValueError(f"{path} is a web page. Download the file itself, from its download link.")
    if start.startswith(b"GGUF"):
        raise ValueError(f"{path} is a GGUF file, which holds quantised weights. Get the encoder as .safetensors.")


def _is_safetensors(path: Path) -> bool:
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)  # the header's length in eight bytes, then the header, which is JSON
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def in_one_line(error: Exception) -> str:
    """What `error` says, without line breaks and at most 300 characters of it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} …"
