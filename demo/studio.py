"""Draws one prompt for several text encoders with one UNet and one VAE."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tulip_diffusion.other_models import draw_other_model, lost_words
from tulip_diffusion.pipelines.conditioning import Conditioning, Slot, pad_states
from tulip_diffusion.prompt_description import CONTEXTS, PromptDescription, describe_prompt

from .settings import Settings, check_text, check_tokens
from .weights import Weights, load_others, load_pipelines

PREVIEWS = 8  # of each picture, while it is drawn
PREVIEW_LATENTS = 32  # latents are shrunk to this side before a preview is decoded

Conditions = tuple[Tensor, Tensor, Tensor, Tensor]  # what `encode_prompt` gives


@dataclass(frozen=True)
class Frame:
    """How far a comparison has come: `done` of `total` steps, and the pictures that are new."""

    done: int
    total: int
    pictures: Mapping[str, Image.Image]
    finished: bool = False  # these pictures are no previews


@dataclass(frozen=True)
class Job:
    """One comparison while it is worked on: where its frames go, and whether somebody still wants them."""

    settings: Settings
    report: Callable[[Frame | Exception | None], None]
    ended: Callable[[], bool]


class Ended(Exception):
    """Nobody wants the picture any more that is being drawn."""


class Studio:
    """The encoders of `weights`, loaded when they are first needed, and a pencil that only one hand holds at a time.

    The encoders' conditionings are one batch as long as memory allows; once it has run out, they are drawn one after
    the other. Other models, `--also`, follow them, each by its own pipeline.
    """

    def __init__(self, weights: Weights | None = None):
        self.weights = weights or Weights()
        self.titles = self.weights.titles
        self.columns = (*self.titles, *self.weights.others)
        self.batched = True
        self._pipelines: dict[str, Any] = {}
        self._others: dict[str, Any] = {}
        self._loading = threading.Lock()
        self.drawing = threading.Lock()  # held by whoever draws, or sets something on the encoders for a moment

    @property
    def pipelines(self) -> dict[str, Any]:
        """A pipeline for each title. What fails to load raises here, and is tried again the next time."""
        with self._loading:
            if not self._pipelines:
                pipelines = load_pipelines(self.weights)
                large_on_cpu = not self.weights.embedded and pipelines[self.titles[0]].device.type == "cpu"
                self.batched = not large_on_cpu  # there, running out of memory is the end of the process
                self._others = load_others(self.weights)
                self._pipelines = pipelines
            return self._pipelines

    @property
    def others(self) -> dict[str, Any]:
        """The pipelines of the other models by their titles, loaded with the encoders'."""
        return self._others if self.pipelines else {}

    def describe(self, prompt: str, contexts: Mapping[str, int | None] = CONTEXTS) -> tuple[str, PromptDescription]:
        """`prompt` without white space at its end, and its description, which counts as the pipelines do.

        Raises:
            ValueError: the prompt has more characters than the page takes.
        """
        check_text("prompt", prompt)
        text = prompt.rstrip()
        return text, describe_prompt(text, self.pipelines[self.titles[0]].tokenizer, contexts)

    def unseen(self, settings: Settings) -> dict[str, str]:
        """For each column the words of the prompt that one of its encoders cannot see; of another model's, none."""
        contexts = {title: self.context(title, settings) for title in self.titles}
        readings = self.describe(settings.prompt, contexts)[1].readings
        unseen = {title: readings[title].lost for title in self.titles}
        return unseen | {title: lost_words(other, settings.prompt) for title, other in self.others.items()}

    def context(self, title: str, settings: Settings) -> int | None:
        """Tokens that reach both encoders of `title`, None for all of them."""
        pipeline = self.pipelines[title]
        own = {field.name: pipeline.config[field.name] for field in fields(Conditioning)}
        options = Conditioning(**{**own, **settings.conditioning})
        slots = (
            Slot("text_encoder", pipeline.tokenizer, pipeline.text_encoder),
            Slot("text_encoder_2", pipeline.tokenizer_2, pipeline.text_encoder_2),
        )
        return min((limit for slot in slots if (limit := slot.context(options)) is not None), default=None)

    def check(self, settings: Settings) -> None:
        """Refuse what would take too long, before any work.

        Raises:
            ValueError: with a sentence for the page.
        """
        if settings.size not in self.weights.sizes:
            sizes = ", ".join(map(str, self.weights.sizes))
            raise ValueError(f"This model draws pictures with a side of {sizes} pixels, got {settings.size!r}.")
        check_tokens("prompt", self.describe(settings.prompt)[1].tokens)
        check_tokens("negative prompt", self.describe(settings.negative)[1].tokens)

    def draw(self, settings: Settings, stopped: threading.Event | None = None) -> Iterator[Frame]:
        """Frames of one comparison as they come.

        Closing the iterator stops the denoising loop after its step; so does `stopped`, whose pictures then are the
        last previews.
        """
        self.check(settings)
        frames: queue.SimpleQueue[Frame | Exception | None] = queue.SimpleQueue()
        abandoned = threading.Event()
        job = Job(settings, frames.put, lambda: abandoned.is_set() or (stopped is not None and stopped.is_set()))
        threading.Thread(target=self._work, args=(job,), daemon=True).start()
        try:
            while (frame := frames.get()) is not None:
                if isinstance(frame, Exception):
                    raise frame
                yield frame
        finally:
            abandoned.set()

    def _work(self, job: Job) -> None:
        """Runs in a thread of its own: whoever waits for frames can stop waiting at any time."""
        try:
            with self.drawing, torch.no_grad():
                try:
                    self._draw_groups(job)
                except RuntimeError as error:
                    if not (self.batched and is_out_of_memory(error)):
                        raise
                    self.batched = False
                    torch.cuda.empty_cache()
                    self._draw_groups(job)
        except Exception as error:
            job.report(error)
        finally:
            job.report(None)

    def _draw_groups(self, job: Job) -> None:
        groups = self._groups()
        parts = len(groups) + len(self.others)
        for number, titles in enumerate(groups):
            if not job.ended():
                self._draw_group(job, titles, number, parts)
        for number, title in enumerate(self.others, len(groups)):
            if not job.ended():
                self._draw_other(job, title, number, parts)

    def _groups(self) -> list[list[str]]:
        """The titles of each batch: one for all, but a batch has one scale of attention."""
        if not self.batched:
            return [[title] for title in self.titles]
        by_scale: dict[Any, list[str]] = {}
        for title, pipeline in self.pipelines.items():
            by_scale.setdefault(pipeline.config.attention_scale, []).append(title)
        return list(by_scale.values())

    def _draw_group(self, job: Job, titles: Sequence[str], number: int, parts: int) -> None:
        """Denoise the conditionings of `titles` as one batch, all from the same noise: part `number` of `parts`."""
        settings, pipeline = job.settings, self.pipelines[titles[0]]  # any of them: the UNet is the same

        def after_step(pipeline, step: int, timestep, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            steps = pipeline.num_timesteps
            show = (step + 1) % max(1, steps // PREVIEWS) == 0 and step + 1 < steps
            pictures = self._decode_all(titles, shrink(tensors["latents"])) if show else {}
            job.report(Frame(number * steps + step + 1, parts * steps, pictures))
            pipeline._interrupt = job.ended()
            return {}

        states, negative, pooled, negative_pooled = self._encode(settings, titles)
        latents = pipeline(
            prompt_embeds=states,
            negative_prompt_embeds=negative,
            pooled_prompt_embeds=pooled,
            negative_pooled_prompt_embeds=negative_pooled,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            height=settings.size,
            width=settings.size,
            generator=[torch.Generator("cpu").manual_seed(settings.seed) for _ in titles],
            callback_on_step_end=after_step,
            output_type="latent",
        ).images
        done, total = (number + 1) * pipeline.num_timesteps, parts * pipeline.num_timesteps
        for title, row in zip(titles, latents, strict=True):
            if not job.ended():
                job.report(Frame(done, total, {title: self._decode(row)}, finished=True))

    def _draw_other(self, job: Job, title: str, number: int, parts: int) -> None:
        """The picture of another model's own call: steps and guidance are its own where nobody moved the page's."""
        settings, weights = job.settings, self.weights
        total = parts * settings.steps

        def after_step(done: int, steps: int) -> None:
            if job.ended():
                raise Ended
            job.report(Frame(number * settings.steps + done * settings.steps // steps, total, {}))

        try:
            picture = draw_other_model(
                self.others[title],
                settings.prompt,
                settings.seed,
                steps=settings.steps if settings.steps != weights.steps else None,
                guidance=settings.guidance if settings.guidance != weights.guidance else None,
                negative=settings.negative.strip() or None,
                after_step=after_step,
            )
        except Ended:
            return
        job.report(Frame((number + 1) * settings.steps, total, {title: picture}, finished=True))

    def _encode(self, settings: Settings, titles: Sequence[str]) -> Conditions:
        """States and pooled vectors of all titles, filled up to one length with zeros, which attention leaves out."""
        rows: list[Conditions] = []
        for title in titles:
            pipeline = self.pipelines[title]
            with pipeline.conditioned(**settings.conditioning):
                rows.append(pipeline.encode_prompt(settings.prompt, negative_prompt=settings.negative.strip() or None))
        length = max(states.shape[1] for states, *_ in rows)
        states, negative, pooled, negative_pooled = zip(*rows, strict=True)
        return (
            torch.cat([pad_states(row, length) for row in states]),
            torch.cat([pad_states(row, length) for row in negative]),
            torch.cat(pooled),
            torch.cat(negative_pooled),
        )

    def _decode_all(self, titles: Sequence[str], latents: Tensor) -> dict[str, Image.Image]:
        return {title: self._decode(row) for title, row in zip(titles, latents, strict=True)}

    def _decode(self, latents: Tensor) -> Image.Image:
        """The picture of one row of latents, (channels, height, width), which SDXL keeps scaled and maybe centred."""
        pipeline = self.pipelines[self.titles[0]]
        config = pipeline.vae.config
        latents = latents[None].to(pipeline.vae.dtype) / config.scaling_factor
        if config.latents_mean is not None and config.latents_std is not None:
            mean, std = (latents.new_tensor(v).view(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
            latents = latents * std + mean
        decoded = pipeline.vae.decode(latents, return_dict=False)[0]
        return pipeline.image_processor.postprocess(decoded)[0]


def shrink(latents: Tensor) -> Tensor:
    """`latents` (batch, channels, height, width) averaged down to a side of at most `PREVIEW_LATENTS`."""
    side = min(PREVIEW_LATENTS, latents.shape[-1])
    return F.interpolate(latents, size=(side, side), mode="area")


def is_out_of_memory(error: BaseException) -> bool:
    """Also on a CPU, where torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
