import random

import pytest

from tests.mutations import LONGEST, SUBJECTS, damage, mutate


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_damaged_encoder_loads_whole_or_is_refused_in_one_sentence(name, tmp_path):
    outcomes, wrong = damage(SUBJECTS[name], tmp_path, 60, seed=1)
    assert not wrong
    assert outcomes["loaded"] and outcomes["refused"]


def test_a_mutation_touches_one_place():
    content = bytes(range(256)) * 64
    for seed in range(200):
        mutated = mutate(content, random.Random(seed))
        start = next((i for i, (a, b) in enumerate(zip(content, mutated, strict=False)) if a != b), len(mutated))
        same_length = zip(content[start + LONGEST :], mutated[start + LONGEST :], strict=False)
        if len(mutated) == len(content):
            assert all(a == b for a, b in same_length)
        else:
            assert abs(len(mutated) - len(content)) <= LONGEST or content.startswith(mutated)
