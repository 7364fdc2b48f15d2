"""Image retrieval: features, Recall@K, and how both change from task to task."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from csd_lib import InputError, checks
from csd_lib.data import Task
from csd_lib.model import Network
from csd_lib.numerics import evaluating, in_parts, true_float32, unit_length
from csd_lib.stored import StoredImages

# Similarities held in memory at once. A million float64 are 8 MB, which stay in a CPU's cache: four
# times faster than 64 MB on two cores, and still enough work at a time for a GPU.
MAX_SIMILARITIES = 1_000_000
# Similarities are rounded to multiples of 1 / LEVELS; whole numbers up to it are exact in float32.
LEVELS = 2**24


class Recall(dict):
    """``{k: recall}`` in [0, 1], with the number of queries that count and of those left out."""

    def __init__(self, values: dict[int, float], queries: int, left_out: int):
        super().__init__(values)
        self.queries, self.left_out = queries, left_out

    def __repr__(self) -> str:
        """Name the queries that could find nothing, if there are some."""
        of = f"{self.left_out} of {self.queries + self.left_out} queries"
        said = f" (left out, without an image of their class in the gallery: {of})"
        return super().__repr__() + (said if self.left_out else "")


@torch.no_grad()
def _features_and_logits(
    model: Network, images: Tensor | StoredImages, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Run the network over all images in eval mode, and leave it in the mode it was in."""
    checks.instance("model", model, torch.nn.Module, "a network, such as a ResNet")
    checks.images("images", images)
    checks.finite("images", images, "correct them, or leave them out")
    checks.whole("batch_size", batch_size, 1, 1_000_000)
    device = next(model.parameters(), torch.empty(0)).device  # pixels as features have none
    outputs = []
    for batch in images.split(batch_size):
        with evaluating(model), true_float32(device.type):
            found = in_parts(model, batch.to(device))
        if not isinstance(found, tuple) or [len(f) for f in found] != [len(batch)] * 2:
            raise InputError(f"model returned {checks.shown(found)}: it must be features, logits")
        outputs.append(found)
    features, logits = zip(*outputs, strict=True)
    return torch.cat(features), torch.cat(logits)


def embed(model: Network, images: Tensor | StoredImages, batch_size: int = 512) -> Tensor:
    """Return the features ``[N, D]`` of images ``[N, C, H, W]``, without augmentation.

    Images are uint8 from 0 to 255, which the network normalises; float32 images are taken as
    normalised already. The network is used in eval mode; the result stays on its device.
    """
    return _features_and_logits(model, images, batch_size)[0]


def wrong_before_right(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    same_images: bool = False,
) -> Tensor:
    """Count, for each query, the gallery images of other classes that it finds too early.

    Those are the negatives whose cosine similarity to the query is strictly higher than that of
    its most similar positive. A query is a hit at K if fewer than K negatives come too early.

    Similarities are computed in float64 and rounded to multiples of 2**-24, so that equal ones tie
    whatever order the hardware adds their products in.

    Args, shapes and errors: as in ``recall_at_k``.

    Returns:
        int64 ``[N]``; -1 for queries that have no positive in the gallery.
    """
    if (gallery is None) != (gallery_labels is None):
        raise InputError("give gallery and gallery_labels together, or neither")
    if gallery is None or gallery_labels is None:
        checks.flag("same_images", same_images)
        gallery, gallery_labels, same_images = queries, query_labels, True
    checks.search(queries, gallery, same_images)
    checks.searched_labels(queries, query_labels, gallery, gallery_labels, same_images)
    queries = _in_float64(queries)
    gallery = _in_float64(gallery.to(queries.device))
    query_labels, gallery_labels = (y.to(queries.device) for y in (query_labels, gallery_labels))
    counts = torch.empty_like(query_labels, dtype=torch.int64)
    for chunk, similarity in _search(queries, gallery, same_images):
        is_positive = query_labels[chunk, None] == gallery_labels[None, :]
        nearest_positive = similarity.masked_fill(~is_positive, -torch.inf).amax(1, keepdim=True)
        # No positive is nearer than the nearest one, so all that is strictly nearer is negative.
        count = (similarity > nearest_positive).sum(dim=1)
        counts[chunk] = torch.where(nearest_positive.squeeze(1).isfinite(), count, -1)
    return counts


def _in_float64(features: Tensor) -> Tensor:
    """Scale rows to length 1 in float64, which a Mac's GPU has not."""
    on_mps = features.device.type == "mps"
    return unit_length((features.cpu() if on_mps else features).double())


