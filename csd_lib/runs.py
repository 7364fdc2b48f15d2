"""Files of a run: written atomically, read back without executing anything in them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from csd_lib import InputError
from csd_lib.model import ResNet, freeze

# A change in one of these rooms can change the result of a run.
_ROOMS = ("data", "model", "losses", "methods", "config", "train", "retrieval")


def runs_folder() -> Path:
    """Where runs are kept: ``$CSD_RUNS``, else ``runs/`` of this checkout or current folder."""
    if "CSD_RUNS" in os.environ:
        return Path(os.environ["CSD_RUNS"])
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def code_hash() -> str:
    """Hash of the modules that decide a result, so that no run outlives a change to them."""
    digest = hashlib.sha256()
    for room in _ROOMS:
        # Text mode: the same hash whether git checked the file out with \n or \r\n.
        digest.update((Path(__file__).parent / f"{room}.py").read_text("utf-8").encode())
    return digest.hexdigest()[:8]


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
    _write_atomically(path, lambda partial: partial.write_text(json.dumps(content, indent=1)))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: if it is not complete JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it and run again") from error


def save_checkpoint(
    folder: str | Path,
    identity: dict[str, Any],
    models: list[nn.Module],
    history: list[dict[str, float]],
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Store all that the loop needs to go on from here, and the history as one line an epoch.

    ``identity`` is the config and the hash of the code. ``models`` are those after finished tasks.
    If the last of them has just been added, the student and its optimiser are left out: the next
    task starts from that model with a new optimiser.
    """
    folder = Path(folder)
    # First the history: after a kill between the two, an epoch is run and written once more.
    lines = "".join(json.dumps(record) + "\n" for record in history)
    _write_atomically(folder / "history.jsonl", lambda partial: partial.write_text(lines))
    task_finished = history[-1]["task"] == len(models) - 1
    content = {
        "identity": identity,
        "models": [model.state_dict() for model in models],
        "history": history,
        "student": {} if task_finished else student.state_dict(),
        "optimizer": {} if task_finished else optimizer.state_dict(),
        "generator": generator.get_state(),
    }
    _write_atomically(folder / "checkpoint.pt", lambda partial: torch.save(content, partial))


def load_checkpoint(folder: str | Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return what ``save_checkpoint`` stored, or None if the folder has no checkpoint.

    Raises:
        InputError: if the file is damaged, or belongs to another config or version of the code.
    """
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        stored = dict(content["identity"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{path} is damaged ({reason}): delete it to start this run again"
        ) from error
    if stored != identity:
        changed = [
            f"{key} {stored.get(key)!r} -> {identity.get(key)!r}"
            for key in sorted({*stored, *identity})
            if stored.get(key) != identity.get(key)
        ]
        raise InputError(
            f"{path} belongs to another config ({'; '.join(changed)}): choose another folder"
        )
    return content


def restore_model(student: ResNet, state: dict[str, torch.Tensor]) -> ResNet:
    """Load the state of a finished task into the student, and return a frozen copy of it."""
    student.grow_head(len(state["head.weight"]) - student.num_classes)
    student.load_state_dict(state)
    return freeze(student)


def _write_atomically(path: Path, write: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    partial.replace(path)
