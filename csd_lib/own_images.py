"""Images of one's own: a folder with a folder for each class, or one ``.npz`` file.

Nothing here depends on where the folder lies: images are known by the hash of their pixels. So a
folder that is moved is the same data set, and one whose files are renamed, as long as their order
within each class stays.

A folder is decoded once. The pixels are then kept under ``data/own/``, where a memory map reads
them: a data set may be larger than the memory of the computer.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csd_lib import InputError, checks, paths
from csd_lib.data import Dataset
from csd_lib.files import (
    make_folder,
    only_one,
    parsing,
    read_arrays,
    write_arrays,
    write_atomically,
)
from csd_lib.stored import StoredImages

PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
TEST_SHARE = 0.2  # of each class, where the images come without a split
SPLIT_SEED = 0  # another one would be another split of the same images, for everybody
MAX_IN_MEMORY = 256_000_000  # bytes of pixels; more than that stays in its file
MAX_UNPACKED = 1_000_000_000  # bytes of an .npz file in memory; CIFAR-100 has 185 MB
MAX_SIDE = 4096  # pixels
AT_ONCE = 256  # images that are measured together
FORMAT = 1  # of what is kept under data/own/; a change makes everybody's anew


@dataclass(frozen=True)
class Part:
    """The training or the test images: rows of an array, which may be in a file."""

    pixels: np.ndarray  # uint8 [M, H, W, C]; features made elsewhere: float32 [M, D, 1, 1]
    rows: np.ndarray  # int64 [N]
    labels: np.ndarray  # int64 [N]
    hashes: np.ndarray  # of each image's values: text [N]
    files: np.ndarray  # what to call each image: text [N]
    sums: np.ndarray  # of each image's values and their squares: int64 [N, 2, C]; features: zeros

    def divided(self, is_test: np.ndarray) -> Iterator[Part]:
        """Yield its training and its test images, by a mask, bool ``[N]``."""
        of = (self.rows, self.labels, self.hashes, self.files, self.sums)
        for chosen in (~is_test, is_test):
            yield Part(self.pixels, *(values[chosen] for values in of))


@dataclass(frozen=True)
class OwnImages:
    """What was found in a folder or file, with all that a check reports."""

    name: str
    class_names: tuple[str, ...]
    train: Part
    test: Part
    mean: tuple[float, ...]  # of the training images, for pixel values in [0, 1]
    std: tuple[float, ...]

    def dataset(self) -> Dataset:
        """Return it as a data set; pixels beyond ``MAX_IN_MEMORY`` stay in their file."""
        size = sum(part.pixels[:1].nbytes * len(part.rows) for part in (self.train, self.test))
        in_memory = size <= MAX_IN_MEMORY or self.train.pixels.dtype != np.uint8
        return Dataset(
            self.name,
            _images(self.train, in_memory),
            torch.from_numpy(self.train.labels),
            _images(self.test, in_memory),
            torch.from_numpy(self.test.labels),
            self.class_names,
            self.mean,
            self.std,
        )

    def duplicates(self) -> list[tuple[str, str]]:
        """Return each test image that is also a training image, with the first of those."""
        first = dict(
            zip(self.train.hashes[::-1].tolist(), self.train.files[::-1].tolist(), strict=True)
        )
        return [
            (str(file), first[digest])
            for digest, file in zip(self.test.hashes.tolist(), self.test.files, strict=True)
            if digest in first
        ]


def load_own_images(path: str | Path, image_size: int | None = None) -> Dataset:
    """Load images of one's own as a data set; see ``find_own_images``.

    A warning names test images that are training images too.
    """
    found = find_own_images(path, image_size)
    if pairs := found.duplicates():
        test, train = pairs[0]
        warnings.warn(
            f"{len(pairs)} test images of {found.name} are also training images, such as {test}, "
            f"which is {train}: 'csd data {path}' lists them",
            stacklevel=2,
        )
    return found.dataset()


def find_own_images(path: str | Path, image_size: int | None = None) -> OwnImages:
    """Read a folder of images, or an ``.npz`` file, and measure its statistics.

    A folder has a folder for each class, or ``train/`` and ``test/`` with one for each class in
    both. Classes are in the order of their names. Without ``train/`` and ``test/``, a fifth of each
    class, at least two images, are for testing; equal images of a class are on the same side.

    An ``.npz`` has ``train_images`` uint8 ``[N, H, W, C]`` or ``[N, H, W]``, ``train_labels`` int
    ``[N]`` from 0, ``test_images`` and ``test_labels``; or ``images`` and ``labels``, which are
    split as a folder is; and ``class_names``, if they have any. ``features`` float ``[N, D]`` in
    the place of ``images`` were made elsewhere: each dimension is shifted and scaled so that the
    training part has mean 0 and standard deviation 1.

    Args:
        path: the folder or the file.
        image_size: scale each image of a folder until its shorter side has so many pixels, and cut
            out the square in its middle. None: they must all have one size.

    Raises:
        InputError: if there are too few images or classes, files that are no images (they are
            named), images of several sizes, or arrays of wrong shapes.
    """
    checks.path("path", path, "a folder of images, or an .npz file")
    if image_size is not None:
        checks.whole("image_size", image_size, 1, MAX_SIDE)
    path = Path(path)
    if path.suffix == ".npz" and not path.is_dir():
        return _from_arrays(path, image_size)
    if not path.is_dir():
        raise InputError(f"{path} does not exist: give a folder with a folder for each class")
    return _from_folder(path, image_size)


def describe(found: OwnImages) -> str:
    """Say in a few lines what there is: its ``outline``, statistics, and which images are twice."""
    lines, pairs = outline(found.dataset()), found.duplicates()
    if len(found.mean) <= 4:
        mean, std = (" ".join(f"{v:.4f}" for v in values) for values in (found.mean, found.std))
        lines.append(f"mean of the training images: {mean}; standard deviation: {std}")
    lines.append(f"test images that are training images too: {len(pairs)}")
    lines += [f"  {test} is {train}" for test, train in pairs[:20]]
    lines += [f"  and {len(pairs) - 20} more"] if len(pairs) > 20 else []
    return "\n".join(lines)


def outline(dataset: Dataset) -> list[str]:
    """Say in a few lines what any data set is: how many images, and how large."""
    channels, *size = dataset.train_images.shape[1:]
    is_made = dataset.train_images.dtype != torch.uint8
    what = f"{channels} features" if is_made else " x ".join(map(str, (*size, channels)))
    names = dataset.class_names
    lines = [
        f"{dataset.name}: {len(dataset.train_labels):,} training and "
        f"{len(dataset.test_labels):,} test images of {len(names)} classes, each {what}"
    ]
    for title, labels in {"training": dataset.train_labels, "test": dataset.test_labels}.items():
        counts = np.bincount(labels, minlength=len(names))
        low, high = int(counts.argmin()), int(counts.argmax())
        least, most = (f"{counts[i]} ({names[i]})" for i in (low, high))
        numbers = f"{counts[low]}" if counts[low] == counts[high] else f"{least} to {most}"
        lines.append(f"{title} images a class: {numbers}")
        if few := [names[label] for label in np.flatnonzero(counts < 2)]:
            lines.append(f"  fewer than two: {_listed(few)}")
    return lines


# --- folders -------------------------------------------------------------------------------------


def _from_folder(path: Path, image_size: int | None) -> OwnImages:
    class_names, files, labels, given = _list(path)
    stats = [(name, (path / name).stat()) for name in files]
    # A copy may keep the time of a change, as rsync does; that of the inode cannot be set.
    listing = [(n, found.st_size, found.st_mtime_ns, found.st_ctime_ns) for n, found in stats]
    key = json.dumps([FORMAT, image_size, listing])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    name = path.resolve().name
    pixels, facts = _kept(path, f"{name}-{digest}", files, image_size)
    rows = np.arange(len(files))
    whole = Part(pixels, rows, labels, facts["hashes"], np.array(files), facts["sums"])
    train, test = _split(whole, class_names) if given is None else whole.divided(given)
    return _with_statistics(name, class_names, train, test)


def _list(path: Path) -> tuple[tuple[str, ...], list[str], np.ndarray, np.ndarray | None]:
    """Return class names, files relative to the folder, labels, and which are given for testing."""
    folders = _subfolders(path)
    has_parts = {"train", "test"} <= set(folders)
    parts = ["train", "test"] if has_parts else [""]
    for name in folders:  # a class may be called train, but holds images
        if not has_parts and name.lower() in PARTS and _subfolders(path / name):
            raise InputError(
                f"{path}/{name} holds folders, so it looks like a part and not like a class: the "
                "parts must be called train and test, and both must be there"
            )
    names = _subfolders(path / parts[0])
    for part in parts[1:]:
        if other := set(names) ^ set(_subfolders(path / part)):
            raise InputError(
                f"{path}: train/ and test/ must have the same classes, but only one of them has "
                f"{_listed(sorted(other))}"
            )
    files, labels, is_test = [], [], []
    for part in parts:
        for label, name in enumerate(names):
            # Not by the paths themselves: on Windows these ignore case, and order decides the hash.
            found = sorted(_images_in(path / part / name), key=lambda file: file.parts)
            if not found:
                raise InputError(f"{path / part / name} holds no image: remove it, or fill it")
            files += [file.relative_to(path).as_posix() for file in found]
            labels += [label] * len(found)
            is_test += [part == "test"] * len(found)
    if not names:
        raise InputError(f"{path} has no folders: give one folder of images for each class")
    split = np.array(is_test) if len(parts) > 1 else None
    return tuple(names), files, np.array(labels, dtype=np.int64), split


def _subfolders(path: Path) -> list[str]:
    with parsing(path):
        return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images_in(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            yield path


def _kept(
    path: Path, name: str, files: Sequence[str], image_size: int | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return pixels uint8 ``[N, H, W, C]`` in a memory map, with hashes and sums; decode once."""
    folder = make_folder(paths.data_folder() / "own")
    stored, index = folder / f"{name}.npy", folder / f"{name}.npz"
    with only_one(folder, f"reading images of {path.name}"):
        if not (index.exists() and stored.exists()):  # the index is written last
            write_atomically(stored, lambda to: _decode(path, files, image_size, to))
            hashes, sums = _measured(np.lib.format.open_memmap(stored, mode="r"))
            write_arrays(index, {"hashes": hashes, "sums": sums})
    with parsing(stored, ValueError):  # numpy: no header, or fewer bytes than it says
        pixels = np.lib.format.open_memmap(stored, mode="c")
    return pixels, read_arrays(index, MAX_UNPACKED)


