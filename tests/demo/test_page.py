"""The page's handlers as plain functions, and what the page is before anybody uses it."""

import json
import re
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from io import BytesIO

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import Image

from tests.demo.test_studio import LONG
from tulip_diffusion.demo.app import QUEUE, build, build_demo
from tulip_diffusion.demo.page import Page, slide
from tulip_diffusion.demo.settings import Settings
from tulip_diffusion.demo.studio import Studio
from tulip_diffusion.demo.weights import Weights
from tulip_diffusion.evaluation.side_by_side import BEYOND, SEEN
from tulip_diffusion.scenes.grammar import parse_caption
from tulip_diffusion.scenes.guide import EXAMPLES
from tulip_diffusion.scenes.oracle import read_scene

TITLES = 3
STATUS, SEED, STRIP, SHOWN, PAST, GALLERY, BAR = range(2 * TITLES, 2 * TITLES + 7)  # behind pictures and notes


VISIT = gr.Request(session_hash="one")
WORLD = "Top first red tulip. Bottom fourth, a blue key. Lower second green cup."


@pytest.fixture
def page(studio, own_folder):
    return Page(studio)


def draw(page, prompt, past=(), **changed):
    """Everything that the page is told while it draws."""
    given = {
        "negative": "", "seed": 7, "randomise": False, "steps": 4, "guidance": 3, "size": 64,
        "overflow": "own", "length": "own", "images": 1, **changed,
    }  # fmt: skip
    page.begin(prompt, VISIT)
    return list(page.draw(prompt, *given.values(), list(past), VISIT))


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
    assert all(
        Image.open(path).info["tulip-diffusion"] == strip.info["tulip-diffusion"] for path in run.pictures.values()
    )
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
    shown = page.show(last[PAST], event)
    assert shown[SHOWN].settings.prompt == shown[BAR + 1] == "Top first red tulip."
    assert shown[BAR + 2 :] == ["", False, 4, 3, 64, "own", "own"]  # the settings come back with it


def test_randomise_draws_another_seed_and_says_which(page):
    seeds = {changed(draw(page, "A tulip.", randomise=True, steps=1)[0])[SEED] for _ in range(2)}
    assert len(seeds) == 2


FOREIGN = (
    "A small harbour town",
    "🌷 <b>naïve</b> 東京",
    "a portrait of an old fisherman, oil on canvas",
    "red tulip",
    "top shelf",
    "A cabinet full of curiosities",
    "blurry, low quality",
    "The first house on the street is not blue.",
    "1girl, masterpiece",
    "Ein roter Becher",
)


@pytest.mark.parametrize("prompt", FOREIGN)
def test_a_prompt_from_beyond_the_world_gets_a_note_that_says_what_the_world_is(page, prompt):
    note = page.note(prompt)
    assert "draws one world: a cabinet" in note and "--model" in note and EXAMPLES[0] in note


def test_a_foreign_prompt_is_drawn_without_verdicts_and_nothing_claims_that_it_was_understood(page):
    last = changed(draw(page, FOREIGN[0], steps=1)[-1])
    assert "".join(last[TITLES + index] for index in range(TITLES)) == ""
    assert "draws one world" in last[STATUS] and last[0]["value"]


IN_WORLD = (
    "Top shelf, first place: a red tulip.",
    "A red tulip stands on the top shelf, in the first place.",
    "bottom fourth blue key",
    "In the third place of the lower shelf is a blue cup.",
    "Look, a pink cat! It sits on the upper shelf, second from the left; upper second pink cat",
    "Lower 2nd: green cup",
    "There is a white star in the rightmost place of the top row",
    "Put an orange fish at the bottom, third place?",
    "On the upper shelf, first place, stands a yellow house, dusty and old.",
    "A purple tree in the second place and a green boat in the third place of the lower shelf.",
)


@pytest.mark.parametrize("prompt", IN_WORLD)
def test_sentences_of_the_world_in_any_wording_get_the_oracles_verdict(page, prompt):
    last = changed(draw(page, prompt, steps=2)[-1])
    things = {index: read_scene(Image.open(last[index]["value"])).things for index in range(TITLES)}
    claims = parse_caption(prompt).claims
    for index, seen in things.items():
        right = sum(seen[claim.place] == claim.thing for claim in claims)
        assert f"{right} of {len(claims)} details right" in last[TITLES + index]
    assert "draws one world" not in last[STATUS]


