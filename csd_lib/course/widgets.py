"""Controls for the notebooks, where trying beats reading.

Each control has a plain drawing function that returns a figure and one line that describes it, made
from the data. A notebook first shows that figure for good settings; ``explore`` below it redraws it
for those that a reader chooses. Nothing here trains: it draws what was computed before; but a
notebook may give it a button, behind which a run is trained first.
"""

from __future__ import annotations

import base64
import html
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure
from torch import Tensor

from csd_lib import InputError, checks
from csd_lib.course import plots
from csd_lib.data import Dataset, Task, class_incremental_split, merge_tasks
from csd_lib.experiment import FinishedRun
from csd_lib.files import read_arrays
from csd_lib.losses import csd_loss
from csd_lib.methods import TERMS, get_method
from csd_lib.paper.figures import GREY
from csd_lib.paper.ledger import find_file
from csd_lib.paper.report import changed_settings
from csd_lib.paths import variable
from csd_lib.record import Record
from csd_lib.retrieval import nearest

Drawing = tuple[Figure, str]
# Steps of equal ratio from 0.05 to 2, with the 0.07 of the paper's code and the 0.5 of the pencil.
TEMPERATURES = (0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Control:
    """A setting that a reader may choose.

    Attributes:
        label: what is written beside it.
        options: a range (a slider whose number can also be typed), or the choices in their order,
            each a value or a pair of its name and its value.
        value: the choice to begin with; None is taken for no choice.
        menu: show the choices as a menu, not as a slider.
    """

    label: str
    options: Sequence[Any]
    value: Any
    menu: bool = False

    def __post_init__(self) -> None:
        checks.text("label", self.label)
        checks.instance("options", self.options, Sequence, "a range or a list of choices")
        checks.flag("menu", self.menu)
        is_plain = isinstance(self.value, str | int | float | np.generic)
        if not is_plain or self.value not in [value for _, value in self.pairs()]:
            shown = checks.shown(self.value)
            raise InputError(f"{self.label}: {shown} is not one of the options")

    def pairs(self) -> list[tuple[str, Any]]:
        """Return the name and the value of each option."""
        pairs = [o if isinstance(o, tuple) else (str(o), o) for o in self.options]
        for pair in pairs:
            if len(pair) != 2:
                raise InputError(f"{self.label}: {checks.shown(pair)} is no pair of name and value")
        return pairs


def explore(draw: Callable[..., Drawing], *, press: str | None = None, **controls: Control) -> None:
    """Show controls, and below them what ``draw`` makes of their values, redrawn at every change.

    With ``$CSD_WIDGETS`` set to 0, without ipywidgets and outside Jupyter it prints one line.

    Args:
        draw: takes one value per control, by name; returns a figure and its description.
        press: the words on a button; ``draw`` then waits until it is pressed.
        controls: in the order in which they are shown.

    Raises:
        InputError: if there is no control, or ``$CSD_WIDGETS`` is neither 0 nor 1.
    """
    _check_controls(draw, controls)
    if (wanted := variable("CSD_WIDGETS")) not in ("", "0", "1"):
        raise InputError(f"CSD_WIDGETS={checks.shown(wanted)}: choose 0 or 1")
    in_jupyter = getattr(get_ipython(), "kernel", None) is not None
    if in_jupyter and find_spec("ipywidgets") and wanted != "0":
        display(panel(draw, press=press, **controls))
    else:
        names = ", ".join(control.label for control in controls.values())
        print(f"Run this cell in Jupyter or Colab to get the control: {names}.")


def panel(draw: Callable[..., Drawing], *, press: str | None = None, **controls: Control) -> Any:
    """Return the controls of ``explore`` and their picture as an ipywidgets ``VBox``.

    An error in ``draw`` is an error of the cell at first. Later it takes the picture's place, or
    the reader would take the old picture for the new one, and is raised for the log.
    """
    _check_controls(draw, controls)
    from ipywidgets import HTML, Button, VBox  # a notebook must also be readable without it

    width = f"{max(len(control.label) for control in controls.values()) + 2}ch"
    inputs = {name: _input(control, width) for name, control in controls.items()}
    picture = HTML()

    def redraw(_change: dict[str, Any] | None = None) -> None:
        try:
            drawn = draw(**{name: widget.value for name, widget in inputs.items()})
            if not isinstance(drawn, tuple) or len(drawn) != 2:
                raise InputError(f"draw returned {checks.shown(drawn)}, not a figure and a text")
        except Exception as error:
            message = html.escape(f"{type(error).__name__}: {error}")
            picture.value = f'<p role="alert"><b>This could not be drawn.</b> {message}</p>'
            raise
        picture.value = _page(*drawn)

    redraw()
    if press is None:
        for widget in inputs.values():
            widget.observe(redraw, names="value")
        return VBox([*inputs.values(), picture])
    checks.text("press", press)
    button = Button(description=press)

    def pressed(_button: Any) -> None:
        button.disabled = True  # the next press would only wait
        button.description = "Please wait …"  # the picture below is still the old one
        try:
            redraw()
        finally:
            button.description, button.disabled = press, False

    button.on_click(pressed)
    return VBox([*inputs.values(), button, picture])


def _check_controls(draw: Any, controls: dict[str, Any]) -> None:
    if not callable(draw):
        raise InputError(f"draw={checks.shown(draw)}: give a function that draws")
    checks.mapping("controls", controls, "at least one Control by name")
    for name, control in controls.items():
        checks.instance(name, control, Control, "a Control")


def _input(control: Control, label_width: str) -> Any:
    """Make the widget of one control, from the core that ipywidgets 7 and 8 share."""
    from ipywidgets import Dropdown, IntSlider, SelectionSlider

    look = dict(
        description=control.label,
        value=control.value,
        style={"description_width": label_width},
        layout={"width": "95%", "max_width": "46em"},
    )
    options = control.options
    if isinstance(options, range):
        low, high = options[0], options[-1]
        return IntSlider(min=low, max=high, step=options.step, continuous_update=False, **look)
    if control.menu:
        return Dropdown(options=control.pairs(), **look)
    return SelectionSlider(options=control.pairs(), continuous_update=False, **look)


def _page(figure: Figure, description: str) -> str:
    """Return a figure and its description as HTML, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    text = html.escape(description)
    return f'<img src="{source}" alt="{text}" style="max-width: 100%"><p><i>Figure: {text}</i></p>'


def split_picture(dataset: Dataset, tasks: int, order_seed: int | None = None) -> Drawing:
    """Split the classes, show one image of each (at most ten a task), and say the sizes.

    Args:
        dataset: the images.
        tasks: how many, at most one per class.
        order_seed: of the class order; None keeps the classes as they are numbered.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an uneven split shows in the description
        split = class_incremental_split(dataset, tasks, seed=order_seed)
    order = "as numbered" if order_seed is None else f"of seed {order_seed}"
    sizes = "; ".join(
        f"task {task.index + 1}: {_some(task.class_names)} ({len(task.train_labels)} images)"
        for task in split
    )
    return plots.task_picture(split, 10), f"class order {order}, training images. {sizes}."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return " ".join(names[:10]) + more


def csd_temperature(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> Drawing:
    """The softmax probabilities of the CSD loss, and on the unit circle where its gradient pulls.

    Args:
        student: ``[B, 2]`` features of length 1.
        teacher: ``[B, 2]`` features of the same images.
        labels: int64 ``[B]``, 0 or 1.
        temperature: of the loss.
    """
    checks.batch(labels, student=student, teacher=teacher, temperature=temperature)
    checks.points("student", student)
    checks.points("teacher", teacher)
    if labels.unique().tolist() != [0, 1]:
        raise InputError(f"labels={labels.tolist()[:12]}: give both 0 and 1, and no others")
    batch = len(labels)
    moving = student.detach().clone().requires_grad_()
    loss = csd_loss(moving, teacher, labels, temperature)
    [gradient] = torch.autograd.grad(loss, moving)
    itself = torch.eye(batch, 2 * batch, dtype=torch.bool)
    similar = (student @ torch.cat([student, teacher]).T).masked_fill(itself, -torch.inf)
    probabilities = (similar / temperature).softmax(dim=1)
    same = labels[:, None] == labels.repeat(2)[None, :]
    rivals = probabilities.masked_fill(same, 0)
    nearest_share = (rivals.amax(dim=1) / rivals.sum(dim=1)).mean().item()
    lengths = gradient.norm(dim=1)
    longest = lengths.max()

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.6, 4.5), width_ratios=(1.45, 1), layout="constrained"
    )
    anchors = [f"$s_{i + 1}$" for i in range(batch)]
    plots.number_matrix(
        probabilities.masked_fill(itself, float("nan")),
        anchors,
        anchors + [f"$t_{i + 1}$" for i in range(batch)],
        title=f"probabilities at T = {temperature:g}: CSD loss {loss.item():.3f}",
        outlined=same & ~itself,
        limits=(0, 1),
        axis=left,
    )
    groups = {"student": student, "teacher": teacher}
    arrows = -gradient * (0.6 / longest) if longest > 1e-6 else None
    plots.unit_circle(groups, labels, arrows, axis=right)
    right.set_title(f"pull, at most {longest.item():.2f}")
    return figure, (
        f"CSD at T = {temperature:g}: the loss of the batch is {loss.item():.3f}; of the "
        f"probability that an anchor gives to its rivals, the nearest one has "
        f"{100 * nearest_share:.0f} %; the "
        f"strongest pull is {longest.item():.2f}, on student {lengths.argmax().item() + 1}, and "
        f"the weakest {lengths.min().item():.2f} (arrows show their ratio)."
    )