def _decode(path: Path, files: Sequence[str], image_size: int | None, into: Path) -> None:
    """Write all pixels into an ``.npy`` file, an image at a time."""
    height, width, channels = _common_shape(path, files, image_size)
    shape = (len(files), height, width, channels)
    with into.open("wb") as file:
        header = dict(descr="|u1", fortran_order=False, shape=shape)
        np.lib.format.write_array_header_1_0(file, header)
        _of_each(path, files, lambda image: file.write(_pixels(image, channels, image_size).data))


def _common_shape(path: Path, files: Sequence[str], image_size: int | None) -> tuple[int, int, int]:
    """Return height, width and channels of all images, from their headers.

    Images are grey, with one channel, if all of them are.
    """
    sizes: dict[tuple[int, int], str] = {}
    is_grey = True
    for name, (size, mode) in zip(files, _of_each(path, files, _size_and_mode), strict=True):
        sizes.setdefault(size, name)
        is_grey = is_grey and mode in ("1", "L", "LA")
    if image_size is None and len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise InputError(
            f"{path} has images of {len(sizes)} sizes (height x width): {one} is "
            f"{first[0]} x {first[1]}, {other} is {second[0]} x {second[1]}: give an image size "
            f"(--image-size 64), to which all are scaled"
        )
    height, width = (image_size, image_size) if image_size else next(iter(sizes))
    if max(height, width) > MAX_SIDE:
        raise InputError(f"{path}: images of {height} x {width} are too large: give an image size")
    return height, width, 1 if is_grey else 3


