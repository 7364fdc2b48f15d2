"""What only the notebooks need: choosing a mode, showing source code, checking quoted numbers."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from IPython.display import Markdown, display
from torch import Tensor

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig
from csd_lib.course.checkers import CHECKERS, VERDICTS
from csd_lib.data import Dataset
from csd_lib.datasets import load_dataset
from csd_lib.doctor import MODE_SETTINGS, SMOKE_SEEDS, mode_forecast
from csd_lib.experiment import FinishedRun, run_experiment
from csd_lib.files import make_folder
from csd_lib.fingerprint import fingerprint
from csd_lib.methods import TERMS, Term
from csd_lib.output import shorten_warnings
from csd_lib.paper.figures import use_style
from csd_lib.paths import runs_folder, variable
from csd_lib.retrieval import RetrievalMatrix, retrieval_matrix
from csd_lib.train import train

MODES = {
    "smoke": "the embedded handwritten digits, seconds a run on any CPU",
    "clothes": "the embedded photographs of clothes, 10 to 20 seconds a run on a CPU",
    "class": "CIFAR-100 with a short schedule, for one GPU and a class hour",
    "paper": "CIFAR-100 with the paper's full protocol, for one GPU and many hours",
}
__all__ = [
    "DRIVE",
    "MODES",
    "Session",
    "Stopped",
    "progress",
    "show_source",
    "smoke_fingerprint",
    "source_hash",
    "start",
]
DRIVE = Path("/content/drive")  # where Colab's own examples mount Google Drive


class Stopped(KeyboardInterrupt):
    """The reader has stopped a cell. Jupyter shows it as one line, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass(frozen=True)
class Session:
    """The choices that every notebook shares.

    Raises:
        InputError: for a mode that does not exist, and from its functions for unknown settings.
    """

    mode: str
    device: str
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        checks.one_of("mode", self.mode, MODES)
        checks.text("device", self.device)
        checks.sequence("seeds", self.seeds, int, "one or more whole numbers")

    def config(self, method: str, seed: int = 0, **changes: Any) -> TrainConfig:
        """Return this mode's config for one method and seed, with any field changed by name."""
        checks.setting_names(TrainConfig, changes)
        settings = {**MODE_SETTINGS[self.mode], "device": self.device, **changes}
        return TrainConfig(method=method, seed=seed, **settings)

    def load_dataset(self) -> Dataset:
        """Load this mode's images."""
        return load_dataset(MODE_SETTINGS[self.mode]["dataset"])

    def run(self, method: str, seed: int = 0, **changes: Any) -> FinishedRun:
        """Load this mode's run of a method and seed, or train and measure it now.

        Methods that learn the first task alike share it: it is trained once, with the same result.
        """
        config = self.config(method, seed, **changes)
        try:
            show = self.mode != "smoke"
            return run_experiment(config, share_first_task=True, progress=show)
        except KeyboardInterrupt:
            raise Stopped(
                "stopped: run this cell again to go on from the last finished epoch"
            ) from None

    def try_term(self, term: Callable[..., Tensor], seed: int = 0) -> RetrievalMatrix:
        """Train with cross entropy, the triplet loss and a learner's own distillation term.

        It begins after the first task that the other methods share. What it learns is not kept,
        because a changed term would otherwise find the runs of the old one.

        Args:
            term: gets student features ``[B, D]``, teacher features ``[B, D]`` and labels ``[B]``,
                and returns a scalar.
            seed: of the run.
        """
        if not callable(term):
            raise InputError(
                f"term={checks.shown(term)}: give your function itself, not its result"
            )
        own = Term("your term", lambda o, s: term(o.features, o.teacher_features, o.labels))
        first = self.run("initial", seed)
        with patch.dict(TERMS, own=own):
            config = self.config("ce+triplet+own", seed)
            run = train(config, first_task=first.folder, progress=self.mode != "smoke")
        return retrieval_matrix(run.models, run.tasks)

    def check(self, what: str, value: Any, quoted: float, tolerance: float) -> None:
        """Compare a value with the one the text quotes; the text quotes smoke mode.

        In other modes the data differ, so the value is only printed beside the quoted one.

        Raises:
            AssertionError: in smoke mode, if they differ by more than the tolerance.
        """
        checks.text("what", what)
        value = value.item() if isinstance(value, Tensor) and value.ndim == 0 else value
        checks.instance("value", value, (int, float, np.number), "a number")
        checks.number("quoted", quoted)
        checks.number("tolerance", tolerance, at_least=0)
        print(f"{what}: {value:.4g} (text: {quoted:g} ± {tolerance:g})")
        if self.mode == "smoke":
            assert math.isfinite(value) and abs(value - quoted) <= tolerance, (
                f"{what} is {value:.4g}, but the text says {quoted:g} ± {tolerance:g}"
            )


