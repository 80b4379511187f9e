"""Any other diffusers text-to-image model beside ours: what it is, what it draws, and which words it cannot see."""

import bisect
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

NEEDED = {"prompt", "num_images_per_prompt", "generator"}
# What a pipeline takes that draws from more than text, or draws something else than pictures.
FOREIGN = {"image", "mask_image", "control_image", "num_frames", "video_length", "frame_size", "token_indices"}


def titles_of(sources: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """A title for each of `sources`: its last part, or all of it where that part is taken already."""
    titles: dict[str, str] = {}
    for source in sources:
        short = Path(source).name or source
        titles[source] = source if short in {*taken, *titles.values()} else short
    return titles


def check_other_model(source: str) -> None:
    """Refuse what is no text-to-image pipeline by its model_index.json alone, before anything is loaded.

    Raises:
        ValueError: a file, a folder without a pipeline, or a pipeline that draws from more than a prompt.
        FileNotFoundError: neither here nor on the Hub.
    """
    folder = Path(source).expanduser()
    if folder.is_file():
        raise ValueError(
            f"--also {source} is a file. Give a pipeline's folder or Hub id, as from_pretrained takes it."
        )
    index = folder / "model_index.json"
    if folder.is_dir() and not index.is_file():
        raise ValueError(f"--also {source} is no pipeline's folder: it holds no model_index.json.")
    if not folder.is_dir():
        index = hub_file("also", source, "model_index.json")
    try:
        name = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--also {source}: its model_index.json names no pipeline ({error}).") from error
    if not draws_from_text(name):
        raise ValueError(
            f"--also {source} is no text-to-image pipeline that diffusers knows, but a {name}. Give one that draws a "
            "picture from a prompt alone, such as PixArtSigmaPipeline or StableDiffusion3Pipeline."
        )


def hub_file(option: str, source: str, name: str) -> Path:
    """The file `name` of the Hub repository `source`, fetched.

    Raises:
        FileNotFoundError: there is no such repository or file, or no connection.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError):
        raise FileNotFoundError(
            f"--{option} {source} is no file or folder here, and cannot be had from the Hugging Face Hub. Check the "
            "spelling and the connection."
        ) from None


def draws_from_text(name: Any) -> bool:
    """Whether diffusers has a pipeline `name` that makes pictures from a prompt and nothing else."""
    import diffusers
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    pipeline_class = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (inspect.isclass(pipeline_class) and issubclass(pipeline_class, diffusers.DiffusionPipeline)):
        return False
    _, *taken = inspect.signature(pipeline_class.__call__).parameters.values()
    names = {parameter.name for parameter in taken}
    required = {
        parameter.name
        for parameter in taken
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    foreign = FOREIGN & names
    if pipeline_class in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values() and "Control" not in name:
        foreign.discard("image")  # such as FLUX Kontext, which can do with a picture and without
    return names >= NEEDED and not foreign and required <= {"prompt"} and "Prior" not in name


def load_other_model(source: str, device: str | None = None) -> Any:
    """The pipeline in `source`, a folder or Hub id, as its own class loads it.

    In float32 on a CPU; elsewhere in bfloat16, since T5 overflows in half precision, where the device has that.

    Raises:
        ValueError: this machine has no such device.
    """
    import torch
    from diffusers import DiffusionPipeline

    from .devices import best_device, check_device

    device = check_device(device or best_device())
    dtype = torch.float32
    if device != "cpu":
        has_bfloat16 = not device.startswith("cuda") or torch.cuda.is_bf16_supported()
        dtype = torch.bfloat16 if has_bfloat16 else torch.float16
    return DiffusionPipeline.from_pretrained(source, dtype=dtype).to(device)


def draw_other_model(
    pipeline: Any,
    prompt: str,
    seed: int,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    after_step: Callable[[int, int], None] | None = None,
) -> Any:
    """The picture of the model's own call; what is None, or not among what it takes, is left to the model.

    `after_step` hears of the steps that are done and of all steps; what it raises ends the drawing.
    """
    asked = {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative}
    takes = inspect.signature(type(pipeline).__call__).parameters
    given = {name: value for name, value in asked.items() if value is not None and name in takes}

    import torch

    if after_step is not None:
        pipeline.progress_bar = lambda iterable=None, total=None: StepBar(after_step, iterable, total)
    try:
        return pipeline(prompt=prompt, generator=torch.Generator("cpu").manual_seed(seed), **given).images[0]
    finally:
        if after_step is not None:
            del pipeline.progress_bar


class StepBar:
    """Stands in a pipeline's progress bar's place, the one thing that every pipeline tells its steps to."""

    def __init__(self, after_step: Callable[[int, int], None], iterable: Any = None, total: int | None = None):
        self.after_step, self.iterable, self.done = after_step, iterable, 0
        self.total = len(iterable) if total is None else total

    def __enter__(self) -> "StepBar":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, steps: int = 1) -> None:
        self.done += steps
        self.after_step(self.done, self.total)

    def close(self) -> None:
        pass

    def set_description(self, text: str | None = None) -> None:
        pass


def lost_words(pipeline: Any, prompt: str) -> str:
    """The end of `prompt` that none of the model's text encoders sees, as it was typed; a word cut in two is lost."""
    seen = [
        len(prompt) if limit is None else seen_length(tokenizer, limit, prompt, lowered(pipeline))
        for tokenizer, limit in tokenizers_of(pipeline)
    ]
    return prompt[max(seen, default=len(prompt)) :].strip()


def tokenizers_of(pipeline: Any) -> list[tuple[Any, int | None]]:
    """Each tokenizer whose text encoder is there, with the tokens that its encoder is given, or None for no limit."""
    parts = pipeline.components
    found = [
        part
        for name, part in parts.items()
        if "tokenizer" in name
        and part is not None
        and parts.get(name.replace("tokenizer", "text_encoder")) is not None
    ]
    return [(tokenizer, limit_of(pipeline, tokenizer)) for tokenizer in found]


def limit_of(pipeline: Any, tokenizer: Any) -> int | None:
    """How many tokens the model's own call keeps: its `max_sequence_length`, but of CLIP's the tokenizer's own."""
    from transformers import CLIPTokenizer

    from .pipelines.mixin import TulipPromptMixin

    if isinstance(pipeline, TulipPromptMixin):
        return None  # one of ours: long prompts are what it is for
    if not isinstance(tokenizer, CLIPTokenizer):
        methods = [getattr(type(pipeline), name, None) for name in ("__call__", "encode_prompt")]
        for takes in [inspect.signature(method).parameters for method in methods if method is not None]:
            if "max_sequence_length" in takes and isinstance(takes["max_sequence_length"].default, int):
                return takes["max_sequence_length"].default
    return tokenizer.model_max_length


def lowered(pipeline: Any) -> bool:
    """Whether the model reads prompts in small letters, as those do that clean captions before T5."""
    return "clean_caption" in inspect.signature(type(pipeline).__call__).parameters


def seen_length(tokenizer: Any, limit: int, prompt: str, lower: bool = False) -> int:
    """How many characters of `prompt` fit into `limit` tokens in whole words, the tokenizer's own marks included."""
    ends = [word.end() for word in re.finditer(r"\S+", prompt)]

    def is_cut(end: int) -> bool:
        text = prompt[:end].lower() if lower else prompt[:end]
        return len(tokenizer(text, verbose=False).input_ids) > limit

    whole = bisect.bisect_left(ends, True, key=is_cut)
    return ends[whole - 1] if whole else 0
