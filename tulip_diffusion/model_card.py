"""The card of an encoder: what the Hub wants to know of it, how it is used, what made it, and where it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .arguments import HUB_ID
from .models.positions import TULIP_MODEL_TYPE, length_told

# Of a run's sources, for run.json alone.
LOCAL_FIELDS = ("data_split", "data_format", "stream", "shuffle_rows", "max_bad_share", "hidden_act")
HERE = "this folder"  # where an encoder has no id on the Hub
TRANSFORMERS = """from {library} import {name}

{slot} = {name}.from_pretrained("{repo}")  # {purpose}"""
FINELIP = """

from tulip_diffusion.models.finelip import load_finelip

model = load_finelip("{repo}")  # both towers and the refinement, for retrieval"""
DIFFUSERS = """import torch
from tulip_diffusion import {imported}

pipe = StableDiffusionXLTulipPipeline.from_pretrained(
    "stabilityai/stable-diffusion-xl-base-1.0",
    {component},
    dtype=torch.float16,
)
pipe("a prompt of any length").images[0].save("picture.png")"""
TEXT = """# {title}

{summary}

| | |
|---|---|
{facts}

## Use

With transformers:

```python
{transformers}
```

In Stable Diffusion XL, with diffusers and tulip_diffusion, after [TULIP](https://arxiv.org/abs/2410.10034):

```python
{diffusers}
```

## Limits

{limits}
"""


@dataclass(frozen=True)
class Author:
    """What no file says of an encoder, and only who shares it knows.

    Args:
        license: as the Hub abbreviates it, such as "mit" or "apache-2.0".
        base_model: the Hub id of the CLIP that it was made from; by default the run's teacher, if that is an id.
        language: of its captions, as codes such as "en".
        datasets: Hub ids of its captions; by default the run's data, if that is an id.
        pictures: files beside the card, drawn with it.
    """

    license: str | None = None
    base_model: str | None = None
    language: Sequence[str] = ()
    datasets: Sequence[str] = ()
    pictures: Sequence[str] = ()


def model_card(
    config: dict[str, Any],
    run: dict[str, Any] | None = None,
    author: Author | None = None,
    *,
    title: str = "",
    repo: str = HERE,
    second_slot: bool | None = None,
    finelip: bool = False,
) -> ModelCard:
    """The card of the encoder that `config` describes.

    `run` is what training left in its run.json: teacher, data, steps and figures are read from it, and left out
    without one. `second_slot` says whether it is for SDXL's second encoder; by default the run's padding does.
    """
    run, author = run or {}, author or Author()
    tulip = config["model_type"] == TULIP_MODEL_TYPE
    if second_slot is None:
        second_slot = run.get("arguments", {}).get("pad") == "zero"  # as SDXL pads its second encoder's prompts
    sources = run.get("sources", {})
    base_model = author.base_model or hub_id(sources.get("teacher"))
    data = ModelCardData(
        license=author.license,
        language=list(author.language) or None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=base_model,
        base_model_relation="finetune" if base_model else None,
        datasets=list(author.datasets) or [found for found in [hub_id(sources.get("data"))] if found] or None,
        tags=[*(["tulip"] if tulip else []), "clip", "text-encoder", "stable-diffusion-xl", "long-prompts"],
    )
    use = python(config, tulip, second_slot, repo)
    text = TEXT.format(
        title=title or "A text encoder" + (f" trained with `tulip-diffusion train {run['stage']}`" if run else ""),
        summary=summary(config, tulip, second_slot),
        facts="\n".join(f"| {name} | {value} |" for name, value in facts(config, run, tulip, author, base_model)),
        transformers=use[0] + (FINELIP.format(repo=repo) if finelip else ""),
        diffusers=use[1],
        limits="\n".join(f"- {limit}" for limit in limits(config, run, tulip, base_model)),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}{figures(run)}{samples(author.pictures)}")


def hub_id(source: Any) -> str | None:
    """`source` where it is an id on the Hub, and no file or folder."""
    return source if isinstance(source, str) and HUB_ID.fullmatch(source) and not Path(source).exists() else None


def summary(config: dict[str, Any], tulip: bool, second_slot: bool) -> str:
    slot = "second" if second_slot else "first"
    what = "CLIP's text encoder with relative positions in the place of its table" if tulip else "a CLIP text encoder"
    reads = "prompts of any length" if tulip else f"prompts of {config['max_position_embeddings']} tokens"
    return f"This is {what}. It reads {reads}, and stands in Stable Diffusion XL's {slot} slot."


