"""TULIP's text encoder: CLIP's, with positions in the attention instead of in the input.

Written as a difference from transformers' CLIP: the position table is gone, attention rotates q and k (RoPE) or counts
positions (CoPE), and every other parameter keeps CLIP's name and shape. LoRAs, textual inversions, quantisation and
offloading that work on CLIP therefore work here.
"""

import copy
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTextEncoding,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedModel,  # diffusers reloads a third party's component only if its module exposes this name
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import (
    CLIPAttention,
    CLIPEncoder,
    CLIPEncoderLayer,
    CLIPPreTrainedModel,
    CLIPTextModelOutput,
    eager_attention_forward,
)
from transformers.utils.output_capturing import (
    _CAN_RECORD_REGISTRY,
    install_output_capuring_hook,
    maybe_install_capturing_hooks,
)

from .attention_scaling import query_scale
from .cope import ContextualPositions
from .positions import CLIP_LENGTH, LONGCLIP_LENGTH, TULIP_MODEL_TYPE, eos_token_id, is_tulip
from .rotary import rotary_cos_sin, rotate

CAPTURING = install_output_capuring_hook.__module__
NEW_ATTENTION_SCALING = "none"  # of encoders that `from_clip` makes; files that do not say theirs were trained without
ROPE_KEYS = {"default": {"rope_theta"}, "ntk": {"rope_theta", "alpha", "base_length", "length"}}


@strict
class TulipTextConfig(CLIPTextConfig):
    r"""
    Configuration of a [`TulipTextModel`]: [`~transformers.CLIPTextConfig`] and how tokens get their positions.

    Args:
        position_encoding (`str`, *optional*, defaults to `"rope"`):
            `"rope"` rotates queries and keys; `"cope"` counts positions from the content (TULIP's ablation).
        rope_parameters (`dict`, *optional*, defaults to `{"rope_type": "default", "rope_theta": 10000.0}`):
            With `rope_type` `"ntk"` also `alpha` (8.0), `base_length` (77, the tokens that stage 1 saw) and `length`
            (248, the tokens that stage 2 saw), TULIP section 3.3. Sequences longer than `length` are rescaled from
            their own length. Ignored with `"cope"`.
        max_position_embeddings (`int`, *optional*, defaults to 77):
            Tokens the encoder was trained for. RoPE has no table to run out of; with `"cope"` it is the number of
            rows of each layer's table.
        attention_scaling (`str`, *optional*, defaults to `"none"`):
            `"log"` multiplies the query of the i-th token by max(1, ln i / ln `attention_scaling_base`), so that long
            texts do not dilute attention. i counts from 1 along the sequence as it was passed, padding on the left
            included, whatever the position ids say.
        attention_scaling_base (`int`, *optional*, defaults to 77):
            Tokens up to which nothing is scaled: the teacher's window.
    """

    model_type = TULIP_MODEL_TYPE

    position_encoding: str = "rope"
    rope_parameters: dict[str, Any] | None = None
    attention_scaling: str = "none"
    attention_scaling_base: int = CLIP_LENGTH

    def __post_init__(self, **kwargs):
        given = dict(self.rope_parameters or {})
        if given.get("rope_type") == "ntk":
            given = {"alpha": 8.0, "base_length": CLIP_LENGTH, "length": LONGCLIP_LENGTH, **given}
        self.rope_parameters = given  # a copy: transformers fills in defaults, and the caller's dict is not ours
        super().__post_init__(**kwargs)

    def validate_attention_scaling(self):
        """Part of `@strict`'s validation."""
        if self.attention_scaling not in ("none", "log"):
            raise ValueError(f'attention_scaling must be "none" or "log", got {self.attention_scaling!r}.')
        if self.attention_scaling_base < 2:
            raise ValueError(
                f"attention_scaling_base must be 2 tokens or more, such as CLIP's 77, got "
                f"{self.attention_scaling_base}."
            )

    def validate_rope(self):
        """Part of `@strict`'s validation: `rope_parameters` and `position_encoding` name something we know."""
        if self.position_encoding not in ("rope", "cope"):
            raise ValueError(f'position_encoding must be "rope" or "cope", got {self.position_encoding!r}.')
        if not self.rope_parameters:  # not filled in yet: validation also runs before `__post_init__`
            return
        rope_type = self.rope_parameters.get("rope_type", "default")
        if rope_type not in ROPE_KEYS:
            raise ValueError(f'rope_type must be "default" or "ntk", got {rope_type!r}.')
        allowed = ROPE_KEYS[rope_type] | {"rope_type"}
        if unknown := sorted(set(self.rope_parameters) - allowed):
            raise ValueError(f"rope_parameters of type {rope_type!r} takes {sorted(allowed)}, got also {unknown}.")
        for key, value in self.rope_parameters.items():
            if key != "rope_type" and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"rope_parameters[{key!r}] must be a positive number, got {value!r}.")
        if rope_type == "ntk" and self.rope_parameters["length"] < self.rope_parameters["base_length"]:
            raise ValueError(
                f"NTK scaling lengthens: rope_parameters['length'] ({self.rope_parameters['length']}) must be at "
                f"least rope_parameters['base_length'] ({self.rope_parameters['base_length']})."
            )
        if self.position_encoding == "rope" and (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"RoPE rotates channel pairs, so hidden_size / num_attention_heads must be even, got "
                f"{self.hidden_size} / {self.num_attention_heads}."
            )


