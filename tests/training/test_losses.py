import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss, SigLipLoss

from tulip_diffusion.training.losses import (
    aligned_token_error,
    contrastive_loss,
    cosine_distance,
    l2_distance,
    mse_distance,
    primary_components,
    relative_squared_error,
    sigmoid_loss,
)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cosine_distance_is_one_minus_the_mean_cosine_and_does_not_train_the_teacher():
    student, teacher = rows(6, 5).requires_grad_(), rows(6, 5, seed=1).requires_grad_()
    distance = cosine_distance(student, teacher)
    cosines = [(s @ t / s.norm() / t.norm()).item() for s, t in zip(student, teacher, strict=True)]
    assert distance.item() == pytest.approx(1 - sum(cosines) / 6, abs=1e-6)
    distance.backward()
    assert student.grad is not None and teacher.grad is None


def test_l2_and_mse_are_the_ablations_of_the_paper():
    student, teacher = rows(6, 5), rows(6, 5, seed=1)
    naive = sum(math.dist(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)) / 6
    assert l2_distance(student, teacher).item() == pytest.approx(naive, abs=1e-6)
    assert mse_distance(student, teacher).item() == pytest.approx((student - teacher).pow(2).mean().item(), abs=1e-6)


def test_contrastive_loss_equals_open_clips():
    image, text = F.normalize(rows(7, 5), dim=-1), F.normalize(rows(7, 5, seed=1), dim=-1)
    expected = ClipLoss()(image, text, torch.tensor(14.3))
    assert contrastive_loss(image, text, 14.3).item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_sigmoid_loss_equals_open_clips():
    image, text = F.normalize(rows(7, 5), dim=-1), F.normalize(rows(7, 5, seed=1), dim=-1)
    scale, bias = torch.tensor(9.0), torch.tensor(-7.0)
    expected = SigLipLoss()(image, text, scale, bias)
    assert sigmoid_loss(image, text, scale, bias).item() == pytest.approx(expected.item(), rel=1e-6)


def test_contrastive_loss_takes_embeddings_as_given():
    image, text = rows(7, 5), rows(7, 5, seed=1)
    logits = 2.0 * image @ text.T
    labels = torch.arange(7)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert contrastive_loss(image, text, 2.0).item() == pytest.approx(expected.item(), abs=1e-6)


def test_label_smoothing_mixes_in_the_mean_over_all_classes():
    image, text = rows(7, 5), rows(7, 5, seed=1)
    logits = image @ text.T

    def smoothed(logits):
        log_p = logits.log_softmax(dim=-1)
        return -(0.9 * log_p.diagonal() + 0.1 * log_p.mean(dim=-1)).mean()

    expected = (smoothed(logits) + smoothed(logits.T)) / 2
    assert contrastive_loss(image, text, 1.0, label_smoothing=0.1).item() == pytest.approx(expected.item(), abs=1e-6)


def test_hard_negative_margin_raises_only_negatives_with_similar_texts():
    image, text = F.normalize(rows(4, 5), dim=-1), F.normalize(rows(4, 5, seed=1), dim=-1)
    logits = 10.0 * image @ text.T
    for i in range(4):
        for j in range(4):
            if i != j:
                logits[i, j] += 0.5 * (text[i] @ text[j])
    labels = torch.arange(4)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert contrastive_loss(image, text, 10.0, hard_negative_margin=0.5).item() == pytest.approx(
        expected.item(), abs=1e-6
    )


def by_svd(features, k):
    mean = features.mean(dim=0)
    u, s, v = torch.linalg.svd(features - mean, full_matrices=False)
    return u[:, :k] * s[:k] @ v[:k] + mean


@pytest.mark.parametrize("shape", [(40, 48), (64, 16), (12, 9)])
def test_primary_components_equal_a_truncated_svd_of_the_centred_batch(shape):
    features = F.normalize(rows(*shape), dim=-1)
    torch.testing.assert_close(primary_components(features, k=8), by_svd(features, 8), atol=1e-6, rtol=0)


def test_primary_components_of_few_rows_are_the_rows():
    features = rows(32, 48)
    assert torch.equal(primary_components(features), features)
    assert not torch.allclose(primary_components(rows(33, 48)), rows(33, 48))


def test_primary_components_pass_the_exact_gradient_even_where_rows_repeat():
    features = rows(6, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: primary_components(x, k=2), features)
    repeated = torch.cat((rows(5, 16), rows(5, 16))).requires_grad_()  # rank 4: eleven eigenvalues are zero
    primary_components(repeated, k=3).square().sum().backward()
    assert repeated.grad.isfinite().all()


def test_aligned_token_error_weighs_captions_alike_however_many_tokens_they_have():
    student, teacher = rows(5, 3), rows(5, 3, seed=1)
    errors = relative_squared_error(student, teacher)
    captions = torch.tensor([0, 0, 0, 2, 2])  # caption 1 has no tokens, and still counts
    expected = (errors[:3].mean() + errors[3:].mean()) / 3
    assert aligned_token_error(student, teacher, captions, 3).item() == pytest.approx(expected.item(), abs=1e-6)
