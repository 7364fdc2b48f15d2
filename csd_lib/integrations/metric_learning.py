"""CSD, KD, MMD and FECD as losses of pytorch-metric-learning.

Each is called as that library's losses are, with the teacher's embeddings of the same images as
``ref_emb``; no gradient flows into them::

    loss = CSDLoss()(embeddings, labels, ref_emb=teacher_embeddings)

The formulas are those of ``csd_lib.losses``. CSD, KD and FECD give that library's reducers one
value an image; MMD compares two clouds and has one value a batch, which every reducer passes on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from csd_lib import InputError, checks, losses

with checks.needs_extra("metric-learning"):
    from pytorch_metric_learning.losses import BaseMetricLossFunction


class _DistillationLoss(BaseMetricLossFunction):
    """What the four share: the arguments, and how their values reach the reducer.

    Raises:
        InputError: without ``ref_emb``, with ``indices_tuple`` (all pairs of the batch count),
            with ``ref_labels`` that are not the labels, and for what the loss itself refuses.
    """

    def __init__(self, **kwargs: Any):
        if "distance" in kwargs:
            raise InputError("distance: these losses compare by cosine similarity: leave it out")
        super().__init__(**kwargs)

    def values(self, embeddings: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Return one value for each image ``[B]``, or one for the batch."""
        raise NotImplementedError

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> dict[str, dict[str, Any]]:
        """Return the values in the form that the library's reducers take."""
        if ref_emb is embeddings:  # what the library puts in the place of None
            raise InputError("ref_emb is missing: give the teacher's embeddings of the same images")
        if indices_tuple is not None:
            raise InputError("indices_tuple: all pairs of the batch count: leave the miner out")
        if ref_labels is not None and (labels is None or not torch.equal(ref_labels, labels)):
            raise InputError(
                "ref_labels are not the labels: row i of ref_emb must be the teacher's embedding "
                "of image i"
            )
        values = self.values(embeddings, ref_emb, labels)
        if values.ndim == 0:
            return {
                "loss": {"losses": values, "indices": None, "reduction_type": "already_reduced"}
            }
        indices = torch.arange(len(values), device=values.device)
        return {"loss": {"losses": values, "indices": indices, "reduction_type": "element"}}


class CSDLoss(_DistillationLoss):
    """``csd_lib.losses.csd_loss``: contrastive supervised distillation. Needs labels."""

    def __init__(self, temperature: float = 0.07, **kwargs: Any):
        super().__init__(**kwargs)
        self.temperature = temperature

    def values(self, embeddings: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Return one value for each image."""
        return losses.csd_loss(embeddings, teacher, labels, self.temperature, "none")


class KDLoss(_DistillationLoss):
    """``csd_lib.losses.kd_loss``: knowledge distillation, between **logits**, not embeddings.

    This library's losses get embeddings only, and a classifier would be a second loss that owns
    the rows of the head. So the logits come in the places of the embeddings, which is what the
    arguments mean here: ``KDLoss()(student_logits, ref_emb=teacher_logits)``. The student's may
    have more columns, old classes first. Where the head lives in one of the library's losses,
    such as ``NormalizedSoftmaxLoss``, its ``get_logits(embeddings)`` gives them.
    """

    def __init__(self, temperature: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.temperature = temperature

    def values(self, embeddings: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Return one value for each image."""
        return losses.kd_loss(embeddings, teacher, self.temperature, "none")


class MMDLoss(_DistillationLoss):
    """``csd_lib.losses.mmd_loss``: maximum mean discrepancy. Does not read labels."""

    def values(self, embeddings: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Return one value for the batch."""
        return losses.mmd_loss(embeddings, teacher)


class FECDLoss(_DistillationLoss):
    """``csd_lib.losses.fecd_loss``: correlation distillation. Does not read labels."""

    def __init__(self, temperature: float = 4.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.temperature = temperature

    def values(self, embeddings: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Return one value for each image."""
        return losses.fecd_loss(embeddings, teacher, self.temperature, "none")
