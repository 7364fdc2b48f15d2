"""Checkers of the exercises on feature drift."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from csd_lib import drift
from csd_lib.course.checkers.cases import (
    NOT_SCALED_DISTANCE,
    ZERO_FOR_LEFT_OUT,
    on_circle,
    random_features,
)
from csd_lib.course.checkers.judge import Mistake, Mistakes, call, compare, exercise
from csd_lib.numerics import unit_length


@exercise("5.1", "0 for no turn, 1 for a right angle.")
def check_cosine_drift(cosine_drift: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 5.1: how far each image's feature moved."""

    def right(old: Tensor, new: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(old, new, dim=1)

    short = torch.tensor([[3.0, 4.0]])
    cases = {
        "0, 90 and 180 degrees": (on_circle(0, 0, 0), on_circle(0, 90, 180)),
        "a feature that only became longer": (short, 2 * short),
        "nine random features": (random_features(9, 6), random_features(9, 6, seed=1)),
    }
    mistakes = {
        "This is the cosine itself, 1 for an image that did not move. Drift is 1 minus it.": (
            lambda a, b: 1 - right(a, b)
        ),
        "You did not scale the features to length 1, so these are not cosines.": (
            lambda a, b: 1 - (a * b).sum(dim=1)
        ),
        "This is a straight-line distance, not 1 − cosine.": lambda a, b: (a - b).norm(dim=1),
        "This is the distance between the features scaled to length 1; its square is twice the "
        "drift.": lambda a, b: (unit_length(a) - unit_length(b)).norm(dim=1),
        "This is the angle. Drift is 1 minus its cosine.": (
            lambda a, b: F.cosine_similarity(a, b, dim=1).clamp(-1, 1).acos()
        ),
    }
    compare(cosine_drift, right, cases, mistakes)


@exercise("5.2", "1 for a rotation, and the order among the neighbours does not matter.")
def check_neighborhood_overlap(overlap: Callable[[Tensor, Tensor, int], float]) -> None:
    """Exercise 5.2: the share of neighbours that are kept."""

    def neighbors(
        features: Tensor,
        k: int,
        scale: bool = True,
        itself: bool = False,
        left_out: float = -torch.inf,
        distance: bool = False,
    ) -> Tensor:
        f = unit_length(features) if scale else features
        similarity = -torch.cdist(f, f) if distance else f @ f.T
        if not itself:
            similarity.fill_diagonal_(left_out)
        return similarity.topk(k, dim=1).indices

    def shared(old: Tensor, new: Tensor, k: int, **kind: Any) -> Tensor:
        a, b = neighbors(old, k, **kind), neighbors(new, k, **kind)
        return (a[:, :, None] == b[:, None]).sum(dim=(1, 2)).double()

    def share(old: Tensor, new: Tensor, k: int, **kind: Any) -> float:
        return (shared(old, new, k, **kind) / k).mean().item()

    def jaccard(old: Tensor, new: Tensor, k: int) -> float:
        both = shared(old, new, k)
        return (both / (2 * k - both)).mean().item()

    right = drift.neighborhood_overlap
    old = random_features(30, 6)
    new = old + 0.8 * random_features(30, 6, seed=1)
    turn = torch.linalg.qr(random_features(6, 6, seed=2))[0]
    few = (random_features(8, 3), random_features(8, 3, seed=1))
    cases = {
        "30 features that moved a little, k = 5": (old, new, 5),
        "a rotation, k = 3": (old, old @ turn, 3),
        "features of other lengths, k = 4": (old * torch.linspace(0.2, 5, 30)[:, None], new, 4),
        "k = 1": (old, new, 1),
        "8 features in 3 dimensions, k = 5": (*few, 5),
    }
    mistakes: Mistakes = {
        "Every image counts itself as a neighbour, which is always kept.": [
            partial(share, itself=True),
            lambda a, b, k: share(a, b, k + 1, itself=True) * (k + 1) / k,
            lambda a, b, k: share(a, b, k + 1, itself=True),
        ],
        ZERO_FOR_LEFT_OUT: partial(share, left_out=0.0),
        "You compare rank by rank. A neighbour that moved from third to fourth place was kept.": (
            lambda a, b, k: (neighbors(a, k) == neighbors(b, k)).double().mean().item()
        ),
        "You did not scale the features to length 1: long ones become everybody's neighbours.": (
            partial(share, scale=False)
        ),
        NOT_SCALED_DISTANCE: partial(share, scale=False, distance=True),
        "You divide by the size of the union (Jaccard). Asked for is the share of the k "
        "neighbours.": jaccard,
        "You do not divide by k: this is a number of neighbours, not a share.": (
            lambda a, b, k: shared(a, b, k).mean().item()
        ),
        "This is the share that was *lost*.": lambda a, b, k: 1 - right(a, b, k),
    }
    compare(overlap, right, cases, mistakes)


@exercise("5.3", "orthogonal, and no rotation comes closer.")
def check_best_rotation(best_rotation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 5.3: the rotation that brings new features closest to the old ones."""
    old = random_features(50, 5) * torch.linspace(0.2, 4, 50)[:, None] + 1
    turn = torch.linalg.qr(random_features(5, 5, seed=7))[0]
    mirrored = turn * torch.tensor([-1.0, 1, 1, 1, 1])
    noise = random_features(50, 5, seed=8)
    cases = {
        "features that were only turned": old @ turn.T,
        "turned and mirrored": old @ mirrored.T,
        "turned and shaken": old @ turn.T + noise,
    }
    for case, new in cases.items():
        found = call(best_rotation, case, old, new)
        if not isinstance(found, Tensor) or found.shape != (5, 5):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise Mistake(f"It returns {shape}; expected is a [D, D] tensor, here [5, 5].")
        found = found.to(old)
        if not torch.allclose(found @ found.T, torch.eye(5), atol=1e-3):
            raise Mistake(
                f"{case}: this map is not orthogonal, so it changes angles too. A "
                f"least-squares fit may stretch; keep the two orthogonal factors of the SVD."
            )
        best = (new @ drift.best_rotation(old, new) - old).norm()
        distance, enough = (new @ found - old).norm(), best * (1 + 1e-3) + 1e-3
        if distance > enough:
            if (new @ found.T - old).norm() <= enough:
                raise Mistake(
                    "This turns the old features into the new ones. Asked for is the way back: "
                    "`new @ R` should be close to `old`. Transpose it."
                )
            if torch.allclose(found, torch.eye(5), atol=1e-3):
                raise Mistake("This is the identity: nothing is turned.")
            raise Mistake(
                f"{case}: a better rotation exists: `new @ R` is {distance:.3f} from `old`, "
                f"but {best:.3f} is possible. Which product goes into the SVD (of the "
                f"features as they are), and which of its factors are multiplied? A mirror is "
                f"allowed."
            )
