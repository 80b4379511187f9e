"""`tulip-diffusion train …`: flags made of the stages' dataclasses, and what each stage is started with."""

import argparse
import os
from dataclasses import fields
from functools import partial
from typing import Any

from tulip_diffusion.arguments import Parser, add_command, add_fields, new_folder, one_line, weights

from .config import (
    DistillArguments,
    ExpandArguments,
    FineLIPArguments,
    FinetuneArguments,
    LongCLIPArguments,
    Sources,
    refuse_with_stream,
)

STAGES = {
    "distill": (DistillArguments, "stage 1: match an encoder with relative positions to its teacher", ""),
    "expand": (
        ExpandArguments,
        "stage 2: stretch its rotations to long captions, against images",
        " --student STAGE1",
    ),
    "finetune-clip": (FinetuneArguments, "baseline: CLIP itself, fine-tuned on long captions", " --stretch"),
    "longclip": (LongCLIPArguments, "baseline: Long-CLIP, stretched positions and primary components", ""),
    "finelip": (
        FineLIPArguments,
        "FineLIP: refined tokens aligned one by one, on stretched CLIP or on a --student",
        "",
    ),
}


def register(subparsers: Any) -> None:
    """Add `train` with its stages; each sets `run`, a function of the parsed arguments."""
    train = subparsers.add_parser(
        "train",
        help="train an encoder, or one of the baselines",
        description="Train an encoder that reads long prompts, or one of the baselines, from any CLIP.",
        epilog="example:\n  tulip-diffusion train distill --teacher openai/clip-vit-large-patch14 "
        "--data captions.jsonl --output-dir outputs/stage1",
    )
    stages = train.add_subparsers(dest="stage", required=True, metavar="STAGE", parser_class=Parser)
    for name, (arguments_class, text, example) in STAGES.items():
        command = f"tulip-diffusion train {name} --teacher TEACHER --data DATA --output-dir FOLDER{example}"
        parser = add_command(stages, name, partial(run, name), text, text, command)
        for options in (Sources, arguments_class):
            add_fields(parser, options)


def pick(arguments_class, namespace: argparse.Namespace):
    """The fields of `arguments_class` out of parsed flags."""
    return arguments_class(**{field.name: getattr(namespace, field.name) for field in fields(arguments_class)})


def run(stage: str, namespace: argparse.Namespace) -> None:
    """Load what the flags name and run `stage`."""
    arguments = pick(STAGES[stage][0], namespace)
    sources = pick(Sources, namespace)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # else the others would wait for a process that is refused here
        check_paths(stage, arguments, sources)

    import torch
    from accelerate import PartialState

    from .failures import ending_together

    PartialState(cpu=not torch.accelerator.is_available())  # so that a wrong launch fails at once
    with ending_together():
        start(stage, arguments, sources)


def start(stage: str, arguments: Any, sources: Sources) -> None:
    """Open data and models, and run the stage."""
    from tulip_diffusion.progress import hide_loading_bars

    from . import loading as load

    hide_loading_bars()
    check_paths(stage, arguments, sources)
    data = load.captions(sources, with_images=stage != "distill")
    tokenizer = load.tokenizer(sources.tokenizer, arguments)
    student = load.student(sources.student)
    if stage == "distill":
        from .distill import distill

        teacher = load.text_encoder(sources.teacher, sources.hidden_act, arguments.teacher_subfolder)
        distill(teacher, tokenizer, data, arguments, student, sources)
        return
    towers = load.clip(sources.teacher, sources.hidden_act)
    if stage == "expand":
        from .expand import expand

        if student is None:
            raise ValueError("train expand goes on from stage 1: name its output folder with --student.")
        expand(towers, tokenizer, data, arguments, student, sources)
    elif stage == "finelip":
        from .finelip import finelip

        finelip(towers, tokenizer, data, arguments, student, sources)
    else:
        from .baselines import finetune_clip, long_clip

        baseline = finetune_clip if stage == "finetune-clip" else long_clip
        baseline(towers, tokenizer, data, arguments, sources)


def check_paths(stage: str, arguments: Any, sources: Sources) -> None:
    """Refuse a source that cannot be there and a folder that cannot be written, before anything is loaded."""
    for name in ("teacher", "data"):
        if not getattr(sources, name):
            raise ValueError(f"train {stage} needs --{name}.")
    if sources.stream:
        refuse_with_stream(arguments)
    checks = [("teacher", sources.teacher, weights), ("student", sources.student, weights)]
    for name, value, check in (*checks, ("output-dir", arguments.output_dir, new_folder)):
        try:
            _ = value is None or check(value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--{name} {error}.") from None


def main() -> None:
    """`train` alone, for launchers that start a module."""
    parser = Parser(prog="python -m tulip_diffusion.training.commands")
    register(parser.add_subparsers(dest="command", required=True))
    namespace = parser.parse_args()
    try:
        namespace.run(namespace)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {one_line(error)}\n")


if __name__ == "__main__":
    main()
