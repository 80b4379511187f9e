"""Load a CLIP, TULIP, Long-CLIP or FineLIP encoder from any file, folder or Hub id, and write open_clip's names back.

Nothing is loaded in part: a key or shape that does not fit is an error that names it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.utils import logging

from .checkpoint_files import Checkpoint, Source, in_one_line, open_checkpoint
from .layouts import (
    TowerWeights,
    has_own_names,
    openai_name,
    published_activation,
    rope_parameters,
    to_openai,
    to_transformers,
)
from .positions import is_tulip
from .text_encoder import TulipTextConfig, TulipTextModelWithProjection, align_weights, projecting_class

logger = logging.get_logger(__name__)

TextEncoder: TypeAlias = CLIPTextModelWithProjection | TulipTextModelWithProjection
IMAGE_FOLDER = "image_encoder"  # where training leaves the image tower, beside the text tower's files
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings")


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
        layout: one of `layouts.LAYOUTS`. "auto" goes by the keys, and a folder by its config.json. TULIP's stage 2 has
            the keys of an ordinary CLIP: "auto" tells it by the optimizer stored with it, or by a `rope` or
            `rope_parameters` that you pass. Where there is none of these, pass "tulip".
        subfolder: which encoder of a pipeline's folder or of a file with several: "text_encoder" (the default there)
            or "text_encoder_2".
        rope: what TULIP's files forgot to store: "released" (the default) is theta 10,000, as the official evaluation
            rebuilds it, "paper" is NTK scaling from 77 to 248 tokens. Anything else goes into `rope_parameters`. In a
            folder it takes the place of what config.json says.
        dtype: of the returned weights.
        **config: any [`TulipTextConfig`] field, where the file does not say it or says it wrong, such as
            `num_attention_heads` (default: width / 64), `hidden_act` (TULIP: exact GELU, as released) or
            `eos_token_id`.

    Returns:
        [`TulipTextModelWithProjection`] for TULIP, else `CLIPTextModelWithProjection`, of 248 positions for Long-CLIP
        and FineLIP. An encoder saved without a projection (SDXL's first) gets the identity, and a warning says so.

    Raises:
        FileNotFoundError: `source` is a path that does not exist, or a folder without a model.
        ValueError: the file is damaged, of no known layout, needs more than tensors to unpickle, does not say its
            activation, or a key is missing, unexpected, or of the wrong shape; `rope` is given for an encoder that
            has no rotation.
        OSError: a Hub id that cannot be fetched.
    """
    checkpoint = open_checkpoint(source, subfolder)
    return _text_encoder(checkpoint, _towers(checkpoint, layout, subfolder, rope, config), dtype, rope, config)


def load_image_encoder(
    source: Source, layout: str = "auto", *, dtype: torch.dtype = torch.float32, **config: Any
) -> CLIPVisionModelWithProjection:
    """Load the image tower of a whole CLIP, or the one that training left in a folder, in eval mode.

    `config` overrides `CLIPVisionConfig` fields.

    Raises:
        ValueError: as [`load_text_encoder`], and where the source has no ViT.
    """
    if folder := _left_by_training(source):
        return load_image_encoder(folder / IMAGE_FOLDER, dtype=dtype, **config)
    checkpoint = open_checkpoint(source)
    towers = _towers(checkpoint, layout, None, None, config)
    if not towers.image:
        raise ValueError(f"{checkpoint.name} has no ViT image tower ({towers.layout} layout).")
    return _image_encoder(checkpoint, towers, dtype, config)


def load_clip(
    source: Source, layout: str = "auto", *, rope: str | None = None, dtype: torch.dtype = torch.float32, **config: Any
) -> ClipTowers:
    """Load text tower, image tower and temperature (its logarithm) together; arguments as [`load_text_encoder`].

    `hidden_act` goes to both towers, what else is in `config` to the text tower. Of a folder that training wrote, the
    image tower is that in `image_encoder/`, and the temperature that of its run.json.
    """
    checkpoint = open_checkpoint(source)
    towers = _towers(checkpoint, layout, None, rope, config)
    text_encoder = _text_encoder(checkpoint, towers, dtype, rope, config)
    for_image = {field: value for field, value in config.items() if field == "hidden_act"}
    logit_scale = None if towers.logit_scale is None else towers.logit_scale.item()
    if towers.image:
        return ClipTowers(text_encoder, _image_encoder(checkpoint, towers, dtype, for_image), logit_scale)
    if folder := _left_by_training(source):
        image_encoder = load_image_encoder(folder / IMAGE_FOLDER, dtype=dtype)
        return ClipTowers(text_encoder, image_encoder, _trained_logit_scale(folder))
    return ClipTowers(text_encoder, None, logit_scale)


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