class TulipTextEmbeddings(nn.Module):
    """Token embeddings alone; attention supplies the positions."""

    def __init__(self, config: TulipTextConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """(batch, tokens) ids to (batch, tokens, width); positions come later, as rotations."""
        return self.token_embedding(input_ids)


class Captured(nn.Module):
    """A module whose outputs transformers captures, that pickles all the same.

    transformers captures through a hook that is a closure, which no pickle holds; so the hook stays behind and is
    installed again where the module is unpickled or copied to.
    """

    captured: ClassVar[tuple[str, int]]  # the name that transformers collects the output under, and its index

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        hooks = state["_forward_hooks"]
        kept = {key: hook for key, hook in hooks.items() if hook.__module__ != CAPTURING}
        return {**state, "_forward_hooks": type(hooks)(kept), "_captures": len(kept) < len(hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        captures = state.pop("_captures")
        super().__setstate__(state)
        if captures:
            install_output_capuring_hook(self, *self.captured)


class TulipAttention(Captured, CLIPAttention):
    """CLIP's attention with q and k rotated, or with CoPE's bias on its logits."""

    captured = ("attentions", 1)
    config: TulipTextConfig
    head_dim: int
    scale: float
    dropout: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear

    def __init__(self, config: TulipTextConfig):
        super().__init__(config)
        if config.position_encoding == "cope":
            self.cope = ContextualPositions(self.head_dim, config.max_position_embeddings)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        query_scale: Tensor | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden_states` is (batch, tokens, width); `position_embeddings` are RoPE's cosines and sines.

        `query_scale` (tokens,) multiplies queries after rotation, or after CoPE's norm, which would undo it.
        """
        batch, tokens, _ = hidden_states.shape
        split = (batch, tokens, -1, self.head_dim)  # a local shard may hold fewer heads than the config says
        query = self.q_proj(hidden_states).view(split)
        key = self.k_proj(hidden_states).view(split)
        value = self.v_proj(hidden_states).view(split).transpose(1, 2)

        if self.config.position_encoding == "cope":
            # The published code scales q by 1/sqrt(head_dim), then the logits by another 1/sqrt(head_dim).
            query, key = self.cope.query_norm(query) * self.scale, self.cope.key_norm(key)
        else:
            assert position_embeddings is not None  # TulipTextModel always passes them
            query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if query_scale is not None:
            query = query * query_scale.to(query.dtype)[:, None, None]  # (tokens, heads, head_dim)
        query, key = query.transpose(1, 2), key.transpose(1, 2)  # (batch, heads, tokens, head_dim)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if self.config.position_encoding == "cope":
            assert attention_mask is not None  # TulipTextModel always passes one
            logits = query @ key.transpose(-1, -2) * self.scale + attention_mask
            attention_mask = attention_mask + self.cope.bias(query, logits)
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scale,
            dropout=self.dropout if self.training else 0.0,
            **kwargs,
        )
        return self.out_proj(attended.reshape(batch, tokens, -1)), weights


class TulipEncoderLayer(Captured, CLIPEncoderLayer):
    """CLIP's block with [`TulipAttention`]."""

    captured = ("hidden_states", 0)

    def __init__(self, config: TulipTextConfig):
        super().__init__(config)
        self.self_attn = TulipAttention(config)


class TulipEncoder(CLIPEncoder):
    """CLIP's stack of blocks, of [`TulipEncoderLayer`]."""

    def __init__(self, config: TulipTextConfig):
        nn.Module.__init__(self)
        self.config = config
        self.layers = nn.ModuleList(TulipEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False


def align_weights(model: nn.Module) -> None:
    """Move weights on the CPU to aligned addresses, so that a reloaded model repeats its bits.

    Tensors used in place from a file start at odd addresses, where matrix products round differently.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and type(parameter) is nn.Parameter and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


class TulipPreTrainedModel(CLIPPreTrainedModel):
    """What TULIP's models share: their configuration, and how they are loaded."""

    config: TulipTextConfig
    base_model_prefix = "text_model"
    input_modalities = ("text",)
    _no_split_modules = ["TulipTextEmbeddings", "TulipEncoderLayer"]

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As transformers', with weights at aligned addresses, see [`align_weights`]."""
        loaded = super().from_pretrained(*args, **kwargs)
        align_weights(loaded[0] if kwargs.get("output_loading_info") else loaded)
        return loaded

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # transformers enters a class when its first instance is made; without the entry an unpickled one, in another
        # process, would return no hidden states. From transformers 5.23 on the registry's own `[…]` takes the model.
        dict.__setitem__(_CAN_RECORD_REGISTRY, str(type(self)), self._can_record_outputs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TulipTextEmbeddings):
            nn.init.normal_(module.token_embedding.weight, std=self.config.initializer_factor * 0.02)
        elif isinstance(module, ContextualPositions):
            module.reset_parameters()


class TulipTextModel(TulipPreTrainedModel, CLIPTextModel):
    """
    CLIP's text transformer with relative positions: the encoder for SDXL's first slot.

    Takes `input_ids` (batch, tokens) of any length, and optionally `attention_mask` (batch, tokens), 0 on padding, and
    `position_ids`. Returns `last_hidden_state` (batch, tokens, width), after the final layer norm, `pooler_output`
    (batch, width) at the first EOS token, and on request `hidden_states` and `attentions` as CLIP does. The state of
    a token depends on the tokens before it alone; with NTK scaling and more tokens than the configured `length` also
    on how many there are (masked padding does not count).

    Example:

    ```python
    >>> from tulip_diffusion import TulipTextModel, load_tokenizer

    >>> encoder = TulipTextModel.from_pretrained("path/to/tulip")
    >>> tokens = load_tokenizer(max_length=248)("a long caption …", padding="longest", return_tensors="pt")
    >>> states = encoder(**tokens, output_hidden_states=True).hidden_states[-2]  # what SDXL reads
    ```
    """

    _keys_to_ignore_on_load_unexpected = [r"^text_projection\."]  # a …WithProjection folder holds this model too

    def __init__(self, config: TulipTextConfig):
        PreTrainedModel.__init__(self, config)  # CLIPTextModel's own __init__ would build the position table
        self.embeddings = TulipTextEmbeddings(config)
        self.encoder = TulipEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.eos_token_id = eos_token_id(config)  # CLIPTextModel pools at the largest id where a config says 2
        self.post_init()
        maybe_install_capturing_hooks(self)  # transformers waits for the first use, which torch.compile cannot trace

    @property
    def text_model(self) -> "TulipTextModel":
        """The model itself: `clip_skip` of diffusers, and compel, ask for `text_model.final_layer_norm`.

        CLIP's own class had such a part until transformers 5.6. `tulip_diffusion.registration` tells diffusers' loader
        of LoRAs that the names of this model's parameters do not.
        """
        return self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encode `input_ids` (batch, tokens), masked where `attention_mask` is 0.

        `position_ids` (batch or 1, tokens) are counted from 0 by default. Returns `last_hidden_state` (batch, tokens,
        width) and `pooler_output` (batch, width), the state at the first EOS.

        Raises:
            ValueError: there are no `input_ids`.
        """
        if input_ids is None:
            raise ValueError("input_ids is missing: pass the (batch, tokens) ids that load_tokenizer() returns.")
        input_ids = input_ids.view(-1, input_ids.shape[-1])
        if self.config.attention_scaling == "log":
            base = self.config.attention_scaling_base
            kwargs["query_scale"] = query_scale(input_ids.shape[-1], base, input_ids.device)
        if self.config.position_encoding == "rope":
            kwargs["position_embeddings"] = self.rotary_embeddings(input_ids, attention_mask, position_ids)
        else:
            attention_mask = self.contextual_mask(input_ids, attention_mask)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def contextual_mask(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Causal mask to add to CoPE's logits, (1 or batch, 1, tokens, tokens): CoPE gates on masked logits.

        Raises:
            ValueError: the attention back end takes no such mask.
        """
        if (backend := self.config._attn_implementation) not in ("eager", "sdpa"):
            raise ValueError(f'CoPE changes attention logits, which {backend!r} hides. Use "eager" or "sdpa".')
        tokens = input_ids.shape[-1]
        visible = torch.ones(tokens, tokens, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        if attention_mask is not None:
            visible = visible & attention_mask.bool()[:, None, None]
        dtype = self.final_layer_norm.weight.dtype
        # Half the lowest number, so that adding logits and bias to it cannot overflow.
        return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min / 2)

    def rotary_embeddings(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines for `input_ids`; each row's length is its share of `attention_mask`, if there is one."""
        tokens = input_ids.shape[-1]
        if position_ids is None:
            position_ids = torch.arange(tokens, device=input_ids.device)[None]
        length: int | Tensor = tokens
        if attention_mask is not None and attention_mask.ndim == 2:
            length = attention_mask.sum(dim=-1, keepdim=True)
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        assert self.config.rope_parameters is not None  # the config filled it in
        return rotary_cos_sin(position_ids, self.config.rope_parameters, head_dim, length)


class TulipTextModelWithProjection(TulipPreTrainedModel, CLIPTextModelWithProjection):
    """
    [`TulipTextModel`] with CLIP's text projection on top: the encoder for retrieval and for SDXL's second slot.

    Same inputs. Returns `text_embeds` (batch, projection_dim) first, then `last_hidden_state`, `hidden_states` and
    `attentions`.
    """

    def __init__(self, config: TulipTextConfig):
        PreTrainedModel.__init__(self, config)
        self.text_model = TulipTextModel._from_config(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor | None = None, **kwargs) -> CLIPTextModelOutput:
        """As [`TulipTextModel`], with `text_embeds` (batch, projection_dim) first."""
        return super().forward(input_ids=input_ids, **kwargs)


def projecting_class(config: CLIPTextConfig) -> type[TulipTextModelWithProjection | CLIPTextModelWithProjection]:
    """The …WithProjection class that `config` belongs to. For those without, `AutoModelForTextEncoding` knows."""
    return TulipTextModelWithProjection if is_tulip(config) else CLIPTextModelWithProjection


def from_clip(
    clip: CLIPTextModel | CLIPTextModelWithProjection | CLIPModel, **config: Any
) -> TulipTextModel | TulipTextModelWithProjection:
    """Make a TULIP encoder out of a CLIP one: every weight but the positions, under its own name.

    The tensors are shared, not copied; `copy.deepcopy` the result to train it beside `clip`. A `CLIPTextModel` gives a
    `TulipTextModel`; a `CLIPTextModelWithProjection`, or the text tower of a `CLIPModel`, gives a
    `TulipTextModelWithProjection`. Any `TulipTextConfig` field can be set, such as `position_encoding="cope"` or
    `attention_scaling="log"`.

    Raises:
        TypeError: `clip` is none of these.
    """
    weights = dict(clip.named_parameters())
    if isinstance(clip, CLIPModel):
        clip_config, model_class = clip.config.text_config, TulipTextModelWithProjection
        config.setdefault("projection_dim", clip.config.projection_dim)
        weights = {name: weight for name, weight in weights.items() if name.startswith(("text_model.", "text_proj"))}
    elif isinstance(clip, CLIPTextModelWithProjection):
        clip_config, model_class = clip.config, TulipTextModelWithProjection
    elif isinstance(clip, CLIPTextModel):
        clip_config, model_class = clip.config, TulipTextModel
    else:
        raise TypeError(
            f"from_clip takes a CLIPTextModel, a CLIPTextModelWithProjection or a CLIPModel, got "
            f"{type(clip).__name__}. For a file or a folder use load_text_encoder."
        )
    fields = {"attention_scaling": NEW_ATTENTION_SCALING, **copy.deepcopy(clip_config.to_dict()), **config}
    fields.pop("model_type")
    weights = {name: weight for name, weight in weights.items() if "position_embedding" not in name}
    reference = next(iter(weights.values()))
    with torch.device("meta"):
        tulip = model_class(TulipTextConfig.from_dict(fields))
    for module in tulip.modules():
        if isinstance(module, ContextualPositions):  # CLIP has no such weights, so these start fresh
            module.to_empty(device=reference.device).to(reference.dtype).reset_parameters()
    missing, unexpected = tulip.load_state_dict(weights, strict=False, assign=True)
    assert not unexpected and all(".cope." in name for name in missing), (missing, unexpected)
    tulip.config._attn_implementation = clip.config._attn_implementation
    return tulip.train(clip.training)


AutoConfig.register(TulipTextConfig.model_type, TulipTextConfig, exist_ok=True)
AutoModel.register(TulipTextConfig, TulipTextModel, exist_ok=True)
AutoModelForTextEncoding.register(TulipTextConfig, TulipTextModel, exist_ok=True)
# A folder saved by the model with projection, or by an older transformers, prefixes every key with `text_model.`
register_checkpoint_conversion_mapping("TulipTextModel", [PrefixChange(prefix_to_remove="text_model")], overwrite=True)
