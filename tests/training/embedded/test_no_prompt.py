"""What stands beside the UNet's pictures: captions inside the window, and what the loss of a caption leaves."""

import numpy as np
import pytest
import torch

from tulip_diffusion.scenes.dataset import window_caption
from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.training.embedded.conditioning import UNRELATED_TEXTS, NoPrompt
from tulip_diffusion.training.embedded.unet_texts import named_things, telling_caption, unrelated_text, with_unrelated


def test_every_claim_of_a_caption_is_true_of_its_picture_and_inside_the_window():
    for seed in range(150):
        caption = telling_caption(np.random.default_rng(seed))
        for claim in caption.claims:
            assert caption.scene.things[claim.place] == claim.thing
            assert claim.tokens[1] + 1 <= 77


def test_things_named_without_places_are_in_the_picture():
    for seed in range(40):
        caption = named_things(np.random.default_rng(seed))
        things = [f"{thing.colour} {thing.kind}" for thing in caption.scene.things if thing]
        names = caption.text.split(", ")
        assert all(any(name == thing or name in thing.split() for thing in things) for name in names)


def test_what_is_added_to_a_caption_changes_no_claim_that_stays():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        caption = window_caption(rng)
        told = {claim.place: claim.thing for claim in caption.claims}
        longer = with_unrelated(rng, caption)
        assert {claim.place: claim.thing for claim in longer.claims}.items() <= told.items()


def test_unrelated_texts_are_of_all_lengths_and_claim_nothing():
    texts = [unrelated_text(np.random.default_rng(seed)) for seed in range(200)]
    lengths = [len(ids) for ids in load_tokenizer()(texts).input_ids]
    assert min(lengths) <= 4 and max(lengths) > 40
    assert len(set(texts)) > 150


@pytest.mark.parametrize(
    "shares",
    [NoPrompt(), NoPrompt(zeros=0.05, empty=0.04, unrelated=0.08), NoPrompt(zeros=0.0, empty=0.3, unrelated=0.2)],
)
def test_captions_are_lost_as_often_as_asked_and_the_same_way_at_every_try(shares):
    rows = torch.cat([shares.rows(32, step) for step in range(1000)])
    found = [(rows == 0), (rows == 1), (rows >= 2), (rows == -1)]
    told = 1 - shares.zeros - shares.empty - shares.unrelated
    for share, expected in zip(found, (shares.zeros, shares.empty, shares.unrelated, told), strict=True):
        assert share.float().mean().item() == pytest.approx(expected, abs=0.01)
    assert rows.max() < 2 + UNRELATED_TEXTS
    assert torch.equal(shares.rows(32, 7), rows[7 * 32 : 8 * 32])
