"""CLIP's two towers as the contrastive stages take, train and save them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from tulip_diffusion.data import BadRow, CaptionData, Captions, UsableRow, open_reference
from tulip_diffusion.models.positions import stretch_position_embeddings

from .batches import long_batch, short_batch, sub_caption_batch
from .cutting import CaptionCutter, CutCaption
from .stage import Chunk, Rows

ROWS_TRIED = 100  # neighbours to try before the images count as missing altogether


class LearnedPositions(nn.Module):
    """A position table whose first `keep` rows stay as they are and whose others train (Long-CLIP, section 3.1)."""

    def __init__(self, table: Tensor, keep: int):
        super().__init__()
        self.kept = nn.Buffer(table[:keep].clone())
        self.trained = nn.Parameter(table[keep:].clone())

    @property
    def weight(self) -> Tensor:
        """The whole table, (positions, width)."""
        return torch.cat((self.kept, self.trained))

    def forward(self, position_ids: Tensor) -> Tensor:
        """Embeddings of positions, as `nn.Embedding` gives them."""
        return nn.functional.embedding(position_ids, self.weight)


def stretch_positions(text: CLIPTextModelWithProjection, freeze: int = 0, keep: int = 20, factor: int = 4) -> None:
    """Give `text` a stretched position table, in place, with the first `freeze` rows frozen."""
    embeddings = text.text_model.embeddings
    table = stretch_position_embeddings(embeddings.position_embedding.weight.detach(), keep, factor)
    embeddings.position_embedding = LearnedPositions(table, freeze)
    embeddings.position_ids = nn.Buffer(torch.arange(len(table), device=table.device)[None], persistent=False)
    for config in (text.config, text.text_model.config):
        config.max_position_embeddings = len(table)


def join_positions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Text weights with the two parts of a stretched table as the one that transformers knows."""
    weights = dict(weights)
    name = "text_model.embeddings.position_embedding"
    if f"{name}.kept" in weights:
        weights[f"{name}.weight"] = torch.cat((weights.pop(f"{name}.kept"), weights.pop(f"{name}.trained")))
    return weights


def image_processor(image_tower: CLIPVisionModelWithProjection) -> CLIPImageProcessor:
    """CLIP's preprocessing at the tower's size: the shorter side resized, the centre cropped, CLIP's mean and std."""
    size = image_tower.config.image_size
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


@dataclass(frozen=True)
class Pair:
    """One image and its cut caption; `bad_rows` are those that could not be opened in their place."""

    row: int  # its number, -1 in a stream
    pixel_values: Tensor  # (3, height, width), 0 to 255: a quarter of the memory of floats
    cut: CutCaption
    bad_rows: tuple[tuple[str, str], ...] = ()


class PairRows(Rows):
    """(row, epoch) to a [`Pair`]. A row whose image cannot be opened is replaced by the next one that can.

    Batches therefore stay whole, and what stands in for a row does not depend on other processes.
    """

    def __init__(
        self,
        data: Captions,
        processor: CLIPImageProcessor,
        cutter: CaptionCutter,
        draws: int = 1,
    ):
        self.data, self.processor, self.cutter, self.draws = data, processor, cutter, draws

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        assert isinstance(self.data, CaptionData)
        row, epoch = key
        image, row, bad_rows = self.open(row)
        cut = self.cutter(self.data.captions[row], row, epoch % self.draws)
        return Pair(row, self.pixels(image), cut, tuple(bad_rows))

    def of(self, row: UsableRow, epoch: int) -> Pair:
        """The same of a row out of a stream, which is known by its name. Raises `BadRow` if its image is broken."""
        image = open_reference(row.image, row.name)
        return Pair(-1, self.pixels(image), self.cutter(row.caption, row.name, epoch % self.draws))

    def pixels(self, image: Image.Image) -> Tensor:
        """`image` at the tower's size, (3, height, width), 0 to 255."""
        processed = self.processor(image, return_tensors="pt", do_rescale=False, do_normalize=False)
        return processed.pixel_values[0]

    def open(self, row: int) -> tuple[Image.Image, int, list[tuple[str, str]]]:
        """The picture of `row` or of the next row that can be opened: (picture, its row, the bad rows before it)."""
        assert isinstance(self.data, CaptionData)
        bad_rows: list[tuple[str, str]] = []
        for _ in range(min(ROWS_TRIED, len(self.data))):
            try:
                return self.data.image(row), row, bad_rows
            except BadRow as reason:
                bad_rows.append((self.data.name(row), str(reason)))
                row = (row + 1) % len(self.data)
        raise ValueError(f"None of {len(bad_rows)} images in a row could be opened. The last: {bad_rows[-1][1]}.")


def pair_batch(pairs: Sequence[Pair]) -> Chunk:
    """What every chunk of pairs holds, whichever texts it adds."""
    return {
        "pixel_values": torch.stack([pair.pixel_values for pair in pairs]),
        "captions": len(pairs),
        "tokens": sum(len(pair.cut.short_ids) + len(pair.cut.long_ids) for pair in pairs),
        "bad_rows": [bad for pair in pairs for bad in pair.bad_rows],
    }


@dataclass(frozen=True)
class PairCollate:
    """Makes a chunk of pairs: images, and of the texts that their captions were cut into those asked for.

    Short texts are padded to `window` tokens, without one to the longest of them.
    """

    pad_id: int
    window: int | None = None
    short: bool = True
    long: bool = True
    sub_captions: bool = False

    def __call__(self, pairs: Sequence[Pair]) -> Chunk:
        cuts = [pair.cut for pair in pairs]
        batch = pair_batch(pairs)
        if self.short:
            batch |= short_batch(cuts, self.pad_id, self.window)
        if self.long:
            batch |= long_batch(cuts, self.pad_id, range(len(cuts)))
        if self.sub_captions:
            batch |= sub_caption_batch(cuts, self.pad_id)
        return batch


def save_image_tower(image: CLIPVisionModelWithProjection, weights: dict[str, Tensor], folder: Path) -> None:
    """Write the image tower and its preprocessing into `folder`."""
    image.save_pretrained(folder, state_dict=weights)
    image_processor(image).save_pretrained(folder)
