"""The demo's page: CLIP, Long-CLIP and TULIP read one prompt, and one UNet draws what each of them understood."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from tulip_diffusion.embedded import ASSETS
from tulip_diffusion.scenes.guide import EXAMPLES, HOW, WORLD

from . import browser, markup
from .api import Api
from .greeting import Greeting, load_greeting
from .page import Page, slide
from .prompts import SIZES, prose_prompts, world_prompts
from .settings import LENGTHS, MAX_GUIDANCE, MAX_IMAGES, MAX_SEED, MAX_STEPS, OVERFLOWS
from .studio import Studio
from .weights import Weights

QUEUE = 16  # runs that may wait; more are told that the queue is full
INTRODUCTION = "One prompt, one UNet, the same noise; only the text encoder differs."
PRIVATE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
DRAWING: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "drawing"}  # one picture at a time, whoever asks


def build_demo(
    model: str | None = None,
    tulip: str | None = None,
    longclip: str | None = None,
    assets: str | Path = ASSETS,
    device: str | None = None,
    also: Sequence[str] = (),
) -> gr.Blocks:
    """The page, ready for `launch()`. Nothing is loaded before somebody uses it.

    Without `model` the embedded family in `assets` draws; with it, an SDXL folder, Hub id or single file, conditioned
    by the encoders `tulip` and `longclip` (file, folder or Hub id) beside its own. `also` names other text-to-image
    pipelines, folders or Hub ids, for a column each.

    Raises:
        ValueError: encoders without a model, or a model with nothing to compare it with.
    """
    return build(Studio(Weights(model, tulip, longclip, Path(assets), device, also=tuple(also))))


def build(studio: Studio) -> gr.Blocks:
    """The page of a `studio`: its components, top to bottom, and what each of them does."""
    page, api = Page(studio), Api(studio)
    embedded = studio.weights.embedded
    greeting = load_greeting(studio.weights.assets, studio.titles) if embedded else None
    with gr.Blocks(title="TULIP · what does the text encoder see?", analytics_enabled=False) as demo:
        gr.HTML(markup.title(INTRODUCTION, WORLD if embedded else ""), elem_id="title")
        with gr.Row(elem_id="asking"):
            prompt = gr.Textbox(
                label="Prompt (Enter draws, Shift + Enter starts a new line)",
                show_label=False,
                placeholder=f"{' '.join(EXAMPLES[:2])} …" if embedded else "The longer, the more there is to lose …",
                lines=1,  # with more, Enter would start a line
                max_lines=3,
                autofocus=True,
                autoscroll=False,
                scale=6,
                min_width=280,
                elem_id="prompt",
            )
            with gr.Row(scale=1, elem_classes="buttons"):
                draw = gr.Button("Draw", variant="primary", elem_id="draw", min_width=80)
                stop = gr.Button("Stop", elem_id="stop", min_width=80)
        helpers(studio, page, prompt)
        bar = gr.HTML(markup.empty_bar(), elem_id="bar")
        status = gr.HTML(greeting.sentence if greeting else markup.status(""), elem_id="status", min_height=28)
        shown, past = gr.State(None), gr.State([])
        with gr.Tabs():
            with gr.Tab("Side by side"):
                pictures, notes = columns(studio, greeting)
                download, gallery, seed_again, link = takings()
            with gr.Tab("Slider"):
                slider_of(studio, shown)
            with gr.Tab("Explain"):
                with gr.Row():
                    explain_button = gr.Button("Explain this prompt", variant="primary")
                    look_button = gr.Button("Which words does the UNet look at? (draws once more)")
                looked = gr.HTML(elem_id="looked")
                explanation = gr.HTML(elem_id="explanation")
        settings = settings_of(studio)
        negative, seed, randomise, steps, guidance, size, overflow, length, _ = settings
        if embedded:
            gr.HTML(markup.guide(HOW, EXAMPLES), elem_id="guide")

        outputs = [*pictures, *notes, status, seed, download, shown, past, gallery, bar]
        gr.on(
            [draw.click, prompt.submit], page.begin, prompt, outputs, js=browser.SCROLL, queue=False, **PRIVATE
        ).then(
            page.draw,
            [prompt, *settings, past],
            outputs,
            show_progress_on=status,
            api_visibility="private",
            **DRAWING,
        ).then(None, [prompt, *settings], None, js=browser.REMEMBER, api_visibility="private")
        stop.click(page.stop, None, None, queue=False, **PRIVATE)
        restored = [prompt, negative, randomise, steps, guidance, size, overflow, length]
        gallery.select(page.show, past, [*outputs, *restored], **PRIVATE)
        seed_again.click(lambda: False, None, randomise, queue=False, **PRIVATE)
        link.click(None, None, status, js=browser.COPY_LINK, api_visibility="private")
        explain_button.click(page.explain, prompt, explanation, api_visibility="private", **DRAWING)
        asked = [prompt, negative, seed, steps, guidance, size, overflow, length]
        look_button.click(page.begin_to_look, None, [looked, status], queue=False, **PRIVATE).then(
            page.look, asked, [looked, status], show_progress_on=looked, api_visibility="private", **DRAWING
        )
        prompt.change(page.count_tokens, prompt, bar, queue=False, trigger_mode="always_last", **PRIVATE)
        demo.load(None, [prompt, *settings], [prompt, *settings], js=browser.RECALL, api_visibility="private")
        gr.api(api.compare, api_name="compare", **DRAWING)
        gr.api(api.describe, api_name="describe", queue=False)
    return demo.queue(max_size=QUEUE, default_concurrency_limit=4)


def helpers(studio: Studio, page: Page, prompt: gr.Textbox) -> None:
    """One row of buttons that write into the prompt, and one for dark and light."""
    embedded = studio.weights.embedded
    with gr.Row(elem_id="helpers"):
        gr.HTML("<span>Examples</span>", min_width=64)
        for size, text in zip(SIZES, world_prompts() if embedded else prose_prompts(), strict=True):
            button = small(f"{size} tokens")
            button.click(None, None, prompt, js=browser.write(text), api_visibility="private")
        small("Random").click(page.random_prompt, None, prompt, queue=False, **PRIVATE)
        if embedded:
            for label, text in zip(("+ thing", "+ another", "+ cabinet"), EXAMPLES, strict=True):
                small(label).click(None, prompt, prompt, js=browser.append(text), api_visibility="private")
        small("Dark / light").click(None, None, None, js=browser.TOGGLE_DARK, api_visibility="private")


def small(label: str) -> gr.Button:
    """A button that takes no more room than its label."""
    return gr.Button(label, size="sm", min_width=60)


def takings() -> tuple[gr.DownloadButton, gr.Gallery, gr.Button, gr.Button]:
    """What a run leaves to take away: the strip, a link, its seed, and the runs of this visit."""
    with gr.Row(elem_id="takings"):
        download = gr.DownloadButton("Download the strip (PNG, settings inside)", interactive=False, size="sm")
        seed_again = small("Use this seed again")
        link = small("Copy a link to these settings")
    gallery = gr.Gallery(
        label="Runs of this visit, the latest first. Choose one to bring it back",
        columns=6,
        fit_columns=False,
        object_fit="contain",
        format="png",
        interactive=False,
        allow_preview=False,
        buttons=[],
        elem_id="past",
    )
    return download, gallery, seed_again, link


def settings_of(studio: Studio) -> list[Any]:
    """The closed accordion; its components in the order in which `page.draw` takes them."""
    weights = studio.weights
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            randomise = gr.Checkbox(False, label="Randomise", info="A new seed each time")
            images = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Number of images", info="One seed after the other")
        with gr.Row():
            steps = gr.Slider(1, MAX_STEPS, weights.steps, step=1, label="Steps")
            guidance = gr.Slider(0, MAX_GUIDANCE, weights.guidance, step=0.1, label="Guidance")
            size = gr.Dropdown(list(weights.sizes), value=weights.sizes[-1], label="Size in pixels")
        with gr.Row():
            overflow = gr.Dropdown(
                choices(OVERFLOWS),
                value="own",
                label="Second encoder",
                info="What an encoder with a fixed number of positions does with more tokens",
            )
            length = gr.Dropdown(
                choices(LENGTHS), value="own", label="Length", info="Tokens of conditioning that the UNet gets"
            )
        negative = gr.Textbox("", label="Negative prompt", info="What the pictures should not show")
    return [negative, seed, randomise, steps, guidance, size, overflow, length, images]


def choices(values: Sequence[str]) -> list[tuple[str, str]]:
    """(label, value) of each value, as gradio's dropdowns take them."""
    return [("as each encoder does" if value == "own" else value, value) for value in values]


