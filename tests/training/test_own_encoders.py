"""A fine-tuned checkpoint's own text encoders as teachers, out of its single file."""

import json

import pytest
import torch

from tulip_diffusion import load_text_encoder

from .conftest import make_caption, sdxl_single_file
from .test_commands import run


def distil(tmp_path, *flags):
    lines = [json.dumps({"caption": make_caption(number, 3 + 4 * number)}) for number in range(8)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    flags = ("--steps", 1, "--batch-size", 4, "--warmup-steps", 0, "--num-workers", 0, *flags)
    out = tmp_path / "out"
    teacher = tmp_path / "checkpoint.safetensors"
    run("distill", "--teacher", teacher, "--data", tmp_path / "captions.jsonl", "--output-dir", out, *flags)
    return out


@pytest.mark.parametrize(
    ("flags", "name", "activation"),
    [
        ((), "text_encoder", "quick_gelu"),
        (("--teacher-subfolder", "text_encoder"), "text_encoder", "quick_gelu"),
        (("--teacher-subfolder", "text_encoder_2", "--pad", "zero"), "text_encoder_2", "gelu"),
    ],
    ids=["by default", "first", "second"],
)
def test_the_student_starts_from_the_encoder_that_was_chosen(tmp_path, flags, name, activation):
    """At a learning rate of 0 it stays what it started from: the teacher's weights without its positions."""
    teacher = sdxl_single_file(tmp_path / "checkpoint.safetensors")[name]
    student = load_text_encoder(distil(tmp_path, *flags, "--learning-rate", 0))
    expected = teacher.state_dict()
    expected.pop("text_model.embeddings.position_embedding.weight")
    if name == "text_encoder":  # SDXL's file has no projection for it
        expected["text_projection.weight"] = torch.eye(32)
    assert student.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in student.state_dict().items())
    assert student.config.hidden_act == activation
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["sources"]["teacher"].endswith("checkpoint.safetensors")


@pytest.mark.parametrize("name", ["text_encoder", "text_encoder_2"])
def test_training_moves_the_student_towards_that_encoder(tmp_path, name):
    sdxl_single_file(tmp_path / "checkpoint.safetensors")
    out = distil(tmp_path, "--teacher-subfolder", name, "--learning-rate", 1e-3, "--steps", 12)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert len(losses) >= 12 and losses[-1] < losses[0]


def test_a_name_that_the_file_has_not_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("distill", "--output-dir", tmp_path / "out", "--teacher-subfolder", "text_encoder_3")
    assert "text_encoder_2" in capsys.readouterr().err
