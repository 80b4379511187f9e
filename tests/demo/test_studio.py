"""One UNet and one VAE for all encoders, against separate pipelines that share nothing."""

import shutil

import numpy as np
import pytest
import torch

from tests.pipelines import tiny_sdxl
from tulip_diffusion.demo.attribution import look
from tulip_diffusion.demo.settings import Settings
from tulip_diffusion.demo.studio import Studio
from tulip_diffusion.demo.weights import SHARED, Weights
from tulip_diffusion.embedded import COMPARED, ENCODERS, load_embedded_pipeline
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline

LONG = "Top first red tulip. Bottom fourth, a blue key. Lower second green cup. " * 15  # about 280 tokens
QUICK = {"steps": 3, "guidance": 3.0}


def finished(studio: Studio, settings: Settings) -> dict[str, np.ndarray]:
    pictures = {}
    for frame in studio.draw(settings):
        if frame.finished:
            pictures |= frame.pictures
    return {title: np.asarray(picture).astype(int) for title, picture in pictures.items()}


def alone(assets, encoder: str, settings: Settings, **options) -> np.ndarray:
    pipeline = load_embedded_pipeline(encoder, assets)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        settings.prompt,
        negative_prompt=settings.negative or None,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        generator=torch.Generator().manual_seed(settings.seed),
        **settings.conditioning,
        **options,
    ).images[0]
    return np.asarray(picture).astype(int)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(LONG, seed=3, **QUICK),
        Settings("Top first red tulip.", seed=4, **QUICK),
        Settings(LONG, negative="dust", seed=5, overflow="windows", length="248", **QUICK),
    ],
    ids=["long", "short", "policies"],
)
def test_the_batch_of_three_equals_three_separate_pipelines(studio, assets, settings):
    together = finished(studio, settings)
    titles = {encoder: ENCODERS[encoder].title for encoder in COMPARED}
    assert list(together) == list(titles.values())
    for encoder, title in titles.items():
        assert np.abs(together[title] - alone(assets, encoder, settings)).max() <= 1  # of 255
    assert len({picture.tobytes() for picture in together.values()}) == 3


def test_encoders_whose_attention_is_scaled_differently_are_drawn_apart(assets):
    studio, settings = Studio(Weights(assets=assets)), Settings(LONG, seed=3, **QUICK)
    before = finished(studio, settings)
    studio.pipelines["TULIP"].set_conditioning(attention_scale=2.0)
    after = finished(studio, settings)
    assert np.array_equal(after["CLIP"], before["CLIP"]) and not np.array_equal(after["TULIP"], before["TULIP"])
    assert np.abs(after["TULIP"] - alone(assets, "tulip", settings, attention_scale=2.0)).max() <= 1


def test_all_encoders_share_unet_vae_and_scheduler(studio):
    for name in SHARED:
        assert len({id(pipeline.components[name]) for pipeline in studio.pipelines.values()}) == 1
    assert len({id(pipeline.text_encoder) for pipeline in studio.pipelines.values()}) == 3


def test_when_memory_runs_out_the_encoders_are_drawn_one_after_the_other(assets):
    studio = Studio(Weights(assets=assets))
    settings = Settings(LONG, seed=3, **QUICK)
    together = finished(studio, settings)

    def small_memory(unet, args, kwargs):
        if len(args[0]) > 2:  # prompt and negative prompt of one encoder
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = studio.pipelines["CLIP"].unet.register_forward_pre_hook(small_memory, with_kwargs=True)
    frames = list(studio.draw(settings))
    hook.remove()
    assert not studio.batched
    assert [list(frame.pictures) for frame in frames if frame.finished] == [["CLIP"], ["Long-CLIP"], ["TULIP"]]
    assert (frames[-1].done, frames[-1].total) == (9, 9)
    for frame in frames:
        if frame.finished:
            for title, picture in frame.pictures.items():
                assert np.abs(np.asarray(picture).astype(int) - together[title]).max() <= 1


def test_closing_the_iterator_stops_the_denoising_loop(studio):
    calls = []
    hook = studio.pipelines["CLIP"].unet.register_forward_hook(lambda *_: calls.append(1))
    frames = studio.draw(Settings(LONG, steps=100))
    next(frames)
    frames.close()
    with studio.drawing:  # free again once the loop has stopped
        hook.remove()
    assert len(calls) < 20


def test_previews_come_while_the_picture_is_drawn(studio):
    frames = list(studio.draw(Settings(LONG, steps=16)))
    previews = [frame for frame in frames if frame.pictures and not frame.finished]
    assert len(previews) == 7 and all(len(frame.pictures) == 3 for frame in previews)
    assert [frame.done for frame in frames[:16]] == list(range(1, 17))


def test_words_that_an_encoder_cannot_see_follow_the_policy(studio):
    unseen = studio.unseen(Settings(LONG))
    assert unseen["TULIP"] == "" and LONG.rstrip().endswith(unseen["Long-CLIP"])
    assert len(unseen["CLIP"]) > len(unseen["Long-CLIP"]) > 0
    assert set(studio.unseen(Settings(LONG, overflow="windows")).values()) == {""}
    assert len(set(studio.unseen(Settings(LONG, length="77")).values())) == 1


def test_sizes_and_prompts_beyond_the_bounds_are_refused_before_any_work(studio):
    with pytest.raises(ValueError, match="side of 64 pixels, got 1024"):
        next(studio.draw(Settings("A tulip.", size=1024)))
    with pytest.raises(ValueError, match="tokens, and this page takes up to 2,000"):
        next(studio.draw(Settings("tulip " * 2500)))


def test_a_broken_folder_is_told_and_tried_again(assets, tmp_path):
    studio = Studio(Weights(assets=tmp_path / "family"))
    with pytest.raises(FileNotFoundError, match=r"embedded\.sh"):
        next(studio.draw(Settings("A tulip.")))
    shutil.copytree(assets, tmp_path / "family")
    assert len(finished(studio, Settings("A tulip.", **QUICK))) == 3


def test_real_weights_are_loaded_once_with_one_encoder_more_for_each_title(tmp_path):
    parts = tiny_sdxl.components(StableDiffusionXLTulipPipeline)
    StableDiffusionXLTulipPipeline(**parts).save_pretrained(tmp_path / "sdxl")
    tiny_sdxl.tulip_encoder().save_pretrained(tmp_path / "tulip")
    tiny_sdxl.text_encoder(max_position_embeddings=248).save_pretrained(tmp_path / "longclip")
    weights = Weights(str(tmp_path / "sdxl"), str(tmp_path / "tulip"), str(tmp_path / "longclip"), device="cpu")
    studio = Studio(weights)
    for name in (*SHARED, "text_encoder_2"):
        assert len({id(pipeline.components[name]) for pipeline in studio.pipelines.values()}) == 1
    assert not studio.batched  # on a CPU
    prompt = tiny_sdxl.words(300)
    unseen = {title: len(words.split()) for title, words in studio.unseen(Settings(prompt)).items()}
    assert unseen == {"CLIP": 225, "Long-CLIP": 54, "TULIP": 0}
    steps: list[int] = []
    for title, read in (("CLIP", 75), ("Long-CLIP", 246), ("TULIP", 300)):
        settings = Settings(prompt, steps=2, size=64)
        one = look(studio.pipelines[title], settings, lambda pipeline, step, *_: steps.append(step) or {})
        assert len(one.words) == 300 and sum(weight > 0 for weight in one.attention) == read
    assert steps == [0, 1] * 3
