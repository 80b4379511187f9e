"""`ablate NAME`: what one choice of the method is worth, by training the embedded tower with it or without.

Every variant starts from the same CLIP towers (second slot), sees the same captions in the same order for the same
number of steps, and is judged on the same held-out texts: retrieval of short, of long and of 500-token captions and of
captions that differ in one late detail; and how much of what SDXL reads is kept at 77 tokens. Steps are few, so
differences between variants count, not the figures themselves.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from tulip_diffusion.evaluation.encoders import Encoder
from tulip_diffusion.evaluation.fidelity import fidelity
from tulip_diffusion.evaluation.plots import figure
from tulip_diffusion.evaluation.records import agree_on_settings, markdown, plain, write_record
from tulip_diffusion.evaluation.retrieval import recall_at_k
from tulip_diffusion.files import write_text
from tulip_diffusion.models.checkpoints import ClipTowers, load_clip
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection
from tulip_diffusion.scenes.render import render

from ..config import DistillArguments, ExpandArguments
from ..distill import distill
from ..expand import Expansion, expand_positions
from ..kernels import usual_kernels
from ..loop import build_accelerator, run_stage
from .pairs import SETS, held_out, training_pairs
from .variants import ABLATIONS, Variant

INITIAL_LOGIT_SCALE = float(np.log(1 / 0.07))  # CLIP's: the family ships none
LENGTH = 248
STAGE2: dict[str, Any] = {"length": LENGTH, "anchor_weight": 0.0}  # unless the variant says otherwise
CHUNK_TOKENS = 8192  # captions are sorted by length and padded to few others; changes no result


FOLDERS = "--work and --out"
# What a result depends on, beside the variant itself; all that share a folder must agree in it.
SETTINGS = ("stage1_steps", "stage2_steps", "batch", "stage1_rate", "stage2_rate", "captions", "seed", "assets")


def window_of(encoder: Encoder) -> int:
    """Tokens that the CLIP has positions for."""
    return encoder.towers.text_encoder.config.max_position_embeddings


def trainable(encoder: Encoder) -> ClipTowers:
    """Both towers, at the temperature that CLIP's training starts with."""
    return ClipTowers(encoder.towers.text_encoder, encoder.towers.image_encoder, INITIAL_LOGIT_SCALE)


def stage2_name(variant: Variant) -> str:
    """A folder for what both stages of `variant` train with; ablations share the rows that they have in common."""
    usual = {field.name: field.default for field in fields(ExpandArguments)} | STAGE2
    own = [f"{name}-{value}" for name, value in sorted((variant.stage2 or {}).items()) if value != usual[name]]
    return "-".join(["stage2", *map(str, variant.stage1.values()), *own, *filter(None, [variant.rotations])])


