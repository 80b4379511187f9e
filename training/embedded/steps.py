"""The loop that every part of the family shares: AdamW, warm-up and cosine decay, progress, resume."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from tulip_diffusion.devices import fast_bfloat16
from tulip_diffusion.files import replacing
from tulip_diffusion.training import schedule

WARM_UP = 50  # steps
FLOOR = 0.05  # of the peak learning rate, at the last step


class Steps(Dataset):
    """What `make` makes of the number of a step, so that a loader's workers can make it ahead of time."""

    def __init__(self, make: Callable[[int], Any], steps: int):
        self.make, self.steps = make, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Any:
        return self.make(step)


def train(
    model: nn.Module,
    make_batch: Callable[[int], Any],
    loss_of: Callable[[Any], Tensor],
    folder: str | Path,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    workers: int = 0,
    save_every: int = 200,
    check: Callable[[], str] | None = None,
    check_every: int = 500,
) -> None:
    """Train `model` in place for `steps` steps, going on from `folder`/state.pt where there is one.

    `make_batch(step)` depends on the number of the step alone and every step seeds torch with it, so a resumed run
    sees what an unbroken one would have seen. `loss_of(batch)` runs under bfloat16 autocast where the device, CPUs
    included, multiplies it in hardware: matrix products are several times faster in it. `check()` returns a line for
    the log.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True
    )
    first = load_state(folder / "state.pt", model, optimizer)
    loader = DataLoader(Steps(make_batch, steps), batch_size=None, sampler=range(first, steps), num_workers=workers)
    progress = tqdm(enumerate(loader, first), initial=first, total=steps, desc=folder.name, mininterval=10)
    started, recent = time.time(), None
    model.train()
    for step, batch in progress:
        torch.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step, learning_rate, WARM_UP, steps, FLOOR)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device.type)):
            loss = loss_of(send_to_device(batch, device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = loss.detach() if recent is None else 0.98 * recent + 0.02 * loss.detach()
        done = step + 1 == steps
        if done or (step + 1) % 20 == 0:
            progress.set_postfix(loss=f"{recent.item():.4f}", refresh=False)
        if done or (step + 1) % save_every == 0:
            save_state(folder / "state.pt", model, optimizer, step + 1)
        if check and (done or (step + 1) % check_every == 0):
            model.eval()
            line = f"step {step + 1} loss {recent.item():.4f} {check()} ({time.time() - started:.0f} s)"
            model.train()
            tqdm.write(line)
            with (folder / "log.txt").open("a") as log:
                log.write(line + "\n")
    model.eval()


def save_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write weights, optimiser and the number of steps done to `path`, whole or not at all."""
    with replacing(path) as unfinished:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, unfinished)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load what `save_state` wrote, if it did, and return the step to go on with."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
