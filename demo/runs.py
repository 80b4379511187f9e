"""One finished comparison: its pictures as files, what is said below them, and the strip to take away."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from tulip_diffusion import __version__
from tulip_diffusion.evaluation.details import hits
from tulip_diffusion.evaluation.side_by_side import Panel, make_strip
from tulip_diffusion.prompt_description import word_positions

from . import markup
from .settings import Settings
from .studio import Studio
from .verdicts import judge


@dataclass(frozen=True, eq=False)  # gradio hashes what it keeps for a session
class Run:
    """Paths of the pictures, notes (HTML) and scores by the encoders' titles; `strip` is the path of the PNG."""

    settings: Settings
    pictures: dict[str, str]
    notes: dict[str, str]
    scores: dict[str, str]
    unseen: dict[str, str]
    strip: str

    @property
    def caption(self) -> str:
        """Seed and scores, in one line."""
        scores = [f"{title} {score.split(' details')[0]}" for title, score in self.scores.items() if score]
        return " · ".join([f"seed {self.settings.seed}", *scores])


def finish(studio: Studio, settings: Settings, pictures: Mapping[str, Image.Image]) -> Run:
    """Judge the pictures of all encoders and keep them as files."""
    notes, scores, unseen = judge_all(studio, settings, pictures)
    for picture in pictures.values():
        record(studio, settings, picture)
    return Run(
        settings,
        {title: keep(picture, title.lower().replace("/", "-")) for title, picture in pictures.items()},
        notes,
        scores,
        unseen,
        keep(strip_of(studio, settings, pictures, scores), f"tulip-strip-seed-{settings.seed}"),
    )


def judge_all(
    studio: Studio, settings: Settings, pictures: Mapping[str, Image.Image]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """By the encoders' titles: the note below each picture (HTML), its score, and the words that were not seen.

    A prompt from beyond the embedded family's world has no scores, and its notes tell lost words alone: what else
    there is to say, the page says once. Other models' pictures have none either: they are not of that world.
    """
    prompt, unseen = studio.describe(settings.prompt)[0], studio.unseen(settings)
    if not studio.weights.embedded:
        return {title: markup.note(unseen[title]) for title in pictures}, dict.fromkeys(pictures, ""), unseen
    ours = {title: picture for title, picture in pictures.items() if title in studio.titles}
    scores = dict.fromkeys(pictures, "") | {title: hits(prompt, picture) for title, picture in ours.items()}
    notes = {
        title: markup.note(unseen[title], judge(prompt, picture), scores[title])
        if scores[title] or unseen[title]
        else ""
        for title, picture in ours.items()
    }
    others = {title: markup.note(unseen[title]) for title in pictures if title not in ours}
    return notes | others, scores, unseen


def strip_of(
    studio: Studio, settings: Settings, pictures: Mapping[str, Image.Image], scores: Mapping[str, str]
) -> Image.Image:
    """The pictures over the prompt."""
    text, _ = studio.describe(settings.prompt)
    words = word_positions(text, studio.pipelines[studio.titles[0]].tokenizer)
    strip = make_strip([Panel(picture, title, scores[title]) for title, picture in pictures.items()], words)
    record(studio, settings, strip)
    return strip


def record(studio: Studio, settings: Settings, picture: Image.Image) -> None:
    """Put all that is needed to draw `picture` again into its PNG metadata, as JSON."""
    weights = studio.weights
    encoders = {name: getattr(weights, name) for name in ("tulip", "longclip", "finelip")}
    sources = {"model": weights.model or "embedded", **encoders, **({"also": weights.also} if weights.also else {})}
    text = json.dumps({**settings.as_dict(), **sources, "version": __version__})
    picture.info["tulip-diffusion"] = text  # gradio writes the texts of `info` into the file


def keep(picture: Image.Image, name: str) -> str:
    """Write a PNG into the folder that the page serves its own files from; returns its path."""
    return save_pil_to_cache(picture, cache_dir=get_upload_folder(), name=name, format="png")
