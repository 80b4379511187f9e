"""TULIP - CLIP, added to a CLIP that was fine-tuned from the same one."""

import copy

import pytest
import torch

from tulip_diffusion import from_clip, load_text_encoder
from tulip_diffusion.cli import main
from tulip_diffusion.models import difference
from tulip_diffusion.models.difference import add_difference

SMALL = {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}


def moved(encoder, seed: int, size: float = 0.02):
    """A copy whose weights have gone somewhere else."""
    torch.manual_seed(seed)
    made = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return made


@pytest.fixture
def three(make_clip):
    clip = make_clip(**SMALL)
    tulip = moved(from_clip(clip, attention_scaling="log"), 1)
    tulip.set_input_embeddings(copy.deepcopy(clip.get_input_embeddings()))  # distillation freezes it
    return moved(clip, 2), tulip, clip


def test_every_weight_moves_by_what_fine_tuning_and_distillation_changed(three):
    tuned, tulip, clip = three
    made = add_difference(*three)
    before, after, distilled = clip.state_dict(), tuned.state_dict(), tulip.state_dict()
    assert made.state_dict().keys() == distilled.keys() and made.config.attention_scaling == "log"
    for name, value in made.state_dict().items():
        torch.testing.assert_close(
            value, before[name] + (after[name] - before[name]) + (distilled[name] - before[name])
        )
    assert all(torch.equal(value, distilled[name]) for name, value in tulip.state_dict().items())  # left alone


def test_a_clip_that_was_not_fine_tuned_gives_the_tulip_encoder(three):
    _, tulip, clip = three
    ids = torch.tensor([[598, *range(100, 300), 599]])
    with torch.no_grad():
        torch.testing.assert_close(
            add_difference(clip, tulip, clip)(ids).text_embeds, tulip(ids).text_embeds, rtol=1e-4, atol=1e-4
        )


def test_contextual_positions_are_the_tulip_encoders_own(make_clip):
    clip = make_clip(**SMALL)
    tulip = moved(from_clip(clip, position_encoding="cope"), 1)
    made = add_difference(moved(clip, 2), tulip, clip)
    names = [name for name in made.state_dict() if ".cope." in name]
    assert names and all(torch.equal(made.state_dict()[name], tulip.state_dict()[name]) for name in names)


def test_convert_adds_to_a_fine_tuned_checkpoint_of_sdxl(make_clip, tmp_path):
    from tests.training.conftest import sdxl_single_file

    tuned = sdxl_single_file(tmp_path / "checkpoint.safetensors")["text_encoder_2"]
    clip = moved(tuned, 4)
    tulip = moved(from_clip(clip), 5)
    clip.save_pretrained(tmp_path / "clip")
    tulip.save_pretrained(tmp_path / "tulip")
    line = [
        "convert",
        str(tmp_path / "checkpoint.safetensors"),
        str(tmp_path / "own"),
        "--subfolder",
        "text_encoder_2",
    ]
    assert main([*line, "--add", str(tmp_path / "tulip"), str(tmp_path / "clip")]) == 0
    made, expected = load_text_encoder(tmp_path / "own").state_dict(), add_difference(tuned, tulip, clip).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in made.items())


def test_encoders_that_do_not_belong_together_are_refused(three, make_clip):
    tuned, tulip, clip = three
    with pytest.raises(ValueError, match="SOURCE must be a CLIP encoder, got a Tulip"):
        add_difference(tulip, tulip, clip)
    with pytest.raises(ValueError, match="TULIP must be a TULIP encoder, got a CLIPText"):
        add_difference(tuned, clip, clip)
    with pytest.raises(ValueError, match="one size, but"):
        add_difference(make_clip(**SMALL, projection_dim=64), tulip, clip)
    with pytest.raises(ValueError, match="one hidden_act, got gelu, quick_gelu, quick_gelu"):
        add_difference(moved(make_clip(**SMALL, hidden_act="gelu"), 1), tulip, clip)


def test_a_tulip_encoder_of_another_clip_is_told(three, monkeypatch):
    tuned, tulip, clip = three
    told: list[str] = []
    monkeypatch.setattr(difference.logger, "warning", told.append)
    add_difference(tuned, tulip, clip)
    assert not told
    add_difference(tuned, tulip, moved(clip, 9, size=1.0))
    assert len(told) == 1 and "was not distilled from this CLIP" in told[0]
