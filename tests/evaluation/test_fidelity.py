import copy
import json

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tulip_diffusion.evaluation.fidelity import (
    compare_batch,
    far_fidelity,
    fidelity,
    mean_cosine,
    relative_error,
    sub_captions,
    window_ids,
)
from tulip_diffusion.scenes.dataset import full_caption
from tulip_diffusion.tokenization import load_tokenizer


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
    )
    return CLIPTextModelWithProjection(config)


CAPTIONS = ["a red tulip", "a very long caption " * 40, "two boats on a lake."]


def test_an_encoder_is_faithful_to_itself(teacher):
    figures = fidelity(copy.deepcopy(teacher), teacher, load_tokenizer(), CAPTIONS, batch_size=2)
    expected = {"pooled_cosine": 1.0, "penultimate_cosine": 1.0, "penultimate_error": 0.0}
    assert figures == pytest.approx(expected, abs=1e-6)


def test_figures_do_not_depend_on_the_batch_size_and_modes_are_left_alone(teacher):
    torch.manual_seed(1)
    student = copy.deepcopy(teacher).train()
    with torch.no_grad():
        for weight in student.parameters():
            weight += 0.01 * torch.randn_like(weight)
    one, three = (fidelity(student, teacher, load_tokenizer(), CAPTIONS, batch_size=size) for size in (1, 3))
    assert one == pytest.approx(three, abs=1e-6) and one["penultimate_error"] > 0
    assert student.training


def test_figures_follow_their_formulas():
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert mean_cosine(student, teacher) == pytest.approx((3 / 5 + 0) / 2)
    assert relative_error(student, teacher) == pytest.approx((16 / 9 + 5 / 4) / 2)


def test_texts_are_cut_and_padded_as_sdxl_does():
    tokenizer = load_tokenizer()
    sdxl = tokenizer(CAPTIONS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(window_ids(CAPTIONS, tokenizer, 77, 49407), sdxl)


def test_pooled_states_of_an_encoder_without_projection_are_compared_as_they_are(teacher):
    bare = CLIPTextModel(teacher.config).eval()
    ids = window_ids(CAPTIONS[:1], load_tokenizer(), 77, 49407)
    other = copy.deepcopy(bare)
    with torch.no_grad():
        other.final_layer_norm.bias += 1
    expected = mean_cosine(other(ids).pooler_output, bare(ids).pooler_output)
    assert compare_batch(other, bare, ids)["pooled_cosine"] == pytest.approx(expected, abs=1e-6)


def test_sub_captions_hold_every_sentence_once_and_fit_the_window():
    caption = full_caption(np.random.default_rng(0))
    groups = sub_captions(caption, np.random.default_rng(0), 77)
    assert sorted(sentence for group in groups for sentence in group) == list(range(len(caption.sentences)))
    assert all(caption.subset(group).tokens <= 77 and group == sorted(group) for group in groups)
    assert groups != [sorted(group) for group in sub_captions(caption, np.random.default_rng(1), 77)]


def without_context(pipeline):
    """Take attention and positions out of both encoders, so that a token's state depends on the token alone."""
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        for name, weight in encoder.named_parameters():
            if "out_proj" in name or "position_embedding" in name:
                weight.data.zero_()
    return pipeline


def test_far_states_are_compared_token_by_token(tiny_pipeline):
    """Encoders without context must agree with themselves wherever a token stands, if it is the same token."""
    captions = [full_caption(np.random.default_rng(seed)) for seed in range(2)]
    teacher = without_context(tiny_pipeline("clip"))
    for slot in far_fidelity(teacher, teacher, captions, "windows").values():
        assert slot["read"] == 1 and slot["cosine"].mean == pytest.approx(1, abs=1e-5)
        assert slot["error"].mean == pytest.approx(0, abs=1e-5)
        far = sum(end - start for c in captions for start, end in c.token_spans if end + 1 > 77)
        assert slot["error"].values == far
    cut = far_fidelity(teacher, teacher, captions)
    assert cut["l"]["read"] == 0 and cut["l"]["error"] is None


def test_the_command_compares_states_and_pictures(command):
    out = command(
        "fidelity",
        *["--encoders", "clip", "tulip", "--prompts", "full", "--count", "2", "--pictures", "1", "--steps", "1"],
    )
    results = json.loads((out / "fidelity.json").read_text())["results"]
    assert results["clip"]["near"]["g"]["penultimate_error"] == 0 and results["clip"]["pictures"]["pixels"] == 0
    assert results["tulip"]["far"]["full"]["l"]["read"] == 1
    assert results["tulip"]["near"]["l"]["penultimate_error"] > 0
    assert (out / "fidelity.png").exists() and "clip, windows g" in (out / "fidelity.md").read_text()
