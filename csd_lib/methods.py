"""Each method is a recipe: which loss terms it adds up. The training loop is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from csd_lib import InputError, checks, losses


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Constants of the loss terms; those of CE, triplet, KD and CSD are the published code's."""

    margin: float = 1.0
    """Margin of the triplet loss, in units of cosine similarity."""
    kd_temperature: float = 2.0
    """Temperature of the softmaxes that knowledge distillation compares."""
    csd_temperature: float = 0.07
    """Temperature of the CSD loss."""
    fecd_temperature: float = 4.0
    """Temperature of FECD's softmaxes (its authors' code)."""
    lambda_kd: float = 1.0
    """Weight of knowledge distillation (paper: lambda_KD = 1)."""
    lambda_csd: float = 1.0
    """Weight of contrastive supervised distillation (paper: lambda_CSD = 1)."""
    lambda_mmd: float = 10.0
    """Weight of the maximum mean discrepancy (ours; published re-implementations use 1 or 10)."""
    lambda_fecd: float = 10.0
    """Weight of FECD (its authors' code)."""

    def __post_init__(self) -> None:
        checks.number("margin", self.margin, at_least=0, at_most=100)
        for name in ("kd_temperature", "csd_temperature", "fecd_temperature"):
            checks.number(name, getattr(self, name), at_least=0.001, at_most=1000)
        for name in ("lambda_kd", "lambda_csd", "lambda_mmd", "lambda_fecd"):
            checks.number(name, getattr(self, name), at_least=0, at_most=1e6)


@dataclass(frozen=True)
class Outputs:
    """What student and teacher say about one batch: all that a loss term may use."""

    labels: Tensor  # int64 [B]
    features: Tensor  # [B, D]
    logits: Tensor  # [B, classes seen so far]
    teacher_features: Tensor | None = None  # [B, D]
    teacher_logits: Tensor | None = None  # [B, classes seen before this task]


Term = Callable[[Outputs, LossSettings], Tensor]
# Adding a term means adding a function to losses.py and a line in one of these two.
# Plasticity: terms that learn the current task.
PLASTICITY: dict[str, Term] = {
    "ce": lambda o, s: losses.cross_entropy(o.logits, o.labels),
    "triplet": lambda o, s: losses.triplet_loss(o.features, o.labels, s.margin),
}
# Stability: terms that hold on to the teacher, from the second task on.
STABILITY: dict[str, Term] = {
    "kd": lambda o, s: s.lambda_kd * losses.kd_loss(o.logits, o.teacher_logits, s.kd_temperature),
    "csd": lambda o, s: (
        s.lambda_csd * losses.csd_loss(o.features, o.teacher_features, o.labels, s.csd_temperature)
    ),
    "csd_paper": lambda o, s: (
        s.lambda_csd * losses.csd_loss_paper(o.features, o.teacher_features, o.labels)
    ),
    "mmd": lambda o, s: s.lambda_mmd * losses.mmd_loss(o.features, o.teacher_features),
    "fecd": lambda o, s: (
        s.lambda_fecd * losses.fecd_loss(o.features, o.teacher_features, s.fecd_temperature)
    ),
}


@dataclass(frozen=True)
class Method:
    """A recipe of loss terms."""

    title: str
    plasticity: tuple[str, ...]
    stability: tuple[str, ...] = ()
    learns_later: bool = True  # False: keeps the model of the first task, the lower reference
    joint: bool = False  # train once on all tasks' images, the upper reference

    def term_names(self, has_teacher: bool) -> tuple[str, ...]:
        """Return the names of the terms of the first task, or of later ones with their teacher."""
        return self.plasticity + (self.stability if has_teacher else ())

    def loss_terms(self, outputs: Outputs, settings: LossSettings) -> dict[str, Tensor]:
        """Return this method's weighted terms for one batch; their sum is the loss."""
        names = self.term_names(outputs.teacher_features is not None)
        return {name: (PLASTICITY | STABILITY)[name](outputs, settings) for name in names}


METHODS = {
    "initial": Method("Initial model", ("ce", "triplet"), learns_later=False),
    "fine-tuning": Method("Fine-tuning", ("ce", "triplet")),
    "lwf": Method("LwF", ("ce", "triplet"), ("kd",)),
    "mmd": Method("MMD", ("ce", "triplet"), ("kd", "mmd")),
    "fecd": Method("FECD", ("ce", "triplet"), ("fecd",)),
    "csd": Method("CSD", ("ce", "triplet"), ("kd", "csd")),
    "joint": Method("Joint training", ("ce", "triplet"), joint=True),
}


def get_method(name: str) -> Method:
    """Look a method up by name, or make one from a sum of loss terms such as ``"ce+kd"``.

    Raises:
        InputError: if there is no such method or term.
    """
    if isinstance(name, str) and name in METHODS:
        return METHODS[name]
    terms = name.split("+") if isinstance(name, str) else []
    plasticity = tuple(term for term in PLASTICITY if term in terms)
    stability = tuple(term for term in STABILITY if term in terms)
    # Every term once, and in one order, so that a recipe has one name.
    if not plasticity or terms != [*plasticity, *stability]:
        raise InputError(
            f"unknown method {checks.shown(name)}: choose one of {', '.join(METHODS)}, or a sum of "
            f"the terms {'+'.join((*PLASTICITY, *STABILITY))}, in this order and with one of the "
            f"first two"
        )
    return Method(" + ".join(terms), plasticity, stability)
