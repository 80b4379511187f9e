"""The one loop that every stage runs in, on accelerate: one CPU, many GPUs, FSDP or DeepSpeed alike."""

import importlib.util
import json
import math
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.logging import get_logger
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, send_to_device
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from tulip_diffusion.data import CaptionData, Captions, CaptionStream, SkippedRows
from tulip_diffusion.files import write_text

from .batches import StepCollate
from .checkpointing import (
    StopSignal,
    leave_signals_to_the_main_process,
    load_checkpoint,
    refuse_old_checkpoints,
    save_checkpoint,
)
from .config import LoopArguments, Sources, refuse_with_stream
from .failures import ending_together
from .sampler import ShuffledSteps
from .saving import describe_product, write_product
from .schedule import learning_rate
from .stage import Chunk, Stage
from .streams import ReaderStates, StreamLoader, all_states, stream_loader, stream_order

logger = get_logger(__name__)


TRACKERS = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",)}


def build_accelerator(arguments: LoopArguments) -> Accelerator:
    """An accelerator that accumulates over the chunks of one step.

    Raises:
        ImportError: the package of the experiment tracker is missing.
        ValueError: the processes cannot share a batch evenly.
    """
    packages = TRACKERS.get(arguments.report_to, ())
    if packages and not any(importlib.util.find_spec(package) for package in packages):
        raise ImportError(f"--report-to {arguments.report_to} needs its package: pip install {packages[0]}")
    AcceleratorState._reset_state()  # an earlier stage in this process may have had another precision
    cpu = not torch.accelerator.is_available()  # without being told, accelerate ignores torchrun on a CPU
    processes = PartialState(cpu=cpu).num_processes
    share = ShuffledSteps(arguments.batch_size, arguments.batch_size, processes=processes).share
    chunk_size = min(arguments.chunk_size or share, share)
    chunks = math.ceil(share / chunk_size)  # a step sets its own number; DeepSpeed wants to know one before
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=arguments.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=chunks, sync_with_dataloader=False),
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_config=ProjectConfiguration(project_dir=arguments.output_dir),
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:  # it asks, because the loader is not prepared
        accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = chunk_size
    return accelerator