def _search(queries: Tensor, gallery: Tensor, same_images: bool) -> Iterator[tuple[slice, Tensor]]:
    """Yield a few queries at a time, and their similarities to the gallery in whole steps."""
    rows_at_once = max(1, MAX_SIMILARITIES // len(gallery))
    for first in range(0, len(queries), rows_at_once):
        chunk = slice(first, first + rows_at_once)
        similarity = (queries[chunk] @ gallery.T).mul_(LEVELS).round_().float()
        if same_images:  # a query must not find itself
            similarity.diagonal(first).fill_(-torch.inf)
        yield chunk, similarity


def recall_at_k(
    queries: Tensor,
    query_labels: Tensor,
    gallery: Tensor | None = None,
    gallery_labels: Tensor | None = None,
    ks: Sequence[int] = (1,),
    same_images: bool = False,
) -> Recall:
    """Recall@K: the share of queries with an image of their own class among the K nearest.

    Nearness is cosine similarity. A query is a hit unless K negatives are strictly nearer than
    its nearest positive, so ties count as hits (as in the published code). Queries without any
    positive cannot hit and are left out.

    Args:
        queries: float ``[N, D]``.
        query_labels: int64 ``[N]``.
        gallery: float ``[M, D]`` to search in. Without it each query searches all other queries.
        gallery_labels: int64 ``[M]``.
        ks: the values of K.
        same_images: the gallery begins with the queries' own images, in the same order; each
            query's own image is left out.

    Returns:
        ``{k: share in [0, 1]}``; its attributes ``queries`` and ``left_out`` count the queries.

    Raises:
        InputError (a ValueError): for NaN or infinite features (the published function scores
            them as perfect), empty input, wrong shapes, K below 1, or no query with a positive.
    """
    checks.sequence("ks", ks, int, "whole numbers from 1, such as (1, 5)")
    for k in ks:
        checks.whole("ks", k, 1)
    counts = wrong_before_right(queries, query_labels, gallery, gallery_labels, same_images)
    if gallery is not None:
        checks.find_themselves(queries, gallery, same_images)
    counted = counts[counts >= 0]
    if len(counted) == 0:
        raise InputError(
            f"none of the {len(counts)} queries has another image of its class in the gallery"
        )
    values = {k: (counted < k).double().mean().item() for k in ks}
    return Recall(values, len(counted), len(counts) - len(counted))


def all_alike(features: Tensor) -> bool:
    """Say whether a search ties most images ``[N, D]`` with the mean one: then all are found."""
    checks.matrix("features", features)
    checks.finite("features", features)
    unit = _in_float64(features)
    center = unit_length(unit.mean(dim=0, keepdim=True))
    tied = ((unit @ center.T * LEVELS).round() == LEVELS).squeeze(1) | (unit == 0).all(dim=1)
    return 2 * int(tied.sum()) > len(features)


def nearest(queries: Tensor, gallery: Tensor, k: int = 5, same_images: bool = False) -> Tensor:
    """Return what each query finds first: places in the gallery ``[N, k]``, the nearest first.

    Args:
        queries: float ``[N, D]``.
        gallery: float ``[M, D]``.
        k: how many.
        same_images: as in ``recall_at_k``.
    """
    checks.search(queries, gallery, same_images)
    checks.whole("k", k, 1, len(gallery) - same_images, "so many can be found")
    queries, gallery = (_in_float64(features.cpu()) for features in (queries, gallery))
    found = [
        similarity.sort(dim=1, descending=True, stable=True).indices[:, :k]
        for _, similarity in _search(queries, gallery, same_images)
    ]
    return torch.cat(found)


@dataclass(frozen=True, eq=False)
class RetrievalMatrix:
    """Row i, column j: after training on task i, measured on the test images of task j.

    All values are shares in [0, 1] in float64 arrays ``[stages, tasks]``. Joint training has one
    stage, after all tasks.
    """

    own: np.ndarray
    """Recall@1 when the gallery holds the classes of task j only."""
    seen: np.ndarray
    """Recall@1 when the gallery holds all classes seen so far, and those of task j."""
    accuracy: np.ndarray
    """Classification accuracy over all classes seen so far; NaN for tasks not yet seen."""
    old_gallery: np.ndarray | None = None
    """``[stages, stages]``: row i, column j <= i: Recall@1 when the model after task i searches,
    with the test images of the classes seen after task j, the gallery of the same images as the
    model after task j indexed them. NaN for j > i. Older records have none."""

    def __post_init__(self) -> None:
        stages, _ = checks.tables(own=self.own, seen=self.seen, accuracy=self.accuracy)
        if self.old_gallery is not None:
            checks.square("old_gallery", self.old_gallery, stages)

    def in_first_gallery(self) -> float:
        """Return Recall@1 of the last model in the first one's gallery; NaN where there is none."""
        if self.old_gallery is None or len(self.old_gallery) < 2:
            return math.nan
        return float(self.old_gallery[-1, 0])


def retrieval_matrix(models: Sequence[Network], tasks: Sequence[Task]) -> RetrievalMatrix:
    """Measure every model on every task's test images.

    Args:
        models: the model after each task, or the one joint model.
        tasks: from ``class_incremental_split``.

    Raises:
        InputError: for empty lists, or a task in which nothing can be searched.
    """
    checks.sequence("models", models, Network, "a list of networks, one for each task")
    checks.sequence("tasks", tasks, Task, "the list of class_incremental_split")
    shape = (len(models), len(tasks))
    own, seen, accuracy = (np.full(shape, np.nan) for _ in range(3))
    old = np.full((len(models), len(models)), np.nan)
    galleries: list[tuple[Tensor, Tensor]] = []  # as each model indexed what it had seen
    for i, model in enumerate(models):
        # The i-th saw i + 1 tasks arrive, even if it learned from fewer; the joint one learned all.
        arrived = [t for t in tasks if t.index <= i or t.end_label <= model.num_classes]
        outputs = [_features_and_logits(model, task.test_images, 512) for task in tasks]
        features = [f for f, _ in outputs]
        labels = [task.test_labels.to(features[0].device) for task in tasks]
        all_features, all_labels = torch.cat(features), torch.cat(labels)
        if all_alike(all_features):
            warnings.warn(
                f"after task {i + 1} most test images have the same feature: they tie, and each is "
                f"found, which says nothing",
                stacklevel=2,
            )
        for j, task in enumerate(tasks):
            own[i, j] = recall_at_k(features[j], labels[j])[1]
            in_gallery = [j, *(t.index for t in arrived if t.index != j)]
            gallery, its_labels = (
                torch.cat([of[t] for t in in_gallery]) for of in (features, labels)
            )
            found = recall_at_k(features[j], labels[j], gallery, its_labels, same_images=True)
            seen[i, j] = found[1]
            if task.end_label <= model.num_classes:
                correct = outputs[j][1].argmax(dim=1) == labels[j]
                accuracy[i, j] = correct.double().mean().item()
        n = sum(len(labels[task.index]) for task in arrived)
        galleries.append((all_features[:n], all_labels[:n]))
        for j, (gallery, its_labels) in enumerate(galleries):
            queries = all_features[: len(gallery)]
            old[i, j] = recall_at_k(queries, its_labels, gallery, its_labels, same_images=True)[1]
    return RetrievalMatrix(own, seen, accuracy, old)


def average(matrix: np.ndarray) -> float:
    """Mean over tasks after the last one: the last row's mean."""
    return float(np.mean(checks.table("matrix", matrix)[-1]))


def forgetting(matrix: np.ndarray) -> float:
    """Mean, over all tasks but the last, of the best past value minus the final one.

    ``F = mean_j ( max_{j <= i < T-1} R[i, j] - R[T-1, j] )`` (after Chaudhry et al., ECCV
    2018, who take the best of all stages before the last). It is positive if something was lost.
    NaN for a single task or a single stage.
    """
    return _mean_of_old_tasks(matrix, lambda r, j: r[j:-1, j].max() - r[-1, j])


def backward_transfer(matrix: np.ndarray) -> float:
    """Mean change of a task's value since it was learned (Lopez-Paz and Ranzato, NIPS 2017).

    ``BWT = mean_{j < T-1} ( R[T-1, j] - R[j, j] )``. It is negative if something was lost.
    """
    return _mean_of_old_tasks(matrix, lambda r, j: r[-1, j] - r[j, j])


def _mean_of_old_tasks(matrix: np.ndarray, value: Callable[[np.ndarray, int], float]) -> float:
    """Mean over all tasks but the last; NaN for a single task or a single stage."""
    matrix = checks.table("matrix", matrix)
    stages, tasks = matrix.shape
    if stages != tasks or tasks < 2:
        return math.nan
    return float(np.mean([value(matrix, j) for j in range(tasks - 1)]))
