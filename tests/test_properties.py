"""What the definitions promise for every input, tried on a hundred inputs that nobody chose.

The other files hold fixed examples. Here hypothesis draws the inputs, always the same ones, and
shrinks what fails. ``CSD_EXAMPLES=5000`` looks at more of them.
"""

import math
import os
import tempfile
import warnings
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from pathlib import Path

import limits
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from csd_lib import InputError, identity, retrieval
from csd_lib.config import TrainConfig
from csd_lib.data import (
    Dataset,
    Task,
    augment,
    class_incremental_split,
    class_order_from_seed,
    hold_out,
    merge_tasks,
)
from csd_lib.drift import best_rotation, cosine_drift, linear_cka, neighborhood_overlap
from csd_lib.experiment import run_name
from csd_lib.files import read_json, write_json
from csd_lib.losses import (
    cross_entropy,
    csd_loss,
    csd_loss_paper,
    fecd_loss,
    kd_loss,
    mmd_loss,
    triplet_loss,
)
from csd_lib.methods import METHODS, TERMS, LossSettings, get_method
from csd_lib.numerics import unit_length
from csd_lib.retrieval import (
    average,
    backward_transfer,
    forgetting,
    recall_at_k,
    wrong_before_right,
)
from csd_lib.train import learning_rate

prop = settings(
    max_examples=int(os.environ.get("CSD_EXAMPLES", 100)),
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is not a broken test
)


# --- what is drawn -----------------------------------------------------------------------------


def numbers(count):
    """Whole numbers from -32768 to 32767. One string of bytes is drawn and shrunk fastest."""
    drawn = st.binary(min_size=2 * count, max_size=2 * count)
    return drawn.map(lambda content: np.frombuffer(content, np.int16).astype(np.int64))


def orders(count):
    return numbers(count).map(lambda keys: torch.from_numpy(np.argsort(keys, kind="stable")))


def labels_of(count, classes):
    return numbers(count).map(lambda drawn: torch.from_numpy(drawn % classes))


@st.composite
def features_of(draw, images, dim):
    """Either -1, 0 and 1 only, where zeros and ties abound, or any numbers; some rows repeat."""
    different = draw(st.integers(1, images))
    values = draw(numbers(different * dim)).reshape(different, dim)
    values = values % 3 - 1 if draw(st.booleans()) else values / 1000
    return torch.from_numpy(values[np.arange(images) % different]).double()


@st.composite
def powers_of_ten(draw, count):
    """Positive factors ``[count, 1]`` from 1e-20 to 1e20."""
    return torch.from_numpy(10.0 ** (draw(numbers(count)) % 41 - 20))[:, None]


@dataclass(frozen=True)
class Case:
    """One batch and the settings, for any of the losses. Cross entropy and KD take the features
    for logits, KD the first ``old`` of the teacher's.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    temperature: float
    margin: float
    old: int

    def scaled(self, student_lengths, teacher_lengths):
        student, teacher = self.student * student_lengths, self.teacher * teacher_lengths
        return replace(self, student=student, teacher=teacher)

    def to(self, dtype):
        return replace(self, student=self.student.to(dtype), teacher=self.teacher.to(dtype))


@st.composite
def cases(draw, most=24):
    images, dim = draw(st.integers(1, most)), draw(st.integers(1, 8))
    student = draw(features_of(images, dim))
    perfect = draw(st.integers(0, 3)) == 3
    return Case(
        student=student,
        teacher=student.clone() if perfect else draw(features_of(images, dim)),
        labels=draw(labels_of(images, draw(st.integers(1, images)))),
        temperature=10 ** (draw(st.integers(-13, 10)) / 10),
        # Mostly odd ones: with whole margins, features of -1, 0 and 1 give losses of exactly 0.
        margin=draw(st.sampled_from([0.137, 0.593, 1.219, 0.0, 1.0])),
        old=draw(st.integers(1, dim)),
    )


LOSSES = {
    "cross entropy": lambda c: cross_entropy(c.student, c.labels % c.student.shape[1]),
    "triplet": lambda c: triplet_loss(c.student, c.labels, c.margin),
    "kd": lambda c: kd_loss(c.student, c.teacher[:, : c.old], c.temperature),
    "csd": lambda c: csd_loss(c.student, c.teacher, c.labels, c.temperature),
    "csd of the paper": lambda c: csd_loss_paper(c.student, c.teacher, c.labels),
    "mmd": lambda c: mmd_loss(c.student, c.teacher),
    "fecd": lambda c: fecd_loss(c.student, c.teacher, c.temperature),
}
OF_LOGITS = ("cross entropy", "kd")
OF_FEATURES = tuple(name for name in LOSSES if name not in OF_LOGITS)
each_loss = pytest.mark.parametrize("name", LOSSES)


def value_and_gradient(name, case):
    student = case.student.clone().requires_grad_()
    value = LOSSES[name](replace(case, student=student))
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def assert_close(found, expected, name, rtol=1e-8, atol=1e-8):
    torch.testing.assert_close(
        found, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}"
    )


# --- losses: slow loops from the definitions -----------------------------------------------------


def unit_rows(features):
    return [[x / (math.hypot(*row) or 1.0) for x in row] for row in features.tolist()]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean(values):
    return math.fsum(values) / len(values)


def log_of_sum(exponents):
    top = max(exponents)
    return top + math.log(math.fsum(math.exp(x - top) for x in exponents))


def divergence(teacher, student):
    """KL(teacher || student) between the softmaxes of two lists."""
    q = [x - log_of_sum(teacher) for x in teacher]
    p = [x - log_of_sum(student) for x in student]
    return math.fsum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))


def slow_cross_entropy(c):
    rows = zip(c.student.tolist(), (c.labels % c.student.shape[1]).tolist(), strict=True)
    return mean([log_of_sum(row) - row[label] for row, label in rows])


def triplet_terms(c):
    """For each anchor that has both: similarities to its positives, and to its negatives."""
    unit, y = np.array(unit_rows(c.student)), c.labels.tolist()
    cosines, terms = (unit @ unit.T).tolist(), []
    for i in range(len(y)):
        positives = [cosines[i][j] for j in range(len(y)) if j != i and y[j] == y[i]]
        negatives = [cosines[i][j] for j in range(len(y)) if y[j] != y[i]]
        if positives and negatives:
            terms.append((sorted(positives), sorted(negatives, reverse=True)))
    return terms


def hinges(c):
    return [neg[0] - pos[0] + c.margin for pos, neg in triplet_terms(c)]


def counts_by_rounding(c):
    """Whether a triplet's loss is 0 but for rounding, which decides if the mean counts it."""
    return any(abs(hinge) < 1e-9 for hinge in hinges(c))


