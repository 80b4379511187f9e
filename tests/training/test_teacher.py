import copy
import json

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tulip_diffusion.data import CaptionData
from tulip_diffusion.models.text_encoder import from_clip
from tulip_diffusion.training import batches
from tulip_diffusion.training.batches import long_batch, pad_ids, short_batch, sub_caption_batch
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.cutting import CaptionCutter
from tulip_diffusion.training.distill import Distillation, distill
from tulip_diffusion.training.loop import build_accelerator
from tulip_diffusion.training.losses import relative_squared_error
from tulip_diffusion.training.student import TwoTexts
from tulip_diffusion.training.teacher import Teacher, most_moving_tokens, token_states
from tulip_diffusion.training.teacher_cache import TeacherCache

from .conftest import make_caption, tiny_text_config


def cut_batch(tokenizer, captions, candidates=1, **kwargs):
    cutter = CaptionCutter(tokenizer, 248, candidates=candidates, **kwargs)
    cuts = [cutter(caption, row) for row, caption in enumerate(captions)]
    pad = tokenizer.eos_token_id
    return cuts, short_batch(cuts, pad, 77) | sub_caption_batch(cuts, pad)


def test_short_texts_are_padded_as_sdxl_pads_them(tokenizer):
    caption = make_caption(0, 3)
    _, batch = cut_batch(tokenizer, [caption], short="cut")
    sdxl = tokenizer(caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    assert torch.equal(batch["short_ids"], sdxl.input_ids)


def test_targets_are_aligned_token_by_token(tokenizer):
    """A teacher whose penultimate states are its token embeddings must answer with the long captions' embeddings."""
    blind = CLIPTextModelWithProjection(CLIPTextConfig(**tiny_text_config(num_hidden_layers=1)))
    torch.nn.init.zeros_(blind.text_model.embeddings.position_embedding.weight)
    cuts, batch = cut_batch(tokenizer, [make_caption(n, 6 + 3 * n) for n in range(4)], candidates=3)
    targets = Teacher(blind, most_moving=True).targets(batch)
    long_ids = pad_ids([cut.long_ids for cut in cuts], 0)[targets.token_row, targets.token_place]
    torch.testing.assert_close(targets.token_states, blind.text_model.embeddings.token_embedding(long_ids))
    # Each token of a long caption is matched exactly once.
    assert len(set(zip(targets.token_row.tolist(), targets.token_place.tolist(), strict=True))) == len(long_ids)
    far = [cut for cut in cuts if cut.sub_captions]
    assert len(long_ids) == sum(len(cut.long_ids) - 2 for cut in far)


@pytest.mark.parametrize("tokens", [1, 200, 10**6])
def test_sub_captions_are_read_in_buckets_of_like_length(tokenizer, teacher, monkeypatch, tokens):
    """States equal those of one padded batch, however small the buckets are."""
    captions = [make_caption(number, 4 + 3 * number) for number in range(6)]
    monkeypatch.setattr(batches, "BUCKET_TOKENS", tokens)
    cuts, batch = cut_batch(tokenizer, captions)
    subs = [sub.input_ids for cut in cuts for sub in cut.sub_captions]
    assert sum(len(bucket) for bucket in batch["sub_ids"]) == len(subs)
    assert (len(batch["sub_ids"]) == 1) == (tokens == 10**6)
    if tokens == 1:
        lengths = [(bucket != tokenizer.eos_token_id).sum(dim=1) + 1 for bucket in batch["sub_ids"]]
        assert all(length.min() >= 0.8 * length.max() for length in lengths)
    whole = teacher(pad_ids(subs, 0), output_hidden_states=True).hidden_states[-2]
    pieces = [(n, piece) for n, sub in enumerate(s for cut in cuts for s in cut.sub_captions) for piece in sub.pieces]
    expected = torch.cat([whole[n, piece.start : piece.start + piece.count] for n, piece in pieces])
    torch.testing.assert_close(Teacher(teacher).targets(batch).token_states, expected, atol=1e-5, rtol=1e-4)


def test_the_prefix_windows_targets_are_what_the_teacher_says_of_the_cut_caption(tokenizer, teacher):
    cuts, batch = cut_batch(tokenizer, [make_caption(1, 14)])
    targets = Teacher(teacher).targets(batch)
    prefix = torch.tensor([cuts[0].long_ids[:77]])
    states = teacher(prefix, output_hidden_states=True).hidden_states[-2][0]
    near = cuts[0].sub_captions[0].pieces
    for piece in near:
        for place in range(piece.place, piece.place + piece.count):
            row = (targets.token_place == place).nonzero().item()
            torch.testing.assert_close(targets.token_states[row], states[place], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("most_moving", [False, True])
def test_the_last_state_is_matched_behind_the_final_norm(tokenizer, teacher, most_moving):
    """Of teacher and student, in short texts and in long ones, where Stable Diffusion 1.5 reads it."""
    cuts, batch = cut_batch(tokenizer, [make_caption(n, 4 + 6 * n) for n in range(3)], candidates=1 + 2 * most_moving)
    batch |= long_batch(cuts, 0, [1, 2])
    with torch.no_grad():
        targets = Teacher(teacher, most_moving=most_moving, match="last").targets(batch)
        short = teacher(batch["short_ids"], output_hidden_states=True)
        torch.testing.assert_close(targets.short_states, short.last_hidden_state)
        torch.testing.assert_close(targets.short_states, teacher.text_model.final_layer_norm(short.hidden_states[-1]))
        read = [teacher.text_model(bucket).last_hidden_state.flatten(0, 1) for bucket in batch["sub_ids"]]
        said = {tuple(state.tolist()) for state in torch.cat(read)}
        assert len(targets.token_states) and all(tuple(state.tolist()) in said for state in targets.token_states)
        student = TwoTexts(copy.deepcopy(from_clip(teacher)), "last").eval()
        states = student(batch["short_ids"], batch["long_ids"], batch["long_mask"])
        encoder = student.student.text_model
        torch.testing.assert_close(states.short_states, encoder(batch["short_ids"]).last_hidden_state)
        long = encoder(batch["long_ids"], attention_mask=batch["long_mask"]).last_hidden_state
        torch.testing.assert_close(states.long_states, long)


@pytest.mark.parametrize("match", ["penultimate", "last"])
def test_a_student_comes_nearest_to_the_states_that_it_matches(tmp_path, tokenizer, teacher, match):
    given = arguments(tmp_path, match=match, steps=30, learning_rate=3e-3, length=77, long_pooled_weight=0.0)
    student = distill(copy.deepcopy(teacher), tokenizer, captions(), given).eval()
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["short_error"] < 0.7 * lines[0]["short_error"]
    ids = pad_ids([CaptionCutter(tokenizer, 77)(caption, 0).short_ids for caption in captions().captions], 0)
    with torch.no_grad():
        said, taught = (encoder(ids, output_hidden_states=True) for encoder in (student, teacher.eval()))
    error = relative_squared_error(token_states(said, match), token_states(taught, match)).mean()
    fresh = copy.deepcopy(from_clip(teacher))(ids, output_hidden_states=True)
    assert error < relative_squared_error(token_states(fresh, match), token_states(taught, match)).mean()


def test_most_moving_keeps_for_each_sentence_the_piece_that_its_context_moves_most():
    batch = {
        "token_piece": torch.tensor([0, 0, 1, 1, 2, 3]),
        "token_offset": torch.tensor([1, 2, 1, 2, 1, 1]),
        "piece_sentence": torch.tensor([0, 0, 1, 1]),
    }
    alone = torch.zeros(4, 3, 2)
    states = torch.tensor([[1.0, 0], [1, 0], [2, 0], [2, 0], [5, 0], [4, 0]])
    assert most_moving_tokens(batch, states, alone).tolist() == [False, False, True, True, True, False]


def arguments(tmp_path, **changes):
    defaults = {"steps": 4, "batch_size": 8, "warmup_steps": 1, "num_workers": 0, "subset_draws": 2}
    return DistillArguments(output_dir=str(tmp_path / "out"), **(defaults | changes))


def captions(count=16):
    return CaptionData([make_caption(number, 4 + number % 10) for number in range(count)])


@pytest.mark.parametrize("changes", [{}, {"subset_choice": "most-moving"}, {"match": "last"}, {"objective": "paper"}])
def test_cached_targets_are_what_the_teacher_says_to_half_precision(tmp_path, tokenizer, teacher, changes):
    given = arguments(tmp_path, teacher_cache=str(tmp_path / "cache"), **changes)
    accelerator = build_accelerator(given)
    stage = Distillation(teacher, None, tokenizer, captions(), given)
    rows = [stage.rows[row, epoch] for row, epoch in ((3, 0), (9, 1), (0, 2), (11, 0))]
    direct = stage.targets(stage.collate(rows), accelerator)
    stage.begin(accelerator)
    cached = stage.targets(stage.collate(rows), accelerator)
    for name, value in vars(direct).items():
        if value is None:
            assert getattr(cached, name) is None
        else:
            torch.testing.assert_close(getattr(cached, name), value, atol=2e-3, rtol=2e-3)
    if given.objective == "paper":
        assert stage.draws == 1 and cached.short_states is None


def test_a_cache_goes_on_where_it_was_interrupted_and_its_size_is_known_before(tmp_path, tokenizer, teacher, capsys):
    given = arguments(tmp_path, teacher_cache=str(tmp_path / "cache"))
    accelerator = build_accelerator(given)
    stage = Distillation(teacher, None, tokenizer, captions(300), given)
    stage.begin(accelerator)
    assert "GB for 600 entries" in capsys.readouterr().out
    shards = sorted((tmp_path / "cache").glob("*.safetensors"))
    size = sum(shard.stat().st_size for shard in shards)
    assert stage.estimate_bytes(600) == pytest.approx(size, rel=0.2)
    first, last = shards[0].stat().st_mtime_ns, shards[-1].read_bytes()
    shards[-1].unlink()
    Distillation(teacher, None, tokenizer, captions(300), given).begin(accelerator)
    assert shards[0].stat().st_mtime_ns == first and shards[-1].read_bytes() == last


def test_a_cache_of_another_teacher_other_captions_or_other_cuts_is_refused(tmp_path, tokenizer, teacher):
    given = arguments(tmp_path, teacher_cache=str(tmp_path / "cache"))
    accelerator = build_accelerator(given)
    Distillation(teacher, None, tokenizer, captions(), given).begin(accelerator)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.text_projection.weight[0, 0] += 1
    with pytest.raises(ValueError, match=r"stale: it was made with other teacher\. Delete it"):
        Distillation(other, None, tokenizer, captions(), given).begin(accelerator)
    with pytest.raises(ValueError, match="other data, rows"):
        Distillation(teacher, None, tokenizer, captions(17), given).begin(accelerator)
    with pytest.raises(ValueError, match=r"stale: it was made with other match\. Delete it"):
        last = arguments(tmp_path, teacher_cache=str(tmp_path / "cache"), match="last")
        Distillation(teacher, None, tokenizer, captions(), last).begin(accelerator)
    given.length = 154
    with pytest.raises(ValueError, match="other cut"):
        Distillation(teacher, None, tokenizer, captions(), given).begin(accelerator)


def test_training_from_the_cache_follows_training_with_the_teacher(tmp_path, tokenizer, teacher):
    losses = {}
    for cache in ("off", str(tmp_path / "cache")):
        given = arguments(tmp_path, teacher_cache=cache)
        given.output_dir = str(tmp_path / f"out-{len(losses)}")
        distill(copy.deepcopy(teacher), tokenizer, captions(), given)
        lines = (tmp_path / f"out-{len(losses)}" / "metrics.jsonl").read_text().splitlines()
        losses[cache] = [json.loads(line)["loss"] for line in lines]
    off, cached = losses.values()
    assert cached == pytest.approx(off, rel=2e-3)


def test_the_manifest_names_everything_the_outputs_depend_on(tmp_path, tokenizer, teacher):
    given = arguments(tmp_path)
    manifest = Distillation(teacher, None, tokenizer, captions(), given).manifest()
    for change in (
        {"pad": "zero"},
        {"seed": 1},
        {"sub_captions": "windows"},
        {"subset_choice": "most-moving"},
        {"mixed_precision": "bf16"},
        {"match": "last"},
    ):
        other = Distillation(teacher, None, tokenizer, captions(), arguments(tmp_path, **change))
        assert other.manifest() != manifest
    assert TeacherCache(tmp_path / "nowhere", manifest).missing() == [0]


def test_a_long_texts_pooled_target_is_its_sub_captions_mean_direction_at_their_mean_norm(tokenizer, teacher):
    _, batch = cut_batch(tokenizer, [make_caption(0, 20), "Short.", make_caption(1, 14)])
    targets = Teacher(teacher).targets(batch)
    with torch.no_grad():
        pooled = torch.cat([teacher(bucket).text_embeds for bucket in batch["sub_ids"]])
    for row in (0, 2):
        own = pooled[batch["sub_row"] == row]
        assert len(own) > 1
        direction = torch.stack([vector / vector.norm() for vector in own]).sum(0)
        expected = direction / direction.norm() * torch.stack([vector.norm() for vector in own]).mean()
        torch.testing.assert_close(targets.long_pooled[row], expected)
        assert own.mean(0).norm() < targets.long_pooled[row].norm()  # the plain mean would be too short
    assert not targets.long_pooled[1].any()


def test_gaps_reach_the_student_and_a_text_without_them_is_read_as_before(tokenizer, teacher):
    student = TwoTexts(copy.deepcopy(from_clip(teacher)))
    cuts = [CaptionCutter(tokenizer, 248, position_gaps=gaps)(make_caption(0, 20), 0) for gaps in (0, 2048)]
    plain, spread = (long_batch([cut], 0, [0]) for cut in cuts)
    assert "long_positions" not in plain
    short = short_batch(cuts[:1], 0, 77)["short_ids"]
    far = student(short, spread["long_ids"], spread["long_mask"], spread["long_positions"])
    alone = student.student(
        spread["long_ids"], position_ids=torch.tensor([cuts[1].long_positions]), output_hidden_states=True
    )
    torch.testing.assert_close(far.long_states, alone.hidden_states[-2])
    near = student(short, plain["long_ids"], plain["long_mask"])
    assert not torch.allclose(near.long_states, far.long_states, atol=1e-3)
