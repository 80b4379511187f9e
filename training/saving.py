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

from tulip_diffusion.data import SkippedRows
from tulip_diffusion.provenance import commit

from .config import LoopArguments
from .stage import Stage

CARD = """---
library_name: diffusers
tags: [tulip, clip, text-encoder, stable-diffusion-xl, long-prompts]
---

# A text encoder trained with `tulip-diffusion train {stage}`

Made from {rows} captions in {steps}, {batch_size} a step. `run.json` holds every flag and the last figures:

| figure | value |
|---|---|
{figures}

{use}
"""

USE_TULIP = """```python
from tulip_diffusion import TulipTextModel

text_encoder = TulipTextModel.from_pretrained("this folder")  # for SDXL's first slot
```"""
USE_CLIP = """```python
from transformers import CLIPTextModelWithProjection

text_encoder = CLIPTextModelWithProjection.from_pretrained("this folder")
```"""


def describe_run(
    stage: Stage, arguments: LoopArguments, figures: dict[str, float], unreadable: SkippedRows
) -> dict[str, Any]:
    """What run.json says; `unreadable` are the images that the first process could not open."""
    from tulip_diffusion import __version__

    return {
        "stage": stage.name,
        "arguments": asdict(arguments),
        "data": {
            "rows": len(stage.data),
            "skipped": stage.data.skipped.skipped,
            "unreadable_images": unreadable.skipped,
            "named": stage.data.skipped.reasons + unreadable.reasons,
        },
        "figures": figures,
        "version": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def write_product(
    stage: Stage, arguments: LoopArguments, weights: dict[str, Tensor], figures: dict, unreadable: SkippedRows
) -> None:
    """Write encoder, run.json and README.md to `arguments.output_dir`, each file whole or not at all."""
    output_dir = Path(arguments.output_dir)
    unfinished = output_dir / "unfinished-product"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    run = describe_run(stage, arguments, figures, unreadable) | stage.save(unfinished, weights)
    (unfinished / "run.json").write_text(json.dumps(run, indent=2, default=str) + "\n")
    (unfinished / "README.md").write_text(model_card(run, arguments))
    for path in sorted(unfinished.rglob("*")):
        if path.is_file():
            target = output_dir / path.relative_to(unfinished)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(unfinished)


def model_card(run: dict[str, Any], arguments: LoopArguments) -> str:
    figures = "\n".join(f"| {name} | {value:.4g} |" for name, value in run["figures"].items())
    steps = f"{arguments.steps} steps" if arguments.steps is not None else f"{arguments.epochs:g} epochs"
    return CARD.format(
        stage=run["stage"],
        rows=run["data"]["rows"],
        steps=steps,
        batch_size=arguments.batch_size,
        figures=figures,
        use=USE_CLIP if run["stage"] in ("finetune-clip", "longclip") else USE_TULIP,
    )
