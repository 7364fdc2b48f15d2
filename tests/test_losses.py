import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.losses import SupConLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import AvgNonZeroReducer, MeanReducer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from csd_lib.losses import (
    cross_entropy,
    csd_loss,
    csd_loss_paper,
    kd_loss,
    triplet_loss,
    unit_length,
)

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)


def draw_batch(seed, batch=9, size=4, classes=3):
    """Float64 student, teacher and labels at a generic point: no ties, some singletons."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    teacher = torch.randn(batch, size, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (batch,), generator=generator)


def value_and_grad(loss, x, *args):
    x = x.detach().clone().requires_grad_()
    value = loss(x, *args)
    return value.detach(), torch.autograd.grad(value, x)[0]


# -- Values recorded from the published functions ------------------------------------------------


@pytest.fixture(params=["case0", "case3"])
def golden(request):
    """Inputs and the values recorded from the published functions on them."""
    with np.load(Path(__file__).parent / "golden" / f"{request.param}.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def test_csd_value_and_gradient_equal_the_published_ones(golden):
    value, grad = value_and_grad(csd_loss, golden["student"], golden["teacher"], golden["labels"])
    assert_close(value, golden["csd"], rtol=1e-9, atol=0)
    assert_close(grad, golden["csd_grad"], rtol=1e-7, atol=1e-10)


def test_kd_value_and_gradient_equal_the_published_ones(golden):
    value, grad = value_and_grad(kd_loss, golden["student_logits"], golden["teacher_logits"])
    assert_close(value, golden["kd"], rtol=1e-9, atol=0)
    assert_close(grad, golden["kd_grad"], rtol=1e-7, atol=1e-10)


def test_triplet_value_and_gradient_equal_the_published_ones(golden):
    value, grad = value_and_grad(triplet_loss, golden["student"].float(), golden["labels"])
    assert_close(value, golden["triplet"], rtol=1e-5, atol=0)
    assert_close(grad, golden["triplet_grad"], rtol=1e-4, atol=1e-7)


# -- Slow double loops in plain Python, written from the definitions -----------------------------


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def slow_csd(student, teacher, labels, temperature):
    student, teacher, labels = student.tolist(), teacher.tolist(), labels.tolist()
    total = 0.0
    for i, anchor in enumerate(student):
        others = [(s, labels[j]) for j, s in enumerate(student) if j != i]
        others += list(zip(teacher, labels, strict=True))
        scores = [cosine(anchor, feature) / temperature for feature, _ in others]
        below = math.log(math.fsum(math.exp(score) for score in scores))
        terms = [
            below - score
            for score, (_, label) in zip(scores, others, strict=True)
            if label == labels[i]
        ]
        total += sum(terms) / len(terms)
    return total / len(student)


def slow_csd_paper(student, teacher, labels):
    student, teacher, labels = student.tolist(), teacher.tolist(), labels.tolist()
    total = 0.0
    for i, anchor in enumerate(teacher):
        below = sum(math.exp(cosine(anchor, s)) for a, s in enumerate(student) if a != i)
        positives = [p for p in range(len(labels)) if labels[p] == labels[i]]  # holds i
        terms = [math.log(math.exp(cosine(anchor, student[p])) / below) for p in positives]
        total -= sum(terms) / len(positives)
    return total / len(student)


def slow_triplet(features, labels, margin):
    features, labels = features.tolist(), labels.tolist()
    losses = []
    for i, anchor in enumerate(features):
        positives, negatives = [], []
        for j, other in enumerate(features):
            if j != i:
                (positives if labels[j] == labels[i] else negatives).append(cosine(anchor, other))
        if positives and negatives:
            losses.append(max(0.0, max(negatives) - min(positives) + margin))
    losses = [loss for loss in losses if loss > 0]
    return sum(losses) / len(losses) if losses else 0.0


def slow_kd(student_logits, teacher_logits, temperature):
    total = 0.0
    for student, teacher in zip(student_logits.tolist(), teacher_logits.tolist(), strict=True):
        p = [math.exp(z / temperature) for z in teacher]
        q = [math.exp(z / temperature) for z in student[: len(teacher)]]
        for p_c, q_c in zip(p, q, strict=True):
            total += p_c / sum(p) * math.log((p_c / sum(p)) / (q_c / sum(q)))
    return total / len(student_logits)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.07, 0.5, 3.0])
def test_csd_equals_the_double_loop(seed, temperature):
    batch = draw_batch(seed)
    assert csd_loss(*batch, temperature).item() == pytest.approx(slow_csd(*batch, temperature))


@pytest.mark.parametrize("seed", range(4))
def test_paper_form_equals_the_double_loop(seed):
    batch = draw_batch(seed)
    assert csd_loss_paper(*batch).item() == pytest.approx(slow_csd_paper(*batch))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [1.0, 0.1, -0.5])
def test_triplet_equals_the_double_loop(seed, margin):
    """Small margins make some losses zero, and those must not count in the mean."""
    features, _, labels = draw_batch(seed, classes=5)
    expected = slow_triplet(features, labels, margin)
    assert triplet_loss(features, labels, margin).item() == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_kd_equals_the_double_loop(temperature, generator):
    student = 3 * torch.randn(6, 7, generator=generator, dtype=torch.float64)
    teacher = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    expected = slow_kd(student, teacher, temperature)
    assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected)


def test_defaults_are_those_of_the_published_code():
    student, teacher, labels = draw_batch(0)
    default = csd_loss(student, teacher, labels).item()
    assert default == pytest.approx(slow_csd(student, teacher, labels, 0.07))
    assert triplet_loss(student, labels).item() == pytest.approx(slow_triplet(student, labels, 1))
    assert kd_loss(student, teacher).item() == pytest.approx(slow_kd(student, teacher, 2.0))


def test_cross_entropy_is_the_one_with_zero_weight_on_old_classes(generator):
    """The published code gives old classes weight 0; with new labels only, that is plain CE."""
    logits = torch.randn(8, 6, generator=generator)
    labels = torch.randint(4, 6, (8,), generator=generator)
    weight = torch.tensor([0.0, 0, 0, 0, 1, 1])
    assert_close(cross_entropy(logits, labels), F.cross_entropy(logits, labels, weight=weight))
    by_hand = [torch.logsumexp(z, 0) - z[y] for z, y in zip(logits, labels, strict=True)]
    assert_close(cross_entropy(logits, labels), torch.stack(by_hand).mean())


# -- An independent library ----------------------------------------------------------------------


@pytest.mark.parametrize("margin", [1.0, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_triplet_agrees_with_pytorch_metric_learning(seed, margin):
    features, _, labels = draw_batch(seed, batch=24, size=6, classes=6)

    def theirs(x):
        triplets = BatchHardMiner(distance=CosineSimilarity())(x, labels)
        loss = TripletMarginLoss(
            margin=margin, distance=CosineSimilarity(), reducer=AvgNonZeroReducer()
        )
        return loss(x, labels, triplets)

    ours = value_and_grad(triplet_loss, features, labels, margin)
    assert_close(ours, value_and_grad(theirs, features))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_csd_agrees_with_supcon_of_pytorch_metric_learning(seed, temperature):
    """CSD is SupCon with students and teachers as the references, less the anchor itself."""
    student, teacher, labels = draw_batch(seed, batch=24, size=6, classes=6)
    references = labels.repeat(2)
    same = labels[:, None] == references[None]
    not_itself = ~torch.eye(24, 48, dtype=torch.bool)
    pairs = (*torch.where(same & not_itself), *torch.where(~same))

    def theirs(x):
        loss = SupConLoss(temperature=temperature, reducer=MeanReducer())
        contrast = torch.cat([x, teacher])
        return loss(x, labels, pairs, ref_emb=contrast, ref_labels=references)

    ours = value_and_grad(csd_loss, student, teacher, labels, temperature)
    assert_close(ours, value_and_grad(theirs, student))


# -- Finite values and gradients for every batch -------------------------------------------------


def hard_batch(case):
    """Student, teacher and labels that break careless implementations."""
    student, teacher, labels = draw_batch(7, batch=6)
    if case == "one image":
        student, teacher, labels = student[:1], teacher[:1], labels[:1]
    elif case == "one class":
        labels = torch.zeros_like(labels)
    elif case == "all distinct":
        labels = torch.arange(6)
    elif case == "duplicates":
        student, teacher = student[:1].repeat(6, 1), student[:1].repeat(6, 1)
    elif case == "zero rows":
        student[::2], teacher[1::3] = 0.0, 0.0
    elif case == "all zero":
        student, teacher = torch.zeros_like(student), torch.zeros_like(teacher)
    elif case == "opposite":
        teacher = -student
    elif case == "1e-20":
        student, teacher = 1e-20 * student, 1e-20 * teacher
    elif case == "1e20":
        student, teacher = 1e20 * student, 1e20 * teacher
    elif case == "mixed sizes":
        student[::2], student[1::2] = 1e-20 * student[::2], 1e20 * student[1::2]
    return student, teacher, labels


DEGENERATE = ("one image", "one class", "all distinct", "duplicates", "zero rows", "all zero")
CASES = [
    *itertools.product((*DEGENERATE, "opposite"), DTYPES),
    *itertools.product(("1e-20", "1e20", "mixed sizes"), (torch.float32, torch.float64)),
]


def assert_finite(loss, x, *args):
    value, grad = value_and_grad(loss, x, *args)
    assert value.isfinite(), f"value {value}"
    assert grad.isfinite().all(), f"gradient {grad}"
    assert value.dtype == (torch.float32 if x.dtype in HALF else x.dtype)
    assert grad.dtype == x.dtype


@pytest.mark.parametrize("temperature", [1e-3, 0.07, 1e3])
@pytest.mark.parametrize("case, dtype", CASES)
def test_csd_and_its_gradient_are_finite(case, dtype, temperature):
    student, teacher, labels = hard_batch(case)
    assert_finite(csd_loss, student.to(dtype), teacher.to(dtype), labels, temperature)


@pytest.mark.parametrize("case, dtype", CASES)
def test_paper_form_and_its_gradient_are_finite(case, dtype):
    student, teacher, labels = hard_batch(case)
    assert_finite(csd_loss_paper, student.to(dtype), teacher.to(dtype), labels)


@pytest.mark.parametrize("case, dtype", CASES)
def test_triplet_and_its_gradient_are_finite(case, dtype):
    student, _, labels = hard_batch(case)
    assert_finite(triplet_loss, student.to(dtype), labels)


@pytest.mark.parametrize("temperature", [1e-3, 2.0, 1e3])
@pytest.mark.parametrize("case, dtype", CASES)
def test_kd_and_its_gradient_are_finite(case, dtype, temperature):
    student, teacher, _ = hard_batch(case)
    assert_finite(kd_loss, student.to(dtype), teacher[:, :3].to(dtype), temperature)


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_float32(dtype):
    """Not merely cast at the end: that would lose most of the digits."""
    student, teacher, labels = draw_batch(0)
    student, teacher = student.to(dtype), teacher.to(dtype)
    wide = student.float(), teacher.float()
    assert_close(csd_loss(student, teacher, labels), csd_loss(*wide, labels), rtol=0, atol=0)
    assert_close(kd_loss(student, teacher), kd_loss(*wide), rtol=0, atol=0)
    assert_close(triplet_loss(student, labels), triplet_loss(wide[0], labels), rtol=0, atol=0)


@pytest.mark.parametrize("case", ["one image", "one class", "all distinct"])
def test_triplet_is_zero_with_zero_gradient_without_any_triplet(case):
    student, _, labels = hard_batch(case)
    value, grad = value_and_grad(triplet_loss, student, labels)
    assert value == 0 and (grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_unit_length_is_exact_at_every_size_and_keeps_zeros(size, dtype):
    rows = size * torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.0, 2.0]], dtype=dtype)
    expected = torch.tensor([[0.6, -0.8], [0.0, 0.0], [0.0, 1.0]], dtype=dtype)
    assert_close(unit_length(rows), expected)


# -- Symmetries ----------------------------------------------------------------------------------

BATCH_LOSSES = [
    pytest.param(csd_loss, id="csd"),
    pytest.param(csd_loss_paper, id="csd_paper"),
    pytest.param(lambda s, t, y: triplet_loss(s, y), id="triplet"),
]


@pytest.mark.parametrize("loss", BATCH_LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_batch_does_not_matter(loss, seed):
    student, teacher, labels = draw_batch(seed)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    value, grad = value_and_grad(loss, student, teacher, labels)
    shuffled = value_and_grad(loss, student[order], teacher[order], labels[order])
    assert_close(shuffled, (value, grad[order]))


def test_kd_does_not_depend_on_the_order_of_the_batch_or_of_the_old_classes(generator):
    student, teacher, _ = draw_batch(0, size=5)
    rows, columns = torch.randperm(9, generator=generator), torch.tensor([3, 1, 4, 0, 2])
    expected = kd_loss(student, teacher)
    assert_close(kd_loss(student[rows], teacher[rows]), expected)
    assert_close(kd_loss(student[:, columns], teacher[:, columns]), expected)


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_names_of_the_labels_do_not_matter(loss):
    student, teacher, labels = draw_batch(1)
    renamed = torch.tensor([90, -4, 10**12])[labels]
    assert loss(student, teacher, renamed) == loss(student, teacher, labels)


@pytest.mark.parametrize("loss", BATCH_LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_length_of_each_feature_does_not_matter(loss, seed):
    """Each row gets its own factor, and the gradient is orthogonal to the feature."""
    student, teacher, labels = draw_batch(seed)
    factors = torch.logspace(-3, 3, len(labels), dtype=torch.float64)[:, None]
    value, grad = value_and_grad(loss, student, teacher, labels)
    assert_close(loss(student * factors, teacher * factors.flip(0), labels), value)
    assert_close((grad * student).sum(1), torch.zeros(len(labels), dtype=torch.float64))


@pytest.mark.parametrize("loss", BATCH_LOSSES)
def test_rotation_of_student_and_teacher_together_does_not_matter(loss, generator):
    student, teacher, labels = draw_batch(2)
    square = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q
    assert_close(loss(student @ rotation, teacher @ rotation, labels), loss(*draw_batch(2)))


# -- Gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(csd_loss, id="csd"),
        pytest.param(csd_loss_paper, id="csd_paper"),
        pytest.param(lambda s, t, y: kd_loss(s, t), id="kd"),
    ],
)
def test_no_gradient_reaches_the_teacher(loss):
    student, teacher, labels = draw_batch(0)
    student.requires_grad_(), teacher.requires_grad_()
    loss(student, teacher, labels).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(lambda s, t, y: csd_loss(s, t, y, 0.07), id="csd T=0.07"),
        pytest.param(lambda s, t, y: csd_loss(s, t, y, 1.0), id="csd T=1"),
        pytest.param(csd_loss_paper, id="csd_paper"),
        pytest.param(lambda s, t, y: triplet_loss(s, y), id="triplet"),
        pytest.param(lambda s, t, y: triplet_loss(s, y, 0.1), id="triplet margin 0.1"),
        pytest.param(lambda s, t, y: kd_loss(s, t[:, :3]), id="kd"),
        pytest.param(lambda s, t, y: cross_entropy(s, y), id="ce"),
    ],
)
def test_gradient_equals_finite_differences(loss, seed):
    student, teacher, labels = draw_batch(seed, batch=7)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), student.requires_grad_())


def test_csd_has_no_gradient_along_the_mean_of_duplicated_images():
    """Student equal to teacher and one class: every similarity is 1 already, nothing to gain."""
    student = torch.tensor([[1.0, 2.0]], dtype=torch.float64).repeat(5, 1)
    _, grad = value_and_grad(csd_loss, student, student, torch.zeros(5, dtype=torch.int64))
    assert_close(grad, torch.zeros_like(grad))


# -- Knowledge distillation ----------------------------------------------------------------------


def test_kd_ignores_the_logits_of_new_classes(generator):
    student, teacher, _ = draw_batch(0, size=7)
    teacher, changed = teacher[:, :4], student.clone()
    changed[:, 4:] = 50 * torch.randn(9, 3, generator=generator, dtype=torch.float64)
    value, grad = value_and_grad(kd_loss, student, teacher)
    assert kd_loss(changed, teacher) == value
    assert (grad[:, 4:] == 0).all() and (grad[:, :4] != 0).all()


def test_kd_has_no_factor_of_temperature_squared():
    """Two classes, by hand: KL between (4/5, 1/5) and (1/2, 1/2) at every temperature."""
    expected = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    for temperature in (1.0, 2.0, 4.0):
        teacher = torch.tensor([[temperature * math.log(4), 0.0]], dtype=torch.float64)
        value = kd_loss(torch.zeros(1, 2, dtype=torch.float64), teacher, temperature)
        assert value.item() == pytest.approx(expected)


def test_kd_is_divided_by_the_batch_and_not_by_the_classes():
    student, teacher, _ = draw_batch(0)
    rows = [kd_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(9)]
    assert_close(kd_loss(student, teacher), torch.stack(rows).mean())


def test_kd_is_zero_if_student_equals_teacher_on_old_classes_and_positive_otherwise():
    student, teacher, _ = draw_batch(0)
    shifted = student[:, :3] + 5.0  # a softmax does not notice a constant
    assert kd_loss(student, shifted).item() == pytest.approx(0, abs=1e-12)
    assert kd_loss(student, teacher) > 0.01


# -- CSD -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1e-3, 0.07, 1e3])
def test_csd_is_never_negative(temperature):
    values = [csd_loss(*draw_batch(seed), temperature).item() for seed in range(20)]
    assert min(values) >= 0


def test_csd_of_a_single_image_is_zero():
    """Its own teacher is all that it is contrasted with."""
    student, teacher, labels = draw_batch(0)
    assert csd_loss(student[:1], teacher[:1], labels[:1]) == 0
    assert csd_loss_paper(student[:1], teacher[:1], labels[:1]) == 0


def test_csd_of_indistinguishable_images_is_the_logarithm_of_the_contrast_set():
    """2B - 1 equal candidates: chance level."""
    same = torch.ones(6, 3, dtype=torch.float64)
    value = csd_loss(same, same, torch.arange(6) % 2)
    assert value.item() == pytest.approx(math.log(11))


def test_csd_pulls_a_student_towards_its_own_teacher():
    student, teacher, labels = draw_batch(0)
    _, grad = value_and_grad(csd_loss, student, teacher, torch.arange(len(labels)))
    moved = student - 0.01 * grad
    assert F.cosine_similarity(moved, teacher).mean() > F.cosine_similarity(student, teacher).mean()


def on_circle(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


@pytest.fixture
def by_hand():
    """Four images on a circle, labels A A B B, small enough for pen and paper."""
    return on_circle(0, 60, 120, 180), on_circle(0, 0, 180, 180), torch.tensor([0, 0, 1, 1])


def test_csd_of_the_example_by_hand(by_hand):
    """Anchor 1 has cosines 0.5, -0.5, -1 to students and 1, 1, -1, -1 to teachers; T = 0.5."""
    e = math.exp
    first = math.log(e(1) + e(-1) + e(-2) + 2 * e(2) + 2 * e(-2)) - (1 + 2 + 2) / 3
    second = math.log(2 * e(1) + e(1) + e(-1) + 2 * e(-1)) - 1  # all its positives are at 60 deg
    expected = (first + second) / 2  # anchors 3 and 4 mirror 2 and 1
    assert csd_loss(*by_hand, temperature=0.5).item() == pytest.approx(expected)
    assert expected == pytest.approx(1.3610, abs=5e-5)


def test_paper_form_of_the_example_by_hand_has_the_own_pair_above_the_line_only(by_hand):
    """The own pair of anchor 1 counts +0.0356: its ratio is above 1, so no probability."""
    e = math.exp
    below_1, below_2 = e(0.5) + e(-0.5) + e(-1), e(1) + e(-0.5) + e(-1)
    own_1, other_1 = 1 - math.log(below_1), 0.5 - math.log(below_1)
    other_2, own_2 = 1 - math.log(below_2), 0.5 - math.log(below_2)
    assert own_1 == pytest.approx(0.0356, abs=5e-5)
    expected = -((own_1 + other_1) / 2 + (own_2 + other_2) / 2) / 2
    assert csd_loss_paper(*by_hand).item() == pytest.approx(expected)
    assert expected == pytest.approx(0.385, abs=5e-4)


def test_paper_form_can_be_negative_and_the_published_form_cannot():
    """Two images at opposite ends, each on its teacher: 1 above the line, exp(-1) below."""
    apart, labels = on_circle(0, 180), torch.tensor([0, 1])
    assert csd_loss_paper(apart, apart, labels).item() == pytest.approx(-2)
    assert csd_loss(apart, apart, labels) >= 0


# -- No question to the device -------------------------------------------------------------------


def all_losses(student, teacher, labels):
    return (
        csd_loss(student, teacher, labels),
        csd_loss_paper(student, teacher, labels),
        triplet_loss(student, labels),
        kd_loss(student, teacher),
        cross_entropy(student, labels),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_losses_and_gradients_need_no_value_from_the_device(dtype):
    """The meta device has shapes but no values, so any question to it raises an error."""
    student = torch.empty(16, 8, device="meta", dtype=dtype, requires_grad=True)
    teacher = torch.empty(16, 8, device="meta", dtype=dtype)
    labels = torch.empty(16, device="meta", dtype=torch.int64)
    losses = all_losses(student, teacher, labels)
    sum(losses).backward()
    assert all(loss.shape == () for loss in losses)
    assert student.grad.shape == student.shape


def test_losses_and_gradients_have_shapes_that_do_not_depend_on_data():
    """Fake tensors refuse masks as indices, nonzero and item, none of which a graph can hold."""
    with FakeTensorMode():
        student = torch.empty(16, 8, requires_grad=True)
        losses = all_losses(student, torch.empty(16, 8), torch.zeros(16, dtype=torch.int64))
        sum(losses).backward()
        assert all(loss.shape == () for loss in losses)
        assert student.grad.shape == student.shape
