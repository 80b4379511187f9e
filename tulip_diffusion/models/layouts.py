"""The layouts that CLIP checkpoints are published in, and their parameter names in transformers' words.

Pure functions on state dicts: no files, no models. OpenAI's names (`transformer.resblocks.0.attn.in_proj_weight` …)
serve OpenAI, open_clip, TULIP, Long-CLIP and FineLIP alike; what tells these apart is which keys are there.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .positions import CLIP_LENGTH, LONGCLIP_KEEP, LONGCLIP_LENGTH, default_eos

LAYOUTS = ("openai", "open_clip", "tulip", "tulip_cope", "longclip", "finelip", "transformers", "sdxl")
TEXT_TOWER = r"(token_embedding|positional_embedding|transformer|ln_final|text_projection)\b"
# Beside the towers: sizes that OpenAI's archives store as tensors, temperatures, FineLIP's refinement modules.
BESIDE_TOWERS = (
    r"input_resolution$|context_length$|vocab_size$|logit_scale$|logit_bias$|attn_mask$|aggr_net\.|cap_aggr_net\."
)
# Text towers' heads are 64 wide in every published CLIP; these image towers are the exceptions (open_clip's configs).
IMAGE_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
SDXL_ENCODERS = {
    "text_encoder": ("conditioner.embedders.0.transformer.",),
    "text_encoder_2": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model."),  # base, refiner
}

# OpenAI's name -> transformers' name, for what needs no reshaping; both towers share the blocks.
BLOCK_NAMES = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
    "attn.q_ln": "self_attn.cope.query_norm",
    "attn.k_ln": "self_attn.cope.key_norm",
}
TEXT_NAMES = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection.weight": "text_projection.weight",
}
IMAGE_NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "proj": "visual_projection.weight"}  # x @ W there, W x here


@dataclass
class Towers:
    """A checkpoint in transformers' names: what to build, and the weights to put in.

    `text` fits a `CLIPTextModelWithProjection`, or a `TulipTextModelWithProjection` where `text_config` has a
    `position_encoding`; `image` fits a `CLIPVisionModelWithProjection` and is empty where the file has no ViT.
    """

    layout: str
    text: dict[str, Tensor]
    text_config: dict[str, Any]
    image: dict[str, Tensor] = field(default_factory=dict)
    image_config: dict[str, Any] = field(default_factory=dict)
    logit_scale: Tensor | None = None


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `checkpoint`, out of training wrappers: nested `state_dict`, `module.`, `_orig_mod.`, `text.`."""
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(checkpoint.get(name), Mapping):
            return unwrap(checkpoint[name])
    state = {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "_orig_mod."):  # DistributedDataParallel, torch.compile
        if state and all(key.startswith(prefix) for key in state):
            return unwrap({key.removeprefix(prefix): value for key, value in state.items()})
    if "text.token_embedding.weight" in state:  # open_clip's CustomTextCLIP
        state = {key.removeprefix("text."): value for key, value in state.items()}
    return state


def detect_layout(checkpoint: Mapping[str, Any]) -> str:
    """Name the layout of a loaded file by its keys.

    TULIP's stage 2 has the very keys of an ordinary CLIP. Its positions are never used in training though, so the
    optimizer saved beside the weights holds no state for them, and for them alone.

    Raises:
        ValueError: the keys fit no layout.
    """
    keys = unwrap(checkpoint).keys()
    if any(key.startswith("conditioner.embedders.") for key in keys):
        return "sdxl"
    if any(key.endswith("embeddings.token_embedding.weight") for key in keys):
        return "transformers"
    if "transformer.resblocks.0.attn.in_proj_weight" not in keys:
        raise ValueError(
            f"These keys belong to no known CLIP layout: {', '.join(sorted(keys)[:5]) or 'no tensors at all'} … "
            f"Known layouts are {', '.join(LAYOUTS)}."
        )
    if "positional_embedding_res" in keys:
        return "finelip" if any(key.startswith(("aggr_net.", "cap_aggr_net.")) for key in keys) else "longclip"
    if "transformer.resblocks.0.attn.cope.pos_emb" in keys:
        return "tulip_cope"
    if "positional_embedding" not in keys or _positions_never_trained(checkpoint.get("optimizer")):
        return "tulip"
    return "openai" if "context_length" in keys else "open_clip"


