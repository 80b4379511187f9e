"""One command's work, shared by the processes that `accelerate launch` has started, or torchrun on CPUs.

Every process runs the whole command. [`shared`] is where they part: each computes some of the items, and then all hold
all results. So whatever comes behind is the same everywhere, and the first process alone writes files and prints.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from tulip_diffusion.devices import best_device, check_device
from tulip_diffusion.files import replacing

Item = TypeVar("Item")
Result = TypeVar("Result")


def processes() -> PartialState:
    """The processes of this command, whoever started them."""
    return PartialState(cpu=not torch.accelerator.is_available())  # without being told, it ignores torchrun on a CPU


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return processes().is_main_process


def device_of(device: str | None) -> str:
    """`device`, or the best there is; several processes have one device each."""
    if device:
        return check_device(device)
    return str(processes().device) if processes().num_processes > 1 else best_device()


def wait_for_all() -> None:
    """Return when every process has come here."""
    processes().wait_for_everyone()


def shared(compute: Callable[[Item], Result], items: Sequence[Item], name: str | None = None) -> list[Result]:
    """`compute` of every item, in order; process n of m computes the items n, n + m, …

    A bar on the first process shows the progress where it has a `name`. Results must be picklable.
    """
    mine = range(processes().process_index, len(items), processes().num_processes)
    results = [compute(items[index]) for index in progress(mine, name)]
    if processes().num_processes == 1:
        return results
    found: dict[int, Result] = dict(gather_object(list(zip(mine, results, strict=True))))
    return [found[index] for index in range(len(items))]


def shared_arrays(
    compute: Callable[[Item], np.ndarray], items: Sequence[Item], folder: Path, name: str | None = None
) -> list[np.ndarray]:
    """[`shared`] for arrays that took long: each is kept in `folder`, and what lies there is not computed again.

    Raises:
        FileNotFoundError: the processes do not see the same `folder`.
    """
    files = [folder / f"{index}.npy" for index in range(len(items))]
    mine = range(processes().process_index, len(items), processes().num_processes)
    for index in progress(mine, name):
        if not files[index].is_file():
            with replacing(files[index]) as unfinished:
                np.save(unfinished, compute(items[index]))
    wait_for_all()
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing: --out must be a folder that all machines share.")
    return [np.load(file) for file in files]


def progress(items: Sequence[Any], name: str | None) -> Any:
    """A bar over `items` in the first process, none without a `name`."""
    return tqdm(items, desc=name, disable=name is None or not is_first(), mininterval=5)


@contextlib.contextmanager
def silent_unless_first() -> Iterator[None]:
    """What the others print within the block goes nowhere."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
