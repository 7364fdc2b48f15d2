"""What a recipe computes, as a short fingerprint: the same as long as the code does the same.

A record must not be believed when the code that made it did something else, and must not be lost
because the code was only tidied up. So a run is not tied to the text of the code but to what the
code does: a tiny run with the run's own settings, on made-up images, from the split to the
measured matrices. All its numbers are rounded and hashed.

Of a loss term or a network from outside the kit also the instructions count, and those of what they
name: a number may change only on images that the tiny run has not.

It is computed in float64, in which other machines, numbers of threads and versions of torch agree
to many more digits than the five that count. That takes up to two seconds a recipe, and a ledger
has a hundred: commands keep them on disk, and other processes in memory, for one code only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csd_lib import InputError, TrainingError, identity, paths
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.methods import TERMS, Outputs, get_method
from csd_lib.networks import NETWORKS, RANDOM, make_network, maker
from csd_lib.retrieval import embed, retrieval_matrix
from csd_lib.train import learning_rate, train

DIGITS = 5  # significant ones of each number
KEPT_CODES = 20  # texts of the kit whose fingerprints stay in the cache
PARTS = "checks config data engine fingerprint losses methods model networks numerics prepare"
PARTS += " retrieval steps stored train watch"  # modules of the kit that decide a result
KNOWN = {"csd_lib", "numpy", "torch", "torchvision", *sys.stdlib_module_names} - {"__main__"}
SETTLED = 60  # seconds after which a process that starts now surely runs a file's newest text
CLASSES, TRAIN, TEST = 6, 8, 3  # images a class; the later task has all losses in play


def fingerprint(config: TrainConfig, channels: int, size: int) -> str:
    """Return 8 hexadecimal digits that tell what the code now computes for this recipe.

    Two runs of one recipe belong together if theirs are equal. The seed, the batch size, where it
    stops and the machine do not count: they change the run, not what is computed. The learning rate
    of each epoch counts, and with it how many there are. What only a GPU does is not seen.

    Of the images count their ``channels``, and as ``size`` height or width, whichever is smaller.
    """
    if _from_outside(config) or config.network not in NETWORKS:  # code that may change unseen
        return _fingerprint(config, channels, size)
    settings, recipe = identity.key(config, "seed", "batch_size"), get_method(config.method).recipe
    what = json.dumps([settings, recipe, channels, size])
    known, file = _known_to_commands() if _is_command() else (_known_to_this_code(), None)
    if what not in known:
        known[what] = _fingerprint(config, channels, size)
        if file:
            with suppress(OSError):  # a folder that is full, or belongs to others
                _write(known, file)
    return known[what]


def _fingerprint(config: TrainConfig, channels: int, size: int) -> str:
    tiny = replace(
        config,
        tasks=min(config.tasks, 2),
        epochs=2,
        later_epochs=None,
        first_classes=CLASSES // 2,  # as without it
        weights=RANDOM,  # others are data, and have a hash of their own
        init_from=None,  # the same
        stop_at_epoch=None,
        batch_size=12,
        learning_rate=1e-3,
        later_learning_rate=1e-3,
        select_every=1,
        seed=0,
        device="cpu",
        precision="fp32",
        cuda_graph="false",
    )
    learned = (0, 1) if config.learns_later() else (0,)
    epochs = [(t, epoch) for t in learned for epoch in range(config.schedule_length(t))]
    numbers = [learning_rate(config, *place) for place in epochs]
    network = make_network(tiny, (0.5,) * channels, (0.5,) * channels)
    dataset = _made_up_images(channels, min(size, max(16, network.smallest_image)))
    outside = _from_outside(config)
    try:
        with _one_thread_in_float64(), warnings.catch_warnings(action="ignore"):
            measured = _measured(tiny, dataset)
            if outside and not np.array_equal(measured, _measured(tiny, dataset), equal_nan=True):
                raise InputError(
                    f"{' or '.join(outside)} computes other numbers each time: take random ones "
                    f"from torch, which are seeded, and keep nothing from one batch to the next"
                )
            numbers += measured
    except TrainingError:  # the settings are such that even two epochs are too many
        numbers.append(math.nan)
    kinds = _types_under_autocast(tiny, dataset) if config.precision == "amp" else []
    text = " ".join([*map(_rounded, numbers), *kinds, *_instructions(outside.values())])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _is_command() -> bool:
    """Say whether this is the command line: no notebook, no script."""
    started = Path(getattr(sys.modules["__main__"], "__file__", None) or "-")
    return started.name == "csd" or started == Path(__file__).with_name("__main__.py")


def _from_outside(config: TrainConfig) -> dict[str, Any]:
    """Return the loss terms and the network that a user has written, by their names."""
    recipe = get_method(config.method).recipe.split("+")
    parts: dict[str, Any] = {f"loss term {name!r}": TERMS[name].compute for name in recipe}
    parts[f"network {config.network!r}"] = maker(str(config.network))
    return {name: part for name, part in parts.items() if is_from_outside(part)}


def is_from_outside(part: Any) -> bool:
    """Say whether a function or class is not the kit's own."""
    return _room(part) != "csd_lib"


