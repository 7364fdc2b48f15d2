"""The folder of a run: whose it is, what it keeps, and how a killed run finds its way back."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from csd_lib import InputError, checks, identity
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset, Task
from csd_lib.engine import load_optimizer, pick_device
from csd_lib.files import (
    Damaged,
    make_folder,
    only_one,
    pack_tensors,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
    writing,
)
from csd_lib.methods import get_method
from csd_lib.model import Network, freeze
from csd_lib.networks import load_state, state_sha256

if TYPE_CHECKING:
    from tqdm.auto import tqdm

    from csd_lib.steps import Decision
    from csd_lib.train import Run, TaskTraining


class SavedState(dict):
    """What a checkpoint holds, and errors that name its file; ValueError for any other content.

    Keys: ``identity``; ``models``, the states after the finished tasks; ``history``; ``device`` and
    ``generator``; and, if it was saved within a task, ``learning``, what was learned of it.
    """

    def __init__(self, content: Any, path: Path):
        kinds: dict[str, type] = {"identity": dict, "models": list, "history": list, "device": str}
        _check_kinds(content, kinds | {"generator": torch.Tensor})
        states = list(content["models"])
        if "learning" in content:
            kinds = {"student": dict, "optimizer": dict, "scaler": dict, "best": dict, "epoch": int}
            _check_kinds(content["learning"], kinds)
            states.append(content["learning"]["student"])
        for state in states:
            if not isinstance(state, dict) or not all(map(torch.is_tensor, state.values())):
                raise ValueError("what it says of a model is not tensors by name")
        super().__init__(content)
        self.path = path

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Turn the ValueError of a value that does not fit the run into a clear InputError."""
        try:
            yield
        except ValueError as error:
            raise InputError(
                f"{self.path} does not fit its run ({error}): move it away to start this run again"
            ) from error

    def restore(self, run: Run, student: Network, stages: Sequence[Task]) -> None:
        """Put history and models into the run, and the newest of them into the student."""
        learns_later = get_method(run.config.method).learns_later
        with self.restoring():
            run.history.extend(self.history(run.config))
            for stage, state in zip(stages, self["models"], strict=False):
                learned = stage if learns_later else stages[0]
                student.grow_head(learned.end_label - student.num_classes)
                load_state(student, state)
                run.models.append(freeze(student))

    def history(self, config: TrainConfig) -> list[dict[str, float]]:
        """Return the records, one of numbers for every epoch, in order, or raise ValueError."""
        places = [(t, e) for t in range(config.tasks) for e in range(config.epochs_to_run(t))]
        if len(self["history"]) > len(places):
            raise ValueError(f"it has {len(self['history'])} epochs, the run has {len(places)}")
        for number, (record, place) in enumerate(zip(self["history"], places, strict=False)):
            if not isinstance(record, dict) or not all(
                isinstance(value, int | float) for value in record.values()
            ):
                raise ValueError(f"what it says of epoch {number + 1} is not only numbers")
            if (record.get("task"), record.get("epoch")) != place:
                raise ValueError(f"its epoch {number + 1} is not the {number + 1}th of the run")
            if not {"loss", "spread", "seconds"} <= record.keys():
                raise ValueError(f"its epoch {number + 1} has no loss, spread or seconds")
        return self["history"]

    def go_on(self, learning: TaskTraining, history: Sequence[dict[str, float]]) -> None:
        """Let a task go on where this was saved, in it or right before; InputError if it cannot."""
        generator, state = learning.generator, self["generator"]
        with self.restoring():
            if self["device"] != generator.device.type:
                raise ValueError(f"begun on {self['device']}, this is {generator.device.type}")
            if state.dtype != torch.uint8 or state.shape != generator.get_state().shape:
                raise ValueError("its state of the random numbers is of another kind")
            generator.set_state(state)
            if "learning" in self:
                _set_state_of(learning, self["learning"], history)


