"""The UNet, in SDXL's configuration, conditioned on 77 tokens of both CLIP towers and on nothing longer, ever."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from torch.nn import functional as F

from tulip_diffusion.devices import best_device
from tulip_diffusion.evaluation.details import details
from tulip_diffusion.scenes.captions import Caption
from tulip_diffusion.scenes.dataset import SPLITS, SceneDataset, window_caption

from .clip import WIDTH
from .conditioning import Cache, Encoder, NoPrompt
from .steps import train
from .unet_texts import telling_caption

TIME_IDS = (64.0, 64.0, 0.0, 0.0, 64.0, 64.0)  # original size, crop, target size
# A first part learns to draw; a second goes on with all that prompts and negative prompts may hold.
TEXTS: dict[str, tuple[Callable[[np.random.Generator], Caption], NoPrompt]] = {
    "captions": (window_caption, NoPrompt()),
    "everything": (telling_caption, NoPrompt(zeros=0.05, empty=0.04, unrelated=0.08)),
}


def build_unet(channels: Sequence[int] = (96, 160)) -> UNet2DConditionModel:
    """A new UNet for latents of 8 × 8, with `channels` at each of its resolutions."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=tuple(channels),
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


def denoising_loss(
    unet: UNet2DConditionModel, scheduler: DDIMScheduler, latents: Tensor, states: Tensor, pooled: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity at random timesteps; a scalar."""
    batch, device = len(latents), latents.device
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (batch,), device=device)
    velocity = unet(
        scheduler.add_noise(latents, noise, timesteps),
        timesteps,
        encoder_hidden_states=states,
        added_cond_kwargs={
            "text_embeds": pooled,
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
    for detail in details(pictures, captions):
        right.setdefault(detail.role, []).append(detail.right)
    return {role: float(np.mean(hits)) for role, hits in sorted(right.items())}


def main(arguments: list[str] | None = None) -> None:
    """Train the UNet and write it with its scheduler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("outputs/embedded"), help="holds vae, clip-l and clip-g")
    parser.add_argument("--start", type=Path, help="folder of a trained UNet to go on from")
    parser.add_argument("--out", type=Path, help="default: unet in the folder")
    parser.add_argument("--texts", choices=TEXTS, default="captions", help="what stands beside the pictures")
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
    unet = UNet2DConditionModel.from_pretrained(options.start) if options.start else build_unet(options.channels)
    unet = unet.float().to(options.device)
    if options.device == "cpu":
        unet.set_attn_processor(AttnProcessor())  # trains twice as fast there as the fused kernel in bfloat16
    write, no_prompt = TEXTS[options.texts]
    data = SceneDataset(SPLITS["validation"], write=write)
    cache = Cache(encoder, data, no_prompt, options.shard, options.passes, options.workers)
    first = options.seed * options.steps
    _, captions = SceneDataset(96, "validation").batch(0, 96)
    states, pooled = encoder.text(encoder.tokenize([caption.text for caption in captions]))

    def check() -> str:
        found = accuracies(draw(unet, encoder.vae, states, pooled, seed=0), captions)
        return " ".join(f"{role} {share:.3f}" for role, share in found.items())

    folder = options.out or options.folder / "unet"
    train(
        unet,
        lambda step: cache.batch(first + step, options.batch),
        lambda batch: denoising_loss(unet, scheduler, *batch),
        folder,
        options.steps,
        options.learning_rate,
        save_every=250,
        check=check,
        check_every=800,
    )
    unet.save_pretrained(folder)
    scheduler.save_pretrained(options.folder / "scheduler")


if __name__ == "__main__":
    main()
