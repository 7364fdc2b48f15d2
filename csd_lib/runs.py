"""Files of a run: where they are, what they must fit, and how a killed run finds its way back."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from csd_lib import InputError
from csd_lib.config import TrainConfig
from csd_lib.files import pack_tensors, read_tensors, write_atomically, write_tensors, writing
from csd_lib.model import ResNet, freeze
from csd_lib.paths import runs_folder as runs_folder  # known under this name, too

# A change in one of these rooms can change the result of a run.
_ROOMS = ("data", "model", "losses", "methods", "config", "retrieval", "engine", "train")


def code_hash() -> str:
    """Hash of the modules that decide a result, so that no run outlives a change to them.

    Comments, docstrings and layout do not count: improving them must not throw away GPU hours.
    """
    digest = hashlib.sha256()
    for room in _ROOMS:
        text = (Path(__file__).parent / f"{room}.py").read_text("utf-8")
        digest.update(repr(_statements(ast.parse(text))).encode())
    return digest.hexdigest()[:8]


def identity(config: TrainConfig) -> dict[str, Any]:
    """Return what decides a run's result: its config and the hash of the code."""
    return {**asdict(config), "code": code_hash()}


def _statements(node: Any) -> Any:
    """Return a syntax tree as nested tuples, without docstrings, the same on every Python."""
    if isinstance(node, list):
        is_text = [isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in node]
        kept = [n for n, text in zip(node, is_text, strict=True) if not text]
        return tuple(_statements(child) for child in kept)
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, value) for name, value in ast.iter_fields(node) if value not in (None, [])]
    return type(node).__name__, tuple((name, _statements(value)) for name, value in fields)


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write the history of a run, one line an epoch."""
    lines = "".join(json.dumps(record) + "\n" for record in history)
    write_atomically(folder / "history.jsonl", lambda partial: partial.write_text(lines))


def append_history(folder: Path, record: dict[str, float]) -> None:
    """Add one epoch's line to the history."""
    path = folder / "history.jsonl"
    with writing(path), path.open("a") as file:
        file.write(json.dumps(record) + "\n")


class Checkpoints:
    """The checkpoint of one run: the newest one, and the one before it in case that is damaged.

    Args:
        folder: the folder of the run.
        identity: the config and the hash of the code; a checkpoint of another one is refused.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]):
        self.path = Path(folder) / "checkpoint.pt"
        self.previous = self.path.with_name("checkpoint.previous.pt")
        self.identity = identity
        self._saved_at, self._seconds = -math.inf, 0.0

    def is_due(self) -> bool:
        """Say whether it is time for another one: they may take up to 5 % of the time."""
        return time.monotonic() - self._saved_at >= 20 * self._seconds

    def save(self, **content: Any) -> None:
        """Store all that the loop needs to go on from here; a kill leaves an older one in place.

        Each of ``content["models"]``, one per finished task, also gets a file of its own.
        """
        started = time.monotonic()
        for number, state in enumerate(content.get("models", ()), start=1):
            path = self.path.with_name(f"model-task{number}.pt")
            if not path.exists():
                write_tensors(path, state)
        packed = pack_tensors({"identity": self.identity, **content})

        def write(partial: Path) -> None:
            partial.write_bytes(packed)
            if self.path.exists():
                self.path.replace(self.previous)

        write_atomically(self.path, write)
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - started

    def load(self) -> dict[str, Any] | None:
        """Return what ``save`` stored last, or None if there is nothing.

        A damaged file is set aside as ``checkpoint.damaged.pt``, with a warning, and the one
        before it is used.

        Raises:
            InputError: if there is no other one, or if it belongs to another config or version of
                the code.
        """
        damage = None
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                content = read_tensors(path)
            except InputError as error:
                damage = damage or (path, error)
                continue
            stored = content.get("identity") if isinstance(content, dict) else None
            if not isinstance(stored, dict):
                raise InputError(f"{path} is not a checkpoint of this kit: choose another folder")
            if stored != self.identity:
                raise InputError(
                    f"{path} belongs to another config ({_difference(stored, self.identity)}): "
                    f"choose another folder"
                )
            if damage:
                aside = path.with_name("checkpoint.damaged.pt")
                with writing(aside):
                    damage[0].replace(aside)
                warnings.warn(
                    f"{damage[1]}; here the one before it is used, and the damaged file is now "
                    f"{aside.name}",
                    stacklevel=2,
                )
            return {**content, "path": path}
        if damage:
            raise damage[1]
        return None


@contextmanager
def restoring(saved: dict[str, Any]) -> Iterator[None]:
    """Turn whatever a checkpoint that does not fit its run gives rise to into one clear line.

    Raises:
        InputError: instead of the errors of missing or misshapen values.
    """
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise InputError(
            f"{saved['path']} does not fit its run ({reason}): delete it to start this run again"
        ) from error


def check_history(history: list[dict[str, float]], epochs: int) -> None:
    """Refuse a history that is not one record of numbers for every epoch, in order.

    Raises:
        ValueError: if it is not.
    """
    for number, record in enumerate(history):
        if (record["task"], record["epoch"]) != divmod(number, epochs):
            raise ValueError(f"its epoch {number + 1} is not the {number + 1}th of the run")
        if not all(isinstance(value, int | float) for value in record.values()):
            raise ValueError(f"what it says of epoch {number + 1} is not only numbers")


def load_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load a model's state, if it has the right shapes and types and is finite.

    Raises:
        ValueError: if it has not.
    """
    wanted, found = (
        {name: (value.dtype, tuple(value.shape)) for name, value in values.items()}
        for values in (model.state_dict(), state)
    )
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name} is {found.get(name)}, expected {wanted.get(name)}")
        if not torch.isfinite(state[name]).all():
            raise ValueError(f"{name} is not finite")
    model.load_state_dict(state)


def _difference(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    return "; ".join(
        f"{key} {stored.get(key)!r} -> {wanted.get(key)!r}"
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    )


def restore_model(student: ResNet, state: dict[str, torch.Tensor], classes: int) -> ResNet:
    """Load the state of a finished task into the student, and return a frozen copy of it.

    Args:
        student: the network, which may have fewer classes yet.
        state: of ``state_dict``.
        classes: that had been seen by the end of the task.
    """
    student.grow_head(classes - student.num_classes)
    load_state(student, state)
    return freeze(student)
