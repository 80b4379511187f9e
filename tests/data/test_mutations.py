import pytest

from .mutations import KINDS, run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_damaged_data_is_read_whole_or_refused_in_one_sentence(kind, tmp_path):
    read, refused = run(kind, 60, tmp_path, seed=1)
    assert read + refused == 60
