"""Where CIFAR-100 is on this computer, and how it gets there.

Sources, in this order: ``cifar100.npz``, the official archive beside it, the mirrors in
``$CSD_MIRRORS``, the origin. Anybody may hand out the archive, because its SHA-256 is pinned.
"""

from __future__ import annotations

from pathlib import Path

from csd_lib import InputError, archive, paths
from csd_lib.archive import ARCHIVE, archive_problem, read_archive
from csd_lib.fetch import fetch
from csd_lib.files import make_folder, only_one, write_arrays

NPZ = "cifar100.npz"
ORIGIN = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"


def locate(root: str | Path | None = None) -> Path:
    """Return where ``cifar100.npz`` is or, if it is missing, where it will be written.

    That is ``root``, else ``$CSD_DATA``, each a folder or the file itself, else ``data/``; but
    ``data/`` also if the file is missing in a folder that cannot be written to, such as a stick's.
    """
    path = _asked_for(root)
    return path if path.exists() or _can_write(path.parent) else paths.data_folder() / NPZ


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
    with only_one(make_folder(path.parent), "fetching CIFAR-100"):
        if path.exists():  # by now: another program has made it
            return path
        for source in local_archives(root):
            problem = archive_problem(source)
            if not problem:
                break
            print(f"{source} {problem}: it is not used")
        else:
            source = fetch(
                "CIFAR-100",
                [*mirrors(ARCHIVE), ORIGIN],
                path.parent / ARCHIVE,
                archive.SHA256,
                archive.SIZE,
                remedy=f"copy {NPZ} or {ARCHIVE} from a colleague into {path.parent}; or set "
                f"CSD_DATA to a folder with one of them, or CSD_MIRRORS to its address; or set "
                f"CSD_MODE=smoke, which needs no download",
            )
        print(f"writing {path} from {source}", flush=True)
        write_arrays(path, read_archive(source))
    return path


def mirrors(archive: str) -> list[str]:
    """Return where ``$CSD_MIRRORS`` may have an archive of this name.

    Raises:
        InputError: for an address that is none.
    """
    mirrors = paths.variable("CSD_MIRRORS").split()
    for index, mirror in enumerate(mirrors):
        if "://" in mirror and not mirror.startswith(("http://", "https://")):
            raise InputError(f"CSD_MIRRORS: {mirror!r} must start with http:// or https://")
        if mirror.endswith("/") or Path(mirror).is_dir():
            mirrors[index] = f"{mirror.rstrip('/')}/{archive}"
    return [mirror for mirror in mirrors if archive == ARCHIVE or mirror.endswith(f"/{archive}")]


def _asked_for(root: str | Path | None) -> Path:
    root = Path(root or paths.variable("CSD_DATA") or paths.data_folder())
    if root.suffix == ".npz":
        return root
    return (root.parent if root.name == ARCHIVE else root) / NPZ


def _can_write(folder: Path) -> bool:
    try:
        paths.try_writing(folder)
    except OSError:
        return False
    return True
