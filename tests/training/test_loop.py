import copy
import importlib.util
import json
import math
import random

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from tulip_diffusion import TulipTextModel, TulipTextModelWithProjection, from_clip, stretch_position_embeddings
from tulip_diffusion.data import CaptionData, open_captions
from tulip_diffusion.training.baselines import Finetuning, finetune_clip, long_clip
from tulip_diffusion.training.config import DistillArguments, ExpandArguments, FinetuneArguments, LongCLIPArguments
from tulip_diffusion.training.contrastive import LOGIT_SCALE_LIMIT
from tulip_diffusion.training.distill import Distillation, distill
from tulip_diffusion.training.embedded.tokenizer import build_tokenizer
from tulip_diffusion.training.expand import Expansion, expand
from tulip_diffusion.training.loop import learning_rate
from tulip_diffusion.training.towers import image_processor

from .conftest import make_caption, tiny_text_config


@pytest.fixture
def pairs(tmp_path):
    """40 captioned images on disk; the images are noise."""
    generator = random.Random(0)
    (tmp_path / "images").mkdir()
    with (tmp_path / "data.jsonl").open("w") as file:
        for number in range(40):
            pixels = bytes(generator.randrange(256) for _ in range(32 * 32 * 3))
            Image.frombytes("RGB", (32, 32), pixels).save(tmp_path / "images" / f"{number}.png")
            row = {"caption": make_caption(number, 3 + number % 12), "image": f"images/{number}.png"}
            file.write(json.dumps(row) + "\n")
    return tmp_path / "data.jsonl"


def arguments(arguments_class, folder, **changes):
    defaults = {"steps": 3, "batch_size": 8, "warmup_steps": 1, "num_workers": 0, "learning_rate": 1e-3}
    return arguments_class(output_dir=str(folder), **(defaults | changes))


def history(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(first, second, atol):
    for name, weight in weights(first).items():
        torch.testing.assert_close(weights(second)[name], weight, atol=atol, rtol=0)


def captions(count=32):
    return CaptionData([make_caption(number, 3 + number % 12) for number in range(count)])


def student_of(towers):
    return from_clip(towers.text_encoder)


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    rates = [learning_rate(step, 2.0, warmup=4, total=14) for step in range(15)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[9] == pytest.approx(1.0) and rates[14] == pytest.approx(0.0, abs=1e-12)


CHUNKS = [{"chunk_size": 2}, {"chunk_size": 3}, {"chunk_tokens": 400}]  # even, uneven, and by length


@pytest.mark.parametrize("chunks", CHUNKS)
def test_distilling_in_sorted_chunks_equals_the_whole_batch(tmp_path, tokenizer, teacher, chunks):
    for name, given in (("whole", {}), ("chunks", chunks)):
        distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path / name, **given))
    assert history(tmp_path / "chunks")[-1] == pytest.approx(history(tmp_path / "whole")[-1], rel=1e-4)
    assert_same_weights(tmp_path / "whole", tmp_path / "chunks", atol=1e-5)


PAIRED = [*(("expand", c) for c in CHUNKS), ("expand, sigmoid", CHUNKS[1]), ("longclip", CHUNKS[1])]


@pytest.mark.parametrize(("stage", "chunks"), PAIRED)
def test_contrasting_in_sorted_chunks_equals_the_whole_batch(tmp_path, tokenizer, load_towers, pairs, stage, chunks):
    data = open_captions(str(pairs), with_images=True)
    for name, changes in (("whole", {}), ("chunks", chunks)):
        if stage.startswith("expand"):
            own = {"pair_loss": "sigmoid"} if "sigmoid" in stage else {"hard_negative_margin": 0.5}
            given = arguments(ExpandArguments, tmp_path / name, **changes, **own)
            expand(load_towers(), tokenizer, data, given, student_of(load_towers()))
        else:
            given = arguments(LongCLIPArguments, tmp_path / name, **changes, components=3, learning_rate=1e-3)
            long_clip(load_towers(), tokenizer, data, given)
    assert history(tmp_path / "chunks")[-1] == pytest.approx(history(tmp_path / "whole")[-1], rel=1e-4)
    assert_same_weights(tmp_path / "whole", tmp_path / "chunks", atol=1e-5)
    assert_same_weights(tmp_path / "whole" / "image_encoder", tmp_path / "chunks" / "image_encoder", atol=1e-5)
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "chunks")]
    for temperature in ("logit_scale", *(["logit_bias"] if "sigmoid" in stage else [])):
        whole, chunked = (run[temperature] for run in runs)
        assert chunked == pytest.approx(whole, abs=1e-5) and whole not in (math.log(10), -10.0)


