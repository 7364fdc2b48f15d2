"""Images, the split of their classes into tasks, and augmentation on the device.

Images are ``uint8 [N, C, H, W]`` until the network normalises them: 8-bit images are small
enough to live on the GPU as a whole, and "black" is simply 0 when a crop is padded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from csd_lib import InputError, checks
from csd_lib.stored import StoredImages, join, select, sha256


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test images of one data set, in memory or in a file that is read by the batch.

    Images are uint8 ``[N, C, H, W]``, labels int64 ``[N]`` indexing ``class_names``; ``mean`` and
    ``std`` hold one value per channel, for pixel values scaled to [0, 1]. Features made elsewhere
    are float32 images ``[N, D, 1, 1]``.
    """

    name: str
    train_images: Tensor | StoredImages
    train_labels: Tensor
    test_images: Tensor | StoredImages
    test_labels: Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        checks.dataset(self)

    def sha256(self) -> str:
        """Return the hash of all that a run can see of this data set: 64 hexadecimal digits.

        It is computed anew each time (0.2 s for CIFAR-100), because tensors can be changed.
        """
        named = tuple(self.class_names), tuple(map(float, self.mean)), tuple(map(float, self.std))
        parts = self.train_images, self.train_labels, self.test_images, self.test_labels
        return sha256(repr(named), parts)


@dataclass(frozen=True, eq=False)
class Task:
    """All that a student may see of one task, and the test images it is examined on later.

    Labels are positions in the class order, not the data set's own class ids: the classes of
    task 0 are labels 0, 1, ..., those of task 1 follow on, and so on. A label is therefore also
    the row of the classifier head that belongs to the class.
    """

    index: int
    classes: tuple[int, ...]  # the data set's own class ids, in class order
    class_names: tuple[str, ...]
    first_label: int
    train_images: Tensor | StoredImages
    train_labels: Tensor
    test_images: Tensor | StoredImages
    test_labels: Tensor

    @property
    def end_label(self) -> int:
        """One past this task's last label, which is also how many classes were seen by then."""
        return self.first_label + len(self.classes)


