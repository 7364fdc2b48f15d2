"""Each method is a recipe: which loss terms it adds up. The training loop is the same for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from csd_lib import InputError, checks, losses
from csd_lib.checks import setting

_temperature: dict[str, Any] = dict(at_least=0.001, at_most=1000)
_weight: dict[str, Any] = dict(at_least=0, at_most=1e6)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Constants of the loss terms; those of CE, triplet, KD and CSD are the published code's."""

    margin: float = setting(1.0, checks.number, at_least=0, at_most=100)
    """Margin of the triplet loss, in units of cosine similarity."""
    kd_temperature: float = setting(2.0, checks.number, **_temperature)
    """Temperature of the softmaxes that knowledge distillation compares."""
    csd_temperature: float = setting(0.07, checks.number, **_temperature)
    """Temperature of the CSD loss."""
    fecd_temperature: float = setting(4.0, checks.number, **_temperature)
    """Temperature of FECD's softmaxes (its authors' code)."""
    lambda_kd: float = setting(1.0, checks.number, **_weight)
    """Weight of knowledge distillation (paper: lambda_KD = 1)."""
    lambda_csd: float = setting(1.0, checks.number, **_weight)
    """Weight of contrastive supervised distillation (paper: lambda_CSD = 1)."""
    lambda_mmd: float = setting(10.0, checks.number, **_weight)
    """Weight of the maximum mean discrepancy ("10xMMD" in the name of a run of the authors)."""
    lambda_fecd: float = setting(10.0, checks.number, **_weight)
    """Weight of FECD (its authors' code)."""
    lambda_own: float = setting(1.0, checks.number, **_weight)
    """Weight of a term from outside the kit that names this setting as its weight."""

    def __post_init__(self) -> None:
        checks.check_settings(self)


@dataclass(frozen=True)
class Outputs:
    """What student and teacher say about one batch: all that a loss term may use."""

    labels: Tensor  # int64 [B]
    features: Tensor  # [B, D]
    logits: Tensor  # [B, classes seen so far]
    teacher_features: Tensor | None = None  # [B, D]
    teacher_logits: Tensor | None = None  # [B, classes seen before this task]


@dataclass(frozen=True)
class Term:
    """One term of a loss: its function gets ``Outputs`` of a batch and the loss settings."""

    title: str  # in legends
    compute: Callable[[Outputs, LossSettings], Tensor]  # a scalar, not yet weighted
    weight: str = ""  # name of the setting that it is multiplied by; none: 1
    settings: tuple[str, ...] = ()  # names of the other settings that it reads
    distils: bool = True  # holds on to the teacher, so it begins with the second task

    def __post_init__(self) -> None:
        if self.weight:
            checks.one_of("weight", self.weight, [each.name for each in fields(LossSettings)])

    def __call__(self, outputs: Outputs, settings: LossSettings) -> Tensor:
        """Return the weighted term for one batch.

        Raises:
            InputError: if what was computed is not one number.
        """
        declared: Any = checks.Declared(self.title, settings, self.settings)
        value = self.compute(outputs, declared)
        checks.loss_term(self.title, value, learned=outputs.features.requires_grad)
        return getattr(settings, self.weight) * value if self.weight else value


# To add a term: a function in losses.py, a line here and, for a weight of its own, a field above.
TERMS = {
    # Plasticity: terms that learn the current task.
    "ce": Term(
        "cross entropy", lambda o, s: losses.cross_entropy(o.logits, o.labels), distils=False
    ),
    "triplet": Term(
        "triplet",
        lambda o, s: losses.triplet_loss(o.features, o.labels, s.margin),
        settings=("margin",),
        distils=False,
    ),
    # Stability: terms that hold on to the teacher.
    "kd": Term(
        "KD",
        lambda o, s: losses.kd_loss(o.logits, o.teacher_logits, s.kd_temperature),
        "lambda_kd",
        ("kd_temperature",),
    ),
    "csd": Term(
        "CSD",
        lambda o, s: losses.csd_loss(o.features, o.teacher_features, o.labels, s.csd_temperature),
        "lambda_csd",
        ("csd_temperature",),
    ),
    "csd_paper": Term(
        "CSD, Eq. 8",
        lambda o, s: losses.csd_loss_paper(o.features, o.teacher_features, o.labels),
        "lambda_csd",
    ),
    "mmd": Term("MMD", lambda o, s: losses.mmd_loss(o.features, o.teacher_features), "lambda_mmd"),
    "fecd": Term(
        "FECD",
        lambda o, s: losses.fecd_loss(o.features, o.teacher_features, s.fecd_temperature),
        "lambda_fecd",
        ("fecd_temperature",),
    ),
}


