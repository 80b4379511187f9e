"""What carries stage 1's gain at length: one small budget for every row, on the embedded family's second slot.

    python -m tulip_diffusion.training.embedded.unpack --out outputs/ablation
    python -m tulip_diffusion.training.embedded.pairs --out outputs/ablation/captions --count 8000
    git archive 90ed194 tulip_diffusion/assets/encoders/tulip/text_encoder_2 | tar -x -C outputs/ablation
    python training/runs/stage1_ablation.py --folder outputs/ablation \\
        --start outputs/ablation/tulip_diffusion/assets/encoders/tulip/text_encoder_2

Every row goes on from the encoder that 0.1.0 shipped, which had read texts of up to 520 tokens without gaps; what is
measured stands in the validation split. The first slot is the shipped one in every row. A row that is there already
is not trained or measured again.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from tulip_diffusion.data import open_captions
from tulip_diffusion.embedded import ASSETS, load_embedded_pipeline
from tulip_diffusion.evaluation.details import details, share
from tulip_diffusion.evaluation.drawing import draw_captions
from tulip_diffusion.evaluation.fidelity import fidelity
from tulip_diffusion.evaluation.plots import figure
from tulip_diffusion.evaluation.prompts import prompts_of
from tulip_diffusion.evaluation.reading import read, summarize_reading, text_states
from tulip_diffusion.evaluation.records import markdown, plain
from tulip_diffusion.files import write_text
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection
from tulip_diffusion.scenes.read_out import load_read_out
from tulip_diffusion.training import loading
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.distill import Distillation
from tulip_diffusion.training.embedded.tulip import ReferenceDistillation
from tulip_diffusion.training.loop import build_accelerator, run_stage
from tulip_diffusion.training.student import scale_attention

BARE = {"position_gaps": 0, "long_pooled_weight": 0.0}
GAPS = {**BARE, "position_gaps": 2048}
RECIPE = {"position_gaps": 2048, "long_pooled_weight": 1.0}
READ = ("500", "1000")
DRAWN = {"full": "225", "1000": "1,000"}


@dataclass(frozen=True)
class Row:
    """One line of the table: a training, None for the start itself, and how its weights are read.

    `share` is that of the trained weights in a mean with those of the start; `taught_scaled` trains with attention
    scaling, which otherwise is switched on for reading alone.
    """

    name: str
    training: dict[str, Any] | None = field(default_factory=dict)
    scaling: str = "log"
    base: int = 77
    share: float = 1.0
    taught_scaled: bool = False
    seed: int = 0


ROWS = (
    Row("start, read without scaling", None, "none"),
    Row("start", None),
    Row("base, read without scaling", BARE, "none"),
    Row("base", BARE),
    Row("+ gaps, read without scaling", GAPS, "none"),
    Row("+ gaps", GAPS),
    Row("+ gaps + long pooled", RECIPE),
    Row("the same, seed 1", RECIPE, seed=1),
    Row("taught with scaling", RECIPE, taught_scaled=True),
    Row("the same, seed 1, taught with scaling", RECIPE, taught_scaled=True, seed=1),
    Row("learning rate 2e-4", {**RECIPE, "learning_rate": 2e-4}),
    Row("learning rate 1e-3", {**RECIPE, "learning_rate": 1e-3}),
    Row("base of the logarithm 40", RECIPE, base=40),
    Row("base of the logarithm 160", RECIPE, base=160),
    Row("mean with the start, 0.7", RECIPE, share=0.7),
    Row("mean with the start, 0.5", RECIPE, share=0.5),
)


def train(row: Row, options: argparse.Namespace) -> Path:
    """The folder of the row's encoder, trained unless it is there."""
    if row.training is None:
        return options.start
    words = [f"{name}-{value}" for name, value in row.training.items()]
    folder = options.out / "-".join([*words, f"seed-{row.seed}", *(["scaled"] if row.taught_scaled else [])])
    if (folder / "run.json").exists():
        return folder
    settings = DistillArguments(
        output_dir=str(folder),
        steps=options.steps,
        batch_size=options.batch,
        warmup_steps=5,
        weight_decay=0.01,
        length=520,
        pad="zero",
        freeze_token_embedding=False,
        attention_scaling="none",
        teacher_cache="off",
        num_workers=0,
        save_every=1000,
        seed=row.seed,
        **{"learning_rate": 5e-4, **row.training},
    )
    run_stage(build_stage(row, options, settings), settings, build_accelerator(settings))
    return folder


def build_stage(row: Row, options: argparse.Namespace, settings: DistillArguments) -> Distillation:
    """The row's training, on captions whose references are known."""
    clip = options.folder / "clip-g"
    student = TulipTextModelWithProjection.from_pretrained(options.start, dtype=torch.float32)
    stage = ReferenceDistillation(
        loading.text_encoder(str(clip)),
        student,
        AutoTokenizer.from_pretrained(clip),
        open_captions(str(options.folder / "captions" / "captions.jsonl")),
        settings,
    )
    if row.taught_scaled:
        scale_attention(student, "log")
    return stage


