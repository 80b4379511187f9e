"""The text encoder block for diffusers' modular pipelines: pictures, loading and saving."""

import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    ModularPipeline,
    ModularPipelineBlocks,
    StableDiffusionXLAutoBlocks,
    StableDiffusionXLModularPipeline,
)

from tests.pipelines.tiny_sdxl import components, inputs, quiet, text_encoder_2, tulip_encoder, words
from tulip_diffusion import (
    StableDiffusionXLTulipAutoBlocks,
    StableDiffusionXLTulipControlNetPipeline,
    StableDiffusionXLTulipModularPipeline,
    StableDiffusionXLTulipPipeline,
    StableDiffusionXLTulipTextEncoderStep,
    TulipTextModelWithProjection,
)

LONG, LONGER, SHORT = words(150), words(230, 3), words(20, 1)
CALLS = {
    "one short prompt": {"prompt": SHORT},
    "one long prompt": {"prompt": LONG},
    "a long prompt and a short negative": {"prompt": LONG, "negative_prompt": SHORT},
    "a short prompt and a long negative": {"prompt": SHORT, "negative_prompt": LONG},
    "a mixed batch": {"prompt": [SHORT, LONGER, LONG]},
    "a mixed batch with a negative for each": {"prompt": [SHORT, LONGER], "negative_prompt": [LONG, SHORT]},
    "weights, BREAK and a second prompt": {"prompt": f"(cat:1.3) BREAK {LONG}", "prompt_2": SHORT},
    "an earlier layer": {"prompt": LONG, "clip_skip": 1, "negative_prompt": LONGER},
    "two pictures each": {"prompt": [LONG, SHORT], "num_images_per_prompt": 2},
}


def parts(**overrides) -> dict:
    return components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder(), **overrides)


def blocks():
    """As diffusers' guides change a block."""
    blocks = StableDiffusionXLAutoBlocks()
    blocks.sub_blocks["text_encoder"] = StableDiffusionXLTulipTextEncoderStep()
    return blocks


def modular(pieces: dict, made=None, guidance: float = 5.0, **configs):
    pipe = (made or blocks()).init_pipeline()
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=guidance), **pieces, **configs)
    return quiet(pipe)


def pictures(pipe, call: dict) -> np.ndarray:
    """The same noise for either kind of pipeline."""
    kind = StableDiffusionXLTulipPipeline
    arguments = inputs(kind, **call)
    count = len(arguments["generator"]) * call.get("num_images_per_prompt", 1)
    arguments["generator"] = [torch.Generator().manual_seed(7 + number) for number in range(count)]
    if isinstance(pipe, ModularPipeline):
        arguments.pop("guidance_scale")
        return pipe(**arguments, output="images")
    return pipe(**arguments).images


@pytest.fixture(scope="module")
def pieces():
    return parts()


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("call", CALLS)
def test_pictures_equal_the_pipelines(call, zeros, pieces):
    pipe = quiet(StableDiffusionXLTulipPipeline(**pieces, force_zeros_for_empty_prompt=zeros))
    block = modular(pieces, force_zeros_for_empty_prompt=zeros)
    ours, expected = pictures(block, CALLS[call]), pictures(pipe, CALLS[call])
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"sequence_length": 248},
        {"sequence_length": "bucket"},
        {"overflow": "stretch"},
        {"overflow": "truncate", "weighting": None},
        {"pooled": "mean"},
        {"attention_scale": "log"},
    ],
    ids=str,
)
def test_every_option_of_conditioning_is_a_config(options, pieces):
    call = {"prompt": [LONG, SHORT], "negative_prompt": [SHORT, LONGER]}
    pipe = quiet(StableDiffusionXLTulipPipeline(**pieces, **options))
    block = modular(pieces, **options)
    drawn = pictures(block, call)
    np.testing.assert_allclose(drawn, pictures(pipe, call), atol=1e-5)
    assert np.abs(drawn - pictures(modular(pieces), call)).max() > 1e-5 or options == {"sequence_length": "bucket"}