@dataclass(frozen=True)
class Method:
    """A recipe of loss terms."""

    title: str
    recipe: str  # names of terms, as in "ce+triplet+kd"
    learns_later: bool = True  # False: keeps the model of the first task, the lower reference
    joint: bool = False  # train once on all tasks' images, the upper reference

    def term_names(self, has_teacher: bool) -> tuple[str, ...]:
        """Return the names of the terms of the first task, or of later ones with their teacher."""
        return tuple(n for n in self.recipe.split("+") if has_teacher or not TERMS[n].distils)

    def loss_terms(self, outputs: Outputs, settings: LossSettings) -> dict[str, Tensor]:
        """Return this method's weighted terms for one batch; their sum is the loss."""
        names = self.term_names(outputs.teacher_features is not None)
        return {name: TERMS[name](outputs, settings) for name in names}

    def unused_settings(self) -> set[str]:
        """Return the names of the loss settings that this method does not read."""
        terms = [TERMS[name] for name in self.recipe.split("+")]
        used = {name for term in terms for name in (term.weight, *term.settings)}
        return {field.name for field in fields(LossSettings)} - used


# To add a method: a line here. The paper publishes no code of its baselines. What they were is read
# from the names of runs in its authors' development repository, which do not prove it:
# TTL518/incremental-learning-image-retrieval, commit d1bbcbf, train_from_initial_model.py.
METHODS = {
    "initial": Method("Initial model", "ce+triplet", learns_later=False),
    "fine-tuning": Method("Fine-tuning", "ce+triplet"),
    # "bestModel_2T_RN32_CIFAR100_CE+Triplet+KD". As Li and Hoiem (2016) have it, it would be ce+kd.
    "lwf": Method("LwF", "ce+triplet+kd"),
    # "2TaskInc-CE+Triplet+10xMMD-BS32-CIFAR100-ResNet32", the last runs there: no KD.
    "mmd": Method("MMD", "ce+triplet+mmd"),
    # As Chen et al. (2020); of earlier runs there ("CIFAR100. ResNet32. [...] CE+Triplet+MMD+KD").
    "mmd-kd": Method("MMD + KD", "ce+triplet+kd+mmd"),
    # Chen et al. (2021), with the last teacher only; the paper has it on CUB-200 and Dogs.
    "fecd": Method("FECD", "ce+triplet+fecd"),
    "csd": Method("CSD", "ce+triplet+kd+csd"),
    "joint": Method("Joint training", "ce+triplet", joint=True),
}

FIRST_TASK = "initial-"  # before a sum of terms: only the first task is learned, with these


def get_method(name: str) -> Method:
    """Look a method up by name, or make one from a sum of loss terms such as ``"ce+kd"``.

    ``"initial-ce"`` is the model of the first task that all methods begin with which learn by
    ``ce`` alone, as ``"initial"`` is that of ``ce+triplet``.

    Raises:
        InputError: if there is no such method or term.
    """
    typed = name if isinstance(name, str) else ""
    stays, recipe = typed.startswith(FIRST_TASK), typed.removeprefix(FIRST_TASK)
    for known, method in METHODS.items():
        same = method.recipe == recipe and method.learns_later != stays and not method.joint
        if typed == known or (same and typed not in METHODS):
            _check_recipe(method)
            return method
    # Every term once, and in one order, so that a recipe has one name.
    terms = [term for term in TERMS if term in recipe.split("+")]
    distilling = [TERMS[term].distils for term in terms]
    if recipe.split("+") != terms or all(distilling) or (stays and any(distilling)):
        raise InputError(
            f"unknown method {checks.shown(name)}: choose one of {', '.join(METHODS)}, or a sum of "
            f"the terms {'+'.join(TERMS)}, in this order and with one of {_learning()}; one of "
            "your own is known once its module is imported"
        )
    title = " + ".join(terms)
    return Method(f"Initial model, {title}" if stays else title, recipe, learns_later=not stays)


def _check_recipe(method: Method) -> None:
    """Refuse a registered method of which nothing can be learned here."""
    names = method.recipe.split("+")
    unknown = [name for name in names if name not in TERMS]
    if unknown or all(TERMS[name].distils for name in names):
        what = f"there is no term {', '.join(unknown)}" if unknown else "nothing learns the task"
        raise InputError(
            f"method {checks.shown(method.title)} is {checks.shown(method.recipe)}, but {what}: "
            f"the terms are {'+'.join(TERMS)}, and one of {_learning()} must be among them"
        )


def _learning() -> str:
    return ", ".join(name for name, term in TERMS.items() if not term.distils)
