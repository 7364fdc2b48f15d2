"""Whatever a user or learner passes to a public function: it works, or one line says what to do.

Every public function of every room has an entry here, with a valid call. Each of its arguments is
then replaced by every value of a catalogue. ``ALLOWED`` names the few that are legitimate there.
"""

import functools
import importlib
import inspect
import pkgutil
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import limits
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from made_up import on_circle
from test_checkers import RIGHT_NUMBERS
from test_house import ORDER

from csd_lib import InputError, checks, datasets, losses, methods
from csd_lib.config import TrainConfig
from csd_lib.course import plots, session, widgets
from csd_lib.course.checkers import CHECKERS, Verdict
from csd_lib.data import class_incremental_split
from csd_lib.datasets import load_dataset
from csd_lib.model import ResNet
from csd_lib.paper import comparison
from csd_lib.paper.published import EXPERIMENTS
from csd_lib.record import Record
from csd_lib.retrieval import RetrievalMatrix

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {module.split(".")[-1]: module for module in ORDER}
# Rooms without an argument that a user gives, by the reason.
_WHY_NO_ROOM = {
    "the checks themselves: all else here is about them": "checks",
    "what a user sets are environment variables, see test_paths": "paths",
    "paths and contents come from the library; damaged files have tests of their own": """
        files fetch archive download runs fine_grained record""",
    "made by the library from a file's pixels": "stored",
    "about the content of folders and files: see test_own_images": "own_images",
    "what a user types is tried in test_cli_fuzz": "grid sweep commands doctor",
    "images are checked as embed checks them, paths as files: see test_features": "features",
    "takes configs and data sets, which were checked when they were made": "identity prepare",
    "streams and texts come from the library": "output",
    "names of other modules": "api",
    "a part of the training loop, whose arguments were checked when the run began": """
        steps watch train""",
    "takes a config, a record or a path, which were checked when they were made": """
        experiment export ledger fingerprint""",
    "makes what a config names; what is wrong with a network: see test_networks": "networks",
    "takes what a user gives another library: see tests/integrations": "metric_learning avalanche",
    "takes a config and a name that the command line has checked; see test_loggers": "loggers",
}
EXEMPT_ROOMS = {name for names in _WHY_NO_ROOM.values() for name in names.split()}
_WHY_EXEMPT = {
    "about the content of files, which has tests of its own": "datasets.read_npz",
    "a part that only networks make or call": """
        model.Block model.Block.forward model.Network model.Network.normalize_images
        model.Network.backbone model.ResNet.backbone model.NormalizedHead
        model.NormalizedHead.forward model.NormalizedHead.grow model.NormalizedHead.normalize_
        model.Network.train""",
    "made, or called, by the library only": """
        data.Task data.Dataset.sha256 datasets.DatasetSpec datasets.DatasetSpec.check
        datasets.DatasetSpec.check_size
        methods.Outputs methods.Term
        methods.Method methods.Method.term_names methods.Method.loss_terms
        methods.Method.unused_settings retrieval.Recall
        published.Experiment published.Experiment.fits
        config.TrainConfig.learns_later config.TrainConfig.times_learned widgets.Recording
        config.TrainConfig.schedule_length config.TrainConfig.epochs_to_run
        retrieval.RetrievalMatrix.in_first_gallery
        widgets.Control.pairs checkers.Mistake checkers.Verdict session.Stopped
        numerics.at_least_float32 numerics.in_full_precision numerics.rows_of_length_one
        report.Group report.notes_on_code report.grouped report.describe
        report.table_rows report.headline report.shared_changes report.render_rows report.as_objects
        report.titled report.differences
        seeds.last_values seeds.minus seeds.by_seed seeds.cells seeds.difference_rows
        plots.legend_below
        comparison.Table comparison.Table.columns comparison.Table.label
        figures.method_styles figures.method_title figures.term_styles figures.panels_of_rows
        figures.said_of_bars""",
    "a part of the training loop: its arguments were checked when the run began": """
        engine.make_optimizer engine.set_learning_rate engine.load_optimizer engine.StepState
        engine.StepState.put_back engine.CapturedStep engine.CapturedStep.rehearse
        engine.Precision.autocast engine.Precision.switches engine.flushes_denormals
        engine.on_device numerics.torchs_numbers engine.wait_for
        numerics.tf32 numerics.true_float32 numerics.without_autocast numerics.in_parts
        numerics.evaluating""",
    "what checkers are written with": """
        checkers.random_features checkers.random_labels checkers.on_circle checkers.exercise
        checkers.call checkers.compare checkers.compare_gradients checkers.same
        checkers.numbers_in""",
    "takes a config, a record or a path, which were checked when they were made": """
        datasets.get_spec datasets.is_path datasets.are_scaled widgets.load_recording""",
    "takes nothing": """
        session.Session.load_dataset session.smoke_fingerprint figures.use_style""",
    "takes a notebook that nbformat has read": "session.source_hash",
}
EXEMPT = {name for names in _WHY_EXEMPT.values() for name in names.split()}


