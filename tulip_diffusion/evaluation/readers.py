"""Texts and pictures through one pair of CLIP-like towers, for the probes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CLIPImageProcessor, PreTrainedTokenizerBase

from tulip_diffusion.models.checkpoints import ClipTowers
from tulip_diffusion.models.positions import table_length

ENCODERS_HELP = "of the family, or files, folders and Hub ids of other CLIPs"
TOKENS_AT_ONCE = 16384  # of a batch of texts, pads included


@dataclass(frozen=True)
class Reader:
    """A text tower with its image tower and its tokenizer, in evaluation mode."""

    towers: ClipTowers
    tokenizer: PreTrainedTokenizerBase

    @property
    def limit(self) -> int | None:
        """Tokens that the text tower has positions for, BOS and EOS included; None for any number."""
        return table_length(self.towers.text_encoder)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without BOS and EOS, however long it is."""
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids

    def enclose(self, ids: Sequence[int]) -> Tensor:
        """(tokens,) as the text tower reads them: BOS, the ids that it has room for, EOS."""
        room = len(ids) if self.limit is None else self.limit - 2
        return torch.tensor([self.tokenizer.bos_token_id, *ids[:room], self.tokenizer.eos_token_id])

    @torch.no_grad()
    def embed_ids(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Unit vectors (texts, dim) of texts given as ids without BOS and EOS."""
        encoder = self.towers.text_encoder
        rows = [self.enclose(row) for row in ids]
        batch = max(1, TOKENS_AT_ONCE // max(map(len, rows)))
        embeds = []
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            padded = pad_sequence(part, batch_first=True, padding_value=self.tokenizer.eos_token_id)
            mask = pad_sequence([torch.ones_like(row) for row in part], batch_first=True)
            output = encoder(padded.to(encoder.device), attention_mask=mask.to(encoder.device))
            embeds.append(F.normalize(output.text_embeds.float().cpu(), dim=-1))
        return torch.cat(embeds)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (texts, dim)."""
        return self.embed_ids(self.tokenize(texts))

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Unit vectors (images, dim), after CLIP's preprocessing at the image tower's size.

        Raises:
            ValueError: the source of the towers has no image tower.
        """
        encoder = self.towers.image_encoder
        if encoder is None:
            raise ValueError("This probe compares texts with images, but the checkpoint holds a text encoder alone.")
        size = encoder.config.image_size
        processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
        embeds = []
        for first in range(0, len(images), batch):
            pixels = processor(list(images[first : first + batch]), return_tensors="pt").pixel_values
            output = encoder(pixels.to(encoder.device, encoder.dtype))
            embeds.append(F.normalize(output.image_embeds.float().cpu(), dim=-1))
        return torch.cat(embeds)
