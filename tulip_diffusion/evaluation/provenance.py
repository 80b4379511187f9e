"""Where a figure comes from: provenance.json beside it, with command, commit, seed, time and weights."""

import argparse
import json
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tulip_diffusion.files import write_text
from tulip_diffusion.provenance import commit, files_hash
from tulip_diffusion.scenes.dataset import SPLITS

FILE = "provenance.json"
NOT_OPTIONS = ("command", "evaluation", "run")


def command_line(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command that gives `options`, with those that are not the default."""
    words = parser.prog.split()
    for name, value in vars(options).items():
        if name in NOT_OPTIONS or value == parser.get_default(name):
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return shlex.join(words)


def write_provenance(parser: argparse.ArgumentParser, options: argparse.Namespace, seconds: float) -> None:
    """Write `options.out`/provenance.json, after everything else: where it is, the evaluation is complete."""
    record: dict[str, Any] = {
        "command": command_line(parser, options),
        "commit": commit(),
        "seed": SPLITS[getattr(options, "split", "evaluation")],
        "seconds": round(seconds, 1),
        "torch": version("torch"),
    }
    if not getattr(options, "model", None):
        record["weights"] = files_hash(options.assets)
    write_text(options.out / FILE, json.dumps(record, indent=1))


def read_provenance(folder: Path) -> dict[str, Any]:
    """What [`write_provenance`] left in `folder`, empty if it did not."""
    file = folder / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
