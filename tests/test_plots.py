"""All figures are in the one style: large type, and a marker of its own beside every colour."""

import inspect
from unittest.mock import patch

import made_up
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from csd_lib import InputError
from csd_lib.course import plots
from csd_lib.methods import METHODS, TERMS, Method, Term
from csd_lib.model import ResNet
from csd_lib.paper import figures, ledger, report
from csd_lib.paper.comparison import paper_groups, tables

POINTS = made_up.on_circle(0, 60, 120, 180)
LABELS = torch.tensor([0, 0, 1, 1])
NAMES = [str(digit) for digit in range(10)]
HISTORY = [
    dict(task=t, epoch=e, **dict.fromkeys(figures.TERM_STYLE, 1)) for t in (0, 1) for e in (0, 1)
]

RECIPES = {"ce": [[90.0, 97.0, float("nan")], [92.0, 98.0, 30.0]], "ce+kd": [[99.0, 97.5, 80.0]]}


def a_search(dataset):
    """Two queries, a 0 and a 1, and the images of other numbers that two networks find."""
    of = [(dataset.test_labels == label).nonzero().flatten().tolist() for label in range(4)]
    before = [[of[0][1], of[0][2]], [of[1][1], of[1][2]]]
    after = [[of[1][0], of[0][3]], [of[2][0], of[3][0]]]
    return [of[0][0], of[1][0]], {"before": before, "after": after}


def random_maps():
    generator = np.random.default_rng(0)
    return {title: generator.normal(size=(40, 2)) for title in ("before", "after")}


def recorded_table(dataset, name="table1"):
    groups = paper_groups([r for r in ledger.load_records() if r.config.dataset == dataset])
    return next(table for group in groups for table in tables(group) if table.name == name)


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
    "search_pictures": lambda d, t: plots.search_pictures(d, *a_search(d)),
    "method_curves": lambda d, t: figures.method_curves(
        {name: np.random.rand(2, 3) for name in METHODS}, "y", "title", "abc"
    ),
    "grouped_points": lambda d, t: plots.grouped_points(
        {"group": {name: [1.0, 2.0] for name in METHODS}}, "y", "title", bars=False
    ),
    "recipe_points": lambda d, t: plots.recipe_points(
        RECIPES, {"ce+mmd (new)": [95, 96, 40.0]}, {"ce": RECIPES["ce"][1]}
    ),
    "paper_against_ours": lambda d, t: figures.paper_against_ours(recorded_table("cifar100")),
    "first_task_curves": lambda d, t: figures.first_task_curves(recorded_table("digits")),
    "term_effects": lambda d, t: figures.term_effects(recorded_table("digits", "figure5"), "own"),
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
def test_type_is_readable_from_the_back_row(name, small_texts, digits, two_tasks, monkeypatch):
    # Whether today's code computes what was recorded takes half a minute, and moves no letter.
    monkeypatch.setattr(report, "notes_on_code", lambda records: [""] * len(records))
    assert small_texts(FIGURES[name](digits, two_tasks)) == []


def test_curves_show_the_seeds_that_every_row_has(style):
    """A line over other seeds than its neighbour's could not be compared with it."""
    kinds = (("csd", 0), ("csd", 1), ("lwf", 0))
    found = [made_up.record(method=method, tasks=5, seed=seed) for method, seed in kinds]
    (table,) = (t for group in paper_groups(found) for t in tables(group) if t.name == "figure3")
    drawn = figures.first_task_curves(table).axes[0].lines
    lines = {tuple(np.round(line.get_ydata(), 6)) for line in drawn}
    one, other, lwf = (tuple(np.round(100 * r.matrix.own[:, 0], 6)) for r in found)
    assert {one, lwf} <= lines and other not in lines


def test_small_type_would_be_found(small_texts):
    figure, axis = plt.subplots()
    axis.set_title("large", fontsize=15)
    axis.tick_params(labelsize=9)
    assert {size for _, size in small_texts(figure)} == {9}


@pytest.mark.parametrize("styles", [figures.METHOD_STYLE, figures.TERM_STYLE])
def test_every_method_and_every_loss_term_has_a_marker_of_its_own(styles):
    markers = [style["marker"] for style in styles.values()]
    assert len(set(markers)) == len(styles)


def test_every_method_has_a_style_and_every_class_a_marker():
    # One without gets a free one; `ce+kd` is LwF as first published.
    assert figures.METHOD_STYLE.keys() - {"ce+kd"} <= METHODS.keys()
    assert len(set(plots.CLASS_MARKERS)) == len(set(plots.CLASS_COLORS)) == 10


