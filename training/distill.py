"""Stage 1, relative position distillation (TULIP, arXiv:2410.10034, section 3.2), and what SDXL needs beyond it.

The student is the teacher without its position table. The paper matches pooled states of captions cut to 77 tokens.
SDXL reads token states, so by default those are matched too, on texts of mixed lengths padded as SDXL pads them, and
beyond the teacher's window on sub-captions that the teacher can read.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase

from tulip_diffusion.data import CaptionData, Captions, CaptionStream
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection
from tulip_diffusion.provenance import weights_hash

from .batches import CutRow, CutRows, long_batch, padding_id, short_batch, sub_caption_batch
from .config import DistillArguments, Sources
from .cutting import CaptionCutter, caption_cutter
from .kernels import settle_kernels, use_kernels
from .loop import build_accelerator, run_stage, total_steps
from .losses import POOLED_LOSSES
from .stage import Chunk, Figures, Stage
from .student import (
    TwoTexts,
    check_vocabulary,
    hidden_figures,
    long_pooled_error,
    new_student,
    note_length,
    origins_of,
    prepare_tower,
    refuse_shared_weights,
    scale_attention,
    unprefixed,
)
from .teacher import Targets, Teacher
from .teacher_cache import TeacherCache, hash_all, hash_parts

logger = get_logger(__name__)

ESTIMATED_FROM = 64  # captions that the cache's size is estimated from


@dataclass(frozen=True)
class DistillCollate:
    """Makes a chunk of cut captions: the student's texts, and the teacher's or, from `cache`, its outputs."""

    rows: int  # of the whole data
    pad_id: int
    window: int
    with_long: bool
    cache: TeacherCache | None = None

    def __call__(self, items: Sequence[CutRow]) -> Chunk:
        cuts = [item.cut for item in items]
        batch: Chunk = {"captions": len(cuts), "tokens": sum(len(cut.short_ids) for cut in cuts)}
        batch |= short_batch(cuts, self.pad_id, self.window)
        if self.with_long:
            # FSDP needs every process to take the same path, so there is always a long text, if only to be read.
            rows = [row for row, cut in enumerate(cuts) if len(cut.long_ids) > self.window] or [0]
            batch |= long_batch(cuts, self.pad_id, rows)
            batch["tokens"] += sum(len(cuts[row].long_ids) for row in rows)
        if self.cache is not None:
            batch["targets"] = self.cache.read([item.draw * self.rows + item.row for item in items])
        elif self.with_long:
            batch |= sub_caption_batch(cuts, self.pad_id)
        return batch


class Distillation(Stage):
    """Stage 1 for any CLIP-like text tower.

    Args:
        teacher: CLIP's text encoder; its `max_position_embeddings` is the window.
        student: an encoder to go on from; by default a new one with the teacher's weights.
        data: captions; their images are not looked at.
    """

    name = "distill"

    def __init__(
        self,
        teacher: CLIPTextModelWithProjection,
        student: TulipTextModelWithProjection | None,
        tokenizer: PreTrainedTokenizerBase,
        data: Captions,
        arguments: DistillArguments,
    ):
        self.arguments, self.data, self.tokenizer = arguments, data, tokenizer
        self.paper = arguments.objective == "paper"
        self.origins = origins_of(teacher=teacher, tokenizer=tokenizer, **({"student": student} if student else {}))
        self.student = student or new_student(teacher, arguments)
        # Taught without, read with it: two long trainings with it came out worse (training/LOG.md).
        self.saved_scaling = arguments.attention_scaling or self.student.config.attention_scaling
        scale_attention(self.student, "none")
        check_vocabulary(tokenizer, teacher, self.student)
        refuse_shared_weights(self.student, teacher)
        prepare_tower(self.student, arguments)
        self.student.get_input_embeddings().requires_grad_(not arguments.freeze_token_embedding)
        use_kernels(teacher, arguments)
        most_moving = arguments.subset_choice == "most-moving"
        self.teacher = Teacher(teacher, arguments.objective, most_moving, arguments.match)
        self.module = TwoTexts(self.student, arguments.match)
        self.cutter = self.build_cutter()
        with_long = not self.paper and arguments.length > self.teacher.window
        if with_long:
            note_length(self.student, arguments.length)
        self.draws = 1 if self.paper else arguments.subset_draws
        self.rows = CutRows(data, self.cutter, self.draws)
        self.count = 0 if isinstance(data, CaptionStream) else len(data)
        self.collate: DistillCollate = DistillCollate(
            self.count, padding_id(tokenizer, arguments.pad), self.teacher.window, with_long
        )

    def build_cutter(self) -> CaptionCutter:
        """How captions are cut: at the window for the paper's objective, else with sub-captions beyond it."""
        short = "cut" if self.paper else "prefix"
        return caption_cutter(
            self.tokenizer, self.arguments, self.arguments.seed, self.teacher.window, short, far=not self.paper
        )

    def begin(self, accelerator: Accelerator) -> None:
        """Fill the teacher's cache, or put the teacher where it will run."""
        self.teacher.encoder.to(accelerator.device)
        if (cache := self.open_cache(accelerator)) is not None:
            self.collate = replace(self.collate, cache=cache)
            self.teacher.encoder.cpu()

    def open_cache(self, accelerator: Accelerator) -> TeacherCache | None:
        """The cache that `teacher_cache` asks for, filled; None where the teacher runs at every step.

        "auto" makes one where a cut is read more than once and there is room for it.

        Raises:
            ValueError: the named folder holds another run's cache.
            OSError: the named folder has no room.
        """
        arguments = self.arguments
        asked, auto = arguments.teacher_cache, arguments.teacher_cache == "auto"
        if isinstance(self.data, CaptionStream):
            return None
        epochs = total_steps(arguments, self.data) * arguments.batch_size / self.count
        if asked == "off" or (auto and epochs <= self.draws):
            return None
        cache = TeacherCache(Path(arguments.output_dir, "teacher-cache") if auto else Path(asked), self.manifest())
        if cache.missing():
            needed = self.estimate_bytes(cache.entries)
            text = f"Teacher cache in {cache.folder}: about {needed / 1e9:.2f} GB for {cache.entries} entries"
            accelerator.print(text)
            if needed > 0.95 * (free := cache.free_bytes()):
                if auto:
                    logger.warning("No room for the teacher cache; the teacher runs at every step.")
                    return None
                raise OSError(
                    f"{text}, but {free / 1e9:.1f} GB are free. Use fewer --subset-draws, another folder, "
                    "or --teacher-cache off."
                )
            cache.fill(lambda entries: self.compute(entries, accelerator), accelerator)
        return cache

    def manifest(self) -> dict[str, Any]:
        """Everything that cached outputs depend on."""
        assert isinstance(self.data, CaptionData)
        arguments, cutter, encoder = self.arguments, self.cutter, self.teacher.encoder
        config = {k: v for k, v in encoder.config.to_dict().items() if k not in ("transformers_version", "dtype")}
        return {
            "format": 2,
            "teacher": weights_hash(encoder),
            "teacher_config": hash_parts(json.dumps(config, sort_keys=True, default=str)),
            "tokenizer": hash_parts(self.tokenizer.backend_tokenizer.to_str(), str(self.collate.pad_id)),
            "data": hash_all(self.data.captions),
            "rows": self.count,
            "draws": self.draws,
            "objective": arguments.objective,
            "match": arguments.match,
            "cut": [cutter.length, cutter.window, cutter.short, cutter.sub_captions, cutter.candidates, cutter.seed],
            "subset_choice": arguments.subset_choice,
            "precision": arguments.mixed_precision,
            "dtype": arguments.teacher_cache_dtype,
        }

    def estimate_bytes(self, entries: int) -> int:
        """Size of the whole cache, from the first captions' cuts. Every far token is stored once a cut."""
        config, window = self.teacher.encoder.config, self.teacher.window
        per_entry = config.projection_dim
        if not self.paper:
            cuts = [self.rows[row, 0].cut for row in range(min(ESTIMATED_FROM, self.count))]
            matched = sum(piece.count for cut in cuts for sub in cut.sub_captions for piece in sub.pieces)
            per_entry += (window + matched / len(cuts)) * config.hidden_size
        return int(2 * per_entry * entries)

    def compute(self, entries: Sequence[int], accelerator: Accelerator) -> Targets:
        """The teacher's outputs for entries of the cache: entry e is row e % rows in draw e // rows."""
        keys = [divmod(entry, self.count) for entry in entries]
        chunk = self.collate([self.rows[row, draw] for draw, row in keys])
        return self.targets(send_to_device(chunk, accelerator.device), accelerator)

    def targets(self, chunk: Chunk, accelerator: Accelerator) -> Targets:
        """The teacher's outputs for a chunk, in float32: those that the chunk brings from the cache, or new ones."""
        if "targets" in chunk:
            return Targets(**chunk["targets"]).float()
        with accelerator.autocast():
            return self.teacher.targets(chunk)

    def loss(self, module: nn.Module, chunk: Chunk, accelerator: Accelerator) -> tuple[Tensor, Figures]:
        """Distance of the pooled states, plus that of the token states unless the objective is the paper's."""
        targets = self.targets(chunk, accelerator)
        states = module(chunk["short_ids"], chunk.get("long_ids"), chunk.get("long_mask"), chunk.get("long_positions"))
        loss = POOLED_LOSSES[self.arguments.pooled_loss](states.short_embeds.float(), targets.pooled)
        with torch.no_grad():
            figures = {"pooled_cosine": F.cosine_similarity(states.short_embeds, targets.pooled).mean()}
        if not self.paper:
            terms = hidden_figures(states, targets, chunk)
            figures |= terms
            loss = loss + self.arguments.hidden_weight * sum(terms.values())
            if states.long_embeds is not None:
                figures["long_pooled_error"] = long_pooled_error(states.long_embeds, targets, chunk)
                loss = loss + self.arguments.long_pooled_weight * figures["long_pooled_error"]
        return loss, {"loss": loss, **figures}

    def save(self, folder: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write the student, its attention scaled as asked, and its tokenizer."""
        scale_attention(self.student, self.saved_scaling)
        self.student.save_pretrained(folder, state_dict=unprefixed(weights, "student."))
        self.tokenizer.save_pretrained(folder)
        return {"objective": self.arguments.objective, "match": self.arguments.match, "window": self.teacher.window}


def distill(
    teacher: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerBase,
    data: Captions,
    arguments: DistillArguments,
    student: TulipTextModelWithProjection | None = None,
    sources: Sources | None = None,
) -> TulipTextModelWithProjection:
    """Run stage 1, write the encoder to `arguments.output_dir` and return it.

    `student` goes on training in place; without one, a copy of `teacher` does. `CaptionData(captions)` makes `data` of
    a list of strings.
    """
    arguments = settle_kernels(arguments, teacher.config, arguments.length)
    accelerator = build_accelerator(arguments)
    stage = Distillation(teacher, student, tokenizer, data, arguments)
    run_stage(stage, arguments, accelerator, sources)
    scale_attention(stage.student, stage.saved_scaling)  # in processes that write nothing too
    return stage.student
