"""Encoders that turn pictures and captions into embeddings, and a cache on disk, so that nothing is encoded twice."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPTokenizer, PreTrainedTokenizerBase

from tulip_diffusion.models.checkpoints import ClipTowers, load_clip
from tulip_diffusion.models.finelip import FineLIP, fine_score, load_finelip
from tulip_diffusion.models.text_encoder import TulipTextConfig
from tulip_diffusion.tokenization import load_tokenizer

from .datasets import RetrievalSet

PUBLISHED_LENGTH = 248  # tokens at which TULIP's and Long-CLIP's evaluations cut


@dataclass(frozen=True)
class Encoder:
    """Two functions and what identifies them.

    `encode_images` takes RGB pictures and `encode_texts` captions; both return (n, …) features for `recall_at_k` with
    `score`, None for the cosine. The keys change with weights and preprocessing. `length` is in tokens.
    """

    name: str
    encode_images: Callable[[list[Image.Image]], Tensor]
    encode_texts: Callable[[list[str]], Tensor]
    image_key: str
    text_key: str
    length: int
    score: Callable[[Tensor, Tensor], Tensor] | None = None


def text_length(config: Any) -> int:
    """Tokens that a text encoder is given: its positions, for RoPE at least the published evaluations' 248."""
    if isinstance(config, TulipTextConfig) and config.position_encoding == "rope":
        return max(PUBLISHED_LENGTH, config.max_position_embeddings)
    return config.max_position_embeddings


def from_towers(
    name: str,
    towers: ClipTowers | FineLIP,
    tokenizer: PreTrainedTokenizerBase,
    processor: Any = None,
    length: int | None = None,
    device: str = "cpu",
) -> Encoder:
    """Encoder of a text and an image tower, for FineLIP with its refinement and its fine score.

    A caption beyond `length` tokens is cut, its last token becoming EOS.

    Raises:
        ValueError: there is no image tower.
    """
    if towers.image_encoder is None:
        raise ValueError(f"{name} has no image tower, so there is nothing to retrieve. Name a whole CLIP.")
    parts = [part.to(device).eval() for part in towers if isinstance(part, nn.Module)]
    size, dtype = towers.image_encoder.config.image_size, towers.image_encoder.dtype
    processor = processor or CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)
    length = length or text_length(towers.text_encoder.config)
    read = functions_of(towers)

    @torch.no_grad()
    def encode_images(pictures: list[Image.Image]) -> Tensor:
        pixels = processor(pictures, return_tensors="pt").pixel_values
        return read.images(pixels.to(device, dtype)).float().cpu()

    @torch.no_grad()
    def encode_texts(texts: list[str]) -> Tensor:
        ids = tokenizer(texts, truncation=True, max_length=length, padding=True, return_tensors="pt").to(device)
        return read.texts(ids.input_ids, ids.attention_mask).float().cpu()

    text, image, *rest = (weights_key(part) for part in parts)
    words = (type(tokenizer).__name__, str(sorted(tokenizer.get_vocab().items())), length)
    keys = fingerprint(image, *rest, str(processor)), fingerprint(text, *rest, *words)
    return Encoder(name, encode_images, encode_texts, *keys, length, read.score)


class Functions(NamedTuple):
    """Pixels to features, ids and mask to features, and how these are compared."""

    images: Callable[[Tensor], Tensor]
    texts: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor] | None


def functions_of(towers: ClipTowers | FineLIP) -> Functions:
    if isinstance(towers, FineLIP):
        return Functions(towers.encode_images, towers.encode_texts, fine_score)
    text_encoder, image_encoder, _ = towers
    assert image_encoder is not None
    return Functions(
        lambda pixels: image_encoder(pixel_values=pixels).image_embeds,
        lambda ids, mask: text_encoder(ids, attention_mask=mask).text_embeds,
        None,
    )


