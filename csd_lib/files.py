"""Files: written in one step or not at all, read without executing anything that is in them.

A file may come from a stranger. So nothing here unpickles code, and nothing is unpacked before it
is known to fit: a small file can claim to hold 100 GB.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import pickle
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from csd_lib import InputError, checks
from csd_lib.paths import try_writing

MAX_JSON = 100_000_000  # bytes; 800 epochs of 10 tasks make 2 MB
MAX_HEADER = 1000  # bytes of an array's header; ours have 118, and long ones can crash the parser
_NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What the parsers are known to raise for files that are damaged or of another kind, found with
# many thousands of them. Whatever is not listed is an error of ours, or of this computer.
_ZIP_ERRORS = (
    zipfile.BadZipFile,  # zipfile: no directory, or an entry or checksum that contradicts it
    zlib.error,  # zlib: bytes that it has not compressed
    EOFError,  # zipfile: an entry that ends too early
    NotImplementedError,  # zipfile: a kind or version of zip files that it does not read
    ValueError,  # zipfile: names that are no UTF-8
)
_HEADER_ERRORS = (
    ValueError,  # numpy: no header, or one that is no dictionary of a shape and a dtype
    TypeError,  # numpy: one whose keys are of several types
    SyntaxError,  # tokenize, which numpy asks about headers of Python 2: odd indentation
    tokenize.TokenError,  # tokenize: open brackets
)
UNPICKLING_ERRORS = (
    EOFError,  # the pickle ends too early
    LookupError,  # it takes from an empty stack, or what it has not stored
    ValueError,  # numbers, texts, shapes, byte orders or versions that are none
    TypeError,  # a tensor or an array is made from something else
    AttributeError,  # the same
    OverflowError,  # a size beyond 64 bits
)
_TORCH_ERRORS = (
    *UNPICKLING_ERRORS,
    RuntimeError,  # torch's C++ reader: missing parts; sizes that the bytes are too few for
    struct.error,  # its unpickler: a number is cut off
    AssertionError,  # the same: a storage is made from something else
)

# File systems without locks, such as some network drives.
_CANNOT_LOCK = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class Busy(InputError):  # noqa: N818
    """Another program works in the folder."""


class Damaged(InputError):  # noqa: N818
    """A file is damaged or of another kind. One that merely cannot be opened is not."""


def make_folder(folder: str | Path) -> Path:
    """Return a folder, made if missing; InputError if files cannot be written into it."""
    if not str(folder):
        raise InputError("the folder's name is empty: give one, or leave --folder out")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_writing(folder)
    except (OSError, ValueError) as error:  # ValueError: a null character in its name
        why = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write to {folder} ({why}): choose another folder with "
            f"--folder or CSD_RUNS, or copy the kit to one of your own"
        ) from error
    return folder


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError while a file is written, such as of a full disk, into a clear InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): see to that folder and its disk; "
            f"what was kept before is whole, and the same command goes on from there"
        ) from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a partial file, and put it in place in one step, or raise InputError.

    A reader, a kill or a full disk never leaves half a file under the name.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            write(partial)
            partial.replace(path)
        except BaseException:
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


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` file atomically, uncompressed, so that a memory map can read it."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    write_atomically(path, write)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes; InputError if it cannot be read."""
    with parsing(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file; InputError if it cannot be opened, ``Damaged`` if it is not complete."""
    return _parsed(path, json.loads)


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with a line of JSON for each item; errors as of ``read_json``."""
    return _parsed(path, lambda text: [json.loads(line) for line in text.splitlines()])


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    with parsing(path):
        if path.stat().st_size > MAX_JSON:
            raise damaged(path, f"it is larger than {MAX_JSON / 1e6:.0f} MB")
        content = path.read_bytes()
    with parsing(path, ValueError, RecursionError):  # json: not JSON or not UTF-8; nested too deep
        return parse(content.decode("utf-8"))


def read_tensors(path: Path) -> Any:
    """Read what ``write_tensors`` wrote, onto the CPU; errors as of ``read_json``.

    ``Damaged`` is also a file that holds more than tensors and plain values.
    """
    # torch compresses nothing, so what unpacks to more than its own size is a bomb.
    with _unzipped(path) as (archive, unpacked):
        if unpacked > path.stat().st_size:
            raise damaged(path, f"it would unpack to {unpacked:,} bytes")
        with parsing(path, *_ZIP_ERRORS):
            broken = archive.testzip()
        if broken:
            raise damaged(path, f"the checksum of {broken} is wrong")
    try:
        with parsing(path, *_TORCH_ERRORS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to switch this off
        raise damaged(
            path, "it holds more than tensors and plain values, and could run a program"
        ) from error


def read_arrays(
    path: Path, max_bytes: int, leave_larger: float = math.inf
) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file.

    Args:
        path: the file.
        max_bytes: refuse a file that unpacks to more.
        leave_larger: arrays of more bytes than this stay in the file, if ``np.savez`` wrote it
            (``np.savez_compressed`` packs them): a memory map reads what is asked for. They do
            not count for ``max_bytes``. What is written to them never reaches the file.

    Raises:
        InputError: if it cannot be opened; ``Damaged`` if it is damaged, of another kind or too
            large, or holds Python objects.
    """
    arrays = {}
    with _unzipped(path) as (archive, unpacked):
        mapped = [
            entry
            for entry in archive.infolist()
            if entry.file_size > leave_larger and entry.compress_type == zipfile.ZIP_STORED
        ]
        unpacked -= sum(entry.file_size for entry in mapped)
        if unpacked > max_bytes:
            raise damaged(path, f"it would unpack to {unpacked:,} bytes, expected {max_bytes:,}")
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name == entry.filename or "/" in name:
                raise damaged(path, f"{entry.filename} is not an array")
            arrays[name] = _read_array(path, name, archive, entry, entry in mapped)
    return arrays


def _read_array(
    path: Path, name: str, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, mapped: bool
) -> np.ndarray:
    """Return an array; if it is to be mapped, its bytes stay where they are in the file."""
    with parsing(path, *_ZIP_ERRORS), archive.open(entry) as stream:
        file = io.BytesIO(stream.read(MAX_HEADER + 16 if mapped else -1))
    shape, by_columns, dtype = _read_header(path, name, file, entry.file_size)
    if mapped:
        with parsing(path), path.open("rb") as whole:
            whole.seek(entry.header_offset)
            lengths = whole.read(30)[26:]  # of the entry's name and of the extra field behind it
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        if start + entry.file_size > path.stat().st_size:
            raise damaged(path, f"{name} ends after the file")
    with parsing(path, ValueError):  # numpy: values of no size, more axes than arrays can have
        flat: np.ndarray
        if mapped:
            flat = np.memmap(path, dtype, "c", start + file.tell(), (math.prod(shape),))
        else:
            flat = np.frombuffer(bytearray(file.read()), dtype)
        return flat.reshape(shape, order="F" if by_columns else "C")


def _read_header(
    path: Path, name: str, file: io.BytesIO, size: int
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read an array's header, and compare it with the bytes that there are of both."""
    with parsing(path, *_HEADER_ERRORS):
        version = np.lib.format.read_magic(file)
    if version not in _NPY_HEADERS:
        raise damaged(path, f"{name} is in an unknown version of the format")
    with parsing(path, *_HEADER_ERRORS):
        shape, by_columns, dtype = _NPY_HEADERS[version](file, max_header_size=MAX_HEADER)
    found = size - file.tell()
    if dtype.hasobject:
        raise damaged(path, f"{name} holds Python objects, and could run a program")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != found:
        raise damaged(path, f"{name} should be {dtype} {shape}, but has {found} bytes")
    return shape, by_columns, dtype


@contextmanager
def _unzipped(path: Path) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """Open a zip file, and say how many bytes it would unpack to."""
    with parsing(path, *_ZIP_ERRORS):
        archive = zipfile.ZipFile(path)
    with archive:
        for entry in archive.infolist():
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise damaged(path, f"{entry.filename} is compressed in an unusual way")
            if entry.flag_bits & 1:
                raise damaged(path, f"{entry.filename} is encrypted")
        yield archive, sum(entry.file_size for entry in archive.infolist())


@contextmanager
def parsing(path: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a parser is known to raise for a damaged file into one clear line, a ``Damaged``.

    Nothing but the parser belongs into this block: an error of our own must not look like a
    damaged file, which might be hours of training. An OSError that is not about the content becomes
    an InputError.
    """
    try:
        yield
    except errors as error:
        if "can't allocate memory" in str(error):  # torch makes a RuntimeError of it
            raise
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # a directory leads zipfile to a place before the start
            raise damaged(path, error) from error
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def damaged(path: Path, reason: str | Exception) -> Damaged:
    """Return the error about a damaged file, in one line."""
    words = checks.first_line(reason, 200)
    return Damaged(f"{path} cannot be read ({words}): move it away and try again")


class _Lock(FileLock):
    def _fallback_to_soft_lock(self, *_: Any) -> None:
        # A file that merely exists would outlive a killed program, and lock the folder for ever.
        raise NotImplementedError("it cannot lock files")


@contextmanager
def only_one(folder: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Let no other program, and no other thread, work in a folder meanwhile.

    The system ends the lock with the program, even if that is killed. Within one thread the same
    folder can be locked again. Where a file system cannot lock, a note says so.

    Args:
        folder: must exist.
        what: is being done there, for the line that tells others.
        wait: for the other one to end, and say so; else raise.

    Raises:
        Busy: if another one works there, and ``wait`` is False.
        InputError: if the folder cannot be written.
    """
    folder = Path(folder)
    busy = f"another program is {what} in {folder}"
    lock = _Lock(str(folder.resolve() / ".lock"), is_singleton=True)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise Busy(f"{busy}: wait for it, or choose another folder") from None
            print(f"{busy}: waiting for it", flush=True)
            lock.acquire()
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _CANNOT_LOCK:
            with writing(folder / ".lock"):
                raise
        warnings.warn(
            f"{folder} cannot be locked ({error}): let no other program work there meanwhile",
            stacklevel=3,
        )
        yield
    else:
        try:
            yield
        finally:
            lock.release()
