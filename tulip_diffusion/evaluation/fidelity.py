"""How closely a student encoder says what its teacher says, in what retrieval reads and in what SDXL reads.

Inside the teacher's window both read the same texts. Beyond it the teacher reads some of a caption's sentences alone,
and the student, which has read them all, is held to the states of those. And pictures tell what the difference is
worth: places that are drawn otherwise when encoders are exchanged, from the same noise.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tulip_diffusion.models.positions import CLIP_LENGTH
from tulip_diffusion.pipelines.encoding import context_length
from tulip_diffusion.scenes.captions import Caption

from .details import changed, details, share
from .drawing import draw_captions, open_pipeline
from .plots import curve, figure, legend, middles
from .processes import is_first
from .prompts import POSITIONS, bin_means, position_after, prompts_of
from .reading import text_states
from .records import markdown, mean_over, write_record


def mean_cosine(student: Tensor, teacher: Tensor) -> float:
    """Mean cosine of corresponding vectors, (…, dim)."""
    return F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean().item()


def relative_error(student: Tensor, teacher: Tensor) -> float:
    """Mean over vectors (…, dim) of ||student - teacher||² / ||teacher||²."""
    student, teacher = student.float(), teacher.float()
    return ((student - teacher).square().sum(dim=-1) / teacher.square().sum(dim=-1)).mean().item()


def pooled_state(output: Any) -> Tensor:
    """The projected pooled state, or the pooled state of an encoder without projection, as in SDXL's first slot."""
    return output.text_embeds if "text_embeds" in output else output.pooler_output


@torch.no_grad()
def compare_batch(student: PreTrainedModel, teacher: PreTrainedModel, input_ids: Tensor) -> dict[str, float]:
    """Figures for `input_ids` (batch, tokens), which both encoders must be able to read.

    Returns "pooled_cosine" of the pooled states, projected where there is a projection, and "penultimate_cosine" and
    "penultimate_error" of `hidden_states[-2]`, which SDXL reads at every position, padding included.
    """
    said = [encoder(input_ids.to(encoder.device), output_hidden_states=True) for encoder in (student, teacher)]
    pooled = [pooled_state(output).cpu() for output in said]
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


def sub_captions(caption: Caption, rng: np.random.Generator, window: int) -> list[list[int]]:
    """All sentences of `caption` in groups that fit into a window, each group in reading order; drawn at random."""
    lengths = [end - start for start, end in caption.token_spans]
    groups: list[list[int]] = [[]]
    for sentence in rng.permutation(len(lengths)).tolist():
        if sum(lengths[other] for other in groups[-1]) + lengths[sentence] > window - 2:
            groups.append([])
        groups[-1].append(sentence)
    return [sorted(group) for group in groups if group]


def tokens_read(pipeline: Any, overflow: str) -> float:
    """Tokens of a prompt that both encoders read, BOS and EOS included."""
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    return min(context_length(encoder, overflow) or math.inf for encoder in encoders)


def far_fidelity(
    pipeline: Any, teacher: Any, captions: Sequence[Caption], overflow: str | None = None
) -> dict[str, dict[str, Any]]:
    """States of the sentences beyond 77 tokens against the window teacher's, for both encoders ("l" and "g").

    The teacher pipeline reads random groups of a caption's whole sentences that fit its window; `pipeline` reads the
    caption whole, with its own policy for what it cannot hold or with `overflow`. The states of the same token of the
    same sentence are compared. Returns "read", the share of far tokens that the encoders read at all, and over those
    the "cosine" and relative "error", also by position. The teacher's states depend on which sentences it reads
    together, so no error is 0: how far the teacher itself, reading in windows, is from its own reading of the random
    groups is the measure of what is small.
    """
    groups = [sub_captions(caption, np.random.default_rng(row), CLIP_LENGTH) for row, caption in enumerate(captions)]
    call: dict[str, Any] = {} if overflow is None else {"overflow": overflow}
    with pipeline.conditioned(**call):
        limit = tokens_read(pipeline, pipeline._conditioning.overflow)
    whole = text_states(pipeline, captions, **call)
    subsets = [
        caption.subset(group) for caption, of_caption in zip(captions, groups, strict=True) for group in of_caption
    ]
    taught = iter(text_states(teacher, subsets))
    tokens, unread = [], 0
    for row, (caption, of_caption) in enumerate(zip(captions, groups, strict=True)):
        for group in of_caption:
            states, spans = next(taught), caption.subset(group).token_spans
            for sentence, (start, end) in zip(group, spans, strict=True):
                first, last = caption.token_spans[sentence]
                if last + 1 > limit:
                    unread += last - first
                elif last + 1 > CLIP_LENGTH:
                    tokens.append((row, first, whole[row][first:last], states[start:end]))
    return {slot: far_figures(tokens, unread, index) for index, slot in enumerate(("l", "g"))}


