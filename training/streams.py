"""Steps out of a stream: rows cut as they come, shared by processes and loaders' workers, and how to go on."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tulip_diffusion.data import BadRow, CaptionStream, ReaderState, StreamReader

from .batches import StepCollate
from .stage import Chunk, Rows, Stage

ROWS_TRIED = 100  # bad rows one after the other before a stream counts as useless

ReaderStates = dict[str, dict[str, Any]]  # where readers stand, by their numbers; JSON has no other keys than text


class StreamedRows(NamedTuple):
    """A process's share of one step, the bad rows that were met on the way, and where the reader stands behind it."""

    items: list[Any]
    bad_rows: list[tuple[str, str]]
    reader: int
    state: dict[str, Any]


class StreamedStep(NamedTuple):
    """The same as chunks."""

    chunks: list[Chunk]
    reader: int
    state: dict[str, Any]


def workers_that_share(shards: int, processes: int, workers: int) -> int:
    """How many of `workers` read for each process: as many as `shards` can be dealt to evenly, and one at least.

    More would each read all shards for a part of their rows.
    """
    return next((count for count in range(workers, 1, -1) if shards % (processes * count) == 0), 1)


@dataclass
class StreamedSteps(IterableDataset):
    """One process's shares of `steps`, made by `workers` in turn.

    Each worker is a reader of the stream. Step s is made by reader s % `workers` of the process wherever a run starts,
    so that one which goes on at `states` gives what an unbroken one gives.
    """

    stream: CaptionStream
    cutter: Rows
    share: int  # rows of a step
    seed: int
    process: int = 0
    processes: int = 1
    workers: int = 1
    steps: range = range(1)
    states: ReaderStates = field(default_factory=dict)

    def __iter__(self) -> Iterator[StreamedRows]:
        worker = get_worker_info()
        steps = self.steps[worker.id if worker else 0 :: self.workers]
        if not steps:
            return
        number = self.process * self.workers + steps[0] % self.workers
        state = ReaderState(**self.states.get(str(number), {}))
        reader = StreamReader(self.stream, self.seed, number, self.processes * self.workers, state)
        rows = iter(reader)
        for _ in steps:
            items, bad_rows = self.take(rows)
            yield StreamedRows(items, bad_rows, number, asdict(reader.state))

    def take(self, rows: Iterator[Any]) -> tuple[list[Any], list[tuple[str, str]]]:
        """The next `share` rows that can be used, cut, and the bad ones among them with reasons."""
        items: list[Any] = []
        bad_rows: list[tuple[str, str]] = []
        tried = 0
        while len(items) < self.share:
            row, epoch = next(rows)
            try:
                items.append(self.cutter.of(self.stream.usable(row), epoch))
                tried = 0
            except BadRow as reason:
                bad_rows.append((row.name, str(reason)))
                tried += 1
            if tried == ROWS_TRIED:
                name, why = bad_rows[-1]
                raise ValueError(f"None of {tried} rows one after the other can be used. The last, {name}: {why}.")
        return items, bad_rows


@dataclass(frozen=True)
class StreamCollate:
    """Makes chunks of a process's share of a step."""

    collate: StepCollate

    def __call__(self, rows: StreamedRows) -> StreamedStep:
        chunks = self.collate(rows.items)
        chunks[0]["bad_rows"] = rows.bad_rows
        return StreamedStep(chunks, rows.reader, rows.state)


@dataclass(frozen=True)
class StreamLoader:
    """The chunks of step after step; `states` is where its readers stand behind the steps that were taken."""

    loader: DataLoader
    states: ReaderStates

    def __iter__(self) -> Iterator[list[Chunk]]:
        for step in self.loader:
            self.states[str(step.reader)] = step.state
            yield step.chunks


def stream_loader(
    stage: Stage,
    collate: StepCollate,
    share: int,
    steps: range,
    states: ReaderStates,
    options: dict[str, Any],
    seed: int,
    process: int,
    processes: int,
) -> StreamLoader:
    """What gives a process's `share` of `steps`, its readers going on at `states`; `options` are the loader's."""
    assert isinstance(stage.data, CaptionStream)
    workers = workers_that_share(stage.data.shards, processes, options["num_workers"])
    options = options | {"num_workers": min(workers, options["num_workers"])}
    mine = {reader: state for reader, state in states.items() if int(reader) // workers == process}
    rows = StreamedSteps(stage.data, stage.rows, share, seed, process, processes, workers, steps, mine)
    together: Any = StreamCollate(collate)  # of one item, which the annotations of a loader do not know
    loader = DataLoader(rows, batch_size=None, collate_fn=together, **options)
    return StreamLoader(loader, mine)


def all_states(loader: DataLoader | StreamLoader) -> ReaderStates:
    """Where the readers of all processes stand; nowhere where the data is listed."""
    if not isinstance(loader, StreamLoader):
        return {}
    return {reader: state for states in gather_object([loader.states]) for reader, state in states.items()}


def stream_order(stream: CaptionStream, processes: int, workers: int) -> dict[str, int | str]:
    """What the rows of a step depend on."""
    return {
        "rows": "streamed",
        "shards": stream.shards,
        "shuffle_rows": stream.shuffle_rows,
        "processes": processes,
        "workers": workers_that_share(stream.shards, processes, workers),
    }
