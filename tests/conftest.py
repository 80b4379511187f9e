"""Tiny real components: transformers' own classes at a few thousand parameters."""

import logging

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

LONG_CAPTION = " ".join(
    f"On shelf {row} of the old cabinet stands a {colour} {thing}, a little dusty."
    for row, (colour, thing) in enumerate(
        (colour, thing) for colour in ("red", "blue", "green", "white") for thing in ("tulip", "boat", "cat", "cup")
    )
)


@pytest.fixture(autouse=True)
def own_data_cache(tmp_path_factory, monkeypatch):
    """Captions that a test opens are kept apart from the person's own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


@pytest.fixture(autouse=True)
def levels_of_loggers():
    """Commands quieten our loggers for the rest of their process, which here goes on with other tests."""

    def ours():
        names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "tulip_diffusion"]
        return [logging.getLogger(name) for name in names]

    before = {logger: logger.level for logger in ours()}
    yield
    for logger in ours():
        logger.setLevel(before.get(logger, logging.NOTSET))


@pytest.fixture(scope="session")
def tokenizer():
    from tulip_diffusion import load_tokenizer

    return load_tokenizer(max_length=2048)


@pytest.fixture(scope="session")
def long_ids(tokenizer):
    """(1, 280 or so) ids of one caption."""
    return tokenizer(LONG_CAPTION, return_tensors="pt").input_ids


@pytest.fixture
def clip():
    return tiny_clip()


@pytest.fixture(scope="session")
def make_clip():
    return tiny_clip


def tiny_clip(**fields):
    """A CLIP text tower, 2 layers × 128, two heads of 64, with weights large enough to make states differ."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        **{
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "projection_dim": 32,
            **fields,
        }
    )
    model = CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model