def class_order_from_seed(num_classes: int, seed: int) -> tuple[int, ...]:
    """Return a random order of the class ids 0..num_classes-1, the same for the same seed."""
    checks.whole("num_classes", num_classes, 1, 1_000_000)
    checks.seed("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randperm(num_classes, generator=generator).tolist())


def class_incremental_split(
    dataset: Dataset,
    num_tasks: int,
    *,
    class_order: Sequence[int] | None = None,
    seed: int | None = None,
    first_classes: int | None = None,
) -> list[Task]:
    """Split the classes of a data set into tasks; every class is in exactly one task.

    Args:
        dataset: what to split.
        num_tasks: how many tasks, 1..number of classes. If it does not divide the number of
            classes, the first tasks get one class more, and a warning says so; also if a task has
            one class, in which every search among its own classes is right.
        class_order: the order in which classes arrive. Default: label order, as in the paper.
        seed: draw the class order at random from this seed instead.
        first_classes: how many classes the first task has; the others share the rest. Default: all
            tasks share all classes.

    Raises:
        InputError: for an impossible number of tasks or of first classes, or an order that is not
            a permutation.
    """
    checks.instance("dataset", dataset, Dataset, "what load_dataset returns")
    num_classes = len(dataset.class_names)
    checks.whole("tasks", num_tasks, 1, num_classes, f"{dataset.name} has {num_classes} classes")
    if class_order is not None and seed is not None:
        raise InputError("give class_order or seed, not both: each decides the order of classes")
    order = range(num_classes) if class_order is None else class_order
    order = order if seed is None else class_order_from_seed(num_classes, seed)
    checks.permutation("class_order", order, num_classes)
    checks.first_classes(first_classes, num_tasks, num_classes)
    first = first_classes if first_classes and num_tasks > 1 else 0
    shared = np.array_split(np.array([*order][first:]), num_tasks - bool(first))
    groups = [tuple(order[:first])] * bool(first) + [tuple(group.tolist()) for group in shared]
    if len(shared[0]) != len(shared[-1]):
        sizes = ", ".join(str(len(group)) for group in groups)
        warnings.warn(
            f"{num_classes - first} classes do not divide into {len(shared)} equal tasks: the "
            f"tasks have {sizes} classes",
            stacklevel=2,
        )
    if num_classes > 1 and min(map(len, groups)) == 1:
        what = "a task has one class, which is all that its own gallery holds: 100 % says nothing"
        warnings.warn(f"{what}; look at all classes, or make fewer tasks", stacklevel=2)
    label_of_class = torch.empty(num_classes, dtype=torch.int64)
    label_of_class[list(order)] = torch.arange(num_classes)
    tasks, first_label = [], 0
    for index, classes in enumerate(groups):
        parts: dict[str, Any] = {}
        for part in ("train", "test"):
            labels = label_of_class[getattr(dataset, f"{part}_labels").long()]
            chosen = (labels >= first_label) & (labels < first_label + len(classes))
            parts[f"{part}_images"] = select(getattr(dataset, f"{part}_images"), chosen)
            parts[f"{part}_labels"] = labels[chosen]
        names = tuple(dataset.class_names[c] for c in classes)
        tasks.append(Task(index, classes, names, first_label, **parts))
        first_label += len(classes)
    return tasks


def merge_tasks(tasks: Sequence[Task]) -> Task:
    """Return one task with the classes and images of all the given ones (for joint training)."""
    checks.sequence("tasks", tasks, Task, "a list of one or more tasks")
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    joined: dict[str, Any] = {p: join([getattr(task, p) for task in tasks]) for p in parts}
    return Task(
        index=0,
        classes=sum((task.classes for task in tasks), ()),
        class_names=sum((task.class_names for task in tasks), ()),
        first_label=tasks[0].first_label,
        **joined,
    )


def hold_out(task: Task, share: float, seed: int) -> tuple[Task, Tensor | StoredImages, Tensor]:
    """Set a share of a task's training images aside, the same share of every class.

    Returns:
        The task without them, the images held out, and their labels.

    Raises:
        InputError: if the share is not between 0 and 0.5, or a class has fewer than 3 images.
    """
    checks.instance("task", task, Task, "one of class_incremental_split's")
    checks.number("share", share, above=0, at_most=0.5)
    checks.seed("seed", seed)
    images, labels = task.train_images, task.train_labels
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held = torch.zeros(len(shuffled), dtype=torch.bool)
    for label, name in enumerate(task.class_names, task.first_label):
        members = shuffled[labels[shuffled] == label]
        if len(members) < 3:  # two are held out, for one to be found by the other
            raise InputError(
                f"held_out: class {name} has only {len(members)} training images, but one must "
                f"remain beside the two held out: choose selection=last or selection=test"
            )
        held[members[: max(2, round(share * len(members)))]] = True
    rest = replace(task, train_images=select(images, ~held), train_labels=labels[~held])
    return rest, select(images, held), labels[held]


def augment(
    images: Tensor, padding: int = 4, flip: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Randomly crop and flip a whole batch at once, with one draw per image.

    Each image is surrounded by ``padding`` black pixels, a window of the original size is cut
    out at a random place, and with probability one half it is mirrored left to right.

    Args:
        images: ``[B, C, H, W]``, uint8 and not yet normalised, so that 0 is black.
        padding: black pixels added on each side; 0 for no crop.
        flip: whether to mirror. Off for digits, which mirroring turns into other signs.
        generator: source of randomness, on the device of the images.

    Returns:
        ``[B, C, H, W]``, same dtype and device, in channels_last memory order.

    Raises:
        InputError: for what is no batch of images, or a padding that is no number of pixels.
    """
    checks.images("images", images)
    checks.whole("padding", padding, 0, 64)
    checks.flag("flip", flip)
    checks.generator("generator", generator, images.device)
    batch, _, height, width = images.shape
    device = images.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (batch, 1), device=device, generator=generator)

    rows = draw(2 * padding + 1) + torch.arange(height, device=device)  # [B, H]
    columns = draw(2 * padding + 1) + torch.arange(width, device=device)  # [B, W]
    if flip:
        columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    padded = F.pad(images, (padding,) * 4)
    image = torch.arange(batch, device=device)
    # One gather for the batch: [B, H, W, C], which read as [B, C, H, W] is channels_last.
    cropped = padded.permute(0, 2, 3, 1)[image[:, None, None], rows[:, :, None], columns[:, None]]
    return cropped.permute(0, 3, 1, 2)
