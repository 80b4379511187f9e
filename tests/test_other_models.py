"""`compare --also`: another model's column is its own pipeline's picture, with the words that it cannot see."""

import json

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLImg2ImgPipeline
from PIL import Image

from tests import other_models
from tests.pipelines import tiny_sdxl
from tulip_diffusion.cli import main
from tulip_diffusion.evaluation.side_by_side import MARGIN, PICTURE
from tulip_diffusion.other_models import check_other_model, draw_other_model, draws_from_text, lost_words, titles_of
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, make in other_models.FAMILIES.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in other_models.FAMILIES}


def alone(folder, prompt, seed, **options):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]


def column(strip: Image.Image, number: int) -> Image.Image:
    left = MARGIN + number * (PICTURE + MARGIN)
    return strip.crop((left, MARGIN, left + PICTURE, MARGIN + PICTURE))


def test_compare_adds_a_column_for_each_and_each_is_the_models_own_call(folders, tmp_path, capsys):
    prompt, out = other_models.words(280), tmp_path / "out.png"
    also = [part for folder in folders.values() for part in ("--also", str(folder))]
    line = ["compare", prompt, *also, "--seed", "5", "--steps", "2", "--device", "cpu", "--out", str(out)]
    assert main(line) == 0
    strip = Image.open(out)
    for number, (name, folder) in enumerate(folders.items(), 3):  # behind CLIP, Long-CLIP, TULIP
        expected = alone(folder, prompt, 5, num_inference_steps=2).resize((PICTURE, PICTURE), Image.Resampling.NEAREST)
        assert np.array_equal(column(strip, number), expected), name
    printed = capsys.readouterr().out
    assert "pixart-alpha: cannot see 161 words" in printed  # 120 tokens, one of them the end mark
    assert "pixart-sigma: sees every word" in printed and "sd3: cannot see 25 words" in printed
    assert strip.info["prompt"] == prompt and json.loads(strip.info["also"]) == [str(f) for f in folders.values()]


def test_without_steps_and_guidance_the_models_own_are_taken(folders):
    pipeline = DiffusionPipeline.from_pretrained(folders["pixart-alpha"])
    steps = []
    picture = draw_other_model(pipeline, "red tulip", 3, after_step=lambda *done: steps.append(done))
    assert np.array_equal(picture, alone(folders["pixart-alpha"], "red tulip", 3))
    assert steps == [(number, 20) for number in range(1, 21)]
    asked = {"num_inference_steps": 3, "guidance_scale": 2.0, "negative_prompt": "blue"}
    picture = draw_other_model(pipeline, "red tulip", 3, steps=3, guidance=2.0, negative="blue")
    assert np.array_equal(picture, alone(folders["pixart-alpha"], "red tulip", 3, **asked))


def test_what_is_raised_after_a_step_ends_the_drawing_and_the_pipeline_draws_on(folders):
    pipeline = DiffusionPipeline.from_pretrained(folders["sd3"])

    def stop(done, total):
        if done == 2:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        draw_other_model(pipeline, "red tulip", 3, after_step=stop)
    picture = draw_other_model(pipeline, "red tulip", 3, steps=2)
    assert np.array_equal(picture, alone(folders["sd3"], "red tulip", 3, num_inference_steps=2))


@pytest.mark.parametrize(("name", "kept"), [("pixart-alpha", 119), ("pixart-sigma", 299), ("sd3", 255)])
def test_the_words_said_to_be_lost_change_nothing_and_the_last_one_seen_does(folders, name, kept):
    pipeline, prompt = DiffusionPipeline.from_pretrained(folders[name]), other_models.words(320)
    lost = lost_words(pipeline, prompt)
    assert lost.split() == prompt.split()[kept:]
    states = pipeline.encode_prompt(prompt, **({"prompt_2": None, "prompt_3": None} if name == "sd3" else {}))[0]
    for change, same in ((kept, True), (kept - 1, False)):
        words = prompt.split()
        words[change] = "zebra"
        more = {"prompt_2": None, "prompt_3": None} if name == "sd3" else {}
        assert torch.equal(pipeline.encode_prompt(" ".join(words), **more)[0], states) == same


def test_a_model_whose_encoders_are_clips_loses_what_clip_loses():
    parts = tiny_sdxl.components(StableDiffusionXLTulipPipeline)
    clip = StableDiffusionPipeline(
        **{name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")},
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    prompt = other_models.words(100)
    assert len(lost_words(clip, prompt).split()) == 25
    assert len(lost_words(other_models.sd3(with_t5=False), prompt).split()) == 25
    assert lost_words(StableDiffusionXLTulipPipeline(**parts), prompt) == ""
    assert lost_words(clip, "red tulip") == lost_words(clip, "") == ""


def write_index(folder, name):
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    return str(folder)


@pytest.mark.parametrize(
    "name",
    ["StableDiffusionXLImg2ImgPipeline", "TextToVideoSDPipeline", "FluxControlPipeline", "AutoencoderKL", "Mine", 3],
)
def test_what_is_no_text_to_image_pipeline_is_refused_in_one_sentence_before_any_drawing(name, tmp_path, capsys):
    model = write_index(tmp_path / "model", name)
    assert main(["compare", "a", "--also", model, "--out", str(tmp_path / "x.png")]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "is no text-to-image pipeline" in printed.err
    assert str(name) in printed.err and not (tmp_path / "x.png").exists()


def test_folders_without_a_pipeline_files_and_damage_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        check_other_model(str(tmp_path / "empty"))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a file"):
        check_other_model(str(tmp_path / "model.safetensors"))
    (tmp_path / "empty" / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="names no pipeline"):
        check_other_model(str(tmp_path / "empty"))


def test_what_draws_from_text_alone_is_taken():
    for name in ("PixArtSigmaPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionXLTulipPipeline"):
        assert draws_from_text(name), name
    assert not draws_from_text(StableDiffusionXLImg2ImgPipeline.__name__)


def test_columns_of_one_name_are_told_apart():
    assert titles_of(["a/PixArt", "b/PixArt", "c/TULIP"], ["TULIP"]) == {
        "a/PixArt": "PixArt", "b/PixArt": "b/PixArt", "c/TULIP": "c/TULIP",
    }  # fmt: skip
