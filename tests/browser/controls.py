"""The notebooks' controls, moved by keyboard and mouse in a real JupyterLab: make browser.

Each notebook is opened, what its control needs is run, and the control is moved as a reader would
do: the picture and the numbers of its caption must follow. A screenshot of each is left in
build/browser/ to be looked at. What others have trained in $CSD_RUNS is not trained again.
"""

import ast
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
import torch

from csd_lib.course.widgets import load_recording, share_at_home, three_numbers
from csd_lib.losses import csd_loss
from csd_lib.paper.report import load_runs

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURES = ROOT / "build" / "browser"
NOTEBOOKS = {path.stem[:2]: path for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))}
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {
        "windowingMode": "none"
    },  # or outputs off the screen are missing
}
SECONDS = 1000  # Playwright counts in milliseconds


def needed_by_its_control(cells):
    """The last cell with a control, and those that make what it needs; Colab runs them all."""
    kept, wanted = [], set()
    controls = [
        n for n, cell in enumerate(cells) if "to get the control" in str(cell.get("outputs"))
    ]
    for cell in reversed(cells[: controls[-1] + 1] if controls else []):
        if cell.cell_type != "code":
            continue
        parts = [*ast.walk(ast.parse(cell.source))]
        made = {p.name for p in parts if isinstance(p, (ast.FunctionDef, ast.ClassDef))}
        made |= {p.asname or p.name for p in parts if isinstance(p, ast.alias)}
        names = [p for p in parts if isinstance(p, ast.Name)]
        made |= {p.id for p in names if isinstance(p.ctx, ast.Store)}
        if not kept or made & wanted:
            kept.append(cell)
            wanted |= {p.id for p in names}
    return kept[::-1]


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the notebooks without outputs; yields its folder and its address."""
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    folder.mkdir()
    for path in NOTEBOOKS.values():
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = needed_by_its_control(notebook.cells)
        for cell in notebook.cells:
            cell.update(outputs=[], execution_count=None)
        nbformat.write(notebook, folder / path.name)
    if os.environ.get("CSD_RUNS"):
        shutil.copytree(os.environ["CSD_RUNS"], home / "runs")
    for place, setting in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{place}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(setting))
    environment = {
        **{name: value for name, value in os.environ.items() if name != "CSD_WIDGETS"},
        "CSD_MODE": "smoke",
        "CSD_RUNS": str(home / "runs"),
        "OMP_NUM_THREADS": "1",  # the browser needs a core, too
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    options += [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
    options += [f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api?token={token}", server, home / "log")
        yield folder, address, token
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(url, server, log):
    for _ in range(120):
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()}")


@pytest.fixture
def open_notebook(lab, browser):
    """A function that opens and runs a notebook of the lab's folder."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.set_default_timeout(90 * SECONDS)  # a slow machine, and two of these side by side

    def opened(name):
        return Notebook(context.new_page(), lab, name)

    yield opened
    context.close()


