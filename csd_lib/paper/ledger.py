"""The ledger: recorded runs of the paper's experiments, made once and found again.

A record is a folder under ``data/results/`` with one ``results.json`` (``record.Record``). One seed
also keeps the last model and its test features, with their SHA-256 in that file.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import REPOSITORY, TAG, InputError, TrainingError, checks, identity, paths, runs
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.engine import pick_device
from csd_lib.experiment import FinishedRun, read_model, run_experiment, run_name
from csd_lib.fetch import fetch
from csd_lib.files import (
    Busy,
    make_folder,
    only_one,
    read_arrays,
    sha256_of,
    write_arrays,
    write_tensors,
)
from csd_lib.fingerprint import fingerprint
from csd_lib.methods import get_method
from csd_lib.model import Network
from csd_lib.output import duration
from csd_lib.paper.report import describe
from csd_lib.paths import results_folder, runs_folder, variable
from csd_lib.prepare import load_images
from csd_lib.record import Record, read_history, read_records
from csd_lib.retrieval import embed
from csd_lib.stored import join

# Records that an installed csd_lib brings along, without their models and features. A checkout has
# no such folder: they are its data/results/.
PACKAGED = Path(__file__).resolve().parent.parent / "recorded"
MAX_FETCHED = 100_000_000  # bytes of one recorded file; the largest has 2 MB
SAFETENSORS = "model.safetensors"  # of what was exported, in the place of model.pt
PAUSE = 2.0  # seconds between two looks at what other processes hold


def record_folders() -> list[Path]:
    """Where records are read, first things first: ``results_folder()``, then ``PACKAGED``.

    If ``$CSD_RESULTS`` is set, only that.
    """
    return [results_folder()] if variable("CSD_RESULTS") else [results_folder(), PACKAGED]


def find_file(name: str) -> Path:
    """Return a file beside the records, of the first folder that has it, or raise InputError."""
    for folder in record_folders():
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"there is no {name} in {results_folder()}: copy it from the kit")


def read_ledger(folder: str | Path | None = None) -> tuple[list[Record], list[str]]:
    """Read every record under a folder, the oldest first, and say in a line what cannot be read.

    Default: all ``record_folders()``; of two records of one name the first counts.
    """
    folders = [Path(folder)] if folder else record_folders()
    found = {p.relative_to(f): p for f in reversed(folders) for p in f.rglob("results.json")}
    return read_records(sorted(found.values()))


def load_records(folder: str | Path | None = None) -> list[Record]:
    """Return the records of ``read_ledger``; each file that is left out becomes a warning."""
    records, problems = read_ledger(folder)
    for problem in problems:
        warnings.warn(problem, stacklevel=2)
    return records


class Cell:
    """One config of an experiment: its run, and its record.

    ``data`` is the hash of the images and labels; ``code`` returns today's fingerprint of a config.
    """

    def __init__(
        self, config: TrainConfig, data: str, code: Callable[[TrainConfig], str], folder: Path
    ):
        self.config, self.data, self.fingerprint = config, data, code(config)
        name = run_name(config, data, self.fingerprint)
        self.run = self.first_run = runs_folder() / name
        place = folder / identity.data_name(config) / name
        self.places = place, place.with_name(f"{name}-anew")  # the other if this is damaged
        # None: it shares none, or has trained its own, so it is its own first_run.
        self.first = None if runs.has_begun(self.run) else identity.first_task(config)
        if self.first:
            self.first_run = runs_folder() / run_name(self.first, data, code(self.first))
        self.epochs = sum(map(config.epochs_to_run, range(config.times_learned())))
        is_joint = get_method(config.method).joint
        self.share = 1 if is_joint else 1 / config.tasks  # of the images, in an epoch
        self.record: Record | None = None

    def is_done(self, again: bool) -> bool:
        """Say whether nothing is left to run."""
        return self.record is not None and (self.is_current or not again)

    @property
    def is_current(self) -> bool:
        """Whether today's code computes what made the record."""
        return self.record is not None and self.record.fingerprint == self.fingerprint

    def is_of(self, record: Record) -> bool:
        """Say whether a record is this cell's; older ones do not say what their images were."""
        same_images = record.data in ("", self.data)
        return same_images and identity.key(record.config) == identity.key(self.config)

    def look_for_record(self) -> None:
        """See whether another process has recorded this cell since."""
        for place in self.places:
            records, _ = read_records([place / "results.json"]) if place.is_dir() else ([], [])
            if records and records[0].fingerprint == self.fingerprint and self.is_of(records[0]):
                self.record = records[0]

    def place_to_write(self) -> Path:
        """Return the folder for a new record: never that of a damaged one."""
        first, other = self.places
        return other if (first / "results.json").exists() else first

    def state(self, again: bool = False) -> str:
        """Say in words how far this cell is, and what becomes of a record that other code made."""
        if self.record:
            state = f"recorded on {self.record.date}"
            if self.is_current:
                return state
            what = "to run again" if again else "--again runs it again"
            return f"{state} by other code ({self.record.fingerprint or 'older'}), {what}"
        total, done = self.epochs, len(read_history(self.run))
        if done == total:
            return "trained, not yet recorded"
        return f"half done at epoch {done} of {total}" if done else "missing"


