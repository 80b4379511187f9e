"""What diffusers promises of every pipeline: its life cycle, callbacks, adapters and savings, held to ours."""

import inspect
import json
import os

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.source_code_parsing_utils import ReturnNameVisitor
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from tests.pipelines.tiny_sdxl import components, inputs, quiet, tulip_encoder, words
from tulip_diffusion import pipelines
from tulip_diffusion.pipelines import PIPELINES, StableDiffusionXLTulipPipeline, tulip_pipeline
from tulip_diffusion.pipelines.attention import uncompiled

SOME = [
    pipelines.StableDiffusionXLTulipPipeline,
    pipelines.StableDiffusionXLTulipInpaintPipeline,
    pipelines.StableDiffusionXLTulipControlNetPipeline,
    pipelines.StableDiffusionXLTulipPAGPipeline,
]
TASKS = pytest.mark.parametrize("tulip_class", SOME, ids=lambda cls: cls.__name__)
LONG = words(160)


def build(tulip_class=StableDiffusionXLTulipPipeline, **parts):
    return quiet(tulip_class(**components(tulip_class, **{"text_encoder": tulip_encoder(), **parts})))


def image_of(pipe, prompt=LONG, **arguments):
    return pipe(**inputs(type(pipe), prompt, **arguments)).images


@pytest.mark.parametrize("tulip_class", PIPELINES, ids=lambda cls: cls.__name__)
def test_signatures_are_the_stock_ones(tulip_class):
    stock = tulip_class.__bases__[1]
    for method in ("__call__", "encode_prompt"):
        ours, theirs = (inspect.signature(getattr(cls, method)).parameters for cls in (tulip_class, stock))
        assert list(ours) == list(theirs)
        assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    assert tulip_class._get_signature_keys(tulip_class)[0] == stock._get_signature_keys(stock)[0]
    assert (
        getattr(diffusers, tulip_class.__name__) is getattr(diffusers.pipelines, tulip_class.__name__) is tulip_class
    )


@TASKS
def test_encode_prompt_works_in_isolation(tulip_class):
    """One pipeline with nothing but encoders, another without any, as diffusers' own test takes them apart."""
    parts = components(tulip_class, text_encoder=tulip_encoder())
    text = {name: part if "text" in name or "tokenizer" in name else None for name, part in parts.items()}
    rest = {name: None if "text" in name or "tokenizer" in name else part for name, part in parts.items()}
    visitor = ReturnNameVisitor()
    visitor.visit(visitor.get_ast_tree(tulip_class))
    with torch.no_grad():
        encoded = tulip_class(**text).encode_prompt(LONG, negative_prompt="bad")
    embeds = dict(zip(visitor.return_names, encoded, strict=True))
    image = image_of(quiet(tulip_class(**rest)), None, **embeds)
    np.testing.assert_allclose(image, image_of(build(tulip_class), negative_prompt="bad"), atol=1e-5)


@TASKS
def test_saving_and_loading_keeps_images_and_options(tulip_class, tmp_path):
    pipe = build(tulip_class)
    pipe.set_conditioning(overflow="stretch", attention_scale="log")
    expected = image_of(pipe)
    pipe.save_pretrained(tmp_path)
    for loader in (tulip_class, DiffusionPipeline):
        loaded = quiet(loader.from_pretrained(tmp_path))
        assert type(loaded) is tulip_class
        assert loaded._conditioning == pipe._conditioning
        np.testing.assert_allclose(image_of(loaded), expected, atol=1e-5)


def test_the_encoder_reloads_inside_a_stock_pipeline(tmp_path):
    stock = StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline, text_encoder=tulip_encoder()))
    stock.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["text_encoder"] == ["tulip_diffusion", "TulipTextModel"]
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode_prompt("a cat")[0], stock.encode_prompt("a cat")[0])


