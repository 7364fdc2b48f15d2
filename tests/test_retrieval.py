"""Recall@K against brute force, and the matrices built from it."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import on_circle

from csd_lib import InputError, retrieval
from csd_lib.data import class_incremental_split
from csd_lib.model import ResNet, freeze
from csd_lib.paper.report import average_compatibility, average_multi_model
from csd_lib.retrieval import (
    RetrievalMatrix,
    all_alike,
    average,
    backward_transfer,
    embed,
    forgetting,
    nearest,
    recall_at_k,
    retrieval_matrix,
    wrong_before_right,
)

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))


def brute_force(queries, query_labels, gallery=None, gallery_labels=None, same_images=False):
    """Negatives that are strictly nearer than the nearest positive, one query at a time."""
    alone = same_images or gallery is None
    if gallery is None:
        gallery, gallery_labels = queries, query_labels
    unit_q = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    unit_g = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    counts = []
    for i, query in enumerate(unit_q):
        nearness = np.rint(unit_g @ query * 2**24)
        others = np.arange(len(unit_g)) != (i if alone else -1)
        right = others & (np.asarray(gallery_labels) == query_labels[i])
        nearer = others & ~right & (nearness > nearness[right].max(initial=-np.inf))
        counts.append(nearer.sum() if right.any() else -1)
    return np.array(counts)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_recall_equals_the_published_function(path):
    """It crashes on a class with a single image, so it was given only the images in `keep`."""
    z = np.load(path)
    keep = torch.from_numpy(z["recall_keep"])
    features, labels = torch.from_numpy(z["features"]), torch.from_numpy(z["labels"])
    recall = recall_at_k(features[keep], labels[keep], ks=(1, 2, 4, 8))
    assert recall_at_k(features, labels).queries == keep.sum()
    for k in (1, 2, 4, 8):
        assert recall[k] == pytest.approx(float(z[f"recall{k}"]), abs=1e-6)


def test_a_query_does_not_find_itself_but_a_copy_of_itself_counts():
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    assert recall_at_k(features, torch.tensor([0, 1, 0, 1]))[1] == 0.0
    twice, labels = features.repeat(2, 1), torch.tensor([0, 1, 0, 1]).repeat(2)
    assert recall_at_k(twice, labels)[1] == 1.0


def test_identical_images_of_two_classes_tie_in_every_place_of_the_gallery():
    """Matrix products may round the same dot product differently in different columns."""
    image = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(1001) % 2
    assert recall_at_k(image.repeat(1001, 1), labels)[1] == 1.0


def test_equal_similarities_tie_also_near_zero():
    """Both products are 0 in exact arithmetic, and differ by rounding in float64."""
    query, gallery = torch.tensor([[-2.0, 1, -1]]), torch.tensor([[-1.0, -3, -1], [0, -1, -1]])
    labels = torch.tensor([0, 1])
    for order in ([0, 1], [1, 0]):
        count = wrong_before_right(query, torch.tensor([0]), gallery[order], labels[order])
        assert count.item() == 0


def test_queries_without_a_positive_are_left_out_and_counted():
    features, labels = torch.eye(5), torch.tensor([0, 0, 1, 2, 2])
    recall = recall_at_k(features, labels)
    assert (recall.queries, recall.left_out) == (4, 1)
    assert "in the gallery: 1 of 5 queries" in repr(recall)
    assert repr(recall_at_k(features[:2], labels[:2])) == "{1: 1.0}"


GOOD = torch.eye(4)
LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((torch.full((4, 4), float("nan")), LABELS), "NaN"),
        ((torch.empty(4, 0), LABELS), "D > 0"),
        ((GOOD, torch.arange(4)), "none of the 4 queries"),
        ((GOOD, LABELS, GOOD), "gallery_labels"),
        ((GOOD, LABELS, GOOD[:, :3], LABELS), "same model"),
        ((GOOD, LABELS, None, None, (0,)), "ks="),
        ((GOOD, LABELS, None, None, ()), "ks="),
    ],
)
def test_bad_input_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        recall_at_k(*arguments)
    assert issubclass(InputError, ValueError)


def test_average_forgetting_and_backward_transfer_by_hand():
    matrix = np.array([[0.8, 0.2, 0.1], [0.9, 0.7, 0.3], [0.6, 0.75, 0.8]])
    assert average(matrix) == pytest.approx((0.6 + 0.75 + 0.8) / 3)
    # The best value of task 1 came after task 2; task 2 improved.
    assert forgetting(matrix) == pytest.approx(((0.9 - 0.6) + (0.7 - 0.75)) / 2)
    assert backward_transfer(matrix) == pytest.approx(((0.6 - 0.8) + (0.75 - 0.7)) / 2)


def test_embed_leaves_the_network_as_it_was_and_does_not_depend_on_batches(digits):
    model = ResNet(8, 3, 1, digits.mean, digits.std).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = embed(model, digits.test_images[:50])
    parts = embed(model, digits.test_images[:50], batch_size=7)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    assert model.training and not whole.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_embed_leaves_each_module_in_its_mode_also_where_it_fails(digits):
    model = ResNet(8, 3, 1, digits.mean, digits.std).train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    embed(model, digits.test_images[:2])
    with pytest.raises(InputError):
        embed(model, torch.zeros(2, 5, 8, 8, dtype=torch.uint8))
    assert model.training and not frozen.training


def test_embed_takes_a_network_that_has_no_weights():
    class Pixels(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1).float(), images.new_zeros(len(images), 2)

    images = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
    assert embed(Pixels(), images).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_embed_refuses_what_is_not_a_batch_of_images(digits):
    with pytest.raises(InputError, match="N > 0, C, H, W"):
        embed(ResNet(8, 3, 1), digits.test_images[0])


def test_what_has_arrived_is_searched_also_by_a_model_that_did_not_learn_it(digits):
    """The initial model after each of five tasks; then one joint model, which saw all of them."""
    tasks = class_incremental_split(digits, 5)
    initial, joint = (
        freeze(ResNet(8, classes, 1, digits.mean, digits.std))
        for classes in (tasks[0].end_label, 10)
    )
    everything = torch.cat([task.test_labels for task in tasks])
    task_of = torch.cat([torch.full_like(task.test_labels, task.index) for task in tasks])

    def expected(model, arrived, j):
        features = torch.cat([embed(model, task.test_images) for task in tasks])
        searched = (task_of < arrived) | (task_of == j)
        hits = brute_force(features[searched].numpy(), everything[searched].numpy()) < 1
        return hits[task_of[searched].numpy() == j].mean()

    seen = retrieval_matrix([initial] * 5, tasks).seen
    for i in range(5):
        for j in range(5):
            assert seen[i, j] == pytest.approx(expected(initial, i + 1, j)), (i, j)
    assert retrieval_matrix([joint], tasks).seen[0] == pytest.approx(
        [expected(joint, 5, j) for j in range(5)]
    )


def test_matrix_rows_are_models_columns_are_tasks_and_galleries_differ(digits):
    tasks = class_incremental_split(digits, 2)
    first = ResNet(8, 5, 1, digits.mean, digits.std, seed=1)
    second = ResNet(8, 10, 1, digits.mean, digits.std, seed=2)
    models = [freeze(first), freeze(second)]
    matrix = retrieval_matrix(models, tasks)
    for i, model in enumerate(models):
        own = [embed(model, task.test_images).numpy() for task in tasks]
        labels = [task.test_labels.numpy() for task in tasks]
        everything, all_labels = np.concatenate(own), np.concatenate(labels)
        for j in range(2):
            assert matrix.own[i, j] == pytest.approx(np.mean(brute_force(own[j], labels[j]) < 1))
            # After task 1, task 2's images search among all; task 1's only among the seen ones.
            seen = (own[0], labels[0]) if (i, j) == (0, 0) else (everything, all_labels)
            hits = brute_force(*seen)[np.isin(seen[1], labels[j])] < 1
            assert matrix.seen[i, j] == pytest.approx(hits.mean())
    assert np.isnan(matrix.accuracy[0, 1])
    logits = second.eval()(tasks[1].test_images)[1]
    expected = (logits.argmax(1) == tasks[1].test_labels).double().mean().item()
    assert matrix.accuracy[1, 1] == pytest.approx(expected)


def test_an_old_gallery_is_searched_by_new_queries_without_the_querys_own_image(digits):
    tasks = class_incremental_split(digits, 5)
    models = [
        freeze(ResNet(8, task.end_label, 1, digits.mean, digits.std, seed=n))
        for n, task in enumerate(tasks[:3])
    ]
    found = retrieval_matrix(models, tasks[:3]).old_gallery
    for i, newer in enumerate(models):
        for j, older in enumerate(models[: i + 1]):
            images = torch.cat([task.test_images for task in tasks[: j + 1]])
            labels = torch.cat([task.test_labels for task in tasks[: j + 1]]).numpy()
            queries, gallery = (embed(m, images).double().numpy() for m in (newer, older))
            expected = brute_force(queries, labels, gallery, labels, same_images=True) < 1
            assert found[i, j] == pytest.approx(expected.mean())
    assert np.isnan(found[np.triu_indices(3, 1)]).all()
    seen = retrieval_matrix(models, tasks[:3]).seen
    assert found[0, 0] == pytest.approx(seen[0, 0]), "its own gallery is an ordinary search"


def test_own_images_are_noticed_in_a_gallery_of_other_precision_and_length():
    features, labels = (
        torch.randn(40, 16, generator=torch.Generator().manual_seed(0)),
        torch.arange(40) % 4,
    )
    for gallery in (features.half(), 3 * features.double(), features + 1e-7):
        with pytest.warns(UserWarning, match="most queries find themselves"):
            recall_at_k(features, labels, gallery, labels)
    with warnings.catch_warnings(action="error"):
        recall_at_k(features, labels, features.roll(4, 0) + 0.1, labels)


def test_features_that_all_tie_are_said_to_say_nothing(digits):
    tasks = class_incremental_split(digits, 2)
    with warnings.catch_warnings(action="error"):
        retrieval_matrix([ResNet(8, 10, 1)], tasks)
    constant = ResNet(8, 10, 1)
    constant.backbone = lambda images: torch.ones(64) + 1e-9 * images.mean((1, 2, 3))[:, None]
    with pytest.warns(UserWarning, match="after task 1 most test images have the same feature"):
        assert retrieval_matrix([constant], tasks).own[0, 0] == 1
    assert all_alike(torch.zeros(4, 3)) and not all_alike(torch.eye(4)[[0, 0, 1, 2]])


def test_same_images_leave_out_exactly_the_own_image():
    labels = torch.tensor([0, 0, 1, 1])
    old = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [0, 1]])
    with pytest.warns(UserWarning, match="most queries find themselves .* leaves them out"):
        assert recall_at_k(old, labels, old, labels)[1] == 1
    with pytest.warns(UserWarning, match="one that begins with them"):
        recall_at_k(old, labels, old[[2, 0, 1, 3]], labels, same_images=True)
    assert recall_at_k(old, labels, old, labels, same_images=True)[1] == 0
    assert recall_at_k(old[:2], labels[:2], old, labels, same_images=True)[1] == 0
    more, its_labels = torch.cat([old, old[:2] + 0.01]), torch.cat([labels, labels[:2]])
    with pytest.warns(UserWarning, match="most queries find themselves"):
        recall_at_k(more[1:5], its_labels[1:5], more, its_labels)
    assert recall_at_k(old, labels, more, its_labels, same_images=True)[1] == 0.25
    for other in (labels.flip(0), labels[:3]):
        with pytest.raises(InputError, match="must begin with those of"):
            recall_at_k(old, labels, old[: len(other)], other, same_images=True)


def test_compatibility_by_hand():
    """Two of three pairs are better than the old model alone; a tie is not better."""
    values = np.array([[0.5, np.nan, np.nan], [0.6, 0.7, np.nan], [0.5, 0.8, 0.9]])
    assert average_compatibility(values) == pytest.approx(2 / 3)
    assert average_multi_model(values) == pytest.approx((0.5 + 0.6 + 0.7 + 0.5 + 0.8 + 0.9) / 6)
    assert RetrievalMatrix(*[np.ones((3, 3))] * 3, values).in_first_gallery() == 0.5
    assert math.isnan(average_compatibility(np.array([[0.5]])))
    with pytest.raises(InputError, match="old_gallery has shape"):
        RetrievalMatrix(values[:, :2], values[:, :2], values[:, :2], values[:2, :2])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_network_that_returns_one_tensor_is_refused(count):
    """With two images, its rows could be taken for features and logits."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    with pytest.raises(InputError, match="it must be features, logits"):
        embed(network, torch.zeros(count, 1, 2, 2))


