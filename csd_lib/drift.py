"""Feature drift: how far the features of the same images move when the network learns more."""

from __future__ import annotations

import torch
from torch import Tensor

from csd_lib import InputError, checks
from csd_lib.numerics import true_float32, unit_length


def cosine_drift(old: Tensor, new: Tensor, labels: Tensor) -> dict[int, float]:
    """Mean cosine distance between each image's old and new feature, per class.

    Args:
        old, new: ``[N, D]`` features of the same images from two models.
        labels: int64 ``[N]``.

    Returns:
        ``{label: mean of 1 - cos(old, new)}``, 0 if nothing moved, at most 2. A feature of zeros
        has no direction and counts as 1.

    Raises:
        InputError: for features that are not finite or not of the same images; so do all below.
    """
    checks.pair(old, new)
    checks.labels("labels", labels, len(old))
    moved = 1 - (unit_length(old) * unit_length(new)).sum(dim=1)
    return {label: moved[labels == label].mean().item() for label in labels.unique().tolist()}


def neighborhood_overlap(old: Tensor, new: Tensor, k: int = 10) -> float:
    """Share of an image's k nearest neighbours that it keeps, averaged over all images.

    1 if every image keeps all its neighbours; about ``k / N`` if they are shuffled. It does not
    notice a rotation of the whole feature space, which retrieval does not notice either.
    """
    checks.pair(old, new)
    checks.whole("k", k, 1, len(old) - 1, f"there are {len(old)} images")
    shared = 0
    old, new = unit_length(old), unit_length(new)
    for chunk in torch.arange(len(old), device=old.device).split(1024):
        neighbors = []
        for features in (old, new):
            with true_float32(features.device.type):
                similarity = features[chunk] @ features.T
            similarity[torch.arange(len(chunk), device=old.device), chunk] = -torch.inf
            neighbors.append(similarity.topk(k, dim=1).indices)
        shared += int((neighbors[0][:, :, None] == neighbors[1][:, None, :]).sum())
    return shared / (k * len(old))


def linear_cka(old: Tensor, new: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features (Kornblith et al., ICML 2019).

    1 if one is a rotation or rescaling of the other, 0 if they are linearly unrelated.
    """
    checks.pair(old, new)
    for name, x in {"old features": old, "new features": new}.items():
        if (x == x[0]).all():  # before centring, which leaves rounding errors
            raise InputError(f"{name} are all the same: CKA is not defined for them")
    old, new = (x.cpu().double() for x in (old, new))
    old, new = old - old.mean(dim=0), new - new.mean(dim=0)
    cross = torch.linalg.matrix_norm(old.T @ new) ** 2
    scale = torch.linalg.matrix_norm(old.T @ old) * torch.linalg.matrix_norm(new.T @ new)
    return (cross / scale).item()


def best_rotation(old: Tensor, new: Tensor) -> Tensor:
    """Return the orthogonal matrix ``[D, D]`` for which ``new @ R`` comes closest to ``old``.

    A mirror is allowed. This is the orthogonal Procrustes problem (Schoenemann, 1966).

    Args:
        old, new: ``[N, D]`` features of the same images, taken as they are: neither scaled nor
            centred.
    """
    checks.pair(old, new)
    dtype = torch.promote_types(torch.promote_types(old.dtype, new.dtype), torch.float32)
    # In float64, in which products of features of size 1e20 do not overflow.
    u, _, vt = torch.linalg.svd(new.cpu().double().T @ old.cpu().double())
    return (u @ vt).to(old.device, dtype)
