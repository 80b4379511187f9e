"""The family that ships in `tulip_diffusion/assets`: what a fresh installation draws with."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from tulip_diffusion.embedded import ASSETS, ENCODERS, load_embedded_pipeline, load_embedded_towers
from tulip_diffusion.evaluation.details import details, summarize
from tulip_diffusion.evaluation.drawing import draw_captions
from tulip_diffusion.evaluation.prompts import prompts_of
from tulip_diffusion.scenes.oracle import read_scene
from tulip_diffusion.scenes.render import render


def right(encoder: str, prompts: str, count: int):
    """Share of details drawn right, by token position."""
    pipeline = load_embedded_pipeline(encoder)
    pipeline.set_progress_bar_config(disable=True)
    captions = prompts_of(prompts, count, "validation")
    pictures = draw_captions(pipeline, captions, 12, 3.0)
    return summarize(details(pictures, captions))


def test_it_is_safetensors_json_and_the_demos_pictures_of_sixty_megabytes_at_most():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".png"}
    assert {path.parent.name for path in files if path.suffix == ".png"} == {"greeting"}
    assert 0 < sum(path.stat().st_size for path in files) <= 60e6


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_that_is_named_is_there(encoder):
    load_embedded_towers(encoder)
    pipeline = load_embedded_pipeline(encoder)
    states, _, pooled, _ = pipeline.encode_prompt("Top first red tulip. " * 60, do_classifier_free_guidance=False)
    assert states.shape[0] == 1 and states.isfinite().all() and pooled.isfinite().all()


def test_the_oracle_reads_every_place_of_a_render():
    for caption in prompts_of("full", 20, "validation"):
        assert read_scene(render(caption.scene)) == caption.scene


def test_short_prompts_are_drawn_as_well_with_tulip_as_with_the_encoders_that_the_unet_was_trained_with():
    shares = {encoder: right(encoder, "short", 12)["all"].mean for encoder in ("clip", "tulip")}
    assert shares["clip"] > 0.8 and shares["tulip"] > shares["clip"] - 0.1, shares


def test_beyond_77_tokens_clip_is_at_chance_and_tulip_is_not():
    far = {}
    for encoder in ("clip", "tulip"):
        position = right(encoder, "full", 6)["position"]
        far[encoder] = np.mean([share.mean for bin_, share in position.items() if not bin_.startswith("0-")])
    assert far["clip"] < 0.1 and far["tulip"] > 0.5, far


def test_words_from_beyond_the_world_are_read_as_bytes():
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "tokenizer")
    assert tokenizer.decode(tokenizer("a zebra").input_ids, skip_special_tokens=True).replace(" ", "") == "azebra"