def slow_triplet(c):
    active = [hinge for hinge in hinges(c) if hinge > 0]
    return mean(active) if active else 0.0


def slow_kd(c):
    logits = zip(c.teacher[:, : c.old].tolist(), c.student[:, : c.old].tolist(), strict=True)
    return mean(
        [divergence(*([z / c.temperature for z in row] for row in pair)) for pair in logits]
    )


def slow_csd(c):
    s, t, y = unit_rows(c.student), unit_rows(c.teacher), c.labels.tolist()
    anchors = []
    for i in range(len(y)):
        others = [(dot(s[i], s[a]), y[a]) for a in range(len(y)) if a != i]
        others += [(dot(s[i], t[a]), y[a]) for a in range(len(y))]
        below = log_of_sum([cosine / c.temperature for cosine, _ in others])
        anchors.append(
            mean([below - cos / c.temperature for cos, label in others if label == y[i]])
        )
    return mean(anchors)


def slow_paper(c):
    s, t, y = unit_rows(c.student), unit_rows(c.teacher), c.labels.tolist()
    if len(y) == 1:
        return 0.0
    anchors = []
    for i in range(len(y)):
        below = log_of_sum([dot(t[i], s[a]) for a in range(len(y)) if a != i])
        anchors.append(mean([below - dot(t[i], s[p]) for p in range(len(y)) if y[p] == y[i]]))
    return mean(anchors)


def squared_distances(c):
    both = unit_rows(c.student) + unit_rows(c.teacher)
    return [[sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) for b in both] for a in both]


def mean_distance(c):
    distances = squared_distances(c)
    return math.fsum(map(math.fsum, distances)) / (len(distances) * (len(distances) - 1))


def slow_mmd(c, m=None):
    """``m`` is the mean squared distance, a constant for the gradient."""
    m = m or mean_distance(c)
    if m < 1e-9:
        return 0.0  # all features are the same one
    half, distances = len(c.labels), squared_distances(c)
    k = [
        [sum(math.exp(-d / (b * m)) for b in (0.25, 0.5, 1, 2, 4)) for d in row]
        for row in distances
    ]
    parts = {"ss": (k[:half], 0), "tt": (k[half:], half), "st": (k[:half], half)}
    means = {
        n: mean([x for row in rows for x in row[at : at + half]]) for n, (rows, at) in parts.items()
    }
    return means["ss"] + means["tt"] - 2 * means["st"]


def slow_fecd(c):
    s, t = unit_rows(c.student), unit_rows(c.teacher)
    rows = [
        divergence(
            [dot(t[i], b) / c.temperature for b in t], [dot(s[i], a) / c.temperature for a in s]
        )
        for i in range(len(s))
    ]
    return c.temperature**2 * mean(rows)


SLOW = {
    "cross entropy": slow_cross_entropy,
    "triplet": slow_triplet,
    "kd": slow_kd,
    "csd": slow_csd,
    "csd of the paper": slow_paper,
    "mmd": slow_mmd,
    "fecd": slow_fecd,
}


@each_loss
@prop
@given(case=cases(most=8))
def test_a_loss_equals_a_slow_loop_written_from_its_definition(name, case):
    assume(name != "triplet" or not counts_by_rounding(case))
    assert LOSSES[name](case).item() == pytest.approx(SLOW[name](case), rel=1e-8, abs=1e-8)


# --- losses: what must not matter ----------------------------------------------------------------


@prop
@given(case=cases(), data=st.data())
def test_the_order_of_the_batch_does_not_matter_to_value_or_gradient(case, data):
    order = data.draw(orders(len(case.labels)))
    shuffled = replace(
        case,
        student=case.student[order],
        teacher=case.teacher[order],
        labels=case.labels[order],
    )
    for name in LOSSES:
        if name == "triplet" and counts_by_rounding(case):
            continue
        value, gradient = value_and_gradient(name, case)
        again, moved = value_and_gradient(name, shuffled)
        assert_close(again, value, name)
        if name != "triplet":  # of equally hard images it takes any one
            assert_close(moved, gradient[order], name)