def test_a_run_begins_by_taking_the_last_ones_pictures_and_texts_away(page):
    begun = changed(page.begin(WORLD, VISIT))
    for index in range(TITLES):
        assert begun[index]["value"] is None and begun[TITLES + index] == ""
    assert begun[STRIP]["value"] is None and not begun[STRIP]["interactive"]
    assert "<details>" in begun[BAR] and "<details open>" in page.count_tokens(WORLD)
    assert "Drawing seed 7" in changed(draw(page, WORLD)[0])[STATUS]


def test_a_double_click_is_one_run_and_a_click_while_drawing_says_so(page):
    page.begin(WORLD, VISIT)
    page.begin(WORLD, VISIT)
    given = ("", 7, False, 4, 3, 64, "own", "own", 1, [])
    first = page.draw(WORLD, *given, VISIT)
    next(first)
    assert "Still drawing" in changed(page.begin(WORLD, VISIT))[STATUS]
    other = gr.Request(session_hash="two")
    assert "Waiting" in changed(page.begin(WORLD, other))[STATUS]  # another tab is not held up
    assert "Drawn in" in changed(list(first)[-1])[STATUS]
    assert [changed(updates) for updates in page.draw(WORLD, *given, VISIT)] == [{}]  # the second click's run


@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_a_stopped_run_ends_with_a_sentence_that_says_what_is_finished(page, after):
    page.begin(WORLD, VISIT)
    if after == 0:
        page.stop(VISIT)
    updates = page.draw(WORLD, "", 7, False, 100, 3, 64, "own", "own", 4, [], VISIT)
    for number, _ in enumerate(updates):
        if number + 1 == after:
            page.stop(VISIT)
        last = _
    assert "Stopped" in last[STATUS] and "alert" not in last[STATUS]
    assert "previews" in last[STATUS] or "Nothing was drawn" in last[STATUS]
    assert last[TITLES] == gr.skip() or last[TITLES] == ""
    page.stop(VISIT)  # nothing is left to stop
    assert "Drawn in" in changed(draw(page, WORLD, steps=1)[-1])[STATUS]


def test_draw_right_after_stop_waits_for_the_step_and_draws(page):
    page.begin(WORLD, VISIT)
    updates = page.draw(WORLD, "", 7, False, 100, 3, 64, "own", "own", 1, [], VISIT)
    next(updates)
    page.stop(VISIT)
    with ThreadPoolExecutor() as pool:
        begun = pool.submit(page.begin, WORLD, VISIT)
        assert "Stopped" in list(updates)[-1][STATUS]
        assert "Waiting" in changed(begun.result())[STATUS]
    assert page.turns.begin("one") is not None


