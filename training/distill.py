"""Stage 1, relative position distillation (TULIP, arXiv:2410.10034, section 3.2), and what SDXL needs beyond it.

The student is the teacher without its position table. The paper matches pooled states of captions cut to 77 tokens.
SDXL reads token states, so by default those are matched too, on texts of mixed lengths padded as SDXL pads them, and
beyond the teacher's window on sub-captions that the teacher can read.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase

from tulip_diffusion.data import CaptionData
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection, from_clip

from .captions import MOST_MOVING_CANDIDATES, CaptionCutter, CutCaption
from .config import DistillArguments, ExpandArguments, LoopArguments
from .loop import Figures, Stage, build_accelerator, run_stage, total_steps
from .losses import POOLED_LOSSES, aligned_token_error, relative_squared_error
from .teacher import (
    Batch,
    Targets,
    Teacher,
    long_batch,
    padding_id,
    refuse_shared_weights,
    short_batch,
    sub_caption_batch,
)
from .teacher_cache import TeacherCache, open_teacher_cache


class TextStates(NamedTuple):
    """A student's reading of a chunk: projected pooled states and penultimate token states."""

    short_embeds: Tensor  # (captions, projection_dim)
    short_states: Tensor  # (captions, window, width)
    long_embeds: Tensor | None = None  # (long captions, projection_dim)
    long_states: Tensor | None = None  # (long captions, tokens, width)


class StudentReader(nn.Module):
    """Reads short and long texts in one call, so that a data-parallel wrapper sees one forward a chunk."""

    def __init__(self, student: TulipTextModelWithProjection):
        super().__init__()
        self.student = student

    def forward(
        self, short_ids: Tensor, long_ids: Tensor | None = None, long_mask: Tensor | None = None
    ) -> TextStates:
        short = self.student(short_ids, output_hidden_states=True)
        if long_ids is None:
            return TextStates(short.text_embeds, short.hidden_states[-2])
        long = self.student(long_ids, attention_mask=long_mask, output_hidden_states=True)
        return TextStates(short.text_embeds, short.hidden_states[-2], long.text_embeds, long.hidden_states[-2])


class CutRows(Dataset):
    """(row, epoch) to (row, draw, the caption cut for that draw)."""

    def __init__(self, data: CaptionData, cutter: CaptionCutter, draws: int):
        self.data, self.cutter, self.draws = data, cutter, draws

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int, CutCaption]:
        row, epoch = key
        draw = epoch % self.draws
        return row, draw, self.cutter(self.data.captions[row], row, draw)


def new_student(teacher: CLIPTextModelWithProjection, arguments: DistillArguments) -> TulipTextModelWithProjection:
    """A student with the teacher's weights, all but the positions, in memory of its own."""
    config: dict[str, Any] = {"position_encoding": arguments.position_encoding}
    if arguments.position_encoding == "cope":
        config["max_position_embeddings"] = arguments.length
    return copy.deepcopy(from_clip(teacher, **config))


def prepare_tower(tower: PreTrainedModel, arguments: LoopArguments, trained: bool = True) -> None:
    """Put `tower` into training mode with master weights in float32, `trained` or frozen as a whole."""
    tower.float().requires_grad_(trained).train()
    tower.set_attn_implementation(arguments.attn)
    if arguments.gradient_checkpointing:
        tower.gradient_checkpointing_enable()


def hidden_figures(states: TextStates, targets: Targets, batch: Batch) -> Figures:
    """The per-token terms: relative squared error of the penultimate states, in short texts and in long ones."""
    assert targets.short_states is not None
    figures = {"short_error": relative_squared_error(states.short_states, targets.short_states).mean()}
    if states.long_states is not None:
        assert targets.token_row is not None and targets.token_states is not None
        rows = targets.token_row
        student = states.long_states[batch["long_of_row"][rows], targets.token_place]
        figures["long_error"] = aligned_token_error(student, targets.token_states, rows, len(batch["long_of_row"]))
    return figures


