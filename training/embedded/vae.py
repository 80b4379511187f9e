"""The picture autoencoder: 64 × 64 pixels to 8 × 8 × 4 latents."""

import argparse
import functools
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from tulip_diffusion.devices import best_device
from tulip_diffusion.scenes.oracle import read_scene
from tulip_diffusion.scenes.render import PLACES, random_scene, render_array

from .steps import train

KL_WEIGHT = 1e-5
HELD_OUT = 1_000_000_000  # seeds from here on are never trained on


def build_vae(channels: tuple[int, ...] = (16, 32, 64, 96)) -> AutoencoderKL:
    """A new autoencoder, with `channels` at each of its resolutions."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        force_upcast=False,
    )


def picture_batch(first_seed: int, batch: int, step: int) -> Tensor:
    """Pictures of random scenes, (batch, 3, 64, 64) in -1..1; half of them are full."""
    rng = np.random.default_rng(first_seed + step)
    counts = np.where(rng.random(batch) < 0.5, PLACES, rng.integers(0, PLACES + 1, batch))
    pictures = np.stack([render_array(random_scene(rng, int(count))) for count in counts])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous() * 2 - 1


def reconstruction_loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Squared and absolute error of the restored pictures, and a little of the KL divergence; a scalar."""
    posterior = vae.encode(pictures).latent_dist
    restored = vae.decode(posterior.sample()).sample.float()
    distance = F.mse_loss(restored, pictures) + 0.2 * F.l1_loss(restored, pictures)
    return distance + KL_WEIGHT * posterior.kl().float().mean()


@torch.no_grad()
def oracle_on_reconstructions(vae: AutoencoderKL, pictures: int = 64) -> tuple[float, float]:
    """Share of places read correctly from full held-out pictures after the autoencoder, and the MSE."""
    right, error = 0, 0.0
    for seed in range(pictures):
        scene = random_scene(np.random.default_rng(HELD_OUT + seed), PLACES)
        picture = (torch.from_numpy(render_array(scene)).permute(2, 0, 1)[None] * 2 - 1).to(vae.device)
        restored = vae.decode(vae.encode(picture).latent_dist.mode()).sample
        error += F.mse_loss(restored, picture).item() / pictures
        seen = read_scene(((restored[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).cpu().numpy())
        right += sum(a == b for a, b in zip(seen.things, scene.things, strict=True))
    return right / (pictures * PLACES), error


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, batch: int = 512) -> None:
    """Write the latents' mean and deviation per channel into the config, where SDXL's pipelines look for them."""
    latents = vae.encode(picture_batch(HELD_OUT - 1, batch, 0).to(vae.device)).latent_dist.mode()
    vae.register_to_config(
        scaling_factor=1.0,
        latents_mean=latents.mean((0, 2, 3)).tolist(),
        latents_std=latents.std((0, 2, 3)).tolist(),
    )


def main(arguments: list[str] | None = None) -> None:
    """Train the autoencoder, fit its normalisation and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs/embedded/vae"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures ahead of time")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    vae = build_vae().to(options.device)

    def check() -> str:
        accuracy, error = oracle_on_reconstructions(vae)
        return f"oracle {accuracy:.4f} mse {error:.5f}"

    train(
        vae,
        functools.partial(picture_batch, options.seed * 10_000_000, options.batch),
        functools.partial(reconstruction_loss, vae),
        options.out,
        options.steps,
        options.learning_rate,
        workers=options.workers,
        check=check,
        check_every=300,
    )
    normalise_latents(vae)
    vae.save_pretrained(options.out)


if __name__ == "__main__":
    main()