@pytest.mark.parametrize(
    ("prompt", "fields", "sentence"),
    [
        ("", {}, "The prompt is empty"),
        ("x" * 100_000, {}, "Shorten it"),
        ("A tulip.", {"steps": 1000}, "from 1 to 100"),
        ("A tulip.", {"images": 9}, "number of images"),
        ("A tulip.", {"seed": None}, "seed must be a whole number"),
        ("A tulip.", {"size": 65}, "side of 64 pixels"),
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

    hook = page.studio.pipelines["CLIP"].unet.register_forward_pre_hook(no_memory, with_kwargs=True)
    assert "The memory is not enough" in changed(draw(page, LONG)[-1])[STATUS]
    hook.remove()
    assert "Drawn in" in changed(draw(page, LONG, steps=1)[-1])[STATUS]


def test_counting_survives_everything(page):
    assert "<b>4</b> tokens" in page.count_tokens("red tulip")
    assert "100,000 characters" in page.count_tokens("x" * 100_000)
    for empty in ("", "  \n"):
        assert "<b>0</b> tokens" in page.count_tokens(empty)
    assert "missing" in Page(Studio(Weights(assets="/nowhere"))).count_tokens("red tulip")


def test_explain_charts_every_encoder_and_compares_with_clip(page):
    made = page.explain(LONG)
    assert made.count('class="attention"') == 3
    assert "Reads 77 tokens; 0% of its attention" in made
    assert made.count("<tr>") == 3  # head, Long-CLIP, TULIP
    assert "The prompt is empty" in page.explain(" ")


def look(page, prompt, steps=2, **more):
    page.begin_to_look(VISIT)
    return page.look(prompt, "", 7, steps, 3, 64, "own", "own", VISIT, **more)


def columns(html):
    """Of each encoder, its words with the title of each, and the picture."""
    found = {}
    for column in html.split('<figure class="attended">')[1:]:
        title = re.search(r"<h3[^>]*>(.*?)</h3>", column)[1]
        words = re.search(r'class="shaded" tabindex="0">(.*?)</p>', column, re.DOTALL)[1]
        picture = Image.open(BytesIO(b64decode(re.search(r"base64,([^\"]*)", column)[1])))
        found[title] = (unescape(re.sub("<[^>]*>", "", words)), re.findall(r'<span class="(\w+)"', words), picture)
    return found


def test_where_the_unet_looks_is_shown_word_by_word_beside_what_each_encoder_drew(page, studio):
    prompt = f"(red:1.2) & <b> {LONG}".rstrip()
    steps = []
    html, status = look(page, prompt, progress=lambda done, **_: steps.append(done))
    assert "Drawn once more" in status and steps == [(number, 6) for number in range(1, 7)]
    drawn = changed(draw(page, prompt, steps=2)[-1])[SHOWN].pictures
    for title, (text, kinds, picture) in columns(html).items():
        assert text == prompt
        lost = studio.unseen(Settings(prompt))[title]
        unread = len(studio.describe(lost)[1].pieces)
        assert kinds == ["read"] * (len(kinds) - unread) + ["unread"] * unread
        difference = np.subtract(picture, Image.open(drawn[title]), dtype=int)
        assert np.abs(difference).max() <= 3  # the page draws the three in one batch
    assert len(columns(html)) == 3 and html.count(" times an even share)") == 9


@pytest.mark.parametrize(("after", "finished"), [(0, 0), (1, 0), (3, 1), (5, 2)])
def test_looking_stops_after_its_step_and_keeps_the_encoders_that_are_finished(page, after, finished):
    def progress(done, **_):
        if done[0] == after:
            page.stop(VISIT)

    page.begin_to_look(VISIT)
    if after == 0:
        page.stop(VISIT)
    html, status = page.look(LONG, "", 7, 2, 3, 64, "own", "own", VISIT, progress=progress)
    assert "Stopped." in status and len(columns(html)) == finished
    page.stop(VISIT)
    assert "Drawn once more" in look(page, LONG, 1)[1]


def test_looking_tells_what_is_wrong_and_a_double_click_is_one(page):
    assert "The prompt is empty" in look(page, " ")[1]
    assert "from 1 to 100" in look(page, LONG, steps=1000)[1]
    assert "side of 64 pixels" in page.look(LONG, "", 7, 2, 3, 65, "own", "own", begun(page))[1]
    assert page.look(LONG, "", 7, 2, 3, 64, "own", "own", VISIT) == [gr.skip(), gr.skip()]
    page.begin_to_look(VISIT)
    page.looking.begin("one")
    assert "Still looking" in page.begin_to_look(VISIT)[1]


def begun(page):
    page.begin_to_look(VISIT)
    return VISIT


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


def test_a_column_for_finelip_is_built_drawn_and_explained(own_folder):
    studio = Studio(Weights(finelip=True))  # the shipped family's: the tiny one has none
    build(studio)
    page = Page(studio)
    page.begin(WORLD, VISIT)
    *_, last = page.draw(WORLD, "", 7, False, 1, 3, 64, "own", "own", 1, [], VISIT)
    assert studio.titles == ("CLIP", "Long-CLIP", "FineLIP", "TULIP")
    assert all(update["value"].endswith(".png") for update in last[:4]) and "Drawn in" in last[8]
    assert page.explain(WORLD).count('class="attention"') == 4
