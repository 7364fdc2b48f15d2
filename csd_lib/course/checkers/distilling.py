"""Checkers of the exercises on distilling later tasks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csd_lib import losses
from csd_lib.course.checkers.cases import on_circle, random_features, random_labels
from csd_lib.course.checkers.judge import (
    Mistake,
    Mistakes,
    call,
    compare,
    compare_gradients,
    exercise,
    same,
)
from csd_lib.numerics import unit_length


@exercise("3.1", "old classes only, at temperature T, teacher in front.")
def check_kd_loss(kd_loss: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Exercise 3.1: knowledge distillation on the old classes."""

    def logs(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        old = s[:, : t.shape[1]]
        return F.log_softmax(old / temperature, dim=1), F.log_softmax(t / temperature, dim=1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (q.exp() * (q - p)).sum(dim=1)

    def over_all_classes(s: Tensor, t: Tensor, temperature: float) -> Tensor:
        p, q = F.log_softmax(s / temperature, dim=1), F.log_softmax(t / temperature, dim=1)
        return kl(p[:, : t.shape[1]], q).mean()

    right = losses.kd_loss
    pencil = (torch.tensor([[1.0, 1.0, 3.0]]), torch.tensor([[2.0, 0.0]]))
    cases = {
        "the example of chapter 3": (*pencil, 2.0),
        "temperature 1": (*pencil, 1.0),
        "16 images, 5 old and 3 new classes": (
            2 * random_features(16, 8),
            2 * random_features(16, 5, seed=1),
            2.0,
        ),
    }
    mistakes = {
        "You multiply by T². Many authors do; the published code of CSD does not.": (
            lambda s, t, temp: right(s, t, temp) * temp**2
        ),
        "The two distributions are the wrong way round: the teacher's is the one in front, as "
        "the weight of the sum.": lambda s, t, temp: kl(*logs(s, t, temp)[::-1]).mean(),
        "The student's softmax runs over all classes. Cut the new ones off *before* the "
        "softmax.": over_all_classes,
        "You compare the teacher with the student's *last* columns. The old classes come "
        "first.": lambda s, t, temp: right(s[:, -t.shape[1] :], t, temp),
        "You divide by the number of classes too (`reduction='mean'`). Sum over the classes, "
        "mean over the images: `batchmean`.": lambda s, t, temp: right(s, t, temp) / t.shape[1],
        "You add up over the batch (`reduction='sum'`). Take the mean over the images.": (
            lambda s, t, temp: right(s, t, temp) * len(s)
        ),
        "The temperature is missing.": lambda s, t, temp: right(s, t, 1.0),
        "Only the teacher's logits are divided by T.": lambda s, t, temp: right(s, t / temp, 1.0),
        "Only the student's logits are divided by T.": lambda s, t, temp: right(s / temp, t, 1.0),
        "`F.kl_div` wants the *logarithm* of the student's probabilities, and you gave it "
        "the probabilities.": (
            lambda s, t, temp: kl(logs(s, t, temp)[0].exp(), logs(s, t, temp)[1]).mean()
        ),
        "This is a cross entropy: the term with the teacher's own logarithm is missing, so the "
        "loss is not 0 when both agree.": (
            lambda s, t, temp: -(logs(s, t, temp)[1].exp() * logs(s, t, temp)[0]).sum(1).mean()
        ),
    }
    compare(kd_loss, right, cases, mistakes)
    compare_gradients(kd_loss, right, cases["16 images, 5 old and 3 new classes"])


class _Masks:
    """Which of the students and, behind them, teachers something counts for, bool ``[B, 2B]``."""

    def __init__(self, labels: Tensor) -> None:
        batch = len(labels)
        self.itself = torch.eye(batch, 2 * batch, dtype=torch.bool)
        self.own_teacher = self.itself.roll(batch, dims=1)
        self.teachers = (torch.arange(2 * batch) >= batch).expand(batch, -1)
        self.same_class = labels[:, None] == labels.repeat(2)
        self.members = self.same_class & ~self.itself


def _mean(log_probability: Tensor, positive: Tensor) -> Tensor:
    return (log_probability * positive).sum(dim=1) / positive.sum(dim=1)


def _mean_or_zero(log_probability: Tensor, positive: Tensor) -> Tensor:
    return (log_probability * positive).sum(dim=1) / positive.sum(dim=1).clamp_min(1)


def _contrast(
    anchors: Tensor,
    others: Tensor,
    positive: Tensor,
    below: Tensor,
    temperature: float,
    *,
    each: Callable[[Tensor, Tensor], Tensor] = _mean,
    normalize: bool = True,
) -> Tensor:
    """The formula of CSD, with masks bool ``[anchors, others]`` of numerator and denominator."""
    if normalize:
        anchors, others = unit_length(anchors), unit_length(others)
    cosines = anchors @ others.T / temperature
    log_below = cosines.masked_fill(~below, -torch.inf).logsumexp(dim=1, keepdim=True)
    return -each(cosines - log_below, positive).mean()


def _csd(
    s: Tensor,
    t: Tensor,
    y: Tensor,
    temperature: float,
    *,
    positive: Callable[[_Masks], Tensor] = lambda m: m.members,
    below: Callable[[_Masks], Tensor] = lambda m: ~m.itself,
    **how: Any,
) -> Tensor:
    """CSD with one thing or another done wrong: the defects of exercises 3.2 and 3.3."""
    masks = _Masks(y)
    return _contrast(s, torch.cat([s, t]), positive(masks), below(masks), temperature, **how)


# Used to name a mistake (3.2) and as defects that a test must find (3.3).
_CSD_MISTAKES: dict[str, Callable[..., Tensor]] = {
    "Your denominator still contains the anchor itself. Its similarity with itself is 1, the "
    "largest there is, and drowns the others.": (
        partial(_csd, below=lambda m: m.itself | ~m.itself)
    ),
    "The anchor's own teacher is not among your positives. It is always one.": (
        partial(_csd, positive=lambda m: m.members & ~m.own_teacher, each=_mean_or_zero)
    ),
    "The teachers are missing in the denominator: the anchor competes with other students "
    "only.": partial(_csd, below=lambda m: ~m.itself & ~m.teachers),
    "The temperature is ignored.": lambda s, t, y, temp: _csd(s, t, y, 1.0),
    "You multiply by the temperature instead of dividing by it.": (
        lambda s, t, y, temp: _csd(s, t, y, 1 / temp)
    ),
    "You did not scale the features to length 1, so these are not cosines.": (
        partial(_csd, normalize=False)
    ),
    "You add up over the positives. Take their mean, or anchors with many positives count "
    "more.": partial(_csd, each=lambda log_p, positive: (log_p * positive).sum(dim=1)),
    "You take the mean of the probabilities first and the logarithm afterwards. The logarithm "
    "belongs to each positive.": (
        partial(_csd, each=lambda log_p, positive: _mean(log_p.exp(), positive).log())
    ),
    "Your positives are the images of *other* classes.": (
        partial(_csd, positive=lambda m: ~m.same_class, each=_mean_or_zero)
    ),
    "The minus sign is missing.": lambda *a: -_csd(*a),
    "Student and teacher have changed places: the anchors are student features.": (
        lambda s, t, y, temp: _csd(t, s, y, temp)
    ),
}


@exercise("3.2", "this is CSD, value and gradient.")
def check_csd_loss(csd_loss: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """Exercise 3.2: CSD from its definition."""
    pencil = (on_circle(0, 60, 120, 180), on_circle(0, 0, 180, 180), torch.tensor([0, 0, 1, 1]))
    random = (random_features(12, 6), random_features(12, 6, seed=1), random_labels(12, 3))
    distinct = (random_features(5, 6), random_features(5, 6, seed=1), torch.arange(5))
    cases = {
        "four images as in chapter 3, T = 0.5": (*pencil, 0.5),
        "twelve images of three classes, T = 0.1": (*random, 0.1),
        "features of other lengths": (2 * random[0], 0.3 * random[1], random[2], 0.5),
        "five images of five classes": (*distinct, 0.2),
        "T = 0.01": (*random, 0.01),
    }

    def zero_in_the_softmax(
        s: Tensor, t: Tensor, y: Tensor, temp: float, overflows: bool
    ) -> Tensor:
        masks, cosines = _Masks(y), unit_length(s) @ unit_length(torch.cat([s, t])).T / temp
        left = cosines * ~masks.itself
        log_below = left.logsumexp(dim=1, keepdim=True)
        if overflows:  # as it does without ``logsumexp``
            log_below = left.exp().sum(dim=1, keepdim=True).log()
        return -_mean(cosines - log_below, masks.members).mean()

    def supcon(f: Tensor, y: Tensor, temp: float, each: Callable[..., Tensor] = _mean) -> Tensor:
        others = ~torch.eye(len(y), dtype=torch.bool)
        return _contrast(f, f, (y[:, None] == y) & others, others, temp, each=each)

    def equation_8(s: Tensor, t: Tensor, y: Tensor, temp: float) -> Tensor:
        return _contrast(t, s, y[:, None] == y, ~torch.eye(len(y), dtype=torch.bool), temp)

    mistakes: Mistakes = {
        "Multiplying by a mask puts 0 in the anchor's own place, and exp(0) = 1 still counts in "
        "the denominator. Leave it out with minus infinity: `masked_fill(itself, -torch.inf)`; or "
        "multiply by the mask after the `exp`.": [
            partial(zero_in_the_softmax, overflows=overflows) for overflows in (False, True)
        ],
        "The anchor's own teacher is not among your positives, so an anchor that is alone in "
        "its class has none, and the mean of nothing is NaN.": (
            partial(_csd, positive=lambda m: m.members & ~m.own_teacher)
        ),
        "You average over all pairs at once, so anchors with many positives count more. First "
        "the mean over each anchor's positives, then over the anchors.": (
            partial(_csd, each=lambda log_p, positive: log_p[positive])
        ),
        "The anchor's own teacher is neither among your positives nor in the denominator. "
        "It belongs to both.": [
            partial(
                _csd,
                positive=lambda m: m.members & ~m.own_teacher,
                below=lambda m: ~m.itself & ~m.own_teacher,
                each=each,
            )
            for each in (_mean, _mean_or_zero)
        ],
        "The anchor is among its own positives, in the numerator. Leave it out there, too.": (
            partial(_csd, positive=lambda m: m.same_class)
        ),
        "You count the anchor among its positives when you divide by their number.": partial(
            _csd, each=lambda log_p, positive: (log_p * positive).sum(1) / (positive.sum(1) + 1)
        ),
        "You add up the probabilities of the positives and then take the logarithm of the sum. "
        "Take the logarithm for each positive, and then the mean.": partial(
            _csd, each=lambda log_p, positive: log_p.masked_fill(~positive, -torch.inf).logsumexp(1)
        ),
        "You add up over the batch. Take the mean over the anchors.": (
            lambda s, t, y, temp: losses.csd_loss(s, t, y, temp) * len(y)
        ),
        "Only the anchor's own teacher is your positive (InfoNCE). All students and teachers "
        "of the anchor's class are.": [
            partial(_csd, positive=lambda m: m.own_teacher, below=below)
            for below in (lambda m: ~m.itself, lambda m: m.teachers)
        ],
        "Your positives are teachers only. The other students of the class are positives, too.": (
            partial(_csd, positive=lambda m: m.same_class & m.teachers)
        ),
        "Your positives are students, and of the teachers only the anchor's own. All teachers "
        "of the class are.": (
            partial(_csd, positive=lambda m: (m.members & ~m.teachers) | m.own_teacher)
        ),
        "You compare with the teachers only. The other students belong to the comparison, "
        "in numerator and denominator.": (
            partial(_csd, positive=lambda m: m.same_class & m.teachers, below=lambda m: m.teachers)
        ),
        "You compare with students only, in numerator and denominator. The teachers belong to "
        "the comparison.": [
            lambda s, t, y, temp, each=each: supcon(s, y, temp, each)
            for each in (_mean, _mean_or_zero)
        ],
        "Your denominator leaves the anchor's own teacher out. Only the anchor itself "
        "is left out.": partial(_csd, below=lambda m: ~m.itself & ~m.own_teacher),
        "Your anchors are students *and* teachers, as in SupCon with two views. Only the "
        "student features are anchors.": (
            lambda s, t, y, temp: supcon(torch.cat([s, t]), y.repeat(2), temp)
        ),
        "You multiply the loss by the temperature, as some SupCon code does. The definition "
        "has no such factor.": lambda s, t, y, temp: losses.csd_loss(s, t, y, temp) * temp,
        "You multiply the loss by T / 0.07, as SupCon's code does (`temperature / "
        "base_temperature`). The definition has no such factor.": (
            lambda s, t, y, temp: losses.csd_loss(s, t, y, temp) * temp / 0.07
        ),
        "You scaled the student's features to length 1, but not the teacher's.": (
            lambda s, t, y, temp: _csd(unit_length(s), t, y, temp, normalize=False)
        ),
        "You scaled the teacher's features to length 1, but not the student's.": (
            lambda s, t, y, temp: _csd(s, unit_length(t), y, temp, normalize=False)
        ),
        "Your denominator holds only images of other classes. Everything but the anchor "
        "itself belongs there, positives too.": partial(_csd, below=lambda m: ~m.same_class),
        "This is Eq. 8 as printed, with teacher anchors. The exercise asks for the form of the "
        "published code.": equation_8,
        "This is Eq. 8 as printed, without a temperature and with teacher anchors. The "
        "exercise asks for the form of the published code.": (
            lambda s, t, y, temp: losses.csd_loss_paper(s, t, y)
        ),
    }
    hints = {
        "T = 0.01": "At a low temperature `exp` overflows, and a small number added inside the "
        "logarithm caps the loss. Use `logsumexp`, or subtract the largest similarity of each row "
        "first and add nothing.",
    }
    compare(csd_loss, losses.csd_loss, cases, {**_CSD_MISTAKES, **mistakes}, hints=hints)
    compare_gradients(csd_loss, losses.csd_loss, (*random, 0.1))


@exercise("3.3", f"the right loss passes, and all {len(_CSD_MISTAKES)} defects are caught.")
def check_csd_test(test: Callable[[Callable[..., Tensor]], bool]) -> None:
    """Exercise 3.3: write a test that the right loss passes and every defect fails."""

    def accepts(loss: Callable[..., Tensor]) -> bool:
        def csd_loss(
            student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 0.07
        ) -> Tensor:
            return loss(student, teacher, labels, temperature)

        try:
            result = call(test, "your test", csd_loss)
        except Mistake as mistake:
            if "AssertionError" in str(mistake):
                return False
            raise
        if not isinstance(result, bool | np.bool_ | Tensor):
            raise Mistake(
                f"It returns a {type(result).__name__}; return True for a right loss, else False."
            )
        return bool(result)

    def rounded(s: Tensor, t: Tensor, y: Tensor, temperature: float) -> Tensor:
        # The same loss in another order of operations: off by rounding only.
        loss = losses.csd_loss(s.double(), t.double(), y, temperature)
        return loss.to(s.dtype) * (1 + 1e-6)

    if not accepts(losses.csd_loss):
        raise Mistake("Your test rejects the right loss, `losses.csd_loss`.")
    if not accepts(rounded):
        raise Mistake(
            "Your test rejects a right loss that differs by rounding, one part in a million. "
            "Compare with a tolerance."
        )
    survivors = [sentence for sentence, loss in _CSD_MISTAKES.items() if accepts(loss)]
    caught = len(_CSD_MISTAKES) - len(survivors)
    if survivors:
        raise Mistake(
            f"It catches {caught} of {len(_CSD_MISTAKES)} defects. This one passes your test: "
            f"*{survivors[0]}* On which input would its value differ?"
        )


@exercise("3.4", "a copy, in eval mode, without gradients.")
def check_freeze(freeze: Callable[[nn.Module], nn.Module]) -> None:
    """Exercise 3.4: a teacher that never changes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model(random_features(32, 4))  # running statistics that are not the default ones
    before = copy.deepcopy(model.state_dict())

    def freeze_the_original(_: nn.Module) -> nn.Module:  # `call` would hand out a copy
        return freeze(model)

    teacher = call(freeze_the_original, "a small network", model)
    if not isinstance(teacher, nn.Module):
        raise Mistake(f"It returns {type(teacher).__name__}, not a network: `return` the copy.")
    shared = {t.data_ptr() for t in model.state_dict().values()} & {
        t.data_ptr() for t in teacher.state_dict().values()
    }
    if teacher is model or shared:
        raise Mistake(
            "Teacher and student are the same network, or share their weights: what the "
            "student learns, the teacher learns too. Make a copy (`copy.deepcopy`)."
        )
    awake = all(module.training for module in model.modules())
    if not awake or not all(p.requires_grad for p in model.parameters()):
        raise Mistake("The student was frozen too. Only the copy should be.")
    if not all(torch.equal(a, before[name]) for name, a in model.state_dict().items()):
        raise Mistake("The student's weights were changed.")
    if any(not torch.equal(a, before[name]) for name, a in teacher.state_dict().items()):
        raise Mistake("The teacher's weights differ from the student's: it knows other things.")
    if any(module.training for module in teacher.modules()):
        raise Mistake(
            "The teacher is in train mode: its batch normalisation uses the new task's "
            "batches, and its running statistics drift. Call `.eval()`."
        )
    if any(p.requires_grad for p in teacher.parameters()):
        raise Mistake(
            "The teacher's weights still ask for gradients. They would be computed for "
            "nothing, and an optimiser could move them: `.requires_grad_(False)`."
        )


@exercise("3.5", "it can be trained with. Now measure whether it helps.")
def check_distillation_term(term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Exercise 3.5: a distillation term of one's own must be usable as a loss."""
    labels = torch.arange(12) % 3
    student, teacher = random_features(12, 6), random_features(12, 6, seed=1)
    value = call(term, "random features", student, teacher, labels)
    if not isinstance(value, Tensor) or value.ndim:
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise Mistake(f"It returns {shape}, but a loss is a tensor with a single number.")
    if not torch.isfinite(value):
        raise Mistake(
            f"It returns {value.item()} for random features with the labels 0, 1 and 2. Is "
            f"something divided by 0, or does it count on other labels?"
        )
    moving, fixed = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    value = term(moving, fixed, labels)
    pulls = teaches = None
    if value.requires_grad:
        pulls, teaches = torch.autograd.grad(value, (moving, fixed), allow_unused=True)
    if pulls is None or not pulls.abs().sum() > 0:
        raise Mistake("Nothing can be learned from it: it does not depend on the student.")
    if teaches is not None and teaches.abs().sum() > 0:
        raise Mistake(
            "A gradient flows into the teacher's features: it would be asked to follow the "
            "student. Use `teacher.detach()`."
        )
    if not same(term(student, teacher, labels), term(student, teacher, labels)):
        raise Mistake(
            "Called twice with the same features it gives two values: something in it is "
            "random. The same batch should cost the same."
        )
    other_teacher = random_features(12, 6, seed=2)
    if torch.equal(term(student, teacher, labels), term(student, other_teacher, labels)):
        raise Mistake("It does not depend on the teacher, so it holds on to nothing.")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
    shuffled = term(student[order], teacher[order], labels[order])
    if not same(shuffled, term(student, teacher, labels)):
        raise Mistake("Its value changes when the images of the batch are shuffled.")
    apart = 4 * torch.eye(3, 6)[labels] + 0.1 * student
    kept, mixed = term(apart, apart, labels), term(student, apart, labels)
    if not kept < mixed:
        raise Mistake(
            f"A student that equals its teacher ({kept.item():.3g}) pays no less than one with "
            f"random features ({mixed.item():.3g}). Is the sign right?"
        )