def _instructions(parts: Collection[Any]) -> list[str]:
    """List the instructions and constants of functions and classes, and of all that they name.

    Comments and layout do not count. Python, the kit and installed packages are left out, but for
    packages that the parts themselves are from.
    """
    rooms, found, done = {_room(part) for part in parts}, [], set()
    todo = [*parts]
    for part in todo:  # grows
        if isinstance(part, int | float | str | bytes):
            found.append(repr(part))
        elif isinstance(part, tuple | list):
            todo += part
        elif isinstance(part, set | frozenset):  # it has another order in each process
            todo += sorted(part, key=repr)
        elif isinstance(part, dict):
            todo += part.items()
        if id(part) in done:
            continue
        done.add(id(part))
        if _room(part) not in rooms and _is_installed(_room(part)):
            found.append(getattr(part, "__qualname__", ""))
            continue
        if isinstance(part, FunctionType):
            codes = [part.__code__]
            for code in codes:  # grows by the functions inside
                found += [code.co_code.hex(), *code.co_names]
                codes += [value for value in code.co_consts if isinstance(value, CodeType)]
                todo += [value for value in code.co_consts if value != part.__doc__]
                todo += _named(part.__globals__, code.co_names)
            todo += [*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values()]
            with suppress(ValueError):  # a cell may be empty
                todo += [cell.cell_contents for cell in part.__closure__ or ()]
        elif isinstance(part, type):
            todo += part.__bases__
            kept = (FunctionType, staticmethod, classmethod)  # beside what Python adds to a class
            todo += [v for n, v in vars(part).items() if n[:2] != "__" or isinstance(v, kept)]
        elif isinstance(part, functools.partial):
            todo += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, staticmethod | classmethod | MethodType):
            todo.append(part.__func__)
        elif isinstance(part, property):
            todo.append(part.fget)
        elif callable(part):
            todo.append(type(part))
    return found


def _named(space: dict[str, Any], names: Collection[str]) -> Iterator[Any]:
    """Find what a function names: in its module, and in modules of the user's that it names."""
    for name in names:
        part = space.get(name)
        if not isinstance(part, ModuleType):
            yield part
        elif not _is_installed(part.__name__.split(".")[0]):
            yield from _named(vars(part), [other for other in names if other != name])


def _room(part: Any) -> str:
    """Return the package or module that something is from, or nothing."""
    return str(getattr(part, "__module__", "")).split(".")[0]


def _is_installed(room: str) -> bool:
    file = getattr(sys.modules.get(room), "__file__", None)
    return room in KNOWN or "site-packages" in Path(file or "").parts


@functools.cache
def _known_to_commands() -> tuple[dict[str, str], Path | None]:
    """Return the fingerprints that this text of the kit has had before, and the file of them.

    The file may go at any time, and there is none where it has no place.
    """
    known: dict[str, str] = {}
    folder, files = paths.cache_folder(), sorted(Path(__file__).parent.rglob("*.py"))
    is_settled = max(path.stat().st_mtime for path in files) < time.time() - SETTLED
    if not folder.is_absolute() or not is_settled:
        return known, None
    versions = f"{sys.version} {torch.__version__} {np.__version__}".encode()
    code = hashlib.sha256(b"\0".join([versions, *(path.read_bytes() for path in files)]))
    file = folder / "fingerprints" / f"{code.hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError):  # none yet, or half a file
        known.update(json.loads(file.read_text("utf-8")))
    return known, file


