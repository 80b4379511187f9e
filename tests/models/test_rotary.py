import math

import pytest
import torch

from tulip_diffusion.models.rotary import ntk_theta, rotary_cos_sin, rotate

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
NTK = {"rope_type": "ntk", "rope_theta": 10000.0, "alpha": 8.0, "base_length": 77, "length": 248}


@pytest.mark.parametrize(("length", "published"), [(154, 96_611), (231, 186_269), (248, 206_278), (308, 277_354)])
def test_ntk_theta_gives_the_published_bases(length, published):
    assert ntk_theta(10000.0, 8.0, 77, length, 64) == pytest.approx(published, abs=0.5)


def test_ntk_theta_leaves_the_base_alone_at_the_base_length():
    assert ntk_theta(10000.0, 8.0, 77, 77, 64) == pytest.approx(10000.0)


def test_rotation_is_the_textbook_rotation_of_interleaved_pairs():
    states = torch.randn(2, 7, 3, 8)
    cos, sin = rotary_cos_sin(torch.arange(7)[None], ROPE, 8, 7)
    expected = states.clone()
    for position in range(7):
        for pair in range(4):
            angle = position * 10000.0 ** (-2 * pair / 8)
            x, y = states[:, position, :, 2 * pair], states[:, position, :, 2 * pair + 1]
            expected[:, position, :, 2 * pair] = x * math.cos(angle) - y * math.sin(angle)
            expected[:, position, :, 2 * pair + 1] = x * math.sin(angle) + y * math.cos(angle)
    torch.testing.assert_close(rotate(states, cos, sin), expected)


def test_attention_scores_depend_only_on_token_distance():
    query, key = torch.randn(1, 1, 1, 64), torch.randn(1, 1, 1, 64)

    def score(query_position, key_position):
        rotated = [
            rotate(states, *rotary_cos_sin(torch.tensor([[position]]), ROPE, 64, 300))
            for states, position in ((query, query_position), (key, key_position))
        ]
        return (rotated[0] * rotated[1]).sum()

    for shift in (1, 50, 248):
        torch.testing.assert_close(score(20 + shift, 3 + shift), score(20, 3), atol=1e-4, rtol=1e-4)


def test_rotation_keeps_lengths():
    states = torch.randn(1, 300, 2, 64)
    rotated = rotate(states, *rotary_cos_sin(torch.arange(300)[None], NTK, 64, 300))
    torch.testing.assert_close(rotated.norm(dim=-1), states.norm(dim=-1))


def test_half_precision_states_are_rotated_by_exact_angles():
    states = torch.randn(1, 248, 2, 64, dtype=torch.bfloat16)
    cos, sin = rotary_cos_sin(torch.arange(248)[None], NTK, 64, 248)
    exact = rotate(states.double(), cos, sin)
    assert (rotate(states, cos, sin) - exact).abs().max() <= exact.abs().max() * 2**-8  # one rounding, at the end


def test_longer_sequences_get_the_base_of_their_own_length():
    angles = {length: rotary_cos_sin(torch.arange(10)[None], NTK, 64, length)[0] for length in (10, 248, 249, 1000)}
    assert torch.equal(angles[10], angles[248])
    assert not torch.equal(angles[248], angles[249])
    scaled = {**ROPE, "rope_theta": ntk_theta(10000.0, 8.0, 77, 1000, 64)}
    torch.testing.assert_close(angles[1000], rotary_cos_sin(torch.arange(10)[None], scaled, 64, 1000)[0])


def test_lengths_given_per_row_agree_with_one_row_at_a_time():
    positions = torch.arange(400)[None]
    together, _ = rotary_cos_sin(positions, NTK, 64, torch.tensor([[400], [100]]))
    torch.testing.assert_close(together[0], rotary_cos_sin(positions, NTK, 64, 400)[0][0], atol=1e-4, rtol=0)
    torch.testing.assert_close(together[1], rotary_cos_sin(positions, NTK, 64, 248)[0][0], atol=1e-4, rtol=0)


def test_ntk_needs_more_than_one_pair():
    with pytest.raises(ValueError, match="head_dim above 2, got 2"):
        ntk_theta(10000.0, 8.0, 77, 248, 2)
