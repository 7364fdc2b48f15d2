"""What only the notebooks need: choosing a mode, showing source code, checking quoted numbers."""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from IPython.display import Markdown, display

from csd_lib import InputError, plots
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset, load_dataset
from csd_lib.experiment import Experiment, run_experiment

MODES = {
    "smoke": "the embedded handwritten digits, seconds a run on any CPU",
    "class": "CIFAR-100 with a short schedule, for one GPU and a class hour",
    "paper": "CIFAR-100 with the paper's full protocol, for one GPU and many hours",
}
MODE_SETTINGS: dict[str, dict[str, Any]] = {
    "smoke": dict(dataset="digits"),
    "class": dict(dataset="cifar100", preset="class"),
    "paper": dict(dataset="cifar100", preset="clean"),
}


@dataclass(frozen=True)
class Session:
    """The choices that every notebook shares."""

    mode: str
    device: str
    seeds: tuple[int, ...]

    def config(self, method: str, seed: int = 0, **changes: Any) -> TrainConfig:
        """Return this mode's config for one method and seed, with any field changed by name."""
        settings = {**MODE_SETTINGS[self.mode], "device": self.device, **changes}
        return TrainConfig(method=method, seed=seed, **settings)

    def load_dataset(self) -> Dataset:
        """Load this mode's images."""
        return load_dataset(MODE_SETTINGS[self.mode]["dataset"])

    def run(self, method: str, seed: int = 0, **changes: Any) -> Experiment:
        """Load this mode's run of a method and seed, or train and measure it now."""
        config = self.config(method, seed, **changes)
        return run_experiment(config, progress=self.mode != "smoke")

    def check(self, what: str, value: float, quoted: float, tolerance: float) -> None:
        """Compare a value with the one the text quotes; the text quotes smoke mode.

        In other modes the data differ, so the value is only printed beside the quoted one.

        Raises:
            AssertionError: in smoke mode, if they differ by more than the tolerance.
        """
        print(f"{what}: {value:.4g} (text: {quoted:g} ± {tolerance:g})")
        if self.mode == "smoke":
            assert math.isfinite(value) and abs(value - quoted) <= tolerance, (
                f"{what} is {value:.4g}, but the text says {quoted:g} ± {tolerance:g}"
            )


def start() -> Session:
    """Pick the mode from ``$CSD_MODE``, or by whether there is a GPU, and say why.

    Raises:
        InputError: for a mode that does not exist.
    """
    has_gpu = torch.cuda.is_available()
    mode = os.environ.get("CSD_MODE", "")
    if mode:
        reason = "CSD_MODE says so"
    else:
        mode = "class" if has_gpu else "smoke"
        reason = "a CUDA GPU was found" if has_gpu else "no CUDA GPU was found"
    if mode not in MODES:
        raise InputError(f"CSD_MODE={mode!r}: choose one of {', '.join(MODES)}")
    device = "cuda" if has_gpu and mode != "smoke" else "cpu"
    print(f"Mode {mode}, because {reason}: {MODES[mode]}. Device: {device}.")
    if mode == "smoke":
        print("The numbers in the text are of this mode.")
    else:
        print("The numbers in the text are of mode smoke; yours will differ.")
        if device == "cpu":
            print("Without a GPU this takes hours to weeks: CSD_MODE=smoke takes seconds.")
    plots.use_style()
    warnings.showwarning = lambda message, *_, **__: print(f"note: {message}")
    return Session(mode, device, seeds=(0, 1, 2) if mode == "smoke" else (0,))


def show_source(function: Callable[..., Any]) -> None:
    """Show a library function as it is in the library, in full."""
    where = f"{function.__module__}.{function.__name__}"
    display(Markdown(f"`{where}`\n\n```python\n{inspect.getsource(function)}```"))


def source_hash(notebook: Any) -> str:
    """Hash of a notebook's cells without their outputs, to tell outputs of older cells."""
    text = "\0".join(f"{cell.cell_type}\0{cell.source}" for cell in notebook.cells)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