def neighbors(
    tasks: Sequence[Task],
    features: dict[str, Sequence[Tensor]],
    method: str,
    query: int,
    k: int,
    stage: int,
) -> Drawing:
    """What a query finds with the network after task 1, and with the one after a later task.

    Both search the same images, so that only the features differ: the test images of all classes
    seen by the later task, and of the query's own.

    Args:
        tasks: of the split.
        features: ``{method: [N, D] per stage}``, of the test images of all tasks in their order.
        method: one of those.
        query: number of a test image, from 0.
        k: how many neighbours.
        stage: the later task, from 1.
    """
    checks.sequence("tasks", tasks, Task, "the list of class_incremental_split")
    whole = merge_tasks(tasks)
    labels, names = whole.test_labels, whole.class_names
    checks.mapping("features", features, "features after each task, by method")
    checks.one_of("method", method, features)
    checks.whole("stage", stage, 1, len(features[method]))
    checks.whole("query", query, 0, len(labels) - 1)
    both = features[method][0], features[method][stage - 1]
    for of_stage in both:
        checks.matrix("features", of_stage)
        checks.finite("features", of_stage)
        if len(of_stage) != len(labels):
            raise InputError(
                f"features are of {len(of_stage)} images, the tasks have {len(labels)}"
            )
    task_of = torch.cat([torch.full_like(task.test_labels, task.index) for task in tasks])
    gallery = ((task_of < stage) | (task_of == task_of[query])).nonzero().squeeze(1)
    gallery = gallery[gallery != query]
    checks.whole("k", k, 1, len(gallery), f"there are {len(gallery)} images to search")
    found = torch.cat([gallery[nearest(of[[query]], of[gallery], k)] for of in both])  # [2, k]
    hits = labels[found] == labels[query]
    name, title = names[labels[query]], get_method(method).title
    rows = {"after\ntask 1": [found[0].tolist()], f"after\ntask {stage}": [found[1].tolist()]}
    figure = plots.search_pictures(whole, [query], rows)
    first = names[labels[found[1, 0]]]
    verdict = "a hit" if hits[1, 0] else "a miss"
    return figure, (
        f"{title}, query {query} (class {name}), {len(gallery)} images to search: of the {k} "
        f"nearest, {int(hits[0].sum())} are right after task 1 and {int(hits[1].sum())} after task "
        f"{stage}; the nearest then is of class {first}, which Recall@1 counts as {verdict}."
    )


