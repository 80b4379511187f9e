"""Load a CLIP, TULIP, Long-CLIP or FineLIP encoder from any file, folder or Hub id, and write open_clip's names back.

Nothing is loaded in part: a key or shape that does not fit is an error that names it. Pickles are read with
`weights_only=True` alone.
"""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from .layouts import Towers, openai_name, to_openai, to_transformers
from .text_encoder import TulipTextConfig, TulipTextModelWithProjection, projecting_class

logger = logging.get_logger(__name__)

Source: TypeAlias = str | Path | Mapping[str, Any]
TextEncoder: TypeAlias = CLIPTextModelWithProjection | TulipTextModelWithProjection
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
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


class ClipTowers(NamedTuple):
    """What [`load_clip`] found; the image tower and the temperature are None where the source has none."""

    text_encoder: TextEncoder
    image_encoder: CLIPVisionModelWithProjection | None
    logit_scale: float | None


def load_text_encoder(
    source: Source,
    layout: str = "auto",
    *,
    subfolder: str | None = None,
    rope: str | None = None,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> TextEncoder:
    """Load a text encoder with its projection, in eval mode.

    Args:
        source: a checkpoint file, a transformers folder (sharded or not), a pipeline folder, a Hub id, or a state
            dict.
        layout: one of `layouts.LAYOUTS`. "auto" goes by the keys. TULIP's stage 2 has the keys of an ordinary CLIP:
            "auto" tells it by the optimizer stored with it, or by a `rope` or `rope_parameters` that you pass. Where
            there is none of these, pass "tulip".
        subfolder: which encoder of an SDXL folder or single file: "text_encoder" (the default there) or
            "text_encoder_2".
        rope: what TULIP's files forgot to store: "released" (the default) is theta 10,000, as the official evaluation
            rebuilds it, "paper" is NTK scaling from 77 to 248 tokens. Anything else goes into `rope_parameters`.
        dtype: of the returned weights.
        **config: any [`TulipTextConfig`] field, where the file does not say it or says it wrong, such as
            `num_attention_heads` (default: width / 64), `hidden_act` (TULIP: exact GELU, as released) or
            `eos_token_id`.

    Returns:
        [`TulipTextModelWithProjection`] for TULIP, else `CLIPTextModelWithProjection`, of 248 positions for Long-CLIP
        and FineLIP. An encoder saved without a projection (SDXL's first) gets the identity, and a warning says so.

    Raises:
        FileNotFoundError: `source` is a path that does not exist, or a folder without a model.
        ValueError: the file is damaged, of no known layout, needs more than tensors to unpickle, or a key is missing,
            unexpected, or of the wrong shape.
    """
    if (folder := _model_folder(source)) is not None:
        return _text_encoder_from_folder(folder, subfolder, dtype, config)
    if "rope_parameters" in config:
        rope = rope or "released"
    towers = _towers(source, layout, subfolder, rope, "hidden_act" in config)
    return _text_encoder(towers, _name(source), dtype, config)


def load_image_encoder(
    source: Source, layout: str = "auto", *, dtype: torch.dtype = torch.float32, **config: Any
) -> CLIPVisionModelWithProjection:
    """Load the image tower of a whole CLIP, in eval mode; `config` overrides `CLIPVisionConfig` fields.

    Raises:
        ValueError: as [`load_text_encoder`], and where the source has no ViT.
    """
    if (folder := _model_folder(source)) is not None:
        fields = AutoConfig.from_pretrained(folder)
        if fields.model_type == "clip":  # the whole model's projection counts, whatever its vision_config says
            config.setdefault("projection_dim", fields.projection_dim)
        fields = _override(getattr(fields, "vision_config", fields), config)
        return _from_pretrained(CLIPVisionModelWithProjection, folder, fields, {"dtype": dtype})
    towers = _towers(source, layout, None, None, "hidden_act" in config)
    image_encoder = _image_encoder(towers, _name(source), dtype, config)
    if image_encoder is None:
        raise ValueError(f"{_name(source)} has no ViT image tower ({towers.layout} layout).")
    return image_encoder


def load_clip(
    source: Source, layout: str = "auto", *, rope: str | None = None, dtype: torch.dtype = torch.float32, **config: Any
) -> ClipTowers:
    """Load text tower, image tower and temperature (its logarithm) together; arguments as [`load_text_encoder`]."""
    if (folder := _model_folder(source)) is not None:
        text_encoder = _text_encoder_from_folder(folder, None, dtype, config)
        if AutoConfig.from_pretrained(folder).model_type != "clip":
            return ClipTowers(text_encoder, None, None)
        logit_scale = CLIPModel.from_pretrained(folder, dtype=dtype).logit_scale.item()
        return ClipTowers(text_encoder, load_image_encoder(folder, dtype=dtype), logit_scale)
    towers = _towers(source, layout, None, rope, "hidden_act" in config)
    return ClipTowers(
        _text_encoder(towers, _name(source), dtype, config),
        _image_encoder(towers, _name(source), dtype, {}),
        None if towers.logit_scale is None else towers.logit_scale.item(),
    )


def export_open_clip(
    text_encoder: PreTrainedModel,
    image_encoder: CLIPVisionModelWithProjection | None = None,
    logit_scale: float | None = None,
) -> dict[str, Tensor]:
    """The state dict under open_clip's names, ready for `torch.save` or safetensors.

    The text tower alone is TULIP's stage-1 layout; with `image_encoder` and `logit_scale` it is a whole CLIP. A TULIP
    encoder has no `positional_embedding` to export. Its rotation, activation and attention scaling have no place in
    this layout: pass them to [`load_text_encoder`] again. open_clip itself cannot run a TULIP encoder.
    """
    text = dict(text_encoder.state_dict())
    if isinstance(text_encoder, CLIPTextModel):  # TulipTextModel too: without projection, names have no prefix
        text = {f"text_model.{key}": value for key, value in text.items()}
    state = to_openai(text)
    if image_encoder is not None:
        state |= to_openai(image_encoder.state_dict())
    if logit_scale is not None:
        state["logit_scale"] = torch.tensor(logit_scale)
    return state


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file onto the CPU, running no code from it.

    Of an SDXL single file the text encoders' tensors alone are read. TorchScript archives (OpenAI's) are read by
    torch's own C++ reader and give their state dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its pickle needs more than tensors and numpy scalars.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                keys = file.keys()
                conditioner = [key for key in keys if key.startswith("conditioner.")]
                return {key: file.get_tensor(key) for key in conditioner or keys}
        if _is_torchscript(path):
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and unpickling that could run any code. If you trust its author, "
            f"convert it: torch.save(torch.load({str(path)!r}, weights_only=False)['state_dict'], 'tensors.pt'). "
            f"What was refused: {str(error).splitlines()[0]}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read; it is truncated or no checkpoint: {error}") from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"{path} holds a {type(checkpoint).__name__}, expected a state dict.")
    return dict(checkpoint)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _model_folder(source: Source) -> str | None:
    """`source` as transformers' from_pretrained takes it, or None where it is a file or a state dict."""
    if isinstance(source, Mapping):
        return None
    path = Path(source)
    if path.is_dir():
        if any(path.glob("config.json")) or any(path.glob("model_index.json")):
            return str(path)
        if len(_checkpoint_files(path)) == 1:
            return None
        raise FileNotFoundError(f"{path} has no config.json, model_index.json or single checkpoint file.")
    if path.is_file():
        return None
    name = str(source)
    if path.suffix in FILE_SUFFIXES or path.is_absolute() or name.count("/") != 1 or name.startswith("."):
        raise FileNotFoundError(f"There is no file or folder {path}.")
    return name  # a Hub id


