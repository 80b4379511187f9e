import argparse
import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import LONG_CAPTION
from tulip_diffusion import (
    TulipTextModelWithProjection,
    export_open_clip,
    from_clip,
    load_text_encoder,
    load_tokenizer,
)
from tulip_diffusion.arguments import one_line
from tulip_diffusion.cli import build_parser, main
from tulip_diffusion.generate import save


def test_describe_names_the_words_that_each_encoder_loses(capsys):
    assert main(["describe", LONG_CAPTION]) == 0
    output = capsys.readouterr().out
    clip, longclip, tulip = output.splitlines()[1:4]
    assert clip.startswith("CLIP ") and "75 of" in clip and clip.endswith(LONG_CAPTION[-40:] + '"')
    assert "246 of" in longclip
    assert tulip.endswith("sees every word")


def test_describe_reads_files_and_prints_windows_that_hold_every_word(tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text(LONG_CAPTION)
    assert main(["describe", "--file", str(tmp_path / "prompt.txt"), "--windows"]) == 0
    windows = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("window ")]
    assert " ".join(windows) == LONG_CAPTION


def test_describe_encodes_with_the_encoder_that_is_named(clip, tmp_path, capsys):
    from_clip(clip).save_pretrained(tmp_path)
    assert main(["describe", "a red tulip", "--encoder", str(tmp_path)]) == 0
    assert "states (1, 5, 128) for SDXL, text_embeds (1, 32)" in capsys.readouterr().out


def test_convert_writes_a_folder_with_its_tokenizer(clip, tmp_path, capsys):
    torch.save({"state_dict": export_open_clip(from_clip(clip))}, tmp_path / "tulip.pt")
    arguments = ["convert", str(tmp_path / "tulip.pt"), str(tmp_path / "tulip"), "--rope", "paper"]
    assert main(arguments) == 0
    model = TulipTextModelWithProjection.from_pretrained(tmp_path / "tulip")
    assert model.config.rope_parameters["rope_type"] == "ntk"
    assert type(load_tokenizer()).from_pretrained(tmp_path / "tulip").model_max_length == 77
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_convert_writes_open_clips_keys(clip, tmp_path, suffix):
    clip.save_pretrained(tmp_path / "clip")
    target = tmp_path / f"open_clip.{suffix}"
    assert main(["convert", str(tmp_path / "clip"), str(target), "--to-tulip"]) == 0
    ids = torch.tensor([[49406, 320, 1125, 49407]])
    back = load_text_encoder(target, hidden_act="quick_gelu")
    torch.testing.assert_close(back(ids).text_embeds, from_clip(clip)(ids).text_embeds)


@pytest.mark.parametrize("text", ["a red tulip\n", "\ufeffa red tulip"])
def test_a_hyphen_reads_standard_input(text, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert main(["describe", "-"]) == 0
    assert capsys.readouterr().out.startswith("5 tokens")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_files_are_read_without_the_mark_that_some_editors_write(encoding, tmp_path, capsys):
    (tmp_path / "prompt.txt").write_text("a red tulip", encoding=encoding)
    assert main(["describe", "--file", str(tmp_path / "prompt.txt")]) == 0
    assert capsys.readouterr().out.startswith("5 tokens")


def test_a_broken_pipe_is_silent():
    done = subprocess.run(
        f"{sys.executable} -m tulip_diffusion.cli train expand --help | head -c 1", shell=True, capture_output=True
    )
    assert done.stdout == b"u" and done.stderr == b""


@pytest.mark.parametrize("seconds", [0, 1, 6])
def test_an_interrupt_at_any_moment_is_one_short_line(seconds, tmp_path):
    """While modules are imported, while weights are loaded, while something is drawn."""
    command = [sys.executable, "-m", "tulip_diffusion.cli", "compare"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell has it ignored
    )
    with process:
        assert process.stderr.readline().startswith("Drawing one prompt with CLIP, Long-CLIP, TULIP")
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert (process.returncode, error) == (130, "Interrupted.\n")


@pytest.mark.parametrize("dropped", ["finaliser", "weak reference"])
def test_an_interrupt_that_python_drops_ends_the_command_all_the_same(dropped):
    """Imports run such callbacks all the time, and what is raised in them goes no further."""
    program = f"""
import argparse, signal, time, weakref
from tulip_diffusion import cli

class Thing:
    def __del__(self):
        if {dropped!r} == "finaliser":
            signal.raise_signal(signal.SIGINT)

def work(options):
    thing = Thing()
    if {dropped!r} == "weak reference":
        kept = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    for _ in range(500):
        time.sleep(0.01)
    print("went on")

parser = argparse.ArgumentParser()
parser.set_defaults(command="work", run=work)
cli.build_parser = lambda: parser
cli.run()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_a_full_disk_is_named_and_leaves_nothing(clip, tmp_path, capsys, monkeypatch):
    clip.save_pretrained(tmp_path / "clip")

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as raised:
        save(Image.new("RGB", (8, 8)), tmp_path / "picture.png", {"prompt": "a"})
    assert one_line(raised.value) == f"{tmp_path / 'picture.png'}: No space left on device."
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def parsers_below(parser):
    """`parser` and all its sub-commands', each filled with its options."""
    with contextlib.suppress(SystemExit):
        parser.parse_known_args(["--help"])  # evaluations get their options when they are used
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers_below(below)


def test_help_shows_each_option_once_with_its_default_and_an_example(capsys):
    parsers = list(parsers_below(build_parser()))
    assert len(parsers) > 20
    for parser in parsers:
        text = " ".join(parser.format_help().split())
        assert "example" in text, parser.prog
        assert "None" not in text and "--hidden_act" not in text, parser.prog
        for action in parser._actions:
            assert not any("_" in flag for flag in action.option_strings), (parser.prog, action)
            if action.option_strings and action.default not in (None, argparse.SUPPRESS):
                assert "default" in parser._get_formatter()._get_help_string(action), (parser.prog, action)


@pytest.mark.parametrize("flag", ["--batch-size", "--batch_size"])
def test_options_may_be_written_with_underscores(flag):
    line = ["train", "distill", "--teacher=a/b", "--output_dir", "a_b", flag, "3", "--data=my_file.json"]
    options = build_parser().parse_args(line)
    assert (options.batch_size, options.output_dir, options.data) == (3, "a_b", "my_file.json")


def test_the_installed_command_has_help():
    help_text = subprocess.run(
        [sys.executable, "-m", "tulip_diffusion.cli", "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert "describe" in help_text and "convert" in help_text
