"""FineLIP (CVPR 2025, arXiv:2504.01916): refined tokens of image and text, aligned token to token.

Two small modules stand beside a pair of CLIP towers, whichever they are. Each condenses a tower's projected tokens
into a few *slots*; the tower's global token (CLS, EOS) joins them unrefined. Images and texts are compared by slots.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPVisionModelWithProjection,
    PreTrainedConfig,
    PreTrainedModel,
)

from .checkpoint_files import Source, read_checkpoint
from .checkpoints import TextEncoder, load_clip, load_image_encoder, load_text_encoder
from .layouts import unwrap
from .positions import first_eos

_recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # backward keeps no block
NEGATIVE_SLOPE = 0.1
FINE_WEIGHT = 0.2  # FineLIP*: 0.8 of the global cosine, 0.2 of the fine score
FOLDER = "finelip"  # beside the text tower's files and the image tower's folder
# Parts of a published file beside the text tower, by how their keys begin.
PARTS = {
    "positional_embedding_res": "the stretched positions",
    "visual.": "the image tower",
    "aggr_net.": "the image's refinement",
    "cap_aggr_net.": "the text's refinement",
}


def slots_for(patches: int, ratio: float = 0.2) -> int:
    """Slots of a tower pair whose images have `patches`: 39 for B/16's 196, 51 for L/14's 256 at the published ratio.

    Raises:
        ValueError: not even one slot is left.
    """
    slots = int(patches * ratio)
    if slots < 1:
        raise ValueError(f"A ratio of {ratio} leaves no slot of {patches} patches; it must be at least {1 / patches}.")
    return slots


@strict
class FineLIPConfig(PreTrainedConfig):
    r"""
    Configuration of a [`FineLIPModel`].

    Args:
        projection_dim (`int`, *optional*, defaults to 512):
            Width of the towers' projected tokens.
        slots (`int`, *optional*, defaults to 39):
            Refined tokens of an image and of a text, see [`slots_for`].
        hidden_dim (`int`, *optional*, defaults to 102):
            Width inside the refinement's MLP, a fifth of `projection_dim` in FineLIP.
        initial_scale (`float`, *optional*, defaults to 1.0):
            The learned factor on the refinement's logits, at the start of training. With the published 1 the softmax
            is all but even, so that every slot starts, and stays, near the mean token.
    """

    model_type = "finelip"

    projection_dim: int = 512
    slots: int = 39
    hidden_dim: int = 102
    initial_scale: float = 1.0


class TokenRefinement(nn.Module):
    """ATRM: X' = W X, where W = softmax over tokens of scale · MLP(LN X)ᵀ (FineLIP, section 3.2)."""

    def __init__(self, config: FineLIPConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.projection_dim)
        self.fc1 = nn.Linear(config.projection_dim, config.hidden_dim)
        self.fc2 = nn.Linear(config.hidden_dim, config.slots)
        self.scale = nn.Parameter(torch.full((1,), config.initial_scale))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """(rows, tokens, dim) to (rows, slots, dim); tokens whose `mask` (rows, tokens) is False have no weight."""
        logits = self.scale * self.fc2(F.gelu(self.fc1(self.norm(tokens)))).transpose(1, 2)  # (rows, slots, tokens)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None], -torch.inf)
        return logits.softmax(dim=-1) @ tokens


class ProjectedTokens(NamedTuple):
    """A tower's tokens in the space where images and texts meet."""

    tokens: Tensor  # (rows, tokens, dim): patches, or what stands before EOS
    embeds: Tensor  # (rows, dim): CLS or EOS
    mask: Tensor | None = None  # (rows, tokens), True for tokens that count