def start(keep_in_drive: bool = False) -> Session:
    """Pick the mode from ``$CSD_MODE``, or by whether there is a GPU, and say why.

    Args:
        keep_in_drive: on Google Colab, ask for the learner's Google Drive and keep the runs there,
            so that they go on after a disconnect. Without it Drive is never touched.
    """
    checks.flag("keep_in_drive", keep_in_drive)
    has_gpu = torch.cuda.is_available()
    mode = variable("CSD_MODE")
    if mode:
        reason = "CSD_MODE says so"
    else:
        mode = "class" if has_gpu else "smoke"
        reason = "a CUDA GPU was found" if has_gpu else "no CUDA GPU was found"
    checks.one_of("CSD_MODE", mode, MODES)
    in_colab = "google.colab" in sys.modules
    if in_colab and not has_gpu and variable("CSD_MODE") != "smoke":
        _say_loudly(
            "This runtime has no GPU. To get one: menu Runtime → Change runtime type → T4 GPU → "
            "Save, then run the notebook again from its first cell."
        )
    device = "cuda" if has_gpu and mode != "smoke" else "cpu"
    print(f"Mode {mode}, because {reason}: {MODES[mode]}. Device: {device}.")
    if mode == "smoke":
        print(
            "The numbers in the text are of this mode; single runs differ by some points between "
            "computers."
        )
    else:
        print("The numbers in the text are of mode smoke; yours will differ.")
        print(mode_forecast(mode, device, seconds=0.3))
        if device == "cpu":
            print("CSD_MODE=smoke takes seconds.")
    if in_colab:
        _choose_where_runs_are_kept(keep_in_drive)
    elif keep_in_drive:
        print(f"keep_in_drive is only for Google Colab: runs are kept in {runs_folder()}.")
    use_style()
    shorten_warnings("stdout")
    return Session(mode, device, seeds=tuple(range(SMOKE_SEEDS if mode == "smoke" else 1)))


def _say_loudly(text: str) -> None:
    """Show a line that nobody can miss: large and framed where the page can show that."""
    style = "border: 4px solid #D55E00; padding: 8px; font-size: 130%; font-weight: bold"
    page = {"text/html": f'<div style="{style}">{text}</div>', "text/plain": f"*** {text} ***"}
    display(page, raw=True)


def _choose_where_runs_are_kept(keep_in_drive: bool) -> None:
    """Say where the runs of a Colab runtime are; before that, mount Drive if it is asked for."""
    if keep_in_drive:
        from google.colab import drive

        try:
            drive.mount(str(DRIVE))
            folder = make_folder(DRIVE / "MyDrive" / "csd-kit" / "runs")
            if shutil.disk_usage(folder).free < 100e6:
                raise OSError("less than 100 MB are free")
            os.environ["CSD_RUNS"] = str(folder)
        except Exception as error:  # Colab has many, with names of its own
            print(f"Google Drive cannot be used ({error}).")
    if runs_folder().is_relative_to(DRIVE):
        print(f"Runs are kept in {runs_folder()}: a new runtime goes on with them.")
    else:
        print(
            f"Runs are kept in {runs_folder()} and vanish with this runtime; "
            f"keep_in_drive=True above keeps them in your Google Drive."
        )


def progress(topic: str) -> None:
    """Show which exercises of a topic the checkers have accepted in this session."""
    checks.one_of("topic", topic, dict.fromkeys(number.split(".")[0] for number in CHECKERS))
    numbers = [number for number in CHECKERS if number.startswith(f"{topic}.")]
    solved = [number for number in numbers if VERDICTS.get(number)]
    marks = ", ".join(f"{n} {'✓' if n in solved else '–'}" for n in numbers)
    print(f"Solved: {len(solved)} of {len(numbers)} exercises with a checker ({marks}).")


def show_source(function: Callable[..., Any]) -> None:
    """Show a library function as it is in the library, in full."""
    try:
        source, where = inspect.getsource(function), f"{function.__module__}.{function.__name__}"
    except (TypeError, OSError, AttributeError) as error:
        raise InputError(
            f"function={checks.shown(function)}: give a function that is written in Python, itself"
        ) from error
    display(Markdown(f"`{where}`\n\n```python\n{source}```"))


def source_hash(notebook: Any) -> str:
    """Hash of a notebook's code cells without their outputs, to tell outputs of older cells."""
    text = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def smoke_fingerprint() -> str:
    """Hash of what the kit's own methods compute in smoke mode, to tell outputs of other code."""
    own = ("initial", "fine-tuning", "lwf", "mmd", "mmd-kd", "fecd", "csd", "joint")
    configs = [TrainConfig(method=method, **MODE_SETTINGS["smoke"]) for method in own]
    found = " ".join(fingerprint(config, channels=1, size=8) for config in configs)
    return hashlib.sha256(found.encode()).hexdigest()[:8]