def _checkpoint_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix in FILE_SUFFIXES]


def _name(source: Source) -> str:
    return "The state dict" if isinstance(source, Mapping) else str(source)


def _towers(source: Source, layout: str, subfolder: str | None, rope: str | None, says_activation: bool) -> Towers:
    if not isinstance(source, Mapping):
        path = Path(source)
        source = read_checkpoint(_checkpoint_files(path)[0] if path.is_dir() else path)
    towers = to_transformers(source, layout, subfolder or "text_encoder", rope)
    if towers.layout == "open_clip" and not says_activation:
        logger.warning(
            "This file does not say its activation. Assuming exact GELU, as open_clip's own models have; pass "
            'hidden_act="quick_gelu" for weights that OpenAI trained.'
        )
    return towers


def _text_encoder(towers: Towers, name: str, dtype: torch.dtype, config: dict[str, Any]) -> TextEncoder:
    config_class = TulipTextConfig if "position_encoding" in towers.text_config else CLIPTextConfig
    fields = _override(config_class(**towers.text_config), config)
    weights = towers.text
    if "text_projection.weight" not in weights and towers.layout in ("sdxl", "transformers"):
        _warn_of_identity(name)
        weights = {**weights, "text_projection.weight": torch.eye(fields.hidden_size)}
    return _build(projecting_class(fields), fields, weights, name, towers.layout, dtype)


