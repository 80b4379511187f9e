"""Stage 2, relative position expansion (TULIP, arXiv:2410.10034, section 3.3).

The rotations are stretched to long captions (NTK-aware), and the encoder learns them against images: lambda times the
contrastive loss of short captions plus 1 - lambda times that of long ones. Stage 1's per-token term stays as an
anchor, because the contrastive losses see pooled states alone and would undo what SDXL reads.
"""

import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tulip_diffusion.data import Captions
from tulip_diffusion.models.checkpoints import ClipTowers
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection

from .batches import padding_id
from .config import ExpandArguments, Sources
from .contrastive import ContrastiveStage, Features, TowerOutputs
from .cutting import caption_cutter
from .kernels import settle_kernels, use_kernels
from .loop import build_accelerator, run_stage
from .losses import contrastive_loss, sigmoid_loss
from .stage import Chunk, Figures
from .student import hidden_figures, pooled_figures, refuse_shared_weights
from .teacher import Teacher
from .towers import PairCollate

SIGLIP_START = (math.log(10), -10.0)  # logarithm of the scale, and bias: arXiv:2303.15343, section 3.2


def expand_positions(student: TulipTextModelWithProjection, window: int, length: int, alpha: float) -> None:
    """Set `student`'s rotations for `length` tokens, having learned `window`, in place (TULIP's NTK-aware RoPE).

    An `alpha` of 0 leaves them as they are, for a student that read long captions in stage 1 already.

    Raises:
        ValueError: a CoPE student whose tables are shorter than `length`.
    """
    configs = (student.config, student.text_model.config)
    if student.config.position_encoding == "cope":
        if student.config.max_position_embeddings < length:
            raise ValueError(
                f"This CoPE student counts {student.config.max_position_embeddings} positions, fewer than {length}. "
                f"Distil it with --length {length}, or expand to fewer tokens."
            )
        return
    assert student.config.rope_parameters is not None  # the config fills it in
    theta = student.config.rope_parameters["rope_theta"]
    for config in configs:
        if alpha == 0:  # it may have read more in stage 1 than it does now
            config.max_position_embeddings = max(length, config.max_position_embeddings)
            continue
        config.max_position_embeddings = length
        config.rope_parameters = {
            "rope_type": "ntk",
            "rope_theta": theta,
            "alpha": alpha,
            "base_length": window,
            "length": length,
        }


def freeze_token_states(student: TulipTextModelWithProjection) -> None:
    """Leave to training what comes after `hidden_states[-2]`: the last layer, the final norm and the projection."""
    model = student.text_model
    student.requires_grad_(False)
    for part in (model.encoder.layers[-1], model.final_layer_norm, student.text_projection):
        part.requires_grad_(True)


class Expansion(ContrastiveStage):
    """Stage 2. `towers` are the CLIP that `student` came from: image tower, and teacher of the anchor."""

    name = "expand"
    arguments: ExpandArguments

    def __init__(
        self,
        towers: ClipTowers,
        student: TulipTextModelWithProjection,
        tokenizer: PreTrainedTokenizerBase,
        data: Captions,
        arguments: ExpandArguments,
    ):
        refuse_shared_weights(student, towers.text_encoder)
        window = towers.text_encoder.config.max_position_embeddings
        expand_positions(student, window, max(arguments.length, window), arguments.ntk_alpha)
        self.holds_states = arguments.anchor_weight > 0 and not arguments.freeze_token_states
        self.anchored = (self.holds_states or arguments.pooled_anchor_weight > 0) and arguments.train != "image"
        cutter = caption_cutter(
            tokenizer, arguments, arguments.seed, window, arguments.short_captions, far=self.anchored
        )
        use_kernels(towers.text_encoder, arguments)
        self.teacher = Teacher(towers.text_encoder, most_moving=arguments.subset_choice == "most-moving")
        super().__init__(student, towers, tokenizer, data, cutter, arguments, arguments.subset_draws)
        if arguments.freeze_token_states:
            freeze_token_states(student)
        self.collate = PairCollate(padding_id(tokenizer, arguments.pad), window=window, sub_captions=self.anchored)

    def begin(self, accelerator: Accelerator) -> None:
        """Put the anchor's teacher where it will run."""
        if self.anchored:
            self.teacher.encoder.to(accelerator.device)

    def temperature(self, logit_scale: float) -> tuple[float, ...]:
        """CLIP's, for the sigmoid loss what SigLIP starts from."""
        return SIGLIP_START if self.arguments.pair_loss == "sigmoid" else (logit_scale,)

    def contrastive(self, features: Features, logit_scale: Tensor) -> tuple[Tensor, Figures]:
        """lambda times the short captions' loss plus 1 - lambda times the long ones'."""
        short, long = (self.pair_loss(features["image"], features[texts], logit_scale) for texts in ("short", "long"))
        weight = self.arguments.short_weight
        return weight * short + (1 - weight) * long, {"short_loss": short.detach(), "long_loss": long.detach()}

    def pair_loss(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
        """The loss that the arguments name, of unit vectors (pairs, dim)."""
        arguments = self.arguments
        if arguments.pair_loss == "sigmoid":
            return sigmoid_loss(image_embeds, text_embeds, *logit_scale)
        return contrastive_loss(
            image_embeds, text_embeds, logit_scale, arguments.label_smoothing, arguments.hard_negative_margin
        )

    def extra_loss(
        self, outputs: TowerOutputs, chunk: Chunk, accelerator: Accelerator
    ) -> tuple[Tensor | float, Figures]:
        """The anchor: how far what SDXL reads, token states and pooled ones, has moved from the teacher's."""
        if not self.anchored:
            return 0.0, {}
        with accelerator.autocast():
            targets = self.teacher.targets(chunk)
        total: Tensor | float = 0.0
        figures: Figures = {}
        if self.holds_states:
            figures |= (terms := hidden_figures(outputs.text, targets, chunk))
            total = total + self.arguments.anchor_weight * torch.stack(list(terms.values())).sum()
        if self.arguments.pooled_anchor_weight:
            figures |= (terms := pooled_figures(outputs.text, targets, chunk))
            total = total + self.arguments.pooled_anchor_weight * torch.stack(list(terms.values())).sum()
        return total, figures

    def save(self, folder: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write both towers; run.json says how the rotations were stretched."""
        return super().save(folder, weights) | {"rope_parameters": self.text.config.rope_parameters}


def expand(
    towers: ClipTowers,
    tokenizer: PreTrainedTokenizerBase,
    data: Captions,
    arguments: ExpandArguments,
    student: TulipTextModelWithProjection,
    sources: Sources | None = None,
) -> TulipTextModelWithProjection:
    """Run stage 2 on `student`, write it and the image tower to `arguments.output_dir`, and return it."""
    arguments = settle_kernels(arguments, towers.text_encoder.config, arguments.length)
    accelerator = build_accelerator(arguments)
    run_stage(Expansion(towers, student, tokenizer, data, arguments), arguments, accelerator, sources)
    return student
