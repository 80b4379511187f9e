import pytest

from tests.mutations import damage

from .mutations import SUBJECTS


@pytest.mark.parametrize("name", SUBJECTS)
def test_damaged_data_is_read_whole_or_refused_in_one_sentence(name, tmp_path):
    outcomes, wrong = damage(SUBJECTS[name], tmp_path, 60, seed=1)
    assert not wrong
    assert outcomes["loaded"] and outcomes["refused"]
