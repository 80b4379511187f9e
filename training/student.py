"""The student of every stage: how it is made, made ready, run and compared with its teacher."""

import copy
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, PreTrainedModel, PreTrainedTokenizerBase

from tulip_diffusion.models.checkpoints import TextEncoder
from tulip_diffusion.models.positions import eos_token_id
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection, from_clip

from .config import DistillArguments, LoopArguments
from .kernels import use_kernels
from .losses import aligned_token_error, relative_squared_error
from .stage import Chunk, Figures
from .teacher import Targets, token_states


class TextStates(NamedTuple):
    """A student's outputs for a chunk: projected pooled states and the token states that are matched."""

    short_embeds: Tensor  # (captions, projection_dim)
    short_states: Tensor  # (captions, window, width)
    long_embeds: Tensor | None = None  # (long captions, projection_dim)
    long_states: Tensor | None = None  # (long captions, tokens, width)


class TwoTexts(nn.Module):
    """A student on short and long texts in one call, so that a data-parallel wrapper sees one forward a chunk."""

    def __init__(self, student: TextEncoder, match: str = "penultimate"):
        super().__init__()
        self.student = student
        self.match = match

    def forward(
        self,
        short_ids: Tensor,
        long_ids: Tensor | None = None,
        long_mask: Tensor | None = None,
        long_positions: Tensor | None = None,
    ) -> TextStates:
        """Short texts (captions, window) and, where there are any, long ones with their mask, both read once."""
        short = self.student(short_ids, output_hidden_states=True)
        if long_ids is None:
            return TextStates(short.text_embeds, token_states(short, self.match))
        long = self.student(long_ids, attention_mask=long_mask, position_ids=long_positions, output_hidden_states=True)
        states = token_states(short, self.match), token_states(long, self.match)
        return TextStates(short.text_embeds, states[0], long.text_embeds, states[1])


def new_student(teacher: CLIPTextModelWithProjection, arguments: DistillArguments) -> TulipTextModelWithProjection:
    """A student with the teacher's weights, all but the positions, in memory of its own."""
    ours = arguments.objective == "default" and arguments.position_encoding == "rope"
    config: dict[str, Any] = {
        "position_encoding": arguments.position_encoding,
        "attention_scaling": "log" if ours else "none",
        "attention_scaling_base": teacher.config.max_position_embeddings,
    }
    if arguments.position_encoding == "cope":
        config["max_position_embeddings"] = arguments.length
    return copy.deepcopy(from_clip(teacher, **config))


def scale_attention(student: TulipTextModelWithProjection, kind: str) -> None:
    """Set the student's attention scaling, "none" or "log"."""
    for config in (student.config, student.text_model.config):
        config.attention_scaling = kind


def refuse_shared_weights(student: nn.Module, teacher: nn.Module) -> None:
    """`from_clip` shares the teacher's tensors; training them would move the teacher along.

    Raises:
        ValueError: a weight of `student` is one of `teacher`.
    """
    taught = {weight.data_ptr() for weight in teacher.parameters()}
    if any(weight.data_ptr() in taught for weight in student.parameters()):
        raise ValueError("The student shares weights with its teacher. Train copy.deepcopy(student) instead.")


def note_length(student: TulipTextModelWithProjection, length: int) -> None:
    """Say in the student's configs that it trains on texts of up to `length` tokens.

    Raises:
        ValueError: a CoPE student whose tables are shorter.
    """
    if student.config.position_encoding == "cope" and student.config.max_position_embeddings < length:
        raise ValueError(
            f"This CoPE student counts {student.config.max_position_embeddings} positions, fewer than {length}. "
            f"Distil it with --length {length}, or train on fewer tokens."
        )
    for config in (student.config, student.text_model.config):
        config.max_position_embeddings = max(length, config.max_position_embeddings)


def origins_of(**parts: Any) -> dict[str, str]:
    """Where models and tokenizers were loaded from, or what they are where they do not know."""
    return {name: getattr(part, "name_or_path", "") or f"a {type(part).__name__}" for name, part in parts.items()}


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, teacher: PreTrainedModel, student: PreTrainedModel | None = None
) -> None:
    """Refuse ids that mean something else to the teacher or to the student.

    Raises:
        ValueError: the tokenizer has ids that the teacher lacks, ends texts with another one, or the student's table
            of tokens has another size than the teacher's.
    """
    size, eos = teacher.config.vocab_size, eos_token_id(teacher.config)
    if len(tokenizer) > size or tokenizer.eos_token_id != eos:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and ends texts with id {tokenizer.eos_token_id}, but the "
            f"teacher knows {size} tokens and ends with {eos}. Name the teacher's own tokenizer with --tokenizer."
        )
    if student is not None and student.config.vocab_size != size:
        raise ValueError(
            f"The student knows {student.config.vocab_size} tokens and its teacher {size}, so it was made from "
            "another encoder. Name the teacher that it comes from."
        )


def prepare_tower(tower: PreTrainedModel, arguments: LoopArguments, trained: bool = True) -> None:
    """Put `tower` into training mode with master weights in float32, `trained` or frozen as a whole."""
    tower.float().requires_grad_(trained).train()
    use_kernels(tower, arguments)
    if arguments.gradient_checkpointing:
        tower.gradient_checkpointing_enable()


def hidden_figures(states: TextStates, targets: Targets, batch: Chunk) -> Figures:
    """The per-token terms: relative squared error of the matched states, in short texts and in long ones."""
    assert targets.short_states is not None
    figures = {"short_error": relative_squared_error(states.short_states, targets.short_states).mean()}
    if states.long_states is not None:
        assert targets.token_row is not None and targets.token_states is not None
        rows = targets.token_row
        student = states.long_states[batch["long_of_row"][rows], targets.token_place]
        figures["long_error"] = aligned_token_error(student, targets.token_states, rows, len(batch["long_of_row"]))
    return figures


def pooled_figures(states: TextStates, targets: Targets, batch: Chunk) -> Figures:
    """The pooled terms: relative squared error of the pooled states, of short texts and of long ones."""
    figures = {"short_pooled_error": relative_squared_error(states.short_embeds.float(), targets.pooled).mean()}
    if states.long_embeds is not None:
        figures["long_pooled_error"] = long_pooled_error(states.long_embeds, targets, batch)
    return figures


def long_pooled_error(embeds: Tensor, targets: Targets, batch: Chunk) -> Tensor:
    """Mean relative squared error of long texts' pooled states, over the captions that have sub-captions."""
    assert targets.long_pooled is not None
    told = targets.long_pooled.any(dim=-1)
    errors = relative_squared_error(embeds.float()[batch["long_of_row"][told]], targets.long_pooled[told])
    return errors.sum() / max(1, len(batch["long_of_row"]))


def unprefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of `weights` under `prefix`, without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
