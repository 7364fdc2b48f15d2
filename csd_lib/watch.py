"""What watches over a training: how far it is, its sums, whether it goes well, the best model."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import TrainingError
from csd_lib.config import TrainConfig
from csd_lib.data import Task, hold_out
from csd_lib.engine import Precision
from csd_lib.model import Network
from csd_lib.numerics import unit_length
from csd_lib.retrieval import all_alike, embed, recall_at_k
from csd_lib.stored import StoredImages, join

if TYPE_CHECKING:
    from csd_lib.train import TaskTraining


class Health:
    """Notices training that has broken down; a broken network can even score well in retrieval.

    ``spread_before`` is that of the features before the first epoch.
    """

    def __init__(self, num_classes: int, spread_before: float):
        self.num_classes, self.spreads, self.collapsed = num_classes, [spread_before], False
        self.cross_entropy, self.learns = math.inf, False

    def note(self, record: dict[str, float]) -> None:
        """Take an epoch into account: are the features collapsed now?

        They are when they are four times closer together than at their best, before this task or
        since, and no longer tell the task's classes apart: cross entropy, if the method has it, is
        near that of guessing. What falls by more than 1 % an epoch still learns: new head rows in
        random directions can press features together for some epochs.
        """
        now = record.get("ce", math.inf)
        self.learns, self.cross_entropy = now < 0.99 * self.cross_entropy < math.inf, now
        guesses = now > 0.9 * math.log(self.num_classes)
        close = record["spread"] < 0.25 * max(self.spreads)
        self.collapsed = close and guesses and self.num_classes > 1
        self.spreads.append(record["spread"])

    def check(
        self,
        record: dict[str, float],
        finite: bool,
        last: bool,
        shares: Mapping[str, float] | None = None,
    ) -> bool:
        """Return False after an epoch that looks broken but may pass, or stop with a TrainingError.

        Collapsed features can be a passing shock, so training stops after two such epochs in a
        row if the second has learned nothing, or if it is the last one; it stops at once when a
        number is not finite.

        Args:
            record: of the epoch.
            finite: whether all weights are, as ``all_finite`` found.
            last: whether it was the task's last epoch.
            shares: of each number of the record, how much of the epoch it was finite. The term that
                was so the least is the likely culprit: the others follow, when the weights are NaN.
        """
        where = f"task {record['task'] + 1}, epoch {record['epoch'] + 1}"
        remedy = (
            f"lower the learning rate (in this epoch {record['learning_rate']:g}; "
            f"the paper uses 1e-3 on the first task and 1e-5 later)"
        )
        broken = [f"{name} {value}" for name, value in record.items() if not math.isfinite(value)]
        if broken or not finite:
            what = ", ".join(broken) or "the network's weights are not finite"
            terms = {n: share for n, share in (shares or {}).items() if n not in ("loss", "spread")}
            first = [name for name, share in terms.items() if share == min(terms.values())]
            if len(first) < len(terms):
                what += f"; finite in the fewest steps: {', '.join(first)}"
            raise TrainingError(f"{where}: training has diverged ({what}): {remedy}")
        if record["loss"] == 0 == record["spread"]:
            raise TrainingError(f"{where}: the steps computed nothing: use cuda_graph=false")
        best, was_collapsed = max(self.spreads), self.collapsed
        self.note(record)
        if self.collapsed and (last or (was_collapsed and not self.learns)):
            epoch = self.spreads.index(best)
            if best < 1e-4:  # they were never apart, so no rate has pushed them together
                remedy = "the network began like that: give it weights, as weights=published"
            raise TrainingError(
                f"{where}: the features have collapsed: they are close together (mean cosine "
                f"distance {record['spread']:.1e}; it was {best:.2g} "
                f"{f'in epoch {epoch}' if epoch else 'before this task'}) and tell no classes "
                f"apart: {remedy}, or give it more images"
            )
        return not self.collapsed


def progress_bar(learning: TaskTraining, title: str | None) -> tqdm:
    """Return a bar that counts a task's steps from those done on; without a title, a hidden one."""
    steps = math.ceil(len(learning.labels) / learning.config.batch_size)
    size = dict(total=steps * learning.epochs, initial=steps * learning.epoch, unit="step")
    return tqdm(desc=title, **size) if title else tqdm(disable=True, **size)


