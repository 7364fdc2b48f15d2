"""The Avalanche plugin: step by step what ``train`` does, with any model; and its metric."""

import doctest
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import csd_lib.train
from csd_lib import InputError
from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split
from csd_lib.datasets import load_dataset
from csd_lib.engine import Precision
from csd_lib.methods import LossSettings
from csd_lib.model import freeze
from csd_lib.networks import make_network
from csd_lib.retrieval import retrieval_matrix

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from avalanche.benchmarks import nc_benchmark
    from avalanche.core import SupervisedPlugin
    from avalanche.models import IncrementalClassifier, SimpleMLP
    from avalanche.training import Naive, Replay
    from avalanche.training.plugins import EvaluationPlugin

    from csd_lib.integrations.avalanche import CSDPlugin, RetrievalMetric

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


class Logits(torch.nn.Module):
    """A network of the kit as Avalanche wants it: logits only, and a classifier."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)[1]


class Steps(SupervisedPlugin):
    """Normalises the head after each step, as the kit does, and notes where it stands."""

    def __init__(self, plugin):
        super().__init__()
        self.plugin, self.states, self.terms = plugin, [], []

    def after_update(self, strategy, **_):
        strategy.model.network.head.normalize_()
        self.states.append(copied(strategy.model.network))
        self.terms.append(self.plugin.terms)


class Given(Naive):
    """Learns batches that it is given, in their order."""

    batches = ()

    def make_train_dataloader(self, **_):
        self.dataloader = [
            [images, labels, torch.zeros_like(labels)] for images, labels in self.batches
        ]


def copied(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def benchmark_of(digits, order=tuple(range(10)), tasks=2):
    parts = []
    for images, labels in (
        (digits.train_images[::3], digits.train_labels[::3]),
        (digits.test_images[::2], digits.test_labels[::2]),
    ):
        parts.append(TensorDataset(images, labels))
        parts[-1].targets = labels.tolist()
    return nc_benchmark(*parts, tasks, False, fixed_class_order=list(order))


def recorded_run(digits, monkeypatch, config):
    """What ``train`` does at every step: batch, task, terms, and the student after it."""
    steps = []
    original = csd_lib.train.training_step

    def recording(student, teacher, optimizer, images, labels, *rest):
        terms, features = original(student, teacher, optimizer, images, labels, *rest)
        task = int(teacher is not None)
        steps.append((images.clone(), labels.clone(), task, terms, copied(student)))
        return terms, features

    monkeypatch.setattr(csd_lib.train, "training_step", recording)
    run = csd_lib.train.train(config, digits, progress=False)
    return run, steps


@pytest.mark.parametrize("method", ["csd", "lwf", "mmd", "fecd", "ce+kd+csd"])
def test_a_run_through_avalanche_is_train_step_by_step(digits, monkeypatch, method):
    config = TrainConfig(method=method, epochs=2, device="cpu", lambda_csd=0.5)
    run, steps = recorded_run(digits, monkeypatch, config)
    benchmark = benchmark_of(digits)  # its images are not used: the batches are those of train

    network = make_network(config, digits.mean, digits.std).to(memory_format=torch.channels_last)
    model = Logits(network)
    plugin = CSDPlugin(method, "network.head", config)
    notes = Steps(plugin)
    evaluator = EvaluationPlugin()
    adam = lambda rate: torch.optim.Adam(  # noqa: E731
        model.parameters(), rate, weight_decay=config.weight_decay, fused=True
    )
    rates = config.learning_rate, config.later_learning_rate
    with Precision("fp32", torch.device("cpu")).switches():
        for experience, task, rate in zip(benchmark.train_stream, run.tasks, rates, strict=True):
            csd_lib.prepare.add_head_rows(network, None, task, config)
            strategy = Given(
                model=model,
                optimizer=adam(rate),
                plugins=[plugin, notes],
                evaluator=evaluator,
            )
            strategy.batches = [step[:2] for step in steps if step[2] == task.index]
            strategy.train(experience)

    assert len(notes.states) == len(steps) > 20
    for (*_, terms, expected), found, added in zip(steps, notes.states, notes.terms, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert added == {name: value for name, value in terms.items() if name != "ce"}
    assert [set(t) for t in (notes.terms[0], notes.terms[-1])] == [
        {"triplet"} & set(plugin.method.recipe.split("+")),
        set(plugin.method.recipe.split("+")),
    ]
    taught = plugin.teacher.network
    assert not taught.training and not any(p.requires_grad for p in taught.parameters())
    torch.testing.assert_close(taught.state_dict(), network.state_dict())


def mlp():
    torch.manual_seed(0)
    return SimpleMLP(num_classes=10, input_size=64, hidden_size=32, drop_rate=0)


def strategy_of(model, *plugins, metric=None, kind=Naive, epochs=1, **more):
    return kind(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=64,
        eval_mb_size=100,
        train_epochs=epochs,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(*([metric] if metric else [])),
        **more,
    )


class Floats(torch.nn.Module):
    """Pixels as numbers between 0 and 1, for models that do not do it themselves."""

    def __init__(self, model, classifier):
        super().__init__()
        self.model = model
        self.model.classifier = classifier or model.classifier

    def forward(self, images):
        return self.model(images.float() / 16)


@pytest.mark.parametrize("head", ["fixed", "growing"])
@pytest.mark.parametrize("kind", [Naive, Replay])
def test_it_works_with_other_models_heads_class_orders_and_strategies(digits, head, kind):
    benchmark = benchmark_of(digits, order=(9, 1, 5, 3, 7, 0, 2, 4, 6, 8), tasks=5)
    model = Floats(mlp(), IncrementalClassifier(32) if head == "growing" else None)
    plugin = CSDPlugin(classifier="model.classifier")
    strategy = strategy_of(model, plugin, kind=kind, **({"mem_size": 50} if kind is Replay else {}))
    seen = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        seen.append((set(plugin.terms), plugin.teacher))
    assert [terms for terms, _ in seen] == [{"triplet"}, *[{"triplet", "kd", "csd"}] * 4]
    assert len({id(teacher) for _, teacher in seen}) == 5
    assert all(term.isfinite() for term in plugin.terms.values())
    hooks = [module._forward_pre_hooks for module in model.modules()]
    assert not any(hooks)


def test_kd_compares_the_classes_that_the_teacher_learned_and_no_others(digits):
    benchmark = benchmark_of(digits, order=(9, 1, 5, 3, 7, 0, 2, 4, 6, 8))
    model = Floats(mlp(), None)
    plugin = CSDPlugin("lwf", "model.classifier", LossSettings(lambda_kd=2.0))
    strategy = strategy_of(model, plugin)
    strategy.train(benchmark.train_stream[0])
    first = benchmark.train_stream[1].dataset[0][0][None]
    plugin._features = torch.zeros(1, 32)
    strategy.mbatch = [first, torch.tensor([0]), torch.tensor([0])]
    strategy.mb_output = model(first)
    outputs = plugin._outputs(strategy)
    torch.testing.assert_close(outputs.logits, model(first)[:, [1, 3, 5, 7, 9]])
    torch.testing.assert_close(outputs.teacher_logits, plugin.teacher(first)[:, [1, 3, 5, 7, 9]])


def test_the_metric_measures_what_the_kit_measures(digits):
    """Own, seen and old gallery of every model, against ``retrieval_matrix``."""
    tasks = class_incremental_split(digits, 5)
    test = [TensorDataset(t.test_images, t.test_labels) for t in tasks]
    train = [TensorDataset(t.train_images[::4], t.train_labels[::4]) for t in tasks]
    for part in (*test, *train):
        part.targets = part.tensors[1].tolist()
    benchmark = nc_benchmark(train, test, 5, False, shuffle=False, one_dataset_per_exp=True)
    network = make_network(TrainConfig(device="cpu"), digits.mean, digits.std)
    network.grow_head(10, torch.Generator().manual_seed(0))
    metric = RetrievalMetric("network.head")
    strategy = strategy_of(Logits(network), CSDPlugin("csd", "network.head"), metric=metric)
    models = []
    for stage, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        models.append(freeze(network))
        rows = models[-1].head.weight[: tasks[stage].end_label]  # of the classes so far, as the kit
        models[-1].head.weight = torch.nn.Parameter(rows)
        matrix = retrieval_matrix(models, tasks)
        expected = {
            f"Recall@1_{gallery}/eval_phase/test_stream/Exp00{task}": values[stage, task]
            for gallery, values in vars(matrix).items()
            for task in range(stage + 1 if gallery == "old_gallery" else 5)
            if gallery != "accuracy"
        }
        assert metric.result() == expected
    assert matrix.old_gallery[4, 0] < 1


@pytest.mark.parametrize(
    "make, named",
    {
        "no such module": (lambda: CSDPlugin(classifier="head"), "classifier='head'"),
        "a module that is not called": (
            lambda: CSDPlugin(classifier="model.unused"),
            "not called",
        ),
    }.values(),
)
def test_a_mistake_about_the_classifier_is_named_at_the_first_batch(digits, make, named):
    model = Floats(mlp(), None)
    model.model.unused = torch.nn.Identity()
    with pytest.raises(InputError, match=named):
        strategy_of(model, make()).train(benchmark_of(digits).train_stream[0])


@pytest.mark.parametrize(
    "arguments, named",
    [
        (("joint",), "joint"),
        (("initial",), "initial"),
        (("ce",), "ce"),
        (("nonsense",), "nonsense"),
        (("csd", ""), "classifier"),
        (("csd", "classifier", 3), "settings"),
    ],
)
def test_a_mistake_is_named_before_any_work(arguments, named):
    with pytest.raises(InputError, match=named):
        CSDPlugin(*arguments)


def test_the_example_in_the_docs():
    text = (ROOT / "docs" / "integrations.md").read_text()
    (section,) = (s for s in text.split("\n## ") if s.startswith("Avalanche"))
    test = doctest.DocTestParser().get_doctest(section, {}, "integrations.md", None, None)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0