class Notebook:
    """A notebook in the browser, run from top to bottom."""

    def __init__(self, page, lab, name):
        _, address, token = lab
        self.page, self.name, self.errors = page, name, []
        page.on("pageerror", lambda error: self.errors.append(f"page: {error}"))
        page.on("websocket", lambda socket: socket.on("framereceived", self._listen))
        page.goto(f"{address}/lab/tree/{name}?reset&token={token}")
        page.locator(".jp-Notebook").wait_for()
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # or it asks for a kernel
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        for _ in range(480):
            if all(re.search(r"\d", p) for p in self._prompts()) or self.errors:
                break
            page.wait_for_timeout(0.5 * SECONDS)
        else:
            pytest.fail(f"{name} is still running, or never was: {self._prompts()}")
        self.panel = page.locator(".jp-OutputArea .widget-vbox")

    def _prompts(self):
        """What stands before each code cell: [ ]: before it runs, [*]: until it has, [7]: then."""
        return self.page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()

    def _failed(self):
        """Error messages below cells."""
        return self.page.locator('[data-mime-type="application/vnd.jupyter.error"]')

    def _listen(self, frame):
        """Note errors of the kernel: those of a callback appear in no cell."""
        frame = frame if isinstance(frame, bytes) else frame.encode()
        if re.search(rb'"msg_type": ?"error"', frame):
            told = re.search(rb'"evalue": ?"([^"]*)', frame)
            self.errors.append(f"kernel: {told and told.group(1).decode()}")

    def log_has_the_error(self):
        """Say whether the kernel has told of an error; its log follows the alert."""
        for _ in range(100):
            if any("kernel: " in error for error in self.errors):
                return True
            self.page.wait_for_timeout(100)
        return False

    def check(self):
        """No error in a cell, in place of the picture, in the page or in the kernel."""
        assert self._failed().count() == 0, self._failed().first.inner_text()
        alerts = self.panel.get_by_role("alert")
        assert alerts.count() == 0, alerts.first.inner_text()
        assert self.errors == []
        assert self.panel.count() == 1

    def picture(self):
        return self.panel.locator("img").get_attribute("src")

    def caption(self):
        text = self.panel.locator("p").inner_text().removeprefix("Figure: ")
        assert text == self.panel.locator("img").get_attribute("alt")
        return text

    def handle(self, label):
        """The handle of the slider with this label."""
        row = self.panel.locator(".widget-inline-hbox").filter(
            has=self.page.get_by_text(label, exact=True)
        )
        return row.locator(".noUi-handle")

    def change(self, move, seconds=10):
        """Make a move, wait until the picture follows, and return the new caption."""
        self.check()
        before, caption = self.picture(), self.caption()
        move()
        latest, still = before, 0
        for _ in range(10 * seconds):  # until the kernel has answered to the last of the keys
            self.page.wait_for_timeout(100)
            if self.panel.get_by_role("alert").count():
                break
            latest, last = self.picture(), latest
            still = still + 1 if latest == last else 0
            if latest != before and still >= 10:
                break
        self.page.wait_for_timeout(500)  # errors for the log come after the picture
        self.check()
        assert self.picture() != before, "the picture did not change"
        assert self.caption() != caption, "the caption did not change"
        return self.caption()

    def keys(self, label, key, times=1):
        """Move a slider with the keyboard; nothing need follow."""
        self.handle(label).focus()
        for _ in range(times):
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(400)  # as fast as a reader

    def press(self, label, key, times=1):
        """Move a slider with the keyboard."""
        return self.change(lambda: self.keys(label, key, times))

    def click(self, words):
        """Press the button, and wait until the kernel has answered: behind it a run is trained."""
        return self.change(lambda: self.button(words).click(), seconds=120)

    def button(self, words):
        return self.panel.get_by_role("button", name=words)

    def drag_to_the_left_end(self, label):
        """Move a slider with the mouse."""

        def move():
            box = self.handle(label).bounding_box()
            middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            self.page.mouse.move(*middle)
            self.page.mouse.down()
            self.page.mouse.move(middle[0] - 900, middle[1], steps=5)
            self.page.mouse.up()

        return self.change(move)

    def type_number(self, label, number):
        """Type into the number beside a slider."""

        def move():
            row = self.handle(label).locator("xpath=ancestor::*[contains(@class,'inline-hbox')]")
            row.locator(".widget-readout").click()
            self.page.keyboard.press("Control+a")
            self.page.keyboard.type(str(number))
            self.page.keyboard.press("Enter")

        return self.change(move)

    def pick(self, label, option):
        """Choose from a menu with the keyboard: open it, go to the option, take it."""
        menu = self.panel.get_by_label(label)
        names = menu.locator("option").all_text_contents()
        steps = names.index(option) - names.index(menu.evaluate("menu => menu.value"))
        menu.focus()
        for key in ["Space", *["ArrowDown" if steps > 0 else "ArrowUp"] * abs(steps), "Enter"]:
            self.page.keyboard.press(key)
            self.page.wait_for_timeout(200)

    def choose(self, label, option):
        """Choose from a menu; the picture must follow."""
        return self.change(lambda: self.pick(label, option))

    def photograph(self, name):
        """Leave a screenshot of what a reader sees: the control, and the cell above it."""
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.panel.evaluate("panel => panel.scrollIntoView({block: 'center'})")
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=PICTURES / f"{name}.png")


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def test_build_your_own_split(open_notebook):
    notebook = open_notebook(NOTEBOOKS["01"].name)
    assert re.findall(r"task \d: ([\d ]+) \(", notebook.caption()) == ["0 1 2 3", "4 5 6", "7 8 9"]
    four = notebook.press("number of tasks", "ArrowRight")
    assert [len(t.split()) for t in re.findall(r"task \d: ([\d ]+) \(", four)] == [3, 3, 2, 2]
    other = notebook.press("class order", "ArrowRight", times=2)
    assert "of seed 1," in other and "task 1: 0 1 2" not in other
    one = notebook.drag_to_the_left_end("number of tasks")
    assert "(1195 images)" in one and "task 2" not in one
    assert len(notebook.type_number("number of tasks", 5).split(";")) == 5
    notebook.photograph("01_split")


