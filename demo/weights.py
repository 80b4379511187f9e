"""Which models the demo compares, and how they are loaded so that one UNet and one VAE serve all text encoders."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tulip_diffusion.devices import check_device
from tulip_diffusion.embedded import ASSETS, ENCODERS, checked
from tulip_diffusion.generate import load_pipeline
from tulip_diffusion.other_models import check_other_model, hub_file, load_other_model, titles_of

TITLES = {name: ENCODERS[name].title for name in ("clip", "longclip", "finelip", "tulip")}  # of the page's columns
SHARED = ("unet", "vae", "scheduler")
# What a real model's encoders do with prompts that outgrow them: as in the work that published each of them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "CLIP": {"overflow": "truncate"},
    "Long-CLIP": {"overflow": "stretch", "sequence_length": 248},
    "FineLIP": {"overflow": "stretch", "sequence_length": 248},
    "TULIP": {"overflow": "windows"},
}


@dataclass(frozen=True)
class Weights:
    """Where the models come from: the embedded family in `assets`, or SDXL and encoders for its first slot.

    `finelip` is True for the family's own, which is not among the columns otherwise. `also` are other text-to-image
    pipelines, folders or Hub ids, for a column each.

    Raises:
        ValueError: encoders are given without a model, or a model without anything to compare it with.
    """

    model: str | None = None
    tulip: str | None = None
    longclip: str | None = None
    assets: Path = ASSETS
    device: str | None = None
    finelip: str | bool | None = None
    also: tuple[str, ...] = ()

    def __post_init__(self):
        encoders = [name for name in ("tulip", "longclip", "finelip") if isinstance(getattr(self, name), str)]
        if self.model is None and encoders:
            raise ValueError(f"--{encoders[0]} needs --model, the SDXL weights that the encoder is to condition.")
        if self.model is not None and (not (encoders or self.also) or self.finelip is True):
            raise ValueError("--model needs encoders to set beside its own: --tulip, --longclip or --finelip FILE.")

    def check(self) -> None:
        """Notice what is missing before anything opens; a Hub id is asked for its smallest file.

        Raises:
            ValueError: the device cannot be used, or the Hub does not have a model.
            FileNotFoundError: a folder or file is not there.
        """
        if self.device is not None:
            check_device(self.device)
        for source in self.also:
            check_other_model(source)
        if self.embedded:
            for encoder, title in TITLES.items():
                if title in self.titles:
                    checked(encoder, self.assets)
            return
        for name in ("model", "tulip", "longclip", "finelip"):
            source = getattr(self, name)
            if source is not None:
                check_source(name, source, "model_index.json" if name == "model" else "config.json")

    @property
    def embedded(self) -> bool:
        """Whether the embedded family draws."""
        return self.model is None

    @property
    def titles(self) -> tuple[str, ...]:
        """The encoders' names in the order of the page's columns."""
        given = {"CLIP": True, "Long-CLIP": self.longclip, "FineLIP": self.finelip, "TULIP": self.tulip}
        if self.embedded:
            given |= {"Long-CLIP": True, "TULIP": True}
        return tuple(title for title in TITLES.values() if given[title])

    @property
    def others(self) -> dict[str, str]:
        """The other models by the titles of their columns, which stand behind the encoders'."""
        return {title: source for source, title in titles_of(self.also, self.titles).items()}

    @property
    def steps(self) -> int:
        """Denoising steps that the page starts with."""
        return 25 if self.embedded else 30

    @property
    def guidance(self) -> float:
        """Guidance scale that the page starts with."""
        return 3.0 if self.embedded else 5.0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the pictures in pixels, the default last; the embedded family's UNet knows one size."""
        return (64,) if self.embedded else (512, 768, 1024)


def check_source(option: str, source: str, smallest: str) -> None:
    """See that `source` is a file, a folder, or a Hub id whose file `smallest` can be had.

    Raises:
        FileNotFoundError: it is neither.
    """
    if Path(source).expanduser().exists():
        return
    hub_file(option, source, smallest)


def load_pipelines(weights: Weights) -> dict[str, Any]:
    """A pipeline for each of `weights.titles`; UNet, VAE and scheduler are the same objects in all of them."""
    pipelines = dict(embedded_pipelines(weights) if weights.embedded else model_pipelines(weights))
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def load_others(weights: Weights) -> dict[str, Any]:
    """The other models' pipelines by their titles."""
    return {title: load_other_model(source, weights.device) for title, source in weights.others.items()}


def embedded_pipelines(weights: Weights) -> Iterator[tuple[str, Any]]:
    """Each column's title with its pipeline; the first one's UNet, VAE and scheduler serve all."""
    shared: dict[str, Any] = {}
    for encoder, title in TITLES.items():
        if title not in weights.titles:
            continue
        pipeline = load_pipeline(encoder, device=weights.device, assets=weights.assets, **shared)
        shared = {name: pipeline.components[name] for name in SHARED}
        yield title, pipeline


def model_pipelines(weights: Weights) -> Iterator[tuple[str, Any]]:
    """The second encoder is shared as well: only the first slot's encoders differ."""
    import torch

    from tulip_diffusion.pipelines.checks import load_first_encoder

    base = load_pipeline(None, weights.model, weights.device)
    sources = (None, weights.longclip, weights.finelip, weights.tulip)
    for title, source in zip(TITLES.values(), sources, strict=True):
        if title in weights.titles:
            encoder = load_first_encoder(str(source), base.text_encoder.dtype) if source else base.text_encoder
            pipeline = type(base).from_pipe(base, text_encoder=encoder.to(base.device))
            pipeline.set_conditioning(**PUBLISHED[title])
            yield title, pipeline
    if base.vae.config.force_upcast:  # last, since `from_pipe` would take all else to float32 and back
        base.vae.to(torch.float32)  # SDXL's own overflows in half precision
