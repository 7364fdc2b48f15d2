"""The losses as pytorch-metric-learning's: the same numbers, its reducers, its mistakes named."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners, reducers
from pytorch_metric_learning.distances import LpDistance
from test_losses import golden, value_and_gradient

from csd_lib import InputError, losses
from csd_lib.integrations.metric_learning import CSDLoss, FECDLoss, KDLoss, MMDLoss

ROOT = Path(__file__).resolve().parent.parent.parent


def batch(n=128, dim=64, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, n, dim, generator=generator)
    return student, teacher, torch.randint(classes, (n,), generator=generator)


def supcon_over_student_and_teacher(student, teacher, labels):
    """Their SupConLoss, given all pairs but each image with itself."""
    library = pml_losses.SupConLoss(temperature=0.07, reducer=reducers.MeanReducer())
    twice = labels.repeat(2)
    same = labels[:, None] == twice
    pairs = ~torch.eye(*same.shape, dtype=torch.bool)
    indices = (*torch.where(same & pairs), *torch.where(~same))
    both = torch.cat([student, teacher])
    return library(student, labels, indices, ref_emb=both, ref_labels=twice)


@pytest.mark.parametrize("seed", range(5))
def test_csd_is_their_supcon_loss_over_student_and_teacher(seed):
    student, teacher, labels = batch(seed=seed)
    theirs = value_and_gradient(
        lambda s: supcon_over_student_and_teacher(s, teacher, labels), student
    )
    ours = value_and_gradient(lambda s: CSDLoss()(s, labels, ref_emb=teacher), student)
    assert abs(ours[0] - theirs[0]) <= 2e-6  # of about 5: four steps of float32
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-8)


def test_in_a_batch_of_one_class_theirs_is_zero_and_ours_is_not():
    student, teacher, labels = batch(classes=1)
    assert supcon_over_student_and_teacher(student, teacher, labels) == 0
    assert CSDLoss()(student, labels, ref_emb=teacher) > 1


@golden
@pytest.mark.parametrize("name", ["csd", "kd"])
def test_recorded_values_of_the_published_functions(path, name):
    z = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    if name == "csd":
        call, x = lambda s: CSDLoss()(s, z["labels"], ref_emb=z["teacher"]), z["student"]
    else:
        call, x = lambda s: KDLoss()(s, ref_emb=z["teacher_logits"]), z["student_logits"]
    value, gradient = value_and_gradient(call, x)
    torch.testing.assert_close(value, z[name], rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, z[f"{name}_grad"], rtol=1e-6, atol=1e-10)


STUDENT, TEACHER, LABELS = batch(n=24, dim=8, classes=4)
# What each computes when its constant is not the default.
EACH = {
    "csd": (CSDLoss(0.2), lambda s, t: losses.csd_loss(s, t, LABELS, 0.2)),
    "kd": (KDLoss(3.0), lambda s, t: losses.kd_loss(s, t, 3.0)),
    "mmd": (MMDLoss(), losses.mmd_loss),
    "fecd": (FECDLoss(2.0), lambda s, t: losses.fecd_loss(s, t, 2.0)),
}


@pytest.mark.parametrize("name", EACH)
def test_each_equals_the_librarys_own_loss_in_value_and_gradient(name):
    theirs, ours = EACH[name]
    found = value_and_gradient(lambda s: theirs(s, LABELS, ref_emb=TEACHER), STUDENT)
    torch.testing.assert_close(found, value_and_gradient(lambda s: ours(s, TEACHER), STUDENT))
    taught = TEACHER.clone().requires_grad_()
    theirs(STUDENT.clone().requires_grad_(), LABELS, ref_emb=taught).backward()
    assert taught.grad is None


@pytest.mark.parametrize("loss", [CSDLoss, KDLoss, FECDLoss])
def test_reducers_get_one_value_an_image(loss):
    call = lambda reducer: loss(reducer=reducer)(STUDENT, LABELS, ref_emb=TEACHER)  # noqa: E731
    values = call(reducers.DoNothingReducer())["loss"]["losses"]
    assert values.shape == LABELS.shape and values.std() > 0
    weights = torch.arange(4.0)
    weighted = call(reducers.ClassWeightedReducer(weights))
    torch.testing.assert_close(weighted, (values * weights[LABELS]).mean())
    torch.testing.assert_close(call(None), values.mean())


def test_mmd_has_one_value_for_the_batch_whatever_the_reducer():
    plain = MMDLoss()(STUDENT, ref_emb=TEACHER)
    weighted = MMDLoss(reducer=reducers.ClassWeightedReducer(torch.arange(4.0)))
    assert weighted(STUDENT, LABELS, ref_emb=TEACHER) == plain


def test_the_logits_of_one_of_their_losses_can_be_distilled():
    head = pml_losses.NormalizedSoftmaxLoss(num_classes=4, embedding_size=8)
    logits = head.get_logits(STUDENT)
    expected = losses.kd_loss(logits, head.get_logits(TEACHER))
    torch.testing.assert_close(KDLoss()(logits, ref_emb=head.get_logits(TEACHER)), expected)


@pytest.mark.parametrize(
    "call, named",
    {
        "no teacher": (lambda: CSDLoss()(STUDENT, LABELS), "ref_emb"),
        "no labels": (lambda: CSDLoss()(STUDENT, ref_emb=TEACHER), "labels"),
        "mined pairs": (
            lambda: CSDLoss()(STUDENT, LABELS, miners.BatchHardMiner()(STUDENT, LABELS), TEACHER),
            "indices_tuple",
        ),
        "other images": (
            lambda: CSDLoss()(STUDENT, LABELS, ref_emb=TEACHER, ref_labels=LABELS.flip(0)),
            "ref_labels",
        ),
        "another distance": (lambda: MMDLoss(distance=LpDistance()), "distance"),
        "another batch": (lambda: FECDLoss()(STUDENT, LABELS, ref_emb=TEACHER[:5]), "teacher"),
        "a temperature of zero": (
            lambda: KDLoss(0.0)(STUDENT, LABELS, ref_emb=TEACHER),
            "temperature",
        ),
    }.values(),
)
def test_a_mistake_is_named(call, named):
    with pytest.raises(InputError, match=named):
        call()


def test_the_example_in_the_docs():
    text = (ROOT / "docs" / "integrations.md").read_text()
    (section,) = (s for s in text.split("\n## ") if s.startswith("pytorch-metric-learning"))
    test = doctest.DocTestParser().get_doctest(section, {}, "integrations.md", None, None)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0
