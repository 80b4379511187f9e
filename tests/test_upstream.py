"""The contract with upstream: every undocumented thing of other libraries that we lean on.

Where one of them goes or changes, its test fails with a sentence that names it and our modules that need it. Only the
libraries are looked at, by their names, signatures and sources; nothing of ours is imported and no model is built.
"""

import ast
import functools
import inspect
import pkgutil
import re
import textwrap
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Name:
    """One name of another library, `path`, and our `modules` that use it.

    `takes` are parameters that we pass to it, in this order. `has` are attributes that it, or an instance of it, must
    have, each with the parameters that we pass where it is a method.
    """

    path: str
    modules: tuple[str, ...]
    takes: tuple[str, ...] = ()
    has: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.path


def having(*attributes: str, **methods: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {**dict.fromkeys(attributes, ()), **methods}


ENCODER = ("tulip_diffusion/models/text_encoder.py",)
CLIP = "transformers.models.clip.modeling_clip"
CONTRACT = (
    Name("transformers.conversion_mapping.register_checkpoint_conversion_mapping", ENCODER, ("mapping", "overwrite")),
    Name("transformers.core_model_loading.PrefixChange", ENCODER, ("prefix_to_remove",)),
    Name("transformers.utils.output_capturing.maybe_install_capturing_hooks", ENCODER, ("model",)),
    Name("transformers.utils.output_capturing._CAN_RECORD_REGISTRY", ENCODER),
    Name("transformers.utils.output_capturing.install_output_capuring_hook", ENCODER),
    Name("transformers.activations.ACT2FN", ("tulip_diffusion/models/checkpoints.py",)),
    Name("transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS", ENCODER, has=having(get_interface=("default",))),
    Name(
        "transformers.modeling_utils.PreTrainedModel",
        (*ENCODER, "tulip_diffusion/models/finelip.py", "training/embedded/clip.py"),
        has=having(
            "_no_split_modules",
            "_keys_to_ignore_on_load_unexpected",
            "input_modalities",
            "base_model_prefix",
            "post_init",
            _from_config=("config",),
            _init_weights=("module",),
        ),
    ),
    Name(
        "transformers.configuration_utils.PreTrainedConfig",
        (*ENCODER, "tulip_diffusion/evaluation/attention.py"),
        has=having("_attn_implementation", "validate_rope"),
    ),
    Name(
        f"{CLIP}.CLIPAttention",
        ENCODER,
        has=having(
            *("q_proj", "k_proj", "v_proj", "out_proj", "head_dim", "scale", "dropout"),
            forward=("hidden_states", "attention_mask", "kwargs"),
        ),
    ),
    Name(f"{CLIP}.CLIPEncoderLayer", ENCODER, has=having("self_attn", forward=("attention_mask", "kwargs"))),
    Name(
        f"{CLIP}.CLIPEncoder",
        ENCODER,
        has=having(
            "config", "layers", "gradient_checkpointing", forward=("inputs_embeds", "attention_mask", "kwargs")
        ),
    ),
    Name(f"{CLIP}.CLIPPreTrainedModel", ENCODER, has=having(_init_weights=("module",))),
    Name(
        f"{CLIP}.CLIPTextModel",
        ENCODER,
        has=having(
            *("embeddings", "encoder", "final_layer_norm", "eos_token_id"),
            forward=("input_ids", "attention_mask", "position_ids", "kwargs"),
        ),
    ),
    Name(
        f"{CLIP}.CLIPTextModelWithProjection",
        (*ENCODER, "tulip_diffusion/models/finelip.py", "pipelines/checks.py"),
        has=having("text_model", "text_projection", forward=("input_ids", "kwargs")),
    ),
    Name(f"{CLIP}.CLIPTextModelOutput", ENCODER, has=having("text_embeds", "last_hidden_state", "hidden_states")),
    Name(
        f"{CLIP}.eager_attention_forward",
        ENCODER,
        ("module", "query", "key", "value", "attention_mask", "scaling", "dropout", "kwargs"),
    ),
    Name(
        f"{CLIP}.CLIPTextEmbeddings",
        ("pipelines/encoding.py",),
        has=having("position_embedding", forward=("input_ids", "position_ids")),
    ),
    Name(
        f"{CLIP}.CLIPVisionModelWithProjection",
        ("tulip_diffusion/models/finelip.py",),
        has=having("vision_model", "visual_projection"),
    ),
    Name(f"{CLIP}.CLIPVisionModel", ("tulip_diffusion/models/finelip.py",), has=having("post_layernorm")),
    Name(
        f"{CLIP}.CLIPModel",
        ("tulip_diffusion/models/checkpoints.py", "training/embedded/clip.py"),
        has=having("text_model", "text_projection", "vision_model", "visual_projection", "logit_scale"),
    ),
    Name(
        "transformers.models.auto.configuration_auto.CONFIG_MAPPING",
        ("tulip_diffusion/registration.py",),
        has=having("_mapping", "_modules"),
    ),
    Name("transformers.image_utils.OPENAI_CLIP_MEAN", ("training/embedded/clip.py",)),
    Name("transformers.image_utils.OPENAI_CLIP_STD", ("training/embedded/clip.py",)),
    Name(
        "transformers.models.clip.tokenization_clip.CLIPTokenizer",
        ("tulip_diffusion/tokenization.py",),
        ("vocab", "merges"),
        has=having(_encode_plus=("text", "text_pair", "kwargs")),
    ),
    Name(
        "diffusers.loaders.lora_pipeline._load_lora_into_text_encoder",
        ("tulip_diffusion/registration.py",),
        ("state_dict", "network_alphas", "text_encoder"),
    ),
    Name(
        "diffusers.modular_pipelines.modular_pipeline.MODULAR_PIPELINE_MAPPING", ("tulip_diffusion/registration.py",)
    ),
    Name(
        "diffusers.modular_pipelines.modular_pipeline.PipelineState",
        ("pipelines/modular.py",),
        has=having(get=("keys",), set=("key", "value", "kwargs_type")),
    ),
    Name(
        "diffusers.modular_pipelines.modular_pipeline_utils.ConfigSpec", ("pipelines/modular.py",), ("name", "default")
    ),
    Name(
        "diffusers.modular_pipelines.modular_pipeline.ModularPipelineBlocks",
        ("pipelines/modular.py",),
        has=having("model_name", "_requirements", "expected_configs", save_config=("save_directory", "push_to_hub")),
    ),
    Name(
        "diffusers.modular_pipelines.stable_diffusion_xl.modular_pipeline.StableDiffusionXLModularPipeline",
        ("pipelines/modular.py",),
        has=having("default_blocks_name", "components", "_execution_device"),
    ),
    Name(
        "diffusers.modular_pipelines.stable_diffusion_xl.modular_blocks_stable_diffusion_xl.StableDiffusionXLAutoBlocks",
        ("pipelines/modular.py",),
        has=having("block_classes"),
    ),
    Name(
        "diffusers.modular_pipelines.stable_diffusion_xl.encoders.StableDiffusionXLTextEncoderStep",
        ("pipelines/modular.py",),
        has=having(
            encode_prompt=("components", "prompt", "device", "num_images_per_prompt", "prepare_unconditional_embeds")
        ),
    ),
    Name(
        "diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video.HunyuanVideoPipeline",
        ("pipelines/pooled.py",),
        has=having(_get_clip_prompt_embeds=("max_sequence_length",)),
    ),
    Name(
        "diffusers.pipelines.kandinsky5.pipeline_kandinsky_t2i.Kandinsky5T2IPipeline",
        ("pipelines/pooled.py",),
        has=having(_encode_prompt_clip=("prompt", "device", "dtype")),
    ),
    Name("diffusers.pipelines.pipeline_loading_utils.LOADABLE_CLASSES", ("tulip_diffusion/registration.py",)),
    Name("diffusers.pipelines.pipeline_loading_utils.ALL_IMPORTABLE_CLASSES", ("tulip_diffusion/registration.py",)),
    Name(
        "diffusers.pipelines.auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING",
        ("pipelines/tasks.py", "tulip_diffusion/other_models.py"),
    ),
    Name("diffusers.pipelines.auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING", ("pipelines/tasks.py",)),
    Name("diffusers.pipelines.auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING", ("pipelines/tasks.py",)),
    Name("diffusers.utils.peft_utils.scale_lora_layers", ("pipelines/prompts.py",), ("model", "weight")),
    Name("diffusers.utils.peft_utils.unscale_lora_layers", ("pipelines/prompts.py",), ("model", "weight")),
    Name("diffusers.utils.torch_utils.get_module_execution_device", ("pipelines/encoding.py",), ("module",)),
    Name("diffusers.models.attention.BasicTransformerBlock", ("pipelines/attention.py",), has=having("attn2")),
    Name("diffusers.models.attention_processor.Attention", ("pipelines/attention.py",), has=having("to_k")),
    Name(
        "diffusers.models.transformers.transformer_2d.Transformer2DModel",
        ("pipelines/attention.py",),
        has=having(forward=("encoder_hidden_states", "encoder_attention_mask")),
    ),
    Name(
        "diffusers.pipelines.pipeline_utils.DiffusionPipeline",
        ("pipelines/mixin.py", "tulip_diffusion/other_models.py"),
        has=having("_execution_device", register_modules=("kwargs",), progress_bar=("iterable", "total")),
    ),
    Name(
        "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl.StableDiffusionXLPipeline",
        ("pipelines/mixin.py", "demo/studio.py", "tulip_diffusion/evaluation/probes.py"),
        has=having(
            *("_interrupt", "num_timesteps", "image_processor"),
            _get_add_time_ids=(
                *("original_size", "crops_coords_top_left", "target_size", "dtype", "text_encoder_projection_dim"),
            ),
            encode_prompt=(
                *("prompt", "prompt_2", "device", "num_images_per_prompt", "do_classifier_free_guidance"),
                *("negative_prompt", "negative_prompt_2", "prompt_embeds", "negative_prompt_embeds"),
                *("pooled_prompt_embeds", "negative_pooled_prompt_embeds", "lora_scale", "clip_skip"),
            ),
        ),
    ),
    # its `lora_scale` reads our `_lora_scale`
    Name("diffusers.loaders.lora_base.LoraBaseMixin", ("pipelines/prompts.py",), has=having("_lora_scale")),
    Name(
        "diffusers.training_utils.EMAModel",
        ("training/loop.py",),
        ("parameters", "decay"),
        has=having(step=("parameters",), copy_to=("parameters",), to=("device",)),
    ),
    Name("accelerate.state.AcceleratorState", ("training/loop.py",), has=having(_reset_state=())),
    Name("open_clip.model.CLIP", ("tulip_diffusion/evaluation/encoders.py",), has=having("context_length")),
    # it also writes the texts of `info` into the PNG
    Name("gradio.processing_utils.save_pil_to_cache", ("demo/runs.py",), ("img", "cache_dir", "name", "format")),
    Name("gradio.utils.get_upload_folder", ("demo/runs.py",)),
    Name("gradio.data_classes.FileDataMeta", ("demo/api.py",), has=having("_type")),
    Name("torch.nn.Module", ("pipelines/attention.py",), has=having("_compiled_call_impl")),
    Name("torch.Tensor", ("pipelines/attention.py",), has=having("_version")),
    Name("torch.distributed.distributed_c10d._get_default_store", ("training/failures.py",)),
    Name("datasets.Dataset", ("tulip_diffusion/data/formats.py",), has=having("_fingerprint")),
)


def problem(name: Name) -> str | None:
    """A sentence on what is wrong with `name`, None if it is as we need it."""
    try:
        found = pkgutil.resolve_name(name.path)
    except (ImportError, AttributeError):
        return complaint(name, "is gone")
    lacking = missing_parameters(found, name.takes)
    present = attributes(found)
    for attribute, takes in name.has.items():
        lacking += [f"`{attribute}`"] if attribute not in present else []
        lacking += [
            f"`{attribute}` with {text}" for text in missing_parameters(getattr(found, attribute, None), takes)
        ]
    return complaint(name, f"has no {', no '.join(lacking)}") if lacking else None


def complaint(name: Name, what: str) -> str:
    return f"{name.path} {what} ({release(name.path.split('.')[0])}); needed by {', '.join(name.modules)}."


@functools.cache
def release(package: str) -> str:
    distribution = packages_distributions().get(package)
    return f"{distribution[0]} {version(distribution[0])}" if distribution else "not installed"


def missing_parameters(function: object, takes: tuple[str, ...]) -> list[str]:
    """Which of `takes` the function does not have, or the whole order where it is another."""
    if not takes or function is None:
        return []
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ["a signature"]
    missing = [f"parameter `{parameter}`" for parameter in takes if parameter not in parameters]
    in_order = [parameter for parameter in parameters if parameter in takes] == list(takes)
    return missing or ([] if in_order else [f"parameters in the order {', '.join(takes)}"])


def attributes(found: object) -> set[str]:
    """Attributes of `found`; of a class also its fields and what its methods call `self.…`."""
    bases = inspect.getmro(found) if inspect.isclass(found) else ()
    return set(dir(found)).union(*map(fields, bases))


@functools.cache
def fields(base: type) -> frozenset[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
    except (OSError, TypeError, SyntaxError):  # built in: no source, or in Python 3.13 some lines of another file
        return frozenset()
    own = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name))
    return frozenset({*inspect.get_annotations(base), *(node.attr for node in own if node.value.id == "self")})


