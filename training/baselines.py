"""What TULIP is compared with, in the same loop: CLIP fine-tuned on long captions, and Long-CLIP."""

from torch import Tensor
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

from tulip_diffusion.data import Captions
from tulip_diffusion.models.checkpoints import ClipTowers
from tulip_diffusion.models.positions import LONGCLIP_KEEP

from .batches import padding_id
from .config import ContrastiveArguments, FinetuneArguments, LongCLIPArguments, Sources
from .contrastive import ContrastiveStage, Features
from .cutting import CaptionCutter
from .kernels import settle_kernels
from .loop import build_accelerator, run_stage
from .losses import contrastive_loss, primary_components
from .stage import Figures
from .towers import PairCollate, stretch_positions


class Finetuning(ContrastiveStage):
    """CLIP on captions cut at its window, or with its positions stretched four times.

    Run with stretched positions and in full float32 it is a far stronger baseline than the papers print.
    """

    name = "finetune-clip"
    arguments: FinetuneArguments

    def __init__(self, towers: ClipTowers, tokenizer: PreTrainedTokenizerBase, data: Captions, arguments):
        if arguments.stretch:
            stretch_positions(towers.text_encoder)
        window = towers.text_encoder.config.max_position_embeddings
        cutter = CaptionCutter(tokenizer, window, window, short="cut", sub_captions="none", seed=arguments.seed)
        super().__init__(towers.text_encoder, towers, tokenizer, data, cutter, arguments)
        self.collate = PairCollate(padding_id(tokenizer, "eos"), long=False)

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

    def __init__(self, towers: ClipTowers, tokenizer: PreTrainedTokenizerBase, data: Captions, arguments):
        stretch_positions(towers.text_encoder, freeze=LONGCLIP_KEEP, keep=LONGCLIP_KEEP)
        window = towers.text_encoder.config.max_position_embeddings
        cutter = CaptionCutter(
            tokenizer, window, window, short="first-sentence", sub_captions="none", seed=arguments.seed
        )
        super().__init__(towers.text_encoder, towers, tokenizer, data, cutter, arguments)
        self.collate = PairCollate(padding_id(tokenizer, "eos"))

    def contrastive(self, features: Features, logit_scale: Tensor) -> tuple[Tensor, Figures]:
        """The loss of long captions, and that of short ones against the images' primary components."""
        smoothing = self.arguments.label_smoothing
        components = primary_components(features["image"], self.arguments.components)
        long = contrastive_loss(features["image"], features["long"], logit_scale, smoothing)
        short = contrastive_loss(components, features["short"], logit_scale, smoothing)
        figures = {"long_loss": long.detach(), "short_loss": short.detach()}
        return long + self.arguments.short_weight * short, figures


def run_baseline(
    stage: type[Finetuning] | type[LongCLIP],
    towers: ClipTowers,
    tokenizer: PreTrainedTokenizerBase,
    data: Captions,
    arguments: ContrastiveArguments,
    sources: Sources | None,
) -> CLIPTextModelWithProjection:
    """Run `stage` on `towers`, in place, and return the text tower that it has written."""
    config = towers.text_encoder.config
    arguments = settle_kernels(arguments, config, config.max_position_embeddings)
    accelerator = build_accelerator(arguments)
    run_stage(stage(towers, tokenizer, data, arguments), arguments, accelerator, sources)
    return CLIPTextModelWithProjection.from_pretrained(arguments.output_dir)


def finetune_clip(
    towers: ClipTowers,
    tokenizer: PreTrainedTokenizerBase,
    data: Captions,
    arguments: FinetuneArguments,
    sources: Sources | None = None,
) -> CLIPTextModelWithProjection:
    """Fine-tune both towers of `towers` in place, write them to `arguments.output_dir`, and return the text tower."""
    return run_baseline(Finetuning, towers, tokenizer, data, arguments, sources)


def long_clip(
    towers: ClipTowers,
    tokenizer: PreTrainedTokenizerBase,
    data: Captions,
    arguments: LongCLIPArguments,
    sources: Sources | None = None,
) -> CLIPTextModelWithProjection:
    """Train Long-CLIP from `towers`, in place, write it to `arguments.output_dir`, and return its text tower."""
    return run_baseline(LongCLIP, towers, tokenizer, data, arguments, sources)
