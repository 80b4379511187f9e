"""How towers compute: which precision and attention back end are fastest here, and compiled or not."""

import itertools
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel

from tulip_diffusion.devices import fast_bfloat16
from tulip_diffusion.files import write_text

from .config import LoopArguments

Arguments = TypeVar("Arguments", bound=LoopArguments)
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENS = 512  # that are read and learned from in one measurement
ROUNDS = 3
COMPILER = "inductor"  # torch's own default


def use_kernels(tower: PreTrainedModel, arguments: LoopArguments) -> None:
    """Let `tower` attend, and compile, as `arguments` say; lengths change from chunk to chunk, so none is fixed."""
    tower.set_attn_implementation(arguments.attn)
    if arguments.compile:
        tower.compile(backend=COMPILER, dynamic=True)


def settle_kernels(arguments: Arguments, tower: CLIPTextConfig, length: int) -> Arguments:
    """`arguments` with "auto" replaced by what one layer of `tower` is fastest with at `length` tokens; prints it.

    A run that goes on uses what it started with, so that it ends as an unbroken one does. The first process decides.
    """
    if "auto" not in (arguments.mixed_precision, arguments.attn):
        return arguments
    state = PartialState(cpu=not torch.accelerator.is_available())
    found = [decide(arguments, tower, length, state.device) if state.is_main_process else None]
    precision, attn = broadcast_object_list(found)[0]
    return replace(arguments, mixed_precision=precision, attn=attn)


def decide(arguments: LoopArguments, tower: CLIPTextConfig, length: int, device: torch.device) -> tuple[str, str]:
    """The (precision, back end) that a run to be resumed started with, or the fastest by a measurement."""
    path = Path(arguments.output_dir, "kernels.json")
    if arguments.resume != "none" and path.exists():
        fastest = json.loads(path.read_text())["fastest"]
        return fastest["mixed_precision"], fastest["attn"]
    seconds = measure(tower, length, device, candidates(arguments, device))
    fastest = min(seconds, key=seconds.__getitem__)
    slowest = max(seconds, key=seconds.__getitem__)
    print(
        f"Fastest on this {device.type}: --mixed-precision {fastest[0]} --attn {fastest[1]}, "
        f"{seconds[slowest] / seconds[fastest]:.1f} times as fast as {' with '.join(slowest)}."
    )
    named = {" ".join(names): value for names, value in seconds.items()}
    record = {"fastest": dict(zip(("mixed_precision", "attn"), fastest, strict=True)), "seconds": named}
    write_text(path, json.dumps(record, indent=2) + "\n")
    return fastest


def usual_kernels(device: str, attn: str | None = None) -> dict[str, Any]:
    """`mixed_precision` and `attn` that small towers are fastest with on `device`, unmeasured; `attn` goes before.

    For rows of one table, which a measurement of each would let run with different ones.
    """
    bfloat16 = fast_bfloat16(device)
    eager = bfloat16 and device == "cpu"
    return {"mixed_precision": "bf16" if bfloat16 else "no", "attn": attn or ("eager" if eager else "sdpa")}


def candidates(arguments: LoopArguments, device: torch.device) -> list[tuple[str, str]]:
    """What may be chosen from: precisions that `device` has hardware for, and both back ends."""
    precisions: list[str] = [arguments.mixed_precision]
    if arguments.mixed_precision == "auto":
        fp16 = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        half = ["fp16"] if fp16 else ["bf16"] * fast_bfloat16(device.type)
        precisions = half if device.type == "cuda" else ["no", *half]
    back_ends = ["sdpa", "eager"] if arguments.attn == "auto" else [arguments.attn]
    return list(itertools.product(precisions, back_ends))


def measure(
    tower: CLIPTextConfig, length: int, device: torch.device, names: list[tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """Median seconds of one layer's forward and backward pass by (precision, back end), measured in turns."""
    if len(names) == 1:
        return {names[0]: 1.0}
    back_ends = {attn for _, attn in names}
    with torch.random.fork_rng():  # the run's own draws stay what they were
        layers = {attn: CLIPTextModel(one_layer(tower, length, attn)).to(device) for attn in back_ends}
    ids = torch.randint(0, 64, (max(1, TOKENS // length), length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device)
    times: dict[tuple[str, str], list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS + 1):  # the first one warms up
        for precision, attn in names:
            start = time.perf_counter()
            with torch.autocast(device.type, DTYPES[precision], enabled=precision != "no"):
                states = layers[attn](ids).last_hidden_state
            states.float().sum().backward()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[precision, attn].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def one_layer(tower: CLIPTextConfig, length: int, attn: str) -> CLIPTextConfig:
    """A text tower of one layer as wide as `tower`."""
    return CLIPTextConfig(
        vocab_size=64,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_attention_heads=tower.num_attention_heads,
        num_hidden_layers=1,
        hidden_act=tower.hidden_act,
        max_position_embeddings=length,
        eos_token_id=63,
        attn_implementation=attn,
    )