class RunFolder:
    """What a run keeps in its folder; without a folder, nothing.

    The newest checkpoint is there, and the one before it in case that is damaged.
    """

    def __init__(self, folder: Path | None, decided: dict[str, Any]):
        self.folder, self.identity = folder, decided
        self._saved_at, self._seconds = -math.inf, 0.0

    @classmethod
    @contextmanager
    def open(
        cls, folder: str | Path | None, config: TrainConfig, dataset: Dataset
    ) -> Iterator[RunFolder]:
        """Have a run's folder to oneself; others wait. InputError if it holds another run."""
        checks.instance("folder", folder, (str, Path, type(None)), "a path, or None")
        if folder is None:
            yield cls(None, {})
            return
        folder, wanted = make_folder(folder), identity.of_run(config, dataset)
        with only_one(folder, "training"):
            for name in ("config.json", "results.json"):  # perhaps only these are left
                path = folder / name
                if path.exists() and (what := identity.difference(read_json(path), wanted)):
                    raise InputError(
                        f"{folder} belongs to another run ({what}): choose another folder"
                    )
            write_json(folder / "config.json", wanted)
            yield cls(folder, wanted)

    @classmethod
    def load_begun(
        cls,
        first_task: str | Path | None,
        prefix: str | Path | None,
        config: TrainConfig,
        dataset: Dataset,
    ) -> SavedState | None:
        """Return what another run has kept that this one goes on from, if one is named.

        InputError if this one cannot go on from it.
        """
        checks.instance("first_task", first_task, (str, Path, type(None)), "a path, or None")
        if first_task is None:
            return cls.load_prefix(prefix, config, dataset)
        first = identity.first_task(config)
        if first is None:
            raise InputError(
                f"first_task={str(first_task)!r}: {config.method} shares none, so leave it out"
            )
        saved = cls(Path(first_task), identity.of_run(first, dataset)).load()
        if not saved or "learning" in saved:
            raise InputError(f"first_task={str(first_task)!r} holds no finished run: train it")
        return saved

    @classmethod
    def load_prefix(
        cls, path: str | Path | None, config: TrainConfig, dataset: Dataset
    ) -> SavedState | None:
        """Return a checkpoint within the first task of a run that differs in where it stops.

        InputError if it is another run's, or already further than this one goes.
        """
        checks.instance("prefix", path, (str, Path, type(None)), "a path, or None")
        if path is None:
            return None
        path = Path(path)
        try:
            saved = SavedState(read_tensors(path), path)
        except ValueError as error:
            raise InputError(f"prefix={str(path)!r} is no checkpoint: {error}") from error
        its = saved["identity"].get("config")
        stop = its.get("stop_at_epoch") if isinstance(its, dict) else None
        if what := identity.difference(
            saved["identity"], identity.of_run(replace(config, stop_at_epoch=stop), dataset)
        ):
            raise InputError(f"prefix={str(path)!r} belongs to another run ({what})")
        if saved["models"] or "learning" not in saved:
            raise InputError(f"prefix={str(path)!r} is not within the first task")
        if not 0 < saved["learning"]["epoch"] < config.epochs_to_run(0):
            raise InputError(
                f"prefix={str(path)!r} is at epoch {saved['learning']['epoch']}: this run stops at "
                f"{config.epochs_to_run(0)}"
            )
        return saved

    def is_due(self) -> bool:
        """Say whether it is time for another checkpoint: they may take up to 5 % of the time."""
        return bool(self.folder) and time.monotonic() - self._saved_at >= 20 * self._seconds

    def begin(self, run: Run) -> None:
        """Write what the run goes on from: its history, one line an epoch, and its models."""
        if self.folder:
            lines = "".join(json.dumps(record) + "\n" for record in run.history)
            path = self.folder / "history.jsonl"
            write_atomically(path, lambda partial: partial.write_text(lines))
            _keep_models(run.models, self.folder)

    def append_history(self, record: dict[str, float]) -> None:
        """Add one epoch's line to the history."""
        self._append("history.jsonl", record)

    def note_steps(self, task: int, decisions: Sequence[Decision], bar: tqdm) -> None:
        """Say and keep how the steps of a task are taken on this GPU."""
        for number, decision in enumerate(decisions):
            differs = decision.captured != decisions[0].captured  # the smaller, last batch
            if not bar.disable and (number == 0 or differs):
                bar.write(str(decision))
            self._append("steps.jsonl", {"task": task, **decision.for_record()})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        if self.folder:
            path = self.folder / name
            with writing(path), path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def save(
        self, run: Run, learning: TaskTraining, finished: bool = False, name: str = "checkpoint.pt"
    ) -> None:
        """Store all that the loop needs to go on from here; a kill leaves an older one in place.

        Each of the models, one per finished task, also gets a file of its own. ``finished`` says
        that the model of the task is among them, so that the next task comes next.
        """
        if not self.folder:
            return
        started = time.monotonic()
        _keep_models(run.models, self.folder)
        content = {
            "identity": self.identity,
            "models": [model.state_dict() for model in run.models],
            "history": list(run.history),
            "device": learning.generator.device.type,
            "generator": learning.generator.get_state(),
        }
        if not finished:
            content["learning"] = _state_of(learning)
        packed = pack_tensors(content)
        path = self.folder / name

        def write(partial: Path) -> None:
            partial.write_bytes(packed)
            if path.exists() and name == "checkpoint.pt":
                path.replace(path.with_name("checkpoint.previous.pt"))

        write_atomically(path, write)
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - started

    def load(self) -> SavedState | None:
        """Return what ``save`` stored last, or None if there is nothing.

        A damaged file is set aside as ``checkpoint.damaged.pt``, with a warning, and the one before
        it is used. InputError if there is no other one, or if it belongs to another run.
        """
        if not self.folder:
            return None
        damage = None
        for name in ("checkpoint.pt", "checkpoint.previous.pt"):
            path = self.folder / name
            if not path.exists():
                continue
            try:
                content = read_tensors(path)
            except Damaged as error:
                damage = damage or (path, error)
                continue
            try:
                saved = SavedState(content, path)
            except ValueError as error:
                raise InputError(
                    f"{path} is not a checkpoint of this kit ({error}): choose another folder"
                ) from error
            if what := identity.difference(saved["identity"], self.identity):
                raise InputError(f"{path} belongs to another run ({what}): choose another folder")
            if damage:
                aside = path.with_name("checkpoint.damaged.pt")
                with writing(aside):
                    damage[0].replace(aside)
                warnings.warn(
                    f"{damage[1]}; here the one before it is used, and the damaged file is now "
                    f"{aside.name}",
                    stacklevel=2,
                )
            return saved
        if damage:
            raise damage[1]
        return None


