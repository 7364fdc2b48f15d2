"""What the controls draw, what their descriptions say, and that nothing is swallowed."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from made_up import on_circle, record
from matplotlib.quiver import Quiver
from warm import run_notebook

from csd_lib import InputError
from csd_lib.config import TrainConfig
from csd_lib.course import widgets
from csd_lib.data import class_incremental_split
from csd_lib.losses import csd_loss

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "data" / "results" / "digits-epochs.npz"
METHODS = ("fine-tuning", "lwf", "csd")
LABELS = torch.tensor([0, 0, 1, 1])


TEACHER = on_circle(0, 0, 180, 180)


@pytest.fixture(scope="module")
def five_tasks(digits):
    return class_incremental_split(digits, 5)


@pytest.fixture(scope="module")
def features(five_tasks):
    """Made-up features of every test image, for two methods and five stages."""
    count = sum(len(task.test_labels) for task in five_tasks)
    generator = torch.Generator().manual_seed(0)
    return {
        name: [torch.randn(count, 8, generator=generator) for _ in range(5)]
        for name in ("fine-tuning", "csd")
    }


@pytest.fixture(scope="module")
def recording():
    return widgets.load_recording(RECORDING)


# --- a split of one's own ------------------------------------------------------------------------


@pytest.mark.parametrize("count, sizes", [(1, [10]), (3, [4, 3, 3]), (6, [2, 2, 2, 2, 1, 1])])
@pytest.mark.parametrize("seed", [None, 0, 3])
def test_split_is_described_as_it_is(digits, small_texts, count, sizes, seed):
    figure, description = widgets.split_picture(digits, count, seed)
    said = re.findall(r"task (\d+): ([\d ]+) \((\d+) images\)", description)
    classes = [[int(name) for name in names.split()] for _, names, _ in said]
    assert [len(names) for names in classes] == sizes
    order = [name for names in classes for name in names]
    assert sorted(order) == list(range(10)) and (order == sorted(order)) == (seed is None)
    assert ("as numbered" if seed is None else f"of seed {seed},") in description
    for names, (_, _, images) in zip(classes, said, strict=True):
        is_member = torch.isin(digits.train_labels, torch.tensor(names))
        assert int(images) == int(is_member.sum())
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert titles == [str(name) for name in order]
    assert small_texts(figure) == []


def test_a_split_into_many_classes_names_ten_of_them(digits, style):
    names = tuple(f"kind{i}" for i in range(24))
    many = replace(
        digits,
        class_names=names,
        train_labels=torch.arange(len(digits.train_labels)) % 24,
        test_labels=torch.arange(len(digits.test_labels)) % 24,
    )
    description = widgets.split_picture(many, 2)[1]
    assert "kind9 and 2 more" in description and "kind10 " not in description


# --- the temperature of CSD ----------------------------------------------------------------------


def chances_by_hand(points, teacher, temperature):
    """Rows of {number of the other feature: chance}, by plain loops."""
    others = [*points.tolist(), *teacher.tolist()]
    rows = []
    for i, anchor in enumerate(points.tolist()):
        weights = {
            a: math.exp((anchor[0] * x + anchor[1] * y) / temperature)
            for a, (x, y) in enumerate(others)
            if a != i
        }
        rows.append({a: weight / sum(weights.values()) for a, weight in weights.items()})
    return rows


@pytest.mark.parametrize("temperature", [widgets.TEMPERATURES[0], 0.07, 0.5, 2.0])
@pytest.mark.parametrize("angle", [0, 60, 90, 180])
def test_temperature_picture_shows_what_the_loss_does(small_texts, temperature, angle):
    student = on_circle(0, angle, 120, 180)
    figure, description = widgets.csd_temperature(student, TEACHER, LABELS, temperature)
    assert small_texts(figure) == []
    said = re.search(
        r"at T = ([\d.]+): the loss of the batch is ([\d.]+);.* has (\d+) %; the strongest pull is "
        r"([\d.]+), on student (\d), and the weakest ([\d.]+)",
        description,
    )
    loss = csd_loss(student, TEACHER, LABELS, temperature).item()
    assert float(said[1]) == temperature
    assert float(said[2]) == pytest.approx(loss, abs=6e-4)
    assert f"CSD loss {loss:.3f}" in figure.axes[0].get_title()

    rows = chances_by_hand(student, TEACHER, temperature)
    labels = [*LABELS.tolist(), *LABELS.tolist()]
    shares = []
    for i, row in enumerate(rows):
        rivals = [chance for a, chance in row.items() if labels[a] != labels[i]]
        shares.append(max(rivals) / sum(rivals))
    assert float(said[3]) == pytest.approx(100 * np.mean(shares), abs=0.51)
    written = [float(text.get_text()) for text in figure.axes[0].texts]
    in_order = [row[a] for row in rows for a in sorted(row)]
    assert written == pytest.approx(in_order, abs=0.0051)

    # The loss does not depend on lengths, so a gradient is the slope along the circle.
    turn = 1e-4
    slopes = []
    for i in range(4):
        moved = [student.clone(), student.clone()]
        for sign, points in zip((1, -1), moved, strict=True):
            cos, sin = math.cos(sign * turn), math.sin(sign * turn)
            points[i] = student[i] @ torch.tensor([[cos, sin], [-sin, cos]], dtype=torch.float64)
        ahead, behind = (csd_loss(points, TEACHER, LABELS, temperature).item() for points in moved)
        slopes.append(abs(ahead - behind) / (2 * turn))
    assert float(said[4]) == pytest.approx(max(slopes), abs=0.006)
    assert slopes[int(said[5]) - 1] == pytest.approx(max(slopes), abs=1e-6)
    assert float(said[6]) == pytest.approx(min(slopes), abs=0.006)


def test_positives_are_framed_and_arrows_lead_downhill(style):
    student = on_circle(0, 60, 120, 180)
    figure, _ = widgets.csd_temperature(student, TEACHER, LABELS, 0.5)
    left, right = figure.axes
    frames = {(int(patch.get_y()), int(patch.get_x())) for patch in left.patches}
    labels = [*LABELS.tolist(), *LABELS.tolist()]
    assert frames == {
        (i, a) for i in range(4) for a in range(8) if labels[i] == labels[a] and i != a
    }
    (arrows,) = [artist for artist in right.get_children() if isinstance(artist, Quiver)]
    step = 0.01 * torch.tensor(np.stack([arrows.U, arrows.V], axis=1))
    assert csd_loss(student + step, TEACHER, LABELS, 0.5) < csd_loss(student, TEACHER, LABELS, 0.5)
    assert np.hypot(arrows.U, arrows.V).max() == pytest.approx(0.6)


def test_without_a_pull_there_are_no_arrows(style):
    figure, description = widgets.csd_temperature(TEACHER, TEACHER, LABELS, 0.5)
    assert not [a for a in figure.axes[1].get_children() if isinstance(a, Quiver)]
    assert "the strongest pull is 0.00" in description


# --- the neighbours of a query -------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, query, k, stage",
    [
        ("csd", 0, 1, 2),
        ("fine-tuning", 300, 8, 5),
        ("csd", 601, 3, 2),  # of a task not yet learned, which is searched, too
    ],
)
def test_neighbors_are_those_that_a_plain_search_finds(
    five_tasks, features, small_texts, method, query, k, stage
):
    figure, description = widgets.neighbors(five_tasks, features, method, query, k, stage)
    assert small_texts(figure) == []
    labels = torch.cat([task.test_labels for task in five_tasks]).tolist()
    images = torch.cat([task.test_images for task in five_tasks]).squeeze(1).numpy()
    tasks = [task.index for task in five_tasks for _ in task.test_labels]
    searched = [
        i for i, task in enumerate(tasks) if i != query and (task < stage or task == tasks[query])
    ]
    assert f"query {query} (class {labels[query]}), {len(searched)} images to search" in description
    rights = []
    for row, of_stage in enumerate((features[method][0], features[method][stage - 1])):
        vectors = of_stage.numpy().astype(float)
        cosine = {i: vectors[i] @ vectors[query] / np.linalg.norm(vectors[i]) for i in searched}
        found = sorted(searched, key=cosine.get, reverse=True)[:k]
        assert np.array_equal(figure.axes[0].images[0].get_array(), images[query])
        axes = figure.axes[1 + row * (k + 1) :][: k + 1]  # the first says after which task
        for i, axis in zip(found, axes[1:], strict=True):
            assert np.array_equal(axis.images[0].get_array(), images[i])
            assert axis.get_title() == ("✓" if labels[i] == labels[query] else f"✗ {labels[i]}")
        rights.append(sum(labels[i] == labels[query] for i in found))
    assert f"of the {k} nearest, {rights[0]} are right after task 1 and {rights[1]}" in description
    hit = labels[found[0]] == labels[query]
    assert f"is of class {labels[found[0]]}, which Recall@1 counts" in description
    assert description.endswith("as a hit." if hit else "as a miss.")


# --- training, moment by moment ------------------------------------------------------------------


def test_the_recording_of_the_kit(recording):
    assert RECORDING.stat().st_size <= 300_000
    assert tuple(recording.about["methods"]) == METHODS
    assert {"config", "versions", "device", "date", "threads"} <= recording.about.keys()
    tasks, epochs = recording.about["config"]["tasks"], recording.about["config"]["epochs"]
    moments = [[task, e] for task in range(1, tasks + 1) for e in range(3, epochs + 1, 3)]
    assert recording.moments.tolist() == moments
    for values in (recording.recall, recording.positions, recording.home):
        assert np.isfinite(values.astype(float)).all()
    assert (recording.recall >= 0).all() and (recording.recall <= 1).all()
    learned = recording.recall[:, :5].astype(float)
    assert np.ptp(learned, axis=0).max() == 0, "the first task is the same for all methods"
    assert (recording.task_of_image == recording.labels // 2).all()


def test_recorded_labels_are_those_of_the_test_images(recording, five_tasks):
    labels = torch.cat([task.test_labels for task in five_tasks])
    assert recording.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("moment", [0, 4, 5, 17, 24])
def test_a_moment_is_described_as_it_was_recorded(recording, small_texts, method, moment):
    figure, description = widgets.training_moment(recording, method, moment)
    assert small_texts(figure) == []
    task, epoch = recording.moments[moment].tolist()
    recall = 100 * recording.recall[METHODS.index(method)].astype(float)
    at_home = nearest = 0
    homes = {
        label: recording.home[recording.labels == label].astype(float).mean(axis=0)
        for label in range(10)
    }
    for image, label in enumerate(recording.labels.tolist()):
        if label < 2 * task:
            place = recording.positions[METHODS.index(method), moment, image].astype(float)
            distances = {c: math.dist(place, home) for c, home in homes.items()}
            at_home += min(distances, key=distances.get) == label
            nearest += 1
    assert f"task {task} of 5, epoch {epoch}: Recall@1 on task 1 is {recall[moment, 0]:.0f} %" in (
        description
    )
    assert f"({recall[min(4, moment), 0]:.0f} % when it had been learned)" in description
    assert f"and {recall[moment, :task].mean():.0f} % on average" in description
    assert f"on the map, {100 * at_home / nearest:.0f} %" in description

    # Every finished task has its last moment, the current one this moment, later ones nothing.
    rows = [recall[min(5 * i + 4, moment)] for i in range(task)]
    written = [text.get_text() for text in figure.axes[0].texts if text.get_text()]
    assert [float(text) for text in written] == pytest.approx(np.concatenate(rows), abs=0.51)
    assert {int(frame.get_y()) for frame in figure.axes[0].patches} == {task - 1}
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {str(label) for label in range(2 * task)}


def test_moments_are_named_on_their_slider(recording):
    control = widgets.moment_control(recording, 24)
    assert control.options[0] == ("task 1, epoch 3", 0)
    assert control.options[24] == ("task 5, epoch 15", 24) and control.value == 24


def rewritten(folder, **changes):
    """A copy of the recording with other arrays."""
    with np.load(RECORDING) as arrays:
        content = {**arrays, **changes}
    path = folder / "other.npz"
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(recall=np.zeros((3, 25, 5))),
            r"recall is float64 \(3, 25, 5\), expected float16.*record_epochs",
        ),
        (dict(positions=np.zeros((3, 25, 9, 2), "f2")), r"positions is .*expected float16 \(3, 25"),
        (dict(home=None), "is not a recording .*home.*record_epochs"),
        (dict(labels=np.array([{}])), "labels holds Python objects"),
        (dict(about=np.array("{")), "is not a recording .*record_epochs"),
        (dict(home=np.full((297, 2), np.inf, "f2")), "home is not finite"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        widgets.load_recording(rewritten(tmp_path, **change))


def test_an_unchanged_copy_is_read(tmp_path, recording):
    assert np.array_equal(widgets.load_recording(rewritten(tmp_path)).recall, recording.recall)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 half a file"])
def test_a_missing_or_damaged_recording_is_named(tmp_path, content):
    path = tmp_path / "digits-epochs.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"digits-epochs\.npz cannot be read"):
        widgets.load_recording(path)


# --- the controls --------------------------------------------------------------------------------


def bar(height, name="x"):
    if height == 3:
        raise ValueError("three <is> broken")
    figure, axis = plt.subplots()
    axis.bar(name, height)
    return figure, f"a bar of {height} > 0 named {name}"


HEIGHT = widgets.Control("height of it", range(1, 4), 1)


def test_moving_a_control_changes_picture_and_description(style):
    before = plt.get_fignums()
    panel = widgets.panel(bar, height=HEIGHT, name=widgets.Control("name", ["x", "y"], "x", True))
    height, name, picture = panel.children
    first = picture.value
    assert 'alt="a bar of 1 &gt; 0 named x"' in first and first.count("a bar of 1 &gt; 0") == 2
    height.value = 2
    second = picture.value
    name.value = "y"
    assert 'alt="a bar of 2 &gt; 0 named x"' in second
    assert 'alt="a bar of 2 &gt; 0 named y"' in picture.value
    pictures = {re.search(r'src="([^"]+)"', page)[1] for page in (first, second, picture.value)}
    assert len(pictures) == 3 and all(p.startswith("data:image/png;base64,iVBOR") for p in pictures)
    assert plt.get_fignums() == before, "figures are closed"


def test_an_error_in_a_callback_is_shown_in_place_of_the_picture_and_raised(style):
    height, picture = widgets.panel(bar, height=HEIGHT).children
    with pytest.raises(ValueError, match="three <is> broken"):
        height.value = 3
    assert "<img" not in picture.value
    assert '<p role="alert">' in picture.value and "three &lt;is&gt; broken" in picture.value
    height.value = 2
    assert "<img" in picture.value and "alert" not in picture.value


def test_with_a_button_the_picture_waits_until_it_is_pressed(style):
    drawn, said = [], []

    def draw(height):
        drawn.append((height, button and button.disabled))
        said.extend([button.description] if button else [])
        return bar(height)

    button = None
    height, button, picture = widgets.panel(draw, press="Train", height=HEIGHT).children
    first = picture.value
    assert button.description == "Train" and drawn == [(1, None)], "the first is there at once"
    height.value = 2
    assert picture.value == first and len(drawn) == 1
    button.click()
    assert drawn[1:] == [(2, True)], "a second press would only wait"
    assert said == ["Please wait …"], "the picture is still the old one"
    assert "a bar of 2" in picture.value and not button.disabled
    assert button.description == "Train"
    height.value = 3
    button.click()  # ipywidgets logs what is raised
    assert "three &lt;is&gt; broken" in picture.value and not button.disabled
    assert button.description == "Train"


def test_a_run_is_shown_beside_recorded_recipes_with_its_changed_weights(style):
    config = TrainConfig(dataset="digits", method="ce+kd+csd", seed=4, lambda_csd=0.1)
    run = record(config, last=(0.914, 0.955))
    three = widgets.three_numbers(run)
    assert three == pytest.approx([91.4, 95.5, 100 * run.matrix.old_gallery[1, 0]])
    recorded = {"ce": {3: [90, 80, 70], 4: [92, 81, 72]}, "ce+kd": {3: [97, 80, 70]}}
    figure, description = widgets.recipe_beside(recorded, run)
    assert description.startswith("ce+kd+csd, lambda_csd 0.1, seed 4: Recall@1 is 91.4 %")
    assert f"95.5 % on the new ones and {three[2]:.1f} % in the old gallery" in description
    assert description.endswith("mean (and seed 4): ce 91.0 (92.0), ce+kd 97.0.")
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks == ["ce", "ce+kd", "ce+kd+csd, lambda_csd 0.1 (new)"]
    rings = [p for axis in figure.axes for p in axis.collections if not len(p.get_facecolors())]
    assert [ring.get_offsets()[0, 0] for ring in rings] == [92, 81, 72], "the same seed's"
    with pytest.raises(InputError, match="run has 5 tasks"):
        widgets.three_numbers(record(replace(config, tasks=5)))


def test_an_error_at_first_is_an_error_of_the_cell(style):
    with pytest.raises(ValueError, match="three"):
        widgets.panel(bar, height=widgets.Control("height", range(1, 4), 3))


def test_controls_are_of_the_kinds_that_work_everywhere(style):
    pairs = [("one", 1), ("two", 2)]
    panel = widgets.panel(
        lambda **values: bar(1, repr(values)),
        number=widgets.Control("a number", range(2, 11, 2), 4),
        choice=widgets.Control("a choice", (0.1, 0.5), 0.5),
        pair=widgets.Control("a pair", pairs, 2),
        menu=widgets.Control("a menu", pairs, 1, menu=True),
    )
    *inputs, picture = panel.children
    kinds = ["IntSlider", "SelectionSlider", "SelectionSlider", "Dropdown"]
    assert [type(widget).__name__ for widget in inputs] == kinds
    assert [widget.value for widget in inputs] == [4, 0.5, 2, 1]
    labels = ["a number", "a choice", "a pair", "a menu"]
    assert [widget.description for widget in inputs] == labels
    assert (inputs[0].min, inputs[0].max, inputs[0].step) == (2, 10, 2)
    assert [widget.continuous_update for widget in inputs[:3]] == [False] * 3
    assert {widget.style.description_width for widget in inputs} == {"10ch"}
    assert isinstance(picture, ipywidgets.HTML) and isinstance(panel, ipywidgets.VBox)


@pytest.mark.parametrize("value", [0, 4, None, "1"])
def test_a_control_must_begin_with_one_of_its_options(value):
    with pytest.raises(InputError, match=f"height: {value!r} is not one of the options"):
        widgets.Control("height", range(1, 4), value)


def test_none_can_be_no_choice():
    """SelectionSlider takes it for no selection and breaks when it is chosen."""
    with pytest.raises(InputError, match="order: None"):
        widgets.Control("order", [("as numbered", None), ("seed 0", 0)], None)


@pytest.fixture
def in_jupyter(monkeypatch):
    shown = []
    monkeypatch.delenv("CSD_WIDGETS", raising=False)
    monkeypatch.setattr(widgets, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr(widgets, "display", shown.append)
    return shown


def test_explore_shows_the_panel_in_jupyter(in_jupyter, style, capsys):
    widgets.explore(bar, height=HEIGHT)
    assert [type(shown).__name__ for shown in in_jupyter] == ["VBox"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("why", ["CSD_WIDGETS=0", "no ipywidgets", "no kernel", "no IPython"])
def test_explore_prints_one_line_where_there_can_be_no_control(
    in_jupyter, monkeypatch, capsys, why
):
    if why == "CSD_WIDGETS=0":
        monkeypatch.setenv("CSD_WIDGETS", "0")
    elif why == "no ipywidgets":
        monkeypatch.setattr(widgets, "find_spec", lambda name: None)
    else:
        shell = SimpleNamespace() if why == "no kernel" else None
        monkeypatch.setattr(widgets, "get_ipython", lambda: shell)
    widgets.explore(lambda height: pytest.fail("drawn for nobody"), height=HEIGHT)
    line = "Run this cell in Jupyter or Colab to get the control: height of it.\n"
    assert capsys.readouterr().out == line and in_jupyter == []


CELLS = """
import matplotlib.pyplot as plt
from csd_lib.course import widgets
def draw(level):
    assert level != 2, "level 2 is broken"
    return plt.subplots()[0], "an empty figure"
