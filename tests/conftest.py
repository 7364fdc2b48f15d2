import importlib
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import servers
import torch
from filelock import FileLock
from matplotlib.text import Text

from csd_lib import fingerprint
from csd_lib.data import class_incremental_split
from csd_lib.datasets import load_dataset

# A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TOOLS = Path(__file__).resolve().parent.parent / "tools"
# The longest first, so that at the end no process works alone on one of them.
LONG = (
    "runs_alone_from_a_fresh_kernel",
    "test_reproduce",
    "readmes_tables",
    "kill",
    "test_mistakes_ctrl_c",
    "students_zip",
)


# What a test puts in the place of the kit's functions stays as it is, so with it a fingerprint may
# be remembered, too: it is half of a short run's time.
fingerprint.KNOWN |= {path.stem for path in Path(__file__).parent.glob("*.py")}


def pytest_collection_modifyitems(items):
    items.sort(key=lambda i: next((n for n, part in enumerate(LONG) if part in i.name), len(LONG)))


def pytest_runtest_setup(item):
    """Let a test see numbers below 1e-38 again: training in an earlier one switches them off."""
    torch.set_flush_denormal(False)


@pytest.fixture
def one_number(monkeypatch):
    """For tables and figures of made-up records: no fingerprint is worth its time there."""
    monkeypatch.setattr(fingerprint, "_measured", lambda tiny, dataset: [0.0])


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def two_tasks(digits):
    return class_incremental_split(digits, 2)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def style():
    """The style that the notebooks' first cell sets; all figures are closed at the end."""
    from csd_lib.paper.figures import use_style  # here, for most tests need none of it

    with matplotlib.rc_context():
        use_style()
        yield
    plt.close("all")


@pytest.fixture
def small_texts(style):
    """A function that lists the texts of a figure that are smaller than 12 points."""

    def small(figure):
        figure.canvas.draw()  # tick labels have no text before
        shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
        assert shown
        return [(t.get_text(), t.get_fontsize()) for t in shown if t.get_fontsize() < 12]

    return small


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function that fills a folder of some name once for all processes of a test run."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name, fill):
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                partial = tmp_path_factory.mktemp(name)
                fill(partial)
                partial.rename(folder)
        return folder

    return made


@pytest.fixture
def tool(monkeypatch):
    """A function that imports one of the tools by name."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module


@pytest.fixture
def serve():
    """A function that starts a server of one content; ``servers`` has ways to answer."""
    with ExitStack() as running:
        yield lambda answer, content: running.enter_context(servers.running(answer, content))


@pytest.fixture(scope="session")
def wheel(made_once):
    """The wheel that Google Colab installs."""
    command = [sys.executable, TOOLS / "wheel.py"]
    build = lambda folder: subprocess.run([*command, folder], check=True)  # noqa: E731
    (path,) = made_once("wheel", build).iterdir()
    return path


@pytest.fixture(scope="session")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.fail(
            "there is no Chromium: install it (Debian: apt-get install chromium), or name its "
            "program: CHROMIUM=/path/to/chromium make ..."
        )
    return found


@pytest.fixture(scope="session")
def browser(chromium):
    from playwright.sync_api import sync_playwright  # only here: most tests need no browser

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    flags += ["--disable-component-update", "--no-first-run"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CSD_RESULTS", str(tmp_path / "results"))
    return tmp_path


@pytest.fixture
def trained(monkeypatch):
    """A list to which every task that is trained adds its number of classes and whether later."""
    training = sys.modules["csd_lib.train"]  # csd_lib.train is its function
    found, original = [], training.TaskTraining

    def spy(student, teacher, tasks, *rest):
        if len(tasks[-1].train_images) > 100:  # else it is the tiny run of a fingerprint
            found.append((len(tasks[-1].classes), teacher is not None))
        return original(student, teacher, tasks, *rest)

    monkeypatch.setattr(training, "TaskTraining", spy)
    return found
