"""An official archive: where it may be, how to recognise it, and how to read it.

Anybody may hand one out, because its SHA-256 is pinned.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from csd_lib import InputError, paths
from csd_lib.fetch import fetch, problem_of
from csd_lib.files import damaged, parsing

# What tarfile is known to raise for files that are damaged or of another kind.
TAR_ERRORS = (
    tarfile.TarError,  # no header where one should be
    gzip.BadGzipFile,  # gzip: another kind of file, or a wrong checksum
    zlib.error,  # zlib: bytes that it has not compressed
    EOFError,  # gzip: it ends too early
    ValueError,  # a number or a name in a header that is none
)


@dataclass(frozen=True)
class Archive:
    """A tar file, as its makers publish it."""

    address: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.address.rpartition("/")[2]

    def found_in(self, folders: Iterable[Path]) -> list[Path]:
        """Return where it lies in these folders, whole or not."""
        places = dict.fromkeys(folder / self.name for folder in folders)
        return [path for path in places if path.exists()]

    def check(self, folders: Iterable[Path], command: str) -> list[Path]:
        """Return where it lies in these folders; InputError if one is not the official file."""
        found = self.found_in(folders)
        for path in found:
            if problem := problem_of(path, self.sha256, self.size):
                raise InputError(f"{path} {problem}: delete it, and run {command}")
        return found

    def fetch(self, title: str, folders: Sequence[Path], remedy: str = "") -> Path:
        """Return where it lies: in one of these folders or, if it has to be fetched, in the last.

        Args:
            title: what to call it, for the lines about it.
            folders: where it may be already; one that is not the official file is not used.
            remedy: what else one can do if no source has it, for ``fetch.fetch``'s InputError.
        """
        for path in self.found_in(folders):
            if not (problem := problem_of(path, self.sha256, self.size)):
                return path
            print(f"{path} {problem}: it is not used")
        into = folders[-1]
        return fetch(
            title,
            [*self._mirrors(), self.address],
            into / self.name,
            self.sha256,
            self.size,
            remedy=f"copy {self.name} from a colleague into {into}; or set CSD_DATA to a folder "
            f"with it, or CSD_MIRRORS to its address{remedy}",
        )

    def _mirrors(self) -> list[str]:
        mirrors = paths.variable("CSD_MIRRORS").split()
        for index, mirror in enumerate(mirrors):
            if "://" in mirror and not mirror.startswith(("http://", "https://")):
                raise InputError(f"CSD_MIRRORS: {mirror!r} must start with http:// or https://")
            if mirror.endswith("/") or Path(mirror).is_dir():
                mirrors[index] = f"{mirror.rstrip('/')}/{self.name}"
        return mirrors


def members(
    path: Path, max_unpacked: int, is_wanted: Callable[[str], bool]
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the members of a tar file that are wanted; nothing is unpacked.

    InputError if it is damaged, one of them is no ordinary file, or all members have more bytes.
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
