"""Stage 1's speed at ViT-L/14 text size, against a plain statement of the published step.

    python -m tests.benchmarks.bench_training [--runs 3] [--small] [--out outputs/bench_training.json]
    python -m tests.benchmarks.bench_training --mfu --batch-size 1024 --peak-tflops 989     # on a GPU

The published step runs teacher and student on every batch, with the whole score matrix in memory; with the README's
gradient accumulation of 4 it runs both twice. Ours is a step of `Training`, on one batch of 8 x 77 tokens, in float32
like theirs unless it says bf16. Runs are interleaved; a speed-up is the median over rounds of two neighbouring runs.
`--mfu` runs our step alone, cached and in bf16, and counts 6 floating-point operations a weight and token, and the
attention's own.
"""

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tests.benchmarks.timing import interleave, paired_ratio, synchronize, write
from tulip_diffusion import from_clip
from tulip_diffusion.data import CaptionData
from tulip_diffusion.models.rotary import rotary_cos_sin, rotate
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.distill import Distillation
from tulip_diffusion.training.loop import Training, build_accelerator
from tulip_diffusion.training.losses import cosine_distance

VIT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
TOKENS = 77
SENTENCE = "A red tulip stands in the far corner of the garden, next to an old boat. "


class PublishedTower(nn.Module):
    """The published text tower, restated with an encoder's weights: RoPE, full scores, exact GELU."""

    def __init__(self, encoder: nn.Module, rotates: bool):
        super().__init__()
        self.encoder, self.rotates = encoder, rotates
        self.heads = encoder.config.num_attention_heads

    def attend(self, layer: nn.Module, x: Tensor, mask: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        batch, tokens, width = x.shape
        split = (batch, tokens, self.heads, width // self.heads)
        q, k, v = (project(x).view(split) for project in (layer.q_proj, layer.k_proj, layer.v_proj))
        if self.rotates:
            q, k = rotate(q, *angles), rotate(k, *angles)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        scores = (q @ k.transpose(-1, -2) / (width // self.heads) ** 0.5 + mask).softmax(dim=-1)
        return layer.out_proj((scores @ v).transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, ids: Tensor) -> Tensor:
        model = self.encoder.text_model
        tokens = ids.shape[1]
        x = model.embeddings(ids)
        mask = torch.full((tokens, tokens), float("-inf"), device=ids.device).triu(1)
        positions = torch.arange(tokens, device=ids.device)[None]
        head_dim = x.shape[-1] // self.heads
        angles = rotary_cos_sin(positions, {"rope_type": "default", "rope_theta": 1e4}, head_dim, tokens)
        for layer in model.encoder.layers:
            x = x + self.attend(layer.self_attn, layer.layer_norm1(x), mask, angles)
            x = x + layer.mlp.fc2(F.gelu(layer.mlp.fc1(layer.layer_norm2(x))))
        pooled = model.final_layer_norm(x)[torch.arange(len(ids)), ids.argmax(dim=-1)]
        return self.encoder.text_projection(pooled)


class PublishedStep:
    """One optimiser step as published; with `accumulation` every chunk is encoded once for nothing, then again."""

    def __init__(self, teacher: CLIPTextModelWithProjection, ids: Tensor, accumulation: int = 1):
        student = from_clip(teacher)
        student.load_state_dict({name: weight.clone() for name, weight in student.state_dict().items()}, assign=True)
        student.requires_grad_(True).train().get_input_embeddings().requires_grad_(False)
        self.student, self.teacher = PublishedTower(student, rotates=True), PublishedTower(teacher, rotates=False)
        self.chunks = ids.chunk(accumulation)
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        if len(self.chunks) > 1:
            with torch.no_grad():
                for chunk in self.chunks:
                    self.teacher(chunk), self.student(chunk)
        for chunk in self.chunks:
            with torch.no_grad():
                target = self.teacher(chunk)
            cosine_distance(self.student(chunk), target).backward()
        self.optimizer.step()


class OurStep:
    """One step of the real loop, with the real stage, on one batch."""

    def __init__(self, teacher, tokenizer, captions: list[str], folder: Path, batch_size: int, **changes):
        arguments = DistillArguments(
            output_dir=str(folder), steps=10**6, batch_size=batch_size, length=TOKENS, subset_draws=1, **changes
        )
        self.accelerator = build_accelerator(arguments)
        self.stage = Distillation(teacher, None, tokenizer, CaptionData(captions), arguments)
        self.stage.begin(self.accelerator)
        self.training = Training(self.stage, arguments, self.accelerator)
        chunk = self.stage.collate([self.stage.rows[row, 0] for row in range(batch_size)])
        self.batch = [send_to_device(chunk, self.accelerator.device)]

    def __call__(self) -> None:
        self.training.step(0, self.batch)


def build_teacher(size: dict) -> CLIPTextModelWithProjection:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=49408,
        projection_dim=size["hidden_size"],
        bos_token_id=49406,
        eos_token_id=49407,
        hidden_act="gelu",
        **size,
    )
    return CLIPTextModelWithProjection(config).eval()


def compare(size: dict, batch_size: int, runs: int) -> dict:
    teacher, tokenizer = build_teacher(size), load_tokenizer()
    captions = [f"{number}. {SENTENCE * 6}" for number in range(batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        ours = partial(OurStep, teacher, tokenizer, captions, batch_size=batch_size)
        cached = {"teacher_cache": str(Path(folder, "paper")), "objective": "paper"}
        default = {"teacher_cache": str(Path(folder, "default"))}
        steps = {
            "ours, paper objective": ours(Path(folder, "1"), teacher_cache="off", objective="paper"),
            "ours, paper objective, cached": ours(Path(folder, "2"), **cached),
            "ours, default objective": ours(Path(folder, "3"), teacher_cache="off"),
            "ours, default objective, cached": ours(Path(folder, "4"), **default),
        }
        for attn in ("eager", "sdpa"):
            half = {"mixed_precision": "bf16", "attn": attn, "objective": "paper"}
            cache = {"teacher_cache": str(Path(folder, f"bf16-{attn}"))}
            steps[f"ours, paper objective, cached, bf16, {attn}"] = ours(Path(folder, attn), **half, **cache)
        ids = next(iter(steps.values())).batch[0]["short_ids"]
        steps["published"] = PublishedStep(teacher.to(ids.device), ids)
        steps["published, accumulation 4"] = PublishedStep(teacher, ids, accumulation=4)
        times = interleave(steps, runs)
    speedups = {
        f"{ours} / {theirs}": paired_ratio(times, theirs, ours)
        for ours in steps
        for theirs in ("published", "published, accumulation 4")
        if ours.startswith("ours")
    }
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "speedup": speedups,
        "batch": [batch_size, TOKENS],
        "runs": runs,
    }


def flops_per_step(size: dict, batch_size: int) -> float:
    """Forward and backward of the student: 6 per weight and token, and twice the two products of attention."""
    width, layers = size["hidden_size"], size["num_hidden_layers"]
    weights = layers * (4 * width**2 + 2 * width * size["intermediate_size"])
    attention = layers * 2 * 2 * TOKENS * width
    return batch_size * TOKENS * (6 * weights + 3 * attention)


def utilisation(size: dict, batch_size: int, runs: int, peak_tflops: float, attn: str) -> dict:
    teacher, tokenizer = build_teacher(size), load_tokenizer()
    captions = [f"{number}. {SENTENCE * 6}" for number in range(batch_size)]
    with tempfile.TemporaryDirectory() as folder:
        cache = {"teacher_cache": str(Path(folder, "cache")), "objective": "paper"}
        step = OurStep(
            teacher, tokenizer, captions, Path(folder), batch_size, mixed_precision="bf16", attn=attn, **cache
        )
        seconds = []
        for run in range(-3, runs):
            synchronize()
            start = time.perf_counter()
            step()
            synchronize()
            if run >= 0:
                seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    tflops = flops_per_step(size, batch_size) / median / 1e12
    return {
        "seconds": median,
        "tokens_per_second": batch_size * TOKENS / median,
        "tflops": tflops,
        "mfu": tflops / peak_tflops,
        "batch": [batch_size, TOKENS],
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a tiny tower, to try the benchmark itself")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--mfu", action="store_true", help="utilisation of our step alone")
    parser.add_argument("--attn", default="sdpa", help="attention back end of --mfu")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="the device's dense bf16 peak (H100, H200)")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_training.json"))
    options = parser.parse_args()
    size = SMALL if options.small else VIT_L
    if options.mfu:
        result = utilisation(size, options.batch_size, options.runs, options.peak_tflops, options.attn)
    else:
        result = compare(size, options.batch_size, options.runs)
    for name, value in (
        {**result.get("seconds", {}), **result["speedup"]}.items() if "speedup" in result else result.items()
    ):
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    write(result, options.out)


if __name__ == "__main__":
    main()
