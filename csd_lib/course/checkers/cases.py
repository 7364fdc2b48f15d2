"""Small inputs for the checkers, always the same."""

from __future__ import annotations

import torch
from torch import Tensor

# A mistake of everybody who leaves something out by multiplying with a mask.
ZERO_FOR_LEFT_OUT = (
    "You put 0 in the place of what is left out. A cosine can be below 0, so 0 may win. Use minus "
    "infinity: `masked_fill(…, -torch.inf)`."
)
NOT_SCALED_DISTANCE = (
    "This is the straight-line distance between features of any length. Use the cosine, or scale "
    "them to length 1 first."
)


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
