"""Doors in, and what is refused at them: each with one sentence, before anything is generated."""

import shutil

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.benchmarks.sizes import FIRST, SDXL, SECOND
from tests.pipelines.tiny_sdxl import BLOCKS, TEXT, components, inputs, quiet, text_encoder, tulip_encoder, words
from tulip_diffusion import TulipTextModel, TulipTextModelWithProjection, export_open_clip, from_clip
from tulip_diffusion.pipelines import StableDiffusionXLTulipPipeline


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_class", [TulipTextModel, TulipTextModelWithProjection])
def test_a_tulip_folder_goes_into_the_first_slot(model_class, sdxl, tmp_path):
    encoder = tulip_encoder(0, model_class)
    encoder.save_pretrained(tmp_path)
    pipe = StableDiffusionXLTulipPipeline.from_pretrained(sdxl, tulip=str(tmp_path), dtype=torch.bfloat16)
    assert type(pipe.text_encoder) is TulipTextModel
    assert {module.dtype for module in (pipe.text_encoder, pipe.unet)} == {torch.bfloat16}
    first = getattr(encoder, "text_model", encoder)
    assert torch.equal(pipe.text_encoder.final_layer_norm.weight.float(), first.final_layer_norm.weight)
    assert pipe.encode_prompt(words(200))[0].shape == (1, 202, 64)


def published_file(folder) -> str:
    """A CLIP in the layout of TULIP's files, whose keys do not say that it is one, nor how it rotates."""
    clip = CLIPTextModelWithProjection(CLIPTextConfig(**{**TEXT, "num_attention_heads": 1}))
    save_file(export_open_clip(from_clip(clip)), folder / "tulip.safetensors")
    return str(folder / "tulip.safetensors")


@pytest.mark.parametrize("rope, kind", [("released", "default"), ("paper", "ntk"), (None, "default")])
def test_layout_and_rope_say_how_to_read_a_tulip_file(rope, kind, sdxl, tmp_path):
    file = published_file(tmp_path)
    arguments = {"tulip": file, "layout": "tulip", "rope": rope}
    pipe = StableDiffusionXLTulipPipeline.from_pretrained(sdxl, **arguments)
    assert type(pipe.text_encoder) is TulipTextModel
    assert pipe.text_encoder.config.rope_parameters["rope_type"] == kind
    with pytest.raises(ValueError, match="tulips"):
        StableDiffusionXLTulipPipeline.from_pretrained(sdxl, tulip=file, layout="tulips")
    with pytest.raises(ValueError, match="rope says how to read the encoder given as tulip="):
        StableDiffusionXLTulipPipeline.from_pretrained(sdxl, rope="paper")


def test_a_single_file_takes_a_tulip_encoder(sdxl, tmp_path):
    tulip_encoder().save_pretrained(tmp_path / "tulip")
    save_file({"conditioner.embedders.1.model.ln_final.weight": torch.zeros(1)}, tmp_path / "sdxl.safetensors")
    parts = components(StableDiffusionXLTulipPipeline)
    del parts["text_encoder"]
    pipe = StableDiffusionXLTulipPipeline.from_single_file(
        str(tmp_path / "sdxl.safetensors"), tulip=str(tmp_path / "tulip"), config=str(sdxl), **parts
    )
    assert type(pipe.text_encoder) is TulipTextModel
    assert pipe.encode_prompt(words(200))[0].shape == (1, 202, 64)