@pytest.mark.parametrize("at_once", [retrieval.MAX_SIMILARITIES, 8, 1])
def test_the_nearest_images_by_hand(at_once, monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_SIMILARITIES", at_once)
    points = on_circle(0, 10, 50, 90)
    assert nearest(points, points, k=3).tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 3], [3, 2, 1]]
    assert nearest(points, points, k=2, same_images=True).tolist() == [
        *([1, 2], [0, 2], [1, 3], [2, 1])  # 50 and 90 degrees are equally far from each other
    ]
    # Twice as long, so that a dot product would prefer it.
    assert nearest(points[:1], torch.cat([2 * points[2:], points[1:2]]), k=1).tolist() == [[2]]


@pytest.mark.parametrize("ties", [False, True])
def test_the_nearest_image_is_a_hit_exactly_if_recall_at_1_says_so(ties):
    random = np.random.default_rng(3)
    features = torch.from_numpy(random.normal(size=(40, 5)))
    if ties:  # few directions, many exact duplicates
        features = torch.from_numpy(random.integers(1, 3, size=(40, 3))).double()
    labels = torch.from_numpy(random.integers(0, 6, size=40))
    found = nearest(features, features, k=39, same_images=True)
    assert all(sorted([*row, i]) == [*range(40)] for i, row in enumerate(found.tolist()))
    right = labels[found] == labels[:, None]
    counts = wrong_before_right(features, labels)
    for row, count in zip(right, counts, strict=True):
        if count >= 0:
            first = int(row.int().argmax())
            assert first == count or (ties and first > count)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(gallery=torch.ones(5, 4)), "the same model"),
        (dict(gallery=torch.ones(4, 3)), "must begin with those"),
        (dict(gallery=torch.full((5, 3), torch.nan)), "gallery"),
        (dict(k=5), "k=5"),  # itself is not found
    ],
)
def test_a_search_for_the_nearest_refuses_what_it_cannot_answer(change, words):
    call = dict(queries=torch.ones(5, 3), gallery=torch.ones(5, 3), k=4, same_images=True)
    nearest(**call)
    with pytest.raises(InputError, match=words):
        nearest(**{**call, **change})