def from_source(source: str, length: int | None = None, device: str = "cpu", **load: Any) -> Encoder:
    """Encoder of any checkpoint that `load_clip` reads: a file, a transformers CLIPModel folder or a Hub id.

    A folder's own tokenizer and image processor are used where it has them, else CLIP's. `load` goes to `load_clip`
    (`layout`, `rope`).
    """
    return from_towers(
        Path(source).name, load_clip(source, **load), *tokenizer_and_processor(Path(source)), length, device
    )


def from_finelip(source: str, length: int | None = None, device: str = "cpu") -> Encoder:
    """Encoder of a whole FineLIP, a folder of `train finelip` or a published file, scored as FineLIP*."""
    folder = Path(source)
    return from_towers(f"{folder.name} fine", load_finelip(source), *tokenizer_and_processor(folder), length, device)


def tokenizer_and_processor(folder: Path) -> tuple[PreTrainedTokenizerBase, Any]:
    """The tokenizer and the image processor that lie in `folder`; CLIP's own, and None, where there are none."""
    own = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
    tokenizer = CLIPTokenizer.from_pretrained(folder) if own else load_tokenizer(clean=True)
    own = (folder / "preprocessor_config.json").is_file()
    return tokenizer, CLIPImageProcessor.from_pretrained(folder) if own else None


def from_open_clip(architecture: str, weights: str, device: str = "cpu") -> Encoder:
    """Encoder of an open_clip model, such as "ViT-L-14" with a checkpoint file or one of its pretrained names."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(architecture, pretrained=weights, device=device)
    model.eval()
    tokenize = open_clip.get_tokenizer(architecture)

    @torch.no_grad()
    def encode_images(pictures: list[Image.Image]) -> Tensor:
        return model.encode_image(torch.stack([preprocess(picture) for picture in pictures]).to(device)).float().cpu()

    @torch.no_grad()
    def encode_texts(texts: list[str]) -> Tensor:
        return model.encode_text(tokenize(texts).to(device)).float().cpu()

    key = weights_key(model)
    length = model.context_length
    return Encoder(
        f"open_clip {architecture}",
        encode_images,
        encode_texts,
        fingerprint(key, str(preprocess)),
        fingerprint(key, str(length)),
        length,
    )


def weights_key(module: nn.Module) -> str:
    """Changes with any weight, name or setting of `module`."""
    key = hashlib.sha256(repr(getattr(module, "config", module)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        key.update(name.encode())
        key.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return key.hexdigest()


def fingerprint(*parts: object) -> str:
    key = hashlib.sha256()
    for part in parts:
        key.update(f"{part}\0".encode())
    return key.hexdigest()


def embed(
    encoder: Encoder, data: RetrievalSet, cache: Path | None = None, batch: int = 64, progress: bool = False
) -> tuple[Tensor, Tensor]:
    """Features of all images and of all captions, from `cache` where this encoder has seen this data."""
    pictures = fingerprint(encoder.image_key, *map(data.image_identity, range(len(data.images))))
    captions = fingerprint(encoder.text_key, *data.captions)

    def encode_images(rows: range) -> Tensor:
        return encoder.encode_images([data.picture(row) for row in rows])

    def encode_texts(rows: range) -> Tensor:
        return encoder.encode_texts([data.captions[row] for row in rows])

    def all_of(encode: Callable[[range], Tensor], count: int, key: str, what: str) -> Tensor:
        file = None if cache is None else cache / f"{key}.safetensors"
        if file is not None and file.is_file():
            return load_file(file)["features"]
        name = f"{encoder.name}, {what} of {data.name}"
        features = torch.cat(batched(encode, count, batch, name if progress else None))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.part")
            save_file({"features": features}, partial)
            partial.replace(file)
        return features

    return (
        all_of(encode_images, len(data.images), pictures, "images"),
        all_of(encode_texts, len(data.captions), captions, "captions"),
    )


def batched(encode: Callable[[range], Tensor], count: int, batch: int, name: str | None) -> list[Tensor]:
    """`encode` of every range of at most `batch` rows; a bar shows the progress where it has a name."""
    starts = tqdm(range(0, count, batch), desc=name, disable=name is None, mininterval=5)
    return [encode(range(start, min(start + batch, count))) for start in starts]
