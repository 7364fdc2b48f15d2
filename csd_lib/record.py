"""The record of a finished run: all that a table needs, with what one must know to believe it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from csd_lib import InputError, checks, identity
from csd_lib.config import TrainConfig
from csd_lib.files import read_json, read_json_lines, write_json
from csd_lib.methods import get_method
from csd_lib.retrieval import RetrievalMatrix, average, forgetting

MAX_ENTRIES = 10_000  # of a matrix, in tasks times stages


class _NoRecord(InputError):  # noqa: N818
    def __init__(self, path: Path, why: str):
        super().__init__(f"{path} is not a record: {why}")
        self.why = why


@dataclass(frozen=True, kw_only=True, eq=False)
class Record:
    """What ``results.json`` says of one run."""

    config: TrainConfig
    matrix: RetrievalMatrix
    date: str
    device: str  # in words, such as "cpu, 2 cores" or a GPU's name
    data: str = ""  # SHA-256 of images and labels; older records have none
    image_shape: tuple[int, ...] = ()  # [C, H, W]
    fingerprint: str = ""  # of what the code computed; older records have none
    versions: dict[str, str] = field(default_factory=dict)
    threads: int = 0
    peak_memory_mb: int = 0
    training_seconds: float = 0.0
    history: tuple[dict[str, float], ...] = ()
    steps: tuple[dict[str, Any], ...] = ()  # on a GPU, how they were taken (``steps.Decision``)
    models: tuple[str, ...] = ()  # SHA-256 of the numbers of each stage's model
    files: dict[str, str] = field(default_factory=dict)  # kept beside it, with their SHA-256
    folder: Path | None = None  # where it was read

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a ``results.json``, also a stranger's; InputError if it is damaged or no record."""
        content = read_json(path)
        try:
            return cls._parse(content, path.parent)
        except (LookupError, TypeError, ValueError) as error:
            raise _NoRecord(path, str(error)) from error

    @classmethod
    def _parse(cls, content: dict[str, Any], folder: Path) -> Record:
        kinds: dict[str, Any] = {"config": dict, "matrix": dict, "date": str, "device": str}
        if not isinstance(content, dict):
            raise ValueError("it is no dictionary")
        if missing := sorted(kinds.keys() - content.keys()):
            raise ValueError(f"it lacks {', '.join(missing)}")
        kinds |= {"data": str, "image_shape": list, "fingerprint": str, "versions": dict}
        kinds |= {"threads": int, "peak_memory_mb": int, "training_seconds": (int, float)}
        kinds |= {"history": list, "steps": list, "models": list, "files": dict}
        found = {name: content[name] for name in kinds if name in content}
        for name, value in found.items():
            is_right = isinstance(value, kinds[name])
            if is_right and name in ("versions", "files"):
                is_right = all(isinstance(t, str) for pair in value.items() for t in pair)
            if is_right and name == "steps":
                is_right = all(isinstance(step, dict) for step in value)
            if is_right and name == "image_shape":
                is_right = len(value) == 3 and all(type(n) is int and n > 0 for n in value)
            if not is_right:
                raise ValueError(f"its {name} is {checks.shown(value)}")
            found[name] = tuple(value) if isinstance(value, list) else value
        config = identity.from_stored(content["config"])
        matrix = RetrievalMatrix(**{name: _numbers(name, v) for name, v in found["matrix"].items()})
        if matrix.own.shape[1] != config.tasks:
            raise ValueError(f"its matrix has {matrix.own.shape[1]} columns, not {config.tasks}")
        stages = 1 if get_method(config.method).joint else config.tasks
        if len(matrix.own) != stages:
            raise ValueError(f"its matrix has {len(matrix.own)} rows, not {stages}")
        return cls(**found | {"config": config, "matrix": matrix}, folder=folder)

    def timed_epochs(self) -> list[dict[str, Any]]:
        """Return its epochs that say how long they took; those of a run lie beside its record."""
        return timed(self.history) or (read_history(self.folder) if self.folder else [])

    def write(self, path: Path) -> None:
        """Write a ``results.json`` atomically."""
        content = {
            name: value
            for name, value in vars(self).items()
            if name not in ("config", "matrix", "folder") and value not in ((), {}, "")
        }
        matrices = {n: values for n, values in vars(self.matrix).items() if values is not None}
        content["config"] = identity.stored(self.config)
        content["matrix"] = {name: values.tolist() for name, values in matrices.items()}
        own = {name: values for name, values in matrices.items() if name != "old_gallery"}
        content["average"] = {name: average(values) for name, values in own.items()}
        content["forgetting"] = {name: forgetting(values) for name, values in own.items()}
        write_json(path, content)

    def key(self, *without: str) -> str:
        """Return a text that is equal for runs that only differ in ``without`` and the machine."""
        return json.dumps([identity.key(self.config, *without), self.data], sort_keys=True)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Return what a run's folder says of its epochs so far; while another process writes, less."""
    try:
        return timed(read_json_lines(folder / "history.jsonl"))
    except InputError:
        return []


def timed(epochs: Iterable[Any]) -> list[dict[str, Any]]:
    """Return the epochs that say how long they took; a stranger's may say anything."""
    return [e for e in epochs if isinstance(e, dict) and isinstance(e.get("seconds"), int | float)]


def read_records(paths: Sequence[Path]) -> tuple[list[Record], list[str]]:
    """Read many records; what cannot be read is named, and does not stop the others.

    Returns:
        The records, the oldest first, and a line for each reason why others are left out.
    """
    records, problems = [], []
    others: dict[str, list[Path]] = {}  # which are no records, by the reason
    for path in paths:
        try:
            records.append(Record.read(path))
        except _NoRecord as error:
            others.setdefault(error.why, []).append(path)
        except InputError as error:
            problems.append(f"left out: {error}")
    for why, alike in others.items():
        are = "is not a record" if len(alike) == 1 else f"and {len(alike) - 1} more are no records"
        problems.append(f"left out: {alike[0]} {are}: {why}")
    return sorted(records, key=lambda record: record.date), problems


def _numbers(name: str, values: Any) -> np.ndarray:
    rows = values if isinstance(values, list) else []
    if sum(len(row) if isinstance(row, list) else 1 for row in rows) > MAX_ENTRIES:
        raise ValueError(f"its matrix {name} has more than {MAX_ENTRIES} entries")
    table = checks.table(
        f"its matrix {name}", [[np.nan if v is None else v for v in r] for r in rows]
    )
    if not (np.isnan(table) | ((table >= 0) & (table <= 1))).all():
        raise ValueError(f"its matrix {name} has numbers that are no shares from 0 to 1")
    return table
