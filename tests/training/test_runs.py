"""The scripts in training/runs: every training that they start is one that the command line takes."""

import argparse
import os
import subprocess
from pathlib import Path

import pytest

from tests.documents import ROOT
from tulip_diffusion.training.commands import register
from tulip_diffusion.training.config import ExpandArguments

RUNS = ROOT / "training" / "runs"
NOTE = '#!/bin/sh\nprintf "%s\\n" "$@" >> "$NOTES"\necho END >> "$NOTES"\n'


def trainings(script: str, folder: Path, *flags: str, **environment: str) -> list[argparse.Namespace]:
    """What `script` starts, as the command line understands it: `accelerate` and `python` note how they are called."""
    for name in ("accelerate", "python"):
        (folder / name).write_text(NOTE)
        (folder / name).chmod(0o755)
    notes = folder / "notes"
    own = {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(notes), "DATA": "d.json", "IMAGES": "i"}
    subprocess.run(["bash", RUNS / script, *flags], env={**os.environ, **own, **environment}, check=True)
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    calls = [call.split("\n") for call in notes.read_text().removesuffix("END\n").split("\nEND\n")]
    started = [call[call.index("train") :] for call in calls if "train" in call]
    return [parser.parse_args([word for word in call if word]) for call in started]


@pytest.mark.parametrize("tower", ["l", "g"])
def test_our_run_teaches_twice_and_ends_with_retrieval_that_leaves_token_states_alone(tmp_path, tower):
    first, far, retrieval = trainings("sdxl.sh", tmp_path, TOWER=tower)
    assert [run.stage for run in (first, far, retrieval)] == ["distill", "distill", "expand"]
    assert (first.position_gaps, far.position_gaps) == (0, 2048) and far.student == first.output_dir
    assert retrieval.freeze_token_states and retrieval.ntk_alpha == 0
    assert {run.pad for run in (first, far, retrieval)} == {"eos" if tower == "l" else "zero"}
    assert ("bigG" in first.teacher) == (tower == "g")


def test_the_papers_run_has_the_published_settings(tmp_path):
    first, second = trainings("paper.sh", tmp_path)
    assert (first.objective, first.epochs, first.batch_size, first.length) == ("paper", 20, 640, 77)
    assert (second.short_weight, second.short_captions, second.anchor_weight) == (0.2, "first-sentence", 0)
    assert second.batch_size == 1280 and second.ntk_alpha == ExpandArguments(output_dir="x").ntk_alpha


@pytest.mark.parametrize("script", ["paper.sh", "sdxl.sh", "baselines.sh"])
def test_every_run_asks_for_what_the_command_line_takes(tmp_path, script):
    runs = trainings(script, tmp_path)
    assert len(runs) >= 2 and all(run.resume == "auto" and run.data == "d.json" for run in runs)


@pytest.mark.parametrize("script", ["paper.sh", "sdxl.sh"])
def test_flags_given_to_a_run_reach_every_training(tmp_path, script):
    runs = trainings(script, tmp_path, "--steps", "2", "--mixed-precision", "no")
    assert {(run.steps, run.mixed_precision) for run in runs} == {(2, "no")}
