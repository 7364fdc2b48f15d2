"""A run from config to measured results, kept in a folder: load it if it is there, or make it."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import csd_lib
from csd_lib import InputError, checks, identity, runs
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.engine import pick_device
from csd_lib.files import make_folder, only_one, read_json, read_json_lines
from csd_lib.fingerprint import fingerprint
from csd_lib.model import Network
from csd_lib.networks import network_from_state, read_state, state_sha256
from csd_lib.paths import runs_folder
from csd_lib.prepare import load_images, split_classes
from csd_lib.record import Record
from csd_lib.retrieval import RetrievalMatrix, retrieval_matrix
from csd_lib.train import Run, train


@dataclass(frozen=True, eq=False, repr=False)
class FinishedRun(Run):
    """A finished run with what was measured on it."""

    record: Record
    folder: Path

    @property
    def matrix(self) -> RetrievalMatrix:
        """What was measured."""
        return self.record.matrix


def run_name(config: TrainConfig, data: str, fingerprint: str) -> str:
    """Name of a run's folder: readable, and another one for each config, data set and code."""
    # What is as usual is left out, so that a new setting does not rename the runs before it.
    usual = identity.key(
        TrainConfig(dataset=config.dataset, method=config.method, tasks=config.tasks)
    )
    changed = {n: v for n, v in identity.key(config).items() if n not in usual or usual[n] != v}
    key = json.dumps([changed, data, fingerprint], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    name = identity.data_name(config)
    return f"{name}-{config.method}-{config.tasks}tasks-seed{config.seed}-{digest}"


def run_folder(config: TrainConfig, dataset: Dataset) -> Path:
    """Folder of a run under ``runs/`` (or ``$CSD_RUNS``), unless one is given by hand."""
    decided = identity.of_run(config, dataset)
    return runs_folder() / run_name(config, decided["data"], decided["fingerprint"])


def _note_other_code(folder: Path, wanted: dict[str, Any]) -> None:
    """Say that this run has been begun, but not ended, by code that computed other numbers."""
    for path in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*/config.json"):
        if (path.parent / "results.json").exists():
            continue  # it lost nothing
        with suppress(InputError):  # of a damaged file, which belongs to another run
            if identity.difference(read_json(path), wanted).startswith("code that"):
                warnings.warn(
                    f"{path.parent} holds a part of this run by code that computed other "
                    f"numbers: it stays, and training begins anew in {folder.name}",
                    stacklevel=3,
                )


def run_experiment(
    config: TrainConfig,
    dataset: Dataset | None = None,
    *,
    folder: str | Path | None = None,
    share_first_task: bool = False,
    on_epoch: Callable[[list[dict[str, float]], Network], None] | None = None,
    progress: bool = True,
) -> FinishedRun:
    """Train and measure, or load what an earlier call with the same config and images has left.

    Args:
        config: everything that decides the run. ``device="auto"`` is resolved before it is stored.
        dataset: the images; default: loads ``config.dataset``.
        folder: where config, history, models and results are kept. Default: a folder of its own
            under ``runs/`` (or ``$CSD_RUNS``). A killed run goes on from its last checkpoint, and
            one there that stopped earlier (``stop_at_epoch``) is gone on from, not trained again.
        share_first_task: train the first task in a run of its own (method ``initial`` or the
            like), once for all methods that learn it alike. The result is the same.
        on_epoch, progress: as in ``train``.

    Raises:
        InputError: for an impossible config, a folder that cannot be written, or one that holds a
            run of another config, of other images or of code that computes other numbers.
        TrainingError: if training breaks down.
    """
    config = replace(config, device=str(pick_device(config.device)))
    if folder is not None:
        folder = make_folder(folder)  # now, not after the first task
    dataset = load_images(config, dataset)
    wanted, prefix, first_run = identity.of_run(config, dataset), None, None
    if folder is None:
        name = run_name(config, wanted["data"], wanted["fingerprint"])
        folder = make_folder(runs_folder() / name)
        if not runs.has_begun(folder):
            _note_other_code(folder, wanted)
            prefix = runs.find_prefix(runs_folder(), config, dataset)
    first_task = identity.first_task(config) if share_first_task else None
    if first_task and not prefix and not runs.has_begun(folder):
        first_run = run_experiment(first_task, dataset, on_epoch=on_epoch, progress=progress).folder
        saved = runs.RunFolder.load_begun(first_run, None, config, dataset)
        if saved and saved["device"] != torch.device(config.device).type:
            first_run = None  # as find_prefix: its random numbers cannot be gone on with here
    with only_one(folder, "training"):
        run = train(
            config,
            dataset,
            folder=folder,
            first_task=first_run,
            prefix=prefix,
            on_epoch=on_epoch,
            progress=progress,
        )
        path = folder / "results.json"
        if not path.exists():  # else train has seen that they are this run's
            steps = folder / "steps.jsonl"
            taken = read_json_lines(steps) if steps.exists() else []
            _measure(run, dataset, wanted, taken).write(path)
        record = Record.read(path)
    if record.models and record.models != _hashes(run.models):
        raise InputError(
            f"{path} was measured on other models than {folder / 'checkpoint.pt'} holds: move one "
            f"of the two away"
        )
    return FinishedRun(run.config, run.tasks, run.models, run.history, record, folder)


def load_run(folder: str | Path, dataset: Dataset | None = None) -> FinishedRun:
    """Load a finished run with its models, whatever has changed in the code since.

    If today's code computes other numbers, a warning says so. The models are frozen and in
    evaluation mode; to train one on, copy it, as docs/api.md shows.

    Args:
        folder: of the run.
        dataset: its images; default: loads ``config.dataset``.

    Raises:
        InputError: if there is no finished run, these are other images, or a model is missing or
            not the one that was measured.
    """
    checks.path("folder", folder, "the folder of a run")
    folder = Path(folder)
    if not (folder / "results.json").exists():
        has_begun = (folder / "config.json").exists()
        what = "is not finished: the command that began it goes on" if has_begun else "is no run"
        raise InputError(f"{folder} {what}; give the folder of a finished run")
    record = Record.read(folder / "results.json")
    config = record.config
    dataset = load_images(config, dataset)
    if record.data and dataset.sha256() != record.data.split("+")[0]:
        raise InputError(f"{folder} is a run on other images or labels than {dataset.name}'s here")
    tasks = split_classes(dataset, config)
    models = [_load_model(record, number) for number in range(1, config.times_learned() + 1)]
    _, channels, *size = dataset.train_images.shape
    today = fingerprint(config, channels, min(size))
    if record.fingerprint not in ("", today):
        warnings.warn(
            f"{folder} was made by code that computes other numbers (fingerprint "
            f"{record.fingerprint}, today's {today}): its results are those of then, its models "
            f"compute with today's code",
            stacklevel=2,
        )
    history = read_json_lines(folder / "history.jsonl")
    if len(history) != sum(map(config.epochs_to_run, range(len(models)))):
        raise InputError(
            f"{folder / 'history.jsonl'} has only {len(history)} epochs: run the same training "
            f"again, which writes all of them anew"
        )
    models += [models[-1]] * (len(record.matrix.own) - len(models))  # the initial model stays
    return FinishedRun(config, tasks, models, history, record, folder)


def last_model(record: Record) -> Network:
    """Return the last model that a finished run has kept, frozen. Its images are not needed."""
    return _load_model(record, record.config.times_learned())


def _hashes(models: Sequence[Network]) -> tuple[str, ...]:
    return tuple(state_sha256(model.state_dict()) for model in models)


def read_model(record: Record, path: Path) -> Network:
    """Return the model in a file, ``.pt`` or ``.safetensors``, frozen; InputError if not of it."""
    state = read_state(path)
    try:
        return network_from_state(record.config, state)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not the model of its record ({error})") from error


def _load_model(record: Record, number: int) -> Network:
    path = (record.folder or Path()) / f"model-task{number}.pt"
    if not path.exists():
        raise InputError(f"{path} is missing: run the same training again, which keeps it anew")
    model = read_model(record, path)
    if record.models and _hashes([model]) != record.models[number - 1 : number]:
        raise InputError(
            f"{path} is not the model that was measured: run the same training again, which keeps "
            f"that one anew"
        )
    return model


def _measure(run: Run, dataset: Dataset, decided: dict[str, str], steps: Sequence[Any]) -> Record:
    """Measure a run, and say where and when."""
    device = torch.device(run.config.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    versions = {
        "csd_lib": csd_lib.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    return Record(
        config=run.config,
        matrix=retrieval_matrix(run.models, run.tasks),
        date=datetime.date.today().isoformat(),
        device=gpu or f"{device.type}, {os.cpu_count()} cores",
        data=decided["data"],
        image_shape=tuple(dataset.train_images.shape[1:]),
        fingerprint=decided["fingerprint"],
        versions=versions,
        threads=torch.get_num_threads(),
        peak_memory_mb=_peak_memory(device),
        steps=tuple(steps),
        models=_hashes(run.models),
        training_seconds=round(sum(record["seconds"] for record in run.history), 3),
    )


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