def caption_cutter(
    tokenizer: PreTrainedTokenizerBase, arguments: DistillArguments | ExpandArguments, window: int, short: str
) -> CaptionCutter:
    return CaptionCutter(
        tokenizer,
        length=max(arguments.length, window),
        window=window,
        short=short,
        sub_captions=arguments.sub_captions if arguments.length > window else "none",
        candidates=MOST_MOVING_CANDIDATES if arguments.subset_choice == "most-moving" else 1,
        seed=arguments.seed,
    )


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
        data: CaptionData,
        arguments: DistillArguments,
    ):
        self.arguments, self.data, self.tokenizer = arguments, data, tokenizer
        self.paper = arguments.objective == "paper"
        self.student = student or new_student(teacher, arguments)
        refuse_shared_weights(self.student, teacher)
        prepare_tower(self.student, arguments)
        self.student.get_input_embeddings().requires_grad_(not arguments.freeze_token_embedding)
        teacher.set_attn_implementation(arguments.attn)
        self.teacher = Teacher(teacher, arguments.objective, arguments.subset_choice == "most-moving")
        self.module = StudentReader(self.student)
        self.cutter = caption_cutter(tokenizer, arguments, self.teacher.window, "cut" if self.paper else "prefix")
        self.with_long = not self.paper and arguments.length > self.teacher.window
        if self.paper:
            self.cutter.sub_captions = "none"
        if self.with_long:
            for config in (self.student.config, self.student.text_model.config):
                config.max_position_embeddings = arguments.length  # for RoPE, the tokens that it was trained for
        self.draws = 1 if self.paper else arguments.subset_draws
        self.rows = CutRows(data, self.cutter, self.draws)
        self.pad_id = padding_id(tokenizer, arguments.pad)
        self.cache: TeacherCache | None = None

    def begin(self, accelerator: Accelerator) -> None:
        self.teacher.encoder.to(accelerator.device)
        epochs = total_steps(self.arguments, len(self.data)) * self.arguments.batch_size / len(self.data)
        self.cache = open_teacher_cache(self, epochs, accelerator)
        if self.cache is not None:
            self.teacher.encoder.cpu()

    def collate(self, items: Sequence[tuple[int, int, CutCaption]]) -> dict[str, Any]:
        cuts = [cut for _, _, cut in items]
        batch: dict[str, Any] = short_batch(cuts, self.pad_id, self.teacher.window)
        tokens = sum(len(cut.short_ids) for cut in cuts)
        if self.with_long:
            # FSDP needs every process to take the same path, so there is always a long text, if only to be read.
            rows = [row for row, cut in enumerate(cuts) if len(cut.long_ids) > self.teacher.window] or [0]
            batch |= long_batch(cuts, self.pad_id, rows)
            tokens += sum(len(cuts[row].long_ids) for row in rows)
            if self.cache is None:
                batch |= sub_caption_batch(cuts, self.pad_id)
        entries = [draw * len(self.data) + row for row, draw, _ in items]
        return batch | {"captions": len(cuts), "tokens": tokens, "entries": entries}

    def targets(self, chunk: dict[str, Any], accelerator: Accelerator) -> Targets:
        if self.cache is not None:
            return self.cache.targets(chunk["entries"], accelerator.device)
        with accelerator.autocast():
            return self.teacher.targets(chunk)

    def loss(self, module: nn.Module, chunk: dict, accelerator: Accelerator) -> tuple[Tensor, Figures]:
        targets = self.targets(chunk, accelerator)
        states = module(chunk["short_ids"], chunk.get("long_ids"), chunk.get("long_mask"))
        loss = POOLED_LOSSES[self.arguments.pooled_loss](states.short_embeds.float(), targets.pooled)
        with torch.no_grad():
            figures = {"pooled_cosine": F.cosine_similarity(states.short_embeds, targets.pooled).mean()}
        if not self.paper:
            terms = hidden_figures(states, targets, chunk)
            figures |= terms
            loss = loss + self.arguments.hidden_weight * sum(terms.values())
        return loss, {"loss": loss, **figures}

    def save(self, folder: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
        self.student.save_pretrained(folder, state_dict=unprefixed(weights, "student."))
        self.tokenizer.save_pretrained(folder)
        return {"objective": self.arguments.objective, "window": self.teacher.window}


def unprefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of `weights` under `prefix`, without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def distill(
    teacher: CLIPTextModelWithProjection,
    tokenizer: PreTrainedTokenizerBase,
    data: CaptionData,
    arguments: DistillArguments,
    student: TulipTextModelWithProjection | None = None,
) -> TulipTextModelWithProjection:
    """Run stage 1, write the encoder to `arguments.output_dir` and return it.

    `student` goes on training in place; without one, a copy of `teacher` does. `CaptionData(captions)` makes `data` of
    a list of strings.
    """
    accelerator = build_accelerator(arguments)
    stage = Distillation(teacher, student, tokenizer, data, arguments)
    run_stage(stage, arguments, accelerator)
    return stage.student
