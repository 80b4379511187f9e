"""`ablate finelip`: what each part of FineLIP adds, on stretched CLIP and on TULIP.

Every row is trained from the same towers, on the same captions in the same order for the same number of steps, and
ranked by the score that it was trained for; FineLIP* ranks the late interaction's weights by global and fine score
together. The first row is the plain baseline, stretched CLIP under CLIP's own contrastive loss.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import CLIPTextModelWithProjection

from tulip_diffusion.evaluation.datasets import world_set
from tulip_diffusion.evaluation.embeddings import embed
from tulip_diffusion.evaluation.encoders import Encoder, Score
from tulip_diffusion.evaluation.fidelity import fidelity
from tulip_diffusion.evaluation.records import agree_on_settings, markdown, write_record
from tulip_diffusion.evaluation.retrieval import recall_at_k
from tulip_diffusion.models.checkpoints import load_image_encoder
from tulip_diffusion.models.finelip import (
    SCORES,
    FineLIP,
    fine_score,
    global_score,
    late_interaction,
    load_finelip,
    slot_similarity,
)
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection

from ..baselines import finetune_clip
from ..config import FineLIPArguments, FinetuneArguments
from ..finelip import finelip
from .method import FOLDERS, trainable
from .pairs import training_pairs

SETS = ("world-short", "world-long")
BASELINE = "stretched CLIP, contrastive"


SETTINGS = ("steps", "batch", "rate", "refinement_rate", "anchor", "captions", "seed", "assets")


class FineLIPAblation:
    """The rows of one command, on common data. `read` opens "clip" or "tulip" of the family anew."""

    def __init__(self, options: argparse.Namespace, read: Callable[[str], Encoder]):
        self.options, self.read = options, read
        settings = {name: str(getattr(options, name)) for name in SETTINGS}
        agree_on_settings(options.work / "settings.json", settings, FOLDERS)
        self.device = str(read("clip").towers.text_encoder.device)
        self.pairs = training_pairs(options.captions, options.seed)
        self.sets = [world_set(name, options.count) for name in SETS]

    def common(self, folder: Path) -> dict[str, Any]:
        """Training arguments that all rows share."""
        options = self.options
        return {
            "output_dir": str(folder),
            "steps": options.steps,
            "batch_size": options.batch,
            "learning_rate": options.rate,
            "weight_decay": 0.01,
            "warmup_steps": min(20, options.steps // 5),
            "attn": options.attn,
            "num_workers": 0,
            "resume": "auto",
            "seed": options.seed,
        }

    def baseline(self) -> dict[str, Any]:
        """Figures of stretched CLIP under CLIP's own contrastive loss, trained unless it is on disk."""
        folder = self.options.work / "baseline"
        clip = self.read("clip")
        if not (folder / "run.json").exists():
            arguments = FinetuneArguments(**self.common(folder), stretch=True)
            finetune_clip(trainable(clip), clip.tokenizer, self.pairs, arguments)
        text_encoder = CLIPTextModelWithProjection.from_pretrained(folder).eval()
        image_encoder = load_image_encoder(folder / "image_encoder")
        trained = clip.towers._replace(text_encoder=text_encoder, image_encoder=image_encoder)
        encoder = Encoder(BASELINE, trained, clip.tokenizer, device=self.device)
        return self.recall(encoder) | self.kept(text_encoder)

    def train(self, on: str, score: str) -> FineLIP:
        """FineLIP on `on` ("clip" or "tulip") under `score`, trained unless it is on disk."""
        folder = self.options.work / f"{on}-{score}"
        if not (folder / "run.json").exists():
            clip, own = self.read("clip"), self.read(on).towers
            student = own.text_encoder if isinstance(own.text_encoder, TulipTextModelWithProjection) else None
            arguments = FineLIPArguments(
                **self.common(folder),
                refinement_learning_rate=self.options.refinement_rate,
                score=score,  # type: ignore[arg-type]  # a key of SCORES
                anchor_weight=self.options.anchor,
                pad="zero",  # the tower of SDXL's second slot
            )
            towers = trainable(clip)._replace(image_encoder=own.image_encoder)
            finelip(towers, clip.tokenizer, self.pairs, arguments, student)
        return load_finelip(folder)

    def rows(self, on: str) -> dict[str, dict[str, Any]]:
        """What each score gives on stretched CLIP or on TULIP."""
        found = {}
        for name, score in SCORES.items():
            model = self.train(on, name)
            encoder = Encoder(f"{on}, {name}", model, self.read("clip").tokenizer, device=self.device)
            kept = self.kept(model.text_encoder)
            found[f"{on}, {name}"] = self.recall(encoder, score) | kept
            if score is late_interaction:
                found[f"{on}, FineLIP*"] = self.recall(encoder, fine_score) | kept
        return found

    def recall(self, encoder: Encoder, score: Score | None = None) -> dict[str, Any]:
        """R@1 on every set, and the slots' similarity where the score looks at them."""
        figures: dict[str, Any] = {}
        for data in self.sets:
            images, texts = embed(encoder, data)
            found = recall_at_k(images, texts, data.image_of_text, (1,), score=score)
            figures |= {f"{data.name} {name}": value for name, value in found.items()}
            if score not in (None, global_score):
                figures[f"{data.name} slots"] = (slot_similarity(images) + slot_similarity(texts)).item() / 2
        return figures

    def kept(self, text_encoder: Any) -> dict[str, Any]:
        """How much of what SDXL reads is left, at 77 tokens."""
        clip = self.read("clip")
        texts, pad_id = self.sets[0].captions, clip.tokenizer.pad_token_id
        return fidelity(text_encoder, clip.towers.text_encoder, clip.tokenizer, texts, pad_id)


def run(options: argparse.Namespace, read: Callable[[str], Encoder]) -> None:
    """The command: train, rank, write finelip.json and finelip.md."""
    ablation = FineLIPAblation(options, read)
    results = {BASELINE: ablation.baseline(), **ablation.rows("clip"), **ablation.rows("tulip")}
    write_record("finelip", options, results, table(results, options.count))


def table(results: dict[str, dict[str, Any]], count: int) -> str:
    """The results as Markdown, one row a trained model and score."""
    header = [f"{name} {way}_R@1" for name in SETS for way in ("i2t", "t2i")] + [f"{name} slots" for name in SETS]
    header += ["penultimate_error"]
    rows = [[name, *(figures.get(column) for column in header)] for name, figures in results.items()]
    error = 1.96 * 0.5 / count**0.5
    return f"R@1 among {count} (95 % within ± {error:.3f}), slots' mean cosine\n\n{markdown(['', *header], rows)}"
