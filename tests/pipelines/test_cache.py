"""The prompt cache gives what encoding anew gives, whatever happened to the encoders in between."""

import pytest
import torch

from tests.pipelines.test_diffusers_behaviours import lora
from tests.pipelines.tiny_sdxl import components, tulip_encoder, words
from tulip_diffusion.pipelines import PromptCache, StableDiffusionXLTulipPipeline

PROMPT = words(100)


@pytest.fixture
def pipe():
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder())
    return StableDiffusionXLTulipPipeline(**parts)


def assert_fresh(cache, pipe, **arguments):
    with torch.no_grad():
        expected = pipe.encode_prompt(PROMPT, **arguments)
    for ours, theirs in zip(cache(PROMPT, **arguments).values(), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_prompt_is_encoded_once(pipe):
    cache = PromptCache(pipe)
    first = cache(PROMPT, negative_prompt="bad")
    assert cache(PROMPT, negative_prompt="bad")["prompt_embeds"] is first["prompt_embeds"]
    assert cache(PROMPT)["prompt_embeds"] is not first["prompt_embeds"]
    with pytest.raises(ValueError, match="negative_prompt_embeds"):
        cache(PROMPT, negative_prompt_embeds=first["negative_prompt_embeds"])


def test_it_forgets_the_oldest(pipe):
    cache = PromptCache(pipe, size=2)
    first = cache("a")
    cache("b"), cache("a"), cache("c")
    assert cache("a")["prompt_embeds"] is first["prompt_embeds"]
    assert len(cache._embeds) == 2


def test_loras_scales_options_and_weights_are_part_of_the_key(pipe):
    cache = PromptCache(pipe)
    assert_fresh(cache, pipe)
    lora(pipe)
    assert_fresh(cache, pipe)
    assert_fresh(cache, pipe, lora_scale=0.5)
    for change in (
        lambda: pipe.set_adapters("style", adapter_weights=0.3),
        lambda: pipe.text_encoder.disable_adapters(),
        lambda: pipe.set_conditioning(overflow="truncate"),
        lambda: torch.nn.init.normal_(pipe.text_encoder.final_layer_norm.weight),
        lambda: setattr(pipe, "text_encoder", tulip_encoder(3)),
    ):
        change()
        assert_fresh(cache, pipe)
