"""Savings of memory: offloading, quantised components, device maps."""

import accelerate
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from tests.pipelines.tiny_sdxl import components, inputs, quiet, tulip_encoder, words
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline

PROMPTS = [words(20), words(160)]


def build():
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder())
    return quiet(StableDiffusionXLTulipPipeline(**parts))


def images_of(pipe, **options):
    return pipe(**inputs(type(pipe), PROMPTS), **options).images


@pytest.mark.parametrize("overflow", ["windows", "stretch", "truncate"])
def test_sequential_offload_changes_nothing(overflow):
    """accelerate's hooks as `enable_sequential_cpu_offload` puts them on, with the CPU standing in for the GPU."""
    expected = images_of(build(), overflow=overflow)
    pipe = build()
    for model in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae):
        accelerate.cpu_offload(model, torch.device("cpu"))
    assert pipe.text_encoder_2.device.type == "meta"
    for _ in range(2):
        np.testing.assert_allclose(images_of(pipe, overflow=overflow), expected, atol=1e-5)
    assert {weight.device.type for weight in pipe.text_encoder_2.parameters()} == {"meta"}, "every weight went back"


@pytest.mark.parametrize("overflow", ["windows", "stretch"])
def test_model_offload_changes_nothing(overflow):
    expected = images_of(build(), overflow=overflow)
    pipe, hook = build(), None
    for model in (pipe.text_encoder, pipe.text_encoder_2, pipe.unet):
        _, hook = accelerate.cpu_offload_with_hook(model, torch.device("cpu"), prev_module_hook=hook)
    np.testing.assert_allclose(images_of(pipe, overflow=overflow), expected, atol=1e-5)


def test_layerwise_casting_of_the_unet_runs():
    pipe = build()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert np.isfinite(images_of(pipe)).all()


def test_quantised_encoders_run():
    """Linear layers exchanged for int8 ones by torch itself."""
    pipe = build()
    full = pipe.encode_prompt(PROMPTS)[0]
    for name in ("text_encoder", "text_encoder_2"):
        setattr(pipe, name, torch.ao.quantization.quantize_dynamic(getattr(pipe, name), {torch.nn.Linear}))
    states = pipe.encode_prompt(PROMPTS)[0]
    assert torch.nn.functional.cosine_similarity(states[1, :162], full[1, :162], dim=-1).min() > 0.95


def test_a_device_map_changes_nothing(tmp_path):
    build().save_pretrained(tmp_path)
    pipe = quiet(StableDiffusionXLTulipPipeline.from_pretrained(tmp_path, device_map="cpu"))
    np.testing.assert_allclose(images_of(pipe), images_of(build()), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("how", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_from_a_gpu_changes_little(how):
    expected = images_of(build().to("cuda"))
    pipe = build()
    getattr(pipe, how)()
    np.testing.assert_allclose(images_of(pipe), expected, atol=1e-3)


def test_a_stock_pipeline_that_shares_the_unet_is_not_touched():
    pipe = build()
    stock = quiet(StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline, unet=pipe.unet)))
    before = stock(**inputs(StableDiffusionXLPipeline, "a cat")).images
    images_of(pipe)
    assert np.array_equal(stock(**inputs(StableDiffusionXLPipeline, "a cat")).images, before)