def _positions_never_trained(optimizer: Any) -> bool:
    if not isinstance(optimizer, Mapping) or not optimizer.get("state"):
        return False
    groups = optimizer.get("param_groups", [])
    never = {index for group in groups for index in group["params"]} - set(optimizer["state"])
    # The second group holds the matrices, in the order of CLIP's parameters: `positional_embedding` comes first.
    return len(groups) == 2 and never == set(groups[1]["params"][:1])


def to_transformers(
    checkpoint: Mapping[str, Any], layout: str = "auto", subfolder: str = "text_encoder", rope: str | None = None
) -> Towers:
    """Rename a loaded checkpoint's tensors to transformers' names and read the configuration off their shapes.

    A `rope` ("released" or "paper") says that what looks like an ordinary CLIP is TULIP's stage 2.

    Raises:
        ValueError: an unknown `layout` or `rope`, keys that fit no layout or that the named layout does not have.
    """
    if layout not in ("auto", *LAYOUTS):
        raise ValueError(f"layout must be one of {', '.join(('auto', *LAYOUTS))}, got {layout!r}.")
    if layout == "auto":
        layout = detect_layout(checkpoint)
        layout = "tulip" if layout == "open_clip" and rope is not None else layout
    state = unwrap(checkpoint)
    if layout == "sdxl":
        return _sdxl(state, subfolder)
    if layout == "transformers":
        return _transformers(state)
    return _openai_names(state, layout, rope or "released")


def _openai_names(state: dict[str, Tensor], layout: str, rope: str) -> Towers:
    text = {key: value for key, value in state.items() if re.match(TEXT_TOWER, key)}
    image = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    beside = {key for key in state if re.match(BESIDE_TOWERS, key)}
    if layout in ("longclip", "finelip"):
        text["positional_embedding"] = merge_longclip_positions(state)
        beside.add("positional_embedding_res")
    if unknown := sorted(state.keys() - text.keys() - beside - {f"visual.{key}" for key in image}):
        raise ValueError(f"A checkpoint of layout {layout!r} has no {', '.join(unknown[:5])}. Check the `layout`.")
    if layout == "longclip":
        text, image = (_round_like_longclip(tower) for tower in (text, image))
    positions: dict[str, Any] = {}
    if layout.startswith("tulip"):
        stage_two = text.pop("positional_embedding", None) is not None  # stale: the model never reads it
        positions = _tulip_positions(text, layout, rope, stage_two)
    hidden_act = "quick_gelu" if layout in ("openai", "longclip", "finelip") else "gelu"
    towers = Towers(
        layout,
        _from_openai(text, TEXT_NAMES, "text_model"),
        {**text_config(text), "hidden_act": hidden_act, **positions},
    )
    if "proj" in image and "conv1.weight" in image:  # a ViT; transformers has no CLIP with a ResNet
        towers.image = _from_openai(image, IMAGE_NAMES, "vision_model")
        image_act = "quick_gelu" if hidden_act == "quick_gelu" else "gelu"
        towers.image_config = {**image_config(image), "hidden_act": image_act}
    towers.logit_scale = state.get("logit_scale")
    return towers