def test_stage_1_leaves_an_encoder_that_loads_and_says_what_made_it(tmp_path, tokenizer, teacher):
    student = distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path))
    ids = torch.tensor([tokenizer(make_caption(0, 20)).input_ids])
    loaded = TulipTextModelWithProjection.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).text_embeds, student.cpu().eval()(ids).text_embeds)
    slot_1 = TulipTextModel.from_pretrained(tmp_path)
    torch.testing.assert_close(slot_1(ids).last_hidden_state, loaded(ids).last_hidden_state)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["arguments"]["batch_size"] == 8 and run["data"]["rows"] == 32
    assert run["figures"]["loss"] == history(tmp_path)[-1]["loss"]
    assert "train distill" in (tmp_path / "README.md").read_text()


def test_an_encoder_knows_how_long_the_texts_were_that_it_was_trained_on(tmp_path, tokenizer, teacher):
    for objective, length, expected in (("default", 154, 154), ("default", 77, 77), ("paper", 248, 77)):
        folder = tmp_path / f"{objective}-{length}"
        given = arguments(DistillArguments, folder, steps=1, objective=objective, length=length)
        distill(teacher, tokenizer, captions(), given)
        assert TulipTextModel.from_pretrained(folder).config.max_position_embeddings == expected


def test_recomputed_activations_change_nothing(tmp_path, tokenizer, teacher):
    for name, recompute in (("kept", False), ("recomputed", True)):
        given = arguments(DistillArguments, tmp_path / name, gradient_checkpointing=recompute)
        distill(teacher, tokenizer, captions(), given)
    assert_same_weights(tmp_path / "kept", tmp_path / "recomputed", atol=1e-6)


def test_half_precision_trains_float32_weights_and_stays_close(tmp_path, tokenizer, teacher):
    for name in ("no", "bf16"):
        given = arguments(DistillArguments, tmp_path / name, mixed_precision=name, attn="eager")
        distill(teacher, tokenizer, captions(), given)
    assert {weight.dtype for weight in weights(tmp_path / "bf16").values()} == {torch.float32}
    assert history(tmp_path / "bf16")[-1] == pytest.approx(history(tmp_path / "no")[-1], rel=0.03)


def test_a_bigg_like_tower_is_distilled_with_the_padding_that_sdxl_gives_it(tmp_path, tokenizer):
    torch.manual_seed(0)
    fields = tiny_text_config(hidden_size=40, projection_dim=24, num_attention_heads=5, hidden_act="gelu")
    bigg = CLIPTextModelWithProjection(CLIPTextConfig(**fields | {"eos_token_id": 2, "pad_token_id": 1}))
    given = arguments(DistillArguments, tmp_path, pad="zero", steps=16)
    stage = Distillation(bigg, None, tokenizer, captions(), given)
    short = stage.collate([stage.rows[0, 0]])["short_ids"][0]
    end = (short == tokenizer.eos_token_id).nonzero()[0].item()
    assert (short[end + 1 :] == 0).all() and len(short) == 77
    student = distill(bigg, tokenizer, captions(), given)
    assert student.config.hidden_act == "gelu"
    losses = [line["loss"] for line in history(tmp_path)]
    assert min(losses[-4:]) < 0.7 * losses[0]


def test_stage_1_trains_the_student_alone_and_keeps_the_token_table(tmp_path, tokenizer, teacher):
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    student = distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path))
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    changed = {n for n, w in student.state_dict().items() if not torch.equal(w, before[n])}
    assert "text_model.embeddings.token_embedding.weight" not in changed and len(changed) > 20