def test_temperature_of_csd(open_notebook):
    notebook = open_notebook(NOTEBOOKS["03"].name)

    def loss(temperature, angle):
        angles = torch.tensor([0.0, angle, 120, 180, 0, 0, 180, 180]).deg2rad()
        points = torch.stack([angles.cos(), angles.sin()], dim=1)
        return csd_loss(points[:4], points[4:], torch.tensor([0, 0, 1, 1]), temperature).item()

    def said(caption):
        return float(re.search(r"loss of the batch is ([\d.]+);", caption).group(1))

    assert said(notebook.caption()) == pytest.approx(loss(0.07, 60), abs=6e-4)
    caption = notebook.press("temperature T", "ArrowRight", times=5)
    assert "T = 0.5:" in caption and said(caption) == pytest.approx(loss(0.5, 60), abs=6e-4)
    caption = notebook.press("angle of student 2", "ArrowRight", times=2)
    assert said(caption) == pytest.approx(loss(0.5, 70), abs=6e-4)
    caption = notebook.type_number("angle of student 2", 150)
    assert said(caption) == pytest.approx(loss(0.5, 150), abs=6e-4)
    caption = notebook.drag_to_the_left_end("temperature T")
    assert "T = 0.05:" in caption and said(caption) == pytest.approx(loss(0.05, 150), abs=6e-4)
    notebook.press("temperature T", "ArrowRight", times=4)
    notebook.photograph("03_temperature")


def test_neighbors_of_a_query(open_notebook):
    notebook = open_notebook(NOTEBOOKS["04"].name)
    first = notebook.caption()
    assert first.startswith("Fine-tuning, query ") and "601 images to search: of the 8" in first
    assert first.endswith("which Recall@1 counts as a miss.")
    switched = notebook.choose("method", "CSD")
    assert switched.startswith(first.split("(")[0].replace("Fine-tuning", "CSD"))
    assert switched.endswith("which Recall@1 counts as a hit.")
    assert "of the 7 nearest" in notebook.press("k nearest", "ArrowLeft")
    earlier = notebook.press("after task", "ArrowLeft", times=2)
    assert "after task 3;" in earlier and numbers(earlier.split("search")[0])[-1] < 601
    other = 11 if "query 11 " not in first else 12
    assert f"query {other} (class" in notebook.type_number("query number", other)
    assert "query 0 (class" in notebook.drag_to_the_left_end("query number")
    notebook.choose("method", "Fine-tuning")
    notebook.photograph("04_neighbors")


def test_moments_of_training(open_notebook):
    notebook = open_notebook(NOTEBOOKS["05"].name)
    recording = load_recording()

    def expected(method, moment):
        which = recording.about["methods"].index(method)
        recall = 100 * recording.recall[which, moment, 0].astype(float)
        home = 100 * share_at_home(recording, method, moment)
        return [f"task 1 is {recall:.0f} %", f"map, {home:.0f} %"]

    last = len(recording.moments) - 1
    assert all(part in notebook.caption() for part in expected("fine-tuning", last))
    caption = notebook.choose("method", "CSD")
    assert all(part in caption for part in ["CSD, task 5 of 5, epoch 15", *expected("csd", last)])
    caption = notebook.press("moment", "ArrowLeft", times=3)
    assert all(part in caption for part in ["epoch 6", *expected("csd", last - 3)])
    caption = notebook.choose("method", "LwF")
    assert all(part in caption for part in expected("lwf", last - 3))
    caption = notebook.drag_to_the_left_end("moment")
    assert all(part in caption for part in ["task 1 of 5, epoch 3", *expected("lwf", 0)])
    notebook.press("moment", "ArrowRight", times=8)
    notebook.photograph("05_training")