def _tulip_positions(text: Mapping[str, Tensor], layout: str, rope: str, stage_two: bool) -> dict[str, Any]:
    if layout == "tulip_cope":
        table = text.get("transformer.resblocks.0.attn.cope.pos_emb")
        if table is None:
            raise ValueError("Layout 'tulip_cope' needs transformer.resblocks.0.attn.cope.pos_emb. Try 'tulip'.")
        return {"position_encoding": "cope", "max_position_embeddings": table.shape[-1]}
    rope_parameters: dict[str, dict[str, Any]] = {
        "released": {"rope_type": "default", "rope_theta": 10000.0},
        "paper": {
            "rope_type": "ntk",
            "rope_theta": 10000.0,
            "alpha": 8.0,
            "base_length": CLIP_LENGTH,
            "length": LONGCLIP_LENGTH,
        },
    }
    if rope not in rope_parameters:
        raise ValueError(
            f"rope must be 'released' (theta 10,000, as the official evaluation) or 'paper', got {rope!r}."
        )
    return {
        "position_encoding": "rope",
        "max_position_embeddings": LONGCLIP_LENGTH if stage_two else CLIP_LENGTH,
        "rope_parameters": rope_parameters[rope],
    }


def _sdxl(state: dict[str, Tensor], subfolder: str) -> Towers:
    if subfolder not in SDXL_ENCODERS:
        raise ValueError(f"subfolder must be one of {', '.join(SDXL_ENCODERS)}, got {subfolder!r}.")
    for prefix in SDXL_ENCODERS[subfolder]:
        inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if inside:
            towers = to_transformers(inside)
            towers.layout = "sdxl"
            return towers
    raise ValueError(f"This SDXL file holds no {subfolder} (no key starts with {SDXL_ENCODERS[subfolder][0]}).")


def _transformers(state: dict[str, Tensor]) -> Towers:
    if "embeddings.token_embedding.weight" in state:  # CLIPTextModel, saved without its prefix
        state = {f"text_model.{key}": value for key, value in state.items()}
    text = {key: value for key, value in state.items() if key.startswith(("text_model.", "text_projection."))}
    text.pop("text_model.embeddings.position_ids", None)  # a buffer in files of older versions
    if "text_model.embeddings.position_embedding.weight" not in text:
        raise ValueError(
            "This file has no text_model.embeddings.position_embedding.weight, so it is not a CLIP encoder; a TULIP "
            "encoder needs the config.json saved beside it: pass the folder."
        )
    return Towers("transformers", text, text_config(to_openai(text)))


def merge_longclip_positions(state: Mapping[str, Tensor]) -> Tensor:
    """The 248 positions Long-CLIP runs with: the first 20 frozen, the rest from the trained `…_res` table."""
    missing = [key for key in ("positional_embedding", "positional_embedding_res") if key not in state]
    if missing:
        raise ValueError(f"A Long-CLIP or FineLIP checkpoint needs {' and '.join(missing)}. Check the `layout`.")
    return torch.cat(
        (state["positional_embedding"][:LONGCLIP_KEEP], state["positional_embedding_res"][LONGCLIP_KEEP:])
    )


