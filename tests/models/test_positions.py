import pytest
import torch

from tulip_diffusion import stretch_position_embeddings


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