class FineLIPModel(PreTrainedModel):
    """
    The refinement modules that stand beside a pair of CLIP towers.

    Takes the towers' projected tokens and returns unit vectors, (rows, slots + 1, dim), the global token last. Compare
    them with [`late_interaction`] or [`fine_score`].
    """

    config: FineLIPConfig
    config_class = FineLIPConfig
    base_model_prefix = "finelip"

    def __init__(self, config: FineLIPConfig):
        super().__init__(config)
        self.image = TokenRefinement(config)
        self.text = TokenRefinement(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()  # torch's own: transformers' narrow one would start every slot as the mean
        elif isinstance(module, TokenRefinement):
            nn.init.constant_(module.scale, self.config.initial_scale)

    def forward(self, image: ProjectedTokens, text: ProjectedTokens) -> tuple[Tensor, Tensor]:
        """Refined tokens of images and of texts, (rows, slots + 1, dim) each."""
        return self.refine_image(image), self.refine_text(text)

    def refine_image(self, image: ProjectedTokens) -> Tensor:
        """Unit vectors (images, slots + 1, dim)."""
        return with_global(self.image(image.tokens, image.mask), image.embeds)

    def refine_text(self, text: ProjectedTokens) -> Tensor:
        """Unit vectors (texts, slots + 1, dim)."""
        return with_global(self.text(text.tokens, text.mask), text.embeds)


def with_global(slots: Tensor, embeds: Tensor) -> Tensor:
    """Unit vectors (rows, slots + 1, dim), the global token last."""
    return F.normalize(torch.cat((slots, embeds[:, None]), dim=1), dim=-1)


def project_text(text_encoder: TextEncoder, states: Tensor, input_ids: Tensor) -> ProjectedTokens:
    """Project `last_hidden_state` (rows, tokens, width); BOS and words count, EOS is the global token."""
    projected = text_encoder.text_projection(states)
    ends = first_eos(input_ids, text_encoder.config)
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    embeds = projected[torch.arange(len(ends), device=ends.device), ends]
    return ProjectedTokens(projected, embeds, positions < ends[:, None])


def project_image(image_encoder: CLIPVisionModelWithProjection, pixel_values: Tensor) -> ProjectedTokens:
    """Every patch as CLIP projects CLS: final norm, then projection."""
    output = image_encoder(pixel_values)
    patches = image_encoder.vision_model.post_layernorm(output.last_hidden_state[:, 1:])
    return ProjectedTokens(image_encoder.visual_projection(patches), output.image_embeds)


def late_interaction(images: Tensor, texts: Tensor, block: int = 64) -> Tensor:
    """CLIM's scores of all pairs, (images, texts) of token sets (images, tokens, dim) and (texts, tokens, dim).

    With S = LeakyReLU(T Vᵀ): the mean over a text's tokens of the largest S, plus the mean over the image's tokens of
    the largest S (FineLIP, section 3.3). Only `block` × `block` pairs' S exist at a time, in the backward pass too.
    """
    rows = [
        torch.cat([_recomputed(_interaction, some, others) for others in texts.split(block)], dim=1)
        for some in images.split(block)
    ]
    return torch.cat(rows)


def _interaction(images: Tensor, texts: Tensor) -> Tensor:
    similarity = torch.einsum("ivd,twd->ivtw", images, texts)
    # LeakyReLU rises everywhere, so it may follow the maximum, where there is less to compute.
    by_text = F.leaky_relu(similarity.amax(dim=1), NEGATIVE_SLOPE).mean(dim=-1)  # (images, texts)
    by_image = F.leaky_relu(similarity.amax(dim=3), NEGATIVE_SLOPE).mean(dim=1)
    return by_text + by_image


def global_score(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines of the global tokens alone, (images, texts): what CLIP compares."""
    return images[:, -1] @ texts[:, -1].T


def refined_score(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines of the mean tokens, (images, texts): refinement without late interaction."""
    return F.normalize(images.mean(dim=1), dim=-1) @ F.normalize(texts.mean(dim=1), dim=-1).T


def fine_score(images: Tensor, texts: Tensor, fine_weight: float = FINE_WEIGHT) -> Tensor:
    """FineLIP*: (1 - fine_weight) times the global cosine plus `fine_weight` times the late interaction."""
    return (1 - fine_weight) * global_score(images, texts) + fine_weight * late_interaction(images, texts)


SCORES = {"global": global_score, "refined": refined_score, "late-interaction": late_interaction}


def slot_similarity(refined: Tensor) -> Tensor:
    """Mean cosine of two different slots of a row, averaged over rows; the global token, last, is left out.

    Near 1 the slots have collapsed into one. One slot alone gives 0.
    """
    slots = refined[:, :-1]
    count = slots.shape[1]
    if count == 1:
        return refined.new_zeros(())
    return ((slots.sum(dim=1).square().sum(dim=-1) - count) / (count * (count - 1))).mean()


class FineLIP(NamedTuple):
    """A whole FineLIP: both towers and the refinement beside them."""

    text_encoder: TextEncoder
    image_encoder: CLIPVisionModelWithProjection
    refinement: FineLIPModel

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """(images, channels, height, width) to unit vectors (images, slots + 1, dim)."""
        return self.refinement.refine_image(project_image(self.image_encoder, pixel_values))

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(texts, tokens) of any padding to unit vectors (texts, slots + 1, dim)."""
        states = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        return self.refinement.refine_text(project_text(self.text_encoder, states, input_ids))


def load_finelip(source: Source, **config: Any) -> FineLIP:
    """Load what `train finelip` wrote, or a published checkpoint, in eval mode and float32.

    Args:
        source: the folder, a file, or a state dict.
        **config: text tower fields that a file does not say, as in [`load_text_encoder`].

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: parts are missing, named in one sentence, or do not fit.
    """
    if not isinstance(source, Mapping):
        if Path(source).is_dir():
            return _from_folder(Path(source))
        source = read_checkpoint(source)
    state = unwrap(source)
    missing = [
        f"{key.rstrip('.')} ({what})" for key, what in PARTS.items() if not any(k.startswith(key) for k in state)
    ]
    if missing:
        raise ValueError(f"This is no whole FineLIP checkpoint; it lacks {', '.join(missing)}.")
    towers = load_clip(state, "finelip", **config)
    if towers.image_encoder is None:
        raise ValueError("This FineLIP checkpoint's image tower is no ViT; its proj or conv1.weight is missing.")
    image, text = published_refinement(state, "aggr_net"), published_refinement(state, "cap_aggr_net")
    hidden_dim, projection_dim = image["fc1.weight"].shape
    fields = FineLIPConfig(projection_dim=projection_dim, slots=len(image["fc2.weight"]), hidden_dim=hidden_dim)
    refinement = FineLIPModel(fields).eval()
    for module, weights in ((refinement.image, image), (refinement.text, text)):
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"aggr_net and cap_aggr_net do not fit each other: {reason}") from error
    return FineLIP(towers.text_encoder, towers.image_encoder, refinement)


def _from_folder(folder: Path) -> FineLIP:
    parts = {"config.json": folder, "image_encoder": folder / "image_encoder", FOLDER: folder / FOLDER}
    missing = [name for name, path in parts.items() if not (path / "config.json").is_file()]
    if missing:
        raise ValueError(f"{folder} is no FineLIP; it lacks {', '.join(missing)}. Train one with train finelip.")
    return FineLIP(
        load_text_encoder(folder),
        load_image_encoder(folder / "image_encoder"),
        FineLIPModel.from_pretrained(folder / FOLDER, dtype=torch.float32).eval(),
    )


def published_refinement(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A refinement module's weights in [`TokenRefinement`]'s names, told apart by their shapes alone.

    Published files name the layers in ways of their own, but what they hold is known: a norm (vectors), two linear
    layers (matrices, one's output the other's input), each with a bias, and a scale of one number.

    Raises:
        ValueError: a layer is missing, or there is more than that.
    """
    inside = {key.removeprefix(f"{prefix}."): value for key, value in state.items() if key.startswith(f"{prefix}.")}
    matrices = [key for key, value in inside.items() if value.squeeze().ndim == 2]
    scales = [key for key, value in inside.items() if value.numel() == 1]
    norms = [key for key, value in inside.items() if value.ndim == 1 and value.numel() > 1 and key.endswith("weight")]
    matrices.sort(key=lambda key: -inside[key].shape[1])  # dim inwards, then a fifth of it
    layers = dict(zip(("fc1", "fc2"), matrices, strict=False)) | dict(zip(("norm",), norms, strict=False))
    renamed = {f"{name}.weight": key for name, key in layers.items()}
    renamed |= {f"{name}.bias": f"{key.removesuffix('weight')}bias" for name, key in layers.items()}
    renamed |= dict(zip(("scale",), scales, strict=False))
    expected = ("norm.weight", "norm.bias", "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias", "scale")
    missing = [name for name in expected if renamed.get(name) not in inside]
    unexpected = sorted(inside.keys() - set(renamed.values()))
    if missing or unexpected:
        raise ValueError(
            f"{prefix} must hold a norm, two linear layers with biases and a scale; missing: "
            f"{', '.join(missing) or 'nothing'}; unexpected: {', '.join(unexpected) or 'nothing'}."
        )
    return {
        name: inside[key].float().reshape(-1 if name == "scale" else inside[key].shape)
        for name, key in renamed.items()
    }


AutoConfig.register(FineLIPConfig.model_type, FineLIPConfig, exist_ok=True)
AutoModel.register(FineLIPConfig, FineLIPModel, exist_ok=True)
