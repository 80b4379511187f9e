"""Drawing and judging: one rule for positions, negatives, and work that is shared and never done twice."""

import argparse
import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tulip_diffusion.evaluation.details import details, sentences_shown, summarize
from tulip_diffusion.evaluation.drawing import contact_sheet, draw_captions, open_pipeline
from tulip_diffusion.evaluation.negatives import effect, named_things
from tulip_diffusion.evaluation.prompts import PROMPTS, bin_means, position_after, position_of, prompts_of
from tulip_diffusion.prompt_description import describe_prompt
from tulip_diffusion.scenes.grammar import parse_caption
from tulip_diffusion.scenes.render import render, render_array
from tulip_diffusion.tokenization import load_tokenizer


@pytest.mark.parametrize("prompts", ["full", "references", "500"])
def test_the_first_bin_holds_what_clip_can_be_told_and_nothing_else(prompts):
    tokenizer = load_tokenizer()
    for caption in prompts_of(prompts, 12):
        lost = describe_prompt(caption.text, tokenizer).readings["CLIP"].lost
        seen = caption.text.removesuffix(lost)
        for claim in caption.claims:
            told = " ".join(sentence.text for sentence in caption.sentences[: claim.sentence + 1])
            assert (position_of(claim) <= 77) == seen.startswith(told)
            assert position_of(claim) == len(tokenizer(told, verbose=False).input_ids)


def test_tokens_75_76_and_77_fall_on_the_right_side_of_clips_window():
    places = [position_after(token) for token in (74, 75, 76, 77)]
    means = bin_means(places, [1.0, 1.0, 0.0, 0.0], [0, 1, 2, 3], (0, 77, 154))
    assert [(name, mean.mean, mean.values) for name, mean in means.items()] == [("0-77", 1.0, 2), ("77-154", 0.0, 2)]


def test_prompts_are_as_long_as_they_are_called():
    for name in ("500", "1000", "2000"):
        caption = prompts_of(name, 1)[0]
        assert int(name) - 40 < caption.tokens <= int(name) and len(caption.claims) == 16
    assert list(PROMPTS)[-1] == "2000"


def test_pictures_are_held_against_prompts_sentence_by_sentence():
    caption = parse_caption("Top first red tulip. Bottom fourth, a key like the tulip. Lower second cup. It is pink.")
    right = sentences_shown(caption.text, render(caption.scene))
    assert [shown for _, shown in right] == [True, True, None, True]
    other = parse_caption("Top first blue tulip. Lower second pink cup.")
    assert [shown for _, shown in sentences_shown(caption.text, render(other.scene))] == [False, False, None, True]
    assert sentences_shown("A zebra in the rain.", render(caption.scene)) == []
    found = details([render(caption.scene)], [caption])
    assert summarize(found)["all"].mean == 1.0 and len(found) == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("no red tulips, boats or blue", [("red", "tulip"), (None, "boat"), ("blue", None)]),
        ("A Pink Cup!", [("pink", "cup")]),
        ("blurry, low quality, reddish", []),
        ("", []),
    ],
)
def test_a_negative_prompt_names_kinds_and_colours_of_the_world(text, named):
    assert named_things(text) == named


def test_what_a_negative_takes_away_is_counted_and_what_it_leaves_alone():
    with_tulips = parse_caption(
        "Top first red tulip. Top second blue tulip. Bottom first red key. Bottom second pink cup."
    )
    without = parse_caption("Bottom first red key. Bottom second blue cup.")
    pictures = [np.stack([render_array(c.scene)]) for c in (with_tulips, without)]
    found = effect("a red tulip", *pictures, [with_tulips])
    assert (found["named without"].mean, found["named with"].mean) == (1.0, 0.0)
    assert (found["asked without"].mean, found["asked with"].mean) == (1.0, 0.0)
    assert (found["others right without"].mean, found["others right with"].mean) == (1.0, pytest.approx(1 / 3))
    plain = effect("low quality", *pictures, [with_tulips])
    assert plain["named with"] is None and plain["others right with"].mean == pytest.approx(1 / 4)
    everything_red = effect("red", *pictures, [with_tulips])
    assert (everything_red["named without"].mean, everything_red["named with"].mean) == (2.0, 1.0)