@prop
@given(case=cases(), odd=st.integers(-(2**62), 2**62 - 1), shift=st.integers(-(2**63), 2**63 - 1))
def test_the_names_of_the_classes_do_not_matter_to_losses_of_features(case, odd, shift):
    # Times an odd number, plus another, is one-to-one in 64 bits.
    renamed = replace(case, labels=case.labels * (2 * odd + 1) + shift)
    for name in ("triplet", "csd", "csd of the paper"):  # the others take no labels
        assert torch.equal(LOSSES[name](renamed), LOSSES[name](case)), name


@prop
@given(case=cases(), data=st.data())
def test_the_order_of_the_classes_does_not_matter_to_losses_of_logits(case, data):
    dim = case.student.shape[1]
    order = data.draw(orders(dim))
    renamed = cross_entropy(case.student[:, order], order.argsort()[case.labels % dim])
    assert_close(renamed, LOSSES["cross entropy"](case), "cross entropy")
    # Only the old classes change places; what the student says of new ones does not count.
    order = data.draw(orders(case.old))
    other = case.student.clone()
    other[:, : case.old] = case.student[:, order]
    other[:, case.old :] = 7.0
    renamed = kd_loss(other, case.teacher[:, order], case.temperature)
    assert_close(renamed, LOSSES["kd"](case), "kd")


@prop
@given(case=cases(), data=st.data())
def test_a_number_added_to_all_logits_of_an_image_changes_nothing(case, data):
    images = len(case.labels)
    first, second = (torch.from_numpy(data.draw(numbers(images)) / 1000)[:, None] for _ in range(2))
    moved = replace(case, student=case.student + first, teacher=case.teacher + second)
    for name in OF_LOGITS:
        assert_close(LOSSES[name](moved), LOSSES[name](case), name, atol=1e-7)


@prop
@given(case=cases(), data=st.data())
def test_the_length_of_every_feature_may_be_anything_from_1e_20_to_1e20(case, data):
    images = len(case.labels)
    scaled = case.scaled(data.draw(powers_of_ten(images)), data.draw(powers_of_ten(images)))
    for name in OF_FEATURES:
        if name != "triplet" or not counts_by_rounding(case):
            assert_close(LOSSES[name](scaled), LOSSES[name](case), name)


# --- losses: gradients and limits ----------------------------------------------------------------


def is_smooth(name, case):
    """Away from rows near zero and, for the triplet loss, from choices that a step may change."""
    if name in OF_LOGITS:
        return True
    if min(math.hypot(*row) for row in case.student.tolist()) < 0.5:
        return False
    if name == "mmd":
        return mean_distance(case) > 1e-3
    if name != "triplet":
        return True
    for positives, negatives in triplet_terms(case):
        hinge = negatives[0] - positives[0] + case.margin
        if min(map(abs, (hinge, *np.diff(positives[:2]), *np.diff(negatives[:2])))) < 1e-4:
            return False
    return True


@each_loss
@prop
@given(case=cases(most=8), data=st.data())
def test_gradients_equal_finite_differences(name, case, data):
    assume(is_smooth(name, case))
    shape, step = case.student.shape, 1e-6
    direction = torch.from_numpy(data.draw(numbers(case.student.numel())) / 2**15).reshape(shape)
    loss = LOSSES[name]
    if name == "mmd":  # its bandwidth is a constant for the gradient
        m = mean_distance(case)
        loss = lambda c: torch.tensor(slow_mmd(c, m), dtype=torch.float64)  # noqa: E731
    ahead, behind = (
        loss(replace(case, student=case.student + sign * step * direction)) for sign in (1, -1)
    )
    _, gradient = value_and_gradient(name, case)
    assert_close((gradient * direction).sum(), (ahead - behind) / (2 * step), name, 1e-5, 1e-5)


@prop
@given(case=cases(), exponent=st.integers(-30, 30), data=st.data())
def test_value_and_gradient_are_finite_at_every_size_and_temperature(case, exponent, data):
    images = len(case.labels)
    case = case.scaled(data.draw(powers_of_ten(images)), data.draw(powers_of_ten(images)))
    for dtype in (torch.float32, torch.float64):
        extreme = replace(case.to(dtype), temperature=10 ** (exponent / 10))
        for name in LOSSES:
            value, gradient = value_and_gradient(name, extreme)
            assert value.dtype == dtype and value.shape == ()
            assert torch.isfinite(value) and torch.isfinite(gradient).all(), (name, dtype)


@prop
@given(case=cases(), exponent=st.integers(-30, 30))
def test_no_loss_but_the_papers_is_ever_negative(case, exponent):
    """Three of them are differences of sums, which are at least 0 up to rounding."""
    for dtype in (torch.float32, torch.float64):
        extreme = replace(case.to(dtype), temperature=10 ** (exponent / 10))
        rounding = 100 * torch.finfo(dtype).eps
        sizes = {
            "kd": 1 + (case.student.abs().max() + case.teacher.abs().max()) / extreme.temperature,
            "fecd": max(extreme.temperature, 1) ** 2,  # KL, times the squared temperature
            "mmd": 5,
        }
        for name in set(LOSSES) - {"csd of the paper"}:
            assert LOSSES[name](extreme) >= -rounding * sizes.get(name, 0), (name, dtype)


