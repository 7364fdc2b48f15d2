"""Many cells on the cores or GPUs of a machine, or on a cluster: submitit starts the processes.

What is left to do is the ledger's business. On one machine a few workers share all cells by its
locks. On Slurm every cell is a job, so that the cluster's own rules (fair shares, time limits,
preemption) hold for it, and no lock must reach from node to node. The first task that several cells
share is a job that they wait for in the queue, where waiting costs no GPU. If that job fails they
start all the same, and the ledger lets one of them train it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig
from csd_lib.datasets import DATASETS
from csd_lib.engine import pick_device
from csd_lib.experiment import run_experiment
from csd_lib.files import make_folder
from csd_lib.fingerprint import is_from_outside
from csd_lib.methods import METHODS, TERMS
from csd_lib.networks import NETWORKS, import_network
from csd_lib.paper import ledger
from csd_lib.paths import pass_on_imports, runs_folder, visible_devices

REQUEUES = 10_000  # how often a job that ran into its time limit goes on
ARRAY = 1000  # jobs; Slurm's limit is 1001 where nobody has changed it
A_YEAR = 60 * 24 * 365  # minutes; submitit stops a local process after five if nothing is said


def import_submitit() -> Any:
    """Return submitit, which only sweeps in several processes need."""
    try:
        with checks.needs_extra("sweep"):
            import submitit
    except InputError as error:
        raise InputError(f"{error}; on this machine --at-once 1 does without") from error
    return submitit


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does: run configs and record them, or only train a first task.

    A job that is requeued does the same once more: the runs' own checkpoints say how far it came.
    """

    configs: tuple[TrainConfig, ...] = ()
    folder: Path | None = None
    keep_models: bool = False
    device: str = "auto"  # as it was given: the machine that sends a job may have another one
    threads: int = 1
    is_first_task: bool = False
    # What has been registered where the job is made; the process that does it knows only the kit's.
    registered: tuple[Mapping[str, Any], ...] = field(
        hash=False,
        default_factory=lambda: (
            {name: term for name, term in TERMS.items() if is_from_outside(term.compute)},
            dict(METHODS),
            {name: spec for name, spec in DATASETS.items() if is_from_outside(spec.load)},
            {name: maker for name, maker in NETWORKS.items() if is_from_outside(maker)},
        ),
    )

    def __call__(self) -> None:
        """Do it, in the process that submitit has started."""
        kits: tuple[dict[str, Any], ...] = (TERMS, METHODS, DATASETS, NETWORKS)
        for known, added in zip(kits, self.registered, strict=True):
            known.update(added)
        torch.set_num_threads(self.threads)
        configs = [replace(config, device=self.device) for config in self.configs]
        import_network(configs[0])
        if self.is_first_task:
            run_experiment(configs[0], progress=False)
            return
        # Whoever sent it has looked through all records, and left out what need not run again.
        options: dict[str, Any] = dict(again=True, everywhere=False, progress=False)
        ledger.reproduce(configs, self.folder, keep_models=self.keep_models, **options)

    def checkpoint(self) -> Any:
        """Tell submitit what to put into the queue again when this job is stopped."""
        return import_submitit().helpers.DelayedSubmission(self)


def make_groups(
    cells: Sequence[ledger.Cell], job: Job, size: int = 1
) -> list[tuple[Job | None, list[Job]]]:
    """Split cells that are to run into jobs, by the first task that they still need.

    Args:
        cells: of ``ledger.plan``, without what is done.
        job: what all jobs have in common.
        size: most cells of a job.

    Returns:
        Pairs of the job that trains a first task, or None, and those that begin with it.
    """
    waiting: dict[Path | None, list[ledger.Cell]] = {}
    for cell in cells:
        needs = cell.first and not (cell.first_run / "results.json").exists()
        waiting.setdefault(cell.first_run if needs else None, []).append(cell)

    def jobs(of: Sequence[ledger.Cell]) -> list[Job]:
        parts = [of[start : start + size] for start in range(0, len(of), size)]
        return [replace(job, configs=tuple(cell.config for cell in part)) for part in parts]

    free, groups = waiting.pop(None, []), []
    recorded = {cell.run for cell in free}
    for run in [r for r, of in waiting.items() if len(of) == 1 and r not in recorded]:
        free += waiting.pop(run)  # it shares its first task with nobody
    for run, members in waiting.items():
        # An initial model is both: a cell to record, and the first task of the others.
        initial = [cell.config for cell in free if cell.run == run]
        configs = tuple(initial) or tuple(filter(None, [members[0].first]))
        first = replace(job, configs=configs, is_first_task=not initial)
        groups.append((first, jobs(members)))
    return [*groups, (None, jobs([cell for cell in free if cell.run not in waiting]))]


