"""Everything that decides a run, in one frozen dataclass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from csd_lib import InputError
from csd_lib.data import DATASETS
from csd_lib.methods import LossSettings, get_method

# What a field left at None becomes. CIFAR-100: the paper's protocol. Digits: small enough for
# seconds on a laptop, and with later tasks learned so fast that forgetting shows within them.
DATASET_DEFAULTS = {
    "cifar100": dict(
        depth=32,
        epochs=800,
        batch_size=128,
        learning_rate=1e-3,
        later_learning_rate=1e-5,
        milestones=(0.25, 0.5, 0.75),
        crop_padding=4,
        flip=True,
    ),
    "digits": dict(
        depth=8,
        epochs=15,
        batch_size=64,
        learning_rate=1e-3,
        later_learning_rate=1e-2,
        milestones=(),
        crop_padding=0,
        flip=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LossSettings):
    """Everything that decides a run. It is stored with the run's results."""

    dataset: str = "digits"
    """Data set: digits or cifar100."""
    method: str = "csd"
    """Method: fine-tuning, lwf, csd or joint."""
    tasks: int = 2
    """Number of tasks that the classes are split into."""
    class_order_seed: int | None = None
    """Seed of a random class order (None: label order, as in the paper)."""
    depth: int | None = None
    """Layers of the ResNet, 6n + 2 (None: 32 for cifar100, 8 for digits)."""
    epochs: int | None = None
    """Epochs per task (None: 800 for cifar100 as in the paper, 15 for digits)."""
    batch_size: int | None = None
    """Images per step (None: 128 for cifar100 as in the paper, 64 for digits)."""
    learning_rate: float | None = None
    """Adam's learning rate on the first task (None: 1e-3, as in the paper)."""
    later_learning_rate: float | None = None
    """Adam's learning rate on later tasks (None: 1e-5 for cifar100 as in the paper, else 1e-2)."""
    milestones: tuple[float, ...] | None = None
    """Fractions of a task's epochs at which to divide the learning rate by 10 (None: 0.25 0.5 0.75
    for cifar100, which is the published code's 200, 400, 600 of 800; for digits never)."""
    weight_decay: float = 5e-4
    """L2 penalty inside Adam, on every parameter (paper)."""
    crop_padding: int | None = None
    """Black pixels around an image before the random crop (None: 4 for cifar100, 0 for digits)."""
    flip: bool | None = None
    """Mirror images at random (None: True for cifar100, False for digits)."""
    head_init: str = "random"
    """New head rows: random (published code) or class_means of the teacher's features."""
    seed: int = 0
    """Decides the initial weights, the order of the images and their augmentation."""
    device: str = "auto"
    """Where to train: auto (a CUDA GPU if there is one), cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        if self.dataset not in DATASET_DEFAULTS:
            raise InputError(
                f"unknown data set {self.dataset!r}: choose one of {', '.join(DATASETS)}"
            )
        get_method(self.method)
        for name, default in DATASET_DEFAULTS[self.dataset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for name, is_possible, rule in _RULES:
            value = getattr(self, name)
            try:
                possible = is_possible(value)
            except TypeError:
                possible = False
            if not possible:
                raise InputError(f"{name}={value!r}: {rule}")


def _whole(minimum: int) -> Callable[[object], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= minimum


def _number(above: float | None = None, at_least: float | None = None) -> Callable:
    return lambda v: (
        not isinstance(v, bool)
        and math.isfinite(v)
        and (above is None or v > above)
        and (at_least is None or v >= at_least)
    )


_RULES: list[tuple[str, Callable, str]] = [
    ("tasks", _whole(1), "choose at least one task"),
    ("class_order_seed", lambda v: v is None or _whole(0)(v), "choose a whole number from 0"),
    ("depth", lambda v: _whole(8)(v) and v % 6 == 2, "a ResNet has 6n + 2 layers: 8, 14, 20, 32"),
    ("epochs", _whole(1), "choose at least one epoch"),
    ("batch_size", _whole(2), "the losses compare images of one batch, so use at least 2"),
    ("learning_rate", _number(above=0), "choose a positive number"),
    ("later_learning_rate", _number(above=0), "choose a positive number"),
    (
        "milestones",
        lambda v: all(0 < m < 1 for m in v) and list(v) == sorted(set(v)),
        "give rising fractions between 0 and 1",
    ),
    ("weight_decay", _number(at_least=0), "choose 0 or more"),
    ("crop_padding", _whole(0), "choose 0 pixels or more"),
    ("flip", lambda v: isinstance(v, bool), "choose True or False"),
    ("head_init", lambda v: v in ("random", "class_means"), "choose random or class_means"),
    ("seed", _whole(0), "choose a whole number from 0"),
    ("margin", _number(at_least=0), "choose 0 or more"),
    ("kd_temperature", _number(above=0), "choose a positive number"),
    ("csd_temperature", _number(above=0), "choose a positive number"),
    ("lambda_kd", _number(at_least=0), "choose 0 or more"),
    ("lambda_csd", _number(at_least=0), "choose 0 or more"),
]