def encoder_of(row: Row, options: argparse.Namespace) -> TulipTextModelWithProjection:
    """The row's weights, read as the row says."""
    config = {"attention_scaling": row.scaling, "attention_scaling_base": row.base, "dtype": torch.float32}
    encoder = TulipTextModelWithProjection.from_pretrained(train(row, options), **config).eval()
    start = TulipTextModelWithProjection.from_pretrained(options.start, dtype=torch.float32).state_dict()
    mean = {name: start[name].lerp(weight, row.share) for name, weight in encoder.state_dict().items()}
    encoder.load_state_dict(mean)
    return encoder


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """Fidelity up to 77 tokens, colours read off the states and details drawn, of the validation split."""
    encoder = encoder_of(row, options)
    clip = load_embedded_pipeline("clip", options.assets)
    short = [caption.text for caption in prompts_of("short", 64, "validation")]
    kept = fidelity(encoder, clip.text_encoder_2, clip.tokenizer_2, short, clip.tokenizer_2.pad_token_id)
    figures: dict[str, Any] = {"token error": kept["penultimate_error"], "pooled cosine": kept["pooled_cosine"]}
    pipeline = load_embedded_pipeline("tulip", options.assets, text_encoder_2=encoder, unet=clip.unet, vae=clip.vae)
    pipeline.set_progress_bar_config(disable=True)
    heads = load_read_out(options.assets / "read_out" / "g.safetensors")
    for prompts in (*READ, "references"):
        captions = prompts_of(prompts, options.count, "validation")
        states = [rows.chunk(2, dim=-1)[1] for rows in text_states(pipeline, captions)]
        colours = summarize_reading({"colour": read(states, captions, heads)["colour"]})
        far = prompts == "references"
        name = "far references read" if far else f"colour read, {int(prompts):,}"
        figures[name] = colours["colour of references beyond 77" if far else "colour"]
    for prompts, tokens in DRAWN.items():
        captions = prompts_of(prompts, options.pictures, "validation")
        drawn = draw_captions(pipeline, captions, steps=12)
        figures[f"drawn, {tokens}"] = share(details(drawn, captions))
    return plain(figures)


def result(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """The row's figures, from disk where they are."""
    path = options.out / f"{row.name.replace(' ', '-').replace(',', '')}.json"
    if not path.exists():
        write_text(path, json.dumps(measure(row, options), indent=1))
    return json.loads(path.read_text())


def number(value: Any) -> float:
    return value["mean"] if isinstance(value, dict) else value


def interval(value: Any) -> float:
    return (value["high"] - value["low"]) / 2 if isinstance(value, dict) else 0.0


def table(results: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown, with the half of their 95 % intervals where they have one."""
    columns = list(next(iter(results.values())))
    rows = []
    for name, figures in results.items():
        cells = [f"{number(figures[column]):.3f}" for column in columns]
        halves = [f" ± {half:.3f}" if (half := interval(figures[column])) else "" for column in columns]
        rows.append([name, *(cell + half for cell, half in zip(cells, halves, strict=True))])
    return markdown(["", *columns], rows)


def draw(results: dict[str, dict[str, Any]], out: Path) -> None:
    """A panel a figure, a bar a row."""
    columns = list(next(iter(results.values())))
    with figure(out, columns=len(columns), size=(2.4, 0.32 * len(results) + 0.8)) as panels:
        for axes, column in zip(panels[0], columns, strict=True):
            values = [figures[column] for figures in results.values()]
            axes.barh(list(results), list(map(number, values)), xerr=list(map(interval, values)), color="#b0205a")
            axes.invert_yaxis()
            axes.set_title(column, fontsize=9)
            if column != "token error":
                axes.set_xlim(min(map(number, values)) - 0.1, 1.0)
            if axes is not panels[0][0]:
                axes.set_yticklabels([])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="holds clip-g and captions, see above")
    parser.add_argument("--start", type=Path, required=True, help="encoder that every row goes on from")
    parser.add_argument("--assets", type=Path, default=ASSETS, help="family whose UNet draws")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--count", type=int, default=24, help="texts read of each kind")
    parser.add_argument("--pictures", type=int, default=12, help="pictures drawn of each kind")
    parser.add_argument("--out", type=Path, default=Path("outputs/stage1-ablation"))
    options = parser.parse_args()
    results = {}
    for row in ROWS:
        results[row.name] = result(row, options)
        print(f"{row.name}: {json.dumps({k: round(number(v), 3) for k, v in results[row.name].items()})}", flush=True)
    budget = {name: getattr(options, name) for name in ("steps", "batch", "count", "pictures")}
    record = {"budget": budget, "split": "validation", "rows": results}
    write_text(options.out / "stage1_ablation.json", json.dumps(record, indent=1))
    draw(results, options.out / "stage1_ablation.png")
    print(f"\n{table(results)}")


if __name__ == "__main__":
    main()