def test_a_picture_depends_on_no_other_prompt_of_the_batch(pieces):
    block = modular(pieces)
    together = pictures(block, {"prompt": [SHORT, LONGER], "negative_prompt": [LONG, SHORT]})
    alone = pictures(block, {"prompt": SHORT, "negative_prompt": LONG})
    np.testing.assert_allclose(together[0], alone[0], atol=1e-5)
    hidden = vars(block.unet)
    assert "forward" not in hidden, "the mask stays behind"


def test_with_stock_encoders_short_prompts_are_the_stock_blocks():
    stock = components(StableDiffusionXLTulipPipeline)
    plain = StableDiffusionXLAutoBlocks().init_pipeline()
    plain.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0), **stock)
    for call in ({"prompt": SHORT}, {"prompt": [SHORT, words(60)], "negative_prompt": [words(5), SHORT]}):
        np.testing.assert_array_equal(pictures(modular(stock), call), pictures(quiet(plain), call))


def test_without_guidance_no_negative_prompt_is_encoded(pieces):
    state = modular(pieces, guidance=1.0)(**{**inputs(StableDiffusionXLTulipPipeline, LONG), "guidance_scale": None})
    assert state.get("negative_prompt_embeds") is None and state.get("prompt_embeds").shape[1] == 152


def test_a_controlnet_gets_the_mask_too():
    kind = StableDiffusionXLTulipControlNetPipeline
    pieces = components(kind, text_encoder=tulip_encoder())
    call = inputs(kind, [SHORT, LONGER], negative_prompt=[LONG, SHORT])
    expected = quiet(kind(**pieces))(**call).images
    image = call.pop("image")[0]
    call.pop("guidance_scale")
    call["generator"] = [torch.Generator().manual_seed(7) for _ in range(2)]
    drawn = modular(pieces)(**call, control_image=image, output="images")
    np.testing.assert_allclose(drawn, expected, atol=1e-5)


@pytest.mark.parametrize("second", [text_encoder_2, lambda: tulip_encoder(1, TulipTextModelWithProjection)])
def test_modular_pipelines_are_made_of_our_saved_folders(second, tmp_path):
    pipe = quiet(StableDiffusionXLTulipPipeline(**parts(text_encoder_2=second()), overflow="stretch", pooled="last"))
    pipe.save_pretrained(tmp_path)
    made = ModularPipeline.from_pretrained(str(tmp_path))
    assert type(made) is StableDiffusionXLTulipModularPipeline
    assert type(made.blocks.sub_blocks["text_encoder"]) is StableDiffusionXLTulipTextEncoderStep
    assert (made.config.overflow, made.config.pooled, made.config.sequence_length) == ("stretch", "last", "auto")
    made.load_components()
    assert type(made.text_encoder) is type(pipe.text_encoder)
    assert type(made.text_encoder_2) is type(pipe.text_encoder_2)
    made.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0))
    call = {"prompt": [LONG, SHORT], "negative_prompt": [SHORT, LONGER]}
    np.testing.assert_allclose(pictures(quiet(made), call), pictures(pipe, call), atol=1e-5)


def test_a_saved_modular_pipeline_loads_with_its_options(pieces, tmp_path):
    first = modular(pieces, StableDiffusionXLTulipAutoBlocks(), overflow="stretch")
    first.save_pretrained(str(tmp_path / "modular"), overwrite_modular_index=True)
    again = ModularPipeline.from_pretrained(str(tmp_path / "modular"))
    assert type(again) is StableDiffusionXLTulipModularPipeline and again.config.overflow == "stretch"
    again.load_components()
    again.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0))
    call = {"prompt": [LONG, SHORT]}
    np.testing.assert_allclose(pictures(quiet(again), call), pictures(first, call), atol=1e-5)


