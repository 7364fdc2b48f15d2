"""The four losses of CSD and two it is compared with, as pure functions of tensors.

    L = CE + triplet                        on the first task            (plasticity)
    L = CE + triplet + KD + CSD             on later tasks               (+ stability)

MMD and FECD take the place of KD and CSD in the methods of those names (mmd-kd keeps KD).

Each function takes 2-D float tensors with one image a row and int64 labels, has fixed shapes and
never asks the device for a value, so it can be captured in a CUDA graph. Gradients are finite
for every batch, also one without any positive pair. Half precision is computed in float32. Each
begins with a check that raises InputError, naming the value, for what it cannot be computed for.
KD, CSD and FECD return one value an image, ``[B]``, with ``reduction="none"``.

"Published code" is the authors' repository NiccoBiondi/ContrastiveSupervisedDistillation. Where
it differs from the paper, the docstring says so.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csd_lib import checks
from csd_lib.numerics import in_full_precision, rows_of_length_one
from csd_lib.numerics import unit_length as unit_length  # belongs to the losses' vocabulary

REDUCTIONS = ("mean", "none")


@in_full_precision
def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross entropy over all classes seen so far (paper Eq. 4).

    Args:
        logits: ``[B, classes seen so far]``.
        labels: int64 ``[B]``, rows of the head.
    """
    checks.class_logits(logits, labels)
    return F.cross_entropy(logits, labels)


@in_full_precision
def triplet_loss(features: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    """Batch-hard triplet loss on cosine similarity (paper Eq. 5; form of the published code).

    For every anchor: its least similar image of the same class (hardest positive) and its most
    similar image of another class (hardest negative), then
    ``max(0, cos(a, n) - cos(a, p) + margin)``. Anchors that lack one of the two are left out,
    and the mean is taken over the losses that are not zero. The paper's Eq. 5 has squared
    Euclidean distances and no margin.

    Args:
        features: ``[B, D]``, any length; they are normalised here.
        labels: int64 ``[B]``.
        margin: in units of cosine similarity.

    Returns:
        Scalar; 0 if no anchor has both a positive and a negative.
    """
    checks.batch(labels, features=features, margin=margin)
    unit = rows_of_length_one(features)
    similarity = unit @ unit.T
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    is_positive, is_negative = same & ~itself, ~same
    # Stand-ins of +-2 lie outside the range of a cosine, so they are chosen only if nothing else
    # is there, and those anchors are dropped by `valid`.
    hardest_positive = similarity.masked_fill(~is_positive, 2.0).min(dim=1).values
    hardest_negative = similarity.masked_fill(~is_negative, -2.0).max(dim=1).values
    valid = is_positive.any(dim=1) & is_negative.any(dim=1)
    loss = F.relu(hardest_negative - hardest_positive + margin) * valid
    return loss.sum() / (loss > 0).sum().clamp_min(1)


@in_full_precision
def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 2.0,
    reduction: str = "mean",
) -> Tensor:
    """Knowledge distillation on the old classes' logits (paper Eq. 7; published code's form).

    ``KL(teacher || student)`` between the softmaxes at the given temperature, summed over the old
    classes and averaged over the batch. As in the published code there is no factor
    ``temperature ** 2``. The paper's Eq. 7 has no temperature.

    Args:
        student_logits: ``[B, C]``, all classes seen so far, old classes first.
        teacher_logits: ``[B, C_old]`` with ``C_old <= C``; no gradient flows into it.
    """
    checks.old_logits(student_logits, teacher_logits, temperature)
    checks.one_of("reduction", reduction, REDUCTIONS)
    old = student_logits[:, : teacher_logits.shape[1]]
    student = F.log_softmax(old / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    terms = F.kl_div(student, teacher, reduction="none", log_target=True)  # [B, C_old]
    return terms.sum(dim=1) if reduction == "none" else terms.sum() / len(terms)


@in_full_precision
def csd_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float = 0.07,
    reduction: str = "mean",
) -> Tensor:
    """Contrastive supervised distillation, in the form of the published code.

    The anchor is a student feature ``s_i``. It is contrasted with every other student feature and
    with every teacher feature. Positives ``P(i)`` are those with the anchor's label, so always at
    least the anchor's own teacher ``t_i``; the anchor itself is left out everywhere::

        L = mean_i  mean_{p in P(i)}  -log( exp(s_i.p / T) / sum_{a != s_i} exp(s_i.a / T) )

    Args:
        student: ``[B, D]`` features, any length; they are normalised here.
        teacher: ``[B, D]`` features of the same images; no gradient flows into it.
        labels: int64 ``[B]``.
        temperature: T above; smaller values look more at the most similar images.
        reduction: mean over i, or none.

    Returns:
        Scalar, at least 0.
    """
    checks.batch(labels, student=student, teacher=teacher, temperature=temperature)
    checks.one_of("reduction", reduction, REDUCTIONS)
    anchors = rows_of_length_one(student)
    contrast = torch.cat([anchors, rows_of_length_one(teacher.detach())])  # [2B, D]
    similarity = anchors @ contrast.T / temperature  # [B, 2B]
    batch = len(labels)
    itself = torch.eye(batch, 2 * batch, dtype=torch.bool, device=labels.device)
    is_positive = (labels[:, None] == labels.repeat(2)[None, :]) & ~itself
    denominator = similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_probability = similarity - denominator
    per_anchor = (log_probability * is_positive).sum(dim=1) / is_positive.sum(dim=1)
    return -per_anchor if reduction == "none" else -per_anchor.mean()


