"""What the UNet is trained on: latents and the states of both CLIPs, and what stands for "no prompt"."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from tulip_diffusion.devices import fast_bfloat16
from tulip_diffusion.scenes.dataset import SceneDataset

from .clip import load_clip_with_heads
from .steps import Steps
from .unet_texts import unrelated_text

CHUNK = 128  # scenes encoded at a time
UNRELATED_TEXTS = 1024  # encoded for each shard


class Encoder:
    """Both CLIPs and the VAE, frozen: what the UNet is trained on."""

    def __init__(self, folder: Path, device: str = "cpu"):
        self.device = device
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").eval().to(device)
        loaded = [load_clip_with_heads(folder / f"clip-{name}") for name in ("l", "g")]
        self.models = [model.to(device) for model, _ in loaded]
        self.tokenizers = [tokenizer for _, tokenizer in loaded]
        mean, std = self.vae.config.latents_mean, self.vae.config.latents_std
        self.mean, self.std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))

    def tokenize(self, captions: list[str]) -> list[Tensor]:
        """Ids of both slots, (batch, 77) each, padded as SDXL pads them."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return [tokenizer(captions, **options).input_ids for tokenizer in self.tokenizers]

    @torch.no_grad()
    def text(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What SDXL reads: penultimate states of both text towers (batch, 77, 2 * width), pooled from the second."""
        states = []
        for model, own in zip(self.models, ids, strict=True):
            with torch.autocast(self.device, torch.bfloat16, enabled=fast_bfloat16(self.device)):
                text = model.clip.text_model(input_ids=own.to(self.device), output_hidden_states=True)
                pooled = model.clip.text_projection(text.pooler_output)
            states.append(text.hidden_states[-2].float())
        return torch.cat(states, dim=-1), pooled.float()

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """Normalised latents (batch, 4, 8, 8) of pictures (batch, 3, 64, 64) in -1..1."""
        with torch.autocast(self.device, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            latents = self.vae.encode(pictures.to(self.device)).latent_dist.mode()
        return (latents.float() - self.mean) / self.std


@dataclass(frozen=True)
class NoPrompt:
    """How often a picture comes without its caption, as shares of all pictures, by what stands in its place.

    An absent negative prompt is `zeros` in SDXL, `negative_prompt=""` is the encoded `empty` text, and people's own
    negative prompts are texts `unrelated` to the picture.
    """

    zeros: float = 0.1
    empty: float = 0.0
    unrelated: float = 0.0

    def rows(self, size: int, step: int) -> Tensor:
        """For every picture of step `step` a row of `texts`' states, or -1 for its own caption; (size,)."""
        generator = torch.Generator().manual_seed(step)
        chance = torch.rand(size, generator=generator)
        unrelated = torch.randint(2, 2 + UNRELATED_TEXTS, (size,), generator=generator)
        row = torch.full((size,), -1)
        row[chance < self.zeros + self.empty + self.unrelated] = 0
        row[chance < self.empty + self.unrelated] = 1
        return torch.where(chance < self.unrelated, unrelated, row)

    def states(self, encoder: Encoder, number: int) -> tuple[Tensor, Tensor]:
        """Token states and pooled vectors of zeros, of the empty text and of unrelated texts, in this order."""
        rng = np.random.default_rng((UNRELATED_TEXTS, number))
        texts = [""] + [unrelated_text(rng) for _ in range(UNRELATED_TEXTS if self.unrelated else 0)]
        parts = [encoder.text(encoder.tokenize(texts[first : first + CHUNK])) for first in range(0, len(texts), CHUNK)]
        states, pooled = (torch.cat(part) for part in zip(*parts, strict=True))
        return F.pad(states, (0, 0, 0, 0, 1, 0)).half(), F.pad(pooled, (0, 0, 1, 0))


class Cache:
    """Latents and text states of one shard of the training scenes, made once and used `passes` times."""

    def __init__(
        self, encoder: Encoder, data: SceneDataset, no_prompt: NoPrompt, shard: int, passes: int, workers: int
    ):
        self.encoder, self.data, self.no_prompt = encoder, data, no_prompt
        self.shard, self.passes, self.workers = shard, passes, workers
        self.number = -1

    def inputs(self, chunk: int) -> tuple[Tensor, list[Tensor]]:
        """Pictures and token ids of `CHUNK` scenes."""
        pictures, captions = self.data.batch(chunk * CHUNK, CHUNK)
        return pictures, self.encoder.tokenize([caption.text for caption in captions])

    def fill(self, number: int) -> None:
        """Encode the scenes of shard `number`."""
        chunks = range(number * self.shard // CHUNK, (number + 1) * self.shard // CHUNK)
        steps = Steps(self.inputs, chunks.stop)
        loader = DataLoader(steps, batch_size=None, sampler=chunks, num_workers=self.workers)
        parts = []
        for pictures, ids in tqdm(loader, total=len(chunks), desc=f"scenes {number}", mininterval=10):
            states, pooled = self.encoder.text(ids)
            parts.append((self.encoder.latents(pictures), states.half(), pooled))
        self.latents, self.states, self.pooled = (torch.cat(part) for part in zip(*parts, strict=True))
        self.nothing = self.no_prompt.states(self.encoder, number)
        self.number = number

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, states and pooled vectors of step `step`; every step of a pass has scenes of its own."""
        steps_per_pass = self.shard // size
        number, step_in_shard = divmod(step, steps_per_pass * self.passes)
        if number != self.number:
            self.fill(number)
        which_pass, place = divmod(step_in_shard, steps_per_pass)
        order = np.random.default_rng(number * self.passes + which_pass).permutation(self.shard)
        rows = torch.from_numpy(order[place * size : (place + 1) * size]).to(self.latents.device)
        states, pooled = self.states[rows].float(), self.pooled[rows]
        nothing = self.no_prompt.rows(size, step).to(rows.device)
        lost = nothing >= 0
        states[lost], pooled[lost] = self.nothing[0][nothing[lost]].float(), self.nothing[1][nothing[lost]]
        return self.latents[rows], states, pooled
