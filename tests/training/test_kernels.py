"""What "auto" chooses, what it says, and that nothing but speed changes."""

import itertools
import json

import pytest
import torch
from transformers import CLIPTextConfig

from tulip_diffusion.devices import fast_bfloat16
from tulip_diffusion.training import kernels
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.distill import distill
from tulip_diffusion.training.kernels import candidates, measure, settle_kernels

from .conftest import tiny_text_config
from .test_loop import arguments, assert_same_weights, captions, history

TOWER = CLIPTextConfig(**tiny_text_config())
HALF = ["bf16"] * fast_bfloat16("cpu")


@pytest.mark.parametrize(
    ("precision", "attn", "expected"),
    [
        ("auto", "auto", set(itertools.product(["no", *HALF], ["sdpa", "eager"]))),
        ("auto", "sdpa", set(itertools.product(["no", *HALF], ["sdpa"]))),
        ("bf16", "auto", {("bf16", "sdpa"), ("bf16", "eager")}),
    ],
)
def test_only_what_is_left_open_is_measured(tmp_path, precision, attn, expected):
    given = arguments(DistillArguments, tmp_path, mixed_precision=precision, attn=attn)
    names = candidates(given, torch.device("cpu"))
    assert set(names) == expected
    assert all(seconds > 0 for seconds in measure(TOWER, 77, torch.device("cpu"), names).values())


def test_the_fastest_is_taken_said_and_kept_for_a_run_that_goes_on(tmp_path, monkeypatch, capsys):
    seconds = {("no", "sdpa"): 4.0, ("no", "eager"): 3.0, ("bf16", "sdpa"): 2.0, ("bf16", "eager"): 1.0}
    monkeypatch.setattr(kernels, "measure", lambda *a: seconds)
    given = arguments(DistillArguments, tmp_path, mixed_precision="auto", attn="auto", resume="auto")
    settled = settle_kernels(given, TOWER, 248)
    assert (settled.mixed_precision, settled.attn) == ("bf16", "eager")
    (line,) = capsys.readouterr().out.splitlines()
    assert "--mixed-precision bf16 --attn eager, 4.0 times as fast as no with sdpa" in line
    assert json.loads((tmp_path / "kernels.json").read_text())["seconds"]["no sdpa"] == 4.0
    seconds["no", "sdpa"] = 0.5
    assert settle_kernels(given, TOWER, 248) == settled
    assert settle_kernels(arguments(DistillArguments, tmp_path, mixed_precision="auto"), TOWER, 248).attn == "sdpa"


def test_measuring_draws_no_random_number_of_the_runs(tmp_path):
    before = torch.random.get_rng_state()
    settle_kernels(arguments(DistillArguments, tmp_path, attn="auto"), TOWER, 77)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_run_that_chooses_trains_what_one_that_is_told_does(tmp_path, tokenizer, teacher):
    distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path / "auto", attn="auto"))
    distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path / "told"))
    assert_same_weights(tmp_path / "auto", tmp_path / "told", atol=1e-5)
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["arguments"]["attn"] in ("sdpa", "eager")


def test_compiled_towers_learn_the_same(tmp_path, tokenizer, teacher, monkeypatch):
    """Traced, both passes, but without the minutes that generating code takes."""
    monkeypatch.setattr(kernels, "COMPILER", "aot_eager")
    for name in ("plain", "compiled"):
        given = arguments(DistillArguments, tmp_path / name, steps=2, compile=name == "compiled", chunk_tokens=400)
        distill(teacher, tokenizer, captions(), given)
    assert history(tmp_path / "compiled")[-1] == pytest.approx(history(tmp_path / "plain")[-1], rel=1e-3)
    assert_same_weights(tmp_path / "plain", tmp_path / "compiled", atol=1e-5)
