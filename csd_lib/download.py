"""Where CIFAR-100 is on this computer, and how it gets there.

Sources, in this order: ``cifar100.npz``, the official archive beside it, the mirrors in
``$CSD_MIRRORS``, the origin. Anybody may hand out the archive, because its SHA-256 is pinned.
"""

from __future__ import annotations

import http.client
import math
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from csd_lib import InputError
from csd_lib.archive import ARCHIVE, SIZE, archive_problem, read_archive
from csd_lib.files import only_one, write_atomically

NPZ = "cifar100.npz"
ORIGIN = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
STALL_SECONDS = 30


def data_folder() -> Path:
    """Where data sets are looked for: ``data/`` of this checkout, else of the current folder."""
    checkout = Path(__file__).resolve().parent.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data"


def locate(root: str | Path | None = None) -> Path:
    """Return where ``cifar100.npz`` is or, if it is missing, where it will be written.

    That is ``root``, else ``$CSD_DATA``, each a folder or the file itself, else ``data/``; but
    ``data/`` also if the file is missing in a folder that cannot be written to, such as a stick's.
    """
    path = _asked_for(root)
    return path if path.exists() or _can_write(path.parent) else data_folder() / NPZ


def local_archives(root: str | Path | None = None) -> list[Path]:
    """Return the archives in the folder asked for and in the one written to, whole or not."""
    folders = dict.fromkeys([_asked_for(root).parent, locate(root).parent])
    return [folder / ARCHIVE for folder in folders if (folder / ARCHIVE).exists()]


def fetch_cifar100(root: str | Path | None = None) -> Path:
    """Return the path of ``cifar100.npz``; if it is missing, make it from the first good source.

    Args:
        root: the folder that holds it, or the file itself; default as in ``locate``.

    Raises:
        InputError: if no source had the archive within ``$CSD_DOWNLOAD_MINUTES``, or nothing can
            be written.
    """
    path, asked_for = locate(root), _asked_for(root)
    if path != asked_for:
        print(f"{asked_for.parent} cannot be written to: {NPZ} is kept in {path.parent}")
    if path.exists():
        return path
    if not _can_write(path.parent):
        raise InputError(f"cannot write to {path.parent}: set CSD_DATA to a folder of your own")
    path.parent.mkdir(parents=True, exist_ok=True)
    with only_one(path.parent, "fetching CIFAR-100"):
        if path.exists():  # by now: another program has made it
            return path
        for archive in local_archives(root):
            problem = archive_problem(archive)
            if not problem:
                break
            print(f"{archive} {problem}: it is not used")
        else:
            archive = download(path.parent)
        print(f"writing {path} from {archive}", flush=True)
        arrays = read_archive(archive)

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, **arrays)

        write_atomically(path, write)
    return path


def download(folder: Path) -> Path:
    """Fetch the archive into a folder, from the mirrors and then from the origin.

    What has arrived stays in a ``.partial`` file: the next source, and the next call, go on there.

    Raises:
        InputError: if no source had it, or the time is up.
    """
    minutes = os.environ.get("CSD_DOWNLOAD_MINUTES") or "15"
    try:
        deadline = time.monotonic() + 60 * float(minutes)
    except ValueError:
        deadline = math.nan
    if not time.monotonic() < deadline < math.inf:
        raise InputError(f"CSD_DOWNLOAD_MINUTES={minutes!r}: choose a positive number of minutes")
    archive, partial = folder / ARCHIVE, folder / f"{ARCHIVE}.partial"
    sources = [*_mirrors(), ORIGIN]
    while sources and time.monotonic() < deadline:
        source, older = sources[0], 0
        print(f"CIFAR-100, {_megabytes(SIZE)}, from {source}", flush=True)
        try:
            older = _fetch_rest(source, partial, deadline)
            problem = archive_problem(partial)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = str(error)
        else:
            if not problem:
                partial.replace(archive)
                return archive
            partial.unlink()
            problem = f"what arrived {problem} and is deleted"
        print(f"{source}: {problem}", flush=True)
        if not older:  # else the wrong bytes may be older than this source: ask it for all of them
            sources.pop(0)
    if time.monotonic() >= deadline:
        problem = f"the time is up (CSD_DOWNLOAD_MINUTES={minutes})"
    raise InputError(
        f"CIFAR-100 is not here yet, {_megabytes(_size(partial))} of {_megabytes(SIZE)}: {problem}."
        f" Run the same again to go on from there; or copy {NPZ} or {ARCHIVE} from a colleague "
        f"into {folder}; or set CSD_DATA to a folder with one of them, or CSD_MIRRORS to its "
        f"address; or set CSD_MODE=smoke, which needs no download"
    )


def _fetch_rest(source: str, partial: Path, deadline: float) -> int:
    """Add to the partial file what is missing, and return how many older bytes were kept."""
    have = _size(partial)
    if have >= SIZE:
        return have
    stream, start = _open(source, have)
    with (
        stream,
        partial.open("r+b" if start else "wb") as file,
        tqdm(desc="CIFAR-100", total=SIZE, initial=start, unit="B", unit_scale=True) as bar,
    ):
        file.seek(start)
        # read1 returns what has come so far: a slow source cannot hold us beyond the time limit.
        while (block := stream.read1(1 << 16)) and time.monotonic() < deadline:
            file.write(block)
            bar.update(len(block))
    if _size(partial) < SIZE:
        raise OSError(f"the connection ended after {_megabytes(_size(partial))}")
    return start


def _open(source: str, have: int) -> tuple[Any, int]:
    """Open a source at byte ``have`` or, if it cannot do that, at its start, and say at which."""
    if "://" not in source:
        if (size := Path(source).stat().st_size) != SIZE:
            raise OSError(f"it has {size:,} bytes instead of {SIZE:,}")
        stream = Path(source).open("rb")  # noqa: SIM115
        stream.seek(have)
        return stream, have
    request = urllib.request.Request(source, headers={"Range": f"bytes={have}-"} if have else {})
    stream = urllib.request.urlopen(request, timeout=STALL_SECONDS)
    if have and stream.status == 206:
        if stream.headers["Content-Range"] == f"bytes {have}-{SIZE - 1}/{SIZE}":
            return stream, have
        stream.close()
        return _open(source, 0)
    size, kind = stream.headers["Content-Length"], stream.headers["Content-Type"]
    if stream.status != 200 or size != str(SIZE):
        stream.close()
        raise OSError(f"it offers {size or 'unknown'} bytes of {kind} instead of {SIZE:,} bytes")
    return stream, 0


def _mirrors() -> list[str]:
    mirrors = os.environ.get("CSD_MIRRORS", "").split()
    for index, mirror in enumerate(mirrors):
        if "://" in mirror and not mirror.startswith(("http://", "https://")):
            raise InputError(f"CSD_MIRRORS: {mirror!r} must start with http:// or https://")
        if mirror.endswith("/") or Path(mirror).is_dir():
            mirrors[index] = f"{mirror.rstrip('/')}/{ARCHIVE}"
    return mirrors


def _asked_for(root: str | Path | None) -> Path:
    root = Path(root or os.environ.get("CSD_DATA") or data_folder())
    if root.suffix == ".npz":
        return root
    return (root.parent if root.name == ARCHIVE else root) / NPZ


def _can_write(folder: Path) -> bool:
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    probe = there / f".writable-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
