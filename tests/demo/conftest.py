"""A tiny untrained family in the layout of `tulip_diffusion/assets`, and a server that draws with it."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tulip_diffusion import from_clip
from tulip_diffusion.training.embedded.clip import WIDTH
from tulip_diffusion.training.embedded.tokenizer import build_tokenizer
from tulip_diffusion.training.embedded.unet import build_scheduler, build_unet
from tulip_diffusion.training.embedded.vae import build_vae


def text_encoder(seed: int, positions: int = 77):
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=WIDTH,
        max_position_embeddings=positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # states that tell one prompt from another
    return encoder


@pytest.fixture(scope="session")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    build_vae((8, 8, 8, 8)).save_pretrained(folder / "vae")
    build_unet((32, 32)).save_pretrained(folder / "unet")
    build_scheduler().save_pretrained(folder / "scheduler")
    for slot, name in enumerate(("text_encoder", "text_encoder_2")):
        clip, longclip = text_encoder(slot), text_encoder(10 + slot, positions=248)
        encoders = {"clip": clip, "longclip": longclip, "tulip": from_clip(clip)}
        for encoder, model in encoders.items():
            part = model if slot else model.text_model
            part.save_pretrained(folder / "encoders" / encoder / name)
    build_tokenizer().save_pretrained(folder / "tokenizer")
    build_tokenizer().save_pretrained(folder / "tokenizer_2")
    return folder


@pytest.fixture(scope="session")
def studio(assets):
    from tulip_diffusion.demo.studio import Studio
    from tulip_diffusion.demo.weights import Weights

    return Studio(Weights(assets=assets))


@pytest.fixture(scope="session")
def own_folder(tmp_path_factory):
    """Everything that gradio writes goes here."""
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def url(studio, own_folder):
    from tulip_diffusion.demo.app import build
    from tulip_diffusion.demo.server import launch

    demo = launch(build(studio))
    yield demo.local_url
    demo.close()
