"""Runs as people start them, in processes of their own: two at once, killed, told to stop."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tulip_diffusion.training import commands

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PROCESSES = multiprocessing.get_context("forkserver")  # the server imports everything once, and forks clean children
PROCESSES.set_forkserver_preload(["tulip_diffusion.training.expand", "tulip_diffusion.training.commands"])


def train(arguments, environment, errors, start_method):
    """`tulip-diffusion train`, in a process of its own that writes what it says to a file."""
    os.environ |= ENVIRONMENT | environment
    os.setpgrp()
    with open(errors, "w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    if start_method:  # of the loader's workers: what macOS and Windows use
        multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(1)
    sys.argv = ["tulip-diffusion", "train", *arguments]
    commands.main()


def start(arguments, errors=os.devnull, start_method=None, **environment):
    process = PROCESSES.Process(target=train, args=(arguments, environment, errors, start_method))
    process.start()
    return process


def finish(*processes, status=0):
    for process in processes:
        process.join(180)
        assert process.exitcode == status


def flags(workplace, stage, name, **changes):
    given = {"teacher": workplace / "clip", "data": workplace / "data.jsonl", "output_dir": workplace / name}
    given |= {"steps": 20, "batch_size": 8, "warmup_steps": 2, "num_workers": 0, "learning_rate": 1e-3}
    if stage == "expand":
        given |= {"student": workplace / "student"}
    given |= changes
    return [stage, *(part for flag, value in given.items() for part in (f"--{flag.replace('_', '-')}", str(value)))]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def start_pair(arguments, others=None, errors=(os.devnull, os.devnull)):
    """Two processes, as a launcher starts them; the second one may be given `others`' arguments."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    return [
        start(given, errors[rank], **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, given in enumerate((arguments, others or arguments))
    ]


@pytest.mark.parametrize("stage", ["distill", "expand"])
def test_two_processes_train_the_weights_that_one_does_with_their_batches_together(workplace, stage):
    finish(start(flags(workplace, stage, "one")))
    # Four captions in each process, in chunks of one or two; how many depends on their lengths.
    finish(*start_pair(flags(workplace, stage, "two", chunk_size=2, chunk_tokens=300)))
    one, two = history(workplace / "one"), history(workplace / "two")
    assert len(one) == len(two) == 20
    assert two[0] == pytest.approx(one[0], rel=1e-5)  # losses and the gradients' norm before any update
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    folders = ["", "image_encoder"] if stage == "expand" else [""]
    for folder in folders:
        expected = load_file(workplace / "one" / folder / "model.safetensors")
        for name, weight in load_file(workplace / "two" / folder / "model.safetensors").items():
            torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_torchrun_on_a_cpu_starts_processes_that_know_of_each_other(workplace):
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    command = [*launch, "-m", "tulip_diffusion.training.commands", "train"]
    given = flags(workplace, "distill", "out", steps=1, batch_size=7)
    run = subprocess.run(
        [sys.executable, *command, *given], env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    assert run.returncode != 0 and "batch_size 7 cannot be shared by 2 processes" in run.stderr


def wait_for(process, folder, step):
    """Return once metrics.jsonl in `folder` has reached `step`."""
    path, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (path.exists() and path.read_text().count("\n") >= step):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)


def test_a_run_that_was_stopped_and_killed_ends_bit_for_bit_like_an_unbroken_one(workplace):
    changes = {"steps": 40, "save_every": 7, "resume": "auto", "ema_decay": 0.9}
    finish(start(flags(workplace, "expand", "unbroken", **changes)))
    broken, folder = flags(workplace, "expand", "broken", **changes), workplace / "broken"

    for number, step in ((signal.SIGTERM, 4), (signal.SIGINT, 12)):
        stopped = start([*broken, "--num-workers", "1"], workplace / "errors")
        wait_for(stopped, folder, step)
        os.killpg(stopped.pid, number)  # as a terminal does, to the loader's worker too
        finish(stopped, status=128 + number)
        said = (workplace / "errors").read_text().splitlines()[-1]
        cause = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        at = history(folder)[-1]["step"]
        assert f"Stopped by {cause} at step {at} of 40" in said and "--resume auto" in said
        assert (folder / "checkpoints" / f"step-{at:08d}").is_dir()
    assert not (folder / "model.safetensors").exists() and list((folder / "checkpoints").glob("step-*"))

    killed = start(broken)
    wait_for(killed, folder, step=25)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL and not (folder / "model.safetensors").exists()

    finish(start(broken))
    assert history(folder) == history(workplace / "unbroken")
    for tower in ("", "image_encoder"):
        expected = load_file(workplace / "unbroken" / tower / "model.safetensors")
        found = load_file(folder / tower / "model.safetensors")
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_workers_that_are_not_forked_train_what_forked_ones_do(workplace):
    for stage in ("distill", "expand"):
        for method in ("spawn", "fork"):
            cache = {"teacher_cache": workplace / f"cache-{method}"} if stage == "distill" else {}
            given = flags(workplace, stage, f"{stage}-{method}", steps=3, num_workers=2, **cache)
            finish(start(given, start_method=method))
        assert history(workplace / f"{stage}-spawn") == history(workplace / f"{stage}-fork")


@pytest.mark.parametrize(
    ("changes", "message", "failing"),
    [
        ({"image_root": "nowhere"}, "images in a row could be opened", 1),  # inside the loop
        ({"data": "nowhere.jsonl"}, "There is no caption data at", 0),  # before it
        ({"student": "clip"}, "not an encoder that `train distill` made", 1),  # where models are loaded
    ],
)
def test_an_error_in_one_process_ends_all_of_them_with_that_error(workplace, changes, message, failing):
    errors = [workplace / "errors-0", workplace / "errors-1"]
    changes = {name: workplace / value for name, value in changes.items()}
    right, wrong = flags(workplace, "expand", "out"), flags(workplace, "expand", "out", **changes)
    started = time.monotonic()
    finish(*start_pair(*((wrong, right) if failing == 0 else (right, wrong)), errors=errors), status=2)
    assert time.monotonic() - started < 120
    assert message in errors[failing].read_text()
    assert f"Process {failing} of 2 failed: " in errors[1 - failing].read_text()
    assert message in errors[1 - failing].read_text()