def test_a_cope_student_is_distilled_and_expanded(tmp_path, tokenizer, load_towers, pairs):
    towers = load_towers()
    given = arguments(DistillArguments, tmp_path / "1", position_encoding="cope")
    student = distill(towers.text_encoder, tokenizer, captions(), given)
    assert any(student.text_model.encoder.layers[0].self_attn.cope.table.flatten() != 0)
    data = open_captions(str(pairs), with_images=True)
    expand(towers, tokenizer, data, arguments(ExpandArguments, tmp_path / "2"), student)
    with pytest.raises(ValueError, match="counts 248 positions, fewer than 300"):
        expand(towers, tokenizer, data, arguments(ExpandArguments, tmp_path / "3", length=300), student)


def test_stage_2_writes_ntk_scaling_into_the_config_and_both_towers(tmp_path, tokenizer, clip, load_towers, pairs):
    data = open_captions(str(pairs), with_images=True)
    given = arguments(ExpandArguments, tmp_path, short_captions="random-subset")
    expand(load_towers(), tokenizer, data, given, student_of(load_towers()))
    config = TulipTextModel.from_pretrained(tmp_path).config
    expected = {"rope_type": "ntk", "rope_theta": 10000.0, "alpha": 8.0, "base_length": 77, "length": 248}
    assert config.rope_parameters == expected and config.max_position_embeddings == 248
    image = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "image_encoder")
    assert not torch.equal(image.visual_projection.weight, clip.visual_projection.weight)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["rope_parameters"] == expected
    assert run["logit_scale"] <= LOGIT_SCALE_LIMIT and run["logit_scale"] != clip.logit_scale.item()


def test_stage_2_can_keep_the_rotations(tmp_path, tokenizer, load_towers, pairs):
    student = student_of(load_towers())
    before = dict(student.config.rope_parameters)
    given = arguments(ExpandArguments, tmp_path, ntk_alpha=0)
    expand(load_towers(), tokenizer, open_captions(str(pairs), with_images=True), given, student)
    config = TulipTextModel.from_pretrained(tmp_path).config
    assert config.rope_parameters == before and config.max_position_embeddings == 248


def test_a_shorter_stage_2_does_not_forget_how_far_stage_1_reads(tmp_path, tokenizer, load_towers, pairs):
    student = student_of(load_towers())
    student.config.max_position_embeddings = student.text_model.config.max_position_embeddings = 520
    given = arguments(ExpandArguments, tmp_path, ntk_alpha=0, length=100)
    expand(load_towers(), tokenizer, open_captions(str(pairs), with_images=True), given, student)
    assert TulipTextModel.from_pretrained(tmp_path).config.max_position_embeddings == 520


@pytest.mark.parametrize("scaling", ["none", "log"])
@pytest.mark.parametrize("chunks", [{}, {"chunk_size": 3}])
@pytest.mark.parametrize("pooled_anchor", [0.0, 1.0])
def test_frozen_token_states_stay_the_same_bits_while_the_pooled_state_learns(
    tmp_path, tokenizer, load_towers, pairs, scaling, chunks, pooled_anchor
):
    towers = load_towers()
    student = from_clip(towers.text_encoder, attention_scaling=scaling)
    before = copy.deepcopy(student).eval()
    given = arguments(
        ExpandArguments,
        tmp_path,
        **chunks,
        ntk_alpha=0,
        freeze_token_states=True,
        pooled_anchor_weight=pooled_anchor,
        hard_negative_margin=0.25,
    )
    expand(load_towers(), tokenizer, open_captions(str(pairs), with_images=True), given, student)
    after = TulipTextModelWithProjection.from_pretrained(tmp_path).eval()
    for sentences in (2, 20, 60):
        ids = torch.tensor([tokenizer(make_caption(0, sentences), truncation=False, verbose=False).input_ids])
        old, new = (encoder(ids, output_hidden_states=True) for encoder in (before, after))
        assert all(map(torch.equal, old.hidden_states[:-1], new.hidden_states[:-1]))
        assert not torch.allclose(old.text_embeds, new.text_embeds, atol=1e-4)
    assert after.config.attention_scaling == scaling
    assert ("long_pooled_error" in history(tmp_path)[-1]) == bool(pooled_anchor)
    assert "short_error" not in history(tmp_path)[-1]  # an anchor on what cannot move would cost the teacher's time