def plan(
    configs: Sequence[TrainConfig],
    dataset: Dataset,
    folder: str | Path | None = None,
    everywhere: bool = True,
) -> list[Cell]:
    """Return a cell for each of the configs that ``reproduce`` gets, with the newest record of it.

    With ``everywhere`` all records are looked through; else only where today's code writes these
    cells: ten thousand jobs of a sweep must not read ten thousand files each.
    """
    _, channels, *size = dataset.train_images.shape
    data = identity.data_hash(configs[0], dataset)
    known: dict[str, str] = {}

    def code(config: TrainConfig) -> str:
        recipe = str(identity.key(config, "seed", "batch_size"))
        if recipe not in known:
            known[recipe] = fingerprint(config, channels, min(size))
        return known[recipe]

    cells = []
    for config in configs:
        config = replace(config, device=str(pick_device(config.device)))
        cells.append(Cell(config, data, code, Path(folder or results_folder())))
    if not everywhere:
        for cell in cells:
            cell.look_for_record()
        return cells
    alike: dict[Any, list[Cell]] = {}  # else each record would be compared with each cell
    for cell in cells:
        alike.setdefault(frozenset(identity.key(cell.config).items()), []).append(cell)
    for record in read_ledger(folder)[0]:
        for cell in alike.get(frozenset(identity.key(record.config).items()), ()):
            if cell.is_of(record) and not cell.is_current:  # else today's code has recorded it
                cell.record = record
    return cells


def reproduce(
    configs: Sequence[TrainConfig],
    folder: str | Path | None = None,
    *,
    dataset: Dataset | None = None,
    keep_models: bool = False,
    again: bool = False,
    everywhere: bool = True,
    progress: bool = True,
) -> list[Path]:
    """Run what is missing, go on with what is half done, and record every result.

    The first task is trained once for all methods that learn it alike. Several processes may do
    this at the same time: each takes cells that no other one holds, and comes back to the others.

    Args:
        configs: of ``published.Experiment.configs``.
        folder: of the records; default: ``results_folder()``.
        dataset: the images; default: those of the configs.
        keep_models: also keep the last model and its features of all test images.
        again: run also what was recorded by code that computes other numbers; nothing is
            overwritten.
        everywhere: look for what is recorded as ``plan`` does.
        progress: show a bar for each cell, with the time that is left for all.

    Returns:
        The folder of each config's record.

    Raises:
        TrainingError: at the end, if a cell cannot be trained, or its training broke down. All
            others are recorded.
    """
    checks.sequence("configs", configs, TrainConfig, "one or more configs")
    dataset = load_images(configs[0], dataset)
    cells = plan(configs, dataset, folder, everywhere)
    worker = _Worker(cells, dataset, keep_models, again, progress)
    for cell in cells:
        if cell.is_done(again):
            tqdm.write(f"{worker.title(cell)}: {cell.state(again)}")
    has_waited = False
    while waiting := worker.pending():
        if not any(worker.try_cell(cell) for cell in waiting):
            if not has_waited:
                tqdm.write(f"other processes hold the {len(waiting)} cells that are left: waiting")
            has_waited = True
            time.sleep(PAUSE)
    if broken := worker.broken:
        first = next(iter(broken))
        raise TrainingError(
            f"{len(broken)} of {len(cells)} cells broke down, all others are recorded: "
            f"{worker.title(first)}: {broken[first]}"
        )
    return [cell.record.folder for cell in cells if cell.record and cell.record.folder]