def _left_by_training(source: Source) -> Path | None:
    """`source`, where it is a text tower's folder with the image tower that it was trained with inside."""
    if isinstance(source, Mapping) or (Path(source) / "model_index.json").is_file():
        return None  # the image encoder of a pipeline is an IP-Adapter's
    return Path(source) if (Path(source) / IMAGE_FOLDER / "config.json").is_file() else None


def _trained_logit_scale(folder: Path) -> float | None:
    if not (folder / "run.json").is_file():
        return None
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return None if run.get("logit_scale") is None else float(run["logit_scale"])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: {error}") from error


def _towers(
    checkpoint: Checkpoint, layout: str, subfolder: str | None, rope: str | None, config: dict[str, Any]
) -> TowerWeights:
    """`checkpoint` in transformers' names, with what is known of its configuration."""
    if rope is None and "rope_parameters" in config:
        rope = "released"  # whatever they say, it is TULIP's
    if checkpoint.config is not None:
        layout = "transformers"
    if has_own_names(checkpoint.weights):
        layout = "transformers"  # behind their prefix, which is taken off with any other
    elif "position_encoding" in checkpoint.said.get("text", {}):
        layout = "tulip_cope" if checkpoint.said["text"]["position_encoding"] == "cope" else "tulip"
    try:
        towers = to_transformers(checkpoint.weights, layout, subfolder, rope)
    except (RuntimeError, IndexError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{checkpoint.name} holds tensors that no encoder has: {reason}") from error
    if (
        towers.layout == "open_clip"
        and not checkpoint.said
        and checkpoint.beside is None
        and "hidden_act" not in config
    ):
        logger.warning(
            "This file does not say its activation. Assuming exact GELU, as open_clip's own models have; pass "
            'hidden_act="quick_gelu" for weights that OpenAI trained.'
        )
    return towers


def _text_encoder(
    checkpoint: Checkpoint, towers: TowerWeights, dtype: torch.dtype, rope: str | None, config: dict[str, Any]
) -> TextEncoder:
    if not towers.text:
        raise ValueError(f"{checkpoint.name} has no text tower.")
    if rope is not None:
        if towers.text_config.get("position_encoding") != "rope":
            raise ValueError(
                f"rope={rope!r} is the rotation of a TULIP encoder, and {checkpoint.name} has none: its positions are "
                "in its weights. Leave rope out."
            )
        config = {"rope_parameters": rope_parameters(rope), **config}
    told = {**checkpoint.said.get("text", {}), **config}
    fields = _override(_text_config(checkpoint, towers, told), told)
    weights = towers.text
    if "text_projection.weight" not in weights and towers.layout in ("sdxl", "transformers"):
        logger.warning(
            f"{checkpoint.name} has no text projection: text_embeds are the pooled states themselves (identity)."
        )
        fields.projection_dim = config.get("projection_dim", fields.hidden_size)
        weights = {**weights, "text_projection.weight": torch.eye(fields.projection_dim, fields.hidden_size)}
    return _build(projecting_class(fields), fields, weights, checkpoint.name, towers, dtype)


def _text_config(checkpoint: Checkpoint, towers: TowerWeights, told: dict[str, Any]) -> CLIPTextConfig:
    """The text tower's configuration: that of its folder, or one beside the file, or else what the shapes tell."""
    declared = checkpoint.config
    if declared is None and towers.layout in ("transformers", "open_clip"):
        declared = checkpoint.beside
    if declared is not None and (config := _tower_config(declared, "text")) is not None:
        where = f"{checkpoint.folder}/config.json"
        if is_tulip(config) != ("position_encoding" in towers.text_config):
            raise ValueError(f"{where} describes a {config.model_type}, which {checkpoint.name} does not hold.")
        return _checked_sizes(config, towers.text_config, where, checkpoint.name)
    sizes = dict(towers.text_config)
    if "position_encoding" in sizes and "rope_parameters" not in {**sizes, **told} and towers.layout == "transformers":
        raise ValueError(
            f"{checkpoint.name} has no text_model.embeddings.position_embedding.weight. If it is a TULIP encoder, "
            "keep the config.json that was saved with it beside it (or pass that folder), or pass rope='released'."
        )
    if "hidden_act" not in sizes:
        sizes["hidden_act"] = _activation(checkpoint.name, sizes, told, image=False)
    return _made(TulipTextConfig if "position_encoding" in sizes else CLIPTextConfig, sizes)


def _image_encoder(
    checkpoint: Checkpoint, towers: TowerWeights, dtype: torch.dtype, config: dict[str, Any]
) -> CLIPVisionModelWithProjection:
    told = {**checkpoint.said.get("image", {}), **config}
    declared = checkpoint.config or (checkpoint.beside if towers.layout in ("transformers", "open_clip") else None)
    if declared is not None and (fields := _tower_config(declared, "vision")) is not None:
        _checked_sizes(fields, towers.image_config, f"{checkpoint.folder}/config.json", checkpoint.name)
    else:
        sizes = dict(towers.image_config)
        if "hidden_act" not in sizes:
            sizes["hidden_act"] = _activation(checkpoint.name, sizes, told, image=True)
        fields = _made(CLIPVisionConfig, sizes)
    model_class = CLIPVisionModelWithProjection
    return _build(model_class, _override(fields, told), towers.image, checkpoint.name, towers, dtype)


def _tower_config(config: PreTrainedConfig, tower: str) -> Any:
    """The "text" or "vision" tower's part of `config`, None where it describes the other one alone."""
    if config.model_type == "clip":  # the whole model's projection counts, whatever its parts say
        part = getattr(config, f"{tower}_config")
        part.projection_dim = config.projection_dim
        return part
    of_text = config.model_type in ("clip_text_model", TulipTextConfig.model_type)
    of_image = config.model_type == "clip_vision_model"
    return config if (of_text if tower == "text" else of_image) else None


def _checked_sizes(config: Any, sizes: dict[str, Any], where: str, name: str) -> Any:
    """`config`, where the weights have its sizes."""
    for size in SIZES:
        given = getattr(config, size, None)
        if size in sizes and given != sizes[size]:
            raise ValueError(f"{where} says {size} {given}, but the weights in {name} have {sizes[size]}.")
    return config


def _activation(name: str, sizes: dict[str, Any], told: dict[str, Any], image: bool) -> str:
    """`hidden_act` of a tower whose file does not say it, known by its sizes."""
    if "hidden_act" in told:
        return told["hidden_act"]
    published = published_activation(sizes, image)
    if published is None:
        raise ValueError(
            f"{name} does not say its activation, and no published CLIP has its sizes. Pass hidden_act='quick_gelu' "
            "(OpenAI's) or 'gelu' (OpenCLIP's), --hidden-act on the command line, or keep its config.json beside it."
        )
    whose, activation = published
    logger.warning(
        f"{name} does not say its activation. It has the sizes of {whose}, so {activation}; pass hidden_act if that "
        "is wrong."
    )
    return activation


def _build(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    weights: dict[str, Tensor],
    name: str,
    towers: TowerWeights,
    dtype: torch.dtype,
) -> Any:
    def in_file(keys: Iterable[str]) -> list[str]:
        renamed = towers.layout not in ("transformers", "sdxl")
        return sorted({openai_name(key) for key in keys} if renamed else set(keys))

    _refuse_nonsense(config, name)
    with torch.device("meta"):
        expected = {key: tensor.shape for key, tensor in model_class(config).state_dict().items()}
    shapes = [
        f"{in_file([key])[0]} gives {tuple(weights[key].shape)}, expected {tuple(shape)}"
        for key, shape in expected.items()
        if key in weights and weights[key].shape != shape
    ]
    integers = [
        f"{in_file([key])[0]} ({value.dtype})" for key, value in weights.items() if not value.is_floating_point()
    ]
    missing, unexpected = expected.keys() - weights.keys(), weights.keys() - expected.keys()
    problems = {
        "missing": in_file(missing),
        "unexpected": in_file(unexpected),
        "wrong shape": shapes,
        "no floating-point numbers": integers,
    }
    found = [f"{what}: {', '.join(which[:3])}{' …' * (len(which) > 3)}" for what, which in problems.items() if which]
    if found:
        raise ValueError(
            f"{name} ({towers.layout} layout) does not fit the model; {'; '.join(found)}. Check `layout` and what "
            "else you pass."
        )
    model: Any = model_class.from_pretrained(None, config=config, state_dict=weights, dtype=dtype).eval()
    align_weights(model)
    return model


def _refuse_nonsense(config: Any, name: str) -> None:
    """Values that transformers notices late, or never."""
    heads, width = config.num_attention_heads, config.hidden_size
    if heads < 1 or width % heads:
        raise ValueError(
            f"{name}: {heads} attention heads do not divide its width of {width}. Pass num_attention_heads."
        )
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"{name}: hidden_act must be such as 'quick_gelu' or 'gelu', got {config.hidden_act!r}.")


def _override(config: Any, fields: dict[str, Any]) -> Any:
    known = config.to_dict()
    if unknown := sorted(fields.keys() - known.keys()):
        raise ValueError(f"{type(config).__name__} has no field {', '.join(unknown)}.")
    return _made(type(config), {**known, **fields}) if fields else config


def _made(config_class: Any, fields: dict[str, Any]) -> Any:
    try:
        return config_class(**fields)
    except (StrictDataclassError, ZeroDivisionError) as error:  # neither is a ValueError
        raise ValueError(f"{config_class.__name__} cannot be: {in_one_line(error)}") from error
