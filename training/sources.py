"""Loading what the command line names."""

from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerBase,
)

from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection
from tulip_diffusion.tokenization import load_tokenizer

from .towers import ClipTowers


def tokenizer(source: str | None, arguments) -> PreTrainedTokenizerBase:
    """The tokenizer in folder `source`, or CLIP's own, with the text cleaning that CLIP was trained with."""
    if source is not None:
        return AutoTokenizer.from_pretrained(source)
    return load_tokenizer(max_length=getattr(arguments, "length", 248), clean=True)


def text_encoder(source: str) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection.from_pretrained(source, dtype="float32")


def clip(source: str) -> ClipTowers:
    return ClipTowers.from_clip(CLIPModel.from_pretrained(source, dtype="float32"))


def student(source: str | None) -> TulipTextModelWithProjection | None:
    """The encoder to go on from; a CLIP text encoder is refused, because it has other positions."""
    if source is None:
        return None
    model_type = AutoConfig.from_pretrained(source).model_type
    if model_type != "tulip_text_model":
        raise ValueError(f"--student {source} is a {model_type}. It must be an encoder that `train distill` made.")
    return TulipTextModelWithProjection.from_pretrained(source, dtype="float32")
