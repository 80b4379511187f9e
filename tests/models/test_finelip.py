"""FineLIP's modules against the formulas written out pair by pair, and the layouts they are kept in."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig
from transformers import CLIPVisionModelWithProjection as VisionModel

from tests.models.reference import longclip_state, open_clip_model
from tulip_diffusion.models.finelip import (
    FineLIP,
    FineLIPConfig,
    FineLIPModel,
    ProjectedTokens,
    fine_score,
    first_eos,
    late_interaction,
    load_finelip,
    project_image,
    project_text,
    refined_score,
    slot_similarity,
    slots_for,
)
from tulip_diffusion.models.text_encoder import TulipTextConfig, TulipTextModelWithProjection

BOS, EOS, BANG = 49406, 49407, 0
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
    "initializer_factor": 3.0,
}


def tower(model_class=CLIPTextModelWithProjection, config_class=CLIPTextConfig, **changes):
    torch.manual_seed(0)
    fields = TEXT | {"bos_token_id": BOS, "eos_token_id": EOS, "max_position_embeddings": 77} | changes
    return model_class(config_class(**fields)).eval()


def image_tower():
    torch.manual_seed(1)
    fields = TEXT | {"image_size": 32, "patch_size": 8, "initializer_factor": 1.0}
    return VisionModel(CLIPVisionConfig(**fields)).eval()


def refinement(**changes):
    torch.manual_seed(2)
    config = FineLIPConfig(**{"projection_dim": 16, "slots": 3, "hidden_dim": 8, "initial_scale": 5.0, **changes})
    return FineLIPModel(config).eval()


def token_sets(rows, seed, tokens=5, dim=12):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, tokens, dim, generator=generator, dtype=torch.double), dim=-1)


def naive_score(image, text):
    """One pair, one cosine at a time: section 3.3."""
    similarity = [[float(word @ patch) for patch in image] for word in text]
    similarity = [[value if value > 0 else 0.1 * value for value in row] for row in similarity]
    of_words = [max(row) for row in similarity]
    of_patches = [max(row[place] for row in similarity) for place in range(len(image))]
    return sum(of_words) / len(of_words) + sum(of_patches) / len(of_patches)


def differentiable_naive_scores(images, texts):
    rows = []
    for image in images:
        scores = [F.leaky_relu(text @ image.T, 0.1) for text in texts]
        rows.append(torch.stack([s.max(dim=1).values.mean() + s.max(dim=0).values.mean() for s in scores]))
    return torch.stack(rows)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_scores_are_those_of_every_pair_alone_in_blocks_of_any_size(block):
    images, texts = token_sets(7, 0), token_sets(8, 1)
    scores = late_interaction(images, texts, block)
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            assert scores[row, column].item() == pytest.approx(naive_score(image, text), abs=1e-6)


@pytest.mark.parametrize("block", [2, 64])
def test_gradients_through_blocks_are_the_naive_ones(block):
    weights = torch.randn(7, 8, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    gradients = []
    for function in (lambda a, b: late_interaction(a, b, block), differentiable_naive_scores):
        images, texts = token_sets(7, 0).requires_grad_(), token_sets(8, 1).requires_grad_()
        gradients.append(torch.autograd.grad((function(images, texts) * weights).sum(), [images, texts]))
    for ours, naive in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, naive, rtol=0, atol=1e-9)


def test_only_one_block_of_token_similarities_exists_at_a_time(monkeypatch):
    sizes = []
    einsum = torch.einsum

    def measured(*arguments):
        result = einsum(*arguments)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch, "einsum", measured)
    late_interaction(token_sets(30, 0), token_sets(50, 1), block=8)
    assert max(sizes) == 8 * 8 * 5 * 5 and sum(sizes) == 30 * 50 * 5 * 5


def test_the_starred_score_is_four_fifths_global_and_one_fifth_fine():
    images, texts = token_sets(3, 0), token_sets(4, 1)
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            expected = 0.8 * float(image[-1] @ text[-1]) + 0.2 * naive_score(image, text)
            assert fine_score(images, texts)[row, column].item() == pytest.approx(expected, abs=1e-6)


def test_the_refined_score_is_the_cosine_of_mean_tokens():
    images, texts = token_sets(3, 0), token_sets(4, 1)
    expected = F.cosine_similarity(images.mean(1)[:, None], texts.mean(1)[None], dim=-1)
    torch.testing.assert_close(refined_score(images, texts), expected)


def test_refinement_is_the_published_formula():
    module = refinement().text
    tokens = torch.randn(2, 6, 16)
    expected = torch.zeros(2, 3, 16)
    for row in range(2):
        logits = module.scale * module.fc2(F.gelu(module.fc1(module.norm(tokens[row]))))
        for slot in range(3):
            weights = logits[:, slot].exp() / logits[:, slot].exp().sum()
            expected[row, slot] = sum(weight * token for weight, token in zip(weights, tokens[row], strict=True))
    torch.testing.assert_close(module(tokens), expected)


def test_masked_tokens_change_nothing_and_weights_are_averages():
    module = refinement().text
    tokens = torch.randn(2, 6, 16)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    refined = module(tokens, mask)
    torch.testing.assert_close(refined[:1], module(tokens[:1, :4]))
    torch.testing.assert_close(refined, module(tokens.masked_fill(~mask[..., None], 7.0), mask))
    same = torch.ones(1, 6, 16)
    torch.testing.assert_close(module(same), torch.ones(1, 3, 16))


@pytest.mark.parametrize(("patches", "slots"), [(196, 39), (256, 51)])
def test_slots_are_those_of_the_published_backbones(patches, slots):
    assert slots_for(patches) == slots


def test_a_ratio_that_leaves_no_slot_is_refused():
    with pytest.raises(ValueError, match=r"leaves no slot of 4 patches; it must be at least 0\.25"):
        slots_for(4)


def test_slot_similarity_is_the_mean_cosine_of_pairs():
    refined = token_sets(3, 0)
    slots = refined[:, :-1]
    pairs = [float(row[i] @ row[j]) for row in slots for i in range(4) for j in range(4) if i != j]
    assert slot_similarity(refined).item() == pytest.approx(sum(pairs) / len(pairs))
    assert slot_similarity(refined[:, :1].expand(3, 5, 12)).item() == pytest.approx(1)


def padded(rows, pad):
    width = max(map(len, rows))
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("pad", [BANG, EOS])
def test_exclamation_marks_and_pads_of_either_kind_do_not_move_the_end(pad):
    rows = [[BOS, 320, BANG, BANG, 1125, BANG, EOS], [BOS, EOS], [BOS, *range(300, 330), BANG, EOS]]
    for eos in (EOS, 2):
        assert first_eos(padded(rows, pad), CLIPTextConfig(eos_token_id=eos)).tolist() == [6, 1, 32]


def test_a_text_cut_before_its_end_is_refused():
    with pytest.raises(ValueError, match="A text has no EOS"):
        first_eos(torch.tensor([[BOS, 320, EOS], [BOS, 320, 321]]), CLIPTextConfig(eos_token_id=EOS))


@pytest.mark.parametrize("pad", [BANG, EOS])
@pytest.mark.parametrize("kind", ["clip", "tulip"])
def test_batch_mates_and_pads_do_not_change_a_text(kind, pad):
    encoder = tower() if kind == "clip" else tower(TulipTextModelWithProjection, TulipTextConfig)
    finelip = FineLIP(encoder, image_tower(), refinement())
    long = 70 if kind == "clip" else 600
    rows = [[BOS, 320, BANG, 1125, EOS], [BOS, EOS], [BOS, *range(300, 300 + long), BANG, EOS]]
    ids = padded(rows, pad)
    mask = padded([[1] * len(row) for row in rows], 0)
    together = finelip.encode_texts(ids, mask)
    for row, text in enumerate(rows):
        torch.testing.assert_close(together[row], finelip.encode_texts(torch.tensor([text]))[0], rtol=1e-4, atol=1e-5)


def test_the_global_tokens_are_what_clip_compares():
    encoder, image_encoder = tower(), image_tower()
    ids, pixels = torch.tensor([[BOS, 320, BANG, EOS, EOS]]), torch.randn(2, 3, 32, 32)
    text = project_text(encoder, encoder(ids).last_hidden_state, ids)
    torch.testing.assert_close(text.embeds, encoder(ids).text_embeds)
    assert text.mask.tolist() == [[True, True, True, False, False]]
    image = project_image(image_encoder, pixels)
    torch.testing.assert_close(image.embeds, image_encoder(pixels).image_embeds)
    assert image.tokens.shape == (2, 16, 16)  # patches, projected; CLS stands apart


def test_refined_tokens_are_unit_vectors_with_the_global_token_last():
    image = ProjectedTokens(torch.randn(2, 16, 16), torch.randn(2, 16))
    text = ProjectedTokens(torch.randn(2, 9, 16), torch.randn(2, 16), torch.ones(2, 9, dtype=torch.bool))
    for tokens, source in zip(refinement()(image, text), (image, text), strict=True):
        assert tokens.shape == (2, 4, 16)
        torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(2, 4))
        torch.testing.assert_close(tokens[:, -1], F.normalize(source.embeds, dim=-1))


def test_saved_and_loaded_modules_are_the_same(tmp_path):
    model = refinement(initial_scale=3.0)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert type(again) is FineLIPModel and again.config.initial_scale == 3.0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_fresh_modules_start_with_the_configured_scale():
    assert refinement(initial_scale=7.0).image.scale.item() == 7.0


def published_state():
    """A file in the published layout; the names inside the modules are not relied on."""
    generator = torch.Generator().manual_seed(3)
    state = longclip_state({key: value.detach() for key, value in open_clip_model().state_dict().items()})
    for prefix in ("aggr_net", "cap_aggr_net"):
        shapes = {"0.weight": (32,), "0.bias": (32,), "1.weight": (6, 32), "1.bias": (6,)}
        shapes |= {"3.weight": (4, 6), "3.bias": (4,)}
        state |= {f"{prefix}.w.{key}": torch.randn(shape, generator=generator) for key, shape in shapes.items()}
        state[f"{prefix}.scale"] = torch.full((1, 1, 1), 2.5)
    return state


def test_published_checkpoints_load_whole(tmp_path):
    state = published_state()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "finelip.pt")
    finelip = load_finelip(tmp_path / "finelip.pt")
    assert finelip.refinement.config.slots == 4 and finelip.text_encoder.config.max_position_embeddings == 248
    tokens = torch.randn(1, 7, 32)
    for module, prefix in ((finelip.refinement.image, "aggr_net"), (finelip.refinement.text, "cap_aggr_net")):
        weights = {key.removeprefix(f"{prefix}.w."): value for key, value in state.items() if key.startswith(prefix)}
        hidden = F.layer_norm(tokens, (32,), weights["0.weight"], weights["0.bias"])
        hidden = F.gelu(hidden @ weights["1.weight"].T + weights["1.bias"])
        logits = 2.5 * (hidden @ weights["3.weight"].T + weights["3.bias"])
        torch.testing.assert_close(module(tokens), logits.transpose(1, 2).softmax(-1) @ tokens)
    assert finelip.encode_images(torch.randn(2, 3, 32, 32)).shape == (2, 5, 32)


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        (["aggr_net."], r"lacks aggr_net \(the image's refinement\)\."),
        (["cap_aggr_net."], r"lacks cap_aggr_net \(the text's refinement\)\."),
        (["visual."], r"lacks visual \(the image tower\)\."),
        (
            ["positional_embedding_res", "aggr_net.", "cap_aggr_net."],
            r"lacks positional_embedding_res \(the stretched positions\), aggr_net \(.*\), cap_aggr_net \(",
        ),
        (["aggr_net.scale"], "aggr_net must hold .* missing: scale;"),
        (["cap_aggr_net.w.3.bias"], "cap_aggr_net must hold .* missing: fc2.bias;"),
        (["cap_aggr_net.w.0"], r"cap_aggr_net must hold .* missing: norm.weight, norm.bias;"),
        (["visual.ln_post.bias"], "missing: visual.ln_post.bias"),
    ],
)
def test_what_a_published_checkpoint_lacks_is_named_in_one_sentence(lost, named):
    state = {key: value for key, value in published_state().items() if not key.startswith(tuple(lost))}
    with pytest.raises(ValueError, match=named) as error:
        load_finelip(state)
    assert "\n" not in str(error.value)


def test_refinement_modules_of_different_sizes_are_refused_in_one_sentence():
    state = published_state()
    state |= {"cap_aggr_net.w.3.weight": torch.zeros(5, 6), "cap_aggr_net.w.3.bias": torch.zeros(5)}
    with pytest.raises(ValueError, match="do not fit each other: size mismatch for fc2") as error:
        load_finelip(state)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_finelip_says_what_it_lacks(tmp_path):
    tower().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no FineLIP; it lacks image_encoder, finelip"):
        load_finelip(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        load_finelip(tmp_path / "none.pt")