@in_full_precision
def csd_loss_paper(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Contrastive supervised distillation as printed in the paper (Eq. 8).

    The anchor is a *teacher* feature ``t_i``, it is contrasted with the student features, and
    there is no temperature::

        L = -1/B sum_i 1/|P(i)| sum_{p in P(i)} log( exp(t_i.s_p) / sum_{a != i} exp(t_i.s_a) )

    Rule for ``p = i``: ``P(i)`` is every image of the batch with the label of image i, image i
    included, so the own pair ``t_i.s_i`` stands in the numerator. The denominator leaves
    a = i out, as printed. A term with p = i is therefore not a log-probability and the loss can
    be negative. An image that is alone in its batch has an empty denominator and contributes 0.

    Args:
        student: ``[B, D]`` features, any length; they are normalised here.
        teacher: ``[B, D]`` features of the same images; no gradient flows into it.
        labels: int64 ``[B]``.
    """
    checks.batch(labels, student=student, teacher=teacher)
    taught = rows_of_length_one(teacher.detach())
    similarity = taught @ rows_of_length_one(student).T  # row i: t_i . s_a
    if len(labels) < 2:
        return similarity.sum() * 0.0  # still part of the autograd graph
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    is_positive = labels[:, None] == labels[None, :]
    denominator = similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_ratio = similarity - denominator
    per_anchor = (log_ratio * is_positive).sum(dim=1) / is_positive.sum(dim=1)
    return -per_anchor.mean()


# Bandwidths of the Gaussian kernels of ``mmd_loss``, as multiples of the mean squared distance.
MMD_BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)


@in_full_precision
def mmd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared maximum mean discrepancy between the student's and the teacher's features.

    Chen et al. 2020 (arXiv 2010.08020) hold on to old classes with it; neither they nor the CSD
    paper publish all its constants. The bandwidths are the defaults of ``MMD_loss`` in the authors'
    development version (TTL518/incremental-learning-image-retrieval, ``models/loss.py``; one state
    of it asks for ten). That features are scaled to length 1 is ours. The kernel is a sum of five
    Gaussians, ``k(x, y) = sum_b exp(-||x - y||^2 / (b m))`` with b = 1/4, 1/2, 1, 2, 4 and m the
    mean squared distance between different features of the joint batch of 2B (taken as a constant:
    no gradient flows through it)::

        L = mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j)

    It compares two clouds of features, and does not know which of them belong together.

    Args:
        student: ``[B, D]`` features, any length; they are normalised here.
        teacher: ``[B, D]`` features of the same images; no gradient flows into it.

    Returns:
        Scalar, at least 0 up to rounding.
    """
    checks.batch(student=student, teacher=teacher)
    batch = len(student)
    both = torch.cat([rows_of_length_one(student), rows_of_length_one(teacher.detach())])  # [2B, D]
    # From differences: products of unit vectors are wrong for rows of zeros, and rounding would
    # decide about a batch in which all features are nearly the same.
    distance = torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    mean = distance.detach().sum() / (2 * batch * (2 * batch - 1))
    kernel = torch.zeros_like(distance)
    for bandwidth in MMD_BANDWIDTHS:
        kernel = kernel + torch.exp(-distance / (bandwidth * mean).clamp_min(1e-8))
    within_student, within_teacher = kernel[:batch, :batch], kernel[batch:, batch:]
    return within_student.mean() + within_teacher.mean() - 2 * kernel[:batch, batch:].mean()


@in_full_precision
def fecd_loss(
    student: Tensor, teacher: Tensor, temperature: float = 4.0, reduction: str = "mean"
) -> Tensor:
    """Correlation distillation (FECD): keep the similarities between the images of a batch.

    Every row of the batch's similarity matrix becomes a distribution over its images, and
    ``KL(teacher || student)`` between them is averaged over the rows, times ``temperature ** 2``.
    After Chen et al., "Feature Estimations based Correlation Distillation" (IEEE TMM 2021), whose
    code has this form, temperature 4 and weight 10; it gives the two arguments in the other order.

    Args:
        student: ``[B, D]`` features, any length; they are normalised here.
        teacher: ``[B, D]`` features of the same images; no gradient flows into it.
    """
    checks.batch(student=student, teacher=teacher, temperature=temperature)
    checks.one_of("reduction", reduction, REDUCTIONS)
    student, teacher = rows_of_length_one(student), rows_of_length_one(teacher.detach())
    log_student = F.log_softmax(student @ student.T / temperature, dim=1)
    log_teacher = F.log_softmax(teacher @ teacher.T / temperature, dim=1)
    terms = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)  # [B, B]
    divergence = terms.sum(dim=1) if reduction == "none" else terms.sum() / len(terms)
    return temperature**2 * divergence
