"""The folder that a finished run leaves: an encoder that pipelines load, what made it, and a card for people."""

import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tulip_diffusion.data import CaptionData, SkippedRows
from tulip_diffusion.model_card import model_card
from tulip_diffusion.models.finelip import FOLDER as FINELIP_FOLDER
from tulip_diffusion.provenance import commit

from .config import LoopArguments, Sources
from .stage import Stage


def describe_run(
    stage: Stage, arguments: LoopArguments, sources: Sources | None, figures: dict[str, float], unreadable: SkippedRows
) -> dict[str, Any]:
    """What run.json says; `unreadable` are the images that the first process could not open."""
    from tulip_diffusion import __version__

    return {
        "stage": stage.name,
        "sources": asdict(sources) if sources is not None else stage.origins,
        "arguments": asdict(arguments),
        "data": {
            "rows": len(stage.data) if isinstance(stage.data, CaptionData) else "streamed",
            "skipped": stage.data.skipped.skipped,
            "unreadable_images": unreadable.skipped,
            "named": stage.data.skipped.reasons + unreadable.reasons,
        },
        "figures": figures,
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "folder": os.getcwd(),  # that relative paths start from
    }


def write_product(
    stage: Stage,
    arguments: LoopArguments,
    sources: Sources | None,
    weights: dict[str, Tensor],
    figures: dict[str, float],
    unreadable: SkippedRows,
) -> None:
    """Write encoder, run.json and README.md to `arguments.output_dir`, each file whole or not at all."""
    output_dir = Path(arguments.output_dir)
    unfinished = output_dir / "unfinished-product"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    run = describe_run(stage, arguments, sources, figures, unreadable) | stage.save(unfinished, weights)
    (unfinished / "run.json").write_text(json.dumps(run, indent=2, default=str) + "\n")
    config = json.loads((unfinished / "config.json").read_text())
    model_card(config, run, finelip=(unfinished / FINELIP_FOLDER).is_dir()).save(unfinished / "README.md")
    for path in sorted(unfinished.rglob("*")):
        if path.is_file():
            target = output_dir / path.relative_to(unfinished)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(unfinished)


def describe_product(folder: Path) -> str:
    """One line that names what a stage left in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    beside = [name for name in ("image_encoder", FINELIP_FOLDER) if (folder / name).is_dir()]
    parts = f", with {' and '.join(f'{name}/' for name in beside)}" if beside else ""
    return f"{config['architectures'][0]} for {config['max_position_embeddings']} tokens written to {folder}{parts}"