@prop
@given(case=cases())
def test_no_gradient_reaches_the_teacher_and_a_gradient_reaches_the_student(case):
    case = replace(case, teacher=case.teacher.requires_grad_())
    for name, loss in LOSSES.items():
        student = case.student.clone().requires_grad_()
        loss(replace(case, student=student)).backward()
        assert case.teacher.grad is None, name
        assert student.grad is not None, name


@prop
@given(case=cases())
def test_a_student_equal_to_its_teacher_has_nothing_to_learn_from_kd_mmd_and_fecd(case):
    perfect = replace(case, teacher=case.student.clone())
    for name in ("kd", "mmd", "fecd"):
        value, gradient = value_and_gradient(name, perfect)
        assert abs(value) < 1e-9, name
        assert_close(gradient * perfect.student.abs().amax(1, True), gradient * 0, name)


@prop
@given(data=st.data(), width=st.sampled_from([32, 64]))
def test_unit_length_is_1_or_exactly_0_with_a_finite_gradient_for_any_floats(data, width):
    images, dim = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    dtype = torch.float32 if width == 32 else torch.float64
    tiny = torch.finfo(dtype).tiny  # below it, 1 / x soon is more than the largest float
    every_float = st.floats(width=width, allow_nan=False, allow_infinity=False)
    entries = every_float if data.draw(st.booleans()) else st.floats(-tiny, tiny, width=width)
    drawn = data.draw(st.lists(entries, min_size=images * dim, max_size=images * dim))
    features = torch.tensor(drawn, dtype=dtype).reshape(images, dim).requires_grad_()
    unit = unit_length(features)
    lengths, largest = unit.detach().double().norm(dim=1), features.detach().abs().amax(dim=1)
    is_one = (lengths - 1).abs() < 8 * torch.finfo(dtype).eps
    # The gradient is about 1 / x, so what is far too small for any use may count as zero.
    assert (is_one | (lengths == 0) & (largest < 1e-30)).all(), lengths
    assert (lengths[largest == 0] == 0).all()
    direction = torch.from_numpy(data.draw(numbers(images * dim)) / 2**15).reshape(images, dim)
    (unit * direction).sum().backward()
    assert torch.isfinite(features.grad).all(), features.grad


# --- retrieval -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """Queries and a gallery (or none: they search each other), with small whole entries."""

    queries: Tensor
    query_labels: Tensor
    gallery: Tensor | None = None
    gallery_labels: Tensor | None = None

    def arguments(self):
        return tuple(vars(self).values())


@st.composite
def searches(draw):
    dim, size, classes = (draw(st.integers(1, most)) for most in (4, 2, 5))
    parts = []
    for _ in range(draw(st.integers(1, 2))):
        count = draw(st.integers(1, 12))
        values = draw(numbers(count * dim)) % (2 * size + 1) - size
        dtype = draw(st.sampled_from([torch.float32, torch.float64]))
        parts += [torch.from_numpy(values).to(dtype).reshape(count, dim)]
        parts += [draw(labels_of(count, classes))]
    return Search(*parts)


def nearness(query, other):
    """The cosine's square with its sign, but for the query's length, without any rounding."""
    product, squares = dot(query, other), dot(other, other)
    return Fraction(product * abs(product), squares) if squares else Fraction(0)


def exact_counts(search):
    """For each query, the negatives strictly nearer than its nearest positive; -1 without one."""
    alone = search.gallery is None
    found = (search.queries, search.query_labels) if alone else search.arguments()[2:]
    queries, gallery = search.queries.long().tolist(), found[0].long().tolist()
    query_labels, gallery_labels = search.query_labels.tolist(), found[1].tolist()
    counts = []
    for i, query in enumerate(queries):
        others = [
            (nearness(query, other), label == query_labels[i])
            for j, (other, label) in enumerate(zip(gallery, gallery_labels, strict=True))
            if not (alone and i == j)
        ]
        positives = [near for near, is_positive in others if is_positive]
        wrong = sum(near > max(positives) for near, is_positive in others) if positives else -1
        counts.append(wrong)
    return counts


@pytest.mark.filterwarnings("ignore:most queries find themselves")
@prop
@given(search=searches(), at_once=st.integers(1, 150))
def test_recall_equals_exact_counting_for_any_gallery_chunks_and_ties(search, at_once):
    expected = exact_counts(search)
    counted = [count for count in expected if count >= 0]
    ks = tuple(range(1, 14))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "MAX_SIMILARITIES", at_once)
        assert wrong_before_right(*search.arguments()).tolist() == expected
        if not counted:
            with pytest.raises(InputError, match="none of the"):
                recall_at_k(*search.arguments(), ks=ks)
            return
        recall = recall_at_k(*search.arguments(), ks=ks)
    assert recall == {k: pytest.approx(sum(c < k for c in counted) / len(counted)) for k in ks}
    assert (recall.queries, recall.left_out) == (len(counted), len(expected) - len(counted))
    values = [recall[k] for k in ks]
    assert values == sorted(values) and values[-1] == 1  # no more than 12 images to find