def test_the_pooled_anchor_is_the_relative_error_to_the_teachers_pooled_states(
    tmp_path, tokenizer, load_towers, pairs
):
    towers, data = load_towers(), open_captions(str(pairs), with_images=True)
    given = arguments(
        ExpandArguments, tmp_path, steps=1, ntk_alpha=0, anchor_weight=0.0, pooled_anchor_weight=3.0, short_weight=0.2
    )
    student = student_of(load_towers())
    stage = Expansion(load_towers(), student, tokenizer, data, given)
    chunk = stage.collate([stage.rows[row, 0] for row in range(4)])
    said = stage.module(chunk["pixel_values"], chunk["short_ids"], chunk["long_ids"], chunk["long_mask"])
    loss, figures = stage.extra_loss(said, chunk, Accelerator(cpu=True))
    taught = towers.text_encoder(chunk["short_ids"]).text_embeds
    expected = ((said.text.short_embeds - taught).square().sum(-1) / taught.square().sum(-1)).mean()
    assert figures["short_pooled_error"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(3 * (expected + figures["long_pooled_error"]).item(), rel=1e-5)


def test_frozen_token_states_are_about_the_text_tower():
    with pytest.raises(ValueError, match="freeze_token_states is about the text tower, which train='image' leaves"):
        arguments(ExpandArguments, "unused", freeze_token_states=True, train="image")


def test_the_sigmoid_loss_takes_no_options_of_the_other():
    for name in ("hard_negative_margin", "label_smoothing"):
        with pytest.raises(ValueError, match="are of the softmax loss; leave them at 0"):
            arguments(ExpandArguments, "unused", pair_loss="sigmoid", **{name: 0.1})


SAVED_SCALINGS = [
    ({}, "log"),
    ({"attention_scaling": "none"}, "none"),
    ({"objective": "paper"}, "none"),
    ({"objective": "paper", "attention_scaling": "log"}, "log"),
    ({"position_encoding": "cope"}, "none"),
]


@pytest.mark.parametrize(("changes", "expected"), SAVED_SCALINGS)
def test_stage_1_teaches_without_attention_scaling_and_saves_what_is_read_with_it(
    tmp_path, tokenizer, teacher, changes, expected
):
    returned = distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path / "1", **changes))
    plain = {**changes, "attention_scaling": "none"}
    distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path / "2", **plain))
    assert_same_weights(tmp_path / "1", tmp_path / "2", atol=0)  # what is saved changes nothing that is learned
    saved = TulipTextModel.from_pretrained(tmp_path / "1").config
    assert (saved.attention_scaling, saved.attention_scaling_base) == (expected, 77)
    assert returned.config.attention_scaling == returned.text_model.config.attention_scaling == expected


@pytest.mark.parametrize(("asked", "expected"), [(None, "log"), ("none", "none"), ("log", "log")])
def test_a_student_that_goes_on_keeps_its_attention_scaling_unless_told_otherwise(
    tmp_path, tokenizer, teacher, asked, expected
):
    students = [copy.deepcopy(from_clip(teacher, attention_scaling=kind)) for kind in ("log", "none")]
    for number, student in enumerate(students):
        kept = {"attention_scaling": asked if number == 0 else "log"}
        distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path / f"{number}", **kept), student)
    assert TulipTextModel.from_pretrained(tmp_path / "0").config.attention_scaling == expected
    assert_same_weights(tmp_path / "0", tmp_path / "1", atol=0)  # both were taught without


def test_lambda_weighs_short_against_long_captions(tmp_path, tokenizer, load_towers, pairs):
    data = open_captions(str(pairs), with_images=True)
    given = arguments(ExpandArguments, tmp_path, anchor_weight=0.0, short_weight=0.2)
    expand(load_towers(), tokenizer, data, given, student_of(load_towers()))
    for line in history(tmp_path):
        assert line["loss"] == pytest.approx(0.2 * line["short_loss"] + 0.8 * line["long_loss"], rel=1e-6)


