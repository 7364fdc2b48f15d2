"""Everything that decides a run, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from csd_lib import InputError, checks
from csd_lib.data import DATASETS
from csd_lib.methods import LossSettings, get_method

# What a field left at None becomes, from three sources; a later one counts more.
# 1. Our decisions where the paper is silent or its code is at odds with it.
_DEFAULTS = dict(
    schedule="steps", head_init="random", teacher_statistics="running", selection="last"
)
# 2. The data set. CIFAR-100: the paper's protocol. Digits: small enough for seconds on a laptop,
# and with later tasks learned so fast that forgetting shows within them.
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
# 3. The preset.
PRESETS: dict[str, dict[str, Any]] = {
    # The method done right: a frozen teacher, the last epoch's model, milestones as fractions.
    "clean": dict(),
    # What the published code does, with its traps. (Margin 1, KD temperature 2 without T^2, black
    # crop padding before normalisation and the kept last batch are common to all presets.)
    "reference": dict(
        teacher_statistics="batch",  # its teacher stays in train mode
        selection="test",  # it keeps the model that is best on the test images
        milestones=(200, 400, 600),  # epochs, so a shorter run never gets there
    ),
    # CIFAR-100 within a class hour: 25 instead of 800 epochs a task. With so few, random new head
    # rows would tear the large features down first; that is not the paper's initialisation.
    "class": dict(
        epochs=25,
        learning_rate=2e-3,
        later_learning_rate=1e-4,
        schedule="one_cycle",
        milestones=(),
        head_init="class_means",
    ),
}
# Settings that the first task does not depend on.
_LATER_ONLY = (
    *("kd_temperature", "csd_temperature", "fecd_temperature"),
    *("lambda_kd", "lambda_csd", "lambda_mmd", "lambda_fecd"),
    *("later_learning_rate", "head_init", "teacher_statistics"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LossSettings):
    """Everything that decides a run. It is stored with the run's results."""

    dataset: str = "digits"
    """Data set: digits or cifar100."""
    preset: str | None = None
    """Where settings left out come from: clean (the default), reference (what the published code
    does, traps included) or class (CIFAR-100 in 25 instead of 800 epochs)."""
    method: str = "csd"
    """Method: initial, fine-tuning, lwf, mmd, fecd, csd, joint, or a sum of terms such as ce+kd."""
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
    """When to divide the learning rate by 10, in fractions of a task's epochs or, from 1 on, in
    epochs (None: 0.25 0.5 0.75 for cifar100, the published code's 200, 400, 600 of 800; for digits
    never)."""
    schedule: str | None = None
    """Learning rate over a task: steps (at the milestones; paper) or one_cycle (rises for a fifth
    of the epochs, then falls to zero)."""
    weight_decay: float = 5e-4
    """L2 penalty inside Adam, on every parameter (paper)."""
    crop_padding: int | None = None
    """Black pixels around an image before the random crop (None: 4 for cifar100, 0 for digits)."""
    flip: bool | None = None
    """Mirror images at random (None: True for cifar100, False for digits)."""
    head_init: str | None = None
    """New head rows: random (published code) or class_means of the teacher's features."""
    teacher_statistics: str | None = None
    """Batch normalisation of the teacher: running (frozen) or batch (published code: it normalises
    with the statistics of the current batch)."""
    selection: str | None = None
    """Which model a task hands on: that of the last epoch, or the one with the best Recall@1 on the
    test images (published code: they decide what is then reported) or on held_out images."""
    select_every: int = 2
    """Epochs between two looks of the selection (published code: 2)."""
    held_out: float = 0.1
    """Share of each class's training images that selection=held_out does not train on."""
    seed: int = 0
    """Decides the initial weights, the order of the images and their augmentation."""
    device: str = "auto"
    """Where to train: auto (a CUDA GPU if there is one), cpu, cuda, cuda:1, mps."""
    precision: str = "fp32"
    """fp32, tf32 (NVIDIA from compute capability 8.0) or amp (bfloat16; float16 on older GPUs)."""
    cuda_graph: bool = False
    """Replay each training step as one CUDA graph. Off until it was verified on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("dataset", self.dataset, DATASETS)
        if self.preset is None:
            object.__setattr__(self, "preset", "clean")
        checks.one_of("preset", self.preset, PRESETS)
        if self.preset == "class" and self.dataset != "cifar100":
            raise InputError(
                f"preset='class' is for cifar100, not for {self.dataset}: leave it out"
            )
        get_method(self.method)
        defaults = _DEFAULTS | DATASET_DEFAULTS[self.dataset] | PRESETS[self.preset]
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        for field in fields(self):  # numpy's numbers cannot be stored with the result
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        for name, limits in _WHOLE.items():
            value = getattr(self, name)
            if value is not None or name != "class_order_seed":
                checks.whole(name, value, *limits)
        for name, limits in _NUMBERS.items():
            checks.number(name, getattr(self, name), **limits)
        for name in (*_NUMBERS, *(field.name for field in fields(LossSettings))):
            object.__setattr__(self, name, float(getattr(self, name)))  # 1 and 1.0 are one run
        for name, choices in _CHOICES.items():
            checks.one_of(name, getattr(self, name), choices)
        for name in ("flip", "cuda_graph"):
            checks.flag(name, getattr(self, name))
        checks.instance("device", self.device, str, "its name, such as auto or cpu")
        if self.depth % 6 != 2:
            raise InputError(f"depth={self.depth}: a ResNet has 6n + 2 layers: 8, 14, 20, 32")
        if self.tasks > DATASETS[self.dataset]:
            raise InputError(
                f"tasks={self.tasks}: {self.dataset} has {DATASETS[self.dataset]} classes, and "
                f"every task needs one"
            )
        object.__setattr__(self, "milestones", _milestones(self.milestones))

    def first_task(self) -> TrainConfig | None:
        """Return the config whose only task is this one's first, or None if none can be shared.

        Methods with the same plasticity terms learn the same model on the first task; method
        ``initial`` is that model, so it is trained once for all of them.
        """
        method, initial = get_method(self.method), get_method("initial")
        if method.joint or not method.learns_later or method.plasticity != initial.plasticity:
            return None
        unset = {field.name: field.default for field in fields(self) if field.name in _LATER_ONLY}
        return replace(self, method="initial", **unset)


def check_names(settings: Iterable[str]) -> None:
    """Refuse a setting that does not exist, and name the one that was probably meant.

    Raises:
        InputError: if there is one.
    """
    known = [field.name for field in fields(TrainConfig)]
    for name in settings:
        if name not in known:
            meant = get_close_matches(name, known, n=1)
            hint = f"did you mean {meant[0]}?" if meant else "help(TrainConfig) lists them"
            raise InputError(f"unknown setting {checks.shown(name)}: {hint}")


def _milestones(value: Any) -> tuple[float, ...]:
    """Return the milestones as a tuple, if they rise and are all fractions or all whole epochs."""
    if isinstance(value, list | tuple) and {type(m) for m in value} <= {int, float}:
        fractions = all(0 < m < 1 for m in value)
        epochs = all(isinstance(m, int) and 1 <= m <= MAX_EPOCHS for m in value)
        if (fractions or epochs) and list(value) == sorted(set(value)):
            return tuple(value)
    raise InputError(
        f"milestones={checks.shown(value)}: give rising fractions between 0 and 1, or rising whole "
        f"epochs"
    )


# Limits are far beyond what makes sense, and far below what fills a memory or never ends.
MAX_EPOCHS = 100_000
_WHOLE: dict[str, tuple[Any, ...]] = {
    "tasks": (1,),
    "class_order_seed": (0, checks.MAX_SEED),
    "depth": (8, 1202, "a ResNet has 6n + 2 layers"),
    "epochs": (1, MAX_EPOCHS),
    "batch_size": (2, 16_384, "the losses compare images of one batch"),
    "crop_padding": (0, 64),
    "select_every": (1, MAX_EPOCHS),
    "seed": (0, checks.MAX_SEED),
}
_NUMBERS: dict[str, dict[str, float]] = {
    "learning_rate": dict(above=0, at_most=100),
    "later_learning_rate": dict(above=0, at_most=100),
    "weight_decay": dict(at_least=0, at_most=100),
    "held_out": dict(above=0, at_most=0.5),
}
_CHOICES = {
    "schedule": ("steps", "one_cycle"),
    "head_init": ("random", "class_means"),
    "teacher_statistics": ("running", "batch"),
    "selection": ("last", "test", "held_out"),
    "precision": ("fp32", "tf32", "amp"),
}