def test_variants_and_dtypes(tmp_path):
    pipe = build()
    pipe.save_pretrained(tmp_path, variant="fp16")
    assert any(".fp16." in name for name in os.listdir(tmp_path / "text_encoder"))
    dtypes = {"unet": torch.bfloat16, "default": torch.float16}
    loaded = StableDiffusionXLTulipPipeline.from_pretrained(tmp_path, variant="fp16", dtype=dtypes)
    assert (loaded.unet.dtype, loaded.text_encoder.dtype) == (torch.bfloat16, torch.float16)
    with pytest.raises(ValueError, match="variant=bf16"):
        StableDiffusionXLTulipPipeline.from_pretrained(tmp_path, variant="bf16")


@TASKS
def test_from_pipe_there_and_back_keeps_dtypes_config_and_images(tulip_class):
    stock_class = tulip_class.__bases__[1]
    stock = quiet(stock_class(**components(stock_class)))
    expected = image_of(stock, words(20))
    ours = quiet(tulip_class.from_pipe(stock))
    assert np.array_equal(image_of(ours, words(20)), expected)
    back = stock_class.from_pipe(ours)
    public = [{k: v for k, v in dict(p.config).items() if not k.startswith("_")} for p in (stock, back)]
    assert public[0] == public[1]

    ours.set_conditioning(overflow="truncate")
    ours.unet.to(torch.float16)
    again = tulip_class.from_pipe(ours)
    assert (again.unet.dtype, again.vae.dtype) == (torch.float16, torch.float32)
    assert again._conditioning.overflow == "truncate"
    assert tulip_class.from_pipe(ours.to(torch.bfloat16)).text_encoder.dtype == torch.bfloat16


def test_auto_pipelines_find_our_classes(tmp_path):
    build().save_pretrained(tmp_path)
    text = AutoPipelineForText2Image.from_pretrained(tmp_path)
    control = components(pipelines.StableDiffusionXLTulipControlNetPipeline)["controlnet"]
    found = {
        "": text,
        "Img2Img": AutoPipelineForImage2Image.from_pretrained(tmp_path),
        "Inpaint": AutoPipelineForInpainting.from_pipe(text),
        "ControlNet": AutoPipelineForText2Image.from_pretrained(tmp_path, controlnet=control),
        "PAG": AutoPipelineForText2Image.from_pipe(text, enable_pag=True),
    }
    assert {kind: type(pipe).__name__ for kind, pipe in found.items()} == {
        kind: f"StableDiffusionXLTulip{kind}Pipeline" for kind in found
    }
    StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline)).save_pretrained(tmp_path / "stock")
    assert type(AutoPipelineForText2Image.from_pretrained(tmp_path / "stock")) is StableDiffusionXLPipeline


@pytest.mark.parametrize("named_by", ["argument", "folder"])
def test_a_custom_pipeline_may_name_our_class(named_by, tmp_path):
    """As `custom_pipeline=`, or in the `_class_name` of a folder that brings a pipeline.py along."""
    StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline)).save_pretrained(tmp_path)
    (tmp_path / "pipeline.py").write_text("from tulip_diffusion import StableDiffusionXLTulipPipeline\n")
    arguments = {"custom_pipeline": str(tmp_path / "pipeline.py")}
    if named_by == "folder":
        index = json.loads((tmp_path / "model_index.json").read_text())
        index["_class_name"] = ["pipeline", "StableDiffusionXLTulipPipeline"]
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        arguments = {}
    loaded = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True, **arguments)
    assert type(loaded) is StableDiffusionXLTulipPipeline


def test_others_pipelines_get_long_prompts_too():
    class Sketcher(StableDiffusionXLPipeline):
        pass

    sketcher = tulip_pipeline(Sketcher)
    assert sketcher is tulip_pipeline(Sketcher)
    assert sketcher(**components(Sketcher, text_encoder=tulip_encoder())).encode_prompt(LONG)[0].shape == (1, 162, 64)
    assert tulip_pipeline(StableDiffusionXLPipeline) is StableDiffusionXLTulipPipeline
    with pytest.raises(TypeError, match="encode_prompt"):
        tulip_pipeline(diffusers.FluxPipeline)


