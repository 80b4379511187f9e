"""What distillation changed in one CLIP, added to another that was fine-tuned from it."""

import copy

from torch import Tensor
from transformers import CLIPTextModelWithProjection
from transformers.utils import logging

from .checkpoints import TextEncoder
from .positions import is_tulip
from .text_encoder import TulipTextModelWithProjection

logger = logging.get_logger(__name__)

FIELDS = ("hidden_act", "num_attention_heads", "eos_token_id")
UNRELATED = 0.1  # relative difference of the token tables beyond which one encoder was hardly made from the other


def add_difference(
    tuned: TextEncoder, tulip: TextEncoder, clip: CLIPTextModelWithProjection
) -> TulipTextModelWithProjection:
    """A TULIP encoder for `tuned`: tuned + (tulip - clip), every weight but the positions, which are `tulip`'s.

    `tulip` was distilled from `clip`, and `tuned` was fine-tuned from `clip`. No training is needed; how close this
    comes to distilling from `tuned` itself is measured in training/LOG.md.

    Raises:
        ValueError: `tulip` is no TULIP encoder, one of the others is, or the three differ in size or kind.
    """
    for name, encoder, wanted in (("SOURCE", tuned, False), ("TULIP", tulip, True), ("CLIP", clip, False)):
        if is_tulip(encoder.config) != wanted:
            kind = "TULIP" if wanted else "CLIP"
            raise ValueError(f"To add TULIP - CLIP, {name} must be a {kind} encoder, got a {type(encoder).__name__}.")
    before, after = clip.state_dict(), tuned.state_dict()
    weights: dict[str, Tensor] = {}
    for name, value in tulip.state_dict().items():
        if name not in before:  # CoPE's own
            weights[name] = value
            continue
        if not value.shape == before[name].shape == after[name].shape:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (after[name], value, before[name]))
            raise ValueError(f"To add TULIP - CLIP, all three must have one size, but {name} has {shapes}.")
        weights[name] = after[name].float() + (value.float() - before[name].float())
    for field in FIELDS:
        values = [getattr(encoder.config, field) for encoder in (tuned, tulip, clip)]
        if len({*values}) > 1:
            raise ValueError(
                f"To add TULIP - CLIP, all three must have one {field}, got {', '.join(map(str, values))}."
            )
    _warn_if_unrelated(tulip, clip)
    made = copy.deepcopy(tulip)
    made.load_state_dict(weights)
    return made


def _warn_if_unrelated(tulip: TextEncoder, clip: TextEncoder) -> None:
    """Distillation leaves the token table as it is, or nearly so."""
    ours, theirs = (encoder.get_input_embeddings().weight.float() for encoder in (tulip, clip))
    if (apart := ((ours - theirs).norm() / theirs.norm()).item()) > UNRELATED:
        logger.warning(
            f"The token tables of TULIP and CLIP differ by {apart:.0%}. If TULIP was not distilled from this CLIP, "
            "what comes out is noise."
        )
