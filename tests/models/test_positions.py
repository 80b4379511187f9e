import pytest
import torch
from transformers import CLIPTextConfig

from tulip_diffusion import from_clip, stretch_position_embeddings
from tulip_diffusion.models.positions import (
    eos_token_id,
    first_eos,
    is_tulip,
    stretched_length,
    table_length,
    trained_length,
)


def test_stretched_positions_follow_longclips_formula_row_by_row():
    table = torch.randn(77, 16)
    stretched = stretch_position_embeddings(table)
    assert stretched.shape == (248, 16)
    torch.testing.assert_close(stretched[:20], table[:20], rtol=0, atol=0)
    for i in range(56):
        for j in range(4):
            expected = (1 - j / 4) * table[20 + i] + j / 4 * table[21 + i]
            torch.testing.assert_close(stretched[20 + 4 * i + j], expected, atol=1e-6, rtol=0)
    for j in range(4):
        expected = table[76] + j / 4 * (table[76] - table[75])
        torch.testing.assert_close(stretched[244 + j], expected, atol=1e-6, rtol=0)


def test_a_straight_line_stays_straight():
    line = torch.arange(30.0)[:, None]
    stretched = stretch_position_embeddings(line, keep=10, factor=5)
    torch.testing.assert_close(stretched[10:, 0].diff(), torch.full((99,), 0.2))


def test_half_precision_tables_are_rounded_once():
    table = torch.randn(77, 8).half()
    assert torch.equal(stretch_position_embeddings(table), stretch_position_embeddings(table.float()).half())


@pytest.mark.parametrize(("keep", "factor", "named"), [(76, 4, "got 76"), (-1, 4, "got -1"), (20, 0, "got 0")])
def test_impossible_stretches_are_refused(keep, factor, named):
    with pytest.raises(ValueError, match=named):
        stretch_position_embeddings(torch.randn(77, 8), keep=keep, factor=factor)


@pytest.mark.parametrize(
    ("fields", "eos"),
    [
        ({"eos_token_id": 2}, 49407),  # as CLIP's and SDXL's configs say
        ({"eos_token_id": 2, "vocab_size": 49410}, 49407),  # two tokens of a textual inversion
        ({"eos_token_id": 2, "vocab_size": 678}, 677),  # a reduced vocabulary
        ({"eos_token_id": 888, "vocab_size": 889}, 888),
    ],
)
def test_which_token_ends_a_text(fields, eos):
    config = CLIPTextConfig(**fields)
    assert eos_token_id(config) == eos
    words = [1, 5, 2, 7]
    assert first_eos(torch.tensor([[*words, eos, eos], [eos, *words, 3]]), config).tolist() == [4, 0]
    with pytest.raises(ValueError, match=rf"no EOS \(id {eos}\)"):
        first_eos(torch.tensor([words]), config)


def test_lengths_of_each_kind_of_encoder(make_clip):
    clip, long_clip = make_clip(), make_clip(max_position_embeddings=248)
    tulip = from_clip(clip, rope_parameters={"rope_type": "ntk", "length": 500})
    cope = from_clip(clip, position_encoding="cope", max_position_embeddings=154)
    assert [table_length(encoder) for encoder in (clip, long_clip, tulip, cope)] == [77, 248, None, None]
    assert [trained_length(encoder) for encoder in (clip, long_clip, tulip, cope)] == [77, 248, 500, 154]
    assert [is_tulip(encoder.config) for encoder in (clip, long_clip, tulip, cope)] == [False, False, True, True]
    assert (stretched_length(77), stretched_length(77, keep=10, factor=2)) == (248, 144)