def test_drawn_methods_differ_in_marker_and_colour(style):
    curves = [c.lines[0] for c in FIGURES["method_curves"](None, None).axes[0].containers]
    assert len({curve.get_marker() for curve in curves}) == len(METHODS) == len(curves)
    assert len({to_hex(style["color"]) for style in figures.METHOD_STYLE.values()}) == len(
        figures.METHOD_STYLE
    )


NEW = [f"new{i}" for i in range(12)]


def assert_told_apart(styles):
    looks = [(style["marker"], to_hex(style["color"])) for style in styles]
    assert len(set(looks)) == len(looks)


def test_a_negative_term_is_inside_its_axis_and_others_begin_at_0(style):
    for lowest in (-0.7, 0.5):
        history = [
            dict(task=0, epoch=e, loss=1.0, ce=value) for e, value in ((0, 1.0), (1, lowest))
        ]
        bottom, _ = plots.training_curves(history).axes[0].get_ylim()
        assert bottom < -0.7 if lowest < 0 else bottom == 0


def test_terms_registered_at_run_time_get_styles_of_their_own(style):
    new = {name: Term(f"My {name}", lambda o, s: o.logits.sum()) for name in NEW}
    history = [{**epoch, **dict.fromkeys(new, 2)} for epoch in HISTORY]
    with patch.dict(TERMS, new):
        axis = plots.training_curves(history).axes[0]
        assert_told_apart(figures.term_styles(new).values())
    labels = {line.get_label() for line in axis.lines}
    known = [TERMS[name] for name in TERMS if name in HISTORY[0]]
    assert labels == {term.title for term in [*known, *new.values()]} and len(known) > 2
    drawn = [dict(marker=line.get_marker(), color=line.get_color()) for line in axis.lines]
    assert_told_apart(drawn)
    assert figures.term_styles(["gone"])["gone"]["label"] == "gone"  # of somebody's history


@pytest.mark.parametrize(
    "draw",
    [
        lambda values: figures.method_curves(values, "y"),
        lambda values: plots.grouped_points(
            {"group": {name: runs[:, 0].tolist() for name, runs in values.items()}},
            "y",
            "title",
            bars=False,
        ),
    ],
    ids=["method_curves", "grouped_points"],
)
def test_methods_registered_at_run_time_get_styles_of_their_own(style, draw):
    new = {name: Method(f"My {name}", "ce+triplet") for name in NEW}
    with patch.dict(METHODS, new):
        figure = draw({name: np.random.rand(2, 3) for name in METHODS})
        assert_told_apart(figures.method_styles(METHODS).values())
    shown = {text.get_text() for text in figure.findobj(plt.Text)}
    assert {f"My {name}" for name in NEW} <= shown


def test_the_style_of_a_known_name_does_not_depend_on_others():
    for styles, known in (
        (figures.method_styles, figures.METHOD_STYLE),
        (figures.term_styles, figures.TERM_STYLE),
    ):
        for name, own in known.items():
            found = styles([*NEW, name])[name]
            assert {key: found[key] for key in own} == own


def test_a_search_says_what_is_right_by_a_mark_and_by_colour_and_names_what_is_wrong(digits, style):
    queries, found = a_search(digits)
    figure = plots.search_pictures(digits, queries, found)
    drawn = [axis for axis in figure.axes if axis.images and "query" not in axis.get_title()]
    titles = [axis.get_title() for axis in drawn]
    assert titles == ["✓", "✓", "✗ 1", "✓", "✓", "✓", "✗ 2", "✗ 3"]
    shown = [np.asarray(axis.images[0].get_array()) for axis in drawn]
    numbers = [n for block in (0, 1) for rows in found.values() for n in rows[block]]
    for picture, number in zip(shown, numbers, strict=True):
        assert np.array_equal(picture, digits.test_images[number, 0])
    colors = {(t[0], to_hex(a.title.get_color())) for t, a in zip(titles, drawn, strict=True)}
    assert len(colors) == 2  # one colour for each mark
    words = plots.search_words(digits, queries, found)
    assert words == (
        "query 0. before: 2 of 2 right; after: 1 of 2 right, wrong: 1. "
        "query 1. before: 2 of 2 right; after: 0 of 2 right, wrong: 2, 3."
    )


def test_a_search_can_be_drawn_in_a_task_of_its_own(two_tasks, style):
    new = two_tasks[1]  # its labels do not begin at 0
    words = plots.search_words(new, [0], {"network": [[0, 1]]})
    names = [new.class_names[new.test_labels[i] - 5] for i in (0, 1)]
    assert words == f"query {names[0]}. network: 1 of 2 right, wrong: {names[1]}."


