"""Files of a run: written atomically, read back without executing anything in them."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from csd_lib import InputError
from csd_lib.config import TrainConfig
from csd_lib.model import ResNet, freeze

# A change in one of these rooms can change the result of a run.
_ROOMS = ("data", "model", "losses", "methods", "config", "retrieval", "engine", "train")


def runs_folder() -> Path:
    """Where runs are kept: ``$CSD_RUNS``, else ``runs/`` of this checkout or current folder."""
    if "CSD_RUNS" in os.environ:
        return Path(os.environ["CSD_RUNS"])
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "runs"


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


def make_folder(folder: str | Path) -> Path:
    """Create a folder and check that files can be written into it.

    Raises:
        InputError: if they cannot.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to {folder} ({error.strerror or error}): choose another folder with "
            f"--folder or CSD_RUNS"
        ) from error
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically: a reader or a kill never sees half of it."""
    write_atomically(path, lambda partial: partial.write_text(json.dumps(content, indent=1)))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: if it is not complete JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it and run again") from error


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """Write the history of a run, one line an epoch."""
    lines = "".join(json.dumps(record) + "\n" for record in history)
    write_atomically(folder / "history.jsonl", lambda partial: partial.write_text(lines))


def append_history(folder: Path, record: dict[str, float]) -> None:
    """Add one epoch's line to the history."""
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


# All that torch.load is known to raise for files that are damaged or of another kind.
_DAMAGED = (
    *(OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError),
    pickle.UnpicklingError,
)


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
                write_atomically(path, lambda partial, state=state: torch.save(state, partial))

        def write(partial: Path) -> None:
            torch.save({"identity": self.identity, **content}, partial)
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
                content = torch.load(path, map_location="cpu", weights_only=True)
                stored = dict(content["identity"])
            except _DAMAGED as error:
                damage = damage or (path, next(iter(str(error).splitlines()), repr(error)))
                continue
            if stored != self.identity:
                raise InputError(
                    f"{path} belongs to another config ({_difference(stored, self.identity)}): "
                    f"choose another folder"
                )
            if damage:
                aside = path.with_name("checkpoint.damaged.pt")
                damage[0].replace(aside)
                warnings.warn(
                    f"{damage[0]} is damaged ({damage[1]}): the one before it is used, and the "
                    f"damaged file is now {aside.name}",
                    stacklevel=2,
                )
            return content
        if damage:
            raise InputError(
                f"{damage[0]} is damaged ({damage[1]}): delete it to start this run again"
            )
        return None


def _difference(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    return "; ".join(
        f"{key} {stored.get(key)!r} -> {wanted.get(key)!r}"
        for key in sorted({*stored, *wanted})
        if stored.get(key) != wanted.get(key)
    )


def restore_model(student: ResNet, state: dict[str, torch.Tensor]) -> ResNet:
    """Load the state of a finished task into the student, and return a frozen copy of it."""
    student.grow_head(len(state["head.weight"]) - student.num_classes)
    student.load_state_dict(state)
    return freeze(student)


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a partial file, and put it in place in one step."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)
