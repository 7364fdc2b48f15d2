"""Everything that decides a run, in one frozen dataclass."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from csd_lib import InputError
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
        if self.dataset not in DATASET_DEFAULTS:
            raise InputError(
                f"unknown data set {self.dataset!r}: choose one of {', '.join(DATASETS)}"
            )
        if self.preset is None:
            object.__setattr__(self, "preset", "clean")
        if self.preset not in PRESETS:
            raise InputError(f"preset={self.preset!r}: choose one of {', '.join(PRESETS)}")
        if self.preset == "class" and self.dataset != "cifar100":
            raise InputError(
                f"preset='class' is for cifar100, not for {self.dataset}: leave it out"
            )
        get_method(self.method)
        defaults = _DEFAULTS | DATASET_DEFAULTS[self.dataset] | PRESETS[self.preset]
        for name, default in defaults.items():
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


def _one_of(*choices: str) -> tuple[Callable[[object], bool], str]:
    return lambda v: v in choices, f"choose {' or '.join(choices)}"


def _whole(minimum: int) -> Callable[[object], bool]:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= minimum


def _number(above: float | None = None, at_least: float | None = None) -> Callable:
    return lambda v: (
        not isinstance(v, bool)
        and math.isfinite(v)
        and (above is None or v > above)
        and (at_least is None or v >= at_least)
    )


_WEIGHTED = ("kd", "csd", "mmd", "fecd")
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
        lambda v: (
            list(v) == sorted(set(v))
            and (all(0 < m < 1 for m in v) or all(_whole(1)(m) for m in v))
        ),
        "give rising fractions between 0 and 1, or rising whole epochs",
    ),
    ("weight_decay", _number(at_least=0), "choose 0 or more"),
    ("crop_padding", _whole(0), "choose 0 pixels or more"),
    ("flip", lambda v: isinstance(v, bool), "choose True or False"),
    ("schedule", *_one_of("steps", "one_cycle")),
    ("head_init", *_one_of("random", "class_means")),
    ("teacher_statistics", *_one_of("running", "batch")),
    ("selection", *_one_of("last", "test", "held_out")),
    ("select_every", _whole(1), "choose at least one epoch"),
    ("held_out", lambda v: _number(above=0)(v) and v <= 0.5, "choose a share up to 0.5"),
    ("precision", *_one_of("fp32", "tf32", "amp")),
    ("cuda_graph", lambda v: isinstance(v, bool), "choose True or False"),
    ("seed", _whole(0), "choose a whole number from 0"),
    ("margin", _number(at_least=0), "choose 0 or more"),
    ("kd_temperature", _number(above=0), "choose a positive number"),
    ("csd_temperature", _number(above=0), "choose a positive number"),
    ("fecd_temperature", _number(above=0), "choose a positive number"),
    *(
        (f"lambda_{t}", _number(at_least=0), "choose 0 or more")
        for t in ("kd", "csd", "mmd", "fecd")
    ),
]
