"""The contrastive stages' common part: the exact loss of a large batch on however little memory.

A batch is the texts and images of all processes together. Its loss needs all features at once, but no more than
features: each process computes its own in chunks, all are gathered, and the loss gives the gradient of every feature.
The backward pass then recomputes chunk after chunk and hands each its features' gradient (GradCache,
arXiv:2101.06983). The result is that of one large batch on one device, negatives of other processes included.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, PreTrainedTokenizerBase
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from tulip_diffusion.data import Captions
from tulip_diffusion.models.checkpoints import ClipTowers, TextEncoder

from .config import ContrastiveArguments
from .cutting import CaptionCutter
from .stage import Chunk, Figures, Stage
from .student import TextStates, TwoTexts, check_vocabulary, origins_of, prepare_tower, unprefixed
from .towers import PairRows, image_processor, join_positions, save_image_tower

LOGIT_SCALE_LIMIT = math.log(100)  # CLIP's clamp

Features = dict[str, Tensor]  # unit vectors of a batch, (pairs, dim): "image", "long", "short"


class TowerOutputs(NamedTuple):
    """Both towers' outputs for a chunk."""

    image_embeds: Tensor
    text: TextStates
    logit_scale: Tensor  # (1,), the multiplier; (2,) with the sigmoid loss, its bias behind


@dataclass(frozen=True)
class FeatureGradients:
    """The loss of a batch, and its gradients with respect to the features and the logit scale."""

    features: Features
    scale: Tensor
    loss: Tensor
    figures: Figures

    def of(self, rows: slice) -> "FeatureGradients":
        """The same for some of the pairs."""
        return replace(self, features={name: gradient[rows] for name, gradient in self.features.items()})


class TwoTowers(nn.Module):
    """Both towers and the logit scale in one forward."""

    def __init__(
        self,
        text: TextEncoder,
        image: CLIPVisionModelWithProjection,
        logit_scale: float,
        logit_bias: float | None = None,
    ):
        super().__init__()
        self.reader = TwoTexts(text)  # its name is in runs' checkpoints
        self.image = image
        self.logit_scale = nn.Parameter(torch.tensor([logit_scale]))  # one row: FSDP cannot shard a scalar
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor([logit_bias]))
        self.mean, self.std = (
            nn.Buffer(255 * torch.tensor(values)[:, None, None], persistent=False)
            for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        )

    def normalised(self, pixel_values: Tensor) -> Tensor:
        """Whole numbers from 0 to 255 as CLIP's image tower takes them; fractions are taken as normalised already."""
        return pixel_values if pixel_values.is_floating_point() else (pixel_values - self.mean) / self.std

    def forward(
        self,
        pixel_values: Tensor,
        short_ids: Tensor,
        long_ids: Tensor | None = None,
        long_mask: Tensor | None = None,
    ) -> TowerOutputs:
        """Images (pairs, 3, height, width) and their texts' ids, read by both towers."""
        image_embeds = self.image(self.normalised(pixel_values)).image_embeds
        scale = self.logit_scale.exp()
        if self.logit_bias is not None:
            scale = torch.cat([scale, self.logit_bias])
        return TowerOutputs(image_embeds, self.reader(short_ids, long_ids, long_mask), scale)