def test_a_killed_run_goes_on_without_drawing_again_and_takes_no_other_pictures_for_its_own(tiny_pipeline, tmp_path):
    pipeline, captions = tiny_pipeline("clip"), prompts_of("short", 5)
    drawn: list[int] = []

    def draw(count=5, **call):
        drawn.clear()
        handle = pipeline.unet.register_forward_hook(lambda module, args, out: drawn.append(len(args[0]) // 2))
        try:
            return draw_captions(pipeline, captions[:count], **{"steps": 1, "batch": 2, "keep": tmp_path, **call})
        finally:
            handle.remove()

    whole = draw(keep=None)
    assert drawn == [2, 2, 1] and whole.shape == (5, 64, 64, 3)
    first = draw()
    (folder,) = tmp_path.iterdir()
    (folder / "1.npy").unlink()  # as if the run had ended before its second batch was written
    again = draw()
    assert drawn == [2] and np.array_equal(first, whole) and np.array_equal(again, whole)
    for change in ({"steps": 2}, {"guidance": 4.0}, {"batch": 3}, {"negative_prompt": "blue"}, {"count": 4}):
        draw(**change)
        assert sum(drawn) == (4 if "count" in change else 5) * change.get("steps", 1), change
    pipeline.unet.conv_in.bias.data += 0.01
    draw()
    assert drawn == [2, 2, 1]


def test_compels_row_is_what_its_users_draw(family):
    compel = pytest.importorskip("compel")
    captions = prompts_of("full", 2)
    options = argparse.Namespace(assets=family, device="cpu")
    pipeline = open_pipeline("compel", options)
    drawn = draw_captions(pipeline, captions, steps=1, batch=2)
    stock = StableDiffusionXLPipeline(**pipeline.components)
    stock.set_progress_bar_config(disable=True)
    told = compel.CompelForSDXL(stock)(captions[1].text)
    assert told.embeds.shape[1] > 154
    alone = stock(
        prompt_embeds=told.embeds,
        pooled_prompt_embeds=told.pooled_embeds,
        generator=torch.Generator("cpu").manual_seed(1),
        num_inference_steps=1,
        guidance_scale=3.0,
        output_type="np",
    )
    np.testing.assert_allclose(drawn[1], alone.images[0], atol=1e-4)
    negative = draw_captions(pipeline, captions, steps=1, batch=2, negative_prompt="blue")
    assert not np.array_equal(drawn[1], negative[1])


def test_the_contact_sheet_names_its_rows(tmp_path):
    captions = prompts_of("full", 2)
    pictures = np.stack([render_array(caption.scene) for caption in captions])
    sheet = np.asarray(contact_sheet({"tulip": pictures, "clip": 0 * pictures}, captions))
    assert sheet.shape == (3 * 128, 150 + 2 * 128, 3)
    for row in range(3):
        label = sheet[row * 128 : (row + 1) * 128, :150]
        assert label.min() == 0 and label.max() == 255
    assert np.array_equal(sheet[:128, 150:], sheet[128:256, 150:]) and sheet[256:, 150:].max() == 0


TWO_COMMANDS = """
import sys
from tulip_diffusion.cli import main
family, out = sys.argv[1:]
shared = ["--assets", family, "--device", "cpu", "--encoders", "clip", "tulip"]
words = ["--count", "5", "--steps", "1", "--batch", "2", "--negative", "a red cup", "--out", f"{out}/generation"]
assert main(["evaluate", "generation", *shared, *words]) == 0
words = ["--count", "5", "--data", "world-short", "--batch", "2", "--cache", f"{out}/cache"]
assert main(["evaluate", "retrieval", *shared, *words, "--out", f"{out}/retrieval"]) == 0
"""


def test_two_processes_write_the_same_files_as_one(family, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(TWO_COMMANDS)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    for name, start in (("one", [sys.executable]), ("two", launch)):
        done = subprocess.run([*start, program, family, tmp_path / name], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file()}
    assert len(files) > 10
    for file in files:
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        if file.suffix == ".json":  # the folder's name and the time stand in these
            one, two = (json.loads(text).get("results") for text in (one, two))
        assert one == two, file
