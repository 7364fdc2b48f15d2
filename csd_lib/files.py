"""Files: written in one step or not at all, read without executing anything that is in them.

A file may come from a stranger. So nothing here unpickles code, and nothing is unpacked before it
is known to fit: a small file can claim to hold 100 GB.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csd_lib import InputError

MAX_JSON = 100_000_000  # bytes; 800 epochs of 10 tasks make 2 MB
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# All that zipfile, numpy, torch and json are known to raise for files that are damaged or of
# another kind.
_DAMAGED = (
    *(OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError),
    *(MemoryError, RecursionError, NotImplementedError, OverflowError, AssertionError),
    *(zipfile.BadZipFile, zipfile.zlib.error, pickle.UnpicklingError),
)


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what can go wrong while a file is written, such as a full disk, into one clear line.

    Raises:
        InputError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): see to that folder and its disk; "
            f"what was kept before is whole, and the same command goes on from there"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a partial file, and put it in place in one step.

    A reader, a kill or a full disk never leaves half a file under the name.

    Raises:
        InputError: if it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            write(partial)
            partial.replace(path)
        except OSError:
            with suppress(OSError):  # half a file only takes space, which may be what is missing
                partial.unlink()
            raise


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, lambda partial: partial.write_text(json.dumps(content, indent=1)))


def write_tensors(path: Path, content: Any) -> None:
    """Write tensors and plain values atomically, in torch's format."""
    packed = pack_tensors(content)
    write_atomically(path, lambda partial: partial.write_bytes(packed))


def pack_tensors(content: Any) -> memoryview:
    """Return what torch would save; its own file writer hides why a file could not be written."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: if it is not complete JSON.
    """
    with _reading(path):
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"it is larger than {MAX_JSON / 1e6:.0f} MB")
        return json.loads(path.read_text("utf-8"))


def read_tensors(path: Path) -> Any:
    """Read what ``write_tensors`` wrote, onto the CPU.

    Raises:
        InputError: if it is damaged, of another kind, or holds more than tensors and plain values.
    """
    with _reading(path):
        with zipfile.ZipFile(path) as archive:
            # torch compresses nothing, so what unpacks to more than its own size is a bomb.
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > path.stat().st_size:
                raise ValueError(f"it would unpack to {unpacked:,} bytes")
            if broken := archive.testzip():
                raise ValueError(f"the checksum of {broken} is wrong")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's own words advise to switch this off
            raise ValueError(
                "it holds more than tensors and plain values, and could run a program"
            ) from error


def read_arrays(path: Path, max_bytes: int) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file.

    Args:
        path: the file.
        max_bytes: refuse a file that unpacks to more.

    Raises:
        InputError: if it is damaged, of another kind or too large, or holds Python objects.
    """
    arrays = {}
    with _reading(path), zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > max_bytes:
            raise ValueError(f"it would unpack to {unpacked:,} bytes, expected {max_bytes:,}")
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or "/" in name:
                raise ValueError(f"{entry.filename} is not an array")
            with archive.open(entry) as file:
                version = np.lib.format.read_magic(file)
                if version not in _NPY_HEADERS:
                    raise ValueError(f"{name} is in an unknown version of the format")
                shape, by_columns, dtype = _NPY_HEADERS[version](file)
                content = bytearray(file.read())  # to its end, where the checksum is compared
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                raise ValueError(f"{name} holds Python objects, and could run a program")
            if size != len(content):
                raise ValueError(f"{name} should be {dtype} {shape}, but has {len(content)} bytes")
            order = "F" if by_columns else "C"
            arrays[name] = np.frombuffer(content, dtype).reshape(shape, order=order)
    return arrays


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            f"{path} cannot be read ({reason[:200]}): delete it and try again"
        ) from error


class Busy(Exception):  # noqa: N818 - it is no error
    """Another process holds what was asked for."""


@contextmanager
def only_one(folder: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Stub until the real one is merged."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise Busy(f"another program is {what} in {folder}") from None
        print(f"another program is {what} in {folder}: waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
