"""One way to fetch a file: whole and the right one, or one line that says what to do.

Anybody may hand out a file, because its SHA-256 is known before.
"""

from __future__ import annotations

import http.client
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from csd_lib import InputError
from csd_lib.files import make_folder, only_one, sha256_of, writing
from csd_lib.paths import variable

STALL_SECONDS = 30
MAX_SIZE = 100_000_000  # bytes of a file whose size is not known before


def fetch(
    name: str,
    sources: Sequence[str | Path],
    into: Path,
    sha256: str,
    size: int | None = None,
    *,
    remedy: str = "",
    progress: bool = True,
) -> Path:
    """Return a file, fetched from the first source that has it unless it is already there.

    What has arrived stays in a ``.partial`` file: the next source, and the next call, go on there.

    Args:
        name: what to call the file, for the lines about it.
        sources: addresses (http, https) or paths of the file, in the order in which to ask them.
        into: the path that it is kept under.
        sha256: of the whole file.
        size: in bytes, if it is known; else up to ``MAX_SIZE``.
        remedy: what else one can do if no source has it.
        progress: show a bar, and a line for every source.

    Raises:
        InputError: if no source had it within ``$CSD_DOWNLOAD_MINUTES``, or it cannot be written.
    """
    if into.is_file() and not problem_of(into, sha256, size):
        return into
    minutes, deadline = _time_limit()
    with only_one(make_folder(into.parent), f"fetching {name}"):
        if into.is_file() and not problem_of(into, sha256, size):  # by now, from another program
            return into
        partial = into.with_name(f"{into.name}.partial")
        if size is None and partial.exists() and not problem_of(partial, sha256):
            return _put_in_place(partial, into)
        left, problem = [str(source) for source in sources], "there is no source"
        while left and time.monotonic() < deadline:
            source = left[0]
            if progress:
                print(f"{name}{f', {megabytes(size)}' if size else ''}, from {source}", flush=True)
            try:
                older = _fetch_rest(name, source, partial, size, deadline, progress)
                if not (problem := problem_of(partial, sha256, size)):
                    return _put_in_place(partial, into)
                partial.unlink()
                problem = f"what arrived {problem} and is deleted"
            except InputError:  # a disk that is full here is full for every source
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:
                older, problem = 0, str(error)
            if progress:
                print(f"{source}: {problem}", flush=True)
            problem = f"it cannot be fetched from {source}: {problem}"
            if not older:  # else the wrong bytes may be older than this source: ask it for all
                left.pop(0)
        if time.monotonic() >= deadline:
            problem = f"the time is up (CSD_DOWNLOAD_MINUTES={minutes})"
        have = megabytes(size_of(partial)) + (f" of {megabytes(size)}" if size else "")
        raise InputError(
            f"{name} is not here yet, {have}: {problem}. Run the same again to go on from there"
            f"{remedy and f'; or {remedy}'}"
        )


def problem_of(path: Path, sha256: str, size: int | None = None) -> str:
    """Return in which way a file is not the one that it should be, or an empty string."""
    if size is not None and (found := size_of(path)) != size:
        return f"has {found:,} bytes instead of {size:,}"
    return "" if sha256_of(path) == sha256 else "has another SHA-256 than it should"


def size_of(path: Path) -> int:
    """Return how many bytes a file has; one that does not exist has none."""
    return path.stat().st_size if path.exists() else 0


def megabytes(size: int) -> str:
    """Return a number of bytes in words."""
    return f"{size / 1e6:.1f} MB"


def _time_limit() -> tuple[str, float]:
    minutes = variable("CSD_DOWNLOAD_MINUTES") or "15"
    try:
        deadline = time.monotonic() + 60 * float(minutes)
    except ValueError:
        deadline = math.nan
    if not time.monotonic() < deadline < math.inf:
        raise InputError(f"CSD_DOWNLOAD_MINUTES={minutes!r}: choose a positive number of minutes")
    return minutes, deadline


def _put_in_place(partial: Path, into: Path) -> Path:
    with writing(into):
        return partial.replace(into)


def _fetch_rest(
    name: str, source: str, partial: Path, size: int | None, deadline: float, progress: bool
) -> int:
    """Add to the partial file what is missing, and return how many older bytes were kept."""
    have = size_of(partial)
    if size is not None and have >= size:
        return have
    stream, start, total = _open(source, have, size)
    with (
        stream,
        tqdm(
            desc=name, total=total, initial=start, unit="B", unit_scale=True, disable=not progress
        ) as bar,
    ):
        have = start
        with writing(partial):
            file = partial.open("r+b" if start else "wb")
        with file:
            file.seek(start)
            # read1 returns what has come so far: a slow source cannot hold us beyond the limit.
            while (block := stream.read1(1 << 16)) and time.monotonic() < deadline:
                if (have := have + len(block)) > (total or MAX_SIZE):
                    raise OSError(f"it has more than {total or MAX_SIZE:,} bytes")
                with writing(partial):
                    file.write(block)
                bar.update(len(block))
    if total is not None and have < total:
        raise OSError(f"the connection ended after {have:,} of {total:,} bytes arrived")
    return start


def _open(source: str, have: int, size: int | None) -> tuple[Any, int, int | None]:
    """Open a source at byte ``have`` or, if it cannot do that, at its start.

    Returns:
        The stream, the byte it starts at, and how many bytes the whole file has, if that is known.
    """
    total: int | None
    if "://" not in source:
        total = Path(source).stat().st_size
        if not _is_wanted(total, size):
            raise OSError(f"it has {total:,} bytes instead of {_wanted(size)}")
        stream, start = Path(source).open("rb"), have if have < total else 0  # noqa: SIM115
        stream.seek(start)
        return stream, start, total
    request = urllib.request.Request(source, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        stream = urllib.request.urlopen(request, timeout=STALL_SECONDS)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # it has no such byte: what is here is from another file
            return _open(source, 0, size)
        raise
    if have and stream.status == 206:
        part = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", stream.headers["Content-Range"] or "")
        first, last, total = map(int, part.groups()) if part else (0, 0, 0)
        if first == have and last == total - 1 and _is_wanted(total, size):
            return stream, have, total
        stream.close()
        return _open(source, 0, size)
    length, kind = stream.headers["Content-Length"], stream.headers["Content-Type"]
    total = int(length) if (length or "").isdecimal() else None
    if stream.status != 200 or not (size is None if total is None else _is_wanted(total, size)):
        stream.close()
        offers = "unknown" if total is None else f"{total:,}"
        raise OSError(f"it offers {offers} bytes of {kind} instead of {_wanted(size)}")
    return stream, 0, total


def _is_wanted(total: int, size: int | None) -> bool:
    return total == size if size is not None else total <= MAX_SIZE


def _wanted(size: int | None) -> str:
    return f"{size:,} bytes" if size is not None else f"at most {MAX_SIZE:,} bytes"
