"""The losses against recorded values and another library, by hand, and at their limits.

Slow loops from their definitions, and what holds for every input, are in test_properties.py.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_up import on_circle
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning import losses as pml_losses

from csd_lib.losses import csd_loss, csd_loss_paper, fecd_loss, kd_loss, mmd_loss, triplet_loss
from csd_lib.numerics import unit_length

# Inputs, and the values and gradients that the published functions gave on them.
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
golden = pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
FEATURE_LOSSES = {
    "csd": lambda s, t, y: csd_loss(s, t, y),
    "paper": lambda s, t, y: csd_loss_paper(s, t, y),
    "triplet": lambda s, t, y: triplet_loss(s, y),
    "mmd": lambda s, t, y: mmd_loss(s, t),
    "fecd": lambda s, t, y: fecd_loss(s, t),
}
each_feature_loss = pytest.mark.parametrize("name", FEATURE_LOSSES)


def batch(n=12, dim=6, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(n, dim, generator=generator, dtype=dtype)
    teacher = student + 0.5 * torch.randn(n, dim, generator=generator, dtype=dtype)
    return student, teacher, torch.randint(classes, (n,), generator=generator)


def value_and_gradient(loss, x):
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    value.backward()
    return value.detach(), x.grad


# --- recorded values -------------------------------------------------------------------------


def test_there_are_recorded_values():
    assert len(GOLDEN) == 2


@golden
def test_csd_equals_the_published_function_in_value_and_gradient(path):
    z = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    value, gradient = value_and_gradient(
        lambda s: csd_loss(s, z["teacher"], z["labels"]), z["student"]
    )
    torch.testing.assert_close(value, z["csd"], rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, z["csd_grad"], rtol=1e-6, atol=1e-10)


@golden
def test_kd_equals_the_published_function_in_value_and_gradient(path):
    z = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    value, gradient = value_and_gradient(
        lambda s: kd_loss(s, z["teacher_logits"]), z["student_logits"]
    )
    torch.testing.assert_close(value, z["kd"], rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, z["kd_grad"], rtol=1e-6, atol=1e-10)


@golden
def test_triplet_equals_the_published_function_in_value_and_gradient(path):
    z = {k: torch.from_numpy(v) for k, v in np.load(path).items()}
    value, gradient = value_and_gradient(
        lambda s: triplet_loss(s, z["labels"]), z["student"].float()
    )
    torch.testing.assert_close(value, z["triplet"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, z["triplet_grad"], rtol=1e-3, atol=1e-6)


# --- by hand ---------------------------------------------------------------------------------


def test_the_pencil_example_of_notebook_3():
    s, t = on_circle(0, 60, 120, 180), on_circle(0, 0, 180, 180)
    labels = torch.tensor([0, 0, 1, 1])
    by_hand = {
        1: math.e + math.exp(-1) + 3 * math.exp(-2) + 2 * math.exp(2),  # seven terms of s_1
        2: 4 * math.e + 3 * math.exp(-1),  # and of s_2
    }
    anchor_1 = math.log(by_hand[1]) - 5 / 3
    anchor_2 = math.log(by_hand[2]) - 1
    assert csd_loss(s, t, labels, 0.5).item() == pytest.approx((anchor_1 + anchor_2) / 2)
    # Eq. 8: the own pair of t_1 stands in the numerator only, so its term is positive.
    below_1 = math.exp(0.5) + math.exp(-0.5) + math.exp(-1)
    below_2 = math.e + math.exp(-0.5) + math.exp(-1)
    assert 1 - math.log(below_1) > 0
    expected = (math.log(below_1) - 0.75 + math.log(below_2) - 0.75) / 2
    assert csd_loss_paper(s, t, labels).item() == pytest.approx(expected)


# --- another library -------------------------------------------------------------------------


def test_triplet_agrees_with_pytorch_metric_learning():
    features, _, labels = batch(n=24, dim=16, classes=4, dtype=torch.float32)
    miner = miners.BatchHardMiner(distance=distances.LpDistance())
    library = pml_losses.TripletMarginLoss(
        margin=1.0,
        distance=distances.CosineSimilarity(),
        reducer=reducers.AvgNonZeroReducer(),
    )
    theirs = value_and_gradient(lambda x: library(x, labels, miner(x, labels)), features)
    ours = value_and_gradient(lambda x: triplet_loss(x, labels), features)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_csd_agrees_with_supervised_contrastive_loss_over_student_and_teacher():
    """SupCon over the 2B features, reduced to the anchors that are students, is CSD."""
    student, teacher, labels = batch(n=16, dim=8, classes=4, dtype=torch.float32)
    library = pml_losses.SupConLoss(temperature=0.07, reducer=reducers.DoNothingReducer())
    both, twice = torch.cat([student, teacher]), labels.repeat(2)
    per_anchor = library(both, twice)["loss"]["losses"][: len(labels)]
    torch.testing.assert_close(
        csd_loss(student, teacher, labels), per_anchor.mean(), rtol=1e-4, atol=1e-5
    )


# --- properties ------------------------------------------------------------------------------


def test_kd_is_zero_for_a_perfect_student_and_has_no_temperature_factor():
    student, teacher, _ = batch(dim=5)
    assert kd_loss(student, student[:, :3]).item() == pytest.approx(0, abs=1e-12)
    # For large T the softmaxes flatten and KL falls like 1 / T^2; a factor T^2 would undo that.
    ratio = kd_loss(student, teacher, 200.0) / kd_loss(student, teacher, 100.0)
    assert ratio.item() == pytest.approx(0.25, rel=0.05)


def test_csd_uses_its_temperature_and_pulls_towards_the_own_teacher():
    student, teacher, labels = batch(n=4, classes=4, seed=3)
    labels = torch.arange(4)  # without classmates only the own teacher is a positive
    assert csd_loss(student, teacher, labels, 0.07) != csd_loss(student, teacher, labels, 0.1)
    _, gradient = value_and_gradient(lambda s: csd_loss(s, teacher, labels, 1.0), student)
    moved = csd_loss(student - 0.1 * gradient, teacher, labels, 1.0)
    assert moved < csd_loss(student, teacher, labels, 1.0)


# --- limits ----------------------------------------------------------------------------------

CASES = {
    "one image": (torch.ones(1, 4), torch.tensor([3])),
    "one class": (batch(n=6, dim=4)[0], torch.zeros(6, dtype=torch.int64)),
    "all classes differ": (batch(n=6, dim=4)[0], torch.arange(6)),
    "duplicates": (torch.ones(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])),
    "zero rows": (torch.zeros(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])),
    "opposite": (torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]), torch.tensor([0, 1, 0, 1])),
}


@each_feature_loss
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_value_and_gradient_are_finite_in_every_case(name, case, dtype):
    features, labels = CASES[case]
    features = features.to(dtype)
    loss = FEATURE_LOSSES[name]
    value, gradient = value_and_gradient(lambda x: loss(x, features, labels), features)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_the_triplet_loss_of_a_single_anchor_is_shared_with_nobody():
    """Only the first image is nearer to another class (20 degrees away) than to its own (30)."""
    expected = math.cos(math.radians(20)) - math.cos(math.radians(30))
    loss = triplet_loss(on_circle(0, 30, -20), torch.tensor([0, 0, 1]), margin=0.0)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@each_feature_loss
def test_shapes_are_fixed_so_that_a_graph_can_be_captured(name):
    """On the meta device there are no values, so asking for one would fail."""
    features = torch.empty(16, 8, device="meta")
    labels = torch.empty(16, dtype=torch.int64, device="meta")
    assert FEATURE_LOSSES[name](features, features, labels).shape == ()
    assert kd_loss(features, features[:, :3]).shape == ()


def test_unit_length():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e20, 4e20], [3e-30, 4e-30]])
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    torch.testing.assert_close(unit_length(x), expected)
    torch.testing.assert_close(unit_length(x[:1]), F.normalize(x[:1]))


# --- MMD and FECD ----------------------------------------------------------------------------


def test_mmd_of_a_batch_that_has_nearly_collapsed_is_no_rounding_error():
    noise = 1e-6 * torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    student, teacher = (1 + noise).split(32)
    assert mmd_loss(student, teacher).item() == pytest.approx(
        mmd_loss(student.double(), teacher.double()).item(), abs=1e-3
    )


@each_feature_loss
def test_a_loss_is_the_same_inside_the_users_autocast(name):
    """There, products would be rounded to 16 bits, and FECD's gradient be 89 % off."""
    student, teacher, labels = batch(dtype=torch.float32)

    def loss(features, mixed):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return FEATURE_LOSSES[name](features, teacher, labels)

    outside, inside = (
        value_and_gradient(lambda features, mixed=mixed: loss(features, mixed), student)
        for mixed in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))
