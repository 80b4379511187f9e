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
from tulip_diffusion.models.finelip import FOLDER as FINELIP_FOLDER
from tulip_diffusion.models.positions import TULIP_MODEL_TYPE
from tulip_diffusion.provenance import commit

from .config import LoopArguments, Sources
from .stage import Stage

CARD = """---
library_name: diffusers
tags: [{tags}, text-encoder, stable-diffusion-xl, long-prompts]
---

# A text encoder trained with `tulip-diffusion train {stage}`

{steps}, {batch_size} captions a step, in {precision}.

| made from | |
|---|---|
{sources}

| last figure | value |
|---|---|
{figures}

`run.json` holds every flag, the commit and what was skipped.

```python
{use}
```
"""
USE_TULIP = """from tulip_diffusion import TulipTextModel

text_encoder = TulipTextModel.from_pretrained("this folder")  # for SDXL's first slot"""
USE_TULIP_SECOND = """from tulip_diffusion import TulipTextModelWithProjection

text_encoder_2 = TulipTextModelWithProjection.from_pretrained("this folder")  # for SDXL's second slot"""
USE_CLIP = """from transformers import CLIPTextModelWithProjection

text_encoder = CLIPTextModelWithProjection.from_pretrained("this folder")  # reads {length} tokens"""
USE_FINELIP = """

from tulip_diffusion.models.finelip import load_finelip

model = load_finelip("this folder")  # both towers and the refinement, for retrieval"""
# fields of Sources for run.json alone
LOCAL_FIELDS = ("data_split", "data_format", "stream", "shuffle_rows", "max_bad_share", "hidden_act")


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
    (unfinished / "README.md").write_text(model_card(unfinished, run, arguments), encoding="utf-8")
    for path in sorted(unfinished.rglob("*")):
        if path.is_file():
            target = output_dir / path.relative_to(unfinished)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(unfinished)


def model_card(folder: Path, run: dict[str, Any], arguments: LoopArguments) -> str:
    """README.md for what stands in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    tulip = config["model_type"] == TULIP_MODEL_TYPE
    sources = {name: value for name, value in run["sources"].items() if value is not None and name not in LOCAL_FIELDS}
    sources["captions"] = run["data"]["rows"]
    second = getattr(arguments, "pad", "eos") == "zero"  # as SDXL pads its second encoder's prompts
    use = USE_CLIP.format(length=config["max_position_embeddings"])
    if tulip:
        use = USE_TULIP_SECOND if second else USE_TULIP
    return CARD.format(
        tags="tulip, clip" if tulip else "clip",
        stage=run["stage"],
        steps=f"{arguments.steps} steps" if arguments.steps is not None else f"{arguments.epochs:g} epochs",
        batch_size=arguments.batch_size,
        precision="float32" if arguments.mixed_precision == "no" else arguments.mixed_precision,
        sources="\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in sources.items()),
        figures="\n".join(f"| {name} | {value:.4g} |" for name, value in run["figures"].items()),
        use=use + (USE_FINELIP if (folder / FINELIP_FOLDER).is_dir() else ""),
    )


def describe_product(folder: Path) -> str:
    """One line that names what a stage left in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    beside = [name for name in ("image_encoder", FINELIP_FOLDER) if (folder / name).is_dir()]
    parts = f", with {' and '.join(f'{name}/' for name in beside)}" if beside else ""
    return f"{config['architectures'][0]} for {config['max_position_embeddings']} tokens written to {folder}{parts}"
