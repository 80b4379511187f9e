"""FineLIP (CVPR 2025, arXiv:2504.01916) in the loop of the other stages, on stretched CLIP or on a TULIP encoder.

The refinement modules learn fast, the towers slowly. The loss is a triplet loss of the scores of all pairs of a batch.
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, PreTrainedTokenizerBase

from tulip_diffusion.data import Captions
from tulip_diffusion.models.checkpoints import ClipTowers, TextEncoder
from tulip_diffusion.models.finelip import (
    FOLDER,
    SCORES,
    FineLIP,
    FineLIPConfig,
    FineLIPModel,
    load_finelip,
    project_image,
    project_text,
    slot_similarity,
    slots_for,
)
from tulip_diffusion.models.positions import LONGCLIP_KEEP
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection

from .batches import padding_id
from .config import FineLIPArguments, Sources
from .contrastive import ContrastiveStage, Features, TwoTowers
from .cutting import caption_cutter
from .kernels import settle_kernels, use_kernels
from .loop import build_accelerator, run_stage
from .losses import contrastive_loss
from .stage import Chunk, Figures
from .student import TextStates, hidden_figures, note_length, refuse_shared_weights, unprefixed
from .teacher import Teacher
from .towers import PairCollate, stretch_positions

HIDDEN_SHARE = 0.2  # of the tokens' width, inside the refinement's MLP


def triplet_loss(scores: Tensor, margin: float = 0.2, negatives: str = "sum") -> Tensor:
    """Bidirectional triplet loss of `scores` (pairs, pairs), the right ones on the diagonal; a mean over pairs.

    Each pair adds max(0, margin + negative - positive) for the texts that are not its image's and the images that are
    not its text's: of all of them ("sum") or of the highest in each direction ("hardest").
    """
    positives = scores.diagonal()
    right = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    of_images = (margin + scores - positives[:, None]).clamp(min=0).masked_fill(right, 0)
    of_texts = (margin + scores - positives[None]).clamp(min=0).masked_fill(right, 0)
    if negatives == "hardest":
        return (of_images.amax(dim=1) + of_texts.amax(dim=0)).mean()
    return (of_images.sum(dim=1) + of_texts.sum(dim=0)).mean()


def slot_penalty(refined: Tensor) -> Tensor:
    """Mean squared cosine of two different slots of a row, over rows; the global token, last, is left out."""
    slots = refined[:, :-1]
    cosines = slots @ slots.transpose(1, 2)
    return (cosines.square() - torch.eye(slots.shape[1], device=slots.device)).clamp(min=0).mean()


class FineOutputs(NamedTuple):
    """The outputs of both towers and of the refinement for a chunk."""

    image_tokens: Tensor  # (pairs, slots + 1, dim), unit vectors, the global token last
    text_tokens: Tensor
    logit_scale: Tensor
    text: TextStates | None  # what the anchor holds in place, where short texts were read too


class FineTowers(TwoTowers):
    """Both towers, the logit scale and the refinement in one forward."""

    def __init__(
        self, text: TextEncoder, image: CLIPVisionModelWithProjection, logit_scale: float, refinement: FineLIPModel
    ):
        super().__init__(text, image, logit_scale)
        self.refinement = refinement

    def forward(  # type: ignore[override]  # long texts come first: it can do without short ones
        self, pixel_values: Tensor, long_ids: Tensor, long_mask: Tensor, short_ids: Tensor | None = None
    ) -> FineOutputs:
        """Refined tokens of images and long texts; with `short_ids` also the states that the anchor holds."""
        encoder = self.reader.student
        long = encoder(long_ids, attention_mask=long_mask, output_hidden_states=True)
        image, text = self.refinement(
            project_image(self.image, self.normalised(pixel_values)),
            project_text(encoder, long.last_hidden_state, long_ids),
        )
        states = None
        if short_ids is not None:
            short = encoder(short_ids, output_hidden_states=True)
            states = TextStates(short.text_embeds, short.hidden_states[-2], long.text_embeds, long.hidden_states[-2])
        return FineOutputs(image, text, self.logit_scale.exp(), states)


class FineAlignment(ContrastiveStage):
    """FineLIP. `towers` are a CLIP; `student` is a TULIP encoder made of its text tower, or None to stretch it.

    Raises:
        ValueError: captions are longer than the stretched positions.
    """

    name = "finelip"
    arguments: FineLIPArguments

    def __init__(
        self,
        towers: ClipTowers,
        student: TulipTextModelWithProjection | None,
        tokenizer: PreTrainedTokenizerBase,
        data: Captions,
        arguments: FineLIPArguments,
    ):
        window = towers.text_encoder.config.max_position_embeddings
        self.anchored = arguments.anchor_weight > 0 and arguments.train != "image"
        text = student if student is not None else copy.deepcopy(towers.text_encoder)
        refuse_shared_weights(text, towers.text_encoder)
        if student is not None:
            note_length(student, arguments.length)
        if student is None:
            stretch_positions(text, freeze=LONGCLIP_KEEP, keep=LONGCLIP_KEEP)
            if arguments.length > text.config.max_position_embeddings:
                raise ValueError(
                    f"Stretched, this CLIP has {text.config.max_position_embeddings} positions, fewer than --length "
                    f"{arguments.length}. Ask for fewer, or name a TULIP encoder with --student."
                )
        cutter = caption_cutter(tokenizer, arguments, arguments.seed, window, "prefix", far=self.anchored)
        use_kernels(towers.text_encoder, arguments)
        self.teacher = Teacher(towers.text_encoder, most_moving=arguments.subset_choice == "most-moving")
        super().__init__(text, towers, tokenizer, data, cutter, arguments, arguments.subset_draws)
        self.collate = PairCollate(
            padding_id(tokenizer, arguments.pad), window=window, short=self.anchored, sub_captions=self.anchored
        )
        self.refinement = new_refinement(towers, arguments)
        assert towers.logit_scale is not None  # or it has just been refused
        self.module = FineTowers(self.text, self.image, towers.logit_scale, self.refinement)

    def learning_rates(self) -> dict[str, float]:
        """The refinement learns at a rate of its own."""
        return {"refinement.": self.arguments.refinement_learning_rate}

    def begin(self, accelerator: Accelerator) -> None:
        """Put the anchor's teacher where it will run."""
        if self.anchored:
            self.teacher.encoder.to(accelerator.device)

    def embed(self, module: nn.Module, chunk: Chunk) -> tuple[FineOutputs, Features]:  # type: ignore[override]  # other outputs
        """Both towers' outputs for a chunk, and of these the refined tokens that the loss compares."""
        outputs = module(chunk["pixel_values"], chunk["long_ids"], chunk["long_mask"], chunk.get("short_ids"))
        return outputs, {"image": outputs.image_tokens.float(), "long": outputs.text_tokens.float()}

    def contrastive(self, features: Features, logit_scale: Tensor) -> tuple[Tensor, Figures]:
        """The triplet loss of the scores, and CLIP's own loss of the global tokens where it counts."""
        images, texts = features["image"], features["long"]
        loss = triplet_loss(
            SCORES[self.arguments.score](images, texts), self.arguments.margin, self.arguments.negatives
        )
        figures = {"triplet_loss": loss.detach()}
        whole = contrastive_loss(images[:, -1], texts[:, -1], logit_scale, self.arguments.label_smoothing)
        return loss + self.arguments.global_weight * whole, figures | {"global_loss": whole.detach()}

    def extra_loss(self, outputs: Any, chunk: Chunk, accelerator: Accelerator) -> tuple[Tensor | float, Figures]:
        """What keeps slots apart, and the anchor where it counts."""
        tokens = {"image": outputs.image_tokens, "text": outputs.text_tokens}
        figures = {f"{name}_slot_similarity": slot_similarity(value.detach()) for name, value in tokens.items()}
        extra: Tensor | float = 0.0
        if self.arguments.slot_penalty:
            extra = self.arguments.slot_penalty * sum(slot_penalty(value) for value in tokens.values())
        if self.anchored:
            with accelerator.autocast():
                targets = self.teacher.targets(chunk)
            assert outputs.text is not None
            terms = hidden_figures(outputs.text, targets, chunk)
            extra = extra + self.arguments.anchor_weight * torch.stack(list(terms.values())).sum()
            figures |= terms
        return extra, figures

    def save(self, folder: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write both towers, and the refinement into `finelip/`."""
        facts = super().save(folder, weights)
        self.refinement.save_pretrained(folder / FOLDER, state_dict=unprefixed(weights, "refinement."))
        return facts | {"slots": self.refinement.config.slots}


def new_refinement(towers: ClipTowers, arguments: FineLIPArguments) -> FineLIPModel:
    """Fresh refinement modules for `towers`; the seed decides their weights."""
    assert towers.image_encoder is not None  # the stage has refused such towers
    image = towers.image_encoder.config
    patches = (image.image_size // image.patch_size) ** 2
    config = FineLIPConfig(
        projection_dim=image.projection_dim,
        slots=slots_for(patches, arguments.slot_ratio),
        hidden_dim=int(image.projection_dim * HIDDEN_SHARE),
        initial_scale=arguments.initial_scale,
    )
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        return FineLIPModel(config)


def finelip(
    towers: ClipTowers,
    tokenizer: PreTrainedTokenizerBase,
    data: Captions,
    arguments: FineLIPArguments,
    student: TulipTextModelWithProjection | None = None,
    sources: Sources | None = None,
) -> FineLIP:
    """Train FineLIP, write towers and refinement to `arguments.output_dir`, and return what was written.

    `student` trains in place; without one, a stretched copy of `towers`' text encoder does.
    """
    arguments = settle_kernels(arguments, towers.text_encoder.config, arguments.length)
    accelerator = build_accelerator(arguments)
    run_stage(FineAlignment(towers, student, tokenizer, data, arguments), arguments, accelerator, sources)
    return load_finelip(arguments.output_dir)