class _Worker:
    """What one process does for an experiment."""

    def __init__(
        self, cells: list[Cell], dataset: Dataset, keep_models: bool, again: bool, progress: bool
    ):
        self.cells, self.dataset, self.keep_models = cells, dataset, keep_models
        self.again, self.progress = again, progress
        self.seconds = self.passes = 0.0
        self.broken: dict[Cell, Exception] = {}

    def title(self, cell: Cell) -> str:
        """Name a cell, with its number."""
        number, config = self.cells.index(cell) + 1, cell.config
        return (
            f"[{number}/{len(self.cells)}] {describe(config)}, {config.dataset}, preset "
            f"{config.preset}, {config.tasks} tasks, seed {config.seed}"
        )

    def pending(self) -> list[Cell]:
        """Return the cells that are not recorded yet, and have not broken down here."""
        return [c for c in self.cells if not c.is_done(self.again) and c not in self.broken]

    def try_cell(self, cell: Cell) -> bool:
        """Run a cell and record it, unless another process holds it. Returns whether it is over."""
        try:
            if cell.first and not (cell.first_run / "results.json").exists():
                with only_one(make_folder(cell.first_run), "training", wait=False):
                    self._run(cell, cell.first)
            with only_one(make_folder(cell.run), "training", wait=False):
                cell.look_for_record()  # another process may just have finished it
                if not cell.is_current:
                    run = self._run(cell, cell.config)
                    # Settings that it does not read may have had other values when it was begun.
                    used = run.config
                    config = replace(cell.config, device=used.device, cuda_graph=used.cuda_graph)
                    run = replace(run, record=replace(run.record, config=config))
                    place = write_record(run, cell.place_to_write(), self.keep_models)
                    cell.record = Record.read(place / "results.json")
                    if not cell.is_current:
                        raise TrainingError("recorded, but its code changed while it ran")
                else:
                    tqdm.write(f"{self.title(cell)}: recorded by another process")
        except Busy:
            return False
        except (InputError, TrainingError) as error:  # one bad weight must not end a night's work
            self.broken[cell] = error
            tqdm.write(f"{self.title(cell)}: {error}")
        return True

    def _run(self, cell: Cell, config: TrainConfig) -> FinishedRun:
        title = self.title(cell) + ("" if config is cell.config else ", first task")
        options = {} if self.progress else {"disable": True}  # else TQDM_DISABLE decides
        if not self.progress:
            tqdm.write(title)
        epochs = cell.epochs if config is cell.config else config.epochs_to_run(0)
        with tqdm(total=epochs, desc=title, unit="epoch", **options) as bar:

            def show(history: list[dict[str, float]], student: Network) -> None:
                if bar.disable:  # the time left is read from the files of all cells
                    return
                if bar.n == 0:  # epochs of an earlier call do not count for the time left
                    bar.initial = bar.n = len(history) - 1
                self.seconds += history[-1]["seconds"]
                self.passes += cell.share
                left = passes_left(self.pending()) * self.seconds / self.passes
                bar.set_postfix_str(f"all cells: {duration(left)} left", refresh=False)
                bar.update(len(history) - bar.n)

            return run_experiment(
                config, self.dataset, share_first_task=True, on_epoch=show, progress=False
            )


def passes_left(cells: Sequence[Cell]) -> float:
    """Return how often all images are still to be learned; what cells share counts once."""
    left, shared = 0.0, set()
    for cell in cells:
        first_task = cell.config.epochs_to_run(0)
        done = len(read_history(cell.run) or read_history(cell.first_run))
        if cell.first_run in shared:  # the initial model is the others' first task
            done = max(done, first_task)
        shared.add(cell.first_run)
        left += max(0, cell.epochs - done) * cell.share
    return left