def find_prefix(folder: Path, config: TrainConfig, dataset: Dataset) -> Path | None:
    """Look in a folder of runs for one that differs only in where it stops.

    One from another kind of device is passed over: its random numbers cannot be gone on with here.

    Returns:
        Of the checkpoints that this config can go on from the one that is furthest, or None.
    """
    found: list[tuple[int, Path]] = []
    wanted, device = identity.key(config, "stop_at_epoch"), pick_device(config.device).type
    for settings in folder.glob(f"{identity.data_name(config)}-{config.method}-*/config.json"):
        try:
            other = identity.from_stored(read_json(settings)["config"])
        except (InputError, LookupError, TypeError):
            continue
        if identity.key(other, "stop_at_epoch") != wanted:
            continue
        for path in (settings.with_name("prefix.pt"), settings.with_name("checkpoint.pt")):
            with suppress(InputError):  # it is further than this run goes, or another data set's
                saved = RunFolder.load_prefix(path, config, dataset) if path.exists() else None
                if saved and saved["device"] == device:
                    found.append((saved["learning"]["epoch"], path))
    return max(found, default=(0, None))[1]


def has_begun(folder: Path) -> bool:
    """Say whether a run has left something to go on from, or its results, in its folder."""
    names = ("checkpoint.pt", "checkpoint.previous.pt", "results.json")
    return any((folder / name).exists() for name in names)


def _keep_models(models: Sequence[Network], folder: Path) -> None:
    """Write the file of each model, unless it is there and right."""
    for number, model in enumerate(models, start=1):
        path, state = folder / f"model-task{number}.pt", model.state_dict()
        with suppress(InputError, AttributeError):  # damaged, or no state of a model
            if path.exists() and state_sha256(read_tensors(path)) == state_sha256(state):
                continue
        write_tensors(path, state)


def _state_of(learning: TaskTraining) -> dict[str, Any]:
    """Return all that another object of the same arguments needs to go on from here."""
    best = learning.selection
    return {
        "epoch": learning.epoch,
        "student": learning.student.state_dict(),
        "optimizer": learning.optimizer.state_dict(),
        "scaler": learning.precision.scaler.state_dict(),
        "best": {"recall": best.recall, "state": best.state} if best else {},
    }


def _set_state_of(
    learning: TaskTraining, state: dict[str, Any], history: Sequence[dict[str, float]]
) -> None:
    """Go on from what ``_state_of`` returned, after the epochs in ``history``, if it fits."""
    before = [record for record in history if record["task"] == learning.index]
    if state["epoch"] != len(before) or not 0 < state["epoch"] < learning.epochs:
        raise ValueError(f"it is in epoch {state['epoch']}, its history has {len(before)}")
    if learning.selection:
        _check_kinds(state["best"], {"recall": float, "state": dict})
        load_state(learning.student, state["best"]["state"])
        checks.number("best_recall", state["best"]["recall"], at_least=0, at_most=1)
        learning.selection.recall = state["best"]["recall"]
        learning.selection.state = state["best"]["state"]
    load_state(learning.student, state["student"])
    load_optimizer(learning.optimizer, state["optimizer"])
    scaler = learning.precision.scaler
    if bool(state["scaler"]) != scaler.is_enabled():  # some GPUs have only float16
        raise ValueError("begun with another 16-bit type than precision=amp has on this GPU")
    scaler.load_state_dict(state["scaler"])
    for record in before:
        learning.health.note(record)
    learning.epoch = state["epoch"]


def _check_kinds(mapping: Any, kinds: dict[str, type]) -> None:
    mapping = mapping if isinstance(mapping, dict) else {}
    wrong = [key for key, kind in kinds.items() if not isinstance(mapping.get(key), kind)]
    if wrong:
        raise ValueError(f"it lacks or has a wrong {', '.join(wrong)}")
