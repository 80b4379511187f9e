"""What the page does: one handler for each thing that a person can do there."""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from PIL import Image

from tulip_diffusion.scenes.guide import outside_world

from . import markup
from .attribution import attribution_html, attributions, told
from .errors import sentence_of
from .explain import explain
from .prompts import random_prompt
from .runs import Run, finish
from .settings import MAX_IMAGES, MAX_SEED, Settings, check_number
from .studio import Frame, Studio
from .turns import Turn, Turns

MAX_PAST = 24  # runs that the gallery remembers
ELSEWHERE = " Start the demo with --model and SDXL weights to draw anything."


class Page:
    """The handlers of the page. They never raise: what goes wrong is told where the answer would have stood."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.turns = Turns()
        self.looking = Turns()  # of those who ask which words the UNet looks at

    def count_tokens(self, prompt: str) -> str:
        """The token bar of the prompt as it stands."""
        try:
            return markup.token_bar(*self.studio.describe(prompt)) if prompt.strip() else markup.empty_bar()
        except Exception as error:
            return markup.status(sentence_of(error), problem=True)

    def random_prompt(self) -> str:
        """A prompt that nobody has seen before."""
        return random_prompt(self.studio.weights.embedded)

    def begin(self, prompt: str, request: gr.Request) -> list[Any]:
        """At once, before the queue: the last run's pictures and texts go, and the bar folds."""
        if not self.turns.take(request.session_hash):
            return view(self.studio.columns, status=markup.status("Still drawing. Stop ends it after this step."))
        bar = self.count_tokens(prompt).replace("<details open", "<details")
        return view(self.studio.columns, status=markup.status("Waiting for its turn …"), cleared=True, bar=bar)

    def stop(self, request: gr.Request) -> None:
        """End the visit's runs after their current step.

        What that left is the runs' own to say: a text from here could come after theirs, and would stay.
        """
        for turns in (self.turns, self.looking):
            turns.stop(request.session_hash)

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
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008  # gradio finds it by its default
    ) -> Iterator[list[Any]]:
        """Draw the prompt under every encoder, once for each of `images` seeds, and show it as it comes.

        Yields updates in the order of [`view`].
        """
        turn = self.turns.begin(request.session_hash)
        if turn is None:  # the second click of two
            yield view(self.studio.columns)
            return
        try:
            count = whole(images)
            check_number("number of images", count, 1, MAX_IMAGES, whole=True)
            first = random.randrange(MAX_SEED - MAX_IMAGES) if randomise else whole(seed)
            asked = Settings(prompt, negative, first, whole(steps), guidance, size, overflow, length)
            for settings in [replace(asked, seed=first + number) for number in range(count)]:
                for updates in self.draw_once(settings, turn, progress):
                    if "run" in updates:
                        past = [*past[-MAX_PAST + 1 :], updates["run"]]
                    yield view(self.studio.columns, **updates, past=past)
                if turn.stopped.is_set():
                    return
        except Exception as error:
            yield view(self.studio.columns, status=markup.status(sentence_of(error), problem=True))
        finally:
            self.turns.end(request.session_hash)

    def draw_once(self, settings: Settings, turn: Turn, progress: Any) -> Iterator[dict[str, Any]]:
        """One comparison as keywords of [`view`]."""
        started = time.perf_counter()
        yield {"status": markup.status(f"Drawing seed {settings.seed} …"), "seed": settings.seed, "cleared": True}
        finished: dict[str, Image.Image] = {}
        frame = Frame(0, 0, {})
        for frame in self.studio.draw(settings, turn.stopped):
            progress((frame.done, frame.total), desc=f"Seed {settings.seed}", unit="steps")
            if frame.finished:
                finished |= frame.pictures
            yield {"pictures": frame.pictures, "prompt": settings.prompt}
        if len(finished) < len(self.studio.columns):
            yield {"status": markup.status(stopped(frame, list(finished)))}
            return
        run = finish(self.studio, settings, finished)
        seconds = time.perf_counter() - started
        sentence = (
            f"Drawn in {seconds:.1f} s from seed {settings.seed}: the same noise, the same UNet, another encoder."
        )
        if self.studio.others:
            sentence += f" By models of their own: {', '.join(self.studio.others)}."
        yield {"status": markup.status(sentence) + self.note(settings.prompt), "run": run}

    def note(self, prompt: str) -> str:
        """What the small family has to say to a prompt from beyond its world."""
        text = outside_world(self.studio.describe(prompt)[0]) if self.studio.weights.embedded else ""
        return markup.hint(text + ELSEWHERE) if text else ""

    def show(self, past: list[Run], event: gr.SelectData) -> list[Any]:
        """Bring a past run back to the page; behind [`view`]'s updates stand those for the prompt and its settings."""
        run = past[len(past) - 1 - event.index]
        status = markup.status(f"A past run: {run.caption}.") + self.note(run.settings.prompt)
        asked = run.settings
        restored = [asked.prompt, asked.negative, False, asked.steps, asked.guidance, asked.size]
        return [
            *view(self.studio.columns, status=status, seed=asked.seed, run=run),
            *restored,
            asked.overflow,
            asked.length,
        ]

    def begin_to_look(self, request: gr.Request) -> list[Any]:
        """At once, before the queue: what was found of the last prompt goes."""
        if not self.looking.take(request.session_hash):
            return [gr.skip(), markup.status("Still looking. Stop ends it after this step.")]
        return ["", markup.status("Waiting for its turn …")]

    def look(
        self,
        prompt: str,
        negative: str,
        seed: float,
        steps: float,
        guidance: float,
        size: int,
        overflow: str,
        length: str,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008  # gradio finds it by its default
    ) -> list[Any]:
        """Which words the UNet looks at under each encoder, and a sentence for the status."""
        turn = self.looking.begin(request.session_hash)
        if turn is None:  # the second click of two
            return [gr.skip(), gr.skip()]
        started = time.perf_counter()
        try:
            settings = Settings(prompt, negative, whole(seed), whole(steps), guidance, size, overflow, length)
            found = attributions(
                self.studio,
                settings,
                turn.stopped,
                lambda done, total: progress((done, total), desc="Looking", unit="steps"),
            )
            html = attribution_html(prompt.rstrip(), found, self.studio.weights.embedded)
            return [html, markup.status(told(list(found), self.studio.titles, time.perf_counter() - started))]
        except Exception as error:
            return ["", markup.status(sentence_of(error), problem=True)]
        finally:
            self.looking.end(request.session_hash)

    def explain(self, prompt: str) -> str:
        """The explanation of a prompt as HTML, or the problem in one sentence."""
        try:
            return explain(self.studio, Settings(prompt))
        except Exception as error:
            return markup.status(sentence_of(error), problem=True)


