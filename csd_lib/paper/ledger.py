"""The ledger: recorded runs of the paper's experiments, and what they say beside its numbers.

A record is a folder under ``data/results/`` with one ``results.json``: config, hash of the code,
device, versions, precision, hours, peak memory, the three matrices and the history of a run. One
seed also keeps the last model and its test features, with their SHA-256 in that file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import REPOSITORY, TAG, InputError, paths, runs
from csd_lib.config import TrainConfig
from csd_lib.data import load_dataset
from csd_lib.engine import pick_device
from csd_lib.experiment import Experiment, read_results, run_experiment, run_name
from csd_lib.fetch import MAX_SIZE, fetch
from csd_lib.files import (
    make_folder,
    read_arrays,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
    writing,
)
from csd_lib.methods import get_method
from csd_lib.model import FEATURE_SIZE, ResNet
from csd_lib.paths import results_folder
from csd_lib.retrieval import embed
from csd_lib.runs import restore_model

# Where a run was made does not change what it is a run of.
_HOW = ("device", "cuda_graph")
# Records that an installed csd_lib brings along, without their models and features. A checkout has
# no such folder: they are its data/results/.
PACKAGED = Path(__file__).resolve().parent.parent / "recorded"


def read_folders() -> list[Path]:
    """Where records are read, first things first: ``results_folder()``, then ``PACKAGED``.

    If ``$CSD_RESULTS`` is set, only that.
    """
    return [results_folder()] if paths.variable("CSD_RESULTS") else [results_folder(), PACKAGED]


def find_file(name: str) -> Path:
    """Return a file that lies beside the records.

    Raises:
        InputError: if it is in none of the ``read_folders()``.
    """
    for folder in read_folders():
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"there is no {name} in {results_folder()}: copy it from the kit")


def load_records(folder: str | Path | None = None) -> list[dict[str, Any]]:
    """Read every record under a folder, the oldest first; each gets its ``folder``.

    Args:
        folder: default: all ``read_folders()``; of two records of one name the first counts.

    Raises:
        InputError: if a file is damaged or is not a record.
    """
    folders = [Path(folder)] if folder else read_folders()
    found = {p.relative_to(f): p for f in reversed(folders) for p in f.rglob("results.json")}
    records = []
    for path in sorted(found.values()):
        records.append({**read_results(path), "folder": path.parent})
    code = runs.code_hash()  # of records of one day, those that this code made are the newest
    return sorted(records, key=lambda r: (r["date"], r["code"] == code, str(r["folder"])))


def what_it_is(config: TrainConfig | dict[str, Any]) -> str:
    """Key of a config: equal for two runs of the same thing on different machines."""
    values = asdict(config) if isinstance(config, TrainConfig) else dict(config)
    return json.dumps({k: v for k, v in values.items() if k not in _HOW}, sort_keys=True)


def reproduce(
    configs: Sequence[TrainConfig],
    folder: str | Path | None = None,
    *,
    keep_models: bool = False,
    again: bool = False,
    progress: bool = True,
) -> list[Path]:
    """Run what is missing, go on with what is half done, and record every result.

    The first task is trained once for all methods that learn it alike. One line a cell shows how
    far it is and how long it will take.

    Args:
        configs: of ``paper.Experiment.configs``.
        folder: of the records; default: ``results_folder()``.
        keep_models: also keep the last model and its features of all test images.
        again: run also what was recorded by an older version of the code; nothing is overwritten.
        progress: show the lines.

    Returns:
        The folder of each config's record.
    """
    recorded = {what_it_is(r["config"]): r for r in load_records(folder)}
    folder = Path(folder or results_folder())
    configs = [replace(config, device=str(pick_device(config.device))) for config in configs]
    dataset = load_dataset(configs[0].dataset)
    places = []
    for number, config in enumerate(configs, start=1):
        title = f"[{number}/{len(configs)}] {describe(config)}"
        record = recorded.get(what_it_is(config))
        current = record and record["code"] == runs.code_hash()
        if record and (current or not again):
            by = "" if current else f" by an older version of the code ({record['code']})"
            tqdm.write(f"{title}: recorded on {record['date']}{by}")
            places.append(record["folder"])
            continue
        method = get_method(config.method)
        stages = 1 if method.joint or not method.learns_later else config.tasks
        with tqdm(
            total=stages * config.epochs, desc=title, unit="epoch", disable=not progress
        ) as bar:

            def show(history: list[dict[str, float]], student: ResNet, bar: tqdm = bar) -> None:
                if bar.n == 0:  # epochs of an earlier call do not count for the time left
                    bar.initial = bar.n = len(history) - 1
                bar.update(len(history) - bar.n)

            experiment = run_experiment(
                config, dataset, share_first_task=True, on_epoch=show, progress=False
            )
        places.append(write_record(experiment, folder / config.dataset, keep_models))
    return places


def describe(config: TrainConfig) -> str:
    """Name a cell for a progress line."""
    usual = TrainConfig(dataset=config.dataset, preset=config.preset)
    shown = ("method", "dataset", "preset", "tasks", "seed", *_HOW)
    changed = [
        f"{name}={value}"
        for name, value in asdict(config).items()
        if name not in shown and value != getattr(usual, name)
    ]
    return ", ".join(
        [
            f"{get_method(config.method).title}, {config.dataset}, preset {config.preset}",
            f"{config.tasks} tasks, seed {config.seed}",
            *changed,
        ]
    )


def write_record(experiment: Experiment, folder: Path, keep_models: bool = False) -> Path:
    """Write the record of a finished run into a folder of its own, and return that."""
    place = make_folder(folder / run_name(experiment.config))
    record = read_json(experiment.folder / "results.json")
    record["history"] = experiment.history
    if keep_models:
        model = experiment.models[-1]
        write_tensors(place / "model.pt", model.state_dict())
        images = torch.cat([task.test_images for task in experiment.tasks])
        labels = torch.cat([task.test_labels for task in experiment.tasks])
        features = embed(model, images).half().cpu().numpy()
        arrays = dict(features=features, labels=labels.numpy().astype(np.uint8))
        with writing(place / "features.npz"):
            np.savez(place / "features.npz", **arrays)
        record["files"] = {name: _sha256(place / name) for name in ("model.pt", "features.npz")}
    write_json(place / "results.json", record)
    return place


def find_record(records: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """Return the newest record whose config has these values.

    Raises:
        InputError: if there is none.
    """
    for record in reversed(records):
        if all(record["config"].get(name) == value for name, value in fields.items()):
            return record
    wanted = ", ".join(f"{name}={value}" for name, value in fields.items())
    raise InputError(f"no record with {wanted}: make it with 'python -m csd_lib reproduce'")


def load_features(record: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the recorded test features, float32 ``[N, 64]``, and labels, int64 ``[N]``.

    Raises:
        InputError: if the record kept none, the file is not the one that was recorded, or it
            cannot be fetched.
    """
    path = _recorded_file(record, "features.npz")
    arrays = read_arrays(path, MAX_SIZE)
    features, labels = arrays.get("features"), arrays.get("labels")
    if (
        not (arrays.keys() == {"features", "labels"} and features.dtype == np.float16)
        or not (labels.dtype == np.uint8 and features.shape == (len(labels), FEATURE_SIZE))
        or not np.isfinite(features).all()
    ):
        raise InputError(
            f"{path} does not hold finite float16 features [N, {FEATURE_SIZE}] and uint8 labels "
            f"[N]: fetch it again"
        )
    return (
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(labels.astype(np.int64)),
    )


