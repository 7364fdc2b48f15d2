"""The official CIFAR-100 archive: how to recognise it, and how to read it.

It holds Python pickles, and to unpickle a file ordinarily is to run whatever its maker wants. So
the archive must have the pinned SHA-256, and even then only plain values and arrays are read.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from csd_lib import InputError

ARCHIVE = "cifar-100-python.tar.gz"
SIZE = 169_001_437
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
MAX_UNPACKED = 200_000_000  # bytes; the official archive holds 186 MB

# The only names in the official files. numpy has since moved the first; and some versions of it
# warn that the last is called with 0 and 1, as Python 2 wrote them, instead of False and True.
_ALLOWED = {
    "numpy.core.multiarray._reconstruct": np.zeros(0).__reduce__()[0],
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": lambda code, align, copy: np.dtype(code, bool(align), bool(copy)),
}
# All that tarfile, gzip and pickle are known to raise for files that are damaged or of another
# kind.
_NOT_THE_ARCHIVE = (
    *(OSError, ValueError, EOFError, TypeError, LookupError, AttributeError),
    *(tarfile.TarError, zlib.error, pickle.UnpicklingError),
)


def archive_problem(path: Path) -> str:
    """Return in which way a file is not the official archive, or an empty string."""
    if (size := path.stat().st_size) != SIZE:
        return f"has {size:,} bytes instead of {SIZE:,}"
    with path.open("rb") as file:
        right = hashlib.file_digest(file, "sha256").hexdigest() == SHA256
    return "" if right else "has another SHA-256 than the official archive"


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """Read the archive as the arrays of ``cifar100.npz``, without executing anything in it.

    Returns:
        ``train_images`` uint8 ``[50000, 32, 32, 3]``, ``train_labels`` int64 ``[50000]``, the same
        for test, and ``class_names`` ``[100]``. Sorted by class, so that every copy of the file
        holds the images in the same order.

    Raises:
        InputError: if the archive holds anything but the values and arrays that it should.
    """
    parts: dict[str, dict[str, Any]] = {}
    unpacked = 0
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                unpacked += member.size
                if unpacked > MAX_UNPACKED:
                    raise ValueError(f"it unpacks to more than {MAX_UNPACKED:,} bytes")
                folder, _, name = member.name.partition("/")
                if folder == "cifar-100-python" and name in ("train", "test", "meta"):
                    file = archive.extractfile(member)
                    parts[name] = _ValuesAndArrays(file, encoding="latin1").load()
        arrays = {"class_names": np.array(parts["meta"]["fine_label_names"])}
        for name in ("train", "test"):
            labels = np.array(parts[name]["fine_labels"], dtype=np.int64)
            order = np.argsort(labels, kind="stable")
            images = parts[name].pop("data")[order].reshape(-1, 3, 32, 32)
            arrays[f"{name}_images"] = images.transpose(0, 2, 3, 1)
            arrays[f"{name}_labels"] = labels[order]
    except _NOT_THE_ARCHIVE as error:
        raise InputError(f"{path} cannot be read ({error}): delete it and try again") from error
    return arrays


class _ValuesAndArrays(pickle.Unpickler):
    """Reads a pickle of plain values and numpy arrays, and refuses any other."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is neither a plain value nor an array")
        return _ALLOWED[f"{module}.{name}"]
