"""Feature drift: how far the features of the same images move when the network learns more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from csd_lib import InputError, checks
from csd_lib.losses import unit_length

if TYPE_CHECKING:
    from umap import UMAP

NEIGHBORS = 15  # that a map tries to keep together


def cosine_drift(old: Tensor, new: Tensor, labels: Tensor) -> dict[int, float]:
    """Mean cosine distance between each image's old and new feature, per class.

    Args:
        old, new: ``[N, D]`` features of the same images from two models.
        labels: int64 ``[N]``.

    Returns:
        ``{label: mean of 1 - cos(old, new)}``, 0 if nothing moved, at most 2.

    Raises:
        InputError: for features that are not finite or not of the same images; so do all below.
    """
    checks.pair(old, new)
    checks.labels("labels", labels, len(old))
    moved = 1 - (unit_length(old) * unit_length(new)).sum(dim=1)
    return {
        label: moved[labels == label].mean().item() for label in labels.unique(sorted=True).tolist()
    }


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
            similarity = features[chunk] @ features.T
            similarity[torch.arange(len(chunk), device=old.device), chunk] = -torch.inf
            neighbors.append(similarity.topk(k, dim=1).indices)
        shared += (neighbors[0][:, :, None] == neighbors[1][:, None, :]).sum().item()
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


def fit_map(features: Tensor, seed: int = 0) -> UMAP:
    """Fit a two-dimensional UMAP to the features of the first model, with cosine distances.

    Fit once and place later features in it with ``place_on_map``: two maps fitted apart cannot be
    compared, because each is free to turn, mirror and stretch. The first call in a process
    compiles for some 10 to 20 seconds.

    Raises:
        InputError: for what are no finite features, or for too few images.
    """
    checks.matrix("features", features)
    checks.finite("features", features)
    checks.seed("seed", seed)
    if len(features) <= NEIGHBORS:
        raise InputError(f"{len(features)} features are too few: a map needs {NEIGHBORS + 1}")
    try:
        import umap  # slow to import, so only where it is used
    except ModuleNotFoundError as error:
        raise InputError("a map needs umap-learn: install csd-lib[course]") from error
    reducer = umap.UMAP(n_neighbors=NEIGHBORS, metric="cosine", random_state=seed, n_jobs=1)
    with _torchs_own_threads():
        return reducer.fit(features.cpu().numpy())


def place_on_map(fitted: UMAP, features: Tensor) -> np.ndarray:
    """Place features ``[N, D]`` on a map that was fitted before: float32 ``[N, 2]``.

    Raises:
        InputError: for what is no fitted map, or no finite features of as many dimensions.
    """
    seen = getattr(fitted, "_raw_data", None)
    if seen is None:
        raise InputError(f"fitted={checks.shown(fitted)}: give a map that fit_map returned")
    checks.matrix("features", features)
    checks.finite("features", features)
    if features.shape[1] != seen.shape[1]:
        raise InputError(
            f"features are {checks.shown(features)}: this map takes {seen.shape[1]} columns"
        )
    with _torchs_own_threads():
        return fitted.transform(features.cpu().numpy())


@contextmanager
def _torchs_own_threads() -> Iterator[None]:
    """Give torch its number of threads back: UMAP's compiler sets it for the whole process.

    Training after it would be many times slower, and sum in another order.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