---
widgets.explore(draw, level=widgets.Control("level", range(1, 4), 1))
---
widgets.explore(draw, level=widgets.Control("level", range(1, 4), 2))
---
widgets.panel(draw, level=widgets.Control("level", range(1, 4), 1)).children[0].value = 2
"""


def test_the_notebook_gate_sees_errors_of_controls(tmp_path):
    """The first control works; the others fail at first and at a change."""
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS.split("---")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "controls.ipynb")
    environment = {name: value for name, value in os.environ.items() if name != "CSD_WIDGETS"}
    done = run_notebook("controls.ipynb", cwd=tmp_path, env=environment)
    assert "2 failed, 2 passed" in done.stdout, done.stdout[-3000:]
    assert done.stdout.count("level 2 is broken") >= 2


@pytest.mark.parametrize("number", ["01", "03", "04", "05", "08"])
def test_the_committed_pages_are_complete_without_controls(number):
    """A stored control without its state is an error or an empty box to a reader."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    text = path.read_text()
    assert "widget-view" not in text and "widgets" not in json.loads(text)["metadata"]
    cells = nbformat.read(path, as_version=4).cells
    (place,) = [i for i, cell in enumerate(cells) if "widgets.explore(" in cell.source]
    (output,) = cells[place].outputs
    assert output.text.startswith("Run this cell in Jupyter or Colab to get the control: ")
    images = [o for o in cells[place - 1].outputs if "image/png" in o.get("data", {})]
    assert len(images) == 1, "the figure stands above the control"
    texts = [cell.source for cell in cells[:place] if cell.cell_type == "markdown"]
    assert "Try this" in texts[-1]
