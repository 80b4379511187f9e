import pytest

from tulip_diffusion.training.batches import StepCollate
from tulip_diffusion.training.cutting import CutCaption
from tulip_diffusion.training.sampler import ShuffledSteps


def steps(**changes):
    sampler = ShuffledSteps(**({"rows": 50, "batch_size": 8, "steps": 12, "seed": 3} | changes))
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def test_an_epoch_visits_no_row_twice_and_every_epoch_has_its_own_order():
    batches = steps()
    first = [row for batch in batches[:6] for row, _ in batch]
    second = [row for batch in batches[6:] for row, _ in batch]
    assert len(set(first)) == len(set(second)) == 48 and first != second
    assert {epoch for batch in batches[6:] for _, epoch in batch} == {1}


def test_processes_share_the_same_batches():
    parts = [steps(process=process, processes=2) for process in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == steps()


def test_resumed_order_is_the_rest_of_the_unbroken_order():
    assert steps(first_step=7) == steps()[7:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"processes": 3}, "cannot be shared by 3"), ({"rows": 7}, "fewer than one batch")],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        steps(**changes)


class Item:
    def __init__(self, tokens):
        self.cut = CutCaption(list(range(5)), list(range(tokens)))


def chunks(lengths, chunk_size, chunk_tokens=None):
    collate = StepCollate(lambda items: [item.cut.tokens for item in items], chunk_size, chunk_tokens)
    return collate([Item(length) for length in lengths])


def test_a_step_is_cut_into_chunks_of_like_length_the_longest_first():
    assert chunks([10, 90, 20, 80, 30, 70, 40], chunk_size=3) == [[90, 80, 70], [40, 30, 20], [10]]


@pytest.mark.parametrize("budget", [1, 100, 250, 1000, 10**6])
def test_a_padded_chunk_keeps_to_the_token_budget_unless_one_caption_alone_passes_it(budget):
    lengths = [10, 300, 20, 80, 30, 70, 40, 41, 42, 99]
    cut = chunks(lengths, chunk_size=8, chunk_tokens=budget)
    assert sorted(length for chunk in cut for length in chunk) == sorted(lengths)
    for chunk in cut:
        assert len(chunk) <= 8 and (len(chunk) == 1 or len(chunk) * max(chunk) <= budget)
    for chunk in cut[:-1]:  # none could have taken one caption more
        assert len(chunk) == 8 or (len(chunk) + 1) * max(chunk) > budget
