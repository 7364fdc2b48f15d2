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
from csd_lib.methods import LossSettings, Outputs, get_method
from csd_lib.model import freeze
from csd_lib.retrieval import recall_at_k, wrong_before_right

with checks.needs_extra("avalanche"):
    from avalanche.evaluation import PluginMetric
    from avalanche.evaluation.metric_results import MetricValue
    from avalanche.evaluation.metric_utils import get_metric_name
    from avalanche.models import avalanche_forward
    from avalanche.training.plugins import SupervisedPlugin

_Labelled = tuple[Tensor, Tensor]  # features [N, D] and labels [N]


class _Tap:
    """What a model gives its module ``classifier``, seen by a hook during one pass."""

    def __init__(self, classifier: str):
        checks.text("classifier", classifier)
        if not classifier:
            raise InputError("classifier='': name the module whose input is the features")
        self.classifier = classifier

    def open(self, model: nn.Module) -> None:
        """Watch the next pass of a model, or raise InputError if it has no such module."""
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
        """Stop watching, and return the features ``[B, D]``; InputError if it saw none."""
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
        settings: weights, temperatures and margin; default: the kit's; for triplet, KD and CSD
            those of the published code.

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
    """Recall@1 at every evaluation, in the three galleries of ``RetrievalMatrix``.

    * ``own``: an experience's images search each other.
    * ``seen``: they search those of all experiences learned so far, too.
    * ``old_gallery``: the images of all experiences that were learned when this one had just been
      search the same images as the model then saw them, which is what a search engine holds that
      does not index again; an image does not find itself. The first evaluation after an
      experience makes its index.

    Only the experiences of the evaluated stream are searched, and they must not be shuffled.
    ``classifier`` is the name of the module whose input is the features.
    """

    def __init__(self, classifier: str = "classifier"):
        super().__init__()
        self._tap = _Tap(classifier)
        self._learned: set[int] = set()  # experiences
        self._classes: set[int] = set()  # of these
        self._newest: int | None = None  # experience
        self._index: dict[str, dict[str, _Labelled]] = {}
        self.reset()

    def reset(self) -> None:
        """Forget the last evaluation, but not the galleries that were indexed."""
        self._batches: list[_Labelled] = []
        self._found: dict[str, _Labelled] = {}
        self._names: dict[int, str] = {}
        self._result: dict[str, float] = {}

    def result(self) -> dict[str, float]:
        """Return the last evaluation's values in [0, 1] by name."""
        return self._result

    def after_training_exp(self, strategy: Any) -> None:
        """Note what was learned."""
        self._newest = strategy.experience.current_experience
        self._learned.add(self._newest)
        self._classes |= set(strategy.experience.classes_in_this_experience)

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
        name = get_metric_name("", strategy, add_experience=True, add_task=False)
        self._names[strategy.experience.current_experience] = name
        self._found[name] = _joined(self._batches)
        self._batches = []

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Search, and return a value for each experience and gallery."""
        found, result = self._found, self._result
        # By number, as classes may come again; and by class, as a test stream may be cut otherwise.
        numbered = [name for number, name in self._names.items() if number in self._learned]
        learned = [n for n in numbered if set(found[n][1].unique().tolist()) <= self._classes]
        for name, (features, labels) in found.items():
            result[f"Recall@1_own{name}"] = recall_at_k(features, labels)[1]
            others = [found[other] for other in learned if other != name]
            counts = wrong_before_right(*_joined([found[name], *others]))[: len(labels)]
            result[f"Recall@1_seen{name}"] = (counts[counts >= 0] < 1).double().mean().item()
        if self._newest in self._names:
            indexed = {name: found[name] for name in learned}
            self._index.setdefault(self._names[self._newest], indexed)
        for name, indexed in self._index.items():
            if indexed.keys() <= found.keys():
                new, old = _joined([found[n] for n in indexed]), _joined([*indexed.values()])
                recall = recall_at_k(*new, *old, same_images=True)[1]
                result[f"Recall@1_old_gallery{name}"] = recall
        step = strategy.clock.train_iterations
        return [MetricValue(self, name, value, step) for name, value in result.items()]


def _joined(parts: list[_Labelled]) -> _Labelled:
    features, labels = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(labels)