def hours_left(cells: Sequence[Cell], again: bool = False) -> float | None:
    """Estimate the hours that one process needs for all cells, or None if nothing was measured.

    What counts are the epochs of these cells that this machine has recorded or half done.
    """
    seconds = passes = 0.0
    here = pick_device(cells[0].config.device)
    name = torch.cuda.get_device_name(here) if here.type == "cuda" else f"{here.type}, "
    for cell in cells:
        history = read_history(cell.run)
        if not history and cell.record and cell.record.device.startswith(name):
            history = cell.record.timed_epochs()
        seconds += sum(epoch["seconds"] for epoch in history)
        passes += len(history) * cell.share
    left = passes_left([cell for cell in cells if not cell.is_done(again)])
    return 0.0 if left == 0 else left * seconds / passes / 3600 if passes else None


def render_plan(cells: Sequence[Cell], again: bool = False) -> str:
    """List the cells and how far they are, and how long the rest takes."""
    lines = [
        f"[{number}/{len(cells)}] {describe(cell.config)}, {cell.config.tasks} tasks, seed "
        f"{cell.config.seed}: {cell.state(again)}"
        for number, cell in enumerate(cells, start=1)
    ]
    hours = hours_left(cells, again)
    open_cells = sum(not cell.is_done(again) for cell in cells)
    unknown = "unknown, nothing like it was measured here"
    left = unknown if hours is None else duration(3600 * hours)
    return "\n".join([*lines, f"{open_cells} cells to run, time for one process: {left}"])


def write_record(run: FinishedRun, place: Path, keep_models: bool = False) -> Path:
    """Write the record of a finished run into a folder of its own, and return that."""
    place, files = make_folder(place), {}
    if keep_models:
        model = run.models[-1]
        write_tensors(place / "model.pt", model.state_dict())
        images = join([task.test_images for task in run.tasks])
        labels = torch.cat([task.test_labels for task in run.tasks]).numpy()
        features = embed(model, images).half().cpu().numpy()
        kind = np.uint8 if labels.max() < 256 else np.int64
        found = {"features": features, "labels": labels.astype(kind)}
        write_arrays(place / "features.npz", found)
        files = {name: sha256_of(place / name) for name in ("model.pt", "features.npz")}
    record = replace(run.record, history=tuple(run.history), files=files)
    record.write(place / "results.json")
    return place


def load_features(record: Record) -> tuple[Tensor, Tensor]:
    """Return the recorded test features, float32 ``[N, D]``, and labels, int64 ``[N]``.

    InputError if the record kept none, or the file is another one or cannot be fetched.
    """
    path = _recorded_file(record, "features.npz")
    arrays = read_arrays(path, MAX_FETCHED)
    features, labels = arrays.get("features"), arrays.get("labels")
    if (
        (features is None or labels is None or len(arrays) != 2)
        or (features.dtype != np.float16 or features.ndim != 2)
        or (labels.dtype not in (np.uint8, np.int64) or labels.shape != (len(features),))
        or not np.isfinite(features).all()
    ):
        raise InputError(
            f"{path} does not hold finite float16 features [N, D] and whole labels [N]: fetch it "
            f"again"
        )
    return (
        torch.from_numpy(features.astype(np.float32)),
        torch.from_numpy(labels.astype(np.int64)),
    )


def load_model(record: Record) -> Network:
    """Return the recorded last model of a run, frozen; errors as of ``load_features``."""
    name = SAFETENSORS if SAFETENSORS in record.files else "model.pt"
    return read_model(record, _recorded_file(record, name))


def _recorded_file(record: Record, name: str) -> Path:
    checks.instance("record", record, Record, "a record of load_records")
    folder, files = record.folder, record.files
    if folder is None or name not in files:
        where = folder.name if folder else "the record"
        raise InputError(f"{where} kept no {name}: reproduce it with --keep-models")
    path = folder / name
    if folder.is_relative_to(PACKAGED):
        return _fetched_file(path.relative_to(PACKAGED), files[name])
    if not path.is_file() or sha256_of(path) != files[name]:
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
    source = variable("CSD_FILES")
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
