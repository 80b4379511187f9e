"""Stage 1 for the embedded text encoders, on captions whose references are known.

`tulip-diffusion train distill` draws random subsets of sentences as what the teacher reads beyond its window. Here the
grammar tells what refers to what, so a sentence is only matched in subsets that hold all it refers to: otherwise the
student would learn from a teacher that cannot know the answer.
"""

import argparse
import random
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from tulip_diffusion.data import open_captions
from tulip_diffusion.devices import best_device
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection
from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.grammar import parse_caption
from tulip_diffusion.training import loading
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.cutting import (
    CaptionCutter,
    SubCaption,
    TokenizedCaption,
)
from tulip_diffusion.training.distill import Distillation
from tulip_diffusion.training.kernels import usual_kernels
from tulip_diffusion.training.loop import build_accelerator, run_stage
from tulip_diffusion.training.student import new_student


def needed_sentences(caption: Caption) -> list[set[int]]:
    """For every sentence the earlier ones without which it cannot be understood, itself included."""
    needed: list[set[int]] = []
    for index, sentence in enumerate(caption.sentences):
        places = [] if sentence.referent is None else [sentence.referent]
        if sentence.role in ("it", "every"):
            places += sentence.places
        sources = [caption.first_mention(place) for place in places]
        own = {index}
        for source in sources:
            if source is not None and source < index:
                own |= needed[source]
        needed.append(own)
    return needed


class ReferenceCutter(CaptionCutter):
    """Cuts captions of the world so that what the teacher is asked for is in what it reads.

    Args:
        plain: share of the captions of which all far sentences are asked for; of the others only those that refer,
            which are few and are learned more slowly than anything else.
    """

    def __init__(self, *arguments: Any, plain: float = 1.0, **options: Any):
        super().__init__(*arguments, **options)
        self.plain = plain

    def cut_far(self, caption: str, tokenized: TokenizedCaption, generator: random.Random) -> list[SubCaption]:
        """As [`CaptionCutter.cut_far`], with all sentences that a matched one refers to in its sub-caption."""
        near, count = self.near_sentences(tokenized), len(tokenized.sentences)
        if near == count:
            return []  # the teacher can read all of it
        needed = needed_sentences(parse_caption(caption))
        far = generator.sample(range(near, count), count - near)
        if generator.random() >= self.plain:
            far = [sentence for sentence in far if needed[sentence] > {sentence}]
        groups: list[set[int]] = [set()]
        for sentence in far:
            if self.fits(tokenized, groups[-1] | needed[sentence]):
                groups[-1] |= needed[sentence]
            elif self.fits(tokenized, needed[sentence]):
                groups.append(set(needed[sentence]))
        prefix = list(range(near))
        cuts = [self.sub_caption(tokenized, prefix, prefix)]
        for group in filter(None, groups):
            matched = [sentence for sentence in group if sentence in far and needed[sentence] <= group]
            cuts.append(self.sub_caption(tokenized, sorted(group), matched))
        return cuts

    def fits(self, tokenized: TokenizedCaption, group: set[int]) -> bool:
        """Whether the sentences of `group` fit into the teacher's window."""
        return sum(len(tokenized.sentences[sentence]) for sentence in group) <= self.window - 2


class ReferenceDistillation(Distillation):
    """Stage 1 with a [`ReferenceCutter`] of that `plain`."""

    def __init__(self, *arguments: Any, plain: float = 1.0):
        self.plain = plain
        super().__init__(*arguments)

    def build_cutter(self) -> CaptionCutter:
        """Cuts as [`ReferenceCutter`] does."""
        window = self.teacher.window
        length = max(self.arguments.length, window)
        return ReferenceCutter(
            self.tokenizer,
            length,
            window,
            "prefix",
            "none",
            seed=self.arguments.seed,
            position_gaps=self.arguments.position_gaps,
            plain=self.plain,
        )


def main(arguments: list[str] | None = None) -> None:
    """Distil the TULIP encoder of one slot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slot", choices=("l", "g"), help="of SDXL's two")
    parser.add_argument("--folder", type=Path, default=Path("outputs/embedded"), help="holds clip-l, clip-g, captions")
    parser.add_argument("--student", type=Path, help="an encoder to start from, of this slot or of the other")
    parser.add_argument("--captions", type=Path, help="default: captions/captions.jsonl in the folder")
    parser.add_argument("--out", type=Path, help="default: tulip-TOWER in the folder")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=520)
    parser.add_argument("--attn", choices=("eager", "sdpa"), help="default: eager for bfloat16 on a CPU, else sdpa")
    parser.add_argument("--workers", type=int, default=0, help="processes that cut captions ahead of time")
    parser.add_argument("--position-gaps", type=int, default=0, help="positions that long texts are spread over")
    parser.add_argument(
        "--plain", type=float, default=1.0, help="share of captions of which more than what refers is asked for"
    )
    parser.add_argument("--long-pooled-weight", type=float, default=1.0, help="of long texts' pooled states")
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    teacher_folder = options.folder / f"clip-{options.slot}"
    settings = DistillArguments(
        output_dir=str(options.out or options.folder / f"tulip-{options.slot}"),
        steps=options.steps,
        batch_size=options.batch,
        learning_rate=options.learning_rate,
        weight_decay=0.01,
        warmup_steps=30,
        length=options.length,
        pad="eos" if options.slot == "l" else "zero",
        freeze_token_embedding=False,
        position_gaps=options.position_gaps,
        long_pooled_weight=options.long_pooled_weight,
        attention_scaling="none",  # `average`, the last part, switches it on
        **usual_kernels(best_device(), options.attn),
        teacher_cache="off",
        num_workers=options.workers,
        save_every=options.save_every,
        resume="auto",
        seed=options.seed,
    )
    data = open_captions(str(options.captions or options.folder / "captions" / "captions.jsonl"))
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    teacher = loading.text_encoder(str(teacher_folder))
    student = None
    if options.student:  # weights alone: the two differ in activation and pads
        student = new_student(teacher, settings)
        student.load_state_dict(TulipTextModelWithProjection.from_pretrained(options.student).state_dict())
    accelerator = build_accelerator(settings)
    stage = ReferenceDistillation(teacher, student, tokenizer, data, settings, plain=options.plain)
    run_stage(stage, settings, accelerator)


if __name__ == "__main__":
    main()
