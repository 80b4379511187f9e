"""A contrastive step of `finetune-clip` against open_clip's own training step: same towers, batch and data.

    python -m tests.benchmarks.bench_contrastive [--runs 5] [--size b32] [--batch-size 16] [--out FILE]

Theirs is `open_clip_train.train.train_one_epoch` on a loader of one batch, with the optimiser that its `main` builds;
ours is a step of the training loop. Both get pixels and captions as their loaders make them: open_clip's captions are
padded to 77 tokens, ours to the longest of the chunk. In float32, gradients clipped at 1. Runs are interleaved; a
ratio is the median over rounds of two neighbouring runs, above 1 ours is faster.
"""

import argparse
import copy
import logging
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import open_clip
import torch
from open_clip_train.train import train_one_epoch
from PIL import Image
from safetensors.torch import save_file

from tests.benchmarks.timing import interleave, paired_ratio, write
from tulip_diffusion import load_clip
from tulip_diffusion.data import CaptionData
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.training.baselines import Finetuning
from tulip_diffusion.training.config import FinetuneArguments
from tulip_diffusion.training.loop import Training, build_accelerator

TEXT = {"context_length": 77, "vocab_size": 49408}
SIZES = {
    "small": (
        128,
        {"image_size": 64, "layers": 4, "width": 192, "patch_size": 16},
        {**TEXT, "width": 192, "heads": 3, "layers": 4},
    ),
    "b32": (
        512,
        {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        {**TEXT, "width": 512, "heads": 8, "layers": 12},
    ),
}
CAPTIONS = {  # sentences of 15 tokens
    "captions of 77 tokens": (8, 8),
    "captions of 17 to 62 tokens": (1, 4),
}
SENTENCE = "A small red boat lies beside the old stone bridge in the evening sun. "


def make_captions(count: int, fewest: int, most: int) -> list[str]:
    return [SENTENCE * (fewest + number % (most - fewest + 1)) for number in range(count)]


class TheirStep:
    """One call of open_clip's `train_one_epoch` on one batch."""

    def __init__(self, model: open_clip.CLIP, pixels: torch.Tensor, captions: list[str]):
        self.model = copy.deepcopy(model)
        batch = (pixels, open_clip.get_tokenizer("ViT-B-32")(captions))
        loader = [batch]
        self.data = {"train": SimpleNamespace(dataloader=Loader(loader), set_epoch=lambda epoch: None)}
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        small = [p for name, p in named if p.ndim < 2 or "bn" in name or "ln" in name or "logit_scale" in name]
        chosen = {id(p) for p in small}
        large = [p for _, p in named if id(p) not in chosen]
        groups = [{"params": small, "weight_decay": 0.0}, {"params": large, "weight_decay": 0.1}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
        self.loss = open_clip.ClipLoss()
        self.options = SimpleNamespace(
            device="cpu",
            precision="fp32",
            distill=False,
            accum_freq=1,
            skip_scheduler=True,
            grad_clip_norm=1.0,
            horovod=False,
            rank=0,
            local_rank=0,
            world_size=1,
            log_local=False,
            log_every_n_steps=100,
            batch_size=len(captions),
            wandb=False,
        )

    def __call__(self) -> None:
        train_one_epoch(self.model, self.data, self.loss, 0, self.optimizer, None, None, None, self.options)


class Loader(list):
    """Batches, with the numbers that open_clip asks a loader for."""

    @property
    def num_batches(self) -> int:
        return len(self)

    @property
    def num_samples(self) -> int:
        return sum(len(images) for images, _ in self)


class OurStep:
    """One step of the loop on one batch."""

    def __init__(self, towers, captions: list[str], pictures: list[Image.Image], folder: Path, **changes):
        arguments = FinetuneArguments(output_dir=str(folder), steps=10**6, batch_size=len(captions), **changes)
        accelerator = build_accelerator(arguments)
        stage = Finetuning(towers, load_tokenizer(), CaptionData(captions, pictures), arguments)
        self.training = Training(stage, arguments, accelerator)
        self.batch = [stage.collate([stage.rows[row, 0] for row in range(len(captions))])]
        self.pixels = stage.module.normalised(self.batch[0]["pixel_values"])

    def __call__(self) -> None:
        self.training.step(0, self.batch)


def compare(size: str, batch_size: int, runs: int) -> dict:
    width, vision, text = SIZES[size]
    torch.manual_seed(0)
    model = open_clip.CLIP(embed_dim=width, vision_cfg=vision, text_cfg=text, output_dict=True)
    side = vision["image_size"]
    pictures = [Image.effect_noise((side, side), 90).convert("RGB") for _ in range(batch_size)]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "clip.safetensors")
        save_file(model.state_dict(), file)
        for name, (fewest, most) in CAPTIONS.items():
            captions = make_captions(batch_size, fewest, most)
            ours = OurStep(load_clip(file, hidden_act="gelu"), captions, pictures, Path(folder, "ours"))
            steps = {"ours": ours, "open_clip": TheirStep(model, ours.pixels, captions)}
            check_same_loss(ours, steps["open_clip"])
            times = interleave(steps, runs)
            results[name] = {
                **{f"{who} seconds": round(statistics.median(values), 4) for who, values in times.items()},
                "times as fast as open_clip": round(paired_ratio(times, "open_clip", "ours"), 3),
            }
    return results


def check_same_loss(ours: OurStep, theirs: TheirStep) -> None:
    """Both must do the same work."""
    with torch.no_grad():
        features = theirs.model(*theirs.data["train"].dataloader[0])
        expected = theirs.loss(**features, output_dict=True)["contrastive_loss"]
        stage, module = ours.training.stage, ours.training.module
        _, found = stage.embed(module, ours.batch[0])
        loss, _ = stage.contrastive(found, module.logit_scale.exp())
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", choices=SIZES, default="b32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_contrastive.json"))
    options = parser.parse_args()
    logging.disable(logging.INFO)
    results = compare(options.size, options.batch_size, options.runs)
    for name, figures in results.items():
        print(f"{name:28}", "  ".join(f"{key} {value}" for key, value in figures.items()))
    write({"size": options.size, "batch_size": options.batch_size, "runs": options.runs, **results}, options.out)


if __name__ == "__main__":
    main()
