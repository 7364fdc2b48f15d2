"""CUB-200-2011 and Stanford Dogs, the paper's fine-grained images: fetched, verified, laid out.

The official archives become folders ``train/`` and ``test/`` with a folder for each class, after
the official split; boxes and parts are not used. From then on they are images of one's own.

Sizes and SHA-256 of the archives are those that TensorFlow Datasets has recorded:
https://github.com/tensorflow/datasets, ``tensorflow_datasets/url_checksums/caltech_birds2011.txt``
and ``stanford_dogs.txt``.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csd_lib import InputError, checks, paths
from csd_lib.archive import Archive, members
from csd_lib.files import damaged, make_folder, only_one, parsing, write_atomically

MAX_UNPACKED = 4_000_000_000  # bytes of one archive; the larger one holds 1.2 GB
# A folder and a file in it, neither hidden: no way out of where it is put.
_PLACE = re.compile(r"(\w[\w.' -]*)/(\w[\w.' -]*\.jpg)", re.ASCII)


@dataclass(frozen=True)
class FineGrained:
    """A data set: its archives, where images are in them, and how its lists are read."""

    title: str
    archives: tuple[Archive, ...]
    images: str  # folder of the images in an archive
    lists: tuple[str, ...]  # other members that are read
    split: Callable[[Path, Mapping[str, bytes]], dict[str, str]]  # of each image: train or test
    counts: dict[str, int]  # of images, by part
    classes: int


def _cub_split(path: Path, lists: Mapping[str, bytes]) -> dict[str, str]:
    """Read ``images.txt`` (number, place) and ``train_test_split.txt`` (number, 1 for training)."""
    tables = []
    for content in lists.values():
        with parsing(path, ValueError):  # a line of another number of words, or no ASCII
            tables.append(dict(line.split() for line in content.decode("ascii").splitlines()))
    places, parts = tables
    if places.keys() != parts.keys() or not {*parts.values()} <= {"0", "1"}:
        raise damaged(path, "its list of images and its split do not belong together")
    return {place: "train" if parts[number] == "1" else "test" for number, place in places.items()}


def _dogs_split(path: Path, lists: Mapping[str, bytes]) -> dict[str, str]:
    """Read ``train_list.mat`` and ``test_list.mat``: MATLAB files with the places of images."""
    from scipy.io import loadmat

    found: dict[str, str] = {}
    for name, content in lists.items():
        part = "train" if name.startswith("train") else "test"
        try:
            places = loadmat(io.BytesIO(content), variable_names=["file_list"])["file_list"]
            texts = [str(np.asarray(place).item()) for place in places.flatten()]
        except Exception as error:  # scipy's reader has no list of what it raises
            raise damaged(path, f"its {name} holds no file_list ({error})") from error
        if found.keys() & {*texts}:
            raise damaged(path, "an image is both for training and for testing")
        found |= dict.fromkeys(texts, part)
    return found


FINE_GRAINED = {
    "cub200": FineGrained(
        "CUB-200-2011",
        (
            Archive(
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                1_150_585_339,
                "0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
            ),
        ),
        "CUB_200_2011/images/",
        ("CUB_200_2011/images.txt", "CUB_200_2011/train_test_split.txt"),
        _cub_split,
        {"train": 5994, "test": 5794},
        200,
    ),
    "dogs": FineGrained(
        "Stanford Dogs",
        (
            Archive(
                "http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar",
                481_280,
                "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
            ),
            Archive(
                "http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar",
                793_579_520,
                "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
            ),
        ),
        "Images/",
        ("train_list.mat", "test_list.mat"),
        _dogs_split,
        {"train": 12_000, "test": 8580},
        120,
    ),
}


def fetch_fine_grained(name: str) -> Path:
    """Return the folder with ``train/`` and ``test/``; if it is missing, make it.

    Its archives may be in ``data/<name>/``, in ``$CSD_DATA`` or at ``$CSD_MIRRORS``; else they are
    fetched from where their makers publish them, and kept in ``data/<name>/``. InputError if one
    cannot be had or is not the official one, or nothing can be written.
    """
    spec, home = FINE_GRAINED[name], paths.data_folder() / name
    ready = home / "images"
    if ready.exists():  # it is put in place as a whole
        return ready
    with only_one(make_folder(home), f"fetching {spec.title}"):
        if ready.exists():
            return ready
        given = [a.fetch(f"{spec.title}, {a.name}", _folders(home)) for a in spec.archives]
        shutil.rmtree(home / "images.partial", ignore_errors=True)  # of one that was killed
        print(f"writing {ready}", flush=True)
        write_atomically(ready, lambda partial: _lay_out(spec, given, partial))
    return ready


def check_fine_grained(name: str) -> list[str]:
    """Say what is there, without fetching anything.

    InputError if an archive is not the official one, or images are missing.
    """
    spec, home = FINE_GRAINED[name], paths.data_folder() / name
    lines = []
    for archive in spec.archives:
        for path in archive.check(_folders(home), f"csd data {name}"):
            lines.append(f"{path}: the official archive")
    if not (home / "images").exists():
        raise InputError(f"{home / 'images'} does not exist yet: csd data {name} makes it")
    for part, count in spec.counts.items():
        found = sum(1 for _ in (home / "images" / part).glob("*/*.jpg"))
        if found != count:
            raise InputError(
                f"{home / 'images' / part} has {found} images instead of {count}: delete "
                f"{home / 'images'}, and run csd data {name}"
            )
        lines.append(f"{home / 'images' / part}: {count:,} images of {spec.classes} classes")
    return lines


def _folders(home: Path) -> list[Path]:
    return [Path(paths.variable("CSD_DATA") or home), home]


def _lay_out(spec: FineGrained, archives: list[Path], into: Path) -> None:
    """Write every listed image to ``train/CLASS/`` or ``test/CLASS/``."""
    lists: dict[str, bytes] = {}
    for path in archives:
        lists |= dict(members(path, MAX_UNPACKED, spec.lists.__contains__))
    if missing := [name for name in spec.lists if name not in lists]:
        raise damaged(archives[0], f"it lacks {missing[0]}")
    parts = spec.split(archives[0], {name: lists[name] for name in spec.lists})
    for place in parts:
        if not _PLACE.fullmatch(place):
            raise damaged(
                archives[0], f"its list names {checks.shown(place)}, no place of an image"
            )
    images, written = archives[-1], set()
    wanted = {spec.images + place for place in parts}
    for name, content in members(images, MAX_UNPACKED, wanted.__contains__):
        place = name.removeprefix(spec.images)
        path = into / parts[place] / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.add(place)
    found = {part: sum(parts[place] == part for place in written) for part in spec.counts}
    classes = len({place.split("/")[0] for place in written})
    if found != spec.counts or classes != spec.classes:
        raise damaged(
            images,
            f"it holds {found} images of {classes} classes, expected {spec.counts} of "
            f"{spec.classes}",
        )
