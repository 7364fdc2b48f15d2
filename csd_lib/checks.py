"""What functions ask of their arguments: a mistake becomes one line with the value and the remedy.

That line is an ``InputError``, which whatever here refuses something raises.

Checks look at types, shapes, dtypes and devices, which costs microseconds and never makes the host
wait for a GPU. The few that read values say so.
"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields
from difflib import get_close_matches
from pathlib import Path
from reprlib import Repr
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csd_lib import InputError
from csd_lib.stored import StoredImages

MAX_EPOCHS = 100_000  # as all limits: far beyond what makes sense, and far below what never ends
MAX_SEED = 2**32 - 1  # what numpy, scikit-learn and torch all take
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_short = Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist = _short.maxtuple = _short.maxset = 12


def shown(value: Any) -> str:
    """Write a value in one short line: tensors and arrays by dtype and shape."""
    if isinstance(value, Tensor | np.ndarray | StoredImages):
        device = getattr(value, "device", "cpu")
        where = "" if str(device) == "cpu" else f" on {device}"
        return f"{value.dtype} with shape {tuple(value.shape)}{where}"
    return " ".join(_short.repr(value).split())[:160]


def first_line(error: object, most: int) -> str:
    """Return the first line of what an error says or, if it says nothing, its kind."""
    words = next(iter(str(error).splitlines()), "") or type(error).__name__
    return words[:most]


# --- plain values ----------------------------------------------------------------------------


def whole(
    name: str, value: Any, minimum: int = 0, maximum: int | None = None, why: str = ""
) -> None:
    """Refuse what is not a whole number from ``minimum`` to ``maximum``; True is no number."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < minimum or (maximum is not None and value > maximum):
        limits = f"from {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        because = f"{why}, so " if why else ""
        raise InputError(f"{name}={shown(value)}: {because}choose a whole number {limits}")


def seed(name: str, value: Any) -> None:
    """Refuse what is no whole number that seeds every generator: from 0 to ``MAX_SEED``."""
    whole(name, value, 0, MAX_SEED)


def epochs(name: str, value: Any) -> None:
    """Refuse what is no number of epochs: from 1 to ``MAX_EPOCHS``."""
    whole(name, value, 1, MAX_EPOCHS)


def first_classes(value: Any, tasks: int, classes: int) -> None:
    """Refuse a number of classes of the first task that leaves a later task without one."""
    if value is not None and tasks > 1:
        whole("first_classes", value, 1, classes - tasks + 1, "every later task needs a class")


def depth(name: str, value: Any) -> None:
    """Refuse what is no number of layers of a ResNet for small images: 6n + 2."""
    whole(name, value, 8, 1202, "a ResNet here has 6n + 2 layers")
    if value % 6 != 2:
        raise InputError(f"{name}={value}: a ResNet here has 6n + 2 layers: 8, 14, 20, 26, 32")


def milestones(name: str, value: Any) -> None:
    """Refuse what are neither fractions of a schedule nor epochs of it."""
    if isinstance(value, list | tuple) and {type(m) for m in value} <= {int, float}:
        fractions = all(0 < m < 1 for m in value)
        epochs = all(1 <= m <= MAX_EPOCHS and m == int(m) for m in value)
        if (fractions or epochs) and list(value) == sorted(set(value)):
            return
    raise InputError(
        f"{name}={shown(value)}: give rising fractions between 0 and 1, or rising whole epochs"
    )


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuse what is not a finite number within limits; True is no number."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if (
        (not is_number or isinstance(value, bool) or not -math.inf < value < math.inf)
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        limits = {"above": above, "from": at_least, "up to": at_most}
        words = [f"{word} {limit:g}" for word, limit in limits.items() if limit is not None]
        raise InputError(f"{name}={shown(value)}: choose {' '.join(['a finite number', *words])}")


def flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}: choose True or False")


def automatic(name: str, value: Any) -> None:
    """Refuse what is neither auto, true nor false."""
    is_known = isinstance(value, str) and value in ("auto", "true", "false")
    if not isinstance(value, bool) and not is_known:
        raise InputError(f"{name}={shown(value)}: choose auto, true or false")


def one_of(name: str, value: Any, choices: Iterable[str], where: str = "") -> None:
    """Refuse what is none of several names; ``where`` says where they are the only ones."""
    if not isinstance(value, str) or value not in (choices := tuple(choices)):
        raise InputError(f"{name}={shown(value)}: choose one of {', '.join(choices)}{where}")