@prop
@given(search=searches(), odd=st.integers(-(2**62), 2**62 - 1), data=st.data())
def test_order_names_and_lengths_do_not_matter_to_retrieval(search, odd, data):
    expected = wrong_before_right(*search.arguments())
    order = data.draw(orders(len(search.queries)))

    def changed(features, labels, order):
        lengths = data.draw(powers_of_ten(len(labels)))
        return (features.double() * lengths)[order], (labels * (2 * odd + 1))[order]

    arguments = changed(search.queries, search.query_labels, order)
    if search.gallery is not None:
        gallery_order = data.draw(orders(len(search.gallery)))
        arguments += changed(search.gallery, search.gallery_labels, gallery_order)
    assert torch.equal(wrong_before_right(*arguments), expected[order])


@prop
@given(
    search=searches(),
    broken=st.sampled_from([math.nan, math.inf, -math.inf]),
    data=st.data(),
)
def test_one_broken_number_anywhere_is_refused(search, broken, data):
    parts = ("queries",) if search.gallery is None else ("queries", "gallery")
    part = data.draw(st.sampled_from(parts))
    features = getattr(search, part).clone()
    features.view(-1)[data.draw(st.integers(0, features.numel() - 1))] = broken
    for measure in (recall_at_k, wrong_before_right):
        with pytest.raises(InputError, match=f"1 of {len(features)} {part}.*NaN or infinite"):
            measure(*replace(search, **{part: features}).arguments())


@st.composite
def matrices(draw, least=1):
    size = draw(st.integers(least, 7))
    values = draw(numbers(size**2)).reshape(size, size)
    return (values % 3) / 2 if draw(st.booleans()) else (values + 2**15) / 2**16


@prop
@given(matrix=matrices(least=2))
def test_forgetting_and_transfer_equal_their_definitions_and_bound_each_other(matrix):
    last = len(matrix) - 1
    best = [max(matrix[i, j] for i in range(j, last)) for j in range(last)]
    assert forgetting(matrix) == pytest.approx(
        mean([best[j] - matrix[last, j] for j in range(last)])
    )
    transfer = mean([matrix[last, j] - matrix[j, j] for j in range(last)])
    assert backward_transfer(matrix) == pytest.approx(transfer)
    # The best past value is at least that right after learning.
    assert forgetting(matrix) >= -backward_transfer(matrix) - 1e-12
    assert -1 <= forgetting(matrix) <= 1 and -1 <= backward_transfer(matrix) <= 1
    falling = -np.sort(-matrix, axis=0)  # nothing is better than right after learning
    assert forgetting(falling) == pytest.approx(-backward_transfer(falling))


@prop
@given(matrix=matrices(), shift=st.integers(-5, 5))
def test_what_does_not_change_is_not_forgotten_and_what_was_not_learned_does_not_count(
    matrix, shift
):
    constant = np.repeat(matrix[:1], len(matrix), axis=0)
    assert average(constant) == pytest.approx(matrix[0].mean())
    assert average(matrix + shift) == pytest.approx(average(matrix) + shift)
    for measure in (forgetting, backward_transfer):
        if len(matrix) == 1:
            assert math.isnan(measure(matrix))
            continue
        assert measure(constant) == 0
        assert measure(matrix + shift) == pytest.approx(measure(matrix))
        before_learning = np.triu(np.ones_like(matrix), k=1)  # where accuracy has no value
        assert measure(np.where(before_learning, np.nan, matrix)) == measure(matrix)
        assert math.isnan(measure(matrix[1:]))


# --- splits and augmentation ---------------------------------------------------------------------

seeds = st.integers(0, 2**32 - 1)


