"""What the page does: one handler for each thing that a person can do there."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from . import markup
from .errors import sentence_of
from .explain import explain
from .runs import Run, finish
from .settings import MAX_IMAGES, MAX_SEED, Settings, check_number
from .studio import Studio

MAX_PAST = 12  # runs that the gallery remembers


class Page:
    """The handlers of the page. They never raise: what goes wrong is told where the answer would have stood."""

    def __init__(self, studio: Studio):
        self.studio = studio

    def count_tokens(self, prompt: str) -> str:
        """The token bar of the prompt as it stands."""
        try:
            return markup.token_bar(*self.studio.describe(prompt))
        except Exception as error:
            return markup.status(sentence_of(error), problem=True)

    def draw(
        self,
        prompt: str,
        negative: str,
        seed: float,
        randomise: bool,
        steps: float,
        guidance: float,
        size: int,
        overflow: str,
        length: str,
        images: float,
        past: list[Run],
        progress: Any = gr.Progress(),  # noqa: B008  # gradio finds it by its default
    ) -> Iterator[list[Any]]:
        """Draw the prompt under every encoder, once for each of `images` seeds, and show it as it comes.

        Yields updates for pictures, notes, status, seed, download, the run that is shown, all past runs, gallery.
        """
        try:
            check_number("number of images", images, 1, MAX_IMAGES)
            first = random.randrange(MAX_SEED) if randomise else int(seed or 0)
            settings = Settings(prompt, negative, first, int(steps), guidance, size, overflow, length)
            for number in range(int(images)):
                settings = replace(settings, seed=first + number)
                for updates in self.draw_once(settings, past, progress):
                    if "run" in updates:
                        past = [*past[-MAX_PAST + 1 :], updates["run"]]
                    yield view(self.studio.titles, **updates, past=past)
        except Exception as error:
            yield view(self.studio.titles, status=markup.status(sentence_of(error), problem=True))

    def draw_once(self, settings: Settings, past: list[Run], progress: Any) -> Iterator[dict[str, Any]]:
        """One comparison as keywords of [`view`]."""
        started = time.perf_counter()
        yield {"status": markup.status(""), "seed": settings.seed}
        pictures: dict[str, Image.Image] = {}
        for frame in self.studio.draw(settings):
            progress((frame.done, frame.total), desc=f"Seed {settings.seed}", unit="steps")
            if frame.finished:
                pictures |= frame.pictures
            yield {"pictures": frame.pictures, "prompt": settings.prompt}
        run = finish(self.studio, settings, pictures)
        seconds = time.perf_counter() - started
        sentence = (
            f"Drawn in {seconds:.1f} s from seed {settings.seed}: the same noise, the same UNet, another reader."
        )
        yield {"status": markup.status(sentence), "run": run}

    def show(self, past: list[Run], event: gr.SelectData) -> list[Any]:
        """Bring a past run back to the page."""
        run = past[len(past) - 1 - event.index]
        return view(self.studio.titles, status=markup.status(f"A past run: {run.caption}."), run=run)

    def explain(self, prompt: str) -> str:
        try:
            return explain(self.studio, Settings(prompt))
        except Exception as error:
            return markup.status(sentence_of(error), problem=True)


def view(
    titles: Sequence[str],
    pictures: Mapping[str, Image.Image] | None = None,
    prompt: str = "",
    status: str | None = None,
    seed: int | None = None,
    run: Run | None = None,
    past: list[Run] | None = None,
) -> list[Any]:
    """Updates in the order that [`draw`] tells; whatever is not given stays as it is."""
    shown: Mapping[str, Any] = run.pictures if run else pictures or {}
    prompt = run.settings.prompt if run else prompt
    gallery = None if run is None or past is None else [(each.strip, each.caption) for each in reversed(past)]
    return [
        *(
            gr.update(value=shown[title], alt_text=alt_text(title, prompt)) if title in shown else gr.skip()
            for title in titles
        ),
        *(run.notes[title] if run else gr.skip() for title in titles),
        status if status is not None else gr.skip(),
        seed if seed is not None else gr.skip(),
        gr.update(value=run.strip, interactive=True) if run else gr.skip(),
        run or gr.skip(),
        past if gallery else gr.skip(),
        gallery or gr.skip(),
    ]


def alt_text(title: str, prompt: str) -> str:
    """What a screen reader says of a picture; the prompt is cut where it would go on for minutes."""
    return f"What {title} made of: {prompt if len(prompt) <= 200 else prompt[:200] + ' …'}"


def slide(run: Run | None, left: str, right: str) -> Any:
    """The two pictures of the slider."""
    return (run.pictures[left], run.pictures[right]) if run else gr.skip()


def stopped() -> str:
    return markup.status("Stopped.")