def total_steps(arguments: LoopArguments, data: Captions) -> int:
    """Steps of the run: `arguments.steps`, or as many as the epochs hold, which a stream cannot say."""
    if isinstance(data, CaptionStream):
        refuse_with_stream(arguments)
    if arguments.steps is not None:
        return arguments.steps
    assert isinstance(data, CaptionData)
    return math.ceil(arguments.epochs * (len(data) // arguments.batch_size))


def build_optimizer(
    module: nn.Module, arguments: LoopArguments, rates: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW over what trains; norms, biases and the logit scale do not decay.

    `rates` are the peak learning rates of parts of `module`, by how their names begin.
    """
    parts: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            own = (rate for prefix, rate in (rates or {}).items() if name.startswith(prefix))
            parts.setdefault(next(own, arguments.learning_rate), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for rate, trained in parts.items():
        matrices, others = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups.append({"params": matrices, "lr": rate, "weight_decay": arguments.weight_decay})
        groups.append({"params": others, "lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=arguments.learning_rate,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        fused=True,  # one pass over memory: a fifth of the time of the plain step on a CPU
    )


def build_loader(
    stage: Stage, arguments: LoopArguments, accelerator: Accelerator, first: int, total: int, states: ReaderStates
) -> DataLoader | StreamLoader:
    """Lists of chunks, one for each step from `first` to `total`, made ahead of time by `num_workers` processes.

    Of a stream, `states` are where its readers stand.
    """
    process, processes = accelerator.process_index, accelerator.num_processes
    share = arguments.batch_size // processes
    deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED  # it counts chunks by itself
    collate = StepCollate(stage.collate, arguments.chunk_size or share, None if deepspeed else arguments.chunk_tokens)
    options: dict[str, Any] = {
        "num_workers": arguments.num_workers,
        "worker_init_fn": leave_signals_to_the_main_process,
        "pin_memory": accelerator.device.type == "cuda",
        # else starting it would draw from the global state
        "generator": torch.Generator().manual_seed(arguments.seed),
    }
    where = {"seed": arguments.seed, "process": process, "processes": processes}
    if isinstance(stage.data, CaptionStream):
        return stream_loader(stage, collate, share, range(first, total), states, options, **where)
    steps = ShuffledSteps(len(stage.data), arguments.batch_size, steps=total, first_step=first, **where)
    return DataLoader(stage.rows, batch_sampler=steps, collate_fn=collate, **options)


def as_whole(value: Tensor | float) -> Tensor:
    """`value` as an ordinary tensor: FSDP returns norms that are spread over the processes."""
    return value.full_tensor() if isinstance(value, DTensor) else torch.as_tensor(value)


class Training:
    """One run: a stage, its arguments, and the state that changes from step to step."""

    def __init__(self, stage: Stage, arguments: LoopArguments, accelerator: Accelerator):
        self.stage, self.arguments, self.accelerator = stage, arguments, accelerator
        self.output_dir = Path(arguments.output_dir)
        self.total = total_steps(arguments, stage.data)
        if arguments.warmup_steps >= self.total:
            logger.warning(
                "The warm-up of %d steps is not shorter than the run of %d: the learning rate never falls.",
                arguments.warmup_steps,
                self.total,
            )
        optimizer = build_optimizer(stage.module, arguments, stage.learning_rates())
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.module, self.optimizer = accelerator.prepare(stage.module, optimizer)
        self.ema = self.build_ema()
        self.seen = 0  # captions that this process trained on
        self.skipped = SkippedRows(stage.data.skipped.max_share)  # images that could not be opened on the way

    def build_ema(self) -> EMAModel | None:
        """The moving average of the weights, None without one.

        Raises:
            ValueError: weights are spread over processes.
        """
        if not self.arguments.ema_decay:
            return None
        if self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            raise ValueError("ema_decay needs whole weights on every process, which FSDP and DeepSpeed do not keep.")
        parameters = self.accelerator.unwrap_model(self.module).parameters()
        ema = EMAModel(parameters, decay=self.arguments.ema_decay)
        ema.to(self.accelerator.device)
        self.accelerator.register_for_checkpointing(ema)
        return ema

    def run(self) -> dict[str, float]:
        """Train from the checkpoint or the start to the last step; returns the last step's figures.

        SIGTERM and Ctrl-C save a checkpoint and end the process with status 128 + the signal's number.
        """
        accelerator, arguments = self.accelerator, self.arguments
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        progress = load_checkpoint(accelerator, self.output_dir, arguments.resume)
        self.check_order(progress)
        first = progress["step"]
        self.seen, self.skipped.skipped = progress.get("seen", 0), progress.get("skipped", 0)
        self.keep_history(first)
        loader = build_loader(self.stage, arguments, accelerator, first, self.total, progress.get("readers", {}))
        steps = iter(loader)
        figures = progress.get("figures", {})
        bar = tqdm(total=self.total, initial=first, desc=self.stage.name, disable=not accelerator.is_main_process)
        done, stopped = first, 0
        with StopSignal() as stop, bar:
            while done < self.total and not stopped:
                started = time.perf_counter()
                batch = self.receive(next(steps))
                figures = self.step(done, batch)
                self.report(done, figures, batch, time.perf_counter() - started, bar)
                done, stopped = done + 1, stop.agreed(accelerator)
                if stopped or done % arguments.save_every == 0 or done == self.total:
                    progress = {"seen": self.seen, "skipped": self.skipped.skipped, "figures": figures}
                    progress |= self.order | {"readers": all_states(loader)}
                    save_checkpoint(accelerator, self.output_dir, done, progress, arguments.keep_last)
        if done < self.total:
            self.say_where_it_stopped(done, stopped)
            raise SystemExit(128 + stopped)
        self.skipped.check(self.seen + self.skipped.skipped)
        return figures

    def say_where_it_stopped(self, step: int, number: int) -> None:
        """One line for people on standard error."""
        cause = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        self.accelerator.print(
            f"Stopped by {cause} at step {step} of {self.total}, which is saved in {self.output_dir / 'checkpoints'}. "
            "The same command with --resume auto goes on from there.",
            file=sys.stderr,
        )

    @property
    def order(self) -> dict[str, int | str]:
        """What the order of the data depends on; with it a step, or a reader's state, says which rows come next."""
        data, arguments = self.stage.data, self.arguments
        order: dict[str, int | str] = {"batch_size": arguments.batch_size, "seed": arguments.seed}
        if isinstance(data, CaptionStream):
            return order | stream_order(data, self.accelerator.num_processes, arguments.num_workers)
        return order | {"rows": len(data)}

    def check_order(self, progress: dict[str, Any]) -> None:
        """Refuse a checkpoint whose steps mean other rows than this run's."""
        changed = [name for name, value in self.order.items() if progress.get(name, value) != value]
        if changed:
            name = changed[0]
            raise ValueError(
                f"The checkpoint was made with {name} {progress[name]}, and this run has {self.order[name]}: it would "
                "not go on where that one stopped. Use the same, or start anew in another --output-dir."
            )

    def receive(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of a step on the device, with the bad rows that the workers met counted.

        Processes wait for each other in every forward and backward pass, so one that has fewer chunks repeats its
        first, without captions that count.
        """
        for chunk in chunks:
            for name, reason in chunk.pop("bad_rows", []):
                self.skipped.add(name, reason)
        self.seen += sum(chunk["captions"] for chunk in chunks)
        self.skipped.check(self.seen + self.skipped.skipped, final=False)
        chunks = [send_to_device(chunk, self.accelerator.device, non_blocking=True) for chunk in chunks]
        return chunks + [chunks[0] | {"captions": 0, "tokens": 0}] * (self.most_chunks(len(chunks)) - len(chunks))

    def most_chunks(self, count: int) -> int:
        """The largest number of chunks that any process has in this step."""
        if self.accelerator.num_processes == 1 or self.arguments.chunk_tokens is None:
            return count  # the same everywhere
        counts = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.max())

    def step(self, step: int, batch: list[Chunk]) -> dict[str, float]:
        """One optimiser step; returns its figures, averaged over captions and processes."""
        accelerator, arguments = self.accelerator, self.arguments
        rate = learning_rate(step, arguments.learning_rate, arguments.warmup_steps, self.total)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = learning_rate(step, peak, arguments.warmup_steps, self.total)
        means: dict[str, Tensor] = {}
        chunks = self.stage.prepare(self.module, batch, accelerator)
        self.expect_chunks(len(chunks))
        captions = sum(chunk["captions"] for chunk in chunks)
        for chunk in chunks:
            with accelerator.accumulate(self.module):
                loss, figures = self.stage.loss(self.module, chunk, accelerator)
                weight = chunk["captions"] / captions
                accelerator.backward(loss * weight * accelerator.gradient_accumulation_steps)
                if accelerator.sync_gradients and arguments.max_grad_norm:
                    norm = accelerator.clip_grad_norm_(self.module.parameters(), arguments.max_grad_norm)
                    means["grad_norm"] = as_whole(norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in figures.items():
                means[name] = means.get(name, 0) + weight * value.detach()
        unwrapped = accelerator.unwrap_model(self.module)
        self.stage.after_step(unwrapped)
        if self.ema is not None:
            self.ema.step(unwrapped.parameters())
        return {"learning_rate": rate, **self.average(means)}

    def expect_chunks(self, count: int) -> None:
        """Tell accelerate that `count` backward passes make this step; it divides each loss by their number."""
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:  # there the number never changes
            self.accelerator.step = 0
            self.accelerator.gradient_accumulation_steps = count

    def average(self, means: dict[str, Tensor]) -> dict[str, float]:
        """Means over the processes, as numbers."""
        values = torch.stack([torch.as_tensor(v, device=self.accelerator.device).float() for v in means.values()])
        return dict(zip(means, self.accelerator.reduce(values, reduction="mean").tolist(), strict=True))

    def keep_history(self, first: int) -> None:
        """Drop the lines of metrics.jsonl about steps that will be taken again."""
        path = self.output_dir / "metrics.jsonl"
        if not self.accelerator.is_main_process:
            return
        lines = path.read_text().splitlines() if first and path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= first]
        write_text(path, "".join(line + "\n" for line in kept))

    def report(self, step: int, figures: dict[str, float], batch: list[Chunk], seconds: float, bar: tqdm) -> None:
        """A step's figures on the progress bar and, every `log_every` steps, in metrics.jsonl and the tracker."""
        if not self.accelerator.is_main_process:
            return
        processes = self.accelerator.num_processes
        captions, tokens = (sum(chunk[name] for chunk in batch) * processes for name in ("captions", "tokens"))
        images = "images" if self.stage.data.has_images else "captions"
        speed = {f"{images}/s": f"{captions / seconds:.1f}", "tokens/s": f"{tokens / seconds:.0f}"}
        bar.update()
        bar.set_postfix({"loss": f"{figures['loss']:.4f}", **speed}, refresh=False)
        if (step + 1) % self.arguments.log_every == 0 or step + 1 == self.total:
            with (self.output_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step + 1, **figures}) + "\n")
            self.accelerator.log(figures, step=step + 1)

    def weights(self) -> dict[str, Tensor]:
        """The module's whole state, of the moving average where there is one. Call it on every process."""
        if self.ema is not None:
            self.ema.copy_to(self.accelerator.unwrap_model(self.module).parameters())
        return self.accelerator.get_state_dict(self.module)


def run_stage(
    stage: Stage, arguments: LoopArguments, accelerator: Accelerator | None = None, sources: Sources | None = None
) -> dict[str, float]:
    """Train `stage` and write its product to `arguments.output_dir`. Returns the last step's figures.

    `sources` says in run.json and on the model card where models and captions came from.
    """
    accelerator = accelerator or build_accelerator(arguments)
    with ending_together():
        total_steps(arguments, stage.data)  # which refuses what a stream cannot do
        if arguments.report_to != "none":
            plain = {k: v for k, v in asdict(arguments).items() if isinstance(v, int | float | str | bool)}
            accelerator.init_trackers("tulip-diffusion", config=plain)
        refuse_old_checkpoints(Path(arguments.output_dir), arguments.resume)
        stage.begin(accelerator)
        training = Training(stage, arguments, accelerator)
        figures = training.run()
        weights = training.weights()
        if accelerator.is_main_process:
            write_product(stage, arguments, sources, weights, figures, training.skipped)
            print(describe_product(Path(arguments.output_dir)))
        accelerator.wait_for_everyone()
        accelerator.end_training()
    return figures
