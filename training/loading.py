"""Loading what the command line names."""

from functools import partial
from typing import Any

from transformers import AutoTokenizer, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from tulip_diffusion.data import Captions, open_captions, open_stream
from tulip_diffusion.models.checkpoints import ClipTowers, load_clip, load_text_encoder
from tulip_diffusion.models.text_encoder import TulipTextModelWithProjection
from tulip_diffusion.tokenization import load_tokenizer

from .config import Sources


def tokenizer(source: str | None, arguments) -> PreTrainedTokenizerBase:
    """The tokenizer in folder `source`, or CLIP's own, with the text cleaning that CLIP was trained with."""
    if source is not None:
        return AutoTokenizer.from_pretrained(source)
    return load_tokenizer(max_length=getattr(arguments, "length", 248), clean=True)


def captions(sources: Sources, with_images: bool) -> Captions:
    """The data, listed, or streamed where that is asked for."""
    opening = partial(open_stream, shuffle_rows=sources.shuffle_rows) if sources.stream else open_captions
    assert sources.data is not None
    return opening(
        sources.data,
        sources.data_format,
        sources.image_root,
        with_images=with_images,
        split=sources.data_split,
        max_bad_share=sources.max_bad_share,
    )


def text_encoder(
    source: str, hidden_act: str | None = None, subfolder: str | None = None
) -> CLIPTextModelWithProjection:
    """The teacher's text encoder, of several that in `subfolder`; `hidden_act` is what a bare file cannot say."""
    teacher = load_text_encoder(source, subfolder=subfolder, **overrides(hidden_act))
    if isinstance(teacher, TulipTextModelWithProjection):
        raise ValueError(f"--teacher {source} is a TULIP encoder already; name the CLIP that it should learn from.")
    return teacher


def clip(source: str, hidden_act: str | None = None) -> ClipTowers:
    """Both towers of the teacher."""
    return load_clip(source, **overrides(hidden_act))


def overrides(hidden_act: str | None) -> dict[str, Any]:
    """What a file without a configuration cannot say, as the loaders' keyword."""
    return {} if hidden_act is None else {"hidden_act": hidden_act}


def student(source: str | None) -> TulipTextModelWithProjection | None:
    """The encoder to go on from; a CLIP text encoder is refused, because it has other positions."""
    if source is None:
        return None
    encoder = load_text_encoder(source)
    if not isinstance(encoder, TulipTextModelWithProjection):
        raise ValueError(
            f"--student {source} is a {type(encoder).__name__}, not an encoder that `train distill` made."
        )
    return encoder
