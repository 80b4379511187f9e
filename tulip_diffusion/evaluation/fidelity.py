"""How closely a student encoder says what its teacher says, in what retrieval reads and in what SDXL reads."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def mean_cosine(student: Tensor, teacher: Tensor) -> float:
    """Mean cosine of corresponding vectors, (…, dim)."""
    return F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean().item()


def relative_error(student: Tensor, teacher: Tensor) -> float:
    """Mean over vectors (…, dim) of ||student - teacher||² / ||teacher||²."""
    student, teacher = student.float(), teacher.float()
    return ((student - teacher).square().sum(dim=-1) / teacher.square().sum(dim=-1)).mean().item()


@torch.no_grad()
def compare_batch(student: PreTrainedModel, teacher: PreTrainedModel, input_ids: Tensor) -> dict[str, float]:
    """Figures for `input_ids` (batch, tokens), which both encoders must be able to read.

    Returns "pooled_cosine" of the projected pooled states, and "penultimate_cosine" and "penultimate_error" of
    `hidden_states[-2]`, which SDXL reads at every position, padding included.
    """
    said = [encoder(input_ids.to(encoder.device), output_hidden_states=True) for encoder in (student, teacher)]
    pooled = [output.text_embeds.cpu() for output in said]
    states = [output.hidden_states[-2].cpu() for output in said]
    return {
        "pooled_cosine": mean_cosine(*pooled),
        "penultimate_cosine": mean_cosine(*states),
        "penultimate_error": relative_error(*states),
    }


def fidelity(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    captions: Sequence[str],
    pad_id: int | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> dict[str, float]:
    """Mean figures of [`compare_batch`] over `captions`, cut at the teacher's window and padded to it as SDXL does.

    `pad_id` is EOS by default, as in SDXL's first encoder; its second is padded with 0. Both encoders are read in
    evaluation mode and left in the mode they were in.
    """
    window = teacher.config.max_position_embeddings
    pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
    modes = student.training, teacher.training
    student.eval()
    teacher.eval()
    sums: dict[str, float] = {}
    for start in tqdm(range(0, len(captions), batch_size), desc="fidelity", disable=not progress):
        part = captions[start : start + batch_size]
        figures = compare_batch(student, teacher, window_ids(part, tokenizer, window, pad_id))
        for name, value in figures.items():
            sums[name] = sums.get(name, 0.0) + value * len(part)
    student.train(modes[0])
    teacher.train(modes[1])
    return {name: value / len(captions) for name, value in sums.items()}


def window_ids(captions: Iterable[str], tokenizer: PreTrainedTokenizerBase, window: int, pad_id: int) -> Tensor:
    """Ids (captions, window): BOS, at most window - 2 tokens, EOS, then `pad_id`."""
    rows = []
    for ids in tokenizer(list(captions), add_special_tokens=False, verbose=False).input_ids:
        row = [tokenizer.bos_token_id, *ids[: window - 2], tokenizer.eos_token_id]
        rows.append(row + [pad_id] * (window - len(row)))
    return torch.tensor(rows)
