"""Up to 77 tokens, with stock CLIP encoders, nothing changes: not one bit, in any task."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.pipelines.tiny_sdxl import BLOCKS, components, inputs, quiet, words
from tulip_diffusion.pipelines import PIPELINES

TASKS = pytest.mark.parametrize("tulip_class", PIPELINES, ids=lambda cls: cls.__name__)


def stock_of(tulip_class):
    return tulip_class.__bases__[1]


@TASKS
def test_short_prompts_give_the_images_of_the_stock_pipeline(tulip_class):
    stock, tulip = (quiet(cls(**components(cls))) for cls in (stock_of(tulip_class), tulip_class))
    for prompt, negative in ((words(75), "blurry, ugly"), ([words(20), words(50, 1)], None)):
        expected = stock(**inputs(stock_of(tulip_class), prompt, negative_prompt=negative)).images
        assert np.array_equal(tulip(**inputs(tulip_class, prompt, negative_prompt=negative)).images, expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": words(10)},
        {"prompt": words(75), "negative_prompt": words(3)},
        {"prompt": "", "negative_prompt": ""},
        {"prompt": [words(5), words(75)], "negative_prompt": [words(7), ""], "num_images_per_prompt": 2},
        {"prompt": words(9), "prompt_2": words(70), "negative_prompt": "bad", "negative_prompt_2": words(11)},
        {"prompt": words(9), "negative_prompt": "bad", "clip_skip": 1},
        {"prompt": words(9), "do_classifier_free_guidance": False},
        {"prompt": "wow!!! a cat & a dog, 3.5 m — élan"},
    ],
    ids=["alone", "negative", "empty", "batch", "prompt_2", "clip_skip", "no guidance", "punctuation"],
)
def test_encode_prompt_returns_the_stock_tensors(arguments):
    stock, tulip = (cls(**components(cls)) for cls in (stock_of(PIPELINES[0]), PIPELINES[0]))
    for ours, theirs in zip(tulip.encode_prompt(**arguments), stock.encode_prompt(**arguments), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


def test_truncation_is_the_stock_pipelines():
    tulip_class = PIPELINES[0]
    stock, tulip = (cls(**components(cls)) for cls in (stock_of(tulip_class), tulip_class))
    tulip.set_conditioning(overflow="truncate")
    prompt = words(200)
    for ours, theirs in zip(tulip.encode_prompt(prompt), stock.encode_prompt(prompt), strict=True):
        assert torch.equal(ours, theirs)


def test_negative_prompt_is_not_zeroed_where_the_config_says_so():
    tulip_class = PIPELINES[0]
    stock, tulip = (
        cls(**components(cls), force_zeros_for_empty_prompt=False) for cls in (stock_of(tulip_class), tulip_class)
    )
    for ours, theirs in zip(tulip.encode_prompt("a cat"), stock.encode_prompt("a cat"), strict=True):
        assert torch.equal(ours, theirs)
    assert tulip.encode_prompt("a cat")[1].abs().max() > 0


def test_the_refiner_needs_no_first_encoder():
    tulip_class = next(cls for cls in PIPELINES if cls.__name__ == "StableDiffusionXLTulipImg2ImgPipeline")
    torch.manual_seed(0)
    refiner = {**BLOCKS, "cross_attention_dim": 32, "projection_class_embeddings_input_dim": 72}
    unet = UNet2DConditionModel(**refiner, sample_size=8, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")).eval()
    parts = {"unet": unet, "text_encoder": None, "tokenizer": None}
    stock, tulip = (
        quiet(cls(**components(cls, **parts), requires_aesthetics_score=True))
        for cls in (stock_of(tulip_class), tulip_class)
    )
    texts = {"negative_prompt": "dog", "prompt_2": "a boat"}
    expected = stock(**inputs(tulip_class, "a cat", **texts)).images
    assert np.array_equal(tulip(**inputs(tulip_class, "a cat", **texts)).images, expected)
    assert tulip(**inputs(tulip_class, words(200))).images.shape == expected.shape
