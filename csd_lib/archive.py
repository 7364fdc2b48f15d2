"""The official CIFAR-100 archive: how to recognise it, and how to read it.

It holds Python pickles, and to unpickle a file ordinarily is to run whatever its maker wants. So
the archive must have the pinned SHA-256, and even then only plain values and arrays are read.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from csd_lib.fetch import problem_of
from csd_lib.files import damaged, parsing

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
# What tarfile and pickle are known to raise for files that are damaged or of another kind.
TAR_ERRORS = (
    tarfile.TarError,  # tarfile: no header where one should be
    gzip.BadGzipFile,  # gzip: another kind of file, or a wrong checksum
    zlib.error,  # zlib: bytes that it has not compressed
    EOFError,  # gzip: it ends too early
    ValueError,  # tarfile: a number or a name in a header that is none
)
_PICKLE_ERRORS = (
    pickle.UnpicklingError,  # pickle: no pickle; ``_ValuesAndArrays``: a name that is refused
    EOFError,  # pickle, this and all below: it ends too early
    LookupError,  # it takes what it has not stored
    ValueError,  # numbers, texts or array shapes that are none
    TypeError,  # an array is made from something else
    AttributeError,  # the same
    OverflowError,  # a length beyond 64 bits
)


def archive_problem(path: Path) -> str:
    """Return in which way a file is not the official archive, or an empty string."""
    return problem_of(path, SHA256, SIZE)


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
        with parsing(path, *_PICKLE_ERRORS):
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


def members(
    path: Path, max_unpacked: int, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the members of a tar file that are wanted; nothing is unpacked.

    Raises:
        InputError: if it is damaged, one of them is no ordinary file, or all members together
            have more bytes than ``max_unpacked``.
    """
    unpacked = 0
    with parsing(path, *TAR_ERRORS):
        archive = tarfile.open(path, "r:" if path.suffix == ".tar" else "r:gz")  # noqa: SIM115
    with archive:
        while True:
            with parsing(path, *TAR_ERRORS):
                member = archive.next()
            if member is None:
                return
            unpacked += member.size
            if unpacked > max_unpacked:
                raise damaged(path, f"it unpacks to more than {max_unpacked:,} bytes")
            if is_wanted(member.name):
                if not member.isreg():
                    raise damaged(path, f"its {member.name.rpartition('/')[2]} is not a file")
                with parsing(path, *TAR_ERRORS):
                    content = archive.extractfile(member).read()  # type: ignore[union-attr]
                yield member.name, content
            archive.members = []  # type: ignore[attr-defined] # else it keeps every header


class _ValuesAndArrays(pickle.Unpickler):
    """Reads a pickle of plain values and numpy arrays, and refuses any other."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is neither a plain value nor an array")
        return _ALLOWED[f"{module}.{name}"]
