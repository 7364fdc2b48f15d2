"""CIFAR-100: where it is on this computer, how it gets there, and how its archive is read.

Sources, in this order: ``cifar100.npz``, the official archive beside it, the mirrors in
``$CSD_MIRRORS``, the origin.

The archive holds Python pickles, and to unpickle a file ordinarily is to run whatever its maker
wants. So it must have the pinned SHA-256, and even then only plain values and arrays are read.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from csd_lib import InputError, paths
from csd_lib.archive import Archive, members
from csd_lib.files import UNPICKLING_ERRORS, damaged, make_folder, only_one, parsing, write_arrays

NPZ = "cifar100.npz"
CIFAR100 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    169_001_437,
    "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
)
MAX_UNPACKED = 200_000_000  # bytes; the official archive holds 186 MB

# The only names in the official files. numpy has since moved the first; and some versions of it
# warn that the last is called with 0 and 1, as Python 2 wrote them, instead of False and True.
_ALLOWED = {
    "numpy.core.multiarray._reconstruct": np.zeros(0).__reduce__()[0],
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": lambda code, align, copy: np.dtype(code, bool(align), bool(copy)),
}


def locate(root: str | Path | None = None) -> Path:
    """Return where ``cifar100.npz`` is or, if it is missing, where it will be written.

    That is ``root``, else ``$CSD_DATA``, each a folder or the file itself, else ``data/``; but
    ``data/`` also if the file is missing in a folder that cannot be written to, such as a stick's.
    """
    path = _asked_for(root)
    return path if path.exists() or _can_write(path.parent) else paths.data_folder() / NPZ


def folders(root: str | Path | None = None) -> list[Path]:
    """Return where the archive may be: in the folder asked for, and in the one written to."""
    return [_asked_for(root).parent, locate(root).parent]


def fetch_cifar100(root: str | Path | None = None) -> Path:
    """Return the path of ``cifar100.npz``; if it is missing, make it from the first good source.

    Args:
        root: the folder that holds it, or the file itself; default as in ``locate``.

    Raises:
        InputError: as ``fetch.fetch``, or if nothing can be written.
    """
    path, asked_for = locate(root), _asked_for(root)
    if path != asked_for:
        print(f"{asked_for.parent} cannot be written to: {NPZ} is kept in {path.parent}")
    if path.exists():
        return path
    if not _can_write(path.parent):
        raise InputError(f"cannot write to {path.parent}: set CSD_DATA to a folder of your own")
    with only_one(make_folder(path.parent), "fetching CIFAR-100"):
        if path.exists():  # by now: another program has made it
            return path
        remedy = f"; or do either with {NPZ}; or set CSD_MODE=smoke, which needs no download"
        source = CIFAR100.fetch("CIFAR-100", folders(root), remedy)
        print(f"writing {path} from {source}", flush=True)
        write_arrays(path, read_archive(source))
    return path


def _asked_for(root: str | Path | None) -> Path:
    root = Path(root or paths.variable("CSD_DATA") or paths.data_folder())
    if root.suffix == ".npz":
        return root
    return (root.parent if root.name == CIFAR100.name else root) / NPZ


def _can_write(folder: Path) -> bool:
    try:
        paths.try_writing(folder)
    except OSError:
        return False
    return True


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read the archive as the arrays of ``cifar100.npz``, without executing anything in it.

    Returns:
        ``train_images`` uint8 ``[50000, 32, 32, 3]``, ``train_labels`` int64 ``[50000]``, the same
        for test, and ``class_names`` ``[100]``. Sorted by class, so that every copy of the file
        holds the images in the same order.

    Raises:
        InputError: if the archive holds anything but the values and arrays that it should.
    """
    parts = {}
    wanted = [f"cifar-100-python/{name}" for name in ("train", "test", "meta")]
    for member, content in members(path, MAX_UNPACKED, wanted.__contains__):
        name = member.rpartition("/")[2]
        with parsing(path, pickle.UnpicklingError, *UNPICKLING_ERRORS):
            parts[name] = _ValuesAndArrays(io.BytesIO(content), encoding="latin1").load()

    def require(part: str, key: str, kind: type) -> Any:
        values = parts.get(part)
        value = values.get(key) if isinstance(values, dict) else None
        if not isinstance(value, kind):
            raise damaged(path, f"its {part} holds no {kind.__name__} {key}")
        return value

    names = require("meta", "fine_label_names", list)
    if not all(isinstance(name, str) for name in names):
        raise damaged(path, "its names are no text")
    arrays = {"class_names": np.array(names)}
    for part in ("train", "test"):
        labels, data = require(part, "fine_labels", list), require(part, "data", np.ndarray)
        if not all(isinstance(label, int) and 0 <= label < len(names) for label in labels):
            raise damaged(path, f"not every label of its {part} has a name")
        if data.dtype != np.uint8 or data.shape != (len(labels), 3072):
            raise damaged(path, f"its {part} data are {data.dtype} {data.shape}")
        labels = np.array(labels, dtype=np.int64)
        order = np.argsort(labels, kind="stable")
        images = data[order].reshape(-1, 3, 32, 32)
        arrays[f"{part}_images"] = images.transpose(0, 2, 3, 1)
        arrays[f"{part}_labels"] = labels[order]
    return arrays


class _ValuesAndArrays(pickle.Unpickler):
    """Reads a pickle of plain values and numpy arrays, and refuses any other."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is neither a plain value nor an array")
        return _ALLOWED[f"{module}.{name}"]