@pytest.mark.parametrize("trained", ["text", "image"])
def test_the_other_tower_stays_as_it_was(tmp_path, tokenizer, clip, load_towers, pairs, trained):
    data = open_captions(str(pairs), with_images=True)
    given = arguments(FinetuneArguments, tmp_path, train=trained)
    finetune_clip(load_towers(), tokenizer, data, given)
    text = CLIPTextModelWithProjection.from_pretrained(tmp_path)
    image = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "image_encoder")
    assert torch.equal(text.text_projection.weight, clip.text_projection.weight) == (trained == "image")
    assert torch.equal(image.visual_projection.weight, clip.visual_projection.weight) == (trained == "text")


def test_long_clip_keeps_the_first_twenty_positions_and_trains_the_stretched_ones(
    tmp_path, tokenizer, clip, load_towers, pairs
):
    data = open_captions(str(pairs), with_images=True)
    given = arguments(LongCLIPArguments, tmp_path, components=4, learning_rate=1e-3, weight_decay=0.5)
    trained = long_clip(load_towers(), tokenizer, data, given)
    table = stretch_position_embeddings(clip.text_model.embeddings.position_embedding.weight.detach())
    after = trained.text_model.embeddings.position_embedding.weight
    assert after.shape == (248, 32)
    assert torch.equal(after[:20], table[:20]) and not torch.equal(after[20:200], table[20:200])


def test_fine_tuned_clip_may_have_stretched_positions(tmp_path, tokenizer, load_towers, pairs):
    data = open_captions(str(pairs), with_images=True)
    for stretch, positions in ((False, 77), (True, 248)):
        given = arguments(FinetuneArguments, tmp_path / str(stretch), stretch=stretch)
        trained = finetune_clip(load_towers(), tokenizer, data, given)
        assert trained.config.max_position_embeddings == positions


def test_broken_images_are_replaced_counted_and_too_many_stop_the_run(tmp_path, tokenizer, load_towers, pairs, caplog):
    for number in (3, 17):
        (tmp_path / "images" / f"{number}.png").write_bytes(b"broken")
    data = open_captions(str(pairs), with_images=True, max_bad_share=0.1)
    given = arguments(FinetuneArguments, tmp_path / "out", steps=10, num_workers=1)
    finetune_clip(load_towers(), tokenizer, data, given)
    assert len(history(tmp_path / "out")) == 10
    assert "data.jsonl line 4" in caplog.text and "data.jsonl line 18" in caplog.text
    data = open_captions(str(pairs), with_images=True, max_bad_share=0.01)
    given = arguments(FinetuneArguments, tmp_path / "strict", steps=10)
    with pytest.raises(ValueError, match=r"more than the share of 0\.01"):
        finetune_clip(load_towers(), tokenizer, data, given)


def test_a_moving_average_is_what_is_saved(tmp_path, tokenizer, teacher):
    """Against the average of the checkpoints, whose decay warms up: 0, 2/11, 3/12, then 4/13 but at most 0.28."""
    given = arguments(DistillArguments, tmp_path, steps=4, ema_decay=0.28, save_every=1, keep_last=4)
    distill(teacher, tokenizer, captions(), given)
    name, average = "text_projection.weight", None
    for step, decay in enumerate((0.0, 2 / 11, 3 / 12, 0.28), start=1):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        trained = load_file(folder / "model.safetensors")[f"student.{name}"]
        average = trained if average is None else decay * average + (1 - decay) * trained
    saved = weights(tmp_path)[name]
    torch.testing.assert_close(saved, average, atol=1e-6, rtol=0)
    assert (saved - trained).abs().max() > 5e-5


