"""Our classes under their names in transformers and diffusers, without importing either.

`DiffusionPipeline.from_pretrained`, the AutoPipelines, `AutoConfig` and `AutoModel` find classes through tables of
names. Ours are entered when the module with the table has been imported, before `tulip_diffusion` or after it; the
classes behind the names are imported when somebody asks for them.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

CONFIGURATIONS = {"tulip_text_model": "TulipTextConfig"}
COMPONENTS = ("TulipTextModel", "TulipTextModelWithProjection")


def add_configurations(configuration_auto: ModuleType) -> None:
    """`AutoConfig` finds our configurations; a model registers with `AutoModel` beside its configuration."""
    mapping = configuration_auto.CONFIG_MAPPING
    for model_type, name in CONFIGURATIONS.items():
        mapping._mapping[model_type] = name
        mapping._modules[model_type] = library()


def add_pipeline_names(diffusers: ModuleType) -> None:
    """`diffusers.StableDiffusionXLTulipPipeline` is ours, and so on: saved folders name a class without a module."""

    def find(name: str) -> Any:
        if name.startswith("StableDiffusionXLTulip") and name in library().__all__:
            return getattr(library(), name)
        raise AttributeError(f"module {diffusers.__name__!r} has no attribute {name!r}")

    diffusers.__getattr__ = find  # type: ignore[method-assign]  # asked before diffusers' own lazy names, PEP 562


def add_components(loading: ModuleType) -> None:
    """Saved folders name `tulip_diffusion` as the library of our text encoders, and diffusers may load from it."""
    loading.LOADABLE_CLASSES["tulip_diffusion"] = {name: ["save_pretrained", "from_pretrained"] for name in COMPONENTS}
    loading.ALL_IMPORTABLE_CLASSES.update(loading.LOADABLE_CLASSES["tulip_diffusion"])


def add_tasks(auto_pipeline: ModuleType) -> None:
    """The AutoPipelines compare classes, not names, and have imported the stock ones."""
    importlib.import_module("tulip_diffusion.pipelines").add_tasks(auto_pipeline)


def add_modular(modular_pipeline: ModuleType) -> None:
    """Folders of our pipelines, and blocks that begin with our text encoder, become modular pipelines of ours."""
    for task in ("", "-controlnet", "-controlnet-union"):  # the keys that `add_tasks` makes, of what its blocks do
        modular_pipeline.MODULAR_PIPELINE_MAPPING[f"stable-diffusion-xl{task}-tulip"] = modular_class


def modular_class(config: dict | None = None) -> str:
    return "StableDiffusionXLTulipModularPipeline"


def read_lora_names(lora_pipeline: ModuleType) -> None:
    """LoRA files put `text_model.` before the names of CLIP's layers, which a model that is its own text model lacks.

    diffusers takes it off for models without the attribute `text_model`; a [`TulipTextModel`] has it all the same.
    """
    load = lora_pipeline._load_lora_into_text_encoder

    @functools.wraps(load)
    def load_flat(state_dict, network_alphas, text_encoder, **kwargs):
        if getattr(text_encoder, "text_model", None) is text_encoder:
            state_dict = {name.replace(".text_model.", ".", 1): weight for name, weight in state_dict.items()}
        return load(state_dict=state_dict, network_alphas=network_alphas, text_encoder=text_encoder, **kwargs)

    lora_pipeline._load_lora_into_text_encoder = load_flat  # type: ignore[attr-defined]


TABLES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": add_configurations,
    "diffusers": add_pipeline_names,
    "diffusers.pipelines": add_pipeline_names,  # where diffusers' own tests look
    "diffusers.pipelines.pipeline_loading_utils": add_components,
    "diffusers.pipelines.auto_pipeline": add_tasks,
    "diffusers.modular_pipelines.modular_pipeline": add_modular,
    "diffusers.loaders.lora_pipeline": read_lora_names,
}


def library() -> ModuleType:
    """This package, which may not be imported as a whole yet."""
    return sys.modules["tulip_diffusion"]


class AfterImport(MetaPathFinder):
    """Finds the modules in `TABLES` as Python does, and enters our names when such a module has run."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's own spec, which enters our names in it once it has run; None for all other modules."""
        if name not in TABLES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_enter(module: ModuleType) -> None:
            run(module)
            TABLES[name](sys.modules[name])  # diffusers puts another module in its own place

        spec.loader.exec_module = run_and_enter  # type: ignore[method-assign]  # of this one import
        return spec


def register() -> None:
    """Enter our names now where the table is there, later where it is not."""
    for name, enter in TABLES.items():
        if name in sys.modules:
            enter(sys.modules[name])
    sys.meta_path.insert(0, AfterImport())