class ContrastiveStage(Stage):
    """A stage that trains on pairs; subclasses say which texts it reads and what the loss of all features is.

    Args:
        text: the text tower to train, CLIP's or TULIP's.
        towers: where the image tower and the logit scale come from.
    """

    arguments: ContrastiveArguments

    def __init__(
        self,
        text: TextEncoder,
        towers: ClipTowers,
        tokenizer: PreTrainedTokenizerBase,
        data: Captions,
        cutter: CaptionCutter,
        arguments: ContrastiveArguments,
        draws: int = 1,
    ):
        if towers.image_encoder is None or towers.logit_scale is None:
            raise ValueError(f"{self.name} compares texts with images, but the teacher is a text encoder alone.")
        self.origins = origins_of(teacher=towers.text_encoder, student=text, tokenizer=tokenizer)
        check_vocabulary(tokenizer, towers.text_encoder, text)
        self.arguments, self.data, self.tokenizer = arguments, data, tokenizer
        self.text, self.image = text, towers.image_encoder
        for tower, name in ((self.text, "text"), (self.image, "image")):
            prepare_tower(tower, arguments, trained=arguments.train in ("both", name))
        self.module = TwoTowers(self.text, self.image, *self.temperature(towers.logit_scale))
        self.rows = PairRows(data, image_processor(self.image), cutter, draws)

    def temperature(self, logit_scale: float) -> tuple[float, ...]:
        """Logarithm of the scale that training starts from, here CLIP's, and a bias where there is one."""
        return (logit_scale,)

    @abstractmethod
    def contrastive(self, features: Features, logit_scale: Tensor) -> tuple[Tensor, Figures]:
        """The loss of all pairs of all processes."""

    def extra_loss(
        self, outputs: TowerOutputs, chunk: Chunk, accelerator: Accelerator
    ) -> tuple[Tensor | float, Figures]:
        """What is a mean over captions and so needs no other chunk's features."""
        return 0.0, {}

    def embed(self, module: nn.Module, chunk: Chunk) -> tuple[TowerOutputs, Features]:
        """Both towers' outputs for a chunk, and of these the unit vectors that the loss compares."""
        outputs = module(chunk["pixel_values"], chunk["short_ids"], chunk.get("long_ids"), chunk.get("long_mask"))
        features = {"image": outputs.image_embeds, "short": outputs.text.short_embeds}
        if outputs.text.long_embeds is not None:
            features["long"] = outputs.text.long_embeds
        return outputs, {name: F.normalize(value.float(), dim=-1) for name, value in features.items()}

    def prepare(self, module: nn.Module, chunks: list[Chunk], accelerator: Accelerator) -> list[Chunk]:
        """Give every chunk the gradient of its features, from a first pass without a graph. One chunk needs none.

        Repeated chunks are read too, because FSDP waits for every process, but add no features.
        """
        if len(chunks) == 1:
            return chunks
        parts: list[Features] = []
        for chunk in chunks:
            with torch.no_grad():
                outputs, features = self.embed(module, chunk)
            if chunk["captions"]:
                parts.append(features)  # alone: token states of a whole batch would fill the memory
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        gradients = self.gradients(whole, outputs.logit_scale, accelerator)
        return [
            chunk | {"gradients": gradients.of(rows)} for chunk, rows in zip(chunks, chunk_slices(chunks), strict=True)
        ]

    def gradients(self, features: Features, logit_scale: Tensor, accelerator: Accelerator) -> FeatureGradients:
        """Loss of all processes' features, and its gradients with respect to this process's and to the scale."""
        gathered = {name: accelerator.gather(value.detach()).requires_grad_() for name, value in features.items()}
        scale = logit_scale.detach().requires_grad_()
        with torch.enable_grad():
            loss, figures = self.contrastive(gathered, scale)
            *of_features, of_scale = torch.autograd.grad(loss, [*gathered.values(), scale])
        start = accelerator.process_index * len(features["image"])
        mine = slice(start, start + len(features["image"]))
        by_name = dict(zip(gathered, of_features, strict=True))
        return FeatureGradients(by_name, of_scale, loss.detach(), figures).of(mine)

    def loss(self, module: nn.Module, chunk: Chunk, accelerator: Accelerator) -> tuple[Tensor, Figures]:
        """A scalar whose gradient is the chunk's part of the batch's loss."""
        outputs, features = self.embed(module, chunk)
        gradients = chunk.get("gradients") or self.gradients(features, outputs.logit_scale, accelerator)
        # The loop takes the mean over all captions. Every chunk adds the scale's whole gradient, but of the features'
        # only that of its own captions, which therefore counts `parts` times.
        parts = self.arguments.batch_size / len(features["image"])
        surrogate = (outputs.logit_scale * gradients.scale).sum()
        for name, value in features.items():
            surrogate = surrogate + parts * (value * gradients.features[name]).sum()
        extra, figures = self.extra_loss(outputs, chunk, accelerator)
        figures = {"loss": gradients.loss + extra, **gradients.figures, **figures}
        return surrogate + extra, figures

    def after_step(self, module: nn.Module) -> None:
        """Keep the temperature within CLIP's limit."""
        with torch.no_grad():
            module.logit_scale.clamp_(0, LOGIT_SCALE_LIMIT)  # type: ignore[operator]  # a parameter, which nn.Module cannot say

    def save(self, folder: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write the text tower with its tokenizer, and the image tower into `image_encoder/`."""
        text = join_positions(unprefixed(weights, "reader.student."))
        self.text.save_pretrained(folder, state_dict=text)
        self.tokenizer.save_pretrained(folder)
        save_image_tower(self.image, unprefixed(weights, "image."), folder / "image_encoder")
        return {name: weights[name].item() for name in ("logit_scale", "logit_bias") if name in weights}


def chunk_slices(chunks: Sequence[Chunk]) -> list[slice]:
    """Where each chunk's pairs stand among those of the step; a chunk of no captions repeats the first."""
    slices: list[slice] = []
    start = 0
    for chunk in chunks:
        slices.append(slice(start, start + chunk["captions"]) if chunk["captions"] else slices[0])
        start += chunk["captions"]
    return slices
