"""Feature drift: how far the features of the same images move when the network learns more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from csd_lib import InputError
from csd_lib.losses import unit_length

if TYPE_CHECKING:
    from umap import UMAP


def cosine_drift(old: Tensor, new: Tensor, labels: Tensor) -> dict[int, float]:
    """Mean cosine distance between each image's old and new feature, per class.

    Args:
        old, new: ``[N, D]`` features of the same images from two models.
        labels: int64 ``[N]``.

    Returns:
        ``{label: mean of 1 - cos(old, new)}``, 0 if nothing moved, at most 2.
    """
    _check_pair(old, new)
    if labels.shape != old.shape[:1]:
        raise InputError(f"{tuple(labels.shape)} labels for {len(old)} images: give one for each")
    moved = 1 - (unit_length(old) * unit_length(new)).sum(dim=1)
    return {
        label: moved[labels == label].mean().item() for label in labels.unique(sorted=True).tolist()
    }


def neighborhood_overlap(old: Tensor, new: Tensor, k: int = 10) -> float:
    """Share of an image's k nearest neighbours that it keeps, averaged over all images.

    1 if every image keeps all its neighbours; about ``k / N`` if they are shuffled. It does not
    notice a rotation of the whole feature space, which retrieval does not notice either.
    """
    _check_pair(old, new)
    if not 1 <= k < len(old):
        raise InputError(f"k={k}: choose 1 to {len(old) - 1} neighbours for {len(old)} images")
    shared = 0
    old, new = unit_length(old), unit_length(new)
    for chunk in torch.arange(len(old), device=old.device).split(1024):
        neighbors = []
        for features in (old, new):
            similarity = features[chunk] @ features.T
            similarity[torch.arange(len(chunk), device=old.device), chunk] = -torch.inf
            neighbors.append(similarity.topk(k, dim=1).indices)
        shared += (neighbors[0][:, :, None] == neighbors[1][:, None, :]).sum().item()
    return shared / (k * len(old))


def linear_cka(old: Tensor, new: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features (Kornblith et al., ICML 2019).

    1 if one is a rotation or rescaling of the other, 0 if they are linearly unrelated.
    """
    _check_pair(old, new)
    old, new = (x.double().cpu() - x.double().cpu().mean(dim=0) for x in (old, new))
    cross = torch.linalg.matrix_norm(old.T @ new) ** 2
    scale = torch.linalg.matrix_norm(old.T @ old) * torch.linalg.matrix_norm(new.T @ new)
    if scale == 0:
        raise InputError("CKA is not defined for features that are all the same")
    return (cross / scale).item()


def best_rotation(old: Tensor, new: Tensor) -> Tensor:
    """Return the orthogonal matrix ``[D, D]`` for which ``new @ R`` comes closest to ``old``.

    A mirror is allowed. This is the orthogonal Procrustes problem (Schoenemann, 1966).

    Args:
        old, new: ``[N, D]`` features of the same images, taken as they are: neither scaled nor
            centred.
    """
    _check_pair(old, new)
    u, _, vt = torch.linalg.svd(new.T @ old)
    return u @ vt


def fit_map(features: Tensor, seed: int = 0) -> UMAP:
    """Fit a two-dimensional UMAP to the features of the first model, with cosine distances.

    Fit once and place later features in it with ``place_on_map``: two maps fitted apart cannot be
    compared, because each is free to turn, mirror and stretch. The first call in a process
    compiles for some 10 to 20 seconds.
    """
    import umap  # slow to import, so only where it is used

    reducer = umap.UMAP(n_neighbors=15, metric="cosine", random_state=seed, n_jobs=1)
    return reducer.fit(features.cpu().numpy())


def place_on_map(fitted: UMAP, features: Tensor) -> np.ndarray:
    """Place features ``[N, D]`` on a map that was fitted before: float32 ``[N, 2]``."""
    return fitted.transform(features.cpu().numpy())


def _check_pair(old: Tensor, new: Tensor) -> None:
    if old.shape != new.shape or old.ndim != 2 or 0 in old.shape:
        raise InputError(
            f"old features {tuple(old.shape)} and new features {tuple(new.shape)} must be of the "
            f"same images, each [N, D]"
        )
    for name, features in (("old", old), ("new", new)):
        if not torch.isfinite(features).all():
            raise InputError(f"the {name} features contain NaN or infinite values")
