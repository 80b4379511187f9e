"""`--also`: a further column of the page, drawn by another model's own pipeline."""

import json

import gradio as gr
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests import other_models
from tests.demo.test_page import VISIT, changed, draw
from tests.demo.test_studio import finished
from tulip_diffusion.demo.app import build, build_demo
from tulip_diffusion.demo.page import Page
from tulip_diffusion.demo.settings import Settings
from tulip_diffusion.demo.studio import Studio
from tulip_diffusion.demo.weights import Weights

COLUMNS = 4
STATUS, SEED, STRIP, SHOWN, PAST = range(2 * COLUMNS, 2 * COLUMNS + 5)
LONG = other_models.words(200)


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "PixArt"
    other_models.pixart().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def with_pixart(assets, pixart):
    return Studio(Weights(assets=assets, device="cpu", also=(str(pixart),)))


def alone(folder, settings: Settings, **options) -> np.ndarray:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(settings.seed)
    return np.asarray(pipeline(settings.prompt, generator=generator, **options).images[0]).astype(int)


def test_the_columns_picture_is_the_models_own_call_and_the_others_stay_as_they_were(studio, with_pixart, pixart):
    settings = Settings(LONG, seed=3, steps=3, negative="blue")
    drawn, before = finished(with_pixart, settings), finished(studio, settings)
    assert list(drawn) == ["CLIP", "Long-CLIP", "TULIP", "PixArt"] == list(with_pixart.columns)
    assert np.array_equal(drawn["PixArt"], alone(pixart, settings, num_inference_steps=3, negative_prompt="blue"))
    assert all(np.array_equal(drawn[title], picture) for title, picture in before.items())
    moved = Settings(LONG, seed=3, steps=2, guidance=7.0)
    expected = alone(pixart, moved, num_inference_steps=2, guidance_scale=7.0)
    assert np.array_equal(finished(with_pixart, moved)["PixArt"], expected)


def test_steps_that_nobody_moved_are_the_models_own(with_pixart, pixart):
    settings = Settings(LONG, seed=4)
    frames = list(with_pixart.draw(settings))
    assert np.array_equal(np.asarray(frames[-1].pictures["PixArt"]).astype(int), alone(pixart, settings))
    assert (frames[-1].done, frames[-1].total) == (50, 50)  # twice the page's 25, however many the model takes
    assert [frame.done for frame in frames] == sorted(frame.done for frame in frames)


def test_the_note_has_the_lost_words_and_no_verdicts_and_every_picture_its_settings(with_pixart, pixart, own_folder):
    page = Page(with_pixart)
    last = changed(draw(page, LONG, steps=2)[-1])
    assert "Could not see 81 words:" in last[2 * COLUMNS - 1] and "details right" not in last[2 * COLUMNS - 1]
    assert "PixArt" in last[STATUS] and last[COLUMNS - 1]["value"].endswith(".png")
    for path in (*last[SHOWN].pictures.values(), last[SHOWN].strip):
        record = json.loads(Image.open(path).info["tulip-diffusion"])
        assert record["also"] == [str(pixart)] and record["seed"] == 7 and record["prompt"] == LONG
    assert Image.open(last[SHOWN].strip).width > 1600  # four panels
    assert "Saw every word" in changed(draw(page, "red tulip", steps=2)[-1])[2 * COLUMNS - 1]


def test_several_pictures_take_the_seeds_that_follow_in_this_column_too(with_pixart, pixart, own_folder):
    runs = changed(draw(Page(with_pixart), LONG, images=2, steps=2)[-1])[PAST]
    assert [run.settings.seed for run in runs] == [7, 8]
    for run in runs:
        picture = np.asarray(Image.open(run.pictures["PixArt"])).astype(int)
        assert np.array_equal(picture, alone(pixart, run.settings, num_inference_steps=2))


def test_stop_ends_the_other_models_loop_too(with_pixart, own_folder):
    page = Page(with_pixart)
    page.begin(LONG, VISIT)
    last: list = []
    for updates in page.draw(LONG, "", 7, False, 100, 3, 64, "own", "own", 1, [], VISIT):
        last = updates
        if with_pixart_is_drawing(with_pixart):
            page.stop(VISIT)
    status = changed(last)[STATUS]
    assert "finished: CLIP, Long-CLIP, TULIP; the others are previews" in status
    assert "Drawn in" in changed(draw(page, LONG, steps=2)[-1])[STATUS]


def with_pixart_is_drawing(studio) -> bool:
    return "progress_bar" in vars(studio.others["PixArt"])


def test_the_page_is_built_with_a_column_more_and_a_model_alone_may_stand_beside_another(pixart):
    headings = [str(block.value) for block in build(Studio(Weights(also=(str(pixart),)))).blocks.values()
                if isinstance(block, gr.HTML) and "<h3" in str(block.value)]  # fmt: skip
    assert any('class="encoder other">PixArt<' in heading for heading in headings) and len(headings) == COLUMNS
    assert Weights("sdxl", also=("a/b",)).others == {"b": "a/b"}
    assert isinstance(build_demo(also=[str(pixart)]), gr.Blocks)


def test_what_is_no_text_to_image_pipeline_ends_the_command_before_the_page_opens(assets):
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        Weights(assets=assets, also=(str(assets),)).check()