@TASKS
def test_callbacks_may_change_and_read_every_tensor(tulip_class):
    pipe = build(tulip_class)

    def zero_at_the_end(pipe, step, timestep, tensors):
        assert set(tensors) == set(pipe._callback_tensor_inputs)
        last = step == pipe.num_timesteps - 1
        return {**tensors, "latents": tensors["latents"] * (not last)}

    names = pipe._callback_tensor_inputs
    arguments = {"callback_on_step_end": zero_at_the_end, "callback_on_step_end_tensor_inputs": names}
    assert image_of(pipe, output_type="latent", **arguments).abs().sum() == 0


def test_guidance_may_end_early():
    pipe = build()

    def end_guidance(pipe, step, timestep, tensors):
        if step == 0:
            pipe._guidance_scale = 0.0
            return {name: tensors[name].chunk(2)[-1] for name in ("prompt_embeds", "add_text_embeds", "add_time_ids")}
        return {}

    names = ["prompt_embeds", "add_text_embeds", "add_time_ids"]
    arguments = {"callback_on_step_end": end_guidance, "callback_on_step_end_tensor_inputs": names}
    assert np.isfinite(image_of(pipe, negative_prompt=words(20), **arguments)).all()


def test_interruption_stops_the_loop():
    pipe, steps = build(), []

    def interrupt(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = True
        return {}

    image_of(pipe, callback_on_step_end=interrupt, num_inference_steps=4)
    assert steps == [0]


@pytest.mark.parametrize("tulip_class", SOME[::2])
def test_several_images_of_a_prompt_and_guidance_rescale(tulip_class):
    pipe = build(tulip_class)
    parameters = inspect.signature(tulip_class.__call__).parameters
    rescale = {"guidance_rescale": 0.5} if "guidance_rescale" in parameters else {}
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8, 7, 8)]
    texts = {"negative_prompt": ["bad", words(100)]}
    images = image_of(pipe, [words(20), LONG], num_images_per_prompt=2, generator=generators, **texts, **rescale)
    alone = image_of(pipe, LONG, negative_prompt=words(100), generator=torch.Generator().manual_seed(8), **rescale)
    np.testing.assert_allclose(images[3], alone[0], atol=1e-4)
    assert np.abs(images[2] - images[3]).max() > 1e-3


def test_schedulers_vae_savings_attention_slicing_freeu_and_fused_projections():
    pipe = build()
    expected = image_of(pipe, [words(20), LONG])
    pipe.unet.set_default_attn_processor()
    for name in (
        "enable_attention_slicing",
        "fuse_qkv_projections",
        "unfuse_qkv_projections",
        "disable_attention_slicing",
    ):
        getattr(pipe, name)()
        np.testing.assert_allclose(image_of(pipe, [words(20), LONG]), expected, atol=1e-4)
    pipe.vae.enable_slicing()
    np.testing.assert_allclose(image_of(pipe, [words(20), LONG]), expected, atol=1e-4)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert np.abs(image_of(pipe, [words(20), LONG]) - expected).max() > 1e-5
    pipe.disable_freeu()
    for scheduler in (getattr(diffusers, scheduler.name) for scheduler in KarrasDiffusionSchedulers):
        if "dummy" not in scheduler.__module__:  # some need packages that we do not
            pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
            assert image_of(pipe, num_inference_steps=5).shape == (1, 32, 32, 3)


def lora(pipe, rank: int = 4) -> None:
    """Add a LoRA of random weights to both text encoders."""
    torch.manual_seed(5)
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        targets = ["q_proj", "k_proj", "v_proj", "out_proj"]
        encoder.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False), "style"
        )


def test_lora_scale_reaches_the_encoders_and_is_taken_back():
    pipe = build()
    plain = pipe.encode_prompt(LONG, negative_prompt=words(20))
    lora(pipe)
    full = pipe.encode_prompt(LONG, negative_prompt=words(20))
    half = pipe.encode_prompt(LONG, negative_prompt=words(20), lora_scale=0.5)
    none = pipe.encode_prompt(LONG, negative_prompt=words(20), lora_scale=0.0)
    for index in range(4):
        torch.testing.assert_close(none[index], plain[index], atol=1e-5, rtol=1e-5)
        assert (full[index] - half[index]).abs().max() > 1e-4
        assert (half[index] - plain[index]).abs().max() > 1e-4
    assert torch.equal(pipe.encode_prompt(LONG, negative_prompt=words(20))[0], full[0])
    scaled = image_of(pipe, cross_attention_kwargs={"scale": 0.5})
    assert np.abs(scaled - image_of(pipe)).max() > 1e-6