def far_figures(tokens: Sequence[tuple[int, int, Tensor, Tensor]], unread: int, slot: int) -> dict[str, Any]:
    """Figures of one encoder from (caption, first position, student's states, teacher's states) of each sentence."""
    rows: list[int] = []
    places: list[int] = []
    cosines: list[float] = []
    errors: list[float] = []
    for row, first, student, teacher in tokens:
        student, teacher = student.chunk(2, dim=-1)[slot], teacher.chunk(2, dim=-1)[slot]
        rows += [row] * len(student)
        places += [position_after(token) for token in range(first, first + len(student))]
        cosines += F.cosine_similarity(student, teacher, dim=-1).tolist()
        errors += ((student - teacher).square().sum(-1) / teacher.square().sum(-1)).tolist()
    figures: dict[str, Any] = {"read": len(rows) / max(1, len(rows) + unread)}
    for name, values in (("cosine", cosines), ("error", errors)):
        figures[name] = mean_over(values, rows)
        figures[f"{name} by position"] = bin_means(places, values, rows, POSITIONS[1:])
    return figures


def near_fidelity(pipeline: Any, teacher: Any, texts: Sequence[str]) -> dict[str, dict[str, float]]:
    """[`fidelity`] of both encoders ("l" and "g"), each padded as its slot does."""
    slots = {"l": ("text_encoder", "tokenizer"), "g": ("text_encoder_2", "tokenizer_2")}
    figures = {}
    for slot, (encoder, tokenizer) in slots.items():
        own = getattr(teacher, tokenizer)
        figures[slot] = fidelity(getattr(pipeline, encoder), getattr(teacher, encoder), own, texts, own.pad_token_id)
    return figures


def run(options: argparse.Namespace) -> None:
    """The command."""
    pipelines = {name: open_pipeline(name, options) for name in options.encoders}  # fails early where one is missing
    teacher = open_pipeline(options.teacher, options)
    drawing = {"steps": options.steps, "guidance": options.guidance, "batch": options.batch}
    short = prompts_of("short", options.count, options.split)
    drawn, reference = short[: options.pictures], None
    if drawn:
        reference = draw_captions(teacher, drawn, **drawing)
    results: dict[str, Any] = {
        options.teacher: {"near": {}, "far": {}, "pictures": pictures_of(reference, reference, drawn)}
    }
    far = {name: prompts_of(name, options.count, options.split) for name in options.prompts}
    windows = {name: far_fidelity(teacher, teacher, captions, "windows") for name, captions in far.items()}
    results[f"{options.teacher}, windows"] = {"near": {}, "far": windows, "pictures": None}
    for encoder, pipeline in pipelines.items():
        pictures = draw_captions(pipeline, drawn, **drawing) if drawn else None
        results[encoder] = {
            "near": near_fidelity(pipeline, teacher, [caption.text for caption in short]),
            "far": {name: far_fidelity(pipeline, teacher, captions) for name, captions in far.items()},
            "pictures": pictures_of(pictures, reference, drawn),
        }
    print(tables(results))
    if is_first():
        write_record("fidelity", options, results, tables(results))
        plot_curves(results, options)


def pictures_of(pictures: Any, reference: Any, captions: Sequence[Caption]) -> dict[str, Any] | None:
    """Places and pixels that differ from the teacher's pictures, and the share of details drawn right."""
    if pictures is None:
        return None
    return {**changed(pictures, reference), "right": share(details(pictures, captions))}


def tables(results: dict[str, Any]) -> str:
    """All figures as Markdown tables."""
    near = [
        [f"{name} {slot}", figures["pooled_cosine"], figures["penultimate_cosine"], figures["penultimate_error"]]
        for name, result in results.items()
        for slot, figures in result["near"].items()
    ]
    parts = [
        "Up to 77 tokens, with SDXL's padding\n\n"
        + markdown(["", "pooled cosine", "token cosine", "token error"], near)
    ]
    for prompts in next(reversed(results.values()))["far"]:
        by_slot = [
            (f"{name} {slot}", figures)
            for name, result in results.items()
            for slot, figures in result["far"].get(prompts, {}).items()
        ]
        bins = list(dict.fromkeys(bin_ for _, figures in by_slot for bin_ in figures["error by position"]))
        rows = [
            [name, f["read"], f["cosine"], f["error"], *map(f["error by position"].get, bins)] for name, f in by_slot
        ]
        header = ["", "tokens read", "token cosine", "token error", *(f"error {bin_}" for bin_ in bins)]
        parts.append(f"Beyond 77 tokens, against the window teacher, {prompts} prompts\n\n{markdown(header, rows)}")
    drawn = [(name, result["pictures"]) for name, result in results.items() if result["pictures"]]
    if drawn:
        rows = [[name, p["places"], p["pixels"], p["right"]] for name, p in drawn]
        header = ["", "places changed", "pixels (root mean square)", "details right"]
        parts.append(f"Short prompts, same seeds\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def plot_curves(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Token error by position, one panel a kind of prompt, one line an encoder and slot."""
    if not options.prompts:
        return
    with figure(options.out / "fidelity.png", columns=len(options.prompts), size=(5, 4)) as panels:
        for axes, prompts in zip(panels[0], options.prompts, strict=True):
            for name, result in results.items():
                for slot, figures in result["far"].get(prompts, {}).items():
                    by_position = figures["error by position"]
                    curve(axes, middles(by_position), list(by_position.values()), f"{name} {slot}")
            axes.set(title=f"{prompts} prompts", xlabel="token position")
        panels[0][0].set_ylabel("relative error of token states")
        legend(panels[0][-1])
