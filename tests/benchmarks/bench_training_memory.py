"""Peak memory of stage 2 at a large batch on one device: it must follow the chunk, not the batch.

    python -m tests.benchmarks.bench_training_memory [--small] [--batch-size 1280] [--chunk-size 32]
        [--mixed-precision bf16] [--arithmetic]

Each size runs in a process of its own, two steps of the real loop with both towers, long and short captions. The
stated budget for ViT-L/14 at 1,280 pairs in chunks of 32 with bf16 autocast is 24 GB. `--arithmetic` runs nothing: it
adds up what such a step holds, the activations of a chunk being those that a pass through the real towers saves, on
tensors without data.
"""

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.utils import send_to_device
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.benchmarks.timing import write
from tulip_diffusion import from_clip
from tulip_diffusion.data import CaptionData
from tulip_diffusion.models.checkpoints import ClipTowers
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.training.config import ExpandArguments
from tulip_diffusion.training.contrastive import TwoTowers
from tulip_diffusion.training.expand import Expansion
from tulip_diffusion.training.loop import Training, build_accelerator
from tulip_diffusion.training.towers import Pair

VIT_L = {
    "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "image": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    },
    "projection_dim": 768,
}
SMALL = {
    "text": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2},
    "image": {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
        "image_size": 32,
    },
    "projection_dim": 64,
}
BUDGET_GB = 24
SENTENCE = "A red tulip stands in the far corner of the garden, next to an old boat. "


def build_towers(size: dict) -> ClipTowers:
    torch.manual_seed(0)
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "vocab_size": 49408}
    projection = {"projection_dim": size["projection_dim"]}
    text = CLIPTextModelWithProjection(CLIPTextConfig(**size["text"], **ids, **projection))
    image = CLIPVisionModelWithProjection(CLIPVisionConfig(**size["image"], **projection))
    return ClipTowers(text, image, 2.6592)


def arithmetic(size: dict, batch_size: int, chunk_size: int, half: bool, length: int = 248) -> dict[str, float]:
    """GB of what a step holds at once, by what it is, and their sum."""
    saved: dict[int, int] = {}
    weights: set[int] = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        towers = build_towers(size)
        student = from_clip(towers.text_encoder)
        student.load_state_dict({name: w.clone() for name, w in student.state_dict().items()}, assign=True)
        student.requires_grad_(True).get_input_embeddings().requires_grad_(False)
        module = TwoTowers(student, towers.image_encoder, towers.logit_scale).train()
        weights |= {parameter.untyped_storage()._cdata for parameter in module.parameters()}
        side = towers.image_encoder.config.image_size
        pixels = torch.zeros(chunk_size, 3, side, side, dtype=torch.uint8)
        short, long = (torch.zeros(chunk_size, tokens, dtype=torch.long) for tokens in (77, length))
        with torch.autocast("cpu", torch.bfloat16, enabled=half), saved_tensors_hooks(keep, lambda tensor: tensor):
            outputs = module(pixels, short, long, torch.ones_like(long))  # held, or storages would be used again
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        held = sum(p.numel() for part in (module, towers.text_encoder) for p in part.parameters())
        assert outputs.text.long_embeds is not None
    features = 3 * batch_size * size["projection_dim"]  # of pictures, short and long captions
    parts = {
        "weights, with the anchor's teacher": 4 * held,
        "gradients": 4 * trained,
        "moments": 8 * trained,
        "pixels of the batch, bytes": batch_size * 3 * side**2,
        "features and their gradients": 2 * 4 * features,
        "similarities": 3 * 4 * batch_size**2,
        "activations of a chunk": sum(saved.values()),
    }
    return {name: round(size_of / 1e9, 3) for name, size_of in parts.items()} | {
        "sum": round(sum(parts.values()) / 1e9, 2)
    }


def one_step(small: bool, batch_size: int, chunk_size: int, mixed_precision: str) -> float:
    """Peak memory in GB of building everything and taking one step: the device's, or the process's on a CPU."""
    towers, tokenizer = build_towers(SMALL if small else VIT_L), load_tokenizer(max_length=248)
    data = CaptionData([f"{number}. {SENTENCE * 13}" for number in range(batch_size)])
    with tempfile.TemporaryDirectory() as folder:
        arguments = ExpandArguments(
            output_dir=folder, steps=2, batch_size=batch_size, chunk_size=chunk_size, mixed_precision=mixed_precision
        )
        accelerator = build_accelerator(arguments)
        stage = Expansion(towers, copy.deepcopy(from_clip(towers.text_encoder)), tokenizer, data, arguments)
        stage.begin(accelerator)
        training = Training(stage, arguments, accelerator)
        side = towers.image_encoder.config.image_size
        chunks = []
        for start in range(0, batch_size, chunk_size):
            rows = range(start, start + chunk_size)
            pairs = [
                Pair(row, torch.zeros(3, side, side, dtype=torch.uint8), stage.rows.cutter(data.captions[row], row))
                for row in rows
            ]
            chunks.append(send_to_device(stage.collate(pairs), accelerator.device))
        training.step(0, chunks)
        training.step(1, chunks)  # with the optimiser's moments in memory
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(options: argparse.Namespace, batch_size: int) -> float:
    command = [sys.executable, "-m", "tests.benchmarks.bench_training_memory", "--one", f"--batch-size={batch_size}"]
    command += [
        f"--chunk-size={options.chunk_size}",
        f"--mixed-precision={options.mixed_precision}",
        *(["--small"] if options.small else []),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny towers, to try the benchmark itself")
    parser.add_argument("--batch-size", type=int, default=1280)
    parser.add_argument("--chunk-size", type=int, default=32)
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--arithmetic", action="store_true", help="run nothing, add up what a step would hold")
    parser.add_argument("--one", action="store_true", help="measure in this process and print the figure alone")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_training_memory.json"))
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_step(options.small, options.batch_size, options.chunk_size, options.mixed_precision)))
        return
    size, half = SMALL if options.small else VIT_L, options.mixed_precision == "bf16"
    parts = {
        batch: arithmetic(size, batch, options.chunk_size, half) for batch in (options.chunk_size, options.batch_size)
    }
    for batch, held in parts.items():
        print(f"batch {batch} in chunks of {options.chunk_size}, GB by arithmetic:", held)
    result = {"size": "small" if options.small else "ViT-L/14", "chunk_size": options.chunk_size, "half": half}
    result["arithmetic_gb"] = {str(batch): held for batch, held in parts.items()}
    if options.arithmetic:
        return write(result, options.out)
    peaks = {batch: measure(options, batch) for batch in (options.chunk_size, options.batch_size)}
    for batch, peak in peaks.items():
        print(f"batch {batch} in chunks of {options.chunk_size}: peak {peak:.2f} GB")
    result["peak_gb"] = {str(batch): round(peak, 3) for batch, peak in peaks.items()}
    if not options.small:
        result["budget_gb"] = BUDGET_GB
        print(f"budget of {BUDGET_GB} GB: {'kept' if peaks[options.batch_size] <= BUDGET_GB else 'broken'}")
    write(result, options.out)


if __name__ == "__main__":
    main()