def _round_like_longclip(tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """Long-CLIP's loader passes the weights of every linear layer and convolution through float16."""
    rounded = re.compile(r"(?!.*\bln_)(.*resblocks\.|conv1\.|proj$|text_projection$)")
    return {key: value.half().float() if rounded.match(key) else value for key, value in tower.items()}


def text_config(text: Mapping[str, Tensor]) -> dict[str, Any]:
    """`CLIPTextConfig` fields that the shapes tell, from a text tower in OpenAI's names.

    Heads are 64 wide in every published CLIP, and EOS is the last of CLIP's own ids; a file does not say either.

    Raises:
        ValueError: a tensor that the sizes are read from is missing.
    """
    vocab_size, width = _needed(text, "token_embedding.weight").shape
    eos = default_eos(vocab_size)
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": _needed(text, "transformer.resblocks.0.mlp.c_fc.weight").shape[0],
        "num_hidden_layers": _layers(text),
        "num_attention_heads": max(width // 64, 1),
        "bos_token_id": eos - 1,
        "eos_token_id": eos,
        "projection_dim": width,
    }
    if "text_projection" in text:
        fields["projection_dim"] = text["text_projection"].shape[1]
    elif "text_projection.weight" in text:
        fields["projection_dim"] = text["text_projection.weight"].shape[0]
    if "positional_embedding" in text:
        fields["max_position_embeddings"] = text["positional_embedding"].shape[0]
    return fields


def image_config(image: Mapping[str, Tensor]) -> dict[str, Any]:
    """`CLIPVisionConfig` fields that the shapes tell, from a ViT in OpenAI's names without `visual.`."""
    width, channels, _, patch_size = _needed(image, "conv1.weight").shape
    patches = _needed(image, "positional_embedding").shape[0] - 1
    return {
        "hidden_size": width,
        "intermediate_size": _needed(image, "transformer.resblocks.0.mlp.c_fc.weight").shape[0],
        "num_hidden_layers": _layers(image),
        "num_attention_heads": max(width // IMAGE_HEAD_WIDTHS.get(width, 64), 1),
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": round(patches**0.5) * patch_size,
        "projection_dim": _needed(image, "proj").shape[1],
    }


def _needed(tower: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in tower:
        raise ValueError(f"The checkpoint has no {key}: the file is incomplete, or of another layout.")
    return tower[key]


def _layers(tower: Mapping[str, Tensor]) -> int:
    blocks = (re.match(r"transformer\.resblocks\.(\d+)\.", key) for key in tower)
    return 1 + max(int(block[1]) for block in blocks if block)


def _from_openai(tower: Mapping[str, Tensor], names: Mapping[str, str], model: str) -> dict[str, Tensor]:
    renamed = {}
    for key, value in tower.items():
        block = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", key)
        if key in TRANSPOSED:
            renamed[TRANSPOSED[key]] = value.T.contiguous()
        elif block is None:
            renamed[names.get(key, key)] = value
        else:
            layer, inside = f"{model}.encoder.layers.{block[1]}.", block[2]
            if inside in ("attn.in_proj_weight", "attn.in_proj_bias"):
                kind = inside.rpartition("_")[2]
                for projection, part in zip("qkv", value.chunk(3), strict=True):
                    renamed[f"{layer}self_attn.{projection}_proj.{kind}"] = part.clone()
            elif inside == "attn.cope.pos_emb":
                renamed[f"{layer}self_attn.cope.table"] = value.squeeze(0)
            else:
                module, _, kind = inside.rpartition(".")
                renamed[f"{layer}{BLOCK_NAMES.get(module, module)}.{kind}"] = value
    return renamed


def openai_name(key: str) -> str:
    """The tensor of an OpenAI-named file that parameter `key` comes from: q, k and v share one."""
    model, names, prefix = ("vision_model", IMAGE_NAMES, "visual.") if "vis" in key else ("text_model", TEXT_NAMES, "")
    block = re.match(rf"{model}\.encoder\.layers\.(\d+)\.(.+)\.(\w+)$", key)
    if block is None:
        back = {new: old for old, new in names.items()} | {new: old for old, new in TRANSPOSED.items()}
        return prefix + back.get(key, key)
    layer, module, kind = f"{prefix}transformer.resblocks.{block[1]}.", block[2], block[3]
    if re.fullmatch(r"self_attn\.[qkv]_proj", module):
        return f"{layer}attn.in_proj_{kind}"
    if (module, kind) == ("self_attn.cope", "table"):
        return f"{layer}attn.cope.pos_emb"
    return f"{layer}{ {new: old for old, new in BLOCK_NAMES.items()}.get(module, module) }.{kind}"


def to_openai(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A …WithProjection model's state dict under OpenAI's names; the image tower's begin with `visual.`"""
    renamed = {}
    for key, value in tower.items():
        if key in TRANSPOSED.values():
            value = value.T.contiguous()
        elif "self_attn.q_proj" in key:
            value = torch.cat([tower[key.replace("q_proj", f"{projection}_proj")] for projection in "qkv"])
        elif key.endswith("cope.table"):
            value = value.unsqueeze(0)
        elif re.search(r"self_attn\.[kv]_proj", key):
            continue  # went with q
        renamed[openai_name(key)] = value
    return renamed