@pytest.mark.parametrize("name", CONTRACT, ids=str)
def test_upstream_has_what_we_lean_on(name):
    assert (sentence := problem(name)) is None, sentence


def test_open_clip_ships_the_vocabulary():
    found = find_spec("open_clip")
    file = Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz") if found else Path("open_clip")
    assert file.is_file(), f"{file} is gone; needed by tulip_diffusion/tokenization.py."


def test_torch_tells_whether_a_cpu_multiplies_bfloat16():
    """An operator comes into being when it is asked for, so it is called instead of looked up."""
    import torch

    try:
        told = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        told = None
    assert isinstance(told, bool), "torch.ops.mkldnn._is_mkldnn_bf16_supported is gone; needed by devices.py."


@pytest.mark.parametrize("name", CONTRACT, ids=str)
def test_whatever_goes_is_told_with_the_modules_that_need_it(name, monkeypatch):
    """Without a name exactly that name's test fails; with a stand-in that has nothing, all that we use is named."""
    assert not any(map(problem, CONTRACT))  # everything is imported before something is taken away
    module, _, last = name.path.rpartition(".")
    owner = pkgutil.resolve_name(module)
    if last in vars(owner):
        monkeypatch.delattr(owner, last)
        assert [other for other in CONTRACT if problem(other)] == [name]
        sentence = problem(name)
        assert sentence.startswith(f"{name.path} is gone (") and sentence.endswith(f"{', '.join(name.modules)}.")
    monkeypatch.setattr(owner, last, type("StandIn", (), {"__init__": lambda self: None}), raising=False)
    sentence = problem(name) or ""
    assert all(f"`{used}`" in sentence for used in (*name.takes, *name.has))


SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("tulip_diffusion", "pipelines", "training", "demo")
    for path in sorted((ROOT / folder).rglob("*.py"))  # rglob does not follow the links in tulip_diffusion/
}
LIBRARIES = ("accelerate", "diffusers", "gradio", "open_clip", "peft", "transformers")
DOCUMENTED = {  # of what we import from their submodules
    "accelerate.logging.get_logger",
    "accelerate.utils.GradientAccumulationPlugin",
    "accelerate.utils.ProjectConfiguration",
    "accelerate.utils.align_module_device",
    "accelerate.utils.broadcast_object_list",
    "accelerate.utils.gather_object",
    "accelerate.utils.send_to_device",
    "diffusers.models.attention_processor.AttnProcessor",
    "diffusers.pipelines.stable_diffusion_xl.StableDiffusionXLPipelineOutput",
    "diffusers.utils.logging",
    "diffusers.utils.make_image_grid",
    "transformers.modeling_outputs.BaseModelOutputWithPooling",
    "transformers.utils.logging",
}
PRIVATE = re.compile(r"_[^_]")
OURS = {  # private names that our own code defines, and the documented ones of the standard library
    *("_asdict", "_exit", "_replace", "_SubParsersAction"),
    *re.findall(r"(?:def |class |self\.|^    )(_[^_]\w*)", "\n".join(SOURCES.values()), re.MULTILINE),
}


