"""Figures, all in one style: colour-blind safe, markers as well as colours, large type.

Every function takes data and returns a matplotlib figure, or raises InputError for what cannot be
drawn; ``show`` puts it on a notebook page with a text that describes it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from csd_lib import InputError, checks
from csd_lib.data import Dataset, Task
from csd_lib.model import ResNet
from csd_lib.paper.figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    method_styles,
    method_title,
    panels_of_rows,
    term_styles,
)
from csd_lib.paper.figures import method_curves as method_curves  # for the notebooks

CLASS_COLORS = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED, BLACK, "#F0E442", GREY, "#882255"]
# Columns of a history that are no loss terms.
_NO_TERMS = {"task", "epoch", "loss", "spread", "learning_rate", "seconds", "selection_recall"}
CLASS_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*", "<", ">"]


def show(figure: Figure, description: str) -> None:
    """Put a figure on the page, with a description for readers who cannot see it.

    The description is stored as the image's alt text and written below it.
    """
    checks.instance("figure", figure, Figure, "a matplotlib figure")
    checks.text("description", description)
    display(figure, metadata={"image/png": {"alt": description}})
    plt.close(figure)
    display(Markdown(f"*Figure: {description}*"))


def image_rows(rows: Sequence[tuple[str, Tensor]], titles: Sequence[str] | None = None) -> Figure:
    """Rows of images, each with a label on its left.

    Args:
        rows: (label, images uint8 ``[n, C, H, W]``).
        titles: one text above each column of the first row.
    """
    checks.sequence("rows", rows, tuple, "pairs of a label and its images")
    for row in rows:
        if len(row) != 2 or not isinstance(row[0], str):
            raise InputError(f"rows={checks.shown(row)}: give pairs of a label and its images")
        _check_images("images", row[1])
    if titles is not None:
        checks.names("titles", titles, 1)
    columns = max(len(images) for _, images in rows)
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(1.05 * columns + 1.2, 1.1 * len(rows) + 0.35 * bool(titles)),
        squeeze=False,
        layout="constrained",
    )
    for places, (label, images) in zip(axes, rows, strict=True):
        for column, axis in enumerate(places):
            axis.axis("off")
            if column < len(images):
                _draw_image(axis, images[column])
        first = places[0]
        first.text(-0.15, 0.5, label, transform=first.transAxes, ha="right", va="center")
    for axis, title in zip(axes[0], titles or [], strict=False):
        axis.set_title(title, fontsize=13)
    return figure


def _check_images(name: str, images: Any) -> None:
    checks.images(name, images)
    if images.shape[1] not in (1, 3):
        raise InputError(f"{name} are {checks.shown(images)}: give images with 1 or 3 channels")


def _draw_image(axis: Axes, image: Tensor) -> None:
    """Draw one uint8 ``[C, H, W]`` image, grey if it has a single channel."""
    pixels = image.permute(1, 2, 0).cpu().numpy()
    axis.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def task_picture(tasks: Sequence[Task], classes_per_task: int = 5) -> Figure:
    """The split as a picture: a row per task, one training image for each of its classes."""
    checks.sequence("tasks", tasks, Task, "the list of class_incremental_split")
    checks.whole("classes_per_task", classes_per_task, 1)
    rows, titles = [], []
    for task in tasks:
        labels = range(task.first_label, task.end_label)[:classes_per_task]
        if missing := {*labels} - {*task.train_labels.tolist()}:
            raise InputError(f"task {task.index + 1} has no image of label {min(missing)}")
        first = [int((task.train_labels == label).nonzero()[0]) for label in labels]
        rows.append((f"task {task.index + 1}", task.train_images[first]))
        titles.append([task.class_names[label - task.first_label] for label in labels])
    figure = image_rows(rows)
    axes = np.array(figure.axes).reshape(len(rows), -1)
    for row, names in zip(axes, titles, strict=True):
        for axis, name in zip(row, names, strict=False):
            axis.set_title(name, fontsize=13)
    return figure


def visibility_picture(num_tasks: int) -> Figure:
    """Which images are there for what: a row per training stage, a column per task."""
    checks.whole("num_tasks", num_tasks, 1, 100)
    states = np.tri(num_tasks, dtype=int) + np.eye(num_tasks, dtype=int)
    words = ["not yet there", "gone; test only", "train"]
    figure, axis = plt.subplots(figsize=(2.6 * num_tasks + 1, 0.9 * num_tasks + 0.8))
    import seaborn as sns  # here, for it is slow to import

    sns.heatmap(states, cmap=["#F2F2F2", "#BFD7EA", BLUE], cbar=False, linewidths=3, ax=axis)
    for i, j in np.ndindex(states.shape):
        color = "white" if states[i, j] == 2 else BLACK
        axis.text(j + 0.5, i + 0.5, words[states[i, j]], ha="center", va="center", color=color)
    axis.set_xticklabels([f"images of task {j + 1}" for j in range(num_tasks)])
    axis.set_yticklabels([f"while training task {i + 1}" for i in range(num_tasks)], rotation=0)
    return figure


def number_matrix(
    values: np.ndarray | Tensor,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    number_format: str = ".2f",
    outlined: np.ndarray | Tensor | None = None,
    limits: tuple[float, float] | None = None,
    axis: Axes | None = None,
) -> Figure:
    """A heat map with its numbers written in; NaN cells stay empty.

    Args:
        values: ``[rows, columns]``.
        outlined: bool of the same shape; these cells get a thick frame.
        limits: smallest and largest value of the colour scale.
        axis: draw into this one instead of a new figure.
    """
    values = np.round(checks.table("values", values), 6) + 0.0  # no -0.00
    if np.isinf(values).any():
        raise InputError("values contain infinite numbers, which have no colour")
    checks.names("rows", rows, len(values), more=False)
    checks.names("columns", columns, values.shape[1], more=False)
    checks.text("title", title)
    try:
        format(0.5, number_format)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"number_format={checks.shown(number_format)}: give one like .2f"
        ) from error
    if outlined is not None:
        outlined = checks.table("outlined", outlined)
        if outlined.shape != values.shape:
            raise InputError(f"outlined has shape {outlined.shape}, the values {values.shape}")
    low, high = (None, None) if limits is None else _limits(limits)
    figure, axis = _place(axis, (0.95 * len(columns) + 1.8, 0.65 * len(rows) + 1.1))
    import seaborn as sns  # here, for it is slow to import

    sns.heatmap(
        values,
        annot=True,
        fmt=number_format,
        cmap="cividis",
        cbar=False,
        vmin=low,
        vmax=high,
        linewidths=2,
        xticklabels=columns,
        yticklabels=rows,
        ax=axis,
        annot_kws={"fontsize": 14},
    )
    mesh = axis.collections[-1]
    for text in axis.texts:  # seaborn writes white on colours that it can hardly be read on
        column, row = (int(at) for at in text.get_position())
        color = mesh.cmap(mesh.norm(values[row, column]))
        text.set_color("black" if sns.utils.relative_luminance(color) > 0.18 else "white")
    axis.tick_params(axis="y", rotation=0)
    axis.grid(False)
    axis.set_title(title)
    if outlined is not None:
        for i, j in np.argwhere(outlined):
            axis.add_patch(Rectangle((j + 0.05, i + 0.07), 0.9, 0.86, fill=False, ec=RED, lw=4))
    return figure


def _place(axis: Axes | None, size: tuple[float, float]) -> tuple[Figure, Axes]:
    """Return the figure and the axes to draw into, which are new ones if none are given."""
    checks.instance("axis", axis, (Axes, type(None)), "matplotlib axes, or None")
    if axis is None:
        return plt.subplots(figsize=size)
    return axis.figure.figure, axis  # of axes in a subfigure, the whole figure


def _limits(limits: tuple[float, float]) -> list[float]:
    low_and_high = checks.table("limits", limits, 1).tolist()
    if len(low_and_high) != 2 or not low_and_high[0] < low_and_high[1]:
        raise InputError(f"limits={checks.shown(limits)}: give a smaller and a larger number")
    return low_and_high


def unit_circle(
    groups: dict[str, Tensor],
    labels: Tensor,
    arrows: Tensor | None = None,
    axis: Axes | None = None,
) -> Figure:
    """Two-dimensional features of two classes as points on the unit circle, a tick each 10°.

    Args:
        groups: for example ``{"student": [N, 2], "teacher": [N, 2]}``, of length 1; the second is
            drawn hollow and a little further out.
        labels: int64 ``[N]``, 0 or 1.
        arrows: ``[N, 2]``, drawn at the points of the first group.
        axis: draw into this one instead of a new figure.
    """
    checks.mapping("groups", groups, "features by name")
    for name, points in groups.items():
        checks.points(f"groups[{name!r}]", points)
        checks.matrix(f"groups[{name!r}]", points)
        checks.labels("labels", labels, len(points))
    _check_range(labels, 2)
    if arrows is not None:
        checks.points("arrows", arrows)
        checks.matrix("arrows", arrows)
        if len(arrows) != len(labels):
            raise InputError(f"arrows has {len(arrows)} rows for {len(labels)} labels")
        arrows = arrows.detach().cpu()
    groups, labels = {name: p.detach().cpu() for name, p in groups.items()}, labels.cpu()
    figure, axis = _place(axis, (7, 5.2))
    axis.add_patch(Circle((0, 0), 1, fill=False, color=GREY, lw=1.5))
    _mark_angles(axis)
    for index, (group, points) in enumerate(groups.items()):
        radius = 1 + 0.13 * index
        points = points * radius
        for label in labels.unique().tolist():
            xs, ys = points[labels == label].T.numpy()
            color = CLASS_COLORS[label]
            axis.scatter(
                xs,
                ys,
                s=170,
                marker=CLASS_MARKERS[label],
                facecolors=color if index == 0 else "white",
                edgecolors=color,
                linewidths=2.5,
                label=f"{group}, class {'AB'[label]}",
                zorder=3,
            )
        # Points in the same place share one name, or they would be written over each other.
        places: dict[tuple[float, float], list[str]] = {}
        for number, (x, y) in enumerate((points / radius * (1.42 if index else 0.83)).tolist()):
            places.setdefault((round(x, 3), round(y, 3)), []).append(f"${group[0]}_{number + 1}$")
        for (x, y), names in places.items():
            axis.text(x, y, ", ".join(names), ha="center", va="center")
    if arrows is not None:
        start, step = next(iter(groups.values())).numpy(), arrows.numpy()
        scale: dict[str, Any] = dict(angles="xy", scale_units="xy", scale=1, width=0.012)
        axis.quiver(*start.T, *step.T, color=RED, zorder=4, **scale)
    axis.set(xlim=(-1.6, 1.6), ylim=(-1.15, 1.15), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0), ncols=len(groups), frameon=False)
    return figure


def _mark_angles(axis: Axes) -> None:
    """Draw a tick each 10° on the unit circle, longer ones each 30°, and name each 90°."""
    for degrees in range(0, 360, 10):
        x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        half = 0.02 if degrees % 30 else 0.05
        ends = np.array([1 - half, 1 + half])
        axis.plot(ends * x, ends * y, color=GREY, lw=1)
        if degrees % 90 == 0:
            axis.text(0.5 * x, 0.5 * y, f"{degrees}°", color=GREY, ha="center", va="center")


def _check_range(labels: Tensor, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"labels are from {labels.min()} to {labels.max()}, but there are names (or colours) "
            f"for 0 to {classes - 1} only"
        )


def training_curves(history: Sequence[dict[str, float]]) -> Figure:
    """The loss terms of every epoch, one panel per task."""
    checks.sequence("history", history, dict, "the history of a run, one record an epoch")
    for record in history:
        terms = record.keys() - _NO_TERMS
        placed = all(isinstance(record.get(key), int) for key in ("task", "epoch"))
        if not placed or not terms or not terms >= history[0].keys() - _NO_TERMS:
            raise InputError(
                f"history={checks.shown(record)}: a record has task, epoch and its loss terms"
            )
        for term in terms:
            checks.instance(term, record[term], (int, float), "a number")
    tasks = sorted({record["task"] for record in history})
    styles = term_styles(key for record in history for key in record if key not in _NO_TERMS)
    figure, axes = plt.subplots(1, len(tasks), figsize=(6 * len(tasks), 3.8), squeeze=False)
    for task, axis in zip(tasks, axes[0], strict=True):
        records = [record for record in history if record["task"] == task]
        for term, style in styles.items():
            if term in records[0]:
                epochs = [record["epoch"] + 1 for record in records]
                every = max(1, len(records) // 8)
                axis.plot(epochs, [record[term] for record in records], **style, markevery=every)
        axis.set(title=f"task {task + 1}", xlabel="epoch")
        if axis.dataLim.y0 >= 0:  # a term of one's own may be negative
            axis.set_ylim(0, None)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend()
    axes[0][0].set_ylabel("loss term, mean of epoch")
    return figure


class LiveCurves:
    """Redraws ``training_curves`` while a network learns: pass it as ``on_epoch``.

    It draws at most every ``seconds``, so that drawing never costs more than training; call
    ``finish`` at the end for the last state, with a description.
    """

    def __init__(self, seconds: float = 2.0):
        checks.number("seconds", seconds, at_least=0)
        self.seconds, self.drawn_at = seconds, time.monotonic()
        self.handle: Any = None  # of what is on the page

    def __call__(self, history: Sequence[dict[str, float]], student: ResNet) -> None:
        """Redraw if the last drawing is old enough."""
        if time.monotonic() - self.drawn_at >= self.seconds:
            self._draw(history, "losses so far, while the network is training")

    def finish(self, history: Sequence[dict[str, float]], description: str) -> None:
        """Draw the final state in the same place, described as ``show`` does it."""
        checks.text("description", description)
        self._draw(history, description)
        display(Markdown(f"*Figure: {description}*"))

    def _draw(self, history: Sequence[dict[str, float]], description: str) -> None:
        figure = training_curves(history)
        metadata = {"image/png": {"alt": description}}
        if self.handle is None:
            self.handle = display(figure, display_id=True, metadata=metadata)
        else:
            self.handle.update(figure, metadata=metadata)
        plt.close(figure)
        self.drawn_at = time.monotonic()


def search_pictures(
    of: Dataset | Task, queries: Sequence[int], found: Mapping[str, Sequence[Sequence[int]]]
) -> Figure:
    """What several networks find: a block for each query, in it a row for each network.

    Each image that was found says whether its class is the query's (a tick) or names its own.

    Args:
        of: whose test images are meant by all numbers; with several tasks, ``merge_tasks`` of them.
        queries: numbers of the query images.
        found: for each network, by the name to show: for each query, the numbers of the images
            that it finds, nearest first (``retrieval.nearest`` finds them; a list of a JSON file
            will do).
    """
    found = _check_search(of, queries, found)
    k = len(next(iter(found.values()))[0])
    # Between two blocks lies a thin empty row.
    heights = ([1.0] * len(found) + [0.12]) * len(queries)
    figure = plt.figure(figsize=(1.3 * (k + 2.4), 1.45 * sum(heights)), layout="constrained")
    grid = figure.add_gridspec(
        len(heights), k + 2, width_ratios=[1.3, 1.1] + [1] * k, height_ratios=heights
    )
    for block, query in enumerate(queries):
        first = block * (len(found) + 1)
        axis = figure.add_subplot(grid[first : first + len(found), 0])
        _draw_image(axis, of.test_images[query])
        axis.set_title(f"query:\n{_class_name(of, query)}", fontsize=14)
        axis.axis("off")
        for row, (name, numbers) in enumerate(found.items(), start=first):
            axis = figure.add_subplot(grid[row, 1])
            axis.text(1, 0.5, name, ha="right", va="center", fontsize=14)
            axis.axis("off")
            for column, number in enumerate(numbers[block], start=2):
                _draw_found(figure.add_subplot(grid[row, column]), of, query, number)
    return figure


def search_words(
    of: Dataset | Task, queries: Sequence[int], found: Mapping[str, Sequence[Sequence[int]]]
) -> str:
    """Say in words what ``search_pictures`` shows, for readers who cannot see it.

    Args, errors: as there.
    """
    found = _check_search(of, queries, found)
    blocks = []
    for block, query in enumerate(queries):
        wanted, rows = _class_name(of, query), []
        for name, numbers in found.items():
            names = [_class_name(of, number) for number in numbers[block]]
            wrong = [other for other in names if other != wanted]
            also = f", wrong: {', '.join(wrong)}" if wrong else ""
            rows.append(f"{name}: {len(names) - len(wrong)} of {len(names)} right{also}")
        blocks.append(f"query {wanted}. {'; '.join(rows)}.")
    return " ".join(blocks)


def _check_search(
    of: Dataset | Task, queries: Sequence[int], found: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, Sequence[Sequence[int]]]:
    """Check what a search is drawn from, and return what was found as plain numbers."""
    checks.instance("of", of, (Dataset, Task), "a data set or a task")
    _check_images("test images", of.test_images)
    checks.sequence("queries", queries, int, "numbers of test images")
    checks.mapping("found", found, "numbers of test images by network")
    plain, last = {}, len(of.test_images) - 1
    for query in queries:
        checks.whole("queries", query, 0, last)
    for name, numbers in found.items():
        table = checks.table(f"found[{name!r}]", numbers)
        if not np.isin(table, np.arange(last + 1)).all():
            raise InputError(f"found[{name!r}]: give numbers of test images, 0 to {last}")
        if len(table) != len(queries):
            raise InputError(f"found[{name!r}] has {len(table)} rows for {len(queries)} queries")
        plain[name] = table.astype(int).tolist()
    if len({len(rows[0]) for rows in plain.values()}) > 1:
        raise InputError("found: give every network equally many images")
    return plain


def _class_name(of: Dataset | Task, number: int) -> str:
    first = getattr(of, "first_label", 0)
    return of.class_names[int(of.test_labels[number]) - first].replace("_", " ")


def _draw_found(axis: Axes, of: Dataset | Task, query: int, number: int) -> None:
    """Draw an image that was found: framed, with a tick, or with a cross and its own class."""
    _draw_image(axis, of.test_images[number])
    hit = bool(of.test_labels[number] == of.test_labels[query])
    color = BLUE if hit else RED
    axis.set_title("✓" if hit else f"✗ {_class_name(of, number)}", color=color, fontsize=13, pad=5)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color=color, linewidth=4, linestyle="-" if hit else "--")


def grouped_points(
    values: dict[str, dict[str, Sequence[float]]],
    ylabel: str,
    title: str = "",
    bars: bool = True,
) -> Figure:
    """Every single run as a point, and the mean as a bar: groups side by side, by method.

    Points stand side by side, so that equal ones are all seen. With a single group the methods are
    named below the axis, and there is no legend.

    Args:
        values: ``{group: {method: one value per seed}}``.
        bars: a bar begins at zero, and small differences drown in it; False draws a stroke at the
            mean and leaves the axis to the points.
    """
    checks.mapping("values", values, "groups by name")
    for group, by_method in values.items():
        checks.mapping(f"values[{group!r}]", by_method, "numbers by method")
        if by_method.keys() != next(iter(values.values())).keys():
            raise InputError(f"{group} has other methods than the first group: give the same ones")
        for name, numbers in by_method.items():
            checks.table(f"values[{group!r}][{name!r}]", numbers, 1)
    checks.text("ylabel", ylabel)
    checks.text("title", title)
    checks.flag("bars", bars)
    styles = method_styles(next(iter(values.values())))
    alone = len(values) == 1
    inches = 1.7 * len(styles) + 1.5 if alone else 2.6 * len(values) + 2.5
    figure, axis = plt.subplots(figsize=(inches, 4.4))
    width = 0.8 / len(styles)
    places = width * (np.arange(len(styles)) - (len(styles) - 1) / 2)
    for g, by_method in enumerate(values.values()):
        for x, (name, style) in zip(g + places, styles.items(), strict=True):
            runs = np.asarray(by_method[name])
            if bars:
                axis.bar(x, runs.mean(), width=0.94 * width, color=style["color"], alpha=0.45)
            else:
                axis.hlines(runs.mean(), x - 0.4 * width, x + 0.4 * width, color=BLACK, lw=3)
            aside = np.linspace(-0.25, 0.25, len(runs)) * width if len(runs) > 1 else 0.0
            look = dict(color=style["color"], marker=style["marker"], edgecolors=BLACK, zorder=3)
            axis.scatter(x + aside, runs, label=None if g else method_title(name), **look)
    if bars:
        axis.axhline(0, color=BLACK, lw=1)
    axis.set(ylabel=ylabel, title=title)
    axis.grid(axis="x", visible=False)
    if alone:
        axis.set_xticks(places, [method_title(name) for name in styles])
        axis.set_xlabel(next(iter(values)))
    else:
        axis.set_xticks(range(len(values)), list(values))
        if len(styles) > 1:
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def recipe_points(
    recorded: dict[str, Sequence[Sequence[float]]],
    mine: dict[str, Sequence[float]],
    ringed: dict[str, Sequence[float]] | None = None,
) -> Figure:
    """Recorded recipes, a point for each seed and a stroke for the mean, and below them new runs.

    Args:
        recorded: ``{recipe: [[old classes, new classes, old gallery] of each seed]}`` in %; NaN
            where there is no value.
        mine: ``{recipe: [old classes, new classes, old gallery]}``, drawn as stars.
        ringed: the same of recorded runs that get a ring, such as those of the new run's seed.
    """
    rows = _three_numbers("recorded", recorded, 2)
    stars = _three_numbers("mine", mine, 1)
    rings = {} if ringed is None else _three_numbers("ringed", ringed, 1)
    names, titles = [*rows, *stars], ("old classes", "new classes", "old gallery")
    look = dict(figsize=(12, 0.42 * len(names) + 1.8), layout="constrained")
    figure, axes, places = panels_of_rows(names, titles, "Recall@1 (%)", **look)
    ring: dict[str, Any] = dict(s=110, facecolors="none", edgecolors=RED, linewidths=1.5)
    stroke: dict[str, Any] = dict(marker="|", s=300, lw=3, color=BLACK)
    for column, axis in enumerate(axes):
        for place, (name, runs) in zip(places, rows.items(), strict=False):
            found = runs[np.isfinite(runs[:, column]), column]
            label = "a recorded run, one for each seed"
            axis.scatter(found, [place] * len(found), s=40, color=BLUE, alpha=0.5, label=label)
            if name in rings:
                axis.scatter(rings[name][column], place, label="recorded, same seed", **ring)
            if len(found):
                axis.scatter(found.mean(), place, label="their mean", **stroke)
        for place, run in zip(places[len(rows) :], stars.values(), strict=True):
            axis.scatter(run[column], place, s=260, marker="*", color=RED, label="the new run")
            axis.axvline(run[column], color=RED, lw=1, ls=":")
    legend_below(figure, axes[0])
    return figure


def _three_numbers(what: str, given: Any, ndim: int) -> dict[str, np.ndarray]:
    checks.mapping(what, given, "three numbers a run, by recipe")
    found = {name: checks.table(f"{what}[{name!r}]", runs, ndim) for name, runs in given.items()}
    for name, values in found.items():
        if values.shape[-1] != 3:
            raise InputError(f"{what}[{name!r}] has rows of {values.shape[-1]}: give three")
    return found


def drift_maps(
    maps: dict[str, np.ndarray], labels: Tensor, class_names: Sequence[str], start: str
) -> Figure:
    """Panels of one map: where the same images lie after different trainings.

    Lines run from each class's centre in the panel ``start``, in white, to that in the others.

    Args:
        maps: ``{title: positions [N, 2]}``, all in the coordinates of one fitted map.
        labels: int64 ``[N]``.
        class_names: one per label.
        start: title of the panel where the lines begin.
    """
    checks.mapping("maps", maps, "positions by title")
    checks.one_of("start", start, maps)
    centers = {title: class_centers(positions, labels) for title, positions in maps.items()}[start]
    checks.names("class_names", class_names, 1)
    _check_range(labels, len(class_names))
    figure, axes = plt.subplots(
        *(1, len(maps)),
        figsize=(4 * len(maps), 4.4),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, positions) in zip(axes[0], maps.items(), strict=True):
        class_map(axis, positions, labels, class_names, centers if title != start else {})
        axis.set_title(title)
    legend_below(figure, axes[0][0])
    return figure


def legend_below(figure: Figure, axis: Axes) -> None:
    """Name below the figure what is drawn, each once, where no name can hide a point."""
    marks, names = axis.get_legend_handles_labels()
    named = dict(zip(names, marks, strict=True))
    figure.legend(
        named.values(), named, loc="outside lower center", ncols=len(named), frameon=False
    )


def class_centers(positions: np.ndarray, labels: Tensor) -> dict[int, np.ndarray]:
    """Mean position of each class on a map."""
    positions = checks.points("positions", positions)
    checks.labels("labels", labels, len(positions))
    return {c: positions[labels == c].mean(axis=0) for c in labels.unique().tolist()}


def class_map(
    axis: Axes,
    positions: np.ndarray,
    labels: Tensor,
    class_names: Sequence[str],
    came_from: dict[int, np.ndarray],
) -> None:
    """Draw images as points on a map, and each class's centre, which a legend can name.

    Args:
        axis: to draw into.
        positions: ``[N, 2]``.
        labels: int64 ``[N]``.
        class_names: one per label.
        came_from: earlier centre of a class: its marker in white, with a line to its centre now.
    """
    checks.instance("axis", axis, Axes, "matplotlib axes")
    centers = class_centers(positions, labels)
    checks.names("class_names", class_names, 1)
    _check_range(labels, len(class_names))
    checks.instance("came_from", came_from, dict, "earlier centres by label, or {}")
    for center in came_from.values():
        checks.points("came_from", [center])
    for c, center in centers.items():
        style: dict[str, Any] = dict(
            color=CLASS_COLORS[c % len(CLASS_COLORS)], marker=CLASS_MARKERS[c % len(CLASS_MARKERS)]
        )
        (x, y), (xs, ys) = center, positions[labels == c].T
        axis.scatter(xs, ys, s=36, alpha=0.55, linewidths=0, **style)
        style |= dict(label=class_names[c], edgecolors=BLACK, linewidths=2, zorder=4)
        axis.scatter(x, y, s=130, **style)
        if c in came_from:
            from_x, from_y = came_from[c]
            axis.plot([from_x, x], [from_y, y], color=BLACK, lw=2, zorder=3)
            was = dict(color="white", edgecolors=BLACK, marker=style["marker"], zorder=5)
            axis.scatter(from_x, from_y, s=80, **was)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
