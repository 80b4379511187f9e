"""Wrong input to any command: one line, an exit status that is not 0, nothing written, and nothing heavy imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from tulip_diffusion.cli import main

LONG = "9" * 60
TRAIN = ["--teacher", "clip", "--data", "captions.jsonl", "--output-dir", "out"]
REFUSED = {
    "nothing at all": ([], "COMMAND"),
    "an unknown command": (["draw"], "invalid choice: 'draw'"),
    "an unknown option": (["generate", "a", "--sed", "1"], "unrecognized arguments: --sed"),
    # prompts
    "no prompt": (["generate"], "either a prompt or --file"),
    "two prompts": (["generate", "a", "--file", "latin.txt"], "either a prompt or --file"),
    "an empty prompt": (["generate", ""], "The prompt is empty"),
    "a blank prompt": (["compare", "  "], "The prompt is empty"),
    "a prompt of broken bytes": (["describe", "caf\udce9"], "not UTF-8"),
    "a file that is not there": (["generate", "--file", "nowhere.txt"], "a file that exists, got 'nowhere.txt'"),
    "a folder of prompts": (["describe", "--file", "folder"], "a file, not a folder"),
    "prompts in Latin 1": (["generate", "--file", "latin.txt"], "latin.txt is not UTF-8"),
    "prompts in UTF-16": (["describe", "--file", "utf16.txt"], "utf16.txt is not UTF-8"),
    "no line with a prompt": (["generate", "--file", "blank.txt"], "blank.txt holds no prompt"),
    # numbers
    "no steps": (["generate", "a", "--steps", "0"], "--steps: must be a whole number, from 1 to 1000, got '0'"),
    "fewer than no steps": (["compare", "--steps", "-3"], "--steps"),
    "half a step": (["compare", "--steps", "1.5"], "got '1.5'"),
    "too many steps": (["generate", "a", "--steps", LONG], "--steps"),
    "a seed that torch has not": (["generate", "a", "--seed", str(2**70)], "18446744073709551615, got"),
    "a seed far below 0": (["compare", "--seed", str(-(2**70))], "--seed"),
    "a seed in words": (["compare", "--seed", "seven"], "got 'seven'"),
    "guidance that is not a number": (["generate", "a", "--guidance", "nan"], "--guidance"),
    "endless guidance": (["compare", "--guidance", "inf"], "from 0 to 100, got 'inf'"),
    "guidance below 0": (["generate", "a", "--guidance", "-1"], "--guidance"),
    "guidance beyond sense": (["generate", "a", "--guidance", "1e308"], "--guidance"),
    "no guidance": (["generate", "a", "--guidance", ""], "--guidance"),
    # places
    "a device of fancy": (["generate", "a", "--device", "gpu"], "a device such as cpu, cuda"),
    "no device": (["compare", "--device", ""], "--device"),
    "a device that computes nothing": (["compare", "--device", "meta"], "--device"),
    "an unknown encoder": (["generate", "a", "--encoder", "nonsense"], "encoder must be one of tulip"),
    "an unknown encoder to compare": (["compare", "--encoder", "nonsense"], "got 'nonsense'"),
    "an encoder without a name": (["compare", "--encoder", ""], "--encoder"),
    "a model that is not there": (["generate", "a", "--model", "./nope"], "a file or a folder that exists"),
    "a model file that is not there": (["compare", "--model", "nope.safetensors", "--encoder", "clip"], "--model"),
    "a model without a name": (["generate", "a", "--model", ""], "--model"),
    "a folder that is no pipeline": (["generate", "a", "--model", "folder"], "no model_index.json"),
    "quantised weights": (["generate", "a", "--model", "model.gguf"], "ends in .safetensors or .ckpt"),
    "an ending in capitals": (["generate", "a", "--model", "model.SAFETENSORS"], "ends in .safetensors or .ckpt"),
    "a model and no encoder": (["compare", "--model", "stabilityai/sdxl"], "needs --encoder"),
    "a model and a missing encoder": (
        ["compare", "--model", "a/b", "--encoder", "./no.pt"],
        "With --model, --encoder",
    ),
    "another model that is not there": (["compare", "--also", "./nope"], "--also"),
    "another model that is no pipeline": (["compare", "--also", "folder"], "no model_index.json"),
    "another model in one file": (["demo", "--also", "old.png"], "is a file"),
    "a family that is not there": (["compare", "--assets", "nope"], "a folder that exists, got 'nope'"),
    "a family that is none": (["compare", "--assets", "folder"], "is missing"),
    # pictures
    "a picture that is text": (["generate", "a", "--out", "x.txt"], "a file ending in .png, .jpg, .jpeg, got 'x.txt'"),
    "a picture without an ending": (["compare", "--out", "x"], "a file ending in"),
    "a picture that is a folder": (["compare", "--out", "folder"], "a file to write, not a folder"),
    "a picture nowhere": (["compare", "--out", "nowhere/x.png"], "in a folder that exists (nowhere does not)"),
    "a picture below a file": (["generate", "a", "--out", "latin.txt/x.png"], "in a folder that exists"),
    "a picture where nothing can be written": (["generate", "a", "--out", "/proc/x.png"], "can be written to (/proc"),
    "a picture that is there": (["generate", "a", "--out", "old.png"], "old.png exists. Pass --overwrite"),
    "one of several that is there": (["generate", "--file", "two.txt", "--out", "old.png"], "old-2.png exists"),
    # describe, convert
    "neither prompt nor file": (["describe"], "PROMPT or --file"),
    "an encoder that is not there": (["describe", "a", "--encoder", "./nope"], "a file or a folder that exists"),
    "a checkpoint that is not there": (["convert", "nowhere.pt", "out"], "got 'nowhere.pt'"),
    "a destination of another kind": (["convert", "folder", "out.gguf"], "a file ending in .pt or .safetensors"),
    "a destination that is there": (["convert", "folder", "latin.txt"], "latin.txt exists"),
    "a file in a folder's place": (["convert", "folder", "latin.txt", "--overwrite"], "is a file, and a folder"),
    "the source itself": (["convert", "folder", "folder", "--overwrite"], "is SOURCE itself"),
    "no heads": (["convert", "folder", "out", "--heads", "0"], "--heads"),
    "an unknown layout": (["convert", "folder", "out", "--layout", "clip"], "invalid choice: 'clip'"),
    "an unknown half": (["convert", "folder", "out", "--dtype", "half"], "invalid choice: 'half'"),
    "a single file that is a folder": (["convert", "folder", "out", "--single-file"], "writes a .safetensors file"),
    "two ways to a TULIP encoder": (
        ["convert", "folder", "out", "--to-tulip", "--add", "a/b", "c/d"],
        "--add and --to-tulip",
    ),
    "half a difference": (["convert", "folder", "out", "--add", "a/b"], "expected 2 arguments"),
    "nobody's licence": (["share", "folder", "out"], "--license"),
    "a licence in words": (["share", "folder", "out", "--license", "do what you like"], "a licence such as mit"),
    "a folder in use": (["share", "folder", ".", "--license", "mit"], "is not empty"),
    # demo
    "port 0": (["demo", "--port", "0"], "a whole number, from 1 to 65535"),
    "a port in words": (["demo", "--port", "http"], "--port"),
    "a name without a password": (["demo", "--auth", "ada:"], "USER:PASSWORD"),
    "a host without a name": (["demo", "--host", ""], "--host"),
    # train
    "no stage": (["train"], "STAGE"),
    "no folder for the encoder": (["train", "distill"], "--output-dir"),
    "no teacher": (["train", "distill", "--output-dir", "out"], "required: --teacher, --data"),
    "no captions": (["train", "expand", "--output-dir", "out", "--teacher", "a/b"], "required: --data"),
    "a teacher that is not there": (["train", "distill", *TRAIN], "--teacher must be a file or a folder that exists"),
    "a folder that is a file": (
        ["train", "distill", *TRAIN, "--teacher", "a/b", "--output-dir", "latin.txt"],
        "must be a folder",
    ),
    "a chunk of -1": (["train", "distill", *TRAIN, "--chunk-size", "-1"], "chunk_size must be a whole number, 1 or"),
    "no batch": (["train", "expand", *TRAIN, "--batch-size", "0"], "batch_size must be a whole number, 1 or more"),
    "half a batch": (["train", "expand", *TRAIN, "--batch-size", "1.5"], "a whole number, got '1.5'"),
    "a rate that is not a number": (["train", "distill", *TRAIN, "--learning-rate", "nan"], "got 'nan'"),
    "an endless rate": (["train", "longclip", *TRAIN, "--learning-rate", "inf"], "got 'inf'"),
    "epochs below 0": (["train", "finelip", *TRAIN, "--epochs", "-1"], "epochs must be a number, above 0"),
    "a share above 1": (["train", "distill", *TRAIN, "--max-bad-share", "1.5"], "from 0 to 1, got 1.5"),
    "a weight above 1": (["train", "expand", *TRAIN, "--short-weight", "2"], "short_weight must be a number from 0"),
    "a decay of 1": (["train", "distill", *TRAIN, "--ema-decay", "1"], "0 or more and below 1, got 1.0"),
    "texts of no length": (["train", "distill", *TRAIN, "--length", "2"], "length must be a whole number, 3 or more"),
    "a seed that numpy has not": (["train", "distill", *TRAIN, "--seed", str(2**33)], "from 0 to 4294967295"),
    "an unknown objective": (["train", "distill", *TRAIN, "--objective", "best"], "invalid choice: 'best'"),
    # evaluate
    "no evaluation": (["evaluate"], "EVALUATION"),
    "an unknown size": (["evaluate", "all", "--size", "huge"], "invalid choice: 'huge'"),
    "results that are not there": (["evaluate", "report", "--folder", "nowhere"], "a folder that exists"),
    "results in a file": (["evaluate", "all", "--out", "latin.txt"], "must be a folder"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin.txt").write_bytes("a café".encode("latin-1"))
    (tmp_path / "utf16.txt").write_bytes("a prompt".encode("utf-16"))
    (tmp_path / "blank.txt").write_text("\n  \n")
    (tmp_path / "two.txt").write_text("one\ntwo\n")
    for name in ("old.png", "old-2.png", "model.gguf", "model.SAFETENSORS"):
        (tmp_path / name).write_bytes(b"kept")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(arguments) -> int:
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_is_refused_in_one_line_before_anything_is_written(case, folder, capsys):
    arguments, sentence = REFUSED[case]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and sentence in printed.err and printed.err.startswith("tulip-diffusion")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


EVALUATIONS = {
    "no prompts": (["generation", "--count", "0"], "--count"),
    "no batch": (["retrieval", "--batch", "0"], "--batch"),
    "texts of no length": (["positions", "--tokens", "77", "0"], "a whole number, 3 or more, got '0'"),
    "guidance that is not a number": (["strips", "--guidance", "nan"], "--guidance"),
    "fewer than no pictures": (["fidelity", "--pictures", "-1"], "--pictures"),
    "a device of fancy": (["attention", "--device", "tpu7"], "a device such as"),
    "an empty prompt": (["attribution", ""], "The prompt is empty"),
    "an unknown encoder": (["relevance", "--encoders", "./nope.pt"], "nope.pt"),
    "an encoder that the family lacks": (["reading", "--encoders", "clip", "bert"], "got 'bert'"),
    "prompts of another kind": (["fidelity", "--prompts", "400"], "invalid choice: '400'"),
    "no variant": (["retrieval", "--variants", "sorted"], "invalid choice: 'sorted'"),
}
ABLATIONS = {
    "an unknown ablation": (["ablate", "everything"], "invalid choice: 'everything'"),
    "no steps to train": (["ablate", "loss", "--stage1-steps", "0"], "--stage1-steps"),
    "a rate of nothing": (["ablate", "finelip", "--rate", "0"], "--rate"),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_evaluations_refuse_wrong_input_too(case, folder, capsys):
    arguments, sentence = EVALUATIONS[case]
    assert run(["evaluate", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and sentence in printed


def at_once():
    """What evaluations refuse by their options alone: all but what they have to look for, or to ask torch."""
    return [case for name, case in EVALUATIONS.items() if name not in ("an empty prompt", "an unknown encoder")]


@pytest.mark.parametrize("case", ABLATIONS)
def test_ablations_refuse_wrong_input_too(case, folder, capsys):
    arguments, sentence = ABLATIONS[case]
    assert run(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and sentence in printed


def test_usage_errors_import_nothing_heavy(folder):
    """As real processes: the exit status and the line, and by them that the answer comes at once."""
    program = """
import sys
from tulip_diffusion.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stopped:
    status = stopped.code
heavy = {"torch", "transformers", "diffusers", "numpy", "PIL", "gradio"} & {*sys.modules}
assert not heavy, heavy
raise SystemExit(status)
"""
    cases = [REFUSED[case] for case in ("no steps", "an unknown encoder", "a share above 1", "port 0")]
    cases += [(["evaluate", *arguments], sentence) for arguments, sentence in at_once()]
    for arguments, sentence in [*cases, REFUSED["prompts in Latin 1"], *ABLATIONS.values()]:
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert done.returncode == 2 and sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr
    for arguments in (
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["train", "expand", "--help"],
        ["evaluate", "strips", "--help"],
    ):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout
