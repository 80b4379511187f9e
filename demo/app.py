"""The demo's page: CLIP, Long-CLIP and TULIP read one prompt, and one UNet draws what each of them understood."""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from tulip_diffusion.embedded import ASSETS

from . import markup
from .api import Api
from .errors import sentence_of
from .examples import SIZES, prose_examples, world_examples
from .page import Page, slide, stopped
from .settings import LENGTHS, MAX_GUIDANCE, MAX_IMAGES, MAX_SEED, MAX_STEPS, OVERFLOWS
from .studio import Studio
from .style import CSS, theme
from .weights import Weights

QUEUE = 16  # runs that may wait; more are told that the queue is full
INTRODUCTION = (
    "Stable Diffusion XL reads the first 77 tokens of a prompt. Long-CLIP reads 248, TULIP all of them. Here one "
    "UNet, trained with 77 tokens only, draws from the same noise what each text encoder tells it."
)


def build_demo(
    model: str | None = None,
    tulip: str | None = None,
    longclip: str | None = None,
    assets: str | Path = ASSETS,
    device: str | None = None,
) -> gr.Blocks:
    """The page, ready for `launch()`. Nothing is loaded before somebody uses it.

    Without `model` the embedded family in `assets` draws; with it, an SDXL folder, Hub id or single file, conditioned
    by the encoders `tulip` and `longclip` (file, folder or Hub id) beside its own.

    Raises:
        ValueError: encoders without a model, or a model without encoders.
    """
    return build(Studio(Weights(model, tulip, longclip, Path(assets), device)))


def build(studio: Studio) -> gr.Blocks:
    page, api = Page(studio), Api(studio)
    with gr.Blocks(title="TULIP · what does the text encoder see?", analytics_enabled=False) as demo:
        gr.HTML(f'<div id="title"><h1>What does the text encoder see?</h1><p>{INTRODUCTION}</p></div>')
        with gr.Row(elem_id="asking"):
            prompt = gr.Textbox(
                label="Prompt",
                info="Enter draws, Shift + Enter starts a new line",
                placeholder="A cabinet, a harbour, a garden: the longer, the more there is to lose …",
                lines=1,
                max_lines=5,
                autofocus=True,
                autoscroll=False,
                scale=6,
                min_width=300,
                elem_id="prompt",
            )
            with gr.Column(scale=1, elem_classes="buttons"):
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop", elem_id="stop")
        examples(studio, prompt)
        bar = gr.HTML(markup.empty_bar(), elem_id="bar")
        settings = settings_of(studio)
        status = gr.HTML(markup.status(""), elem_id="status", min_height=40)
        shown, past = gr.State(None), gr.State([])
        with gr.Tabs():
            with gr.Tab("Side by side"):
                pictures, notes, download = columns(studio)
            with gr.Tab("Slider"):
                slider_of(studio, shown)
            with gr.Tab("Runs"):
                gr.HTML("<p>The runs of this visit, the latest first. Choose one to bring it back.</p>")
                gallery = gr.Gallery(
                    label="Past runs",
                    show_label=False,
                    columns=2,
                    fit_columns=False,
                    object_fit="contain",
                    format="png",
                    interactive=False,
                    elem_id="past",
                )
            with gr.Tab("Explain"):
                explain_button = gr.Button("Explain this prompt", variant="primary")
                explanation = gr.HTML(elem_id="explanation")

        seed = settings[1]
        outputs = [*pictures, *notes, status, seed, download, shown, past, gallery]
        drawing: dict[str, Any] = {
            "concurrency_limit": 1,
            "concurrency_id": "drawing",
        }  # one picture at a time, whoever asks
        running = gr.on(
            [draw.click, prompt.submit],
            page.draw,
            [prompt, *settings, past],
            outputs,
            show_progress_on=status,
            api_visibility="private",
            **drawing,
        )
        stop.click(stopped, None, status, cancels=[running], queue=False, api_visibility="private")
        gallery.select(page.show, past, outputs, show_progress="hidden", api_visibility="private")
        explain_button.click(page.explain, prompt, explanation, api_visibility="private", **drawing)
        prompt.change(
            page.count_tokens,
            prompt,
            bar,
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
        gr.api(api.compare, api_name="compare", **drawing)
        gr.api(api.describe, api_name="describe", queue=False)
    return demo.queue(max_size=QUEUE, default_concurrency_limit=4)


def examples(studio: Studio, prompt: gr.Textbox) -> None:
    texts = world_examples() if studio.weights.embedded else prose_examples()
    with gr.Row(elem_id="sizes"):
        gr.HTML("<span>Examples of about</span>", min_width=130)
        for size, text in zip(SIZES, texts, strict=True):
            button = gr.Button(f"{size} tokens", size="sm", min_width=70)
            button.click(None, None, prompt, js=f"() => {json.dumps(text)}", api_visibility="private")


def settings_of(studio: Studio) -> list[Any]:
    """The closed accordion; its components in the order in which `page.draw` takes them."""
    weights = studio.weights
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        with gr.Row():
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            randomise = gr.Checkbox(False, label="Randomise", info="A new seed each time")
            images = gr.Slider(1, MAX_IMAGES, 1, step=1, label="Number of images", info="One after the other")
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
    return [("as each encoder does" if value == "own" else value, value) for value in values]


def columns(studio: Studio) -> tuple[list[gr.Image], list[gr.HTML], gr.DownloadButton]:
    classes = ["picture", "pixels"] if studio.weights.embedded else ["picture"]
    pictures, notes = [], []
    with gr.Row():
        for title in studio.titles:
            with gr.Column(min_width=240):
                gr.HTML(markup.heading(title))
                picture = gr.Image(
                    label=title,
                    show_label=False,
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_classes=classes,
                    alt_text=f"What {title} understood will appear here",
                )
                pictures.append(picture)
                notes.append(gr.HTML())
    download = gr.DownloadButton("Download the strip (PNG, settings inside)", interactive=False, size="sm")
    return pictures, notes, download


def slider_of(studio: Studio, shown: gr.State) -> None:
    titles = list(studio.titles)
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
    gr.on(
        [shown.change, left.change, right.change],
        slide,
        [shown, left, right],
        slider,
        show_progress="hidden",
        api_visibility="private",
    )


def serve(
    studio: Studio,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    mcp: bool = False,
    share: bool = False,
) -> None:
    """Open the page and keep it open until interrupted. Files of the page live and die with it."""
    logging.getLogger("tulip_diffusion.pipelines").setLevel(logging.ERROR)  # the page itself names the words lost
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder below is deleted then, too
    with tempfile.TemporaryDirectory(prefix="tulip-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the only folder that is served
        demo = launch(build(studio), host, port, auth, mcp, share)
        print(f"The page is open at {demo.share_url or demo.local_url}", flush=True)
        if mcp:
            print(f"Tools for language models: {demo.local_url}gradio_api/mcp/", flush=True)
        try:
            studio.readers  # noqa: B018  # loads; what fails here is told on the page as well
            print("The models are loaded.", flush=True)
        except Exception as error:
            print(sentence_of(error), file=sys.stderr)
        demo.block_thread()


def launch(
    demo: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = None,
    auth: tuple[str, str] | None = None,
    mcp: bool = False,
    share: bool = False,
) -> gr.Blocks:
    """Launch without blocking: no files but the page's own, no stack traces, no history kept in the browser."""
    demo.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=share,
        mcp_server=mcp,
        theme=theme(),
        css=CSS,
        show_error=False,
        allowed_paths=[],
        max_file_size="1kb",  # nothing here takes files
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        footer_links=["api", "gradio"],
        prevent_thread_lock=True,
        quiet=True,
    )
    return demo


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m tulip_diffusion.demo.app`, the same as `tulip-diffusion demo`."""
    from .commands import add_arguments, run

    parser = argparse.ArgumentParser(prog="tulip-diffusion demo", description=__doc__)
    add_arguments(parser)
    run(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
