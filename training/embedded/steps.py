"""The loop that every part of the family shares: AdamW, warm-up and cosine decay, progress, resume."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

WARM_UP = 50


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over `WARM_UP` steps, then half a cosine down to a twentieth of `peak`."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return peak * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    folder: str | Path,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    save_every: int = 200,
    check: Callable[[int], str] | None = None,
    check_every: int = 500,
) -> None:
    """Train `model` in place for `steps` steps, resuming from `folder`/state.pt where there is one.

    `loss_of(step)` draws its own batch, seeded by the step, so that a resumed run sees what an unbroken one would
    have seen. It runs under bfloat16 autocast, four to five times faster on a CPU. `check(step)` returns a line for
    the log.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=learning_rate,
        betas=(0.9, 0.98),
        weight_decay=weight_decay,
    )
    first = load_state(folder / "state.pt", model, optimizer)
    device = next(model.parameters()).device.type
    progress = tqdm(range(first, steps), initial=first, total=steps, desc=folder.name, mininterval=10)
    started, recent = time.time(), None
    model.train()
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, learning_rate)
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = loss.item() if recent is None else 0.98 * recent + 0.02 * loss.item()
        progress.set_postfix(loss=f"{recent:.4f}", refresh=False)
        done = step + 1 == steps
        if done or (step + 1) % save_every == 0:
            save_state(folder / "state.pt", model, optimizer, step + 1)
        if check and (done or (step + 1) % check_every == 0):
            model.eval()
            line = f"step {step + 1} loss {recent:.4f} {check(step + 1)} ({time.time() - started:.0f} s)"
            model.train()
            tqdm.write(line)
            with (folder / "log.txt").open("a") as log:
                log.write(line + "\n")
    model.eval()


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    partial = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    os.replace(partial, path)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load what `save_state` wrote, if it did, and return the step to go on with."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
