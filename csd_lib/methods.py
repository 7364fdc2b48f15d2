"""Each method is a recipe: which loss terms it adds up. The training loop is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from csd_lib import InputError, losses


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Constants of the loss terms; the defaults are those of the published code."""

    margin: float = 1.0
    """Margin of the triplet loss, in units of cosine similarity."""
    kd_temperature: float = 2.0
    """Temperature of the softmaxes that knowledge distillation compares."""
    csd_temperature: float = 0.07
    """Temperature of the CSD loss."""
    lambda_kd: float = 1.0
    """Weight of knowledge distillation (paper: lambda_KD = 1)."""
    lambda_csd: float = 1.0
    """Weight of contrastive supervised distillation (paper: lambda_CSD = 1)."""


@dataclass(frozen=True)
class Outputs:
    """What student and teacher say about one batch: all that a loss term may use."""

    labels: Tensor  # int64 [B]
    features: Tensor  # [B, D]
    logits: Tensor  # [B, classes seen so far]
    teacher_features: Tensor | None = None  # [B, D]
    teacher_logits: Tensor | None = None  # [B, classes seen before this task]


# Adding a term means adding a function to losses.py and a line here.
TERMS: dict[str, Callable[[Outputs, LossSettings], Tensor]] = {
    "ce": lambda o, s: losses.cross_entropy(o.logits, o.labels),
    "triplet": lambda o, s: losses.triplet_loss(o.features, o.labels, s.margin),
    "kd": lambda o, s: s.lambda_kd * losses.kd_loss(o.logits, o.teacher_logits, s.kd_temperature),
    "csd": lambda o, s: (
        s.lambda_csd * losses.csd_loss(o.features, o.teacher_features, o.labels, s.csd_temperature)
    ),
}


@dataclass(frozen=True)
class Method:
    """A recipe of loss terms."""

    title: str
    plasticity: tuple[str, ...]  # terms that learn the current task
    stability: tuple[str, ...] = ()  # terms that hold on to the teacher, from the second task on
    joint: bool = False  # train once on all tasks' images, the upper reference

    def loss_terms(self, outputs: Outputs, settings: LossSettings) -> dict[str, Tensor]:
        """Return this method's weighted terms for one batch; their sum is the loss."""
        has_teacher = outputs.teacher_features is not None
        names = self.plasticity + (self.stability if has_teacher else ())
        return {name: TERMS[name](outputs, settings) for name in names}


METHODS = {
    "fine-tuning": Method("Fine-tuning", ("ce", "triplet")),
    "lwf": Method("LwF", ("ce", "triplet"), ("kd",)),
    "csd": Method("CSD", ("ce", "triplet"), ("kd", "csd")),
    "joint": Method("Joint training", ("ce", "triplet"), joint=True),
}


def get_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        InputError: if there is no such method.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]