def catalogue():
    """Bad values by name, of every kind; new ones at every call."""
    matrix = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    return {
        "None": None,
        "text": "no such name",
        "empty text": "",
        "list": [],
        "list of None": [None],
        "list of texts": ["no", "such"],
        "ragged list": [[1.0, 2.0], [3.0]],
        "dictionary": {},
        "dictionary of None": {"a": None},
        "object": object(),
        "function": lambda *_, **__: None,
        "True": True,
        "-1": -1,
        "0": 0,
        "half": 0.5,
        "nan": float("nan"),
        "inf": float("inf"),
        "1e30": 1e30,
        "10**30": 10**30,
        "empty tensor": torch.empty(0),
        "no rows": torch.empty(0, 3),
        "scalar tensor": torch.tensor(1.5),
        "vector": torch.randn(4),
        "matrix": matrix,
        "wrong length": torch.randn(5, 3),
        "half precision": matrix.half(),
        "int matrix": torch.ones(4, 3, dtype=torch.int64),
        "bool matrix": torch.ones(4, 3, dtype=torch.bool),
        "complex matrix": torch.ones(4, 3, dtype=torch.complex64),
        "nan matrix": matrix * float("nan"),
        "inf matrix": matrix * float("inf"),
        "meta matrix": matrix.to("meta"),
        "sparse matrix": matrix.to_sparse(),
        "three axes": torch.randn(2, 3, 4),
        "float labels": torch.zeros(4),
        "negative labels": torch.tensor([0, 1, -1, 0]),
        "huge labels": torch.tensor([0, 1, 2**40, 0]),
        "too few labels": torch.tensor([0, 1]),
        "meta labels": torch.zeros(4, dtype=torch.int64, device="meta"),
        "double images": torch.zeros(4, 1, 8, 8, dtype=torch.float64),
        "two channels": torch.zeros(4, 2, 8, 8, dtype=torch.uint8),
        "no images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8),
        "images without pixels": torch.zeros(4, 1, 0, 8, dtype=torch.uint8),
        "meta images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8, device="meta"),
        "array of objects": np.array([object(), None]),
        "array of texts": np.array(["1", "2"]),
        "array": np.random.default_rng(0).normal(size=(4, 3)),
    }


# --- one valid call of each -----------------------------------------------------------------


@functools.cache
def digits():
    return load_dataset("digits")


@functools.cache
def tasks():
    return class_incremental_split(digits(), 2)


@functools.cache
def model():
    return ResNet(8, 5, 1).eval()


@functools.cache
def recording():
    return widgets.load_recording(ROOT / "data" / "results" / "digits-epochs.npz")


