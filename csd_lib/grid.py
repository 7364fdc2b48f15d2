"""Which cells a sweep has: an experiment of the paper, or all combinations of some settings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from csd_lib import InputError, checks, identity
from csd_lib.config import TrainConfig
from csd_lib.paper.published import EXPERIMENTS, Experiment

GRID = Experiment("A grid of settings", ("csd",))
# All cells of a sweep have the same images, and say in the same words where to compute.
ONE_VALUE = ("dataset", "image_size", "network", "weights", "init_from", "device")


def make_configs(
    experiment: str, seeds: tuple[int, ...], settings: Mapping[str, Sequence[Any]]
) -> list[TrainConfig]:
    """Return every cell of an experiment or of a grid, seed by seed, no run twice.

    Args:
        experiment: of the paper, with the data set and preset that ``reproduce`` begins with; or
            grid: method csd, with the settings that ``train`` begins with.
        seeds: of every cell.
        settings: of ``read_settings``: all combinations, in place of the experiment's own values.
    """
    given: dict[str, Sequence[Any]] = dict(settings)
    known = {**EXPERIMENTS, "grid": GRID}
    checks.one_of("experiment", experiment, known)
    asked = known[experiment]
    if experiment != "grid":
        given = {"dataset": ["cifar100"], "preset": ["reference"], **given}
    methods = tuple(given.pop("method", asked.methods))
    tasks = tuple(given.pop("tasks", asked.tasks))
    shared = {"dataset": given.pop("dataset")[0]} if "dataset" in given else {}
    changes = [dict(zip(given, v, strict=True)) for v in itertools.product(*given.values())]
    variants = tuple({**own, **change} for own in asked.variants for change in changes)
    chosen = replace(asked, methods=methods, tasks=tasks, variants=variants)
    found = chosen.configs(seeds, **shared)
    # LwF at two temperatures of CSD is one run: the second job would wait for the first.
    return list({frozenset(identity.key(c).items()): c for c in found}.values())


def read_settings(texts: Sequence[str], option: str = "settings") -> dict[str, list[Any]]:
    """Read texts ``NAME=VALUE,VALUE``: fields of ``TrainConfig``, and the values that each takes.

    InputError, which names the ``option``, for another form, a name that does not exist or comes
    twice, or the seed.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        typed = f"{option}={checks.shown(text)}"
        if not values or name in found:
            form = "NAME=VALUE,VALUE" if option == "settings" else "NAME=VALUE"
            raise InputError(f"{typed}: write {form}, a name once")
        checks.setting_names(TrainConfig, [name], f"{option}: ")
        if name == "seed":
            raise InputError(f"{typed}: leave out the seed; sweep has --seeds")
        found[name] = _values(values)
        if not found[name]:
            raise InputError(f"{typed}: give {name} a value")
        if name in ONE_VALUE and len(found[name]) > 1:
            raise InputError(f"{typed}: give one {name}")
    for part in fields(TrainConfig):  # 1 and 1.0 would be two folders for one run
        if part.name in found and "float" in str(part.type):
            values_of = found[part.name]
            found[part.name] = [float(v) if type(v) is int else v for v in values_of]
    return found


def read_baseline(texts: Sequence[str]) -> dict[str, Any]:
    """Read what ``--against`` was given: settings as ``read_settings`` reads them, of one value."""
    found = read_settings(texts, "against")
    if several := [name for name, values in found.items() if len(values) > 1]:
        raise InputError(f"against: give {several[0]} one value, to compare with")
    return {name: value for name, (value,) in found.items()}


def _values(text: str) -> list[Any]:
    """Read values with commas between: JSON, such as ``[0.5,0.75],[0.3]``, or words."""
    try:
        return list(json.loads(f"[{text}]"))
    except ValueError:
        if "," in text:
            return [value for part in text.split(",") for value in _values(part)]
    return [{"None": None, "True": True, "False": False}.get(text, text)]
