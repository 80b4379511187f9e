"""One command's work, shared by the processes that `accelerate launch` has started.

Every process runs the whole command. [`shared`] is where they part: each computes some of the items, and then all hold
all results. So whatever comes behind is the same everywhere, and the first process alone writes files and prints.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from tulip_diffusion.devices import best_device, check_device
from tulip_diffusion.files import replacing

Item = TypeVar("Item")
Result = TypeVar("Result")


def place() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def is_first() -> bool:
    return place()[0] == 0


def device_of(device: str | None) -> str:
    """`device`, or the best there is; several processes have one device each."""
    if device or place()[1] == 1:
        return check_device(device) if device else best_device()
    from accelerate import PartialState

    return str(PartialState().device)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if place()[1] > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def shared(compute: Callable[[Item], Result], items: Sequence[Item], name: str | None = None) -> list[Result]:
    """`compute` of every item, in order; process n of m computes the items n, n + m, …

    A bar on the first process shows the progress where it has a `name`. Results must be picklable.
    """
    number, count = place()
    mine = range(number, len(items), count)
    results = [compute(items[index]) for index in progress(mine, name)]
    if count == 1:
        return results
    from accelerate.utils import gather_object

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
    number, count = place()
    for index in progress(range(number, len(items), count), name):
        if not files[index].is_file():
            with replacing(files[index]) as unfinished:
                np.save(unfinished, compute(items[index]))
    wait_for_all()
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{missing[0]} is missing: --out must be a folder that all machines share.")
    return [np.load(file) for file in files]


def progress(items: Sequence[Any], name: str | None) -> Any:
    return tqdm(items, desc=name, disable=name is None or not is_first(), mininterval=5)


@contextlib.contextmanager
def silent_unless_first() -> Iterator[None]:
    """What the others print within the block goes nowhere."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