def load_model(record: dict[str, Any]) -> ResNet:
    """Return the recorded last model of a run, frozen.

    Raises:
        InputError: if the record kept none, the file is not the one that was recorded, or it
            cannot be fetched.
    """
    path = _recorded_file(record, "model.pt")
    state = read_tensors(path)
    try:
        config = TrainConfig(**record["config"])
        channels, most = (1, 10) if config.dataset == "digits" else (3, 100)
        classes = min(len(state["head.weight"]), most)  # fewer if it learned the first task only
        return restore_model(ResNet(config.depth, 0, channels), state, classes)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not the model of its record ({error}): fetch it again"
        ) from error


def _recorded_file(record: dict[str, Any], name: str) -> Path:
    path, files = record["folder"] / name, record.get("files", {})
    if name not in files:
        raise InputError(f"{record['folder'].name} kept no {name}: reproduce it with --keep-models")
    if record["folder"].is_relative_to(PACKAGED):
        return _fetched_file(path.relative_to(PACKAGED), files[name])
    if not path.is_file() or _sha256(path) != files[name]:
        raise InputError(
            f"{path} is not the file that was recorded (its SHA-256 differs): fetch it again"
        )
    return path


def _fetched_file(name: Path, sha256: str) -> Path:
    """Return a recorded file that an installed csd_lib leaves out, fetched once and verified.

    It comes from the release, or from ``$CSD_FILES``, a folder or the address of one that is like
    ``data/results/``, and is kept in ``data/results-cache/``.
    """
    remedy = "set CSD_FILES to the folder data/results of a whole copy of the kit, or its address"
    source = paths.variable("CSD_FILES")
    if not source and "_" in REPOSITORY.split("/")[0]:
        raise InputError(f"{name} is not installed, and {REPOSITORY} is no real address: {remedy}")
    source = source or f"https://raw.githubusercontent.com/{REPOSITORY}/{TAG}/data/results"
    return fetch(
        str(name),
        [f"{source.rstrip('/')}/{name.as_posix()}"],
        paths.data_folder() / "results-cache" / name,
        sha256,
        remedy=remedy,
        progress=False,
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