class Totals:
    """Adds up, on the device, what the steps of an epoch of ``count`` images measure."""

    def __init__(self, names: Sequence[str], count: int, device: torch.device):
        self.names, self.count = ("loss", *names, "spread"), count
        # Of each name its mean, and the share of images in whose steps it was finite.
        self.sums = torch.zeros(2 * len(self.names), device=device)

    def add(self, terms: dict[str, Tensor], features: Tensor) -> None:
        """Take a step into account: its weighted loss terms, and its features ``[B, D]``."""
        values = [*terms.values()]
        numbers = torch.stack([sum(values[1:], values[0]), *values, feature_spread(features)])
        measured = torch.cat([numbers, numbers.isfinite().to(numbers)])
        self.sums.add_(measured, alpha=len(features) / self.count)

    def read(self, student: Network) -> tuple[dict[str, float], dict[str, float], bool]:
        """Return means and finite shares by name, and whether the student is finite.

        The only place where the host waits for the device: once an epoch.
        """
        *values, finite = torch.stack([*self.sums, all_finite(student)]).tolist()
        halves = values[: len(self.names)], values[len(self.names) :]
        means, shares = (dict(zip(self.names, half, strict=True)) for half in halves)
        return means, shares, bool(finite)


def all_finite(student: Network) -> Tensor:
    """Return a bool ``[]`` on the student's device: are all its weights and statistics finite?"""
    return torch.stack([value.isfinite().all() for value in student.state_dict().values()]).all()


class Selection:
    """Keeps the best of a task's models, by Recall@1 among the images that it is measured on."""

    def __init__(self, images: Tensor | StoredImages, labels: Tensor):
        self.images, self.labels = images, labels
        self.recall = -1.0
        self.state: dict[str, Tensor] = {}

    @classmethod
    def begin(
        cls, config: TrainConfig, tasks: Sequence[Task], student: Network
    ) -> tuple[Task, Selection | None]:
        """Return what is left of the last task to learn from, and the selection of its config.

        On held-out images the student may win as it was before its first epoch. On test images,
        as in the published code, any later look replaces it.
        """
        task, device = tasks[-1], student.head.weight.device
        if config.selection == "last":
            return task, None
        if config.selection == "test":  # of all tasks, as published
            images = join([t.test_images for t in tasks])
            labels = torch.cat([t.test_labels for t in tasks])
        else:
            task, images, labels = hold_out(task, config.held_out, config.seed)
        best = cls(images.to(device), labels.to(device))
        best.measure(student)
        if config.selection == "test":
            best.recall = 0.0
        return task, best

    def measure(self, student: Network) -> float:
        """Measure the student now, and keep a copy if it is better than every one before."""
        features = embed(student, self.images)
        # Images that all tie would all be found.
        recall = 0.0 if all_alike(features) else recall_at_k(features, self.labels)[1]
        if recall > self.recall:
            self.recall = recall
            self.state = {name: value.clone() for name, value in student.state_dict().items()}
        return recall


def feature_spread(features: Tensor) -> Tensor:
    """Mean cosine distance between two features ``[B, D]`` of a batch: 0 if all point one way.

    Features of zeros, which a search cannot tell apart either, point one way of their own.
    """
    unit = unit_length(features)
    unit = torch.cat([unit, (unit == 0).all(dim=1, keepdim=True).to(unit)], dim=1)
    others = len(unit) * (len(unit) - 1)
    return 1 - ((unit.sum(dim=0) ** 2).sum() - (unit**2).sum()) / max(others, 1)


@torch.no_grad()
def spread_in_training(student: Network, images: Tensor, precision: Precision) -> float:
    """Measure ``feature_spread`` on a batch as a training step would, and change nothing."""
    student = copy.deepcopy(student).train()
    with precision.autocast():
        return feature_spread(student(images)[0]).item()
