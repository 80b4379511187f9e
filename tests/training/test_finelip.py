"""FineLIP's stage: its losses written out pair by pair, what trains at which rate, and what a run leaves behind."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from tulip_diffusion import TulipTextModel, from_clip, load_text_encoder
from tulip_diffusion.data import CaptionData, SkippedRows
from tulip_diffusion.models.finelip import late_interaction, load_finelip
from tulip_diffusion.training.config import FineLIPArguments
from tulip_diffusion.training.finelip import FineAlignment, finelip, slot_penalty, triplet_loss
from tulip_diffusion.training.loop import build_accelerator, build_optimizer

from .conftest import make_caption
from .test_commands import run


@pytest.fixture
def pictures(tmp_path):
    """Eight captioned pictures, some captions beyond 77 tokens and some with exclamation marks."""
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 255 - 30 * number, 90)).save(tmp_path / f"{number}.png")
    captions = [make_caption(number, 4 + 2 * number) + " Look!" * (number % 3) for number in range(8)]
    images = [str(tmp_path / f"{number}.png") for number in range(8)]
    return CaptionData(captions, images, [f"row {number}" for number in range(8)], SkippedRows(0.05))


def arguments(folder, **changes):
    fields = {
        "batch_size": 8,
        "steps": 2,
        "warmup_steps": 1,
        "num_workers": 0,
        "slot_ratio": 0.75,  # three slots of four patches
        "learning_rate": 1e-3,
        "refinement_learning_rate": 1e-2,
    }
    return FineLIPArguments(output_dir=str(folder), **{**fields, **changes})


def student_of(towers):
    return copy.deepcopy(from_clip(towers.text_encoder)).train()


@pytest.mark.parametrize("negatives", ["sum", "hardest"])
def test_the_triplet_loss_is_the_naive_statement_of_every_pair(negatives):
    scores = torch.randn(6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for pair in range(6):
        right = scores[pair, pair].item()
        of_image = [max(0, 0.2 + scores[pair, other].item() - right) for other in range(6) if other != pair]
        of_text = [max(0, 0.2 + scores[other, pair].item() - right) for other in range(6) if other != pair]
        total += sum(of_image) + sum(of_text) if negatives == "sum" else max(of_image) + max(of_text)
    assert triplet_loss(scores, 0.2, negatives).item() == pytest.approx(total / 6, abs=1e-6)


def test_pairs_that_lie_a_margin_above_their_negatives_cost_nothing():
    assert triplet_loss(0.3 * torch.eye(4)) == 0
    assert triplet_loss(0.1 * torch.eye(4)).item() == pytest.approx(2 * 3 * 0.1)


def test_the_slot_penalty_is_zero_for_orthogonal_slots_alone():
    orthogonal = torch.eye(4)[None].repeat(2, 1, 1)
    assert slot_penalty(orthogonal).item() == pytest.approx(0, abs=1e-6)
    collapsed = F.normalize(torch.ones(2, 4, 4), dim=-1)
    assert slot_penalty(collapsed).item() == pytest.approx(6 / 9)  # three slots: six of nine cosines are of two slots


def test_chunks_give_the_gradients_of_the_whole_batch(load_towers, tokenizer, pictures, tmp_path):
    """Against autograd through the whole batch at once, anchor and slot penalty included."""
    gradients = []
    for chunk_size in (None, 2):
        options = arguments(tmp_path, chunk_size=chunk_size, anchor_weight=1.0, slot_penalty=0.5, global_weight=0.3)
        accelerator = build_accelerator(options)
        stage = FineAlignment(load_towers(), None, tokenizer, pictures, options)
        pairs = [stage.rows[row, 0] for row in range(8)]
        chunks = [stage.collate(pairs[start : start + (chunk_size or 8)]) for start in range(0, 8, chunk_size or 8)]
        for chunk in stage.prepare(stage.module, chunks, accelerator):
            loss, _ = stage.loss(stage.module, chunk, accelerator)
            (loss / len(chunks)).backward()
        gradients.append({name: p.grad for name, p in stage.module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "refinement.text.fc2.weight" in gradients[0]
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-3, atol=2e-5, msg=name)


def test_the_loss_is_the_papers_own_of_the_scores(load_towers, tokenizer, pictures, tmp_path):
    options = arguments(tmp_path, slot_penalty=0.0)
    accelerator = build_accelerator(options)
    stage = FineAlignment(load_towers(), None, tokenizer, pictures, options)
    chunk = stage.collate([stage.rows[row, 0] for row in range(8)])
    reading = stage.module(chunk["pixel_values"], chunk["long_ids"], chunk["long_mask"])
    surrogate, figures = stage.loss(stage.module, chunk, accelerator)
    loss = triplet_loss(late_interaction(reading.image_tokens, reading.text_tokens))
    torch.testing.assert_close(figures["loss"], loss.detach())
    weights = [p for p in stage.module.parameters() if p.requires_grad]
    ours = torch.autograd.grad(surrogate, weights, allow_unused=True)
    for mine, expected in zip(ours, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
        if expected is not None:
            torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)


def test_towers_and_refinement_learn_at_their_own_rates(load_towers, tokenizer, pictures, tmp_path):
    options = FineLIPArguments(output_dir=str(tmp_path), slot_ratio=0.75)
    stage = FineAlignment(load_towers(), None, tokenizer, pictures, options)
    optimizer = build_optimizer(stage.module, options, stage.learning_rates())
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in stage.module.named_parameters():
        assert rates[id(parameter)] == (2e-4 if name.startswith("refinement.") else 1e-6), name
    assert {id(p) for p in stage.module.parameters()} == rates.keys()


@pytest.mark.parametrize("kind", ["clip", "tulip"])
def test_a_run_leaves_towers_and_refinement_that_load(kind, load_towers, tokenizer, pictures, tmp_path):
    towers = load_towers()
    before = copy.deepcopy(towers.text_encoder.state_dict())
    student = student_of(towers) if kind == "tulip" else None
    trained = finelip(towers, tokenizer, pictures, arguments(tmp_path / "out"), student)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    for name in ("image_slot_similarity", "text_slot_similarity", "triplet_loss"):
        assert name in rows[-1]
    assert all(torch.equal(value, before[name]) for name, value in towers.text_encoder.state_dict().items())
    again = load_finelip(tmp_path / "out")
    ids = tokenizer(["a red boat! and a dog", "a"], padding=True, return_tensors="pt")
    assert torch.equal(again.encode_texts(**ids), trained.encode_texts(**ids))
    assert again.refinement.config.slots == 3

    # SDXL's first slot, and any other loader, see an ordinary encoder of 248 tokens.
    first_slot = (TulipTextModel if kind == "tulip" else CLIPTextModel).from_pretrained(tmp_path / "out").eval()
    encoder = load_text_encoder(tmp_path / "out")
    long = torch.randint(300, 40000, (1, 248))
    states = [model(long, output_hidden_states=True).hidden_states[-2] for model in (first_slot, encoder)]
    torch.testing.assert_close(*states)
    if kind == "clip":
        assert type(encoder) is CLIPTextModelWithProjection and encoder.config.max_position_embeddings == 248
        kept = before["text_model.embeddings.position_embedding.weight"][:20]
        assert torch.equal(encoder.text_model.embeddings.position_embedding.weight[:20], kept)


def test_the_anchor_keeps_the_states_that_sdxl_reads(load_towers, tokenizer, pictures, tmp_path):
    errors = {}
    for weight in (0.0, 10.0):
        towers = load_towers()
        options = arguments(tmp_path / str(weight), steps=8, anchor_weight=weight)
        trained = finelip(towers, tokenizer, pictures, options)
        ids = tokenizer(make_caption(3, 3), padding="max_length", max_length=77, return_tensors="pt").input_ids
        before, after = (
            encoder(ids, output_hidden_states=True).hidden_states[-2]
            for encoder in (load_towers().text_encoder, trained.text_encoder)
        )
        errors[weight] = ((after - before).norm() / before.norm()).item()
    assert errors[10.0] < 0.85 * errors[0.0]


def test_captions_longer_than_the_stretched_positions_are_refused(load_towers, tokenizer, pictures, tmp_path):
    with pytest.raises(ValueError, match="has 248 positions, fewer than --length 300"):
        FineAlignment(load_towers(), None, tokenizer, pictures, arguments(tmp_path, length=300))


def test_the_command_trains_on_a_students_folder(load_towers, pictures, tmp_path):
    towers = load_towers()
    student_of(towers).save_pretrained(tmp_path / "student")
    rows = [{"caption": text, "image": f"{number}.png"} for number, text in enumerate(pictures.captions)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ["--teacher", tmp_path / "clip", "--data", tmp_path / "data.jsonl", "--steps", 2, "--batch-size", 8]
    flags += ["--slot-ratio", 0.5, "--num-workers", 0, "--student", tmp_path / "student", "--length", 300]
    run("finelip", *flags, "--score", "refined", "--negatives", "hardest", "--output-dir", tmp_path / "out")
    assert load_finelip(tmp_path / "out").text_encoder.config.model_type == "tulip_text_model"