def test_only_the_last_checkpoints_are_kept(tmp_path, tokenizer, teacher):
    given = arguments(DistillArguments, tmp_path, steps=5, save_every=1, keep_last=2)
    distill(teacher, tokenizer, captions(), given)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more, got 0"),
        ({"steps": 0}, "steps must be a whole number, 1 or more, got 0"),
        ({"steps": -1}, "steps must be a whole number, 1 or more, got -1"),
        ({"epochs": 0.0}, "epochs must be a number, above 0, got 0"),
        ({"chunk_tokens": 0}, "chunk_tokens must be a whole number, 1 or more"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"learning_rate": -1.0}, "learning_rate must be a number, 0 or more, got -1"),
    ],
)
def test_senseless_arguments_are_refused_where_they_are_made(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(DistillArguments, tmp_path, **changes)


def test_a_run_neither_starts_over_anothers_checkpoints_nor_goes_on_in_another_order(tmp_path, tokenizer, teacher):
    distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path))
    with pytest.raises(FileExistsError, match=r"up to step-00000003\. Add --resume auto"):
        distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path))
    with pytest.raises(ValueError, match="made with batch_size 8, and this run has 4"):
        given = arguments(DistillArguments, tmp_path, resume="auto", batch_size=4, steps=6)
        distill(teacher, tokenizer, captions(), given)
    distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path, resume="auto", steps=5))
    assert [line["step"] for line in history(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_student_made_of_its_teachers_own_tensors_is_refused(tmp_path, tokenizer, load_towers, pairs):
    towers = load_towers()
    with pytest.raises(ValueError, match=r"Train copy\.deepcopy"):
        distill(towers.text_encoder, tokenizer, captions(), arguments(DistillArguments, tmp_path), student_of(towers))
    data = open_captions(str(pairs), with_images=True)
    with pytest.raises(ValueError, match=r"Train copy\.deepcopy"):
        expand(towers, tokenizer, data, arguments(ExpandArguments, tmp_path), student_of(towers))


@pytest.mark.parametrize("warmup", [3, 4, 1000])
def test_a_warm_up_that_is_not_shorter_than_the_run_warns(tmp_path, tokenizer, teacher, caplog, warmup):
    distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path / "out", warmup_steps=warmup))
    assert f"warm-up of {warmup} steps is not shorter than the run of 3" in caplog.text
    caplog.clear()
    distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path / "well", warmup_steps=2))
    assert "warm-up" not in caplog.text


@pytest.mark.parametrize("kind", ["too large", "too small", "another end"])
def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, tokenizer, teacher, kind):
    if kind == "too large":
        config = CLIPTextConfig(**tiny_text_config(vocab_size=1000, eos_token_id=999, bos_token_id=998))
        teacher, expected = CLIPTextModelWithProjection(config), "has 49408 tokens and ends texts with id 49407"
    elif kind == "too small":
        tokenizer, expected = build_tokenizer(), "has 889 tokens"
    else:
        teacher.config.eos_token_id, expected = 49000, "ends with 49000"
    with pytest.raises(ValueError, match=f"{expected}.*--tokenizer"):
        distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path))


def test_a_student_of_another_vocabulary_is_refused(tmp_path, tokenizer, teacher, load_towers, pairs):
    other = from_clip(CLIPTextModelWithProjection(CLIPTextConfig(**tiny_text_config(vocab_size=49410))))
    with pytest.raises(ValueError, match="student knows 49410 tokens and its teacher 49408"):
        distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path), other)
    with pytest.raises(ValueError, match="student knows 49410 tokens and its teacher 49408"):
        data = open_captions(str(pairs), with_images=True)
        expand(load_towers(), tokenizer, data, arguments(ExpandArguments, tmp_path), other)


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "tensorboard"])
def test_a_missing_tracker_is_noticed_before_any_work(tmp_path, tokenizer, teacher, monkeypatch, tracker):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if tracker in name else found(name, *a))
    with pytest.raises(ImportError, match=f"--report-to {tracker} needs its package: pip install {tracker}"):
        distill(teacher, tokenizer, captions(), arguments(DistillArguments, tmp_path, report_to=tracker))


def test_images_travel_as_whole_numbers_and_are_normalised_as_clips_processor_does(tokenizer, load_towers, pairs):
    data = open_captions(str(pairs), with_images=True)
    stage = Finetuning(load_towers(), tokenizer, data, arguments(FinetuneArguments, "unused"))
    chunk = stage.collate([stage.rows[row, 0] for row in range(3)])
    assert chunk["pixel_values"].dtype == torch.uint8
    processor = image_processor(stage.image)
    expected = processor([data.image(row) for row in range(3)], return_tensors="pt").pixel_values
    assert torch.equal(stage.module.normalised(chunk["pixel_values"]), expected)
    assert torch.equal(stage.module.normalised(expected), expected)
