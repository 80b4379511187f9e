import copy

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from tulip_diffusion.evaluation.fidelity import fidelity, mean_cosine, relative_error, window_ids
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