def three_numbers(run: Record | FinishedRun) -> list[float]:
    """Return what is left at the end of two tasks, in %: old classes, new ones, old gallery.

    Each is Recall@1: among each task's own classes, and in the gallery of the first model, NaN
    where there is none.
    """
    checks.instance("run", run, (Record, FinishedRun), "a run or its record")
    if run.config.tasks != 2:
        raise InputError(f"run has {run.config.tasks} tasks: give one of two")
    return [100 * float(n) for n in (*run.matrix.own[-1], run.matrix.in_first_gallery())]


def recipe_beside(
    recorded: dict[str, dict[int, Sequence[float]]], run: Record | FinishedRun
) -> Drawing:
    """Draw a run's ``three_numbers`` beside those of recorded recipes, its own seed's with a ring.

    Args:
        recorded: ``{recipe: {seed: three numbers}}``.
        run: of two tasks.
    """
    checks.mapping("recorded", recorded, "three numbers a run, by recipe and seed")
    for recipe, by_seed in recorded.items():
        checks.instance(f"recorded[{recipe!r}]", by_seed, dict, "three numbers a run, by seed")
    old, new, gallery = three_numbers(run)
    recipe = get_method(run.config.method).recipe
    weights = {TERMS[term].weight for term in recipe.split("+")} & {*changed_settings(run.config)}
    name = ", ".join([recipe, *(f"{w} {getattr(run.config, w):g}" for w in sorted(weights))])
    seed = run.config.seed
    values: dict[str, Sequence[Sequence[float]]] = {
        n: [*by_seed.values()] for n, by_seed in recorded.items()
    }
    ringed = {n: by_seed[seed] for n, by_seed in recorded.items() if seed in by_seed}
    figure = plots.recipe_points(values, {f"{name} (new)": [old, new, gallery]}, ringed or None)
    means = ", ".join(
        f"{n} {np.mean(of, axis=0)[0]:.1f}" + (f" ({ringed[n][0]:.1f})" if n in ringed else "")
        for n, of in values.items()
    )
    return figure, (
        f"{name}, seed {seed}: Recall@1 is {old:.1f} % on the old classes, {new:.1f} % "
        f"on the new ones and {gallery:.1f} % in the old gallery. Recorded on the old "
        f"classes, mean (and seed {seed}): {means}."
    )