def whole(number: float) -> Any:
    """`number` as an int where it is one: sliders send 25.0, and a bound that is broken should name what came."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def stopped(frame: Frame, finished: Sequence[str]) -> str:
    """What a run that was ended early left behind."""
    if not frame.total:
        return "Stopped before the first step. Nothing was drawn."
    kept = f"finished: {', '.join(finished)}; the others are previews" if finished else "the pictures are previews"
    return f"Stopped at step {frame.done} of {frame.total}: {kept}."


def view(
    titles: Sequence[str],
    pictures: Mapping[str, Image.Image] | None = None,
    prompt: str = "",
    status: str | None = None,
    seed: int | None = None,
    run: Run | None = None,
    past: list[Run] | None = None,
    cleared: bool = False,
    bar: str | None = None,
) -> list[Any]:
    """Updates for pictures, notes, status, seed, download, the run that is shown, all past runs, gallery and bar.

    Whatever is not given stays as it is; `cleared` takes pictures and notes off the page.
    """
    shown: Mapping[str, Any] = run.pictures if run else pictures or {}
    prompt = run.settings.prompt if run else prompt
    gallery = None if run is None or past is None else [(each.strip, each.caption) for each in reversed(past)]
    empty = gr.update(value=None, alt_text="Nothing is drawn yet") if cleared else gr.skip()
    return [
        *(
            gr.update(value=shown[title], alt_text=alt_text(title, prompt)) if title in shown else empty
            for title in titles
        ),
        *(run.notes[title] if run else "" if cleared else gr.skip() for title in titles),
        status if status is not None else gr.skip(),
        seed if seed is not None else gr.skip(),
        gr.update(value=run.strip if run else None, interactive=run is not None) if run or cleared else gr.skip(),
        run or gr.skip(),
        past if gallery else gr.skip(),
        gallery or gr.skip(),
        bar if bar is not None else gr.skip(),
    ]


def alt_text(title: str, prompt: str) -> str:
    """What a screen reader says of a picture; the prompt is cut where it would go on for minutes."""
    return f"What {title} made of: {prompt if len(prompt) <= 200 else prompt[:200] + ' …'}"


def slide(run: Run | None, left: str, right: str) -> Any:
    """The two pictures of the slider."""
    return (run.pictures[left], run.pictures[right]) if run else gr.skip()