def _write(known: dict[str, str], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")  # several processes may write
    partial.write_text(json.dumps(known), "utf-8")
    partial.replace(file)
    newest_last = sorted(file.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in newest_last[:-KEPT_CODES]:
        path.unlink()


_REMEMBERED: dict[tuple[int, ...], tuple[list[Any], dict[str, str]]] = {}


def _known_to_this_code() -> dict[str, str]:
    """Return the fingerprints that the code in memory has had before in this process."""
    code = _this_code()
    # The parts themselves must live on, or Python gives their ids to others.
    return _REMEMBERED.setdefault(tuple(map(id, code)), (code, {}))[1] if code else {}


def _this_code() -> list[Any] | None:
    """List each function, class and table that decides a result, and what these hold.

    As long as all of them are the same objects, so is the code; a notebook that exchanges one has
    other code, and the old one again when it puts it back. None if one of them is a function from
    elsewhere, which may call what changes unseen.
    """
    rooms: list[Any] = [torch, nn, nn.functional, nn.init]
    rooms += [sys.modules.get(f"csd_lib.{part}") for part in PARTS.split()]
    held = [part for room in rooms if room for part in vars(room).items()]
    parts = [part for name, part in held if name not in ("__builtins__", "_REMEMBERED")]
    for part in [*parts]:
        if isinstance(part, type) and part.__module__.startswith("csd_lib."):
            parts += vars(part).values()
        elif isinstance(part, dict):
            parts += part.values()
    functions = [part for part in parts if isinstance(part, FunctionType)]
    if any(str(function.__module__).split(".")[0] not in KNOWN for function in functions):
        return None
    # A function that is reloaded may be the same object with these exchanged.
    return parts + [part for f in functions for part in (f.__code__, f.__defaults__)]


def _measured(config: TrainConfig, dataset: Dataset) -> list[float]:
    """Train and measure, and return all that decides a result, without names.

    What is only written down beside it, such as a new column of the history, does not count.
    """
    run = train(config, dataset, progress=False)
    matrix = retrieval_matrix(run.models, run.tasks)
    names = ("loss", *get_method(config.method).term_names(True), "spread", "selection_recall")
    numbers = [record[name] for record in run.history for name in names if name in record]
    for model in run.models:
        features = embed(model, dataset.test_images)
        weights = torch.arange(1, features.shape[1] + 1, dtype=features.dtype).rsqrt()
        numbers += (features @ weights).tolist()
        numbers.append((model.head.weight @ weights).abs().sum().item())
    for values in (matrix.own, matrix.seen, matrix.accuracy):
        numbers += values.flatten().tolist()
    return numbers


def _made_up_images(channels: int, size: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    parts = {}
    for part, count in {"train": TRAIN, "test": TEST}.items():
        labels = torch.arange(CLASSES).repeat_interleave(count)
        noise = torch.randint(0, 128, (len(labels), channels, size, size), generator=generator)
        parts[f"{part}_labels"] = labels
        parts[f"{part}_images"] = (noise + 20 * labels[:, None, None, None]).to(torch.uint8)
    names = tuple(map(str, range(CLASSES)))
    mean, std = (0.4,) * channels, (0.2,) * channels
    return Dataset(name="made up", class_names=names, mean=mean, std=std, **parts)


@contextmanager
def _one_thread_in_float64() -> Iterator[None]:
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)  # for so little work more would only wait for each other
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


def _rounded(number: float) -> str:
    """Write a number with its five leading digits; what is nearly zero is zero."""
    return f"{round(number, 9) + 0.0:.{DIGITS - 1}e}"


def _types_under_autocast(config: TrainConfig, dataset: Dataset) -> list[str]:
    """List in which types the parts of the network and of the loss compute in mixed precision.

    Numbers in 16 bits differ between machines, so only the types count.
    """
    network = make_network(config, dataset.mean, dataset.std)
    network.grow_head(CLASSES, torch.Generator().manual_seed(0))
    found = set()

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.add(f"{type(module).__name__}:{output.dtype}")

    for module in network.modules():
        module.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        pairs = slice(0, 2 * TRAIN, TRAIN // 2)  # two images of two classes: few, for it is slow
        features, logits = network(dataset.train_images[pairs])
        labels = dataset.train_labels[pairs]
        outputs = Outputs(labels, features, logits, features.detach(), logits.detach())
        terms = get_method(config.method).loss_terms(outputs, config)
    found |= {f"{name}:{value.dtype}" for name, value in terms.items()}
    return sorted(found)
