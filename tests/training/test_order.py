import pytest

from tulip_diffusion.training.order import ShuffledChunks


def steps(**changes):
    sampler = ShuffledChunks(**({"rows": 50, "batch_size": 8, "steps": 12, "seed": 3} | changes))
    chunks = list(sampler)
    assert len(chunks) == len(sampler)
    return chunks


def test_an_epoch_visits_no_row_twice_and_every_epoch_has_its_own_order():
    chunks = steps()
    first = [row for chunk in chunks[:6] for row, _ in chunk]
    second = [row for chunk in chunks[6:] for row, _ in chunk]
    assert len(set(first)) == len(set(second)) == 48 and first != second
    assert {epoch for chunk in chunks[6:] for _, epoch in chunk} == {1}


def test_processes_and_chunks_share_the_same_batches():
    whole = steps()
    parts = [steps(process=process, processes=2, chunk_size=2) for process in range(2)]
    for step, batch in enumerate(whole):
        shared = [row for part in parts for chunk in part[2 * step : 2 * step + 2] for row in chunk]
        assert shared == batch


def test_resumed_order_is_the_rest_of_the_unbroken_order():
    assert steps(first_step=7) == steps()[7:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 3}, "cannot be shared by 3"),
        ({"chunk_size": 3}, "does not divide"),
        ({"rows": 7}, "fewer than one batch"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        steps(**changes)
