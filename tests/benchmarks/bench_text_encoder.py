"""The encoder's speed at ViT-L/14 text size, against transformers' CLIP and a plain statement of the published code.

    python -m tests.benchmarks.bench_text_encoder [--runs 5] [--small] [--out outputs/bench_text_encoder.json]

Runs are interleaved; a ratio is the median over rounds of two neighbouring runs. Below 1 the TULIP encoder is faster.
Lengths beyond 77 need a position table of that length in transformers' CLIP, so it gets one. Peak memory is measured
in a fresh process for each variant.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from tests.benchmarks.timing import interleave, paired_ratio, write
from tulip_diffusion import from_clip

VIT_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
SMALL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES = ((8, 77), (8, 248), (2, 1000))
CAPTIONS, MEAN_TOKENS, SPREAD, LONGEST = 32, 174, 45, 248  # detailed captions; the published code pads all to 248
GROUP = 4  # captions of neighbouring lengths encoded together


class PublishedBlock(nn.Module):
    """The published approach, restated: fused qkv, complex rotation, full score matrix, batch second."""

    def __init__(self, layer, heads: int):
        super().__init__()
        attention = layer.self_attn
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.qkv_weight = nn.Parameter(torch.cat([projection.weight for projection in projections]).detach())
        self.qkv_bias = nn.Parameter(torch.cat([projection.bias for projection in projections]).detach())
        self.out, self.mlp = attention.out_proj, layer.mlp
        self.norm1, self.norm2 = layer.layer_norm1, layer.layer_norm2
        self.heads = heads

    def forward(self, x, frequencies, mask):
        tokens, batch, width = x.shape
        q, k, v = F.linear(self.norm1(x), self.qkv_weight, self.qkv_bias).chunk(3, dim=-1)
        q, k, v = (part.reshape(tokens, batch, self.heads, -1).transpose(0, 1) for part in (q, k, v))
        q, k = (self.rotate(part, frequencies) for part in (q, k))
        q, k, v = (part.transpose(1, 2).reshape(batch * self.heads, tokens, -1) for part in (q, k, v))
        scores = torch.bmm(q * (width // self.heads) ** -0.5, k.transpose(-1, -2))
        scores += mask
        mixed = torch.bmm(scores.softmax(dim=-1), v)
        x = x + self.out(mixed.transpose(0, 1).reshape(tokens, batch, width))
        return x + self.mlp(self.norm2(x))

    @staticmethod
    def rotate(states, frequencies):
        pairs = torch.view_as_complex(states.float().reshape(*states.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * frequencies[None, :, None]).flatten(3).type_as(states)


class PublishedTower(nn.Module):
    """Pads every text to `context` with zero embeddings, as the published `encode_text` does."""

    def __init__(self, clip: CLIPTextModel, context: int):
        super().__init__()
        config = clip.config
        self.embedding = clip.embeddings.token_embedding
        self.blocks = nn.ModuleList(PublishedBlock(layer, config.num_attention_heads) for layer in clip.encoder.layers)
        self.norm = clip.final_layer_norm
        head_dim = config.hidden_size // config.num_attention_heads
        angles = torch.outer(
            torch.arange(context).float(), 10000 ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        )
        self.register_buffer("frequencies", torch.polar(torch.ones_like(angles), angles))
        self.register_buffer("mask", torch.full((context, context), float("-inf")).triu_(1))
        self.context = context

    def forward(self, ids):
        x = self.embedding(ids)
        x = torch.cat((x, x.new_zeros(x.shape[0], self.context - x.shape[1], x.shape[2])), dim=1).transpose(0, 1)
        for block in self.blocks:
            x = block(x, self.frequencies, self.mask)
        x = self.norm(x.transpose(0, 1))
        return x[torch.arange(len(ids)), ids.argmax(dim=-1)]


def towers(sizes: dict, context: int):
    torch.manual_seed(0)
    clip = CLIPTextModel(CLIPTextConfig(**sizes, max_position_embeddings=context)).eval()
    return {"tulip": from_clip(clip), "clip": clip, "published": PublishedTower(clip, context)}


def random_ids(batch: int, tokens: int) -> torch.Tensor:
    ids = torch.randint(0, 49000, (batch, tokens))
    ids[:, -1] = 49407
    return ids


def forward(model: nn.Module, ids: torch.Tensor) -> None:
    with torch.no_grad():
        model(ids)


def forward_backward(model: nn.Module, ids: torch.Tensor) -> None:
    output = model(ids)
    pooled = output if isinstance(output, torch.Tensor) else output.pooler_output
    pooled.square().sum().backward()
    model.zero_grad(set_to_none=True)


def own_lengths(model: nn.Module, captions: list[torch.Tensor]) -> None:
    for ids in captions:
        forward(model, ids)


def compare(sizes: dict, device: str, runs: int) -> Iterator[tuple[str, dict]]:
    for batch, tokens in SHAPES:
        ids = random_ids(batch, tokens).to(device)
        for step in (forward, forward_backward):
            models = {name: model.to(device) for name, model in towers(sizes, tokens).items()}
            times = interleave({name: partial(step, model, ids) for name, model in models.items()}, runs)
            yield f"{batch}x{tokens} {step.__name__}", summary(times, ("clip", "published"))
    torch.manual_seed(0)
    lengths = (MEAN_TOKENS + SPREAD * torch.randn(CAPTIONS)).clamp(20, LONGEST).long().sort().values
    captions = [random_ids(GROUP, int(group.max())).to(device) for group in lengths.split(GROUP)]
    padded = random_ids(CAPTIONS, LONGEST).to(device)
    tulip = towers(sizes, 248)["tulip"].to(device)
    times = interleave(
        {"tulip": partial(own_lengths, tulip, captions), "padded": partial(forward, tulip, padded)}, runs
    )
    yield f"{CAPTIONS} captions at their own lengths, {GROUP} together, against 248", summary(times, ("padded",))


def summary(times: dict[str, list[float]], others: tuple[str, ...]) -> dict:
    medians = {f"{name} seconds": round(statistics.median(values), 4) for name, values in times.items()}
    return medians | {f"tulip / {other}": round(paired_ratio(times, "tulip", other), 3) for other in others}


def peak_memory(name: str, batch: int, tokens: int, sizes: dict) -> None:
    """Print this process's peak in MiB after one forward and backward; run in a process of its own.

    Linux's own high-water mark, because `getrusage` hands a child process its parent's peak.
    """
    forward_backward(towers(sizes, tokens)[name], random_ids(batch, tokens))
    status = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024)


def memory(small: bool) -> dict[str, int]:
    peaks = {}
    for name in ("tulip", "clip", "published"):
        command = [sys.executable, "-m", __spec__.name, "--peak-memory", name] + ["--small"] * small
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[f"{name}, MiB at 2x1000 forward_backward"] = int(output.split()[-1])
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="rounds counted, after one warm-up")
    parser.add_argument("--small", action="store_true", help="a tiny tower, to try the benchmark itself")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_text_encoder.json"))
    parser.add_argument("--peak-memory", choices=("tulip", "clip", "published"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = SMALL if options.small else VIT_L
    if options.peak_memory:
        return peak_memory(options.peak_memory, 2, 1000, sizes)
    results: dict[str, dict] = {}
    for name, figures in compare(sizes, options.device, options.runs):
        results[name] = figures
        print(f"{name:42}", "  ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    results["peak memory"] = memory(options.small)
    print(results["peak memory"])
    write({"size": "small" if options.small else "ViT-L/14", "device": options.device, **results}, options.out)


if __name__ == "__main__":
    main()
