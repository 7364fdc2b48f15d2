"""CSD, and retrieval, for any strategy of Avalanche 0.6.

A strategy computes cross entropy on each experience; the plugin adds the other terms of a method
of this kit, and makes the teacher. The metric is Recall@1, beside whatever else is measured::

    evaluator = EvaluationPlugin(RetrievalMetric(), accuracy_metrics(stream=True))
    strategy = Naive(..., plugins=[CSDPlugin()], evaluator=evaluator)

Features are what the model hands to its classifier, so the model may be any that has one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from csd_lib import InputError, checks
from csd_lib.integrations import missing
from csd_lib.methods import LossSettings, Outputs, get_method
from csd_lib.model import freeze
from csd_lib.numerics import unit_length
from csd_lib.retrieval import MAX_SIMILARITIES, STEPS, recall_at_k, wrong_before_right

try:
    from avalanche.evaluation import PluginMetric
    from avalanche.evaluation.metric_results import MetricValue
    from avalanche.evaluation.metric_utils import get_metric_name
    from avalanche.models import avalanche_forward
    from avalanche.training.plugins import SupervisedPlugin
except ImportError as error:
    raise missing(error, "avalanche") from error


class _Tap:
    """What a model gives its classifier, seen by a forward pre-hook during one pass.

    Args:
        classifier: name of that module inside the model, such as ``classifier`` or ``net.fc``.
    """

    def __init__(self, classifier: str):
        checks.text("classifier", classifier)
        if not classifier:
            raise InputError("classifier='': name the module whose input is the features")
        self.classifier = classifier

    def open(self, model: nn.Module) -> None:
        """Watch the next pass.

        Raises:
            InputError: if the model has no such module.
        """
        try:
            module = model.get_submodule(self.classifier)
        except AttributeError as error:
            names = ", ".join(name for name, _ in model.named_children())
            raise InputError(
                f"classifier={self.classifier!r}: the model has no such module; it has {names}"
            ) from error
        self._seen: list[Tensor] = []
        self._hook = module.register_forward_pre_hook(lambda _, given: self._seen.append(given[0]))

    def close(self) -> Tensor:
        """Stop watching, and return the features ``[B, D]``.

        Raises:
            InputError: if the classifier was not called, or given something else.
        """
        self._hook.remove()
        if not self._seen:
            raise InputError(f"classifier={self.classifier!r} was not called by the model")
        checks.matrix("features before the classifier", self._seen[-1])
        return self._seen[-1]


class CSDPlugin(SupervisedPlugin):
    """Adds the terms of a method of this kit to the loss of a strategy, and makes the teacher.

    The strategy's own criterion takes the place of cross entropy (``ce``). On the first
    experience the plasticity terms are added (triplet), from the second one on the others too,
    with the model after the previous experience as teacher: a copy in eval mode, without gradient.
    (Avalanche's own LwF copies a model that is in train mode, with its batch statistics.)

    KD compares the logits of the classes of earlier experiences, in whatever order they came.

    Args:
        method: such as ``csd``, ``lwf``, ``mmd``, ``fecd``, or a sum of terms.
        classifier: name of the module whose input is the features.
        settings: weights, temperatures and margin; default: the kit's, which are the paper's.

    Attributes:
        teacher: the frozen model, or None on the first experience.
        terms: the weighted terms of the last batch, detached, by name.

    Raises:
        InputError: for a method that adds nothing, or is not learned experience by experience.
    """

    def __init__(
        self,
        method: str = "csd",
        classifier: str = "classifier",
        settings: LossSettings | None = None,
    ):
        super().__init__()
        recipe = get_method(method)
        terms = [name for name in recipe.recipe.split("+") if name != "ce"]
        if recipe.joint or not recipe.learns_later or not terms:
            raise InputError(
                f"method={method!r} adds nothing to a strategy: choose csd, lwf, mmd, fecd, or a "
                f"sum of terms beside ce"
            )
        self.method = replace(recipe, recipe="+".join(terms))
        self.settings = LossSettings() if settings is None else settings
        checks.instance("settings", self.settings, LossSettings, "csd_lib.methods.LossSettings")
        self.teacher: nn.Module | None = None
        self.terms: dict[str, Tensor] = {}
        self._old_classes: set[int] = set()
        self._features = torch.empty(0)
        self._tap = _Tap(classifier)

    def before_forward(self, strategy: Any, **_: Any) -> None:
        """Watch what the student gives its classifier."""
        self._tap.open(strategy.model)

    def after_forward(self, strategy: Any, **_: Any) -> None:
        """Keep the student's features."""
        self._features = self._tap.close()

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add the weighted terms to the loss."""
        terms = self.method.loss_terms(self._outputs(strategy), self.settings)
        for term in terms.values():
            strategy.loss = strategy.loss + term
        self.terms = {name: term.detach() for name, term in terms.items()}

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Make the teacher of the next experience."""
        self._features = torch.empty(0)  # and with it the last batch's graph
        self.teacher = freeze(strategy.model)
        self._old_classes |= set(strategy.experience.classes_in_this_experience)

    def _outputs(self, strategy: Any) -> Outputs:
        """Gather what student and teacher say about the batch; logits: of old classes only."""
        labels, logits = strategy.mb_y, strategy.mb_output
        if self.teacher is None:
            return Outputs(labels, self._features, logits)
        self._tap.open(self.teacher)
        with torch.no_grad():
            taught = avalanche_forward(self.teacher, strategy.mb_x, strategy.mbatch[-1])
        old = sorted(self._old_classes)
        return Outputs(labels, self._features, logits[:, old], self._tap.close(), taught[:, old])


class RetrievalMetric(PluginMetric):
    """Recall@1 of each experience's images at every evaluation, in three galleries.

    * ``own``: the experience's own images.
    * ``seen``: those of all experiences learned so far, and its own.
    * ``old_gallery``: its own images as the model saw them when it had just learned them, which
      is what a search engine holds that does not index again; the query's own image is left out.
      Measured from the first evaluation after the experience on, which makes that index.

    Only the experiences of the evaluated stream are searched, and they must not be shuffled.

    Args:
        classifier: name of the module whose input is the features.
    """

    def __init__(self, classifier: str = "classifier"):
        super().__init__()
        self._tap = _Tap(classifier)
        self._learned: set[int] = set()
        self._index: dict[str, tuple[Tensor, Tensor]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the last evaluation, but not the galleries that were indexed."""
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._found: dict[str, tuple[Tensor, Tensor]] = {}
        self._result: dict[str, float] = {}

    def result(self) -> dict[str, float]:
        """Return the last evaluation's values in [0, 1] by name."""
        return self._result

    def after_training_exp(self, strategy: Any) -> None:
        """Note the classes that were learned."""
        self._learned |= set(strategy.experience.classes_in_this_experience)

    def before_eval(self, strategy: Any) -> None:
        """Begin anew."""
        self.reset()

    def before_eval_forward(self, strategy: Any) -> None:
        """Watch what the model gives its classifier."""
        self._tap.open(strategy.model)

    def after_eval_forward(self, strategy: Any) -> None:
        """Keep the batch's features and labels."""
        self._batches.append((self._tap.close(), strategy.mb_y))

    def after_eval_exp(self, strategy: Any) -> None:
        """Put the experience's batches together, under the end of its metrics' names."""
        features, labels = zip(*self._batches, strict=True)
        name = get_metric_name("", strategy, add_experience=True, add_task=False)
        self._found[name] = torch.cat(features), torch.cat(labels)
        self._batches = []

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Search, and return a value for each experience and gallery."""
        is_learned = {
            name: set(labels.unique().tolist()) <= self._learned
            for name, (_, labels) in self._found.items()
        }
        for name, (features, labels) in self._found.items():
            self._result[f"Recall@1_own{name}"] = recall_at_k(features, labels)[1]
            others = [n for n, learned in is_learned.items() if learned and n != name]
            self._result[f"Recall@1_seen{name}"] = self._among([name, *others])
            if is_learned[name]:
                index = self._index.setdefault(name, (features, labels))
                recall = _in_old_gallery(features, labels, *index)
                self._result[f"Recall@1_old_gallery{name}"] = recall
        step = strategy.clock.train_iterations
        return [MetricValue(self, name, value, step) for name, value in self._result.items()]

    def _among(self, names: list[str]) -> float:
        """Recall@1 of the first one's images among the images of all."""
        features, labels = (torch.cat([self._found[n][part] for n in names]) for part in (0, 1))
        counts = wrong_before_right(features, labels)[: len(self._found[names[0]][1])]
        return (counts[counts >= 0] < 1).double().mean().item()


def _in_old_gallery(new: Tensor, labels: Tensor, old: Tensor, old_labels: Tensor) -> float:
    """Recall@1 of new features in a gallery of old ones, each query's own image left out.

    Similarities, ties and queries without a positive: as in ``retrieval.wrong_before_right``.
    """
    if not torch.equal(labels, old_labels):
        raise InputError("the images changed their order since they were indexed: do not shuffle")
    new, old = unit_length(new.double()), unit_length(old.double())
    hits = counted = 0
    for rows in torch.arange(len(new)).split(max(1, MAX_SIMILARITIES // len(old))):
        similarity = (new[rows] @ old.T).mul_(STEPS).round_()
        similarity[torch.arange(len(rows)), rows] = -torch.inf
        same = labels[rows, None] == labels
        wrong = similarity.masked_fill(same, -torch.inf).amax(dim=1)
        right = similarity.masked_fill(~same, -torch.inf).amax(dim=1)
        is_counted = right > -torch.inf
        counted += int(is_counted.sum())
        hits += int((is_counted & (wrong <= right)).sum())
    return hits / counted
