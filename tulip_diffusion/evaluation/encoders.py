"""One way to open an encoder for evaluation, whatever it is and wherever it lies."""

import argparse
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPImageProcessor, CLIPTokenizer, PreTrainedTokenizerBase

from tulip_diffusion.data import as_seen
from tulip_diffusion.embedded import ASSETS, ENCODERS, load_embedded_towers
from tulip_diffusion.models.checkpoints import ClipTowers, load_clip
from tulip_diffusion.models.finelip import FineLIP, FineLIPModel, fine_score, load_finelip
from tulip_diffusion.models.positions import table_length
from tulip_diffusion.provenance import weights_hash
from tulip_diffusion.tokenization import load_tokenizer

from .processes import device_of

Score = Callable[[Tensor, Tensor], Tensor]  # blocks of image and text features to similarities, larger is nearer
PUBLISHED_LENGTH = 248  # tokens at which TULIP's and Long-CLIP's evaluations cut
TOKENS_AT_ONCE = 16384  # of a batch of texts, pads included


class Embeds(Protocol):
    """What retrieval asks of an encoder: features (n, …) of pictures and of texts, and what identifies them.

    The keys change with weights and preprocessing. `score` compares features, None is the cosine; `length` is the
    tokens that are read of a text, None for all of them.
    """

    @property
    def name(self) -> str:
        """What tables and plots call it."""

    @property
    def length(self) -> int | None:
        """Tokens that it reads of a text, None for all."""

    @property
    def image_key(self) -> str:
        """Changes with all that features of pictures depend on."""

    @property
    def text_key(self) -> str:
        """Changes with all that features of texts depend on."""

    @property
    def score(self) -> Score | None:
        """Compares blocks of features; None is the cosine."""

    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (pictures, …) in float32 on the CPU."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features (texts, …) in float32 on the CPU."""