def test_the_playground_of_recipes(lab, open_notebook):
    notebook = open_notebook(NOTEBOOKS["08"].name)

    def trained(method, seed, **weights):
        """What the kernel has measured, as the caption must say it."""
        records, unread = load_runs(lab[0].parent / "runs")
        assert unread == []
        (run,) = [
            run
            for run in records
            if (run.config.method, run.config.seed) == (method, seed)
            and all(getattr(run.config, name) == value for name, value in weights.items())
        ]
        old, new, gallery = three_numbers(run)
        return f"is {old:.1f} % on the old classes, {new:.1f} % on the new ones and {gallery:.1f} %"

    first, picture = notebook.caption(), notebook.picture()
    assert first.startswith("ce+triplet+csd, lambda_csd 0.1, seed 0: ")
    notebook.pick("triplet", "without")
    notebook.keys("weight of CSD", "ArrowLeft")
    notebook.keys("weight of KD", "ArrowRight", times=5)
    notebook.keys("seed", "ArrowRight", times=3)
    assert notebook.picture() == picture, "it must wait for the button"

    pressed = notebook.click("Train and measure")
    assert pressed.startswith("ce+kd, lambda_kd 10, seed 3: ")
    assert trained("ce+kd", 3, lambda_kd=10.0) in pressed
    notebook.photograph("08_playground")
    notebook.keys("weight of MMD", "ArrowRight", times=5)
    again = notebook.click("Train and measure")
    assert again.startswith("ce+kd+mmd, lambda_kd 10, seed 3: ")
    assert trained("ce+kd+mmd", 3, lambda_kd=10.0, lambda_mmd=10.0) in again
    measured = [numbers(said.split("Recall@1 is ")[1])[:3] for said in (first, pressed, again)]
    assert measured[0] != measured[1] != measured[2]

    notebook.keys("weight of MMD", "ArrowLeft", times=5)
    notebook.keys("weight of KD", "ArrowLeft", times=5)
    before = notebook.picture()
    notebook.button("Train and measure").click()
    notebook.button("Please wait").wait_for(timeout=10 * SECONDS)
    assert notebook.button("Please wait").is_disabled() and notebook.picture() == before
    notebook.photograph("08_waiting")
    notebook.button("Train and measure").wait_for(timeout=120 * SECONDS)
    assert notebook.caption().startswith("ce, seed 3: "), "cross entropy alone is a recipe, too"
    assert trained("ce", 3) in notebook.caption()
    notebook.check()


BROKEN = """
import matplotlib.pyplot as plt
from csd_lib.course import widgets

def draw(level):
    assert level != {broken}, "level {broken} is broken"
    figure, axis = plt.subplots()
    axis.bar(0, min(level, 2))  # level 3 looks like level 2
    return figure, f"level {{level}}"

widgets.explore(draw, level=widgets.Control("level", range(1, 5), 1))
"""


def broken_notebook(lab, broken):
    cell = nbformat.v4.new_code_cell(BROKEN.format(broken=broken))
    kernel = {"name": "python3", "display_name": "Python 3"}  # or JupyterLab asks which one
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    name = f"broken-{broken}.ipynb"
    nbformat.write(notebook, lab[0] / name)
    return name


def test_a_control_that_does_nothing_and_an_error_in_a_callback_turn_this_check_red(
    lab, open_notebook
):
    notebook = open_notebook(broken_notebook(lab, 4))
    assert notebook.press("level", "ArrowRight") == "level 2"
    with pytest.raises(AssertionError, match="the picture did not change"):
        notebook.press("level", "ArrowRight")
    with pytest.raises(AssertionError, match=r"could not be drawn\. AssertionError: level 4 is"):
        notebook.press("level", "ArrowRight")
    assert notebook.log_has_the_error()
    notebook.photograph("error")


def test_an_error_behind_a_button_is_shown_and_turns_this_check_red(lab, open_notebook):
    name = broken_notebook(lab, 3)
    path = lab[0] / name
    path.write_text(path.read_text().replace("explore(draw, ", "explore(draw, press='Draw', "))
    notebook = open_notebook(name)
    notebook.keys("level", "ArrowRight")
    assert notebook.click("Draw") == "level 2"
    notebook.keys("level", "ArrowRight")
    with pytest.raises(AssertionError, match=r"could not be drawn\. AssertionError: level 3 is"):
        notebook.click("Draw")
    assert notebook.panel.locator("img").count() == 0, "the old picture is not taken for the new"
    assert notebook.button("Draw").is_enabled(), "and one may try again"
    assert notebook.log_has_the_error()
    notebook.photograph("error_behind_a_button")


def test_an_error_at_first_turns_this_check_red(lab, open_notebook):
    notebook = open_notebook(broken_notebook(lab, 1))
    with pytest.raises(AssertionError, match="level 1 is broken"):
        notebook.check()