def features(count=4, width=3, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def search():
    gallery = dict(gallery=features(), gallery_labels=LABELS, same_images=False)
    return dict(queries=features(), query_labels=LABELS, **gallery)


def records():
    """Two runs of Table 1, with all that a headline needs."""
    history = (dict(task=0, epoch=0, seconds=1.0),)
    return [
        Record(
            config=TrainConfig(method=method, dataset="cifar100"),
            matrix=RetrievalMatrix(MATRIX, MATRIX, MATRIX),
            date="2026-01-01",
            device="cpu, 2 cores",
            history=history,
        )
        for method in ("csd", "lwf")
    ]


@functools.cache
def groups():
    return comparison.paper_groups(records())


@functools.cache
def components():
    """Two recipes of the experiment figure5, which differ in one term."""
    configs = [TrainConfig(method=method, dataset="cifar100") for method in ("ce", "ce+kd")]
    made = [replace(records()[0], config=config) for config in configs]
    return comparison.tables(comparison.paper_groups(made)[0])[-1]


@functools.cache
def table():
    return comparison.tables(groups()[0])[0]


@functools.cache
def axis():
    """One for all calls of a test: to make one takes longer than most calls."""
    return plt.figure().add_subplot()


LABELS = torch.tensor([0, 0, 1, 1])
CIRCLE = on_circle(0, 60, 120, 180)
MATRIX = np.array([[0.9, 0.2], [0.8, 0.9]])
HISTORY = [dict(task=0, epoch=0, ce=1.0, triplet=0.5), dict(task=0, epoch=1, ce=0.5, triplet=0.2)]
FITTED = SimpleNamespace(_raw_data=np.zeros((20, 3)), transform=lambda x: x[:, :2])
SESSION = session.Session("class", "cpu", (0,))
CONTROL = widgets.Control("k", range(3), 1)

# The arguments of losses, by name: a new loss with these names is tried as it is.
LOSS_ARGUMENTS = {
    **dict.fromkeys(("features", "student", "logits", "student_logits"), features),
    "teacher": lambda: features(seed=1),
    "teacher_logits": lambda: features()[:, :2],
    "labels": lambda: LABELS,
    **dict.fromkeys(("margin", "temperature"), lambda: 1.0),
    "reduction": lambda: "mean",
}
LOSS_FUNCTIONS = {
    f"losses.{name}": list(inspect.signature(function).parameters)
    for name, function in vars(losses).items()
    if getattr(function, "__module__", "") == losses.__name__ and not name.startswith("_")
}
LOSS_CALLS = {
    name: lambda parameters=parameters: {p: LOSS_ARGUMENTS[p]() for p in parameters}
    for name, parameters in LOSS_FUNCTIONS.items()
}

# What each is called with. A name with a dot twice is a method, of the object at "self".
CALLS = {
    "data.Dataset": lambda: {
        field.name: getattr(digits(), field.name) for field in fields(digits())
    },
    "datasets.load_dataset": lambda: dict(name="digits", root=None),
    "data.class_order_from_seed": lambda: dict(num_classes=10, seed=0),
    "data.class_incremental_split": lambda: dict(
        dataset=digits(), num_tasks=2, class_order=None, seed=None
    ),
    "data.merge_tasks": lambda: dict(tasks=tasks()),
    "data.hold_out": lambda: dict(task=tasks()[0], share=0.1, seed=0),
    "data.augment": lambda: dict(
        images=digits().test_images[:4], padding=1, flip=False, generator=torch.Generator()
    ),
    "model.ResNet": lambda: dict(
        depth=8, num_classes=2, in_channels=1, mean=(0.5,), std=(0.5,), seed=0
    ),
    "model.Network.forward": lambda: dict(self=model(), images=digits().test_images[:2]),
    "model.Network.grow_head": lambda: dict(
        self=ResNet(8, 1, 1), new_classes=2, generator=torch.Generator()
    ),
    "model.freeze": lambda: dict(model=model()),
    **LOSS_CALLS,
    "numerics.unit_length": lambda: dict(features=features()),
    "methods.get_method": lambda: dict(name="csd"),
    "methods.LossSettings": lambda: vars(methods.LossSettings()).copy(),
    "config.TrainConfig": lambda: vars(TrainConfig()).copy(),
    "retrieval.embed": lambda: dict(model=model(), images=digits().test_images[:4], batch_size=2),
    "retrieval.wrong_before_right": search,
    "retrieval.recall_at_k": lambda: dict(**search(), ks=(1,)),
    "retrieval.RetrievalMatrix": lambda: dict(
        own=MATRIX, seen=MATRIX, accuracy=MATRIX, old_gallery=MATRIX
    ),
    "retrieval.nearest": lambda: dict(
        queries=features(), gallery=features(seed=1), k=2, same_images=False
    ),
    "retrieval.all_alike": lambda: dict(features=features()),
    "retrieval.retrieval_matrix": lambda: dict(models=[model()], tasks=tasks()),
    "retrieval.average": lambda: dict(matrix=MATRIX),
    "retrieval.forgetting": lambda: dict(matrix=MATRIX),
    "retrieval.backward_transfer": lambda: dict(matrix=MATRIX),
    "report.average_compatibility": lambda: dict(old_gallery=MATRIX),
    "report.average_multi_model": lambda: dict(old_gallery=MATRIX),
    "engine.pick_device": lambda: dict(name="cpu"),
    "engine.half_precision": lambda: dict(device=torch.device("cpu")),
    "engine.Precision": lambda: dict(name="fp32", device=torch.device("cpu")),
    "engine.check_machine": lambda: dict(name="cpu", precision="fp32", cuda_graph=False),
    "drift.cosine_drift": lambda: dict(old=features(), new=features(seed=1), labels=LABELS),
    "drift.neighborhood_overlap": lambda: dict(old=features(), new=features(seed=1), k=2),
    "drift.linear_cka": lambda: dict(old=features(), new=features(seed=1)),
    "drift.best_rotation": lambda: dict(old=features(), new=features(seed=1)),
    "projection.fit_map": lambda: dict(
        features=features(10), seed=0
    ),  # too few: it takes 20 seconds
    "projection.place_on_map": lambda: dict(fitted=FITTED, features=features()),
    "published.get_experiment": lambda: dict(name="table1"),
    "published.Experiment.configs": lambda: dict(self=EXPERIMENTS["eq8"], seeds=(0,), epochs=1),
    "report.load_runs": lambda: dict(folder=ROOT / "data" / "results" / "digits"),
    "seeds.mean_and_sd": lambda: dict(values=[0.5, 0.6], percent=True),
    "seeds.paired": lambda: dict(differences=[0.1, 0.2]),
    "seeds.mean_and_half": lambda: dict(differences=[0.1, 0.2]),
    "report.variants": lambda: dict(records=records()),
    "report.render": lambda: dict(records=records(), markdown=False, against={"method": "csd"}),
    "report.render_json": lambda: dict(records=records(), against=None),
    "report.render_csv": lambda: dict(records=records(), against=None),
    "report.plain_runs": lambda: dict(records=records(), dataset="cifar100", preset="clean"),
    "report.changed_settings": lambda: dict(config=TrainConfig()),
    "report.render_matrix": lambda: dict(matrix=RetrievalMatrix(MATRIX, MATRIX, MATRIX)),
    "report.format_table": lambda: dict(header=["a", "b"], rows=[["1", "2"]], markdown=False),
    "comparison.paper_groups": lambda: dict(records=records()),
    "comparison.tables": lambda: dict(group=groups()[0]),
    "comparison.paper_rows": lambda: dict(table=table(), gallery="own"),
    "comparison.claim_rows": lambda: dict(table=table(), gallery="own"),
    "comparison.difference_rows": lambda: dict(table=table(), gallery="own"),
    "comparison.term_rows": lambda: dict(table=table(), gallery="own"),
    "comparison.term_effects": lambda: dict(table=table(), gallery="own"),
    "comparison.render_table": lambda: dict(table=table(), markdown=False),
    "figures.term_effects": lambda: dict(table=components(), gallery="own"),
    "comparison.render_paper": lambda: dict(groups=groups(), markdown=False),
    "plots.show": lambda: dict(figure=plt.figure(), description="a figure"),
    "plots.image_rows": lambda: dict(rows=[("a", digits().test_images[:2])], titles=["x", "y"]),
    "plots.task_picture": lambda: dict(tasks=tasks(), classes_per_task=2),
    "plots.visibility_picture": lambda: dict(num_tasks=2),
    "plots.number_matrix": lambda: dict(
        values=MATRIX,
        rows=["a", "b"],
        columns=["c", "d"],
        title="",
        number_format=".2f",
        outlined=MATRIX > 0.5,
        limits=(0, 1),
        axis=axis(),
    ),
    "plots.unit_circle": lambda: dict(
        groups={"student": CIRCLE, "teacher": CIRCLE},
        labels=LABELS,
        arrows=CIRCLE,
        axis=axis(),
    ),
    "plots.training_curves": lambda: dict(history=HISTORY),
    "plots.LiveCurves": lambda: dict(seconds=1.0),
    "plots.LiveCurves.finish": lambda: dict(
        self=plots.LiveCurves(), history=HISTORY, description="losses"
    ),
    **{
        f"plots.{name}": lambda: dict(of=digits(), queries=[0], found={"a network": [[1, 2]]})
        for name in ("search_pictures", "search_words")
    },
    "figures.method_curves": lambda: dict(
        values={"csd": MATRIX}, ylabel="y", title="", xlabels=["1", "2"]
    ),
    "plots.grouped_points": lambda: dict(
        values={"group": {"csd": [1.0, 2.0]}}, ylabel="y", title="", bars=True
    ),
    "plots.recipe_points": lambda: dict(
        recorded={"ce": [[1.0, 2.0, 3.0]]}, mine={"kd": [1, 2, 3]}, ringed={"ce": [1.0, 2.0, 3.0]}
    ),
    "figures.paper_against_ours": lambda: dict(table=table()),
    "figures.first_task_curves": lambda: dict(table=table()),
    "figures.paper_figures": lambda: dict(groups=[], folder="figures"),
    "plots.drift_maps": lambda: dict(
        maps={"before": CIRCLE.numpy()}, labels=LABELS, class_names=["a", "b"], start="before"
    ),
    "plots.class_centers": lambda: dict(positions=CIRCLE.numpy(), labels=LABELS),
    "plots.class_map": lambda: dict(
        axis=axis(),
        positions=CIRCLE.numpy(),
        labels=LABELS,
        class_names=["a", "b"],
        came_from={0: np.zeros(2)},
    ),
    "widgets.Control": lambda: dict(label="k", options=[1, 2], value=1, menu=False),
    "widgets.explore": lambda: dict(draw=lambda k: None, k=CONTROL),
    "widgets.panel": lambda: dict(draw=lambda k: (plt.figure(), "a figure"), k=CONTROL),
    "widgets.split_picture": lambda: dict(dataset=digits(), tasks=2, order_seed=None),
    "widgets.csd_temperature": lambda: dict(
        student=CIRCLE, teacher=CIRCLE, labels=LABELS, temperature=0.5
    ),
    "widgets.neighbors": lambda: dict(
        tasks=tasks(),
        features={"csd": [features(len(digits().test_labels)) for _ in range(2)]},
        method="csd",
        query=0,
        k=2,
        stage=2,
    ),
    "widgets.three_numbers": lambda: dict(run=records()[0]),
    "widgets.recipe_beside": lambda: dict(recorded={"ce": {0: [1.0, 2.0, 3.0]}}, run=records()[0]),
    "widgets.moment_control": lambda: dict(recording=recording(), value=1),
    "widgets.share_at_home": lambda: dict(recording=recording(), method="csd", moment=1),
    "widgets.training_moment": lambda: dict(recording=recording(), method="csd", moment=1),
    "session.Session": lambda: dict(mode="smoke", device="cpu", seeds=(0,)),
    "session.Session.config": lambda: dict(self=SESSION, method="csd", seed=0, epochs=1),
    "session.Session.run": lambda: dict(self=SESSION, method="csd", seed=0, epochs=1),
    "session.Session.try_term": lambda: dict(self=SESSION, term=lambda s, t, y: 0, seed=0),
    "session.Session.check": lambda: dict(
        self=SESSION, what="a value", value=1.0, quoted=1.0, tolerance=0.1
    ),
    "session.start": lambda: dict(keep_in_drive=False),
    "session.progress": lambda: dict(topic="1"),
    "session.show_source": lambda: dict(function=plots.show),
}
# Arguments that messages name as the config and the command line do.
ALIASES = {"num_tasks": "tasks"}
# Values that are legitimate, or not distinguished from those; of the losses NaN, because they never
# ask the device for a value.
TEXTS = {"empty text", "text"}
MATRICES = {"half precision", "matrix"}
ANY_FLOATS = {"half precision", "inf matrix", "matrix", "nan matrix"}
ANY_LABELS = {"huge labels", "negative labels"}
WEIGHT = {"0", "half"}
NAMES = {"list of texts", "text"}
TABLES = ANY_FLOATS | {"array", "bool matrix", "int matrix", "wrong length"}


def allowed_by_declaration(settings):
    """What plain settings take, and at least one of the values that are tried here."""
    plain = [part for part in fields(settings) if limits.is_plain(part)]
    values = catalogue().items()
    found = {part.name: {n for n, v in values if limits.takes(part, v)} for part in plain}
    return {name: labels for name, labels in found.items() if labels}


def allowed_for_a_loss(parameters):
    others = {"labels": ANY_LABELS, "margin": WEIGHT, "temperature": {"half"}}
    matrices = [p for p in parameters if p not in (*others, "reduction")]
    found = dict.fromkeys(matrices, ANY_FLOATS)
    found |= {p: others[p] for p in parameters if p in others}
    if "logits" in parameters:  # labels are its columns
        del found["labels"]
    return found


@pytest.mark.parametrize("name", LOSS_FUNCTIONS)
def test_every_loss_computes_in_float32_whatever_it_is_given(name):
    def as_type(dtype):
        arguments = LOSS_CALLS[name]().items()
        return {
            n: a.bfloat16().to(dtype)
            if isinstance(a, torch.Tensor) and a.is_floating_point()
            else a
            for n, a in arguments
        }

    loss = getattr(losses, name.removeprefix("losses."))
    expected = loss(**as_type(torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        found = [loss(**as_type(torch.bfloat16)), loss(*as_type(torch.bfloat16).values())]
    for value in found:
        assert value.dtype == torch.float32 and torch.equal(value, expected)


LOSSES_ALLOW = {name: allowed_for_a_loss(found) for name, found in LOSS_FUNCTIONS.items()}
SEARCHES = dict(
    queries=MATRICES,
    query_labels=ANY_LABELS,
    gallery=MATRICES,
    gallery_labels=ANY_LABELS,
    same_images={"True"},
)
ALLOWED = {
    "data.Dataset": dict(name=TEXTS),
    "datasets.load_dataset": dict(root={"None", "empty text", "text"}),
    "data.class_order_from_seed": dict(seed={"0"}),
    "data.class_incremental_split": dict(class_order={"None"}, seed={"0", "None"}),
    "data.hold_out": dict(share={"half"}, seed={"0"}),
    "plots.recipe_points": dict(ringed={"None"}),
    "data.augment": dict(images={"two channels"}, padding={"0"}, flip={"True"}, generator={"None"}),
    "model.ResNet": dict(num_classes={"0"}, mean={"None"}, std={"None"}, seed={"0"}),
    "model.Network.grow_head": dict(new_classes={"0"}, generator={"None"}),
    **LOSSES_ALLOW,
    "numerics.unit_length": dict(features=ANY_FLOATS | {"meta matrix", "wrong length"}),
    "methods.LossSettings": allowed_by_declaration(methods.LossSettings),
    "config.TrainConfig": allowed_by_declaration(TrainConfig)
    | dict(
        preset={"None"},
        network={"None"},
        weights={"None", "text"},
        init_from={"None", "text"},
        milestones={"None", "list"},
        device=TEXTS,
        cuda_graph={"True"},
    ),
    "retrieval.wrong_before_right": SEARCHES,
    "retrieval.recall_at_k": SEARCHES,
    "retrieval.RetrievalMatrix": dict(old_gallery={"None"}),
    "comparison.render_table": dict(markdown={"True"}),
    "retrieval.all_alike": dict(features=MATRICES | {"wrong length"}),
    "retrieval.nearest": dict(
        queries=MATRICES | {"wrong length"},
        gallery=MATRICES | {"wrong length"},
        same_images={"True"},
    ),
    "retrieval.average": dict(matrix=TABLES),
    "retrieval.forgetting": dict(matrix=TABLES),
    "retrieval.backward_transfer": dict(matrix=TABLES),
    "drift.cosine_drift": dict(old=MATRICES, new=MATRICES, labels=ANY_LABELS),
    "drift.neighborhood_overlap": dict(old=MATRICES, new=MATRICES),
    "drift.linear_cka": dict(old=MATRICES, new=MATRICES),
    "drift.best_rotation": dict(old=MATRICES, new=MATRICES),
    "projection.place_on_map": dict(features={"half precision", "matrix", "wrong length"}),
    "published.Experiment.configs": dict(epochs={"None"}),
    "seeds.mean_and_sd": dict(values={"list of None"}, percent={"True"}),
    "report.variants": dict(records={"list"}),
    "report.plain_runs": dict(records={"list"}, dataset=TEXTS, preset=TEXTS),
    "report.render_json": dict(records={"list"}, against={"None", "dictionary"}),
    "report.render_csv": dict(records={"list"}, against={"None", "dictionary"}),
    "report.render": dict(records={"list"}, markdown={"True"}, against={"None", "dictionary"}),
    "report.format_table": dict(header={"list of texts"}, rows={"list"}, markdown={"True"}),
    "comparison.paper_groups": dict(records={"list"}),
    "comparison.render_paper": dict(groups={"list"}, markdown={"True"}),
    "plots.show": dict(description=TEXTS),
    "plots.image_rows": dict(titles={"None", "list of texts", "text"}),
    "plots.task_picture": dict(classes_per_task={"10**30"}),
    "plots.number_matrix": dict(
        rows={"list of texts"},
        columns={"list of texts"},
        title=TEXTS,
        number_format={"empty text"},
        outlined={"None"},
        limits={"None", "too few labels"},
        axis={"None"},
    ),
    "plots.unit_circle": dict(arrows={"None"}, axis={"None"}),
    "plots.LiveCurves": dict(seconds={"0", "10**30", "1e30", "half"}),
    "plots.LiveCurves.finish": dict(description=TEXTS),
    "figures.method_curves": dict(
        ylabel=TEXTS, title=TEXTS, xlabels={"empty text", "list", "list of texts"}
    ),
    "plots.grouped_points": dict(ylabel=TEXTS, title=TEXTS, bars={"True"}),
    "figures.paper_figures": dict(groups={"list"}, folder={"text"}),
    "plots.drift_maps": dict(class_names=NAMES),
    "plots.class_centers": dict(labels=ANY_LABELS),
    "plots.class_map": dict(class_names=NAMES, came_from={"dictionary"}),
    "widgets.Control": dict(label=TEXTS, value={"True"}, menu={"True"}),
    "widgets.explore": dict(draw={"function"}),
    "widgets.split_picture": dict(order_seed={"0", "None"}),
    "widgets.csd_temperature": dict(temperature={"half"}),
    "widgets.neighbors": dict(query={"0"}),
    "widgets.moment_control": dict(value={"0", "True"}),
    "widgets.share_at_home": dict(moment={"0"}),
    "widgets.training_moment": dict(moment={"0"}),
    "session.Session": dict(device=TEXTS),
    "session.Session.config": dict(seed={"0"}, epochs={"None"}),
    "session.Session.run": dict(seed={"0"}, epochs={"None"}),
    "session.Session.try_term": dict(term={"function"}, seed={"0"}),
    "session.Session.check": dict(
        what=TEXTS,
        value={"-1", "0", "10**30", "1e30", "True", "half", "inf", "nan", "scalar tensor"},
        quoted={"-1", "0", "10**30", "1e30", "half"},
        tolerance={"0", "10**30", "1e30", "half"},
    ),
    "session.start": dict(keep_in_drive={"True"}),
    "session.show_source": dict(function={"function"}),
}


def modules(room):
    top = importlib.import_module(f"csd_lib.{ROOMS[room]}")
    inner = pkgutil.iter_modules(getattr(top, "__path__", []))
    return [top, *(importlib.import_module(f"{top.__name__}.{m.name}") for m in inner)]


def public_names(room):
    """Names of a room's functions and classes, and of the methods of those."""
    for module in modules(room):
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
                continue
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{room}.{name}"
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{room}.{name}.{method}"


def is_checker(name):
    return name.removeprefix("checkers.") in {check.__name__ for check in CHECKERS.values()}


def test_every_public_function_is_tried_or_exempt_for_a_reason():
    found = {name for room in ROOMS if room not in EXEMPT_ROOMS for name in public_names(room)}
    found = {name for name in found if not is_checker(name)}
    assert found - CALLS.keys() - EXEMPT == set(), "give it a valid call in CALLS"
    assert (CALLS.keys() | EXEMPT) - found == set(), "it does not exist any more"
    assert not CALLS.keys() & EXEMPT and ROOMS.keys() >= EXEMPT_ROOMS


@pytest.fixture
def nothing_long(monkeypatch, tmp_path):
    """No training, no download, and no file but in a folder of this test."""
    stub = SimpleNamespace(models=[model()], tasks=tasks(), folder=None)
    monkeypatch.setattr(session, "run_experiment", lambda *_, **__: stub)
    monkeypatch.setattr(session, "train", lambda *_, **__: stub)
    monkeypatch.setattr(session, "load_dataset", lambda *_: digits())

    def no_download(root):
        raise InputError(f"root={root!r} holds nothing")

    monkeypatch.setattr(datasets, "fetch_cifar100", no_download)
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("CSD_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    axis.cache_clear()
    yield
    plt.close("all")


def resolve(name):
    room, *path = name.split(".")
    (found,) = [m for m in modules(room) if hasattr(m, path[0])][:1]
    return functools.reduce(getattr, path, found)


def problem(error, parameters, value):
    """Say what is wrong with an error, or None if it is one clear line.

    It may name another argument, which the value does not fit, or write the value.
    """
    message = str(error)
    if not isinstance(error, InputError):
        return f"{type(error).__name__}: {message[:100]}"
    if "\n" in message or len(message) >= 400:
        return f"not one short line: {message[:100]}"
    if message.startswith("None") or message.endswith("give None"):
        return f"names no argument, or no remedy: {message[:200]}"
    names = [*parameters, *(ALIASES[name] for name in parameters if name in ALIASES)]
    named = any(re.search(rf"\b{name}\b", message) for name in names)
    if not named and checks.shown(value) not in message:
        return f"does not name the argument: {message[:200]}"
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_a_bad_argument_is_named_in_one_line(name, nothing_long, monkeypatch):
    function = resolve(name)
    if name != "projection.fit_map":
        function(**CALLS[name]())
    wrong, accepted = {}, {}
    for parameter in CALLS[name]():
        for label, value in catalogue().items():
            if parameter == "self":
                continue
            try:
                function(**{**CALLS[name](), parameter: value})
            except Exception as error:
                if found := problem(error, CALLS[name](), value):
                    wrong[parameter, label] = found
            else:
                accepted.setdefault(parameter, set()).add(label)
            plt.close("all")
    assert wrong == {}
    assert accepted == ALLOWED.get(name, {})


# --- checkers answer whatever a learner's function does ---------------------------------------


class Unprintable:
    """Raises at whatever is done with it."""

    def __getattribute__(self, name):
        raise RuntimeError(f"no {name}")

    __repr__ = __str__ = __len__ = __iter__ = __eq__ = __bool__ = None


def answers():
    """What a learner's function may do, by name."""

    def raising(error):
        def function(*_, **__):
            raise error

        return function

    found = {f"returns {k}": (lambda *_, v=v, **__: v) for k, v in catalogue().items()}
    errors = (ValueError("two\nlines"), KeyError("k"), RecursionError(), StopIteration(1))
    errors += (AssertionError(), NotImplementedError(), MemoryError())
    errors += (SystemExit(3), InputError("x"))
    found |= {f"raises {type(error).__name__}": raising(error) for error in errors}
    found |= {
        "returns what it is given": lambda *given: given[0] if given else 0,
        "returns all that it is given": lambda *given: given,
        "takes nothing": lambda: 1,
        "takes too much": lambda a, b, c, d, e, f, g: 1,
        "is a generator": lambda *_: (i for i in range(3)),
        "returns a class": lambda *_: int,
        "returns a tuple of three": lambda *_: (1.0, 2.0, 3),
        "returns a module": lambda *_: torch.nn.Linear(2, 2),
        "returns something broken": lambda *_: Unprintable(),
        "changes what it is given": lambda *given: [x.zero_() for x in given],
        "is no function": 3,
        "is not there": None,
    }
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exercise", CHECKERS)
def test_a_checker_never_raises(exercise):
    check = CHECKERS[exercise]
    arguments = list(inspect.signature(check).parameters)
    first = RIGHT_NUMBERS[exercise][:1] if arguments[0] == "first" else ()
    tried = catalogue() if first else answers()
    raised = {}
    for label, value in tried.items():
        try:
            found = check(*first, *[value] * (len(arguments) - len(first)))
            assert isinstance(found, Verdict) and repr(found) and found._repr_markdown_()
            assert not found.passed, "a wrong answer was accepted"
            assert "\n" not in found.message, "it should be one paragraph"
        except BaseException as error:
            raised[label] = f"{type(error).__name__}: {error}"
    assert raised == {}


# Just beyond what a setting may be, by hand: what is tried above asks the declarations.
NO_SENSE = (
    *((name, -1e-9) for name in ("lambda_kd", "lambda_csd", "lambda_mmd", "lambda_fecd")),
    *((name, -1e-9) for name in ("margin", "backbone_rate", "weight_decay")),
    *((name, 0.0) for name in ("kd_temperature", "csd_temperature", "fecd_temperature")),
    *((name, 0.0) for name in ("learning_rate", "later_learning_rate", "held_out")),
    *((name, 0) for name in ("tasks", "first_classes", "epochs", "later_epochs")),
    *((name, 0) for name in ("stop_at_epoch", "select_every", "embedding", "image_size")),
    *((name, -1) for name in ("crop_padding", "seed", "class_order_seed")),
    *(("milestones", value) for value in ((0.5, 0.25), (0.5, 1.5), (0, 3), (0.5, 3))),
    *(("batch_size", 1), ("depth", 7), ("depth", 18), ("held_out", 0.9), ("preset", "class")),
)


@pytest.mark.parametrize("name, value", NO_SENSE)
def test_a_setting_that_makes_no_sense_is_refused(name, value):
    with pytest.raises(InputError, match=re.escape(f"{name}={value!r}")):
        TrainConfig(**{name: value})