@dataclass(eq=False)
class Encoder:
    """A text tower with its image tower, tokenizer and image processor, in evaluation mode on `device`.

    A text of more than `length` tokens, BOS and EOS included, is cut. By default that is what the text tower has
    positions for, and None for any number. `processor` is CLIP's at the image tower's size by default.
    """

    name: str
    towers: ClipTowers | FineLIP
    tokenizer: PreTrainedTokenizerBase
    processor: Any = None
    length: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for part in self.parts:
            part.to(self.device).eval()
        table = table_length(self.towers.text_encoder)
        if self.length is not None and not 3 <= self.length <= (table or self.length):
            room = f"from 3 to {table}" if table else "3 or more"
            raise ValueError(f"--length must be {room} for {self.name}, got {self.length}.")
        self.length = self.length or table
        if self.processor is None and self.towers.image_encoder is not None:
            size = self.towers.image_encoder.config.image_size
            self.processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)

    @property
    def parts(self) -> list[nn.Module]:
        """The models: text tower, image tower, refinement, as far as there are any."""
        return [part for part in self.towers if isinstance(part, nn.Module)]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without BOS and EOS, however long it is."""
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids

    def enclose(self, ids: Sequence[int]) -> Tensor:
        """(tokens,) as the text tower is given them: BOS, the ids that it has room for, EOS."""
        room = len(ids) if self.length is None else self.length - 2
        return torch.tensor([self.tokenizer.bos_token_id, *ids[:room], self.tokenizer.eos_token_id])

    @torch.no_grad()
    def encode_ids(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Features (texts, dim), for FineLIP (texts, slots + 1, dim), of texts given as ids without BOS and EOS."""
        rows = [self.enclose(row) for row in ids]
        batch = max(1, TOKENS_AT_ONCE // max(map(len, rows)))
        features = []
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            padded = pad_sequence(part, batch_first=True, padding_value=self.tokenizer.eos_token_id).to(self.device)
            mask = pad_sequence([torch.ones_like(row) for row in part], batch_first=True).to(self.device)
            if isinstance(self.towers, FineLIP):
                features.append(self.towers.encode_texts(padded, mask).float().cpu())
            else:
                features.append(self.towers.text_encoder(padded, attention_mask=mask).text_embeds.float().cpu())
        return torch.cat(features)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features (texts, dim), for FineLIP (texts, slots + 1, dim)."""
        return self.encode_ids(self.tokenize(texts))

    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (pictures, dim), for FineLIP (pictures, slots + 1, dim)."""
        return self.encode_pixels(
            self.processor([as_seen(picture) for picture in pictures], return_tensors="pt").pixel_values
        )

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The same of pixels (pictures, 3, size, size), as `processor` makes them."""
        tower = self.towers.image_encoder
        assert tower is not None  # `open_pair` has refused
        pixels = pixels.to(self.device, tower.dtype)
        if isinstance(self.towers, FineLIP):
            return self.towers.encode_images(pixels).float().cpu()
        return tower(pixel_values=pixels).image_embeds.float().cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (texts, dim)."""
        return F.normalize(self.encode_texts(texts), dim=-1)

    def embed_images(self, pictures: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Unit vectors (pictures, dim)."""
        parts = [self.encode_images(pictures[first : first + batch]) for first in range(0, len(pictures), batch)]
        return F.normalize(torch.cat(parts), dim=-1)

    @property
    def score(self) -> Score | None:
        """FineLIP's own, or None for the cosine."""
        return fine_score if isinstance(self.towers, FineLIP) else None

    @cached_property
    def image_key(self) -> str:
        """Changes with the image tower and its preprocessing."""
        return fingerprint(*self.part_keys[1:], self.processor)

    @cached_property
    def text_key(self) -> str:
        """Changes with the text tower, its tokenizer and the length of texts."""
        words = type(self.tokenizer).__name__, sorted(self.tokenizer.get_vocab().items())
        return fingerprint(self.part_keys[0], *self.part_keys[2:], *words, self.length)

    @cached_property
    def part_keys(self) -> list[str]:
        """One for each of `parts`, of weights and configuration."""
        return [fingerprint(weights_hash(part), part.config) for part in self.parts]


def fingerprint(*parts: object) -> str:
    """SHA-256 of what `parts` look like as text."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    return digest.hexdigest()


def open_encoder(source: str, options: argparse.Namespace) -> Encoder:
    """The encoder that one word of `--encoders` names, for evaluations of its texts or of its tokens.

    A folder's own tokenizer and image processor are used where it has them, else CLIP's, with open_clip's cleaning.

    Raises:
        ValueError, FileNotFoundError: as [`load_clip`] and [`load_embedded_towers`].
        ValueError: a model of open_clip, of which retrieval alone can be asked.
    """
    length, device = getattr(options, "length", None), device_of(options.device)
    if source in ENCODERS:
        towers, tokenizer = family_towers(source, options.assets)
        return Encoder(source, towers, tokenizer, length=length, device=device)
    if source.startswith("open_clip:"):
        raise ValueError(f"--encoders {source}: open_clip's models are for `evaluate retrieval` alone.")
    if source.startswith("finelip:"):
        source = source.removeprefix("finelip:")
        own = tokenizer_and_processor(Path(source))
        return Encoder(f"{Path(source).name} fine", load_finelip(source), *own, length, device)
    towers = load_clip(source, getattr(options, "layout", "auto"), rope=getattr(options, "rope", None))
    return Encoder(Path(source).name, towers, *tokenizer_and_processor(Path(source)), length, device)


def open_pair(source: str, options: argparse.Namespace) -> "Encoder | OpenClip":
    """As [`open_encoder`], with open_clip's models, for evaluations that compare texts with pictures.

    Raises:
        ValueError: there is no image tower.
    """
    if source.startswith("open_clip:"):
        return OpenClip(*architecture_and_weights(source), device_of(options.device))
    return open_towers(source, options)


def open_towers(source: str, options: argparse.Namespace) -> Encoder:
    """As [`open_encoder`], for evaluations that compare pictures with texts token by token.

    Raises:
        ValueError: there is no image tower, or it is a model of open_clip.
    """
    encoder = open_encoder(source, options)
    if encoder.towers.image_encoder is None:
        raise ValueError(f"{source} has no image tower, so no picture can be compared. Name a whole CLIP.")
    return encoder


def family_towers(name: str, assets: Path = ASSETS) -> tuple[ClipTowers | FineLIP, PreTrainedTokenizerBase]:
    """Towers of the embedded family's second slot, for FineLIP with its refinement, and their tokenizer."""
    towers = load_embedded_towers(name, assets)
    tokenizer = CLIPTokenizer.from_pretrained(Path(assets) / "tokenizer_2")
    refinement = Path(assets) / "encoders" / name / "finelip_2"
    if not refinement.is_dir():
        return towers, tokenizer
    return FineLIP(*towers[:2], FineLIPModel.from_pretrained(refinement).float()), tokenizer


def tokenizer_and_processor(folder: Path) -> tuple[PreTrainedTokenizerBase, Any]:
    """The tokenizer and the image processor that lie in `folder`; CLIP's own, and None, where there are none."""
    own = any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json"))
    tokenizer = CLIPTokenizer.from_pretrained(folder) if own else load_tokenizer(clean=True)
    own = (folder / "preprocessor_config.json").is_file()
    return tokenizer, CLIPImageProcessor.from_pretrained(folder) if own else None


def published_length(encoder: Encoder) -> int:
    """Tokens at which papers on retrieval cut texts: its positions, for RoPE at least the published 248."""
    return encoder.length or max(PUBLISHED_LENGTH, encoder.towers.text_encoder.config.max_position_embeddings)


def architecture_and_weights(source: str) -> tuple[str, str]:
    """The two behind `open_clip:`.

    Raises:
        ValueError: there are not two.
    """
    parts = source.split(":", 2)
    if len(parts) != 3:
        raise ValueError(f"--encoders {source}: write open_clip:ARCHITECTURE:WEIGHTS, as open_clip:ViT-L-14:openai.")
    return parts[1], parts[2]


class OpenClip:
    """An open_clip model, such as "ViT-L-14" with a checkpoint file or one of its pretrained names."""

    score = None

    def __init__(self, architecture: str, weights: str, device: str = "cpu"):
        import open_clip

        made = open_clip.create_model_and_transforms(architecture, pretrained=weights, device=device)
        self.model, self.preprocess = made[0].eval(), made[2]
        self.tokenizer = open_clip.get_tokenizer(architecture)
        self.name, self.length, self.device = f"open_clip {architecture}", self.model.context_length, device
        key = fingerprint(weights_hash(self.model), architecture)
        self.image_key, self.text_key = fingerprint(key, self.preprocess), fingerprint(key, self.length)

    @torch.no_grad()
    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Features (pictures, dim)."""
        pixels = torch.stack([self.preprocess(as_seen(picture)) for picture in pictures])
        return self.model.encode_image(pixels.to(self.device)).float().cpu()

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Features (texts, dim), cut at the model's own length."""
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float().cpu()
