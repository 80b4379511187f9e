"""Which rows a step trains on: a function of the seed and the step alone.

It does not depend on how many processes and workers share the rows, and a resumed run needs to know no more than its
step.
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ShuffledSteps(Sampler[list[tuple[int, int]]]):
    """Yields one process's rows of each step, from `first_step` on, as lists of (row, epoch).

    Every epoch is a permutation that depends on `seed` and the epoch alone. Step s takes the next `batch_size` rows of
    it, and process r of n the r-th part of those.

    Raises:
        ValueError: the processes cannot share a batch evenly, or the data holds less than one batch.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        steps: int = 1,
        first_step: int = 0,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        if batch_size % processes:
            raise ValueError(f"batch_size {batch_size} cannot be shared by {processes} processes: make it a multiple.")
        if rows < batch_size:
            raise ValueError(f"The data has {rows} usable rows, fewer than one batch of {batch_size}.")
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.steps, self.first_step = steps, first_step
        self.share, self.process = batch_size // processes, process

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.rows // self.batch_size
        shuffled = -1
        for step in range(self.first_step, self.steps):
            epoch, position = divmod(step, per_epoch)
            if epoch != shuffled:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.rows, generator=generator)
                shuffled = epoch
            start = position * self.batch_size + self.process * self.share
            yield [(row, epoch) for row in order[start : start + self.share].tolist()]
