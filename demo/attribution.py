"""Which words the UNet looks at under each encoder: the prompt is drawn once more, and its attention written down."""

import base64
import io
import threading
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from tulip_diffusion.evaluation.attribution import Attribution, attribute
from tulip_diffusion.models.positions import CLIP_LENGTH

from . import markup
from .settings import Settings
from .studio import Studio

THUMBNAIL = 256  # pixels a side, of the picture beside the words
MOST = 3  # words that the sentence names


def attributions(
    studio: Studio, settings: Settings, stopped: threading.Event, report: Callable[[int, int], None]
) -> dict[str, Attribution]:
    """Draw the prompt under one encoder after the other; `report` hears of each step, of how many in all.

    Once `stopped` is set the drawing ends after its step, and the encoders that were finished are what there is.

    Raises:
        ValueError: the settings are more than the page takes.
    """
    studio.check(settings)
    found = {}
    with studio.drawing:
        for number, (title, pipeline) in enumerate(studio.pipelines.items()):

            def after_step(pipeline: Any, step: int, timestep: Any, tensors: Any, number: int = number) -> dict:
                report(number * pipeline.num_timesteps + step + 1, len(studio.titles) * pipeline.num_timesteps)
                pipeline._interrupt = stopped.is_set()
                return {}

            if not stopped.is_set():
                one = look(pipeline, settings, after_step)
            if stopped.is_set():
                break
            found[title] = one
    return found


def look(pipeline: Any, settings: Settings, after_step: Callable[..., dict]) -> Attribution:
    """The prompt under one encoder, drawn as the page draws it."""
    with pipeline.conditioned(**settings.conditioning):
        return attribute(
            pipeline,
            settings.prompt.rstrip(),
            settings.seed,
            settings.steps,
            settings.guidance,
            negative_prompt=settings.negative.strip() or None,
            height=settings.size,
            width=settings.size,
            callback_on_step_end=after_step,
        )


def attribution_html(prompt: str, found: dict[str, Attribution], pixels: bool) -> str:
    """Pictures and shaded words, one column an encoder, on one scale; `pixels` keeps the edges of small pictures."""
    most = max((weight for one in found.values() for weight in one.attention), default=0.0)
    columns = [
        markup.attended(title, thumbnail(one.picture, pixels), placed(prompt, one), most, sentence(one))
        for title, one in found.items()
    ]
    return markup.attribution(columns, pixels) if columns else ""


def placed(prompt: str, one: Attribution) -> list[tuple[str, float | None]]:
    """`prompt` in parts: its tokens with their attention, and what lies between them with None."""
    parts: list[tuple[str, float | None]] = []
    end = 0
    for word, weight in zip(one.words, one.attention, strict=True):
        start = prompt.index(word, end)
        parts += [(prompt[end:start], None)] * (start > end) + [(word, weight)]
        end = start + len(word)
    return [*parts, (prompt[end:], None)] if end < len(prompt) else parts


def sentence(one: Attribution) -> str:
    """What a reader who cannot see shades should know."""
    tokens = sorted(zip(one.attention, one.words, strict=True), reverse=True)
    words = [(weight, word) for weight, word in tokens if any(map(str.isalnum, word))]
    named = ", ".join(f"“{word}” ({weight:.1f} times an even share)" for weight, word in words[:MOST])
    marks = 1 - sum(weight for weight, _ in words) / max(sum(one.attention), 1e-9)
    beyond = one.beyond(CLIP_LENGTH)
    parts = [
        f"Most on {named}." if named else "",
        f"{one.start:.0%} rest on the start token, {one.end:.0%} on the end.",
        f"Of the rest {marks:.0%} lie on full stops and commas.",
        "" if beyond is None else f"{beyond:.0%} lie beyond {CLIP_LENGTH} tokens.",
    ]
    return " ".join(filter(None, parts))


def thumbnail(picture: Image.Image, pixels: bool) -> str:
    """A small copy as a data address."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.NEAREST if pixels else Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def told(found: Sequence[str], titles: Sequence[str], seconds: float) -> str:
    """What the page says once it is over."""
    if len(found) == len(titles):
        return f"Drawn once more in {seconds:.1f} s: under Explain stands which words the UNet looked at."
    return f"Stopped. {', '.join(found) or 'None of the encoders'} finished."
