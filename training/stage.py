"""What a stage gives the loop that trains it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from tulip_diffusion.data import Captions, UsableRow

Figures = dict[str, Tensor]
Chunk = dict[str, Any]


class Rows(Dataset, ABC):
    """Items by (row, epoch), or made of the rows of a stream."""

    @abstractmethod
    def of(self, row: UsableRow, epoch: int) -> Any:
        """The item of a stream's row, which is known by its name. Raises `BadRow` if its image is broken."""


class Stage(ABC):
    """What differs between the trainings that one loop runs.

    `module` holds everything that trains and is called through its own `forward` alone, because that is where DDP and
    FSDP average gradients. Items of `rows` are found by (row, epoch), or made `of` a stream's rows, and have a `cut`,
    their [`CutCaption`]; `collate` makes a chunk of them, with its number of `captions` and `tokens`. Both go to a
    loader's workers, so neither holds a model.
    """

    name: str
    module: nn.Module
    data: Captions
    origins: dict[str, str]  # of models and tokenizer, as far as they know
    rows: Rows
    collate: Callable[[Sequence[Any]], Chunk]

    def learning_rates(self) -> dict[str, float]:
        """Peak rates of parts that do not learn at `learning_rate`, by how their names in `module` begin."""
        return {}

    def begin(self, accelerator: Accelerator) -> None:
        """Once, before the first step: move what is not in `module` to the device, fill caches."""

    def prepare(self, module: nn.Module, chunks: list[Chunk], accelerator: Accelerator) -> list[Chunk]:
        """Before the backward passes of a step: what the chunks have to know of each other.

        A chunk of 0 `captions` repeats the first one, so that every process runs as many.
        """
        return chunks

    @abstractmethod
    def loss(self, module: nn.Module, chunk: Chunk, accelerator: Accelerator) -> tuple[Tensor, Figures]:
        """A chunk's loss and figures, means over its captions; the step minimises the mean over all its captions."""

    def after_step(self, module: nn.Module) -> None:
        """After each optimiser step, with `module` unwrapped."""

    @abstractmethod
    def save(self, folder: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
        """Write the product into `folder`; `weights` is the module's state. Returns what run.json should say."""