def test_a_projection_in_the_first_slot_is_left_out():
    encoder = tulip_encoder(0, TulipTextModelWithProjection)
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=encoder)
    pipe = StableDiffusionXLTulipPipeline(**parts)
    assert pipe.text_encoder is encoder.text_model
    pooled = pipe.encode_prompt("a cat")[2]
    ids = pipe.tokenizer_2("a cat", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(pooled, pipe.text_encoder_2(ids).text_embeds)


def wide_unet(**config):
    torch.manual_seed(0)
    fields = {**BLOCKS, "sample_size": 8, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **config}
    return diffusers.UNet2DConditionModel(**fields)


@pytest.mark.parametrize(
    "part, message",
    [
        (
            lambda: {"unet": wide_unet(cross_attention_dim=96)},
            "width 96, but the text encoders give 32 . 32 = 64. Pass",
        ),
        (lambda: {"unet": wide_unet(projection_class_embeddings_input_dim=96)}, "pooled vector of width 48"),
        (
            lambda: {"text_encoder_2": text_encoder()},
            "is a CLIPTextModel.*Pass a model with projection",
        ),
        (lambda: {"text_encoder_2": tulip_encoder()}, "text_encoder_2 is a TulipTextModel"),
        (lambda: {"tokenizer": endless_tokenizer()}, "tokenizer has no model_max_length.*load_tokenizer"),
        (lambda: {"sequence_length": 0}, "sequence_length must be"),
        (lambda: {"overflow": "cut"}, "overflow must be one of 'windows', 'stretch', 'truncate', got 'cut'"),
        (lambda: {"weighting": "compel"}, "weighting must be one of 'a1111', None"),
        (lambda: {"attention_scale": -1}, "attention_scale must be"),
    ],
)
def test_wrong_combinations_are_refused(part, message):
    with pytest.raises(ValueError, match=message):
        StableDiffusionXLTulipPipeline(**{**components(StableDiffusionXLTulipPipeline), **part()})


def endless_tokenizer() -> CLIPTokenizer:
    tokenizer = components(StableDiffusionXLTulipPipeline)["tokenizer"]
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def test_a_missing_tokenizer_is_named_when_it_is_needed():
    parts = components(StableDiffusionXLTulipPipeline, tokenizer_2=None)
    with pytest.raises(ValueError, match=r"no tokenizer_2.*Pass tokenizer_2=load_tokenizer"):
        StableDiffusionXLTulipPipeline(**parts).encode_prompt("a cat")


def tamper(folder, how):
    if how == "no tokenizer":
        shutil.rmtree(folder / "tokenizer")
    elif how == "wrong width":
        wide_unet(cross_attention_dim=96).save_pretrained(folder / "unet")
    elif how == "unknown class":
        path = folder / "model_index.json"
        path.write_text(path.read_text().replace('"TulipTextModel"', '"TulipTextModell"'))
    elif how == "half a file":
        path = folder / "text_encoder" / "model.safetensors"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "how, message",
    [
        ("no tokenizer", "has no folder 'tokenizer'"),
        ("wrong width", "width 96"),
        ("unknown class", "TulipTextModell"),
        ("half a file", "model.safetensors is damaged"),
    ],
)
def test_a_tampered_folder_fails_when_it_is_loaded(how, message, tmp_path):
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder())
    StableDiffusionXLTulipPipeline(**parts).save_pretrained(tmp_path / "pipe")
    tamper(tmp_path / "pipe", how)
    with pytest.raises(ValueError, match=message):
        StableDiffusionXLTulipPipeline.from_pretrained(tmp_path / "pipe")


def test_unknown_options_of_set_conditioning_are_refused():
    pipe = StableDiffusionXLTulipPipeline(**components(StableDiffusionXLTulipPipeline))
    with pytest.raises(TypeError, match="overflows"):
        pipe.set_conditioning(overflows="stretch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs(dtype):
    parts = components(StableDiffusionXLTulipPipeline, text_encoder=tulip_encoder())
    pipe = quiet(StableDiffusionXLTulipPipeline(**parts))
    full = pipe.encode_prompt(words(400))[0]
    half = pipe.to(dtype).encode_prompt(words(400))[0]
    assert half.dtype == dtype
    far = slice(300, 402)  # where rounded angles would show
    assert torch.nn.functional.cosine_similarity(half[0, far].float(), full[0, far], dim=-1).min() > 0.999
    assert pipe(**inputs(type(pipe), words(200))).images.shape == (1, 32, 32, 3)


def test_sdxl_at_its_true_size_on_the_meta_device():
    """Only shapes: SDXL-base's published configurations with TULIP encoders in both slots."""
    parts = components(StableDiffusionXLTulipPipeline)  # a scheduler holds tensors and must be real
    with torch.device("meta"):
        first = from_clip(CLIPTextModel(CLIPTextConfig(**FIRST)))
        second = from_clip(CLIPTextModelWithProjection(CLIPTextConfig(**SECOND)))
        unet = diffusers.UNet2DConditionModel(**SDXL)
        parts |= {"text_encoder": first, "text_encoder_2": second, "unet": unet}
        pipe = StableDiffusionXLTulipPipeline(**parts)
        states, _, pooled, _ = pipe.encode_prompt(words(200), device=torch.device("meta"))
        assert (states.shape, pooled.shape) == ((1, 202, 2048), (1, 1280))
        conditions = {"text_embeds": pooled, "time_ids": torch.empty(1, 6)}
        noise = unet(torch.empty(1, 4, 128, 128), 1, states, added_cond_kwargs=conditions).sample
    assert noise.shape == (1, 4, 128, 128)
