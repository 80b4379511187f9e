import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tulip_diffusion.tokenization import load_tokenizer
from tulip_diffusion.training.cutting import CaptionCutter, partition, tokenize_sentences

from .conftest import make_caption

ODD = [
    "Mr. Smith's dog!!  It's 3.5 m tall... isn't it?\nYes. No",
    "naïve café — 你好。 emoji 🙂. end",
    "x" * 400,
    "one. " * 100,
    "...",
    "A sentence with <|endoftext|> inside. Another one.",
]


@pytest.mark.parametrize("caption", [make_caption(0, 16), *ODD])
def test_sentences_hold_exactly_the_tokens_of_the_caption(tokenizer, caption):
    tokenized = tokenize_sentences(caption, tokenizer, 10_000)
    assert tokenized.ids == tokenizer(caption, add_special_tokens=False, verbose=False).input_ids


@pytest.mark.parametrize("caption", [make_caption(1, 30), *ODD])
@pytest.mark.parametrize("kind", ["subsets", "windows", "both"])
def test_every_matched_token_stands_at_its_place_in_the_long_caption(tokenizer, caption, kind):
    cut = CaptionCutter(tokenizer, 248, sub_captions=kind, candidates=2)(caption, 0)
    assert len(cut.long_ids) <= 248 and len(cut.short_ids) <= 77
    for sub in cut.sub_captions:
        assert len(sub.input_ids) <= 77
        assert sub.input_ids[0] == tokenizer.bos_token_id and sub.input_ids[-1] == tokenizer.eos_token_id
        for piece in sub.pieces:
            there = sub.input_ids[piece.start : piece.start + piece.count]
            assert there == cut.long_ids[piece.place : piece.place + piece.count]


def test_subsets_cover_each_far_token_once_a_candidate_and_the_prefix_window_the_rest(tokenizer):
    cut = CaptionCutter(tokenizer, 248, candidates=3)(make_caption(2, 14), 0)
    covered = {}
    for sub in cut.sub_captions:
        for piece in sub.pieces:
            for place in range(piece.place, piece.place + piece.count):
                covered[place] = covered.get(place, 0) + 1
    assert sorted(covered) == list(range(1, len(cut.long_ids) - 1))
    prefix = cut.sub_captions[0].pieces
    near = prefix[-1].place + prefix[-1].count
    assert all(times == (1 if place < near else 3) for place, times in covered.items())


def test_subsets_leave_the_middle_out(tokenizer):
    """Some sub-caption holds sentences that are farther apart in the caption than the teacher can see."""
    cutter = CaptionCutter(tokenizer, 248)
    cuts = [cutter(make_caption(number, 20), number) for number in range(8)]
    spans = [sub.pieces[-1].place - sub.pieces[0].place for cut in cuts for sub in cut.sub_captions[1:] if sub.pieces]
    assert max(spans) > 100


def test_a_caption_that_fits_the_window_needs_no_sub_captions(tokenizer):
    assert CaptionCutter(tokenizer, 248)(make_caption(3, 4), 0).sub_captions == []


def test_a_cut_depends_on_seed_row_and_draw_alone(tokenizer):
    first, second = CaptionCutter(tokenizer, 248, seed=1), CaptionCutter(tokenizer, 248, seed=1)
    caption = make_caption(4, 14)
    second(make_caption(5, 14), 5)
    assert first(caption, 7, 2) == second(caption, 7, 2)
    assert first(caption, 7, 2) != first(caption, 7, 3)