def test_lora_files_for_clip_load(tmp_path):
    """A LoRA saved from stock SDXL, in diffusers' format, changes a TULIP encoder as peft says it should."""
    stock = StableDiffusionXLPipeline(**components(StableDiffusionXLPipeline))
    lora(stock)
    layers = {
        f"{name}_lora_layers": get_peft_model_state_dict(getattr(stock, name), adapter_name="style")
        for name in ("text_encoder", "text_encoder_2")
    }
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, **layers)
    pipe = build()
    before = pipe.encode_prompt(LONG)[0]
    pipe.load_lora_weights(tmp_path)
    loaded = get_peft_model_state_dict(pipe.text_encoder, adapter_name="default_0")
    for name, weight in layers["text_encoder_lora_layers"].items():
        assert torch.equal(loaded[name], weight)
    moved = (pipe.encode_prompt(LONG)[0] - before).abs().amax(dim=(0, 1))
    assert moved[:32].max() > 1e-4 and moved[32:].max() > 1e-4
    pipe.unload_lora_weights()
    assert torch.equal(pipe.encode_prompt(LONG)[0], before)


def test_kohyas_lora_files_load_and_equal_merged_weights(tmp_path):
    pipe, merged = build(), build()
    torch.manual_seed(4)
    weights = {}
    for slot in ("text_encoder", "text_encoder_2"):
        encoder = getattr(merged, slot)
        layers = getattr(encoder, "text_model", encoder).encoder.layers
        for number, layer in enumerate(layers):
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                down, up, alpha = torch.randn(4, 32) * 0.3, torch.randn(32, 4) * 0.3, torch.tensor(2.0)
                key = f"lora_te{1 + slot.endswith('2')}_text_model_encoder_layers_{number}_self_attn_{name}"
                weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
                getattr(layer.self_attn, name).weight.data += up @ down * alpha / 4
    save_file(weights, tmp_path / "kohya.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="kohya.safetensors")
    for ours, expected in zip(pipe.encode_prompt(LONG), merged.encode_prompt(LONG), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def ip_adapter_weights(unet) -> dict:
    """Random IP-Adapter weights for `unet`, in the published files' layout."""
    torch.manual_seed(6)
    width, attention = unet.config.cross_attention_dim, {}
    for key, name in enumerate(name for name in unet.attn_processors if name.endswith("attn2.processor")):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for kind in ("k", "v"):
            attention[f"{2 * key + 1}.to_{kind}_ip.weight"] = torch.randn(hidden, width) * 0.1
    projection = {
        "proj.weight": torch.randn(width * 4, 32),
        "proj.bias": torch.zeros(width * 4),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": attention}


def test_ip_adapter_leaves_long_prompts_alone():
    pipe = build()
    prompts, negatives = [words(20), LONG], ["bad", words(90)]
    plain = image_of(pipe, prompts, negative_prompt=negatives)
    pipe.unet._load_ip_adapter_weights([ip_adapter_weights(pipe.unet)])
    torch.manual_seed(8)
    embeds = torch.randn(2, 1, 32)
    pipe.set_ip_adapter_scale(0.0)
    off = image_of(pipe, prompts, negative_prompt=negatives, ip_adapter_image_embeds=[embeds])
    np.testing.assert_allclose(off, plain, atol=1e-4)
    pipe.set_ip_adapter_scale(1.0)
    on = image_of(pipe, prompts, negative_prompt=negatives, ip_adapter_image_embeds=[embeds])
    assert np.abs(on - plain).max() > 1e-4
    alone = image_of(pipe, prompts[1], negative_prompt=negatives[1], ip_adapter_image_embeds=[embeds])
    np.testing.assert_allclose(on[1], alone[0], atol=1e-4)


def counting(graphs: list):
    """A back end for `torch.compile` that counts."""

    def compiled(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    return compiled


def test_a_compiled_unet_is_compiled_once_for_a_bucket():
    pipe, graphs = build(), []
    expected = [image_of(pipe, words(tokens)) for tokens in (100, 120, 150)]
    torch._dynamo.reset()
    pipe.unet = torch.compile(pipe.unet, backend=counting(graphs), fullgraph=True)
    for tokens, image in zip((100, 120, 150), expected, strict=True):
        np.testing.assert_allclose(image_of(pipe, words(tokens)), image, atol=1e-5)
        assert len(graphs) == 1


@pytest.mark.parametrize("how", ["function", "in place", "blocks"])
def test_networks_that_stock_pipelines_compiled_and_ran_get_the_mask(how):
    """A graph that was traced without a mask, on prompts as long, knows nothing of ours."""
    tulip_class = pipelines.StableDiffusionXLTulipControlNetPipeline
    pipe, graphs = build(tulip_class), []
    prompts = [words(20), LONG]
    expected = image_of(pipe, prompts), image_of(pipe, prompts, attention_scale=1.5)
    embeds = pipe.encode_prompt([LONG, LONG], negative_prompt=[LONG, LONG])
    torch._dynamo.reset()
    for name in ("unet", "controlnet"):
        if how == "function":
            setattr(pipe, name, torch.compile(getattr(pipe, name), backend=counting(graphs)))
        elif how == "in place":
            getattr(pipe, name).compile(backend=counting(graphs))
        elif name == "unet":
            pipe.unet.compile_repeated_blocks(backend=counting(graphs))
    stock = quiet(tulip_class.__bases__[1](**pipe.components))
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    stock(**inputs(type(stock), prompts) | {"prompt": None, **dict(zip(names, embeds, strict=True))})
    assert graphs
    for image, scale in zip(expected, (None, 1.5), strict=True):
        np.testing.assert_allclose(image_of(pipe, prompts, attention_scale=scale), image, atol=1e-5)


def test_calls_of_compiled_networks_that_overlap_leave_the_compiler_as_it_was():
    """The compiler's stance is one for all threads: each putting back what it found would leave the other's."""
    network, graphs = build().unet, []
    compiled = torch.compile(network, backend=counting(graphs))
    first, second = uncompiled(compiled), uncompiled(compiled)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    double = torch.compile(lambda tensor: 2 * tensor, backend=counting(graphs))
    assert double(torch.ones(2)).sum() == 4 and not graphs
    second.__exit__(None, None, None)
    assert double(torch.ones(2)).sum() == 4 and graphs


def test_textual_inversions_of_several_vectors_in_weighted_prompts():
    pipe = build()
    vectors = torch.randn(3, 32)
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        pipe.load_textual_inversion(vectors, token="<toy>", tokenizer=tokenizer, text_encoder=encoder)
    prompt = f"a (<toy>:1.5) {words(100)}"
    weighted, plain = (pipe.encode_prompt(text)[0][0] for text in (prompt, f"a <toy> {words(100)}"))
    torch.testing.assert_close(weighted[2:5], 1.5 * plain[2:5])
    torch.testing.assert_close(weighted[5:], plain[5:])
    assert pipe.encode_prompt(f"a <toy> {words(100)}")[2].isfinite().all()
    assert pipe.describe_prompt(prompt).pieces[1:4] == ("<toy>",) * 3


@pytest.mark.parametrize("name", ["MyToy", "<Cat-Toy>", "toyhouse"])
def test_every_vector_of_a_textual_inversion_is_read(name):
    """Against the encoder itself, which is given the vectors' ids."""
    pipe = build()
    for token in (name, f"{name}house"):
        pipe.load_textual_inversion(torch.randn(3, 32), token=token)
    first = pipe.tokenizer.convert_tokens_to_ids(name)
    a, cat = pipe.tokenizer("a cat", add_special_tokens=False).input_ids
    row = [49406, a, first, first + 1, first + 2, cat]
    ids = torch.tensor([row + [49407] * (77 - len(row))])
    expected = pipe.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(pipe.encode_prompt(f"a {name} cat")[0][..., :32], expected)
