"""A run from config to measured results, kept in a folder: load it if it is there, or make it."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import csd_lib
from csd_lib import InputError, runs
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.engine import pick_device
from csd_lib.files import make_folder, only_one, read_json, write_json
from csd_lib.model import ResNet
from csd_lib.retrieval import RetrievalMatrix, average, forgetting, retrieval_matrix
from csd_lib.train import Run, train

_MATRICES = [field.name for field in fields(RetrievalMatrix)]
_NEEDED = {"config", "code", "date", "device", "matrix"}


@dataclass(frozen=True)
class Experiment(Run):
    """A finished run with what was measured on it."""

    matrix: RetrievalMatrix
    folder: Path


def run_name(config: TrainConfig) -> str:
    """Name of a run's folder: readable, and different for every config and version of the code."""
    identity = json.dumps(runs.identity(config), sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return f"{config.dataset}-{config.method}-{config.tasks}tasks-seed{config.seed}-{digest}"


def run_folder(config: TrainConfig) -> Path:
    """Folder of a run under ``runs/`` (or ``$CSD_RUNS``), unless one is given by hand."""
    return runs.runs_folder() / run_name(config)


def run_experiment(
    config: TrainConfig,
    dataset: Dataset | None = None,
    *,
    folder: str | Path | None = None,
    share_first_task: bool = False,
    on_epoch: Callable[[list[dict[str, float]], ResNet], None] | None = None,
    progress: bool = True,
) -> Experiment:
    """Train and measure, or load what an earlier call with the same config and code has left.

    Args:
        config: everything that decides the run. ``device="auto"`` is resolved before it is stored.
        dataset: the images; default: loads ``config.dataset``.
        folder: where config, history, models and results are kept. Default: a folder of its own
            under ``runs/`` (or ``$CSD_RUNS``). A killed run goes on from its last epoch.
        share_first_task: train the first task in a run of its own (method ``initial``), once for
            all methods that learn it alike. The result is the same.
        on_epoch, progress: as in ``train``.

    Raises:
        InputError: for an impossible config, a folder that cannot be written, or one that holds a
            run of another config or of another version of the code.
        TrainingError: if training breaks down.
    """
    config = replace(config, device=str(pick_device(config.device)))
    folder = Path(folder or run_folder(config))
    first = config.first_task() if share_first_task else None
    first_folder = None
    if first:
        first_folder = run_experiment(first, dataset, on_epoch=on_epoch, progress=progress).folder
    with only_one(make_folder(folder), "training"):
        run = train(
            config,
            dataset,
            folder=folder,
            first_task=first_folder,
            on_epoch=on_epoch,
            progress=progress,
        )
        matrix = _measure(run, folder / "results.json")
    return Experiment(run.config, run.tasks, run.models, run.history, matrix, folder)


def read_results(path: Path) -> dict[str, Any]:
    """Read the ``results.json`` of a run, which may come from somebody else.

    Raises:
        InputError: if it is damaged, or is not what ``run_experiment`` writes.
    """
    results = read_json(path)
    try:
        missing = _NEEDED - set(results)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
        for name in _MATRICES:
            matrix = np.array(results["matrix"][name], dtype=float)
            if matrix.ndim != 2 or 0 in matrix.shape:
                raise ValueError(f"its matrix {name} has shape {matrix.shape}")
        for name, kind in {"dataset": str, "method": str, "tasks": int, "seed": int}.items():
            if not isinstance(results["config"][name], kind):
                raise ValueError(f"its {name} is {results['config'][name]!r}")
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a record: {error}") from error
    return results


def _measure(run: Run, results_file: Path) -> RetrievalMatrix:
    """Return what was measured on a run; measure it if that is not in the file."""
    if not results_file.exists():
        matrix = retrieval_matrix(run.models, run.tasks)
        write_json(results_file, _results(run, matrix))
        return matrix
    stored = read_results(results_file)["matrix"]
    return RetrievalMatrix(**{name: np.array(stored[name], dtype=float) for name in _MATRICES})


def _results(run: Run, matrix: RetrievalMatrix) -> dict[str, Any]:
    """Everything a table needs, with what one must know to believe it."""
    device = torch.device(run.config.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "config": asdict(run.config),
        "code": runs.code_hash(),
        "date": datetime.date.today().isoformat(),
        "device": gpu or f"{device.type}, {os.cpu_count()} cores",
        "versions": {
            "csd_lib": csd_lib.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "threads": torch.get_num_threads(),
        "peak_memory_mb": _peak_memory(device),
        "training_seconds": round(sum(record["seconds"] for record in run.history), 1),
        "matrix": {name: values.tolist() for name, values in vars(matrix).items()},
        "average": {name: average(values) for name, values in vars(matrix).items()},
        "forgetting": {name: forgetting(values) for name, values in vars(matrix).items()},
    }


def _peak_memory(device: torch.device) -> int:
    """Most memory used so far, in MB: on a GPU by torch, else by this whole process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return 0
    unit = 1 if platform.system() == "Darwin" else 1024
    return round(getrusage(RUSAGE_SELF).ru_maxrss * unit / 1e6)