def test_short_texts_follow_their_policy(tokenizer):
    caption = "A red boat, v1. " + make_caption(6, 12)

    def short(policy, number=0):
        ids = CaptionCutter(tokenizer, 248, short=policy)(caption, number).short_ids
        return tokenizer.decode(ids[1:-1]).strip()

    assert short("first-sentence") == "a red boat , v 1"
    cut = CaptionCutter(tokenizer, 248, short="cut")(caption, 0).short_ids
    assert cut == tokenizer(caption, truncation=True, max_length=77).input_ids
    for number in range(8):
        assert not short("random-subset", number).startswith("a red boat")
    prefixes = [CaptionCutter(tokenizer, 248, short="prefix")(caption, number).short_ids for number in range(20)]
    assert all(ids[:-1] == cut[: len(ids) - 1] for ids in prefixes)
    lengths = sorted(len(ids) for ids in prefixes)
    assert lengths[0] < 20 and lengths.count(77) >= 6 and len(set(lengths)) > 5


@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=30),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50, deadline=None)
def test_a_partition_keeps_every_sentence_once_and_fits_the_room(lengths, order):
    numbers = list(range(len(lengths)))
    order.shuffle(numbers)
    groups = partition(numbers, lengths, room=75)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    for group in groups:
        assert group == sorted(group)
        assert len(group) == 1 or sum(lengths[number] for number in group) <= 75


@pytest.mark.parametrize("caption", [make_caption(0, 16), " One.  Two!\nThree? 3.5 m. ", *ODD])
@pytest.mark.parametrize("clean", [False, True])
def test_sentences_end_at_white_space_after_a_stop(caption, clean):
    tokenizer = load_tokenizer(clean=clean)
    texts = [text for text in re.split(r"(?<=[.!?])\s+", caption.strip()) if text]
    expected = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    assert tokenize_sentences(caption, tokenizer, 10_000).sentences == expected


def test_a_first_sentence_that_is_too_long_is_cut_and_later_ones_are_left_out(tokenizer):
    caption = "One two three four. Five six. Seven."
    ids = tokenizer(caption, add_special_tokens=False).input_ids
    assert tokenize_sentences(caption, tokenizer, 3).ids == ids[:3]
    assert tokenize_sentences(caption, tokenizer, 9).ids == ids[:8]


@pytest.mark.parametrize("short", ["cut", "prefix", "first-sentence", "random-subset"])
def test_a_caption_is_tokenized_once(tokenizer, short, monkeypatch):
    calls = []
    tokenize = type(tokenizer)._encode_plus
    monkeypatch.setattr(type(tokenizer), "_encode_plus", lambda *a, **k: calls.append(a) or tokenize(*a, **k))
    CaptionCutter(tokenizer, 248, short=short)(make_caption(0, 16), 0)
    assert len(calls) == 1


def test_a_length_below_the_window_is_refused(tokenizer):
    with pytest.raises(ValueError, match="at least the teacher's window"):
        CaptionCutter(tokenizer, 60)


@pytest.mark.parametrize("caption", [make_caption(4, 30), *ODD])
def test_position_gaps_stand_before_sentences_alone_and_reach_no_further_than_asked(tokenizer, caption):
    cutter = CaptionCutter(tokenizer, 248, position_gaps=2048)
    tokenized = tokenize_sentences(caption, tokenizer, 246)
    starts = set(tokenized.starts)
    for draw in range(8):
        cut = cutter(caption, 0, draw)
        assert cut.long_positions is not None and len(cut.long_positions) == len(cut.long_ids)
        steps = [after - before for before, after in pairwise(cut.long_positions)]
        assert cut.long_positions[0] == 0 and min(steps) >= 1 and cut.long_positions[-1] < 2048
        assert all(step == 1 for place, step in enumerate(steps, start=1) if place not in starts)
        assert cutter(caption, 0, draw) == cut  # the same in every process


def test_position_gaps_spread_captions_far_beyond_their_own_tokens_and_change_no_cut(tokenizer):
    caption = make_caption(5, 30)
    plain, spread = CaptionCutter(tokenizer, 248), CaptionCutter(tokenizer, 248, position_gaps=2048)
    last = []
    for draw in range(64):
        cut = spread(caption, 0, draw)
        last.append(cut.long_positions[-1])
        assert replace(cut, long_positions=None) == plain(caption, 0, draw)
    assert max(last) > 1700 and min(last) < 700