@st.composite
def datasets(draw):
    """Any number of classes; each image is its own number, in two pixels."""
    classes = draw(st.integers(1, 30))
    train, test = draw(st.integers(1, 60)), draw(st.integers(1, 30))
    number = torch.arange(train + test)
    images = torch.stack([number // 256, number % 256], dim=1).byte().reshape(-1, 1, 1, 2)
    labels = draw(labels_of(train + test, classes))
    names = tuple(f"class {c}" for c in range(classes))
    parts = images[:train], labels[:train], images[train:], labels[train:]
    return Dataset("numbers", *parts, names, (0.5,), (0.5,))


def numbers_in(images):
    return (images[:, 0, 0, 0].long() * 256 + images[:, 0, 0, 1].long()).tolist()


@st.composite
def splits(draw):
    """A data set, its class order and its tasks."""
    dataset = draw(datasets())
    classes = len(dataset.class_names)
    num_tasks = draw(st.integers(1, classes))
    kind = draw(st.sampled_from(["label order", "class_order", "seed"]))
    order, arguments = tuple(range(classes)), {}
    if kind == "class_order":
        order = tuple(draw(orders(classes)).tolist())
        arguments = {"class_order": order}
    elif kind == "seed":
        seed = draw(seeds)
        order, arguments = class_order_from_seed(classes, seed), {"seed": seed}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        tasks = class_incremental_split(dataset, num_tasks, **arguments)
    lonely = classes // num_tasks == 1 < classes  # a task has one class
    assert len(said) == (classes % num_tasks > 0) + lonely and len(tasks) == num_tasks
    return dataset, order, tasks


@prop
@given(split=splits())
def test_a_split_has_every_class_and_every_image_once_and_labels_are_positions(split):
    dataset, order, tasks = split
    assert sum((task.classes for task in tasks), ()) == order
    assert sorted(order) == list(range(len(dataset.class_names)))
    sizes = [len(task.classes) for task in tasks]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    ends = [0, *(task.end_label for task in tasks)]
    assert [task.first_label for task in tasks] == ends[:-1] and ends[-1] == len(order)
    assert [task.index for task in tasks] == list(range(len(tasks)))
    for part in ("train", "test"):
        whole = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels").tolist()
        class_of = dict(zip(numbers_in(whole[0]), whole[1], strict=True))
        found = []
        for task in tasks:
            assert task.class_names == tuple(dataset.class_names[c] for c in task.classes)
            images = numbers_in(getattr(task, f"{part}_images"))
            labels = getattr(task, f"{part}_labels").tolist()
            assert [order[label] for label in labels] == [class_of[number] for number in images]
            assert all(task.first_label <= label < task.end_label for label in labels)
            found += images
        assert sorted(found) == sorted(class_of)


@prop
@given(split=splits())
def test_merged_tasks_are_the_whole_data_set(split):
    dataset, order, tasks = split
    merged = merge_tasks(tasks)
    assert merged.classes == order and (merged.first_label, merged.end_label) == (0, len(order))
    assert merged.class_names == tuple(dataset.class_names[c] for c in order)
    for part in ("train", "test"):
        labels = [order[label] for label in getattr(merged, f"{part}_labels").tolist()]
        found = zip(numbers_in(getattr(merged, f"{part}_images")), labels, strict=True)
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        assert sorted(found) == sorted(zip(numbers_in(images), labels.tolist(), strict=True))


@prop
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    first=st.integers(0, 5),
    share=st.floats(0, 0.5, exclude_min=True),
    seed=seeds,
    data=st.data(),
)
def test_held_out_images_are_two_of_every_class_and_leave_some_or_are_refused(
    sizes, first, share, seed, data
):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)) + first
    labels = labels[data.draw(orders(len(labels)))]
    number = torch.arange(len(labels))
    images = torch.stack([number // 256, number % 256], dim=1).byte().reshape(-1, 1, 1, 2)
    names = tuple(map(str, range(len(sizes))))
    task = Task(0, tuple(range(len(sizes))), names, first, images, labels, images[:0], labels[:0])
    try:
        rest, held_images, held_labels = hold_out(task, share, seed)
    except InputError:
        assert min(sizes) < 3  # two to search for each other, and one to learn from
        return
    learned, held = numbers_in(rest.train_images), numbers_in(held_images)
    assert sorted(learned + held) == number.tolist()
    assert rest.train_labels.tolist() == labels[learned].tolist()
    assert held_labels.tolist() == labels[held].tolist()
    for label, size in enumerate(sizes, start=first):
        assert (held_labels == label).sum() == max(2, round(share * size))
        assert (rest.train_labels == label).any(), f"no image left of a class of {size}"
    for field in {f.name for f in fields(Task)} - {"train_images", "train_labels"}:
        assert getattr(rest, field) is getattr(task, field)
    assert numbers_in(hold_out(task, share, seed)[1]) == held


@st.composite
def image_batches(draw):
    """Images without any black pixel, so that black is a border."""
    shape = tuple(draw(st.integers(1, most)) for most in (6, 3, 7, 7))
    return torch.from_numpy(draw(numbers(math.prod(shape))) % 255 + 1).byte().reshape(shape)


@prop
@given(
    images=image_batches(),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    seed=seeds,
)
def test_augmented_images_are_exact_crops_and_know_nothing_of_each_other(
    images, padding, flip, seed
):
    height, width = images.shape[2:]
    results = augment(images, padding, flip, torch.Generator().manual_seed(seed))
    assert results.shape == images.shape and results.dtype == images.dtype
    for image, result in zip(images, results, strict=True):
        windows = F.pad(image, (padding,) * 4).unfold(1, height, 1).unfold(2, width, 1)
        candidates = [result, result.flip(2)] if flip else [result]
        assert any((windows == c[:, None, None]).all(4).all(3).all(0).any() for c in candidates)
    # The draw belongs to the place in the batch, and not to what the other images are.
    others = images.roll(1, 0)
    others[0] = images[0]
    again = augment(others, padding, flip, torch.Generator().manual_seed(seed))
    assert torch.equal(again[0], results[0])


# --- configs -------------------------------------------------------------------------------------

later_terms = ("kd", "csd", "csd_paper", "mmd", "fecd")
fractions = st.floats(0, 1, exclude_min=True, exclude_max=True)
FIELDS = {part.name: limits.drawn(part) for part in fields(TrainConfig) if limits.is_plain(part)}
FIELDS |= {
    "dataset": st.sampled_from(["digits", "cifar100"]),
    "preset": st.sampled_from(["clean", "reference", "class"]),
    "method": st.sampled_from(sorted(METHODS))
    | st.lists(st.booleans(), min_size=5, max_size=5).map(
        lambda chosen: "+".join(
            ["ce", "triplet", *(t for t, use in zip(later_terms, chosen, strict=True) if use)]
        )
    )
    | st.sampled_from(["ce", "triplet", "ce+kd", "triplet+csd_paper"]),
    "tasks": st.integers(1, 100),
    "first_classes": st.none() | st.just(1),
    "network": st.none() | st.sampled_from(["resnet", "features"]),
    # Of images and weights of one's own: test_own_images and test_networks have these.
    **{"image_size": st.none(), "weights": st.none(), "init_from": st.none()},
    "depth": st.none() | st.integers(1, 200).map(lambda n: 6 * n + 2),
    "milestones": st.none()
    | st.sets(fractions, max_size=5).map(lambda m: tuple(sorted(m)))
    | st.sets(st.integers(1, 1000), max_size=5).map(lambda m: tuple(sorted(m))),
    "device": st.sampled_from(["auto", "cpu", "cuda", "cuda:1", "mps"]),
    "cuda_graph": st.sampled_from(["auto", "true", "false"]),
}


@st.composite
def configs(draw, **fixed):
    values = draw(st.fixed_dictionaries(FIELDS | fixed))
    if values["preset"] == "class":
        values["dataset"] = "cifar100"  # the only data set it is for
    if values["dataset"] == "digits":
        values["tasks"] = 1 + values["tasks"] % 10  # no more than its classes
    return TrainConfig(**values)


def test_every_field_of_a_config_is_drawn():
    assert FIELDS.keys() == {field.name for field in fields(TrainConfig)}


@prop
@given(config=configs())
def test_a_config_that_went_through_a_file_is_the_same_and_has_the_same_name(config):
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "config.json", asdict(config))
        again = TrainConfig(**read_json(Path(folder) / "config.json"))
    assert again == config and asdict(again) == asdict(config)
    name, same, other = (
        run_name(*each, "code") for each in ((config, "data"), (again, "data"), (config, "other"))
    )
    assert same == name != other


# What the first task does not depend on, by the definitions of the losses and of training.
LATER = (
    *("later_epochs", "later_learning_rate", "head_init", "teacher_statistics"),
    *(field.name for field in fields(LossSettings) if field.name != "margin"),
)
READ_BY = {
    **{f"{kind}_{term}": {term} for kind, term in (("lambda", "kd"), ("lambda", "mmd"))},
    **{"kd_temperature": {"kd"}, "csd_temperature": {"csd"}, "fecd_temperature": {"fecd"}},
    **{"margin": {"triplet"}, "lambda_fecd": {"fecd"}, "lambda_csd": {"csd", "csd_paper"}},
}
# A term that is added has its line in TERMS only.
for _name, _term in TERMS.items():
    for _setting in filter(None, (_term.weight, *_term.settings)):
        READ_BY.setdefault(_setting, {_name})


def matters(name, config):
    """Whether a setting is read in this run, by the definitions of losses and of training."""
    method = get_method(config.method)
    later = method.learns_later and not method.joint and config.tasks > 1
    return {
        "lambda_own": False,  # unless a term has been added that reads it
        **{
            setting: bool(terms & {*method.recipe.split("+")}) for setting, terms in READ_BY.items()
        },
        **dict.fromkeys(("device", "cuda_graph", "preset"), False),
        **dict.fromkeys(LATER[:4], later),
        "first_classes": config.tasks > 1,
        "select_every": config.selection != "last",
        "held_out": config.selection == "held_out",
    }.get(name, True)


@prop
@given(config=configs(), other=configs())
def test_configs_have_different_names_exactly_if_they_differ_in_what_is_read(config, other):
    names = {run_name(config, "data", "code")}
    different = 0
    for name in FIELDS:
        try:
            changed = replace(config, **{name: getattr(other, name)})
        except InputError:  # preset class or a hundred tasks, on digits
            continue
        if name == "preset" and changed.later_epochs != config.later_epochs:
            continue  # it fills in the length of later tasks, which is tried by its own name
        is_different = getattr(changed, name) != getattr(config, name) and matters(name, config)
        if name in ("stop_at_epoch", "later_epochs"):  # read if a task that is learned is longer
            tasks = range(config.tasks if matters("later_epochs", config) else 1)
            length = TrainConfig.epochs_to_run
            if name == "later_epochs":
                length = TrainConfig.schedule_length
            is_different = [length(config, t) for t in tasks] != [length(changed, t) for t in tasks]
        different += is_different
        names.add(run_name(changed, "data", "code"))
    assert len(names) == different + 1


@prop
@given(config=configs(), other=configs())
def test_configs_share_a_first_task_if_they_differ_only_in_what_comes_later(config, other):
    first = identity.first_task(config)
    method = get_method(config.method)
    assert (first is not None) == (method.learns_later and not method.joint)
    if first is None:
        return
    assert get_method(first.method).recipe == "+".join(method.term_names(False))
    assert identity.first_task(first) is None and not first.learns_later()  # it is one already
    sharing = [m for m in METHODS if identity.first_task(replace(config, method=m)) == first]
    if method.term_names(False) == ("ce", "triplet"):
        learn = {n for n, m in METHODS.items() if m.learns_later and not m.joint}
        both = {n for n in learn if METHODS[n].term_names(False) == ("ce", "triplet")}
        assert {*sharing} == both >= {"fine-tuning", "lwf", "mmd", "mmd-kd", "fecd", "csd"}
    else:
        assert sharing == []
    later = {name: getattr(other, name) for name in LATER}
    assert identity.first_task(replace(config, **later)) == first
    for name in FIELDS.keys() - {*LATER, "method", "preset", "dataset", "tasks"}:
        changed = replace(config, **{name: getattr(other, name)})
        same = changed == config or (name == "margin" and "triplet" not in method.recipe)
        assert (identity.first_task(changed) == first) == same, name


@prop
@given(
    # From 1e-50, so that no step of the schedule can underflow.
    config=configs(learning_rate=st.floats(1e-50, 100), later_learning_rate=st.floats(1e-50, 100)),
    task=st.integers(0, 20),
    data=st.data(),
)
def test_the_learning_rate_is_positive_and_never_above_its_setting(config, task, data):
    length = config.schedule_length(task)
    epochs = [0, data.draw(st.integers(0, length - 1)), length - 1]
    rates = [learning_rate(config, task, epoch) for epoch in epochs]
    most = config.later_learning_rate if task else config.learning_rate
    assert all(math.isfinite(rate) and 0 < rate <= most for rate in rates)
    if config.schedule == "steps":
        assert rates == sorted(rates, reverse=True)
        starts = [m if m >= 1 else round(m * length, 6) for m in config.milestones]
        passed = sum(epochs[1] >= start for start in starts)
        assert rates[1] == pytest.approx(most / 10**passed)


# --- drift ---------------------------------------------------------------------------------------


@st.composite
def drifts(draw, least=1):
    """Features of the same images before and after."""
    images, dim = draw(st.integers(least, 14)), draw(st.integers(1, 6))
    return draw(features_of(images, dim)), draw(features_of(images, dim))


@st.composite
def turns(draw, dim):
    """Any rotation, mirrors included."""
    return torch.linalg.qr(torch.from_numpy(draw(numbers(dim**2)) / 1000).reshape(dim, dim))[0]


@prop
@given(drift=drifts(), data=st.data())
def test_cosine_drift_lies_between_0_and_2_and_equals_its_definition(drift, data):
    old, new = drift
    labels = data.draw(labels_of(len(old), data.draw(st.integers(1, 4))))
    measured = cosine_drift(old, new, labels)
    moved = [1 - dot(*pair) for pair in zip(unit_rows(old), unit_rows(new), strict=True)]
    assert measured == {
        label: pytest.approx(mean([m for m, y in zip(moved, labels, strict=True) if y == label]))
        for label in labels.unique().tolist()
    }
    assert all(-1e-12 <= value <= 2 + 1e-12 for value in measured.values())
    lengths = data.draw(powers_of_ten(len(old)))
    again = cosine_drift(old * lengths, new, labels)
    assert again == {label: pytest.approx(value, abs=1e-9) for label, value in measured.items()}


@prop
@given(drift=drifts(least=2), data=st.data())
def test_neighborhood_overlap_equals_sets_counted_one_by_one(drift, data):
    old, new = drift
    images = len(old)
    k = data.draw(st.integers(1, images - 1))
    overlap = neighborhood_overlap(old, new, k)
    assert 0 <= overlap <= 1 and neighborhood_overlap(old, old, k) == 1
    assert neighborhood_overlap(old, new, images - 1) == 1  # all others are neighbours
    shared, ties = 0, False
    for i in range(images):
        sets = []
        for f in (unit_rows(old), unit_rows(new)):
            near = sorted(((dot(f[i], f[j]), j) for j in range(images) if j != i), reverse=True)
            ties |= k < len(near) and near[k - 1][0] - near[k][0] < 1e-9
            sets.append({j for _, j in near[:k]})
        shared += len(sets[0] & sets[1])
    if not ties:  # of equally near images it takes any
        assert overlap == pytest.approx(shared / (k * images))


@prop
@given(drift=drifts(), scale=powers_of_ten(2), data=st.data())
def test_cka_lies_between_0_and_1_and_ignores_turns_shifts_and_scale(drift, scale, data):
    old, new = drift
    if any((features == features[0]).all() for features in drift):
        with pytest.raises(InputError, match="all the same"):
            linear_cka(old, new)
        return
    alignment = linear_cka(old, new)
    assert -1e-9 <= alignment <= 1 + 1e-9
    assert linear_cka(new, old) == pytest.approx(alignment, abs=1e-9)
    assert linear_cka(old, old) == pytest.approx(1)
    dim = old.shape[1]
    turned = old @ data.draw(turns(dim)) + torch.from_numpy(data.draw(numbers(dim)) / 1000)
    assert linear_cka(turned, new) == pytest.approx(alignment, abs=1e-6)
    assert linear_cka(old * scale[0], new * scale[1]) == pytest.approx(alignment, abs=1e-9)


@prop
@given(drift=drifts(), data=st.data())
def test_best_rotation_is_orthogonal_and_none_comes_closer(drift, data):
    old, new = drift
    dim = old.shape[1]
    found = best_rotation(old, new)
    assert_close(found @ found.T, torch.eye(dim, dtype=torch.float64), "orthogonal")
    distance = (new @ found - old).norm()
    for other in (torch.eye(dim, dtype=torch.float64), data.draw(turns(dim))):
        assert distance <= (new @ other - old).norm() + 1e-9
    turn = data.draw(turns(dim))
    assert_close(old @ turn @ best_rotation(old, old @ turn), old, "undone")
