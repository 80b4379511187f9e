"""The objectives, as functions from tensors to a scalar (or to tensors) and nothing else."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Batch mean of 1 - cos, both (batch, dim); gradients reach `student` only. TULIP's Eq. 3, with its minus."""
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=-1).mean()


def l2_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Batch mean of the Euclidean distance, both (batch, dim): TULIP's ablation "L2"."""
    return (student - teacher.detach()).norm(dim=-1).mean()


def mse_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all elements of the squared difference: TULIP's ablation "MSE"."""
    return F.mse_loss(student, teacher.detach())


POOLED_LOSSES = {"cosine": cosine_distance, "l2": l2_distance, "mse": mse_distance}


def relative_squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """||student - teacher||² / ||teacher||² of every token, (…, width) to (…); gradients reach `student` only."""
    teacher = teacher.detach()
    return (student - teacher).square().sum(dim=-1) / teacher.square().sum(dim=-1).clamp(min=1e-6)


def aligned_token_error(student: Tensor, teacher: Tensor, rows: Tensor, captions: int) -> Tensor:
    """Relative squared error of aligned tokens, averaged over each caption's tokens and then over `captions`.

    `student` and `teacher` are (tokens, width), `rows` (tokens,) says which caption a token belongs to. A caption
    without tokens adds nothing, so that the mean does not depend on how a batch is split.
    """
    errors = relative_squared_error(student, teacher)
    count = torch.bincount(rows, minlength=captions).clamp(min=1)
    return (errors / count[rows]).sum() / captions


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor | float,
    label_smoothing: float = 0.0,
    hard_negative_margin: float = 0.0,
) -> Tensor:
    """CLIP's symmetric cross-entropy over a batch of pairs, the mean of both directions.

    Row i of `image_embeds` belongs to row i of `text_embeds`, both (batch, dim) and taken as given: normalise them
    first. `logit_scale` multiplies the similarities; it is the exponential of CLIP's parameter, as in open_clip's
    `ClipLoss`. `hard_negative_margin` is HN-CLIP's gamma: negatives gain gamma times their text's similarity to the
    right text, which passes no gradient.
    """
    logits = logit_scale * image_embeds @ text_embeds.T  # (images, texts)
    if hard_negative_margin:
        likeness = (text_embeds @ text_embeds.T).detach()
        logits = logits + hard_negative_margin * likeness.fill_diagonal_(0)
    labels = torch.arange(len(logits), device=logits.device)
    image_to_text = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    text_to_image = F.cross_entropy(logits.T, labels, label_smoothing=label_smoothing)
    return (image_to_text + text_to_image) / 2


def sigmoid_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """SigLIP's loss (arXiv:2303.15343, algorithm 1): every pair of the batch is right or wrong by itself.

    Embeddings as in [`contrastive_loss`]; `logit_bias` is added to the scaled similarities, since nearly all pairs are
    wrong ones. Summed over texts, mean over images.
    """
    logits = logit_scale * image_embeds @ text_embeds.T + logit_bias  # (images, texts)
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


class _LeadingProjector(torch.autograd.Function):
    """Projector onto the `k` leading eigenvectors of a symmetric matrix.

    Autograd through `eigh` divides by the gaps between all eigenvalues, zeros among themselves included. A projector
    only moves where a leading vector turns towards a trailing one, so only those gaps enter here.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor, k: int) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)  # ascending
        ctx.save_for_backward(values, vectors)
        ctx.k = k
        return vectors[:, -k:] @ vectors[:, -k:].T

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        values, vectors = ctx.saved_tensors
        trailing, leading = vectors[:, : -ctx.k], vectors[:, -ctx.k :]
        gaps = values[None, -ctx.k :] - values[: -ctx.k, None]  # (trailing, leading)
        turn = trailing.T @ (grad + grad.T) / 2 @ leading / gaps
        half = trailing @ turn @ leading.T
        return half + half.T, None


def primary_components(features: Tensor, k: int = 32) -> Tensor:
    """Features (rows, dim) rebuilt from their `k` principal components over the batch, not normalised again.

    Long-CLIP, section 3.2 (arXiv:2403.15378): the batch mean is taken off, the `k` directions of largest variance are
    kept, the mean is added back. With fewer than k + 1 rows, or no more than k dimensions, this is the identity.
    Gradients flow through the components too.
    """
    rows, dim = features.shape
    if rows < k + 1 or dim <= k:
        return features
    mean = features.mean(dim=0)
    centred = features - mean
    covariance = centred.double().T @ centred.double()  # small, and float32 would blur neighbouring components
    projector = _LeadingProjector.apply(covariance, k).to(features.dtype)
    return centred @ projector + mean
