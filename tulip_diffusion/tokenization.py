"""CLIP's tokenizer, with no network and any length."""

import functools
import gzip
import html
import importlib.util
import threading
from pathlib import Path
from typing import Any, TypeVar

from transformers import BatchEncoding, CLIPTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from .models.positions import CLIP_LENGTH

Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)
_encoding = threading.RLock()

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_VOCABULARY = 49408
CLIP_MERGES = 49152 - 256 - 2  # the file holds more; CLIP was trained with this many


def merges_file() -> Path:
    """The BPE file that open_clip ships, found without importing open_clip and the vision models behind it."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")


def byte_characters() -> list[str]:
    """The characters that stand for the 256 bytes, in the order of their ids: printable ones for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]


@functools.cache
def clip_vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """CLIP's vocabulary (49,408 tokens to ids) and its merges in order, from the BPE file that open_clip ships."""
    with gzip.open(merges_file(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : 1 + CLIP_MERGES]
    merges = tuple((first, second) for first, second in map(str.split, lines))
    characters = byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *("".join(merge) for merge in merges), BOS, EOS]
    return {token: index for index, token in enumerate(tokens)}, merges


def clean_text(text: str) -> str:
    """Clean `text` as open_clip does: mojibake mended, HTML entities resolved twice, white space folded, lower case.

    The names of the special tokens are exchanged as well: open_clip calls them `<start_of_text>` and `<end_of_text>`,
    and reads transformers' names as plain text.
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    text = " ".join(text.split()).lower()
    text = text.replace(BOS, "<| startoftext |>").replace(EOS, "<| endoftext |>")
    return text.replace("<start_of_text>", BOS).replace("<end_of_text>", EOS)


def thread_safe(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer` itself, which from now on encodes for one thread at a time, whoever calls it.

    transformers keeps padding and truncation in the tokenizer: each call sets them, then encodes. A thread that comes
    between the two gets its text padded or cut as the other thread wanted.
    """
    if not isinstance(tokenizer.__dict__.get("_encode_plus"), _OneAtATime):
        tokenizer._encode_plus = _OneAtATime(tokenizer)
    return tokenizer


class _OneAtATime:
    """`tokenizer._encode_plus` under a lock; an object, so that tokenizers stay picklable and copyable."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        with _encoding:
            return type(self.tokenizer)._encode_plus(self.tokenizer, *args, **kwargs)


class OpenClipTokenizer(CLIPTokenizer):
    """`CLIPTokenizer` with open_clip's text cleaning: the ids that CLIP models were trained on, for any string.

    Offsets refer to the cleaned text. An exclamation mark in the text keeps its own id where `"!"` is also the pad
    token, as it is in SDXL's second tokenizer; `CLIPTokenizer` gives it the pad's id, 0.
    """

    def __init__(self, *args, pad_token: str = EOS, **kwargs):
        super().__init__(*args, pad_token=EOS, **kwargs)
        self.pad_token = pad_token  # set afterwards, so that it is not cut out of the text as a special token

    def _encode_plus(self, text, text_pair=None, **kwargs):
        def clean(value):
            return clean_text(value) if isinstance(value, str) else [clean(item) for item in value]

        text_pair = None if text_pair is None else clean(text_pair)
        with _encoding:
            return super()._encode_plus(clean(text), text_pair, **kwargs)


def load_tokenizer(max_length: int = CLIP_LENGTH, pad_token: str = EOS, clean: bool = False) -> CLIPTokenizer:
    """CLIP's tokenizer with the real vocabulary, read from installed files alone. Threads may share it.

    Args:
        max_length: `model_max_length`, in tokens, BOS and EOS included.
        pad_token: SDXL pads its first encoder with EOS (id 49407, the default) and its second with `"!"` (id 0).
        clean: clean texts as open_clip does, see [`OpenClipTokenizer`]. SDXL in diffusers does not.

    Raises:
        ValueError: `max_length` leaves no room for a word, or `pad_token` is not one token.
    """
    if max_length < 3:
        raise ValueError(f"max_length must be 3 or more (BOS, one token, EOS), got {max_length}.")
    vocabulary, merges = clip_vocabulary()
    if pad_token not in vocabulary:
        raise ValueError(f'pad_token must be one of CLIP\'s tokens, such as "{EOS}" or "!", got {pad_token!r}.')
    tokenizer_class = OpenClipTokenizer if clean else CLIPTokenizer
    tokenizer = tokenizer_class(dict(vocabulary), list(merges), pad_token=pad_token, model_max_length=max_length)
    return thread_safe(tokenizer)


def tokenizer_of(config: PreTrainedConfig) -> CLIPTokenizer | None:
    """The tokenizer for a text encoder of `config`, as long as its positions; None if its vocabulary is not CLIP's."""
    if config.vocab_size != CLIP_VOCABULARY:
        return None
    return load_tokenizer(max(config.max_position_embeddings, CLIP_LENGTH))
