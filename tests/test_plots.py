"""All figures are in the one style: large type, and a marker of its own beside every colour."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from csd_lib.course import plots
from csd_lib.methods import METHODS, TERMS, Method, Term
from csd_lib.model import ResNet
from csd_lib.paper import figures, ledger
from csd_lib.paper.comparison import paper_groups, tables

CIRCLE = torch.tensor([0.0, 60, 120, 180]).deg2rad()
POINTS = torch.stack([CIRCLE.cos(), CIRCLE.sin()], dim=1)
LABELS = torch.tensor([0, 0, 1, 1])
NAMES = [str(digit) for digit in range(10)]
HISTORY = [
    dict(task=t, epoch=e, **dict.fromkeys(figures.TERM_STYLE, 1)) for t in (0, 1) for e in (0, 1)
]


def random_maps():
    generator = np.random.default_rng(0)
    return {title: generator.normal(size=(40, 2)) for title in ("before", "after")}


def table(dataset):
    groups = paper_groups(ledger.load_records())
    return next(t for g in groups for t in tables(g) if g.config.dataset == dataset)


# One call of every public function that returns a figure.
FIGURES = {
    "image_rows": lambda d, t: plots.image_rows([("a", d.test_images[:3])], ["x", "y", "z"]),
    "task_picture": lambda d, t: plots.task_picture(t),
    "visibility_picture": lambda d, t: plots.visibility_picture(3),
    "number_matrix": lambda d, t: plots.number_matrix(
        torch.rand(2, 3), "ab", "xyz", title="title", outlined=torch.ones(2, 3)
    ),
    "unit_circle": lambda d, t: plots.unit_circle(
        {"student": POINTS, "teacher": POINTS.flip(0)}, LABELS, arrows=0.2 * POINTS
    ),
    "training_curves": lambda d, t: plots.training_curves(HISTORY),
    "retrieval_examples": lambda d, t: plots.retrieval_examples(
        d.test_images[:2],
        d.test_images[:6].unflatten(0, (2, 3)),
        torch.eye(2, 3) > 0,
        "01",
        ["first\nrow", "second\nrow"],
    ),
    "method_curves": lambda d, t: figures.method_curves(
        {name: np.random.rand(2, 3) for name in METHODS}, "y", "title", "abc"
    ),
    "grouped_points": lambda d, t: plots.grouped_points(
        {"group": {name: [1.0, 2.0] for name in METHODS}}, "y", "title", bars=False
    ),
    "paper_against_ours": lambda d, t: figures.paper_against_ours(table("cifar100")),
    "first_task_curves": lambda d, t: figures.first_task_curves(table("digits"), "own"),
    "drift_maps": lambda d, t: plots.drift_maps(
        random_maps(), torch.arange(10).repeat(4), NAMES, start="before"
    ),
}


def test_every_figure_of_the_library_is_looked_at_here():
    public = {
        name
        for module in (plots, figures)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
        if inspect.signature(function).return_annotation == "Figure"
    }
    assert public == FIGURES.keys()


@pytest.mark.parametrize("name", FIGURES)
def test_type_is_readable_from_the_back_row(name, small_texts, digits, two_tasks):
    assert small_texts(FIGURES[name](digits, two_tasks)) == []


def test_small_type_would_be_found(small_texts):
    figure, axis = plt.subplots()
    axis.set_title("large", fontsize=15)
    axis.tick_params(labelsize=9)
    assert {size for _, size in small_texts(figure)} == {9}


@pytest.mark.parametrize("styles", [figures.METHOD_STYLE, figures.TERM_STYLE])
def test_every_method_and_every_loss_term_has_a_marker_of_its_own(styles):
    markers = [style["marker"] for style in styles.values()]
    assert len(set(markers)) == len(styles)


def test_what_is_registered_is_drawn_with_a_look_and_a_name_of_its_own(style, monkeypatch):
    monkeypatch.setitem(METHODS, "mine", Method("My method", "ce"))
    monkeypatch.setitem(TERMS, "new", Term("new term", lambda o, s: 0))
    names = [*METHODS, *(f"recipe {i}" for i in range(9))]
    looks = figures.method_styles(names).values()
    assert len({(s["marker"], s["color"], s["linestyle"]) for s in looks}) == len(names)
    assert len({s["marker"] for s in list(looks)[len(METHODS) - 1 :]}) == 10
    curves = figures.method_curves({name: np.random.rand(2, 3) for name in names}, "y")
    assert "My method" in [text.get_text() for text in curves.axes[0].get_legend().texts]
    history = [dict(task=0, epoch=e, ce=1.0, new=0.5, gone=0.1, seconds=9.0) for e in (0, 1)]
    legend = plots.training_curves(history).axes[0].get_legend()
    assert [text.get_text() for text in legend.texts] == ["cross entropy", "new term", "gone"]
    plots.grouped_points({"a group": {name: [1.0, 2.0] for name in names}}, "y")


def test_every_method_and_term_has_a_style_and_every_class_a_marker():
    assert figures.METHOD_STYLE.keys() == METHODS.keys()
    assert figures.TERM_STYLE.keys() == TERMS.keys()
    assert len(set(plots.CLASS_MARKERS)) == len(set(plots.CLASS_COLORS)) == 10


def test_drawn_methods_differ_in_marker_and_colour(style):
    curves = [c.lines[0] for c in FIGURES["method_curves"](None, None).axes[0].containers]
    assert len({curve.get_marker() for curve in curves}) == len(METHODS) == len(curves)
    assert len({to_hex(curve.get_color()) for curve in curves}) == len(METHODS)


def test_arrows_on_a_map_run_from_the_old_centre_of_a_class_to_the_new(style):
    maps, labels = random_maps(), torch.arange(10).repeat(4)
    before, after = plots.drift_maps(maps, labels, NAMES, start="before").axes
    arrows = [text for text in after.texts if text.arrow_patch is not None]
    assert not [text for text in before.texts if text.arrow_patch is not None]
    for digit, arrow in enumerate(arrows):
        chosen = labels.numpy() == digit
        assert np.allclose(arrow.xyann, maps["before"][chosen].mean(axis=0))
        assert np.allclose(arrow.xy, maps["after"][chosen].mean(axis=0))
    assert len(arrows) == 10


def test_live_curves_take_what_training_hands_over(style, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda figure, **_: shown.append(figure))
    plots.LiveCurves(seconds=0)(HISTORY, ResNet(8, 5, 1))
    plots.LiveCurves(seconds=1000)(HISTORY, ResNet(8, 5, 1))
    assert len(shown) == 1
