"""Ways into a pipeline: stock weights with a TULIP encoder from a file, and from one pipeline to another."""

import os
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..tokenization import thread_safe
from .checks import check_components, check_folder, first_encoder, load_first_encoder

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline as Stock  # or whichever class the mixin stands before
else:
    Stock = object


class TulipLoadingMixin(Stock):
    """`tulip=` for a stock SDXL pipeline class's loaders, and checks of its components."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *,
        tulip: str | os.PathLike | None = None,
        layout: str | None = None,
        rope: str | None = None,
        **kwargs,
    ):
        """Load a pipeline, stock SDXL or saved by this class, from a folder or Hub id.

        `tulip` names the file, folder or Hub id of an encoder to put in the first slot; `layout` and `rope` say how to
        read it, as in [`load_text_encoder`]. Everything else is as in
        [`~diffusers.DiffusionPipeline.from_pretrained`].

        Raises:
            ValueError: `layout` or `rope` without `tulip`, or the folder is not whole.
        """
        kwargs |= _first_slot(tulip, layout, rope, kwargs)
        check_folder(pretrained_model_name_or_path, passed=kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path,
        *,
        tulip: str | os.PathLike | None = None,
        layout: str | None = None,
        rope: str | None = None,
        **kwargs,
    ):
        """[`~diffusers.loaders.FromSingleFileMixin.from_single_file`]; `tulip`, `layout` and `rope` as above."""
        kwargs |= _first_slot(tulip, layout, rope, kwargs)
        return super().from_single_file(pretrained_model_link_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline, **kwargs):
        """[`~diffusers.DiffusionPipeline.from_pipe`], but components keep their dtype unless `dtype` is given."""
        if "dtype" in kwargs or "torch_dtype" in kwargs:
            return super().from_pipe(pipeline, **kwargs)
        components = {**pipeline.components, **kwargs}
        dtypes = [(module, module.dtype) for module in components.values() if isinstance(module, nn.Module)]
        # diffusers casts all components to one dtype, float32 if none is given, which loses nothing on the way back.
        shared = {dtype for _, dtype in dtypes}
        dtype = shared.pop() if len(shared) == 1 else torch.float32
        made = super().from_pipe(pipeline, dtype=dtype, **kwargs)
        for module, own in dtypes:
            if module.dtype != own:
                module.to(own)
        return made

    def register_modules(self, **modules) -> None:
        """Called by every stock constructor with all components, so this is where they are checked."""
        if modules.get("text_encoder") is not None:
            modules["text_encoder"] = first_encoder(modules["text_encoder"])
        check_components(modules)
        for name in ("tokenizer", "tokenizer_2"):
            if modules.get(name) is not None:
                thread_safe(modules[name])  # a prompt may be described while another one is drawn
        super().register_modules(**modules)


def _first_slot(tulip: str | os.PathLike | None, layout: str | None, rope: str | None, kwargs: dict) -> dict:
    """The component that `tulip` names, read as `layout` and `rope` say; nothing without `tulip`."""
    options = {name: value for name, value in (("layout", layout), ("rope", rope)) if value is not None}
    if tulip is None:
        if options:
            raise ValueError(f"{' and '.join(options)} says how to read the encoder given as tulip=…; pass that too.")
        return {}
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
    return {"text_encoder": load_first_encoder(os.fspath(tulip), dtype, **options)}
