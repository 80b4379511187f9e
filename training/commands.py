"""`tulip-diffusion train …`: flags made of the stages' dataclasses, and what each stage is started with."""

import argparse
from dataclasses import fields
from functools import partial

from .config import (
    DistillArguments,
    ExpandArguments,
    FineLIPArguments,
    FinetuneArguments,
    LongCLIPArguments,
    Sources,
)

STAGES = {
    "distill": (DistillArguments, "stage 1: make an encoder with relative positions say what its teacher says"),
    "expand": (ExpandArguments, "stage 2: stretch its rotations to long captions, against images"),
    "finetune-clip": (FinetuneArguments, "baseline: CLIP itself, fine-tuned on long captions"),
    "longclip": (LongCLIPArguments, "baseline: Long-CLIP, stretched positions and primary components"),
    "finelip": (FineLIPArguments, "FineLIP: refined tokens aligned one by one, on stretched CLIP or on a --student"),
}


def register(subparsers: argparse._SubParsersAction) -> None:
    """Add `train` with its stages; each sets `run`, a function of the parsed arguments."""
    from transformers import HfArgumentParser

    train = subparsers.add_parser("train", help="train an encoder, or one of the baselines")
    stages = train.add_subparsers(
        dest="stage", required=True, parser_class=lambda arguments, **kwargs: HfArgumentParser(arguments, **kwargs)
    )
    for name, (arguments_class, text) in STAGES.items():
        parser = stages.add_parser(name, arguments=(Sources, arguments_class), help=text, description=text)
        parser.set_defaults(run=partial(run, name))


def pick(arguments_class, namespace: argparse.Namespace):
    return arguments_class(**{field.name: getattr(namespace, field.name) for field in fields(arguments_class)})


def run(stage: str, namespace: argparse.Namespace) -> None:
    """Load what the flags name and run `stage`."""
    import torch
    from accelerate import PartialState

    from tulip_diffusion.data import open_captions

    from . import loading as load

    arguments = pick(STAGES[stage][0], namespace)
    sources = pick(Sources, namespace)
    for name in ("teacher", "data"):
        if not getattr(sources, name):
            raise ValueError(f"train {stage} needs --{name}.")
    PartialState(cpu=not torch.accelerator.is_available())  # so that a wrong launch fails at once
    data = open_captions(
        sources.data,
        sources.data_format,
        sources.image_root,
        with_images=stage != "distill",
        split=sources.data_split,
        max_bad_share=sources.max_bad_share,
    )
    tokenizer = load.tokenizer(sources.tokenizer, arguments)
    student = load.student(sources.student)
    if stage == "distill":
        from .distill import distill

        teacher = load.text_encoder(sources.teacher, sources.hidden_act)
        distill(teacher, tokenizer, data, arguments, student)
        return
    towers = load.clip(sources.teacher, sources.hidden_act)
    if stage == "expand":
        from .expand import expand

        if student is None:
            raise ValueError("train expand goes on from stage 1: name its output folder with --student.")
        expand(towers, tokenizer, data, arguments, student)
    elif stage == "finelip":
        from .finelip import finelip

        finelip(towers, tokenizer, data, arguments, student)
    else:
        from .baselines import finetune_clip, long_clip

        baseline = finetune_clip if stage == "finetune-clip" else long_clip
        baseline(towers, tokenizer, data, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tulip_diffusion.training.commands")
    register(parser.add_subparsers(dest="command", required=True))
    namespace = parser.parse_args()
    try:
        namespace.run(namespace)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
