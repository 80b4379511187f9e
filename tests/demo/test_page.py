"""The page's handlers as plain functions, and what the page is before anybody uses it."""

import json

import gradio as gr
import pytest
import torch
from PIL import Image

from tests.demo.test_studio import LONG
from tulip_diffusion.demo.app import QUEUE, build_demo
from tulip_diffusion.demo.page import Page, slide
from tulip_diffusion.demo.settings import Settings
from tulip_diffusion.demo.studio import Studio
from tulip_diffusion.demo.weights import Weights
from tulip_diffusion.evaluation.strip import BEYOND, SEEN

TITLES = 3
STATUS, SEED, STRIP, SHOWN, PAST, GALLERY = range(2 * TITLES, 2 * TITLES + 6)  # behind pictures and notes


@pytest.fixture
def page(studio, own_folder):
    return Page(studio)


def draw(page, prompt, past=(), **changed):
    """Everything that the page is told while it draws."""
    given = {
        "negative": "", "seed": 7, "randomise": False, "steps": 4, "guidance": 3, "size": 64,
        "overflow": "own", "length": "own", "images": 1, **changed,
    }  # fmt: skip
    return list(page.draw(prompt, *given.values(), list(past)))


def changed(updates) -> dict[int, object]:
    return {index: update for index, update in enumerate(updates) if update != gr.skip()}


def test_previews_come_first_then_pictures_notes_and_the_strip(page):
    shown = draw(page, LONG)
    firsts = [changed(updates).get(0, {}).get("value") for updates in shown]
    previews = [value for value in firsts if isinstance(value, Image.Image)]
    assert len(previews) >= 2
    last = changed(shown[-1])
    assert "Drawn in" in last[STATUS]
    for index in range(TITLES):
        assert last[index]["value"].endswith(".png") and LONG[:50] in last[index]["alt_text"]
        assert "of 3 details right" in last[TITLES + index]
    assert "Could not see" in last[TITLES] and "Saw every word" in last[2 * TITLES - 1]
    assert len(last[GALLERY]) == 1 and last[SHOWN] is last[PAST][0]


def test_the_strip_tells_how_to_draw_it_again(page, studio):
    run = changed(draw(page, LONG, overflow="windows", negative="dust 🌫")[-1])[SHOWN]
    strip = Image.open(run.strip)
    record = json.loads(strip.info["tulip-diffusion"])
    assert record.pop("model") == "embedded" and record.pop("version")
    assert record.pop("tulip") is record.pop("longclip") is record.pop("finelip") is None
    assert {colour for _, colour in strip.convert("RGB").getcolors(1 << 20)} >= {*SEEN.values(), BEYOND}
    for frame in studio.draw(Settings(**record)):
        if frame.finished:
            for title, picture in frame.pictures.items():
                assert picture.tobytes() == Image.open(run.pictures[title]).tobytes()


def test_several_images_take_the_seeds_that_follow_and_all_of_them_are_kept(page):
    first = changed(draw(page, "Top first red tulip.")[-1])[PAST]
    last = changed(draw(page, LONG, first, images=2, steps=2)[-1])
    assert [run.settings.seed for run in last[PAST]] == [7, 7, 8]
    assert [caption.split(" ·")[0] for _, caption in last[GALLERY]] == ["seed 8", "seed 7", "seed 7"]
    event = gr.SelectData(None, {"index": 2, "value": None})
    assert page.show(last[PAST], event)[SHOWN].settings.prompt == "Top first red tulip."


def test_randomise_draws_another_seed_and_says_which(page):
    seeds = {changed(draw(page, "A tulip.", randomise=True, steps=1)[0])[SEED] for _ in range(2)}
    assert len(seeds) == 2


def test_a_foreign_prompt_gets_pictures_and_no_verdicts(page):
    last = changed(draw(page, "🌷 <b>naïve</b> 東京", steps=1)[-1])
    assert "details" not in last[TITLES] and "Saw every word" in last[TITLES]
    assert last[0]["value"]


@pytest.mark.parametrize(
    ("prompt", "fields", "sentence"),
    [
        ("", {}, "The prompt is empty"),
        ("x" * 100_000, {}, "Shorten it"),
        ("A tulip.", {"steps": 1000}, "from 1 to 100"),
        ("A tulip.", {"images": 9}, "number of images"),
        ("A tulip.", {"seed": None, "size": 65}, "side of 64 pixels"),
    ],
)
def test_whatever_is_wrong_is_told_in_a_sentence_on_the_page(page, prompt, fields, sentence):
    problem = changed(draw(page, prompt, **fields)[-1])
    assert list(problem) == [STATUS]
    assert sentence in problem[STATUS] and 'role="alert"' in problem[STATUS]
    assert "Traceback" not in problem[STATUS]


def test_without_enough_memory_for_a_single_picture_the_page_says_so_and_goes_on(assets, own_folder):
    page = Page(Studio(Weights(assets=assets)))

    def no_memory(unet, args, kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    hook = page.studio.readers["CLIP"].unet.register_forward_pre_hook(no_memory, with_kwargs=True)
    assert "The memory is not enough" in changed(draw(page, LONG)[-1])[STATUS]
    hook.remove()
    assert "Drawn in" in changed(draw(page, LONG, steps=1)[-1])[STATUS]


def test_counting_survives_everything(page):
    assert "<b>4</b> tokens" in page.count_tokens("red tulip")
    assert "100,000 characters" in page.count_tokens("x" * 100_000)
    assert "Type a prompt" in page.count_tokens("")
    assert "missing" in Page(Studio(Weights(assets="/nowhere"))).count_tokens("red tulip")


def test_explain_charts_every_encoder_and_compares_with_clip(page):
    made = page.explain(LONG)
    assert made.count('class="attention"') == 3
    assert "Reads 77 tokens; 0% of its attention" in made
    assert made.count("<tr>") == 3  # head, Long-CLIP, TULIP
    assert "The prompt is empty" in page.explain(" ")


def test_the_slider_shows_two_pictures_of_the_run(page):
    run = changed(draw(page, LONG, steps=1)[-1])[SHOWN]
    assert slide(run, "CLIP", "TULIP") == (run.pictures["CLIP"], run.pictures["TULIP"])
    assert slide(None, "CLIP", "TULIP") == gr.skip()


def test_building_the_page_loads_nothing_and_writes_nothing(tmp_path, own_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(own_folder.rglob("*"))
    demo = build_demo(assets="/nowhere")
    assert isinstance(demo, gr.Blocks) and not demo.analytics_enabled
    assert demo._queue.max_size == QUEUE
    assert not list(tmp_path.iterdir()) and sorted(own_folder.rglob("*")) == before
    with pytest.raises(ValueError, match="needs --model"):
        build_demo(tulip="tulip.pt")