@dataclass(frozen=True)
class Recording:
    """Moments of training, one method after the other; made by ``tools/record_epochs.py``.

    Attributes:
        about: config, methods, versions, device and date.
        moments: uint8 ``[moments, 2]``: task and epoch, from 1.
        recall: float16 ``[methods, moments, tasks]``: Recall@1 on each task's test images.
        positions: float16 ``[methods, moments, images, 2]``: test images on one fixed map.
        home: float16 ``[images, 2]``: the same images with the joint network that made the map.
        labels: uint8 ``[images]``.
        task_of_image: uint8 ``[images]``, from 0.
    """

    about: dict[str, Any]
    moments: np.ndarray
    recall: np.ndarray
    positions: np.ndarray
    home: np.ndarray
    labels: np.ndarray
    task_of_image: np.ndarray


def load_recording(path: str | Path | None = None) -> Recording:
    """Read a recording; default: the one of five tasks of digits that comes with the kit.

    Raises:
        InputError: if it is not there, damaged, or its arrays do not fit together.
    """
    path = Path(path or find_file("digits-epochs.npz"))
    remedy = "fetch it again, or make it with: python tools/record_epochs.py"
    content = read_arrays(path, max_bytes=100_000_000)
    try:
        recording = Recording(**{**content, "about": json.loads(str(content["about"]))})
        methods, (moments, tasks) = len(recording.about["methods"]), recording.recall.shape[1:]
        images = len(recording.labels)
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a recording ({error}): {remedy}") from error
    expected = {
        "moments": ((moments, 2), "uint8"),
        "recall": ((methods, moments, tasks), "float16"),
        "positions": ((methods, moments, images, 2), "float16"),
        "home": ((images, 2), "float16"),
        "labels": ((images,), "uint8"),
        "task_of_image": ((images,), "uint8"),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(recording, name)
        if name in ("positions", "home") and not np.isfinite(array).all():
            raise InputError(f"{path}: {name} is not finite: {remedy}")
        if (array.shape, str(array.dtype)) != (shape, dtype):
            raise InputError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected {dtype} {shape}: {remedy}"
            )
    return recording