def _of_each(path: Path, files: Sequence[str], read: Callable[[Path], Any]) -> list[Any]:
    """Return what is read of each file; those that are no images are named together."""
    found, broken = [], []
    for name in files:
        try:
            found.append(read(path / name))
        except InputError as error:
            broken.append(str(error))
    if broken:
        more = f", and {len(broken) - 10} more" if len(broken) > 10 else ""
        raise InputError(
            f"{path}: {len(broken)} files are no images that can be read: "
            f"{'; '.join(broken[:10])}{more}: remove or replace them"
        )
    return found


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open an image file, without decoding it yet.

    InputError if that, or what is done with it meanwhile, is impossible, or it claims to be huge.
    """
    with checks.needs_extra("images"):
        from PIL import Image
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file)
        with image:
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a pixel")
            yield image
    except Exception as error:  # what some of 40 parsers raise for bytes of another kind
        words = checks.first_line(error, 80)
        reason = "no known kind of image" if "cannot identify" in words else words
        raise InputError(f"{file.parent.name}/{file.name} ({reason})") from error


def _size_and_mode(file: Path) -> tuple[tuple[int, int], str]:
    """Return height and width of an image as it will be decoded, and Pillow's name of its kind."""
    with _opened(file) as image:
        # By a quarter, says the camera. Of a PNG this decodes the image.
        turned = image.getexif().get(0x0112, 1) >= 5
        return image.size if turned else image.size[::-1], image.mode


