"""What TULIP is compared with, in the same loop: CLIP fine-tuned on long captions, and Long-CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

from tulip_diffusion.data import CaptionData
from tulip_diffusion.models.checkpoints import ClipTowers
from tulip_diffusion.models.positions import LONGCLIP_KEEP

from .batches import long_batch, pad_ids, padding_id
from .config import FinetuneArguments, LongCLIPArguments, Sources
from .contrastive import ContrastiveStage, Features
from .cutting import CaptionCutter
from .kernels import settle_kernels
from .loop import build_accelerator, run_stage
from .losses import contrastive_loss, primary_components
from .stage import Chunk, Figures
from .towers import Pair, pair_batch, stretch_positions


@dataclass(frozen=True)
class BaselineCollate:
    """Makes a chunk of pairs: images, short texts, and long ones if asked for."""

    pad_id: int
    with_long: bool = False

    def __call__(self, pairs: Sequence[Pair]) -> Chunk:
        cuts = [pair.cut for pair in pairs]
        batch = pair_batch(pairs) | {"short_ids": pad_ids([cut.short_ids for cut in cuts], self.pad_id)}
        return batch | long_batch(cuts, self.pad_id, range(len(cuts))) if self.with_long else batch


class Finetuning(ContrastiveStage):
    """CLIP on captions cut at its window, or with its positions stretched four times.

    Run with stretched positions and in full float32 it is a far stronger baseline than the papers print.
    """

    name = "finetune-clip"
    arguments: FinetuneArguments

    def __init__(self, towers: ClipTowers, tokenizer: PreTrainedTokenizerBase, data: CaptionData, arguments):
        if arguments.stretch:
            stretch_positions(towers.text_encoder)
        window = towers.text_encoder.config.max_position_embeddings
        cutter = CaptionCutter(tokenizer, window, window, short="cut", sub_captions="none", seed=arguments.seed)
        super().__init__(towers.text_encoder, towers, tokenizer, data, cutter, arguments)
        self.collate = BaselineCollate(padding_id(tokenizer, "eos"))

    def contrastive(self, features: Features, logit_scale: Tensor) -> tuple[Tensor, Figures]:
        """CLIP's loss of images and captions."""
        loss = contrastive_loss(features["image"], features["short"], logit_scale, self.arguments.label_smoothing)
        return loss, {}


class LongCLIP(ContrastiveStage):
    """Long-CLIP (arXiv:2403.15378): long captions match images, short ones their primary components.

    The components are those of the whole batch, so that the result does not depend on how many processes share it.
    """

    name = "longclip"
    arguments: LongCLIPArguments

    def __init__(self, towers: ClipTowers, tokenizer: PreTrainedTokenizerBase, data: CaptionData, arguments):
        stretch_positions(towers.text_encoder, freeze=LONGCLIP_KEEP, keep=LONGCLIP_KEEP)
        window = towers.text_encoder.config.max_position_embeddings
        cutter = CaptionCutter(
            tokenizer, window, window, short="first-sentence", sub_captions="none", seed=arguments.seed
        )
        super().__init__(towers.text_encoder, towers, tokenizer, data, cutter, arguments)
        self.collate = BaselineCollate(padding_id(tokenizer, "eos"), with_long=True)

    def contrastive(self, features: Features, logit_scale: Tensor) -> tuple[Tensor, Figures]:
        """The loss of long captions, and that of short ones against the images' primary components."""
        smoothing = self.arguments.label_smoothing
        components = primary_components(features["image"], self.arguments.components)
        long = contrastive_loss(features["image"], features["long"], logit_scale, smoothing)
        short = contrastive_loss(components, features["short"], logit_scale, smoothing)
        figures = {"long_loss": long.detach(), "short_loss": short.detach()}
        return long + self.arguments.short_weight * short, figures


def finetune_clip(
    towers: ClipTowers,
    tokenizer: PreTrainedTokenizerBase,
    data: CaptionData,
    arguments: FinetuneArguments,
    sources: Sources | None = None,
) -> CLIPTextModelWithProjection:
    """Fine-tune both towers of `towers` in place, write them to `arguments.output_dir`, and return the text tower."""
    config = towers.text_encoder.config
    arguments = settle_kernels(arguments, config, config.max_position_embeddings)
    accelerator = build_accelerator(arguments)
    run_stage(Finetuning(towers, tokenizer, data, arguments), arguments, accelerator, sources)
    return CLIPTextModelWithProjection.from_pretrained(arguments.output_dir)


def long_clip(
    towers: ClipTowers,
    tokenizer: PreTrainedTokenizerBase,
    data: CaptionData,
    arguments: LongCLIPArguments,
    sources: Sources | None = None,
) -> CLIPTextModelWithProjection:
    """Train Long-CLIP from `towers`, in place, write it to `arguments.output_dir`, and return its text tower."""
    config = towers.text_encoder.config
    arguments = settle_kernels(arguments, config, config.max_position_embeddings)
    accelerator = build_accelerator(arguments)
    run_stage(LongCLIP(towers, tokenizer, data, arguments), arguments, accelerator, sources)
    return CLIPTextModelWithProjection.from_pretrained(arguments.output_dir)