@pytest.mark.parametrize("kind", [StableDiffusionXLTulipTextEncoderStep, StableDiffusionXLTulipAutoBlocks])
def test_a_folder_of_blocks_loads_as_remote_code(kind, tmp_path):
    kind().save_pretrained(str(tmp_path / "blocks"))
    config = json.loads((tmp_path / "blocks" / "modular_config.json").read_text())
    assert config["auto_map"] == {"ModularPipelineBlocks": f"modular.{kind.__name__}"}
    assert config["requirements"] == {"tulip_diffusion": ">=0.2.0"}
    assert type(ModularPipelineBlocks.from_pretrained(str(tmp_path / "blocks"), trust_remote_code=True)) is kind
    with pytest.raises(ValueError, match="trust_remote_code"):
        ModularPipelineBlocks.from_pretrained(str(tmp_path / "blocks"), trust_remote_code=False)


def test_the_block_alone_is_a_pipeline_of_text(pieces):
    texts = {name: part for name, part in pieces.items() if "text_encoder" in name or "tokenizer" in name}
    state = modular(texts, StableDiffusionXLTulipTextEncoderStep())(prompt=[LONG, SHORT], negative_prompt=LONGER)
    expected = StableDiffusionXLTulipPipeline(**pieces).encode_prompt([LONG, SHORT], negative_prompt=LONGER)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    for name, tensor in zip(names, expected, strict=True):
        torch.testing.assert_close(state.get(name), tensor)


def test_a_pipeline_without_the_mask_is_refused_where_it_matters(pieces):
    pipe = StableDiffusionXLModularPipeline(blocks=blocks())
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0), **pieces)
    quiet(pipe)
    assert pictures(pipe, {"prompt": LONG}).shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="need StableDiffusionXLTulipModularPipeline"):
        pictures(pipe, {"prompt": LONG, "negative_prompt": SHORT})
    pipe.update_components(attention_scale="log")
    with pytest.raises(ValueError, match="need StableDiffusionXLTulipModularPipeline"):
        pictures(pipe, {"prompt": LONG})


@pytest.mark.parametrize(
    ("configs", "call", "sentence"),
    [
        ({"overflow": "wrap"}, {"prompt": LONG}, "overflow must be one of"),
        ({}, {"prompt": [LONG], "negative_prompt": [SHORT] * 3}, "Got 3 texts for a batch of 1"),
        ({}, {"prompt": None}, "There is no prompt"),
    ],
)
def test_wrong_input_is_refused_in_one_sentence(configs, call, sentence, pieces):
    with pytest.raises(ValueError, match=sentence):
        pictures(modular(pieces, **configs), call)


def test_warnings_name_what_is_lost_once(pieces, caplog):
    pipe = modular(pieces, overflow="truncate")
    for _ in range(2):
        pictures(pipe, {"prompt": f"{LONG} <lora:style:0.8>"})
    lines = [record.message for record in caplog.records if record.name.startswith("tulip_diffusion")]
    assert len(lines) == 2 and "text_encoder_2" in lines[0] and "<lora:style:0.8>" in lines[1]


def test_loras_scale_through_cross_attention_kwargs():
    from tests.pipelines.test_diffusers_behaviours import lora

    pieces = parts()
    pipe, block = quiet(StableDiffusionXLTulipPipeline(**pieces)), modular(pieces)
    lora(pipe)
    for scale in (0.0, 0.5, 1.0):
        call = {"prompt": LONG, "cross_attention_kwargs": {"scale": scale}}
        np.testing.assert_allclose(pictures(block, call), pictures(pipe, call), atol=1e-5)


def test_diffusers_finds_the_classes_by_name():
    for name in ("AutoBlocks", "ModularPipeline", "TextEncoderStep"):
        assert getattr(diffusers, f"StableDiffusionXLTulip{name}").__module__ == "tulip_diffusion.pipelines.modular"
