"""Checkpoints that are whole or absent, and a way to stop between two steps."""

import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

logger = get_logger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKER_SECONDS = 20  # that a loader's worker outlives SIGTERM
STEP_FOLDER = re.compile(r"step-(\d+)")


def checkpoints(output_dir: Path) -> list[Path]:
    """Finished checkpoints, the oldest first."""
    folders = [path for path in (output_dir / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("step-")))


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int, progress: dict, keep_last: int) -> None:
    """Save everything that `load_checkpoint` needs to go on bit for bit, then drop the oldest.

    It is written under a temporary name and renamed once complete, so a killed run leaves no half checkpoint.
    """
    folder = output_dir / "checkpoints" / f"step-{step:08d}"
    unfinished = folder.with_name(f"unfinished-{step:08d}")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (unfinished / "progress.json").write_text(json.dumps({"step": step, **progress}))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
        for old in checkpoints(output_dir)[:-keep_last]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def refuse_old_checkpoints(output_dir: Path, resume: str) -> None:
    """A run that starts anew beside another's checkpoints would later resume from the wrong ones.

    Raises:
        FileExistsError: there are checkpoints and `resume` is "none".
    """
    found = checkpoints(output_dir)
    if resume == "none" and found:
        raise FileExistsError(
            f"{output_dir} already holds checkpoints, up to {found[-1].name}. Add --resume auto to go on from there, "
            "or choose another --output-dir."
        )


def load_checkpoint(accelerator: Accelerator, output_dir: Path, resume: str) -> dict:
    """Load the checkpoint that `resume` names, and return its progress: {"step": 0} where there is none.

    Raises:
        FileNotFoundError: `resume` is a folder without a checkpoint.
    """
    if resume == "none":
        return {"step": 0}
    if resume == "auto":
        found = checkpoints(output_dir)
        if not found:
            return {"step": 0}
        folder = found[-1]
    else:
        folder = Path(resume)
    if not (folder / "progress.json").exists():
        raise FileNotFoundError(f"There is no checkpoint in {folder}. Use --resume auto to take the newest one.")
    accelerator.load_state(str(folder))
    logger.info("Resumed from %s", folder)
    return json.loads((folder / "progress.json").read_text())


class StopSignal:
    """Notices SIGTERM and Ctrl-C, so that the loop can save before it goes; a second one ends the process at once.

    Signals reach the main thread alone, so in any other thread nothing is noticed.
    """

    def __enter__(self) -> "StopSignal":
        self.received = 0
        self.previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self.note) for number in STOP_SIGNALS}
        return self

    def note(self, number: int, frame: Any) -> None:
        """The signals' handler: remember the first one, and let a second one do what it did before."""
        self.received = number
        signal.signal(number, self.previous[number])

    def __exit__(self, *exception) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that any process was told to stop by, 0 without one; all of them get the same answer."""
        if accelerator.num_processes == 1:
            return self.received
        return int(accelerator.gather(torch.tensor([self.received], device=accelerator.device)).max())


def leave_signals_to_the_main_process(worker: int) -> None:
    """For a loader's workers: what ends the run is sent to them too, while the main process still wants their step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # elsewhere SIGTERM is not sent to groups of processes
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_SECONDS))
