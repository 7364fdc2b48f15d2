"""Maps of features in the plane, by UMAP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from csd_lib import InputError, checks

if TYPE_CHECKING:
    from umap import UMAP

NEIGHBORS = 15  # that a map tries to keep together


def fit_map(features: Tensor, seed: int = 0) -> UMAP:
    """Fit a two-dimensional UMAP to the features of the first model, with cosine distances.

    Fit once and place later features in it with ``place_on_map``: two maps fitted apart cannot be
    compared, because each is free to turn, mirror and stretch. The first call in a process
    compiles for some 10 to 20 seconds.
    """
    checks.matrix("features", features)
    checks.finite("features", features)
    checks.seed("seed", seed)
    if len(features) <= NEIGHBORS:
        raise InputError(f"{len(features)} features are too few: a map needs {NEIGHBORS + 1}")
    with checks.needs_extra("course"):
        import umap  # slow to import, so only where it is used
    reducer = umap.UMAP(n_neighbors=NEIGHBORS, metric="cosine", random_state=seed, n_jobs=1)
    with _torchs_own_threads():
        return reducer.fit(features.cpu().numpy())


def place_on_map(fitted: UMAP, features: Tensor) -> np.ndarray:
    """Place features ``[N, D]`` on a map that was fitted before: float32 ``[N, 2]``."""
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

    Training after it would add in another order, and be far slower where cores are shared.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
