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

from .positions import CLIP_EOS, CLIP_LENGTH, LONGCLIP_KEEP, LONGCLIP_LENGTH, default_eos

LAYOUTS = ("openai", "open_clip", "tulip", "tulip_cope", "longclip", "finelip", "transformers", "sdxl")
TEXT_TOWER = r"(token_embedding|positional_embedding|transformer|ln_final|text_projection)\b"
# Beside the towers: sizes that OpenAI's archives store as tensors, temperatures, FineLIP's refinement modules.
BESIDE_TOWERS = (
    r"input_resolution$|context_length$|vocab_size$|logit_scale$|logit_bias$|attn_mask$|aggr_net\.|cap_aggr_net\."
)
# Text towers' heads are 64 wide in every published CLIP; these image towers are the exceptions (open_clip's configs).
IMAGE_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
# Where a text tower begins: what stands before these names is a wrapper's, or says which encoder of several it is.
TEXT_START = re.compile(r"((?:.*?\.)??)(?:text_model\.embeddings\.|embeddings\.|)token_embedding\.weight")
IMAGE_START = re.compile(r"((?:.*?\.)??)(?:vision_model\.embeddings\.|visual\.)class_embedding")
# Single files of whole pipelines, by how their text encoders' keys begin: which encoder, and its activation.
PIPELINE_ENCODERS = {
    "conditioner.embedders.0.transformer.": ("text_encoder", "quick_gelu"),  # SDXL
    "conditioner.embedders.1.model.": ("text_encoder_2", "gelu"),
    "conditioner.embedders.0.model.": ("text_encoder_2", "gelu"),  # SDXL's refiner
    "cond_stage_model.transformer.": ("text_encoder", "quick_gelu"),  # Stable Diffusion 1
    "cond_stage_model.model.": ("text_encoder", "gelu"),  # Stable Diffusion 2
    "text_encoders.clip_l.transformer.": ("text_encoder", "quick_gelu"),  # Stable Diffusion 3
    "text_encoders.clip_g.transformer.": ("text_encoder_2", "gelu"),
    "clip_l.transformer.": ("text_encoder", "quick_gelu"),  # ComfyUI
    "clip_g.transformer.": ("text_encoder_2", "gelu"),
    "clip_h.transformer.": ("text_encoder", "gelu"),
}
# Before every name of a TULIP encoder's own file, and none that a CLIP has: without it a program that knows CLIP alone
# finds all of CLIP's tensors but the table of positions, makes one up, and draws wrong pictures.
OWN_PREFIX = "tulip_encoder."
# Published towers under transformers' names, by (width, layers); what LAION trained at OpenAI's sizes is GELU instead.
TEXT_ACTIVATIONS = {
    (512, 12): ("OpenAI's B/32 and B/16", "quick_gelu"),
    (768, 12): ("OpenAI's L/14", "quick_gelu"),
    (1024, 24): ("OpenCLIP's H/14", "gelu"),
    (1280, 32): ("OpenCLIP's bigG/14", "gelu"),
}
IMAGE_ACTIVATIONS = {
    (768, 12): ("OpenAI's B/32 and B/16", "quick_gelu"),
    (1024, 24): ("OpenAI's L/14", "quick_gelu"),
    (1280, 32): ("OpenCLIP's H/14", "gelu"),
    (1664, 48): ("OpenCLIP's bigG/14", "gelu"),
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
class TowerWeights:
    """A checkpoint in transformers' names: what to build, and the weights to put in.

    `text` fits a `CLIPTextModelWithProjection`, or a `TulipTextModelWithProjection` where `text_config` has a
    `position_encoding`; `image` fits a `CLIPVisionModelWithProjection`. Either is empty where the file has none. The
    configurations hold what the keys and shapes tell, which may leave out `hidden_act`.
    """

    layout: str
    text: dict[str, Tensor] = field(default_factory=dict)
    text_config: dict[str, Any] = field(default_factory=dict)
    image: dict[str, Tensor] = field(default_factory=dict)
    image_config: dict[str, Any] = field(default_factory=dict)
    logit_scale: Tensor | None = None


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `checkpoint` without its training wrappers: nested state dicts, and what every name begins with.

    Such as `module.` (DistributedDataParallel), `_orig_mod.` (torch.compile), `model.`, `clip.`, and the `text.` of
    open_clip's CustomTextCLIP.
    """
    for name in ("state_dict", "model_state_dict", "model", "module"):
        if isinstance(checkpoint.get(name), Mapping):
            return unwrap(checkpoint[name])
    state = {key: value for key, value in checkpoint.items() if isinstance(key, str) and isinstance(value, Tensor)}
    prefixes = text_prefixes(state) or _matches(IMAGE_START, state)
    if len(prefixes) != 1 or prefixes[0] in PIPELINE_ENCODERS:
        return state
    wrapper, text = prefixes[0], ""
    if wrapper.endswith("text.") and any(key.startswith(f"{wrapper}transformer.") for key in state):
        wrapper, text = wrapper.removesuffix("text."), wrapper
    if not all(key.startswith(wrapper) for key in state):
        return state
    return {key.removeprefix(text or wrapper).removeprefix(wrapper): value for key, value in state.items()}


def text_prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """What stands before the names of each text tower in `state`; one empty string for a tower without a wrapper."""
    return _matches(TEXT_START, state)


def _matches(start: re.Pattern, state: Mapping[str, Tensor]) -> list[str]:
    return sorted({match[1] for match in map(start.fullmatch, state) if match})


def detect_layout(checkpoint: Mapping[str, Any]) -> str:
    """Name the layout of a loaded file by its keys.

    TULIP's stage 2 has the very keys of an ordinary CLIP. Its positions are never used in training though, so the
    optimizer saved beside the weights holds no state for them, and for them alone.

    Raises:
        ValueError: the keys fit no layout.
    """
    state = unwrap(checkpoint)
    if any(prefix for prefix in text_prefixes(state)):
        return "sdxl"
    if any("embeddings.token_embedding.weight" in key or key.startswith("vision_model.") for key in state):
        return "transformers"
    if "transformer.resblocks.0.attn.in_proj_weight" not in state:
        raise ValueError(
            f"These keys belong to no known CLIP layout: {', '.join(sorted(state)[:5]) or 'no tensors at all'} … "
            f"Known layouts are {', '.join(LAYOUTS)}."
        )
    if "positional_embedding_res" in state:
        return "finelip" if any(key.startswith(("aggr_net.", "cap_aggr_net.")) for key in state) else "longclip"
    if "transformer.resblocks.0.attn.cope.pos_emb" in state:
        return "tulip_cope"
    if "positional_embedding" not in state or _positions_never_trained(checkpoint.get("optimizer")):
        return "tulip"
    return "openai" if "context_length" in state else "open_clip"


def _positions_never_trained(optimizer: Any) -> bool:
    if not isinstance(optimizer, Mapping) or not optimizer.get("state"):
        return False
    groups = optimizer.get("param_groups", [])
    never = {index for group in groups for index in group["params"]} - set(optimizer["state"])
    # The second group holds the matrices, in the order of CLIP's parameters: `positional_embedding` comes first.
    return len(groups) == 2 and never == set(groups[1]["params"][:1])


def to_transformers(
    checkpoint: Mapping[str, Any], layout: str = "auto", subfolder: str | None = None, rope: str | None = None
) -> TowerWeights:
    """Rename a loaded checkpoint's tensors to transformers' names and read the configuration off their shapes.

    `subfolder` chooses one of several text encoders in the file, "text_encoder" (the default) or "text_encoder_2". A
    `rope` ("released" or "paper") says that what looks like an ordinary CLIP is TULIP's stage 2.

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
        return _one_of_several(state, subfolder, rope)
    if layout == "transformers":
        return _transformers(state, rope)
    return _openai_names(state, layout, rope or "released")


def _one_of_several(state: dict[str, Tensor], subfolder: str | None, rope: str | None) -> TowerWeights:
    """The chosen text encoder of a file that holds several, or one among the parts of a pipeline."""
    prefixes = text_prefixes(state)
    slots = {prefix: PIPELINE_ENCODERS.get(prefix, ("text_encoder", None)) for prefix in prefixes}
    chosen = prefixes
    if len(prefixes) > 1 or (subfolder is not None and set(prefixes) <= PIPELINE_ENCODERS.keys()):
        chosen = [prefix for prefix in prefixes if slots[prefix][0] == (subfolder or "text_encoder")]
    if len(chosen) != 1:
        found = ", ".join(f"{slots[prefix][0]} ({prefix or 'no prefix'})" for prefix in prefixes) or "none"
        raise ValueError(
            f"This file holds no single {subfolder or 'text_encoder'}; its text encoders: {found}. Choose one with "
            "subfolder='text_encoder' or 'text_encoder_2'."
        )
    prefix = chosen[0]
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    beside = {key: value for key, value in state.items() if not key.startswith(tuple(prefixes))}
    inside = _from_around(beside, prefix) | inside
    if prefix not in PIPELINE_ENCODERS and len(prefixes) == 1:
        inside |= beside  # a wrapper around a part of the names only: what it leaves out fits nothing, and is named
    towers = to_transformers(inside, rope=rope)
    activation = slots[prefix][1]
    if activation is not None and towers.layout in ("transformers", "open_clip"):
        towers.text_config["hidden_act"] = activation
    towers.layout = "sdxl"
    return towers


def _from_around(beside: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Temperature and projection, which some programs keep one level above the tower: taken out of `beside`."""
    around: dict[str, Tensor] = {}
    while "." in prefix:
        prefix = prefix.rstrip(".").rpartition(".")[0]
        prefix = f"{prefix}." if prefix else ""
        for name in ("logit_scale", "text_projection", "text_projection.weight"):
            if f"{prefix}{name}" in beside:
                around.setdefault(name, beside.pop(f"{prefix}{name}"))
    return around


def _openai_names(state: dict[str, Tensor], layout: str, rope: str) -> TowerWeights:
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
    renamed = _from_openai(text, TEXT_NAMES, "text_model")
    towers = TowerWeights(layout, renamed, {**text_config(renamed), "hidden_act": hidden_act, **positions})
    if "proj" in image and "conv1.weight" in image:  # a ViT; transformers has no CLIP with a ResNet
        towers.image = _from_openai(image, IMAGE_NAMES, "vision_model")
        towers.image_config = {**image_config(towers.image), "hidden_act": hidden_act}
    towers.logit_scale = state.get("logit_scale")
    return towers


def _tulip_positions(text: Mapping[str, Tensor], layout: str, rope: str, stage_two: bool) -> dict[str, Any]:
    if layout == "tulip_cope":
        table = text.get("transformer.resblocks.0.attn.cope.pos_emb")
        if table is None:
            raise ValueError("Layout 'tulip_cope' needs transformer.resblocks.0.attn.cope.pos_emb. Try 'tulip'.")
        return {"position_encoding": "cope", "max_position_embeddings": table.shape[-1]}
    return {
        "position_encoding": "rope",
        "max_position_embeddings": LONGCLIP_LENGTH if stage_two else CLIP_LENGTH,
        "rope_parameters": rope_parameters(rope),
    }


def rope_parameters(rope: str) -> dict[str, Any]:
    """Rotations of TULIP's published encoders, which their files do not hold."""
    known: dict[str, dict[str, Any]] = {
        "released": {"rope_type": "default", "rope_theta": 10000.0},
        "paper": {
            "rope_type": "ntk",
            "rope_theta": 10000.0,
            "alpha": 8.0,
            "base_length": CLIP_LENGTH,
            "length": LONGCLIP_LENGTH,
        },
    }
    if rope not in known:
        raise ValueError(
            f"rope must be 'released' (theta 10,000, as the official evaluation) or 'paper', got {rope!r}."
        )
    return known[rope]


def _transformers(state: dict[str, Tensor], rope: str | None) -> TowerWeights:
    bare = ("embeddings.", "encoder.", "final_layer_norm.")  # CLIPTextModel, saved without its prefix
    state = {f"text_model.{key}" if key.startswith(bare) else key: value for key, value in state.items()}
    if "text_projection" in state:  # as OpenAI's names have it
        state["text_projection.weight"] = state.pop("text_projection").T.contiguous()
    for tower in ("text_model", "vision_model"):
        state.pop(f"{tower}.embeddings.position_ids", None)  # a buffer in files of older versions
    logit_scale = state.pop("logit_scale", None)
    image = {key: state.pop(key) for key in list(state) if key.startswith(("vision_model.", "visual_projection."))}
    towers = TowerWeights("transformers", text=state, image=image, logit_scale=logit_scale)
    if state:  # what else there is goes with the text tower, whose model will not know it
        towers.text_config = text_config(state) | _transformers_positions(state, rope)
    if image:
        towers.image_config = image_config(image)
    return towers


def _transformers_positions(text: Mapping[str, Tensor], rope: str | None) -> dict[str, Any]:
    """A tower without a table of positions is TULIP; what its rotation is, only a config or `rope` can say."""
    if "text_model.embeddings.position_embedding.weight" in text:
        return {}
    table = text.get("text_model.encoder.layers.0.self_attn.cope.table")
    if table is not None:
        return {"position_encoding": "cope", "max_position_embeddings": table.shape[-1]}
    return {"position_encoding": "rope"} | ({"rope_parameters": rope_parameters(rope)} if rope else {})


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
    """`CLIPTextConfig` fields that the shapes tell, from a text tower in transformers' names.

    Heads are 64 wide in every published CLIP, and EOS is the last of CLIP's own ids; a file does not say either.

    Raises:
        ValueError: a tensor that the sizes are read from is missing.
    """
    vocab_size, width = _shape(text, "text_model.embeddings.token_embedding.weight", 2)
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": _shape(text, "text_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _layers(text),
        "num_attention_heads": max(width // 64, 1),
        "bos_token_id": default_eos(vocab_size) - 1,
        "eos_token_id": default_eos(vocab_size),
        "projection_dim": width,
    }
    if "text_projection.weight" in text:
        fields["projection_dim"] = _shape(text, "text_projection.weight", 2)[0]
    if "text_model.embeddings.position_embedding.weight" in text:
        fields["max_position_embeddings"] = _shape(text, "text_model.embeddings.position_embedding.weight", 2)[0]
    return fields


def image_config(image: Mapping[str, Tensor]) -> dict[str, Any]:
    """`CLIPVisionConfig` fields that the shapes tell, from a ViT in transformers' names."""
    width, channels, _, patch_size = _shape(image, "vision_model.embeddings.patch_embedding.weight", 4)
    patches = _shape(image, "vision_model.embeddings.position_embedding.weight", 2)[0] - 1
    return {
        "hidden_size": width,
        "intermediate_size": _shape(image, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": _layers(image),
        "num_attention_heads": max(width // IMAGE_HEAD_WIDTHS.get(width, 64), 1),
        "num_channels": channels,
        "patch_size": patch_size,
        "image_size": round(patches**0.5) * patch_size,
        "projection_dim": _shape(image, "visual_projection.weight", 2)[0],
    }


def published_activation(config: Mapping[str, Any], image: bool = False) -> tuple[str, str] | None:
    """Whose tower has `config`'s sizes, and its activation; None for sizes that nobody published."""
    published = (IMAGE_ACTIVATIONS if image else TEXT_ACTIVATIONS).get(
        (config["hidden_size"], config["num_hidden_layers"])
    )
    known = config["intermediate_size"] in (4 * config["hidden_size"], 8192)  # bigG's image tower has 8,192
    return published if known and (image or config["vocab_size"] > CLIP_EOS) else None


def _shape(tower: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in tower:
        raise ValueError(f"The checkpoint has no {openai_name(key)} ({key} in transformers' names): it is incomplete.")
    if tower[key].ndim != dimensions:
        raise ValueError(f"{key} has {tower[key].ndim} dimensions, expected {dimensions}.")
    return tuple(tower[key].shape)


def _layers(tower: Mapping[str, Tensor]) -> int:
    matches = (re.match(r"\w+\.encoder\.layers\.(\d+)\.", key) for key in tower)
    layers = {int(match[1]) for match in matches if match}
    if missing := sorted(set(range(len(layers))) - layers):
        raise ValueError(f"The checkpoint has no layer {missing[0]}, but later ones: it is incomplete.")
    return len(layers)


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


def to_own_names(tower: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `TulipTextModelWithProjection`'s state dict under names that no loader takes for a CLIP's."""
    return {OWN_PREFIX + key.removeprefix("text_model."): value for key, value in tower.items()}


def has_own_names(checkpoint: Mapping[str, Any]) -> bool:
    return bool(checkpoint) and all(isinstance(key, str) and key.startswith(OWN_PREFIX) for key in checkpoint)


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
