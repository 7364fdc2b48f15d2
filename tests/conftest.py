import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text

from csd_lib.data import class_incremental_split, load_dataset
from csd_lib.paper.figures import use_style


def pytest_runtest_setup(item):
    """Let a test see numbers below 1e-38 again: training in an earlier one switches them off."""
    torch.set_flush_denormal(False)


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
def wheel(tmp_path_factory):
    """The wheel that Google Colab installs."""
    tool = Path(__file__).resolve().parent.parent / "tools" / "wheel.py"
    command = [sys.executable, tool, tmp_path_factory.mktemp("wheel")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())
