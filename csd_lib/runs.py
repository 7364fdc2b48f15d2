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

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
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
from csd_lib.networks import RANDOM, init_sha256, weights_sha256

if TYPE_CHECKING:
    from tqdm.auto import tqdm

    from csd_lib.model import Network
    from csd_lib.steps import Decision
    from csd_lib.train import TaskTraining


def identity(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return what decides a run's result: its config, its images, and what the code computes.

    Returns:
        ``config``; ``data``, of ``data_hash``; ``fingerprint``.
    """
    from csd_lib.fingerprint import fingerprint  # it trains a tiny run, which needs this module

    _, channels, *size = dataset.train_images.shape
    return {
        "config": json.loads(json.dumps(config.stored())),
        "data": data_hash(config, dataset),
        "fingerprint": fingerprint(config, channels, min(size)),
    }


def data_hash(config: TrainConfig, dataset: Dataset) -> str:
    """Return the SHA-256 of images and labels and, each behind a plus, of what it begins with."""
    weights = f"+{weights_sha256(config)}" if config.weights != RANDOM else ""
    model = f"+init-from:{init_sha256(config.init_from)}" if config.init_from else ""
    return dataset.sha256() + weights + model


def difference(stored: Any, wanted: dict[str, Any]) -> str:
    """Say in which way a stored identity is that of another run; an empty text if it is the same.

    A setting that did not exist yet when it was stored has its default value.
    """
    try:
        found, asked = (TrainConfig.from_stored(each["config"]).key() for each in (stored, wanted))
        data, code = str(stored["data"]), stored["fingerprint"]
    except (LookupError, TypeError, InputError) as error:
        return f"it cannot be compared: {error}"
    if found != asked:
        names = [name for name in sorted({*found, *asked}) if found.get(name) != asked.get(name)]
        changes = (f"{name} {found.get(name)!r} -> {asked.get(name)!r}" for name in names)
        return f"other settings: {'; '.join(changes)}"
    if data != wanted["data"]:
        if data.split("+")[0] == wanted["data"].split("+")[0]:
            return "other weights to begin with"
        return f"other images or labels: their hash {data[:8]} -> {wanted['data'][:8]}"
    if code != wanted["fingerprint"]:
        return f"code that computes other numbers: fingerprint {code} -> {wanted['fingerprint']}"
    return ""


class SavedState(dict):
    """What a checkpoint holds, and errors that name its file.

    Keys: ``identity``; ``models``, the states after the finished tasks; ``history``; ``device`` and
    ``generator``; and, if it was saved within a task, ``learning``, its ``TaskTraining``'s.

    Raises:
        ValueError: if it is not of this kind.
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
        """Turn the ValueError of a value that does not fit the run into one clear line.

        Raises:
            InputError: instead.
        """
        try:
            yield
        except ValueError as error:
            raise InputError(
                f"{self.path} does not fit its run ({error}): move it away to start this run again"
            ) from error

    def history(self, config: TrainConfig) -> list[dict[str, float]]:
        """Return the records, one of numbers for every epoch, in order.

        Raises:
            ValueError: if they are not.
        """
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
        """Let a task go on where this was saved: within it, or right before it.

        Raises:
            InputError: if this does not fit it, or was begun on another kind of device.
        """
        generator, state = learning.generator, self["generator"]
        with self.restoring():
            if self["device"] != generator.device.type:
                raise ValueError(f"begun on {self['device']}, this is {generator.device.type}")
            if state.dtype != torch.uint8 or state.shape != generator.get_state().shape:
                raise ValueError("its state of the random numbers is of another kind")
            generator.set_state(state)
            if "learning" in self:
                learning.load_state_dict(self["learning"], history)


class RunFolder:
    """What a run keeps in its folder; without a folder, nothing.

    The newest checkpoint is there, and the one before it in case that is damaged.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity
        self._saved_at, self._seconds = -math.inf, 0.0

    @classmethod
    @contextmanager
    def open(
        cls, folder: str | Path | None, config: TrainConfig, dataset: Dataset
    ) -> Iterator[RunFolder]:
        """Have a run's folder to oneself; another program waits until the context ends.

        Raises:
            InputError: if it cannot be written, or holds another run.
        """
        checks.instance("folder", folder, (str, Path, type(None)), "a path, or None")
        if folder is None:
            yield cls(None, {})
            return
        folder, wanted = make_folder(folder), identity(config, dataset)
        with only_one(folder, "training"):
            check_owner(folder, wanted)
            write_json(folder / "config.json", wanted)
            yield cls(folder, wanted)

    @classmethod
    def load_first_task(
        cls, folder: str | Path | None, config: TrainConfig, dataset: Dataset
    ) -> SavedState | None:
        """Return what a run of ``config.first_task()`` has kept in its folder.

        Raises:
            InputError: if that is nothing, or another run's.
        """
        checks.instance("first_task", folder, (str, Path, type(None)), "a path, or None")
        if folder is None:
            return None
        first = config.first_task()
        if first is None:
            raise InputError(f"first_task={str(folder)!r}: {config.method} shares its first task")
        saved = cls(Path(folder), identity(first, dataset)).load()
        if not saved or "learning" in saved:
            raise InputError(
                f"first_task={str(folder)!r} holds no finished run: train that one first"
            )
        return saved

    @classmethod
    def load_prefix(
        cls, path: str | Path | None, config: TrainConfig, dataset: Dataset
    ) -> SavedState | None:
        """Return a checkpoint within the first task of a run that differs in where it stops.

        Raises:
            InputError: if it is another run's, or already further than this one goes.
        """
        checks.instance("prefix", path, (str, Path, type(None)), "a path, or None")
        if path is None:
            return None
        path = Path(path)
        try:
            saved = SavedState(read_tensors(path), path)
        except ValueError as error:
            raise InputError(f"prefix={str(path)!r} is no checkpoint: {error}") from error
        stop = saved["identity"].get("config", {}).get("stop_at_epoch")
        if what := difference(
            saved["identity"], identity(replace(config, stop_at_epoch=stop), dataset)
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

    def write_history(self, history: Sequence[dict[str, float]]) -> None:
        """Write the history, one line an epoch."""
        if self.folder:
            lines = "".join(json.dumps(record) + "\n" for record in history)
            path = self.folder / "history.jsonl"
            write_atomically(path, lambda partial: partial.write_text(lines))

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
        self,
        models: Sequence[Network],
        history: Sequence[dict[str, float]],
        generator: torch.Generator,
        learning: dict[str, Any] | None = None,
        name: str = "checkpoint.pt",
    ) -> None:
        """Store all that the loop needs to go on from here; a kill leaves an older one in place.

        Each of the models, one per finished task, also gets a file of its own.
        """
        if not self.folder:
            return
        started = time.monotonic()
        states = [model.state_dict() for model in models]
        for number, state in enumerate(states, start=1):
            path = self.folder / f"model-task{number}.pt"
            if not path.exists():
                write_tensors(path, state)
        content = {
            "identity": self.identity,
            "models": states,
            "history": list(history),
            "device": generator.device.type,
            "generator": generator.get_state(),
        }
        packed = pack_tensors(content | ({"learning": learning} if learning else {}))
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

        A damaged file is set aside as ``checkpoint.damaged.pt``, with a warning, and the one
        before it is used.

        Raises:
            InputError: if there is no other one, or if it belongs to another run.
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
            if what := difference(saved["identity"], self.identity):
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

    Returns:
        Of the checkpoints that this config can go on from the one that is furthest, or None.
    """
    found: list[tuple[int, Path]] = []
    wanted = json.loads(json.dumps(config.key("stop_at_epoch")))
    for settings in folder.glob(f"{config.data_name}-{config.method}-*/config.json"):
        try:
            other = TrainConfig.from_stored(read_json(settings)["config"])
        except (InputError, LookupError, TypeError):
            continue
        if json.loads(json.dumps(other.key("stop_at_epoch"))) != wanted:
            continue
        for path in (settings.with_name("prefix.pt"), settings.with_name("checkpoint.pt")):
            with suppress(InputError):  # it is further than this run goes, or another data set's
                if path.exists() and (saved := RunFolder.load_prefix(path, config, dataset)):
                    found.append((saved["learning"]["epoch"], path))
    return max(found, default=(0, None))[1]


def has_begun(folder: Path) -> bool:
    """Say whether a run has left something to go on from, or its results, in its folder."""
    return any((folder / name).exists() for name in ("checkpoint.pt", "results.json"))


def check_owner(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse a folder that another run has used, even if only its settings or results are left.

    Raises:
        InputError: if it has.
    """
    for name in ("config.json", "results.json"):
        path = folder / name
        if path.exists() and (what := difference(read_json(path), wanted)):
            raise InputError(f"{folder} belongs to another run ({what}): choose another folder")


def set_aside_if_older(folder: Path, wanted: dict[str, Any]) -> None:
    """Move a run away that was made, or begun, by code that computes other numbers.

    Runs in folders that are named after their config come here: after a change of the code the
    same name is wanted again, and nothing must be lost.
    """
    path = folder / "config.json"
    if not path.exists():
        return
    stored = read_json(path)
    if what := difference(stored, wanted):
        if not what.startswith("code"):
            return  # train says what is wrong
        aside = folder.with_name(f"{folder.name}-by-{stored['fingerprint']}")
        if aside.exists():
            return
        with only_one(folder, "training"):
            folder.replace(aside)
        warnings.warn(
            f"{folder.name} was made by {what}. It is kept as {aside.name}, and this one starts "
            f"anew",
            stacklevel=3,
        )


def _check_kinds(mapping: Any, kinds: dict[str, type]) -> None:
    mapping = mapping if isinstance(mapping, dict) else {}
    wrong = [key for key, kind in kinds.items() if not isinstance(mapping.get(key), kind)]
    if wrong:
        raise ValueError(f"it lacks or has a wrong {', '.join(wrong)}")