@pytest.mark.parametrize("name", CONTRACT, ids=str)
def test_modules_still_use_what_they_are_said_to_need(name):
    for module in name.modules:
        assert any(word in SOURCES[module] for word in (name.path.rpartition(".")[2], *name.has)), (
            f"{module} no longer uses {name.path}. Take it out of CONTRACT and of CONTRIBUTING.md."
        )


@pytest.mark.parametrize("module", SOURCES)
def test_whatever_a_module_leans_on_is_in_the_contract(module):
    """Imports from other libraries' submodules, and private attributes that are not our own."""
    nodes = list(ast.walk(ast.parse(SOURCES[module])))
    imported = {
        f"{node.module}.{alias.name}"
        for node in nodes
        if isinstance(node, ast.ImportFrom) and not node.level and node.module.partition(".")[0] in LIBRARIES
        for alias in node.names
        if "." in node.module
    }
    listed = [*DOCUMENTED, *(name.path for name in CONTRACT)]
    unknown = {path for path in imported if not any(f"{one}.".startswith(f"{path}.") for one in listed)}
    private = {node.attr for node in nodes if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr)}
    known = {name.path.rpartition(".")[2] for name in CONTRACT}.union(*(name.has for name in CONTRACT))
    unknown |= private - OURS - known - {"_is_mkldnn_bf16_supported"}  # called in a test of its own
    assert not unknown, f"{module} leans on {', '.join(sorted(unknown))}. Add it to CONTRACT, or to DOCUMENTED."


def test_contributing_lists_the_contract():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name.path for name in CONTRACT if f"`{name.path.rpartition('.')[2]}`" not in text] == []