class Ablation:
    """The variants of one command, on common data.

    Args:
        options: those of `ablate NAME`.
        read_clip: opens the family's CLIP anew, since a stage trains it in place.
    """

    def __init__(self, options: argparse.Namespace, read_clip: Callable[[], Encoder]):
        self.options, self.read_clip = options, read_clip
        settings = {name: str(getattr(options, name)) for name in SETTINGS}
        agree_on_settings(options.work / "settings.json", settings, FOLDERS)
        judged = settings | {"count": str(options.count), "split": options.split}
        agree_on_settings(options.out / "settings.json", judged, FOLDERS)
        self.device = str(read_clip().towers.text_encoder.device)
        self.kernels = usual_kernels(self.device, options.attn)
        self.pairs = training_pairs(options.captions, options.seed)
        self.sets = held_out(options.count, options.split)

    def common(self, stage: str, folder: Path) -> dict[str, Any]:
        """Training arguments that all variants share; `stage` is "stage1" or "stage2"."""
        options = self.options
        return {
            "output_dir": str(folder),
            "steps": getattr(options, f"{stage}_steps"),
            "batch_size": options.batch,
            "learning_rate": getattr(options, f"{stage}_rate"),
            "weight_decay": 0.01,
            "warmup_steps": min(20, getattr(options, f"{stage}_steps") // 5),
            **self.kernels,
            "chunk_tokens": CHUNK_TOKENS,
            "pad": "zero",  # the tower of SDXL's second slot
            "num_workers": 0,
            "save_every": 50,
            "keep_last": 1,
            "resume": "auto",
            "seed": options.seed,
        }

    def stage1(self, variant: Variant) -> TulipTextModelWithProjection:
        """The student of stage 1, trained unless an earlier variant, of this ablation or another, left it on disk."""
        folder = self.options.work / "-".join(["stage1", *map(str, variant.stage1.values())])
        if not (folder / "run.json").exists():
            encoder = self.read_clip()
            arguments = {"length": LENGTH, "teacher_cache": "off", "freeze_token_embedding": False, **variant.stage1}
            settings = DistillArguments(**self.common("stage1", folder), **arguments)
            distill(encoder.towers.text_encoder, encoder.tokenizer, self.pairs, settings)
        return TulipTextModelWithProjection.from_pretrained(folder).eval()

    def train(self, variant: Variant) -> Encoder:
        """The towers that the variant's stages make."""
        if variant.stage2 is None:
            student, encoder = self.stage1(variant), self.read_clip()
            if variant.rotations == "test":
                expand_positions(student, window_of(encoder), LENGTH, alpha=8.0)
            return Encoder(
                variant.name, encoder.towers._replace(text_encoder=student), encoder.tokenizer, device=self.device
            )
        folder = self.options.work / stage2_name(variant)
        if not (folder / "run.json").exists():
            self.stage2(variant, folder)
        return Encoder(variant.name, load_clip(folder), self.read_clip().tokenizer, device=self.device)

    def stage2(self, variant: Variant, folder: Path) -> None:
        """Train both towers of the variant into `folder`."""
        student, encoder = self.stage1(variant), self.read_clip()
        settings = ExpandArguments(**self.common("stage2", folder), **{**STAGE2, **(variant.stage2 or {})})
        accelerator = build_accelerator(settings)
        stage = Expansion(trainable(encoder), student, encoder.tokenizer, self.pairs, settings)
        if variant.rotations == "own":
            for config in (student.config, student.text_model.config):
                assert config.rope_parameters is not None  # stage 2 has set them
                config.rope_parameters = {**config.rope_parameters, "length": window_of(encoder)}
        run_stage(stage, settings, accelerator)

    def measure(self, encoder: Encoder) -> dict[str, Any]:
        """Retrieval in both directions on every set, and fidelity to CLIP at 77 tokens."""
        figures: dict[str, Any] = {}
        for name, captions in self.sets.items():
            images = encoder.embed_images([render(caption.scene) for caption in captions])
            texts = encoder.embed_texts([caption.text for caption in captions])
            figures[name] = recall_at_k(images, texts, range(len(captions)), ks=(1, 5))
        clip = self.read_clip()
        short = [caption.text for caption in self.sets["short"]]
        student, teacher = encoder.towers.text_encoder, clip.towers.text_encoder
        kept = fidelity(student, teacher, clip.tokenizer, short, clip.tokenizer.pad_token_id)
        return {**figures, "fidelity": kept}

    def result(self, variant: Variant) -> dict[str, Any]:
        """The variant's figures, from disk where they are."""
        path = self.options.out / f"{file_name(variant)}.json"
        if not path.exists():
            figures = plain(self.measure(self.train(variant)))
            write_text(path, json.dumps({"variant": asdict(variant), "figures": figures}, indent=1))
        return json.loads(path.read_text())["figures"]


def file_name(variant: Variant) -> str:
    """The variant's name as a file's."""
    return variant.name.replace(",", "").replace("'", "").replace(" ", "-").lower()


def run(options: argparse.Namespace, read_clip: Callable[[], Encoder]) -> None:
    """The command. `read_clip` opens the towers of the family's CLIP, anew at each call."""
    options.out = options.out or Path("outputs/ablations") / options.name
    ablation = Ablation(options, read_clip)
    clip = ablation.measure(read_clip())
    results = {"CLIP": clip} | {variant.name: ablation.result(variant) for variant in ABLATIONS[options.name]}
    text = table(results, options.count)
    write_record("ablation", options, results, text)
    plot(results, options.out / "ablation.png")
    print(text)


def table(results: dict[str, Any], count: int) -> str:
    """The results as Markdown, one row a variant."""
    header = ["", *(f"{name} {way}" for name in SETS for way in ("i2t", "t2i"))]
    header += ["pooled cosine", "token cosine", "token error"]
    rows = [
        [name, *(result[of][f"{way}_R@1"] for of in SETS for way in ("i2t", "t2i")), *result["fidelity"].values()]
        for name, result in results.items()
    ]
    error = 1.96 * 0.5 / count**0.5
    title = f"R@1 among {count} pairs (95 % interval ± {error:.3f} or less), fidelity to CLIP at 77 tokens"
    return f"{title}\n\n{markdown(header, rows)}"


def plot(results: dict[str, Any], out: Path) -> None:
    """R@1, mean of both directions, and fidelity; one column a variant."""
    names: Sequence[str] = list(results)
    with figure(out, columns=2, size=(max(5.0, 0.7 * len(names)), 4)) as panels:
        retrieval, kept = panels[0]
        for of in SETS:
            heights = [(result[of]["i2t_R@1"] + result[of]["t2i_R@1"]) / 2 for result in results.values()]
            retrieval.plot(names, heights, marker="o", label=of)
        for what in ("pooled_cosine", "penultimate_cosine"):
            heights = [result["fidelity"][what] for result in results.values()]
            kept.plot(names, heights, marker="o", label=what.replace("_", " "))
        retrieval.set(ylabel="R@1, mean both ways", ylim=(0, 1.02))
        kept.set(ylabel="fidelity to CLIP at 77 tokens")
        for axes in (retrieval, kept):
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
            axes.legend(frameon=False)