def _image_encoder(
    towers: Towers, name: str, dtype: torch.dtype, config: dict[str, Any]
) -> CLIPVisionModelWithProjection | None:
    if not towers.image:
        return None
    fields = _override(CLIPVisionConfig(**towers.image_config), config)
    return _build(CLIPVisionModelWithProjection, fields, towers.image, name, towers.layout, dtype)


def _build(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: dict[str, Tensor],
    name: str,
    layout: str,
    dtype: torch.dtype,
) -> Any:
    def in_file(keys: Iterable[str]) -> list[str]:
        return sorted(set(keys) if layout in ("transformers", "sdxl") else {openai_name(key) for key in keys})

    with torch.device("meta"):
        expected = {key: tensor.shape for key, tensor in model_class(config).state_dict().items()}
    shapes = [
        f"{in_file([key])[0]} gives {tuple(weights[key].shape)}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if key in weights and weights[key].shape != shape
    ]
    missing, unexpected = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    _refuse(f"{name} ({layout} layout)", in_file(missing), in_file(unexpected), shapes)
    model = model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype)
    return model.eval()


def _refuse(name: str, missing: list[str], unexpected: list[str], shapes: list[str]) -> None:
    found = {"missing": missing, "unexpected": unexpected, "wrong shape": shapes}
    problems = [f"{what}: {', '.join(which[:3])}{' …' * (len(which) > 3)}" for what, which in found.items() if which]
    if problems:
        raise ValueError(f"{name} does not fit the model; {'; '.join(problems)}. Check `layout` and overrides.")


def _override(config: Any, fields: dict[str, Any]) -> Any:
    if unknown := sorted(fields.keys() - config.to_dict().keys()):
        raise ValueError(f"{type(config).__name__} has no field {', '.join(unknown)}.")
    return type(config)(**{**config.to_dict(), **fields}) if fields else config


def _text_encoder_from_folder(
    folder: str, subfolder: str | None, dtype: torch.dtype, config: dict[str, Any]
) -> TextEncoder:
    if subfolder is None and (Path(folder) / "model_index.json").is_file():
        subfolder = "text_encoder"
    where = {} if subfolder is None else {"subfolder": subfolder}
    try:
        fields = AutoConfig.from_pretrained(folder, **where)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} has no configuration that can be read: {error}") from error
    if fields.model_type == "clip":
        config = {"projection_dim": fields.projection_dim, **config}
        fields = fields.text_config
    if fields.model_type not in ("clip_text_model", TulipTextConfig.model_type):
        raise ValueError(f"{folder} holds a {fields.model_type}; expected clip, clip_text_model or tulip_text_model.")
    if (variant := _only_variant(Path(folder) / (subfolder or ""))) is not None:
        where["variant"] = variant
    return _from_pretrained(projecting_class(fields), folder, _override(fields, config), {"dtype": dtype, **where})


def _only_variant(folder: Path) -> str | None:
    """ "fp16" where a folder holds the half-precision files alone."""
    names = [path.name for path in folder.glob("*.safetensors")] if folder.is_dir() else []
    return "fp16" if names and all(".fp16" in name for name in names) else None


def _from_pretrained(model_class: Any, folder: str, config: Any, where: dict[str, Any]) -> Any:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers reports the other tower's keys at length; ours are checked below
    try:
        model, info = model_class.from_pretrained(folder, config=config, output_loading_info=True, **where)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ValueError(f"The weights in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    missing = set(info["missing_keys"])
    if missing == {"text_projection.weight"}:
        _warn_of_identity(folder)
        torch.nn.init.eye_(model.text_projection.weight)
        missing.clear()
    other_tower = ("vision_model.", "visual_projection.", "text_model.", "text_projection.", "logit_scale")
    unexpected = [key for key in info["unexpected_keys"] if not key.startswith(other_tower)]
    _refuse(folder, sorted(missing), sorted(unexpected), [str(key) for key in info["mismatched_keys"]])
    return model.eval()


def _warn_of_identity(name: str) -> None:
    logger.warning(f"{name} has no text projection: text_embeds are the pooled states themselves (identity).")