@pytest.mark.parametrize(
    "queries, found, words",
    [
        ([0, 1], {"a": [[1, 2]]}, "1 rows for 2 queries"),
        ([0], {"a": [[1, 2]], "b": [[1]]}, "equally many"),
        ([0], {"a": [[1, 602]]}, "0 to 601"),
        ([0], {"a": [[1, 1.5]]}, "0 to 601"),
    ],
)
def test_a_search_that_cannot_be_drawn_is_refused(queries, found, words, digits):
    with pytest.raises(InputError, match=words):
        plots.search_pictures(digits, queries, found)


def test_lines_on_a_map_run_from_the_old_centre_of_a_class_to_the_new(style):
    maps, labels = random_maps(), torch.arange(10).repeat(4)
    before, after = plots.drift_maps(maps, labels, NAMES, start="before").axes
    assert len(after.lines) == 10 and not before.lines
    for digit, line in enumerate(after.lines):
        chosen = labels.numpy() == digit
        ends = [maps[title][chosen].mean(axis=0) for title in ("before", "after")]
        assert np.allclose(line.get_xydata(), ends)
        ring = after.collections[3 * digit + 2]  # after the images and the centre
        assert np.allclose(ring.get_offsets(), ends[:1])


def test_live_curves_take_what_training_hands_over(style, monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", lambda figure, **_: shown.append(figure))
    plots.LiveCurves(seconds=0)(HISTORY, ResNet(8, 5, 1))
    plots.LiveCurves(seconds=1000)(HISTORY, ResNet(8, 5, 1))
    assert len(shown) == 1


def test_equal_points_stand_side_by_side_and_a_single_group_names_its_methods(style):
    runs = {"csd": [90.0, 90.0, 90.0], "lwf": [80.0, 81.0, 82.0]}
    alone = plots.grouped_points({"digits": runs}, "y", bars=False).axes[0]
    places = [
        points.get_offsets() for points in alone.collections if len(points.get_offsets()) == 3
    ]
    assert [len(np.unique(of_method[:, 0])) for of_method in places] == [3, 3]
    assert [tick.get_text() for tick in alone.get_xticklabels()] == ["CSD", "LwF"]
    assert alone.get_legend() is None and alone.get_xlabel() == "digits"
    both = plots.grouped_points({"old": runs, "new": runs}, "y").axes[0]
    assert [tick.get_text() for tick in both.get_xticklabels()] == ["old", "new"]
    assert [text.get_text() for text in both.get_legend().get_texts()] == ["CSD", "LwF"]


def test_the_classes_of_a_map_are_named_below_it_each_by_its_marker(style):
    names = ["bear", "beaver", "apple", "aquarium fish", "baby"]
    centers = np.array([(0, 0), (0.2, 0.1), (8, 8), (-8, 8), (8, -8)], dtype=float)
    positions = np.tile(centers, (4, 1))
    maps = {"before": positions, "now": positions + 1}
    figure = plots.drift_maps(maps, torch.arange(5).repeat(4), names, start="before")
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    marks = legend.legend_handles
    assert len({tuple(mark.get_facecolor()[0]) for mark in marks}) == 5
    assert len({mark.get_paths()[0].vertices.tobytes() for mark in marks}) == 5
    below = legend.get_window_extent()
    assert all(below.y1 <= axis.get_window_extent().y0 for axis in figure.axes)
    assert below.x0 >= 0 and below.x1 <= figure.bbox.x1


def test_recipes_stand_in_their_rows_and_the_new_run_is_a_star_below_them(style):
    plots.recipe_points({"ce": [[1.0, 2.0, 3.0]]}, {"mine": [1.0, 2.0, 3.0]})  # no rings
    panels = FIGURES["recipe_points"](None, None).axes
    assert [axis.get_title() for axis in panels] == ["old classes", "new classes", "old gallery"]
    names = [tick.get_text() for tick in panels[0].get_yticklabels()]
    places = dict(zip(names, panels[0].get_yticks(), strict=True))
    assert places["ce"] > places["ce+kd"] > places["ce+mmd (new)"]
    for column, axis in enumerate(panels):
        drawn = {place: set() for place in places.values()}
        rings = [points for points in axis.collections if not len(points.get_facecolors())]
        for points in axis.collections:
            for x, y in points.get_offsets():
                drawn[y].add(round(float(x), 6))
        (ring,) = rings
        assert ring.get_offsets().tolist() == [[RECIPES["ce"][1][column], places["ce"]]]
        for recipe, runs in RECIPES.items():
            values = [run[column] for run in runs if np.isfinite(run[column])]
            assert drawn[places[recipe]] == {*values, np.mean(values)}, "runs and their mean"
        assert drawn[places["ce+mmd (new)"]] == {[95, 96, 40][column]}