def moment_control(recording: Recording, value: int) -> Control:
    """Return the slider over the moments of a recording, labelled with task and epoch."""
    checks.instance("recording", recording, Recording, "what load_recording returns")
    moments = recording.moments.tolist()
    options = [(f"task {task}, epoch {epoch}", i) for i, (task, epoch) in enumerate(moments)]
    return Control("moment", options, value)


def share_at_home(recording: Recording, method: str, moment: int) -> float:
    """Share of the images learned so far that lie nearest to the home of their own class.

    That is the centre of the class under joint training. It measures the map, of which UMAP has
    chosen the layout; Recall@1 is measured on the features themselves.
    """
    which, labels = _check_moment(recording, method, moment), recording.labels
    positions = recording.positions[which, moment].astype(float)
    homes = [recording.home[labels == c].mean(axis=0, dtype=float) for c in np.unique(labels)]
    distances = np.linalg.norm(positions[:, None] - homes, axis=2)
    seen = recording.task_of_image < recording.moments[moment, 0]
    return float((distances.argmin(axis=1) == labels)[seen].mean())


def _check_moment(recording: Recording, method: str, moment: int) -> int:
    """Return the number of a recorded method."""
    checks.instance("recording", recording, Recording, "what load_recording returns")
    checks.one_of("method", method, recording.about["methods"])
    checks.whole("moment", moment, 0, len(recording.moments) - 1)
    return recording.about["methods"].index(method)


def training_moment(recording: Recording, method: str, moment: int) -> Drawing:
    """The retrieval matrix as far as it is filled at a moment of training, and the map.

    The framed row is that of now. On the map, images of classes not yet learned are
    hollow, and lines run from a class's place under joint training, in white, to its centre now.

    Args:
        recording: of ``load_recording``.
        method: one of the recorded.
        moment: its number, from 0.
    """
    which = _check_moment(recording, method, moment)
    task, epoch = recording.moments[moment].tolist()
    # The last moment of each task: the one before the task changes.
    ends = np.flatnonzero(np.diff(recording.moments[:, 0], append=0))
    count = len(ends)
    recall = 100 * recording.recall[which].astype(float)
    matrix = np.full((count, count), np.nan)
    for i in range(task):
        matrix[i] = recall[min(ends[i], moment)]
    is_now = np.arange(count)[:, None] == np.full(count, task - 1)
    learned, first = matrix[0, 0], recall[moment, 0]
    so_far = recall[moment, :task].mean()
    title = get_method(method).title

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 4.9), width_ratios=(1.1, 1), layout="constrained"
    )
    plots.number_matrix(
        matrix,
        [f"after task {i}" for i in range(1, count + 1)],
        [f"task {j}" for j in range(1, count + 1)],
        title="Recall@1 (%); framed row: now",
        number_format=".0f",
        outlined=is_now,
        limits=(50, 100),
        axis=left,
    )
    positions, home = recording.positions[which, moment].astype(float), recording.home.astype(float)
    labels = torch.from_numpy(recording.labels.astype(np.int64))
    seen = recording.task_of_image < task
    right.scatter(*positions[~seen].T, s=22, facecolors="none", edgecolors=GREY, linewidths=0.7)
    names = [str(label) for label in range(int(labels.max()) + 1)]
    homes = plots.class_centers(home, labels)
    plots.class_map(right, positions[seen], labels[seen], names, homes)
    plots.legend_below(figure, right)
    low, high = home.min(axis=0) - 1, home.max(axis=0) + 1
    right.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    at_home = 100 * share_at_home(recording, method, moment)
    right.set_title(f"{title}: task {task}, epoch {epoch}")
    return figure, (
        f"{title}, task {task} of {count}, epoch {epoch}: Recall@1 on task 1 is {first:.0f} % "
        f"({learned:.0f} % when it had been learned), and {so_far:.0f} % on average over the tasks "
        f"so far; on the map, {at_home:.0f} % of their images are nearest to their class's home."
    )