def send_to_slurm(
    groups: Sequence[tuple[Job | None, list[Job]]],
    *,
    hours: float = 24,
    gpus: int = 0,
    at_once: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Put jobs into Slurm's queue, as arrays, and return submitit's handle of each.

    Args:
        groups: of ``make_groups``.
        hours: time limit of a job. One that is longer is requeued, and goes on.
        gpus: of each job.
        at_once: how many jobs of an array may run at the same time.
        options: of ``read_options``.

    Raises:
        InputError: if there is no Slurm here, or it refuses.
    """
    submitit = import_submitit()
    sent: list[Any] = []
    try:
        executor = submitit.SlurmExecutor(_new_folder(), max_num_timeout=REQUEUES)
    except RuntimeError as error:
        raise InputError(f"engine='slurm': {error} Use local, or go where sbatch works") from error
    executor.update_parameters(
        job_name="csd",
        time=max(1, round(hours * 60)),
        array_parallelism=at_once or ARRAY,
        additional_parameters={"requeue": True, **(options or {})},
        **({"gpus_per_node": gpus} if gpus else {}),
    )

    def send(jobs: Sequence[Job], after: str | None = None) -> list[Any]:
        before = len(sent)
        for start in range(0, len(jobs), ARRAY):
            executor.update_parameters(dependency=after, cpus_per_task=jobs[0].threads)
            sent.extend(executor.submit_array(jobs[start : start + ARRAY]))
        return sent[before:]

    try:
        firsts = iter(send([first for first, _ in groups if first]))
        for first, jobs in groups:
            send(jobs, f"afterany:{next(firsts).job_id}" if first else None)
    except RuntimeError as error:
        said = [line for line in str(error).splitlines() if line.startswith("sbatch: error")]
        raise InputError(
            f"engine='slurm': {'; '.join(said) or error} ({len(sent)} jobs are in the queue)"
        ) from error
    return sent


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """Read options of ``sbatch``: texts ``NAME=VALUE``, or ``NAME`` for one without a value."""
    found: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not re.fullmatch("[a-z][a-z-]*", name):
            raise InputError(f"slurm={checks.shown(text)}: write an option of sbatch, NAME=VALUE")
        found[name] = value or True
    return found


def run_here(job: Job, processes: int | None = None) -> list[str]:
    """Let several processes of this machine share the cells of a job, and wait for them.

    Args:
        job: all cells.
        processes: how many; default: one a GPU or, without one, as many as the cores suffice for.
            1 is this process, and needs no submitit.

    Returns:
        Why processes did not end in order, each reason once; the others have done what they left.

    Raises:
        InputError: if the device has a number, which is not the same to every process.
    """
    if processes == 1:
        job()
        return []
    device, gpus = pick_device(job.device), list[int]()
    if device.type == "cuda":
        if ":" in job.device:
            raise InputError(f"device={job.device!r}: leave out the number, all GPUs are used")
        gpus = visible_gpus()
    processes = processes or len(gpus) or max(1, (os.cpu_count() or 1) // job.threads)
    processes = min(processes, len(job.configs))
    pass_on_imports()
    executor = import_submitit().LocalExecutor(folder := _new_folder())
    print(f"{len(job.configs)} cells, {processes} processes; what they say is in {folder}")
    running: list[Any] = []
    try:
        for number in range(processes):
            own = [gpus[number % len(gpus)]] if gpus else []
            limits = dict(timeout_min=A_YEAR, gpus_per_node=len(own), visible_gpus=own)
            executor.update_parameters(**limits)
            running.append(executor.submit(job))
        said: dict[str, Any] = {}  # all processes try a cell that breaks down, and say the same
        for each in running:
            if each.exception():
                (line,) = (each.stderr() or "").splitlines()[-1:] or [""]
                said.setdefault(line, each.paths.stderr)
        return [f"{path}: {line}" for line, path in said.items()]
    finally:
        for each in running:  # after Ctrl-C none may go on unseen
            each.cancel()


def visible_gpus() -> list[int]:
    """Return the numbers of the GPUs that this process may use.

    InputError if ``CUDA_VISIBLE_DEVICES`` names them otherwise: submitit takes numbers only.
    """
    named = visible_devices()
    numbers = named.split(",") if named else map(str, range(torch.cuda.device_count()))
    try:
        return [int(number) for number in numbers]
    except ValueError as error:
        raise InputError(f"CUDA_VISIBLE_DEVICES={named!r}: name the GPUs by number") from error


def _new_folder() -> Path:
    """Make a folder for submitit's files and logs; job numbers of another sweep may come again."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    return make_folder(runs_folder().resolve() / "sweeps" / name)