def instance(name: str, value: Any, kind: Any, what: str) -> None:
    """Refuse what is not of a kind, as of ``isinstance``; ``what`` says in words what is wanted."""
    if not isinstance(value, kind):
        raise InputError(f"{name}={shown(value)}: give {what}")


def path(name: str, value: Any, what: str) -> None:
    """Refuse what no file could be called; whether there is one of that name does not matter."""
    instance(name, value, (str, Path), what)
    try:
        os.stat(value)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass
    except (OSError, ValueError) as error:  # too long, or with a null character
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{name}={shown(value)} cannot be a path ({why}): give {what}") from None


def sequence(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Refuse what is not a sequence of one or more values of a type."""
    is_sequence = isinstance(value, Sequence) and len(value) > 0
    if not is_sequence or not all(isinstance(part, kind) for part in value):
        raise InputError(f"{name}={shown(value)}: give {what}")


def names(name: str, value: Any, count: int, more: bool = True) -> None:
    """Refuse what is not at least ``count`` texts; without ``more``, exactly so many."""
    sequence(name, value, str, "a list of texts")
    if len(value) < count or (len(value) > count and not more):
        raise InputError(f"{name}={shown(value)}: give {count} texts, one for each")


def mapping(name: str, value: Any, what: str) -> None:
    """Refuse what is not a dictionary with one or more names, none of them empty."""
    is_mapping = isinstance(value, dict) and len(value) > 0
    if not is_mapping or not all(isinstance(key, str) and key for key in value):
        raise InputError(f"{name}={shown(value)}: give {what}")


def text(name: str, value: Any) -> None:
    """Refuse what is no text."""
    instance(name, value, str, "a text")


# --- packages --------------------------------------------------------------------------------


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Let an import of an optional package, if it fails, name the extra that brings it, if any."""
    try:
        yield
    except ImportError as error:
        if str(error.name).startswith("csd_lib"):
            raise
        remedy = f"'csd-lib[{extra}]'" if extra else error.name
        raise InputError(f"{error}: pip install {remedy}") from error


# --- settings --------------------------------------------------------------------------------


def setting(
    default: Any,
    check: Callable[..., Any],
    *limits: Any,
    optional: bool = False,
    decides: str = "run",
    **more_limits: Any,
) -> Any:
    """Declare a field of a dataclass of settings, with its limits and with what it decides.

    Args:
        default: of the field; None stands for one that depends on other fields.
        check: one of this module's functions, called as ``check(name, value, *limits)``.
        limits: positional and by name, for the check.
        optional: whether None may remain.
        decides: "run", the whole run; "later", only tasks after the first; "data", what goes in,
            which the hash of the data says; "machine", only where and how fast a result is
            computed.

    The field's metadata has ``check``, to be called with name and value, and what was declared:
    ``kind`` (the check given here), ``limits`` (by name), ``optional`` and ``decides``. So tests
    need not be told the limits of a new setting.
    """
    declared = inspect.signature(check).bind("name", default, *limits, **more_limits).arguments

    def checked(name: str, value: Any) -> None:
        if not (optional and value is None):
            check(name, value, *limits, **more_limits)

    about = {"check": checked, "kind": check, "limits": dict([*declared.items()][2:])}
    return field(default=default, metadata=about | {"optional": optional, "decides": decides})


def check_settings(settings: Any) -> None:
    """Check every field that was declared with ``setting``; numpy's numbers become plain ones."""
    for part in fields(settings):
        value = getattr(settings, part.name)
        if isinstance(value, np.generic):  # it could not be stored with the result
            value = value.item()
        part.metadata["check"](part.name, value)
        if part.type.startswith("float") and value is not None:
            value = float(value)  # 1 and 1.0 are one run
        object.__setattr__(settings, part.name, value)


def setting_names(settings: type, names: Iterable[str], where: str = "") -> None:
    """Refuse a name that is no field of a dataclass, and say which one was probably meant."""
    known = [part.name for part in fields(settings)]
    for name in names:
        if name not in known:
            meant = get_close_matches(name, known, n=1)
            hint = f"did you mean {meant[0]}?" if meant else f"help({settings.__name__}) lists them"
            raise InputError(f"{where}unknown setting {shown(name)}: {hint}")


# --- arrays ----------------------------------------------------------------------------------


def table(name: str, value: Any, ndim: int = 2) -> np.ndarray:
    """Return one or more real numbers as a float64 array of ``ndim`` axes; NaN is allowed."""
    try:
        if isinstance(value, Tensor):
            array = value.detach().cpu().double().numpy()
            is_real = not value.is_complex()
        else:
            array = np.asarray(value)
            is_real = array.dtype.kind in "biuf"
    except (ValueError, TypeError, RuntimeError, OverflowError):  # ragged lists, meta tensors, ...
        is_real = False
    if not is_real or array.ndim != ndim or array.size == 0:
        letters = ", ".join("NMKL"[:ndim])
        raise InputError(f"{name}={shown(value)}: give numbers of shape [{letters}], at least one")
    return array.astype(float)


def tables(**values: Any) -> tuple[int, ...]:
    """Return the shape that several matrices, given by name, have in common."""
    shapes = sorted({table(name, value).shape for name, value in values.items()})
    if len(shapes) > 1:
        *others, last = values
        raise InputError(
            f"{', '.join(others)} and {last} have shapes {', '.join(map(str, shapes))}: give "
            f"matrices of one shape"
        )
    return shapes[0]


def square(name: str, value: Any, size: int | None = None) -> np.ndarray:
    """Return a matrix with as many rows as columns, ``size`` if given, as a float64 array."""
    array = table(name, value)
    rows = len(array) if size is None else size
    if array.shape != (rows, rows):
        raise InputError(f"{name} has shape {array.shape}: give ({rows}, {rows})")
    return array


def points(name: str, value: Any) -> np.ndarray:
    """Return finite positions in the plane as a float64 array ``[N, 2]``. Reads values."""
    array = table(name, value)
    if array.shape[1] != 2 or not np.isfinite(array).all():
        raise InputError(f"{name}={shown(value)}: give finite positions [N, 2]")
    return array


def loss_term(title: str, value: Any, learned: bool) -> None:
    """Refuse what is not a tensor of one number, and warn of one from which nothing is learned."""
    name = f"the loss term {title!r}"
    if not isinstance(value, Tensor) or value.ndim:
        raise InputError(f"{name} is {shown(value)}: return a scalar tensor, such as a mean")
    if learned and not value.requires_grad:
        warnings.warn(f"{name} has no gradient, so nothing is learned from it", stacklevel=4)


def matrix(name: str, value: Any) -> None:
    """Refuse what is not a float tensor ``[N, D]`` with at least one row and column."""
    if (
        (not isinstance(value, Tensor) or value.dtype not in _FLOATS)
        or (value.ndim != 2 or 0 in value.shape)
        or value.layout != torch.strided
    ):
        raise InputError(f"{name} are {shown(value)}, {_expected(value)}float [N > 0, D > 0]")


def permutation(name: str, value: Any, count: int) -> None:
    """Refuse what does not have each whole number from 0 to ``count - 1`` once."""
    wanted = f"each class id 0..{count - 1} once"
    sequence(name, value, int, wanted)
    if sorted(value) != list(range(count)):
        raise InputError(f"{name}={shown(tuple(value))}: give {wanted}")


def labels(name: str, value: Any, count: int) -> None:
    """Refuse what is not a tensor of one whole number for each of ``count`` images."""
    is_labels = isinstance(value, Tensor) and value.dtype in _WHOLE and not value.is_meta
    if not is_labels or value.shape != (count,):
        raise InputError(
            f"{name} are {shown(value)}, {_expected(value)}one whole number for each of the "
            f"{count} images"
        )


def finite(name: str, value: Any, because: str = "the network that made them is broken") -> None:
    """Refuse rows, or images, with NaN or infinite values ``because`` of this. Reads values."""
    if not value.dtype.is_floating_point:
        return
    if value.is_meta:
        raise InputError(f"{name} are {shown(value)}, a device that holds no values: use another")
    broken = int((~torch.isfinite(value)).flatten(1).any(dim=1).sum())
    if broken:
        raise InputError(
            f"{broken} of {len(value)} {name} contain NaN or infinite values: {because}"
        )


def pair(old: Any, new: Any) -> None:
    """Refuse what are not finite features of the same images from two networks. Reads values."""
    for name, value in {"old features": old, "new features": new}.items():
        matrix(name, value)
    if old.shape != new.shape or old.device != new.device:
        raise InputError(
            f"old features are {shown(old)} and new features are {shown(new)}: they must be of the "
            f"same images, both of one shape and on one device"
        )
    finite("old features", old)
    finite("new features", new)


def find_themselves(queries: Tensor, gallery: Tensor, same_images: bool) -> None:
    """Warn if most queries are in the gallery and are not left out of it."""
    mine, theirs = (features.detach().cpu().double() for features in (queries, gallery))
    known = {row.tobytes() for row in theirs.numpy()}
    # At its own place an image is known even from features of another precision.
    count = min(len(mine), len(theirs))
    in_place = nn.functional.cosine_similarity(mine[:count], theirs[:count]) > 1 - 1e-5
    found = torch.tensor([row.tobytes() in known for row in mine.numpy()])
    found[:count] |= in_place
    if 2 * int(found.sum()) <= len(mine):  # images given twice are few
        return
    if not same_images:
        remedy = "same_images=True leaves them out"
    elif 2 * int(in_place.sum()) <= len(mine):
        remedy = "same_images=True is for one that begins with them"
    else:
        return
    warnings.warn(f"most queries find themselves in the gallery: {remedy}", stacklevel=3)


def search(queries: Any, gallery: Any, same_images: Any) -> None:
    """Refuse features that are not finite or not of one length. Reads values.

    With ``same_images`` also a gallery that is too small to begin with the images of the queries.
    """
    flag("same_images", same_images)
    parts = {"queries": queries} if gallery is queries else {"queries": queries, "gallery": gallery}
    for name, features in parts.items():
        matrix(name, features)
    if same_images and len(queries) > len(gallery):
        raise InputError(
            f"same_images=True: the gallery has {len(gallery)} images and must begin with those "
            f"of all {len(queries)} queries"
        )
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(
            f"queries have {queries.shape[1]} dimensions, the gallery has {gallery.shape[1]}: "
            f"embed both with the same model, or with models of one feature size"
        )
    for name, features in parts.items():
        finite(name, features)


def searched_labels(
    queries: Tensor, query_labels: Any, gallery: Tensor, gallery_labels: Any, same_images: bool
) -> None:
    """Refuse labels that do not belong to these features. Reads values.

    With ``same_images`` also those of a gallery that do not begin with those of the queries.
    """
    labels("the labels of the queries", query_labels, len(queries))
    labels("the labels of the gallery", gallery_labels, len(gallery))
    if gallery_labels is query_labels:  # a GPU is not asked for what cannot be otherwise
        return
    if same_images and (query_labels.cpu() != gallery_labels[: len(queries)].cpu()).any():
        raise InputError(
            "same_images=True: the gallery's labels must begin with those of the queries"
        )


def batch(labels: Any = ..., *, temperature: Any = 1.0, margin: Any = 0.0, **matrices: Any) -> None:
    """Refuse what a loss cannot be computed for. Every loss begins with this.

    Args:
        labels: int64 ``[B]``, on the device of the matrices; left out if the loss has none.
        temperature: a number from 0.001 to 1000.
        margin: a number from 0 to 100.
        matrices: by name; float ``[B, D]``, all of one shape, dtype and device.
    """
    (first_name, first), *rest = matrices.items()
    matrix(first_name, first)
    for name, value in rest:
        matrix(name, value)
        if (value.shape, value.device, value.dtype) != (first.shape, first.device, first.dtype):
            raise InputError(
                f"{first_name} are {shown(first)} and {name} are {shown(value)}: both must have "
                f"one shape, dtype and device"
            )
    if labels is not ... and (
        (not isinstance(labels, Tensor) or labels.dtype != torch.int64)
        or labels.shape != first.shape[:1]
        or labels.device != first.device
    ):
        raise InputError(
            f"labels are {shown(labels)}, {_expected(labels)}int64 [{len(first)}] on "
            f"{first.device}, one for each row"
        )
    number("temperature", temperature, at_least=0.001, at_most=1000)
    number("margin", margin, at_least=0, at_most=100)


def class_logits(logits: Any, labels: Any) -> None:
    """Refuse labels of logits ``[B, C]`` that are not int64 ``[B]`` from 0 to C - 1, their columns.

    It reads values only on a CPU, where that is free.
    """
    batch(labels, logits=logits)
    if labels.device.type == "cpu":
        low, high = labels.numpy().min(), labels.numpy().max()
        if low < 0 or high >= logits.shape[1]:
            wrong = low if low < 0 else high
            raise InputError(
                f"labels contain {wrong}, but logits have {logits.shape[1]} columns: labels are "
                f"the numbers of columns, from 0"
            )


def old_logits(student: Any, teacher: Any, temperature: Any) -> None:
    """Refuse what cannot be distilled: the teacher knows a first part of the student's classes."""
    matrix("student_logits", student)
    matrix("teacher_logits", teacher)
    if (
        (len(student), student.device, student.dtype)
        != (len(teacher), teacher.device, teacher.dtype)
    ) or teacher.shape[1] > student.shape[1]:
        raise InputError(
            f"student_logits are {shown(student)} and teacher_logits are {shown(teacher)}: give "
            f"as many rows, no more columns than the student has, and one dtype and device"
        )
    number("temperature", temperature, at_least=0.001, at_most=1000)


def channels(mean: Any, std: Any, count: int) -> None:
    """Refuse what are not a mean and a standard deviation for each of ``count`` channels."""
    for name, value in {"mean": mean, "std": std}.items():
        sequence(name, value, (int, float), "one number per channel")
        for part in value:
            number(name, part, above=0 if name == "std" else None)
        if len(value) != count:
            raise InputError(f"{name}={shown(value)}: give {count} numbers, one per channel")


def generator(name: str, value: Any, device: torch.device) -> None:
    """Refuse what is neither None nor a source of randomness on a device."""
    if value is not None:
        instance(name, value, torch.Generator, "None or a torch.Generator")
        if value.device.type != device.type:
            raise InputError(f"{name} is on {value.device}: make one on {device}")


def images(name: str, value: Any, like: Tensor | None = None) -> None:
    """Refuse what is no batch of images, uint8 or float32 ``[N, C, H, W]``.

    With ``like``, a tensor ``[1, C, 1, 1]``, also those of other channels or on another device.
    """
    if (
        not isinstance(value, Tensor | StoredImages)
        or value.dtype not in (torch.uint8, torch.float32)
        or value.ndim != 4
        or 0 in value.shape
        or (value.is_meta and like is None)
    ):
        raise InputError(
            f"{name} are {shown(value)}, {_expected(value)}uint8 or float32 [N > 0, C, H, W]"
        )
    if like is not None and (value.shape[1], value.device) != (like.shape[1], like.device):
        raise InputError(
            f"{name} are {shown(value)}, but this network has {like.shape[1]} input channels and "
            f"is on {like.device}"
        )


def dataset(value: Any) -> None:
    """Refuse the parts of a ``Dataset`` that do not go together. Reads values."""
    text("name", value.name)
    instance("class_names", value.class_names, (list, tuple), "one name per class")
    names("class_names", value.class_names, 1)
    for part in ("train", "test"):
        pixels, ids = getattr(value, f"{part}_images"), getattr(value, f"{part}_labels")
        images(f"{part}_images", pixels)
        if pixels.dtype != torch.uint8 and tuple(pixels.shape[2:]) != (1, 1):
            raise InputError(
                f"{part}_images are {shown(pixels)}: give images as uint8 from 0 to 255, and "
                f"features as float32 [N, D, 1, 1]"
            )
        finite(f"{part}_images", pixels, "correct them, or leave them out")
        labels(f"{part}_labels", ids, len(pixels))
        if ids.min() < 0 or ids.max() >= len(value.class_names):
            raise InputError(
                f"{part}_labels are from {ids.min()} to {ids.max()}, but there are only "
                f"{len(value.class_names)} class_names: labels count from 0"
            )
    if value.train_images.shape[1:] != value.test_images.shape[1:]:
        raise InputError(
            f"train_images are {shown(value.train_images)} and test_images are "
            f"{shown(value.test_images)}: all images must have one size"
        )
    channels(value.mean, value.std, value.train_images.shape[1])


class Declared:
    """The settings that a loss term names; it can read no others, which would not be recorded."""

    def __init__(self, term: str, settings: Any, names: tuple[str, ...]):
        self._term, self._settings, self._names = term, settings, names

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise InputError(
                f"the loss term {self._term!r} reads the setting {name}: name it in "
                f"Term(..., settings=({name!r},)), so that it is recorded with each run"
            )
        return getattr(self._settings, name)


def _expected(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return "expected a tensor (torch.from_numpy makes it): "
    return "expected " if isinstance(value, Tensor) else "expected a tensor: "
