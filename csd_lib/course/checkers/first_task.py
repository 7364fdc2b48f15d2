"""Checkers of the exercises on the first task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from csd_lib import losses
from csd_lib.course.checkers.cases import on_circle, random_features, random_labels
from csd_lib.course.checkers.judge import Mistake, Mistakes, compare, compare_gradients, exercise
from csd_lib.numerics import unit_length


class _TorchCalls(TorchFunctionMode):
    """Notes the names of torch's own functions that are called while it is active.

    A name in the answer's code tells less: a learner may call a helper of their own by any name,
    and `nn.CrossEntropyLoss` calls `cross_entropy` where the answer's code does not show it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.names.append(name.removeprefix("special_"))  # torch.special.log_softmax
        return func(*args, **(kwargs or {}))


@exercise("2.1", "right, also for very large logits.")
def check_cross_entropy(cross_entropy: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 2.1: cross entropy from its definition."""
    right = losses.cross_entropy

    def chosen(log_p: Tensor, labels: Tensor) -> Tensor:
        return log_p[torch.arange(len(labels)), labels]

    two, large_and_small = torch.tensor([0, 1]), torch.tensor([[1000.0, 0, 0], [0, 1, 2]])
    cases = {
        "logits 2, 1, 0 and class 0": (torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])),
        "two images": (torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]]), two),
        "twenty images": (3 * random_features(20, 7), random_labels(20, 7)),
        "logits of 1,000": (1000 * torch.eye(3), torch.tensor([0, 1, 0])),
        "a row with logits of 1,000 and one with small ones": (large_and_small, two),
    }
    mistakes = {
        "The minus sign is missing: logarithms of probabilities are negative, and the loss "
        "should be positive.": lambda z, y: -right(z, y),
        "You add up over the batch. Take the mean, or the loss grows with the size of the "
        "batch.": lambda z, y: right(z, y) * len(y),
        "Your softmax runs over the batch (`dim=0`). It should run over the classes, `dim=1`.": (
            lambda z, y: -chosen(F.log_softmax(z, dim=0), y).mean()
        ),
        "You use the logarithm to base 2. The loss is defined with the natural one.": (
            lambda z, y: right(z, y) / np.log(2)
        ),
        "You compute the softmax first and its logarithm afterwards. A small probability is "
        "rounded to 0, and the logarithm of 0 is infinite. The logarithm of the fraction is a "
        "difference: logit minus `logsumexp`.": (
            lambda z, y: -chosen(z.softmax(dim=1).log(), y).mean()
        ),
        "You take the mean of the probabilities first and the logarithm afterwards. The "
        "logarithm belongs to each image.": (
            lambda z, y: -chosen(F.log_softmax(z, dim=1), y).exp().mean().log()
        ),
    }
    hints = {
        "logits of 1,000": "`exp` of a large number is infinite, and a small number added inside "
        "the logarithm caps the loss. Subtract the largest logit of each row first, or use "
        "`logsumexp`: the result is exact.",
        "a row with logits of 1,000 and one with small ones": "Subtract the largest logit of each "
        "*row*, not of the whole batch: the small row then has only zeros in its denominator. "
        "`logsumexp(dim=1)` does it right.",
    }
    calls = _TorchCalls()

    def watched(z: Tensor, y: Tensor) -> Tensor:
        with calls:
            return cross_entropy(z, y)

    compare(watched, right, cases, mistakes, hints=hints)
    compare_gradients(watched, right, cases["twenty images"])
    for name in calls.names:
        if name in ("cross_entropy", "nll_loss", "log_softmax"):
            raise Mistake(f"The value is right, but `{name}` does the work: write it yourself.")


@exercise("2.2", "the hardest pairs, the margin and the mean are right.")
def check_triplet_loss(triplet_loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Exercise 2.2: the batch-hard triplet loss."""

    def above_0(each: Tensor) -> Tensor:
        return each.sum() / (each > 0).sum().clamp_min(1)

    def variant(
        features: Tensor,
        labels: Tensor,
        margin: float,
        normalize: bool = True,
        hardest_positive: bool = True,
        hardest_negative: bool = True,
        every_triplet: bool = False,
        sign: int = 1,
        reduce: Callable[[Tensor], Tensor] = above_0,
        power: float = 0,
        zeros: Sequence[str] = (),
        lonely: bool = False,
        floor: float = 0,
    ) -> Tensor:
        f = unit_length(features) if normalize else features
        similarity, same = f @ f.T, labels[:, None] == labels
        if power:  # of the distance between features of length 1
            similarity = -((2 - 2 * similarity).clamp_min(0) ** (power / 2))
        positive = same & ~torch.eye(len(labels), dtype=torch.bool)
        if every_triplet:
            loss = F.relu(similarity[:, None, :] - similarity[:, :, None] + margin)
            return reduce(loss[positive[:, :, None] & ~same[:, None, :]])

        def extreme(kind: str, mask: Tensor, largest: bool) -> Tensor:
            never = -torch.inf if largest else torch.inf
            candidates = similarity.masked_fill(~mask, 0.0 if kind in zeros else never)
            return candidates.amax(dim=1) if largest else candidates.amin(dim=1)

        p = extreme("positives", positive, not hardest_positive)
        n = extreme("negatives", ~same, hardest_negative)
        loss = (sign * (n - p) + margin).clamp(min=floor)
        return reduce(loss if lonely else loss[positive.any(dim=1) & ~same.all(dim=1)])

    pencil = (on_circle(0, 60, 90, 180), torch.tensor([0, 0, 1, 1]))
    longer = pencil[0] * torch.tensor([[1.0], [3.0], [0.5], [2.0]])
    alone = (on_circle(0, 30, 70, 150, 200), torch.tensor([0, 0, 1, 1, 2]))
    cases = {
        "the four points of chapter 2, margin 1": (*pencil, 1.0),
        "the four points, margin 0.2": (*pencil, 0.2),
        "features of other lengths": (longer, pencil[1], 1.0),
        "an image that is alone in its class": (*alone, 1.0),
        "classes so far apart that every loss is 0": (on_circle(0, 5, 180, 185), pencil[1], 0.1),
        "24 images of four classes": (random_features(24, 8), random_labels(24, 4), 0.4),
    }
    mistakes: Mistakes = {
        "You did not scale the features to length 1, so these are not cosines.": (
            partial(variant, normalize=False)
        ),
        "Multiplying by a mask puts 0 in the place of what is left out, and 0 may be the smallest "
        "cosine of a row, or the largest. Before a minimum use plus infinity, before a maximum "
        "minus infinity: `masked_fill(…, torch.inf)`.": [
            partial(variant, zeros=zeros, lonely=lonely, reduce=reduce)
            for zeros in (("positives", "negatives"), ("positives",), ("negatives",))
            for lonely in (False, True)
            for reduce in (above_0, torch.mean)
        ],
        "You took the easiest positive, the most similar one. The hardest positive is the "
        "*least* similar image of the class.": partial(variant, hardest_positive=False),
        "You took the easiest negative, the least similar one. The hardest negative is the "
        "*most* similar image of another class.": partial(variant, hardest_negative=False),
        "You took the easiest pair, the most similar positive and the least similar negative. "
        "Hardest means: the pair with the largest loss.": (
            partial(variant, hardest_positive=False, hardest_negative=False)
        ),
        "You average over *all* triplets. Each anchor has one only: its hardest positive and "
        "its hardest negative.": partial(variant, every_triplet=True),
        "You average over *all* triplets, and over those with loss 0. Each anchor has one "
        "only, with its hardest pair, and losses of 0 are left out of the mean.": (
            partial(variant, every_triplet=True, reduce=torch.mean)
        ),
        "You add up over the anchors. Take the mean over those with a loss above 0.": (
            partial(variant, reduce=torch.sum)
        ),
        "The margin is subtracted. It is added: the negative must be less similar *by m*.": (
            lambda f, y, m: variant(f, y, -m)
        ),
        "The sign is the wrong way round: the loss should fall when the negative becomes less "
        "similar.": partial(variant, sign=-1),
        "The margin is missing.": lambda f, y, m: variant(f, y, 0.0),
        "You take the mean over all anchors. Those with loss 0 are left out of the mean.": (
            partial(variant, reduce=torch.mean)
        ),
        "Some of your anchors have a loss below 0. Cut each off at 0, as max(0, …) says, before "
        "the mean.": [
            partial(variant, floor=-torch.inf, reduce=reduce) for reduce in (above_0, torch.mean)
        ],
        "You divide by the size of the batch. Anchors with loss 0, and images that are no "
        "anchor, are left out of the mean.": (
            lambda f, y, m: variant(f, y, m, reduce=torch.sum) / len(y)
        ),
        "This is the distance of two features. The exercise compares cosines.": (
            partial(variant, power=1)
        ),
        "This is the squared distance, as the paper writes it. The published code, and the "
        "exercise, compare cosines.": partial(variant, power=2),
    }
    hints = {
        "an image that is alone in its class": "It has no positive, so it is no anchor: leave it "
        "out before you take a minimum.",
        "classes so far apart that every loss is 0": "If no anchor has a loss above 0, the result "
        "is 0, not the mean of nothing.",
    }
    compare(triplet_loss, losses.triplet_loss, cases, mistakes, hints=hints)
    compare_gradients(triplet_loss, losses.triplet_loss, cases["24 images of four classes"])


@exercise("2.3", "all classes play by the same rules.")
def check_head(head: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Exercise 2.3: logits of a head whose rows have length 1."""

    def right(features: Tensor, weights: Tensor) -> Tensor:
        return features @ unit_length(weights).T

    cases = {
        "one feature, two rows": (torch.tensor([[3.0, 4.0]]), torch.tensor([2, 0.5]).diag()),
        "random features and rows": (random_features(6, 5), 3 * random_features(4, 5, seed=1)),
    }
    mistakes = {
        "The rows are not scaled: a class with long weights would win.": lambda f, w: f @ w.T,
        "You scaled the features as well. Only the rows of the head have length 1; a longer "
        "feature gives larger logits.": lambda f, w: unit_length(f) @ unit_length(w).T,
        "You scaled the features instead of the rows.": lambda f, w: unit_length(f) @ w.T,
        "You scaled the columns (`dim=0`). Each *row* belongs to a class.": (
            lambda f, w: f @ F.normalize(w, dim=0).T
        ),
        "You divided all rows by one common length. Each row has its own.": (
            lambda f, w: f @ (w / w.norm()).T
        ),
    }
    compare(head, right, cases, mistakes)
    f, w = cases["random features and rows"]
    compare_gradients(lambda f: head(f, w).sum(), lambda f: right(f, w).sum(), [f])
    compare_gradients(lambda w: head(f, w).sum(), lambda w: right(f, w).sum(), [w])
