"""Small inputs for the checkers, always the same."""

from __future__ import annotations

import torch
from torch import Tensor


def random_features(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_labels(count: int, classes: int, seed: int = 0) -> Tensor:
    """Return labels, int64 ``[count]``, below ``classes``."""
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(100 + seed))


def on_circle(*degrees: float) -> Tensor:
    """Return features of length 1 in two dimensions, ``[N, 2]``."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)