def facts(
    config: dict[str, Any], run: dict[str, Any], tulip: bool, author: Author, base_model: str | None
) -> list[tuple[str, Any]]:
    """Rows of the table: what the encoder is, and what made it."""
    arguments, sources = run.get("arguments", {}), run.get("sources", {})
    told = [("base model", base_model), ("licence", author.license)]
    told += [(name.replace("_", " "), value) for name, value in sources.items() if name not in LOCAL_FIELDS]
    if run:
        steps = arguments.get("steps")
        length = f"{steps} steps" if steps is not None else f"{arguments.get('epochs', 0):g} epochs"
        precision = arguments.get("mixed_precision")
        told += [
            ("captions", run.get("data", {}).get("rows")),
            ("training", f"{length}, {arguments.get('batch_size')} captions a step"),
            ("precision", "float32" if precision == "no" else precision),
        ]
    told += [("trained length", f"{trained_length(config)} tokens"), ("positions", positions(config))]
    if tulip:
        told.append(("attention scaling", config.get("attention_scaling", "none")))
    if run:
        told.append(("made with", f"tulip-diffusion {run.get('version')}, commit {run.get('commit')}"))
    return [(name, value) for name, value in told if value is not None]


def trained_length(config: dict[str, Any]) -> int:
    return length_told(config["max_position_embeddings"], config.get("rope_parameters"))


def positions(config: dict[str, Any]) -> str:
    encoding, rope = config.get("position_encoding"), config.get("rope_parameters") or {}
    if encoding == "rope":
        rest = ", ".join(f"{name} {value}" for name, value in rope.items() if name != "rope_type")
        return f"rotary, {rope.get('rope_type', 'default')}{f' ({rest})' if rest else ''}"
    return "contextual (CoPE)" if encoding == "cope" else f"a table of {config['max_position_embeddings']}"


def python(config: dict[str, Any], tulip: bool, second_slot: bool, repo: str) -> tuple[str, str]:
    """The lines for transformers, and those for diffusers."""
    slot = "text_encoder_2" if second_slot else "text_encoder"
    projecting = "TulipTextModelWithProjection" if tulip else "CLIPTextModelWithProjection"
    name = projecting if second_slot or not tulip else "TulipTextModel"
    library = "tulip_diffusion" if tulip else "transformers"
    purpose = f"for SDXL's {'second' if second_slot else 'first'} slot"
    if not tulip:
        purpose = f"reads {config['max_position_embeddings']} tokens"
    component = f'tulip="{repo}"'
    imported = "StableDiffusionXLTulipPipeline"
    if second_slot:
        imported = f"{imported}, load_text_encoder"
        component = f'text_encoder_2=load_text_encoder("{repo}", dtype=torch.float16)'
    with_transformers = TRANSFORMERS.format(library=library, name=name, slot=slot, repo=repo, purpose=purpose)
    return with_transformers, DIFFUSERS.format(imported=imported, component=component)


def limits(config: dict[str, Any], run: dict[str, Any], tulip: bool, base_model: str | None) -> list[str]:
    length, teacher = trained_length(config), base_model or run.get("sources", {}).get("teacher")
    found = [f"It was trained with texts of up to {length} tokens. What it makes of longer ones was not trained."]
    if tulip:
        found.append(
            "It has no table of positions, and programs that know CLIP alone cannot run it: some load its weights "
            "without an error and draw wrong pictures. Use tulip_diffusion, or its single file, which they refuse."
        )
    else:
        found[0] = f"It reads {config['max_position_embeddings']} tokens; the rest of a prompt is cut off."
    found.append(
        f"It stands in for {teacher or 'the CLIP that it was made from'}. A checkpoint that was fine-tuned with its "
        "own text encoders needs an encoder that was made from those."
    )
    return [*found, "It inherits what that CLIP took from its training data, its gaps and its prejudices included."]


def figures(run: dict[str, Any]) -> str:
    """The run's last figures, where there are any."""
    rows = [f"| {name} | {value:.4g} |" for name, value in run.get("figures", {}).items()]
    if not rows:
        return ""
    return "\n".join(
        ("\n## Figures\n\nThe last ones of its training.\n", "| figure | value |", "|---|---|", *rows, "")
    )


def samples(pictures: Sequence[str]) -> str:
    if not pictures:
        return ""
    return "\n## Pictures\n\n" + "\n\n".join(f"![Drawn with this encoder]({picture})" for picture in pictures) + "\n"