def _pixels(file: Path, channels: int, image_size: int | None) -> np.ndarray:
    """Decode an image to uint8 ``[H, W, C]``; of an animation, the first picture."""
    with checks.needs_extra("images"):
        from PIL import Image, ImageOps
    with _opened(file) as image:
        image = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).reshape(*image.size[::-1], -1))


# --- arrays --------------------------------------------------------------------------------------


def _from_arrays(path: Path, image_size: int | None) -> OwnImages:
    arrays = read_arrays(path, MAX_UNPACKED, leave_larger=MAX_IN_MEMORY // 4)
    kind = "features" if any(name.endswith("features") for name in arrays) else "images"
    is_split = f"train_{kind}" in arrays
    prefixes = ("train_", "test_") if is_split else ("",)
    parts = [_part(path, arrays, prefix, kind) for prefix in prefixes]
    if len({part.pixels.shape[1:] for part in parts}) > 1:
        raise InputError(f"{path}: training and test {kind} must have one size")
    size = parts[0].pixels.shape[1:3]
    if image_size is not None and (kind == "features" or size != (image_size, image_size)):
        raise InputError(
            f"{path}: image_size={image_size} is for folders: the {kind} of a file are taken as "
            f"they are"
        )
    classes = 1 + max(int(part.labels.max()) for part in parts)
    names = tuple(map(str, arrays.get("class_names", np.arange(classes)).reshape(-1)))
    if len(names) < classes:
        raise InputError(f"{path}: label {classes - 1} has no name in its {len(names)} class_names")
    train, test = parts if is_split else _split(parts[0], names)
    finish = _standardised if kind == "features" else _with_statistics
    return finish(path.stem, names, train, test)


def _part(path: Path, arrays: dict[str, np.ndarray], prefix: str, kind: str) -> Part:
    """Return what is in a file's arrays of images or features, and of labels."""
    for name in (f"{prefix}{kind}", f"{prefix}labels"):
        if name not in arrays:
            raise InputError(
                f"{path} has no array {name}, only {_listed(sorted(arrays))}: give images and "
                f"labels, or both for train_ and test_"
            )
    values, labels = arrays[f"{prefix}{kind}"], arrays[f"{prefix}labels"]
    if kind == "images" and values.ndim == 3:
        values = values[..., None]
    axes, wanted = (4, "uint8 [N, H, W, C]") if kind == "images" else (2, "float [N, D]")
    is_right = values.dtype == np.uint8 if kind == "images" else values.dtype.kind == "f"
    if not is_right or values.ndim != axes or values.size == 0:
        raise InputError(f"{path}: {prefix}{kind} is {checks.shown(values)}, expected {wanted}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(values),) or labels.min() < 0:
        raise InputError(
            f"{path}: {prefix}labels is {checks.shown(labels)}, expected whole numbers from 0, one "
            f"for each of the {len(values)} {kind}"
        )
    if kind == "features":
        values = values.astype(np.float32)[:, :, None, None]
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {prefix}{kind} contains NaN or infinite values")
    hashes, sums = _measured(values)
    files = np.array([f"{prefix}{kind}[{row}]" for row in range(len(values))])
    return Part(values, np.arange(len(values)), labels.astype(np.int64), hashes, files, sums)


def _measured(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each image's values, and the sums that statistics are made from."""
    hashes, sums = [], []
    for first in range(0, len(values), AT_ONCE):
        chunk = np.ascontiguousarray(values[first : first + AT_ONCE])
        hashes += [hashlib.sha256(image.data).hexdigest() for image in chunk]
        if chunk.dtype == np.uint8:
            wide = chunk.astype(np.int64)
            sums.append(np.stack([wide.sum(axis=(1, 2)), (wide * wide).sum(axis=(1, 2))], axis=1))
        else:
            sums.append(np.zeros((len(chunk), 1)))
    return np.array(hashes), np.concatenate(sums)


def _standardised(name: str, names: tuple[str, ...], train: Part, test: Part) -> OwnImages:
    values = train.pixels[train.rows].astype(np.float64)
    mean, std = values.mean(axis=0), values.std(axis=0)
    std[std <= 1e-6 * np.abs(values).max(axis=0)] = 1.0  # it is the same everywhere, and stays 0

    def scaled(part: Part) -> Part:
        values = ((part.pixels[part.rows] - mean) / std).astype(np.float32)
        return replace(part, pixels=values, rows=np.arange(len(values)))

    size = len(mean)
    return OwnImages(name, names, scaled(train), scaled(test), (0.0,) * size, (1.0,) * size)


# --- both ----------------------------------------------------------------------------------------


def _images(part: Part, in_memory: bool) -> Tensor | StoredImages:
    if part.pixels.dtype != np.uint8:
        return torch.from_numpy(part.pixels[part.rows])
    stored = StoredImages(torch.from_numpy(part.pixels), torch.from_numpy(part.rows))
    return stored[:] if in_memory else stored


def _split(whole: Part, names: tuple[str, ...]) -> Iterator[Part]:
    """Return training and test images of each class. Equal images are on the same side.

    Each image draws a number from its own pixels. So the order of the files does not
    count, and images that are added move few others.
    """
    labels, hashes = whole.labels, whole.hashes
    is_test = np.zeros(len(labels), dtype=bool)
    draws = [hashlib.sha256(f"{SPLIT_SEED}:{digest}".encode()).hexdigest() for digest in hashes]
    for label, name in enumerate(names):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: draws[row])
        count = max(2, round(TEST_SHARE * len(members)))
        while count < len(members) and draws[members[count]] == draws[members[count - 1]]:
            count += 1
        if len(members) - count < 2:
            raise InputError(
                f"class {name} has {len(members)} images, too few to train and to test with: give "
                f"at least 4 different ones, or folders train/ and test/"
            )
        is_test[members[:count]] = True
    return whole.divided(is_test)


def _with_statistics(name: str, names: tuple[str, ...], train: Part, test: Part) -> OwnImages:
    """Measure mean and standard deviation of each channel, for values in [0, 1]."""
    sums = train.sums
    count = len(sums) * train.pixels[0, ..., 0].size
    total, squares = sums.sum(axis=0)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 1.0)  # at least one grey level
    return OwnImages(
        name,
        names,
        train,
        test,
        tuple(round(float(value) / 255, 6) for value in mean),
        tuple(round(float(value) / 255, 6) for value in np.sqrt(variance)),
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
