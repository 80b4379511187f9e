"""What padding costs a stage-1 step on captions of very different lengths.

    python -m tests.benchmarks.bench_training_lengths [--runs 3] [--out outputs/bench_training_lengths.json]

The lengths are spread like ShareGPT4V's: a mean of 174 tokens, up to 248 (`spread`), and once with one caption of
1,000 tokens (`outlier`). The same 32 captions are trained on as one chunk that is padded to the longest, and sorted
into chunks of `--chunk-tokens`. Real stage, real loop, teacher included, float32, a tower of 4 layers x 256. Runs are
interleaved; a speed-up is the median over rounds of two neighbouring runs.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.bench_training import SENTENCE, build_teacher
from tests.benchmarks.timing import interleave, paired_ratio, write
from tulip_diffusion.data import CaptionData
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.training.batches import StepCollate
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.distill import Distillation
from tulip_diffusion.training.loop import Training, build_accelerator

SIZE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
CAPTIONS = 32
WORDS_OF_SENTENCE = SENTENCE.split()


def caption(tokens: int, number: int) -> str:
    """About `tokens` tokens in sentences of 16."""
    words = (WORDS_OF_SENTENCE * (tokens // len(WORDS_OF_SENTENCE) + 1))[: max(4, tokens * 15 // 17)]
    return f"{number} " + " ".join(words)


def spread_lengths(count: int) -> list[int]:
    """Normally distributed around 174 with a deviation of 45, none above 248; always the same."""
    drawn = np.random.default_rng(0).normal(174, 45, count)
    return np.clip(drawn, 30, 248).astype(int).tolist()


class Step:
    """One optimiser step of the real loop on `captions`, collated anew every time as a loader's worker does."""

    def __init__(self, captions: list[str], folder: Path, length: int, chunk_tokens: int | None):
        tokenizer = load_tokenizer(max_length=length)
        arguments = DistillArguments(
            output_dir=str(folder),
            steps=10**6,
            batch_size=len(captions),
            length=length,
            chunk_tokens=chunk_tokens,
            teacher_cache="off",
        )
        self.accelerator = build_accelerator(arguments)
        stage = Distillation(build_teacher(SIZE), None, tokenizer, CaptionData(captions), arguments)
        stage.begin(self.accelerator)
        self.training = Training(stage, arguments, self.accelerator)
        self.items = [stage.rows[row, 0] for row in range(len(captions))]
        self.collate = StepCollate(stage.collate, len(captions), chunk_tokens)
        self.lengths = [item.cut.tokens for item in self.items]

    def __call__(self) -> None:
        self.training.step(0, self.training.receive(self.collate(self.items)))


def compare(lengths: list[int], length: int, chunk_tokens: int, runs: int) -> dict:
    captions = [caption(tokens, number) for number, tokens in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        step = partial(Step, captions, length=length)
        steps = {
            "padded to the longest": step(Path(folder, "one"), chunk_tokens=None),
            "sorted": step(Path(folder, "sorted"), chunk_tokens=chunk_tokens),
        }
        times = interleave(steps, runs)
        tokens = steps["sorted"].lengths
    return {
        "seconds": times,
        "speedup": paired_ratio(times, "padded to the longest", "sorted"),
        "tokens": {"mean": float(np.mean(tokens)), "longest": max(tokens)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--chunk-tokens", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_training_lengths.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    lengths = spread_lengths(CAPTIONS)
    results = {
        "spread": compare(lengths, 248, options.chunk_tokens, options.runs),
        "outlier": compare([1000, *lengths[1:]], 1024, options.chunk_tokens, options.runs),
    }
    for name, result in results.items():
        print(f"{name}: {result['speedup']:.2f} times, {result['tokens']}")
    write({"chunk_tokens": options.chunk_tokens, "captions": CAPTIONS, **results}, options.out)


if __name__ == "__main__":
    main()
