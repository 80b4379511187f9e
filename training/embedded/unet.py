"""The UNet, in SDXL's configuration, conditioned on 77 tokens of both CLIP towers and on nothing longer, ever."""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from tulip_diffusion.devices import best_device
from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import SPLITS, SceneDataset
from tulip_diffusion.scenes.oracle import read_scene

from .clip import WIDTH, load_towers
from .steps import Steps, train

CHUNK = 128  # scenes encoded at a time
NO_PROMPT = 0.1  # share of training scenes without a prompt: an absent negative prompt is zeros in SDXL
TIME_IDS = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)  # original size, crop, target size


def build_unet(channels: tuple[int, ...] = (96, 160)) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        layers_per_block=1,
        transformer_layers_per_block=1,
        attention_head_dim=tuple(width // 32 for width in channels),  # heads, in this class's old naming
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=WIDTH + 32 * len(TIME_IDS),
    )


def build_scheduler() -> DDIMScheduler:
    """Predicts v from pure noise on: without a zero terminal SNR a full picture's tone would leak in training."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


class Encoder:
    """Both CLIP towers and the VAE, frozen: what the UNet is trained on."""

    def __init__(self, folder: Path, device: str = "cpu"):
        self.device = device
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").eval().to(device)
        towers = [load_towers(folder / f"clip-{name}") for name in ("l", "g")]
        self.towers = [clip.to(device) for clip, _ in towers]
        self.tokenizers = [tokenizer for _, tokenizer in towers]
        mean, std = self.vae.config.latents_mean, self.vae.config.latents_std
        self.mean, self.std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))

    def tokenize(self, captions: list[str]) -> list[Tensor]:
        """Ids of both slots, (batch, 77) each, padded as SDXL pads them."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return [tokenizer(captions, **options).input_ids for tokenizer in self.tokenizers]

    @torch.no_grad()
    def text(self, ids: list[Tensor]) -> tuple[Tensor, Tensor]:
        """SDXL's reading: penultimate states of both towers (batch, 77, 2 * width), pooled from the second."""
        states = []
        for towers, slot in zip(self.towers, ids, strict=True):
            with torch.autocast(self.device, torch.bfloat16):
                text = towers.clip.text_model(input_ids=slot.to(self.device), output_hidden_states=True)
                pooled = towers.clip.text_projection(text.pooler_output)
            states.append(text.hidden_states[-2].float())
        return torch.cat(states, dim=-1), pooled.float()

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            latents = self.vae.encode(pictures.to(self.device)).latent_dist.mode()
        return (latents.float() - self.mean) / self.std


class Cache:
    """Latents and text states of one shard of the training scenes, made once and used `passes` times."""

    def __init__(self, encoder: Encoder, data: SceneDataset, shard: int, passes: int, workers: int = 0):
        self.encoder, self.data, self.shard, self.passes, self.workers = encoder, data, shard, passes, workers
        self.number = -1

    def inputs(self, chunk: int) -> tuple[Tensor, list[Tensor]]:
        pictures, captions = self.data.batch(chunk * CHUNK, CHUNK)
        return pictures, self.encoder.tokenize([caption.text for caption in captions])

    def fill(self, number: int) -> None:
        chunks = range(number * self.shard // CHUNK, (number + 1) * self.shard // CHUNK)
        steps = Steps(self.inputs, chunks.stop)
        loader = DataLoader(steps, batch_size=None, sampler=chunks, num_workers=self.workers)
        parts = []
        for pictures, ids in tqdm(loader, total=len(chunks), desc=f"scenes {number}", mininterval=10):
            states, pooled = self.encoder.text(ids)
            parts.append((self.encoder.latents(pictures), states.half(), pooled))
        self.latents, self.states, self.pooled = (torch.cat(part) for part in zip(*parts, strict=True))
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
        return self.latents[rows], self.states[rows].float(), self.pooled[rows]


def denoising_loss(
    unet: UNet2DConditionModel, scheduler: DDIMScheduler, latents: Tensor, states: Tensor, pooled: Tensor
) -> Tensor:
    batch, device = len(latents), latents.device
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), device=device)
    told = (torch.rand(batch, device=device) >= NO_PROMPT).float()
    velocity = unet(
        scheduler.add_noise(latents, noise, timesteps),
        timesteps,
        encoder_hidden_states=states * told[:, None, None],
        added_cond_kwargs={
            "text_embeds": pooled * told[:, None],
            "time_ids": torch.tensor([TIME_IDS] * batch, device=device),
        },
    ).sample
    return F.mse_loss(velocity.float(), scheduler.get_velocity(latents, noise, timesteps))


@torch.no_grad()
def draw(
    unet: UNet2DConditionModel, vae: AutoencoderKL, states: Tensor, pooled: Tensor, seed: int, steps: int = 12
) -> np.ndarray:
    """Pictures (batch, 64, 64, 3) in 0..1 by the stock pipeline at guidance 3."""
    pipeline = StableDiffusionXLPipeline(vae, None, None, None, None, unet, build_scheduler(), add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        prompt_embeds=states,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.zeros_like(states),
        negative_pooled_prompt_embeds=torch.zeros_like(pooled),
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images


def accuracies(pictures: np.ndarray, captions: list[Caption]) -> dict[str, float]:
    """Share of claims that the oracle finds in the pictures, by the role of the sentence that makes them."""
    right: dict[str, list[bool]] = {}
    for picture, caption in zip(pictures, captions, strict=True):
        seen = read_scene(picture)
        for claim in caption.claims:
            right.setdefault(claim.role, []).append(seen.things[claim.place] == claim.thing)
    return {role: float(np.mean(hits)) for role, hits in sorted(right.items())}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/embedded"), help="holds vae, clip-l and clip-g")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, nargs="+", default=(96, 160))
    parser.add_argument("--shard", type=int, default=8192, help="scenes that are encoded and cached at a time")
    parser.add_argument("--passes", type=int, default=5, help="how often each is seen: on a fast GPU 1")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--workers", type=int, default=0, help="processes that make scenes ahead of time")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    encoder, scheduler = Encoder(options.folder, options.device), build_scheduler()
    unet = build_unet(tuple(options.channels)).to(options.device)
    if options.device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # trains twice as fast there as the fused kernel in bfloat16
    data = SceneDataset(SPLITS["validation"])
    cache = Cache(encoder, data, options.shard, options.passes, options.workers)
    first = options.seed * options.steps
    _, captions = SceneDataset(96, "validation").batch(0, 96)
    states, pooled = encoder.text(encoder.tokenize([caption.text for caption in captions]))

    def check() -> str:
        found = accuracies(draw(unet, encoder.vae, states, pooled, seed=0), captions)
        return " ".join(f"{role} {share:.3f}" for role, share in found.items())

    folder = options.folder / "unet"
    train(
        unet,
        lambda step: cache.batch(first + step, options.batch),
        lambda batch: denoising_loss(unet, scheduler, *batch),
        folder,
        options.steps,
        options.learning_rate,
        save_every=250,
        check=check,
        check_every=1000,
    )
    unet.save_pretrained(folder)
    scheduler.save_pretrained(options.folder / "scheduler")


if __name__ == "__main__":
    main()