def columns(studio: Studio, greeting: Greeting | None) -> tuple[list[gr.Image], list[gr.HTML]]:
    """A heading, a picture and a note for every encoder; a visitor finds `greeting` there."""
    classes = ["picture", "pixels"] if studio.weights.embedded else ["picture"]
    pictures, notes = [], []
    with gr.Row(elem_id="pictures"):
        for title in studio.columns:
            greets = greeting is not None and title in greeting.pictures
            with gr.Column(min_width=240):
                gr.HTML(markup.heading(title))
                picture = gr.Image(
                    greeting.pictures[title] if greeting and greets else None,
                    label=title,
                    show_label=False,
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes=classes,
                    alt_text=greeting.alt_text(title)
                    if greeting and greets
                    else f"What {title} understood will appear here",
                )
                pictures.append(picture)
                notes.append(gr.HTML(greeting.notes[title] if greeting and greets else ""))
    return pictures, notes


def slider_of(studio: Studio, shown: gr.State) -> None:
    """Two pictures of the last run over each other, with a line to drag; `shown` holds that run's pictures."""
    titles = list(studio.columns)
    with gr.Row():
        left = gr.Dropdown(titles, value=titles[0], label="Left")
        right = gr.Dropdown(titles, value=titles[-1], label="Right")
    slider = gr.ImageSlider(
        label="Drag the line",
        format="png",
        interactive=False,
        max_height=640,
        elem_classes=["pixels"] if studio.weights.embedded else [],
    )
    line = gr.Slider(0, 100, 50, step=1, label="Where the line stands", info="For the keyboard: arrow keys move it")
    gr.on([shown.change, left.change, right.change], slide, [shown, left, right], slider, **PRIVATE)
    line.change(lambda share: gr.update(slider_position=share), line, slider, queue=False, **PRIVATE)
