"""What makes two runs the same: the settings that are read, the images, and what the code computes.

Everything that compares, stores or shares runs asks here.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.datasets import get_spec, is_path
from csd_lib.methods import FIRST_TASK, TERMS, get_method
from csd_lib.networks import RANDOM, check_name, init_sha256, weights_sha256


def of_run(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """Return what decides a run's result: ``config``, ``data`` and ``fingerprint``, of the code."""
    from csd_lib.fingerprint import fingerprint  # it trains a tiny run, which needs this module

    _, channels, *size = dataset.train_images.shape
    return {
        "config": stored(config),
        "data": data_hash(config, dataset),
        "fingerprint": fingerprint(config, channels, min(size)),
    }


def data_hash(config: TrainConfig, dataset: Dataset) -> str:
    """Return the SHA-256 of images and labels and, each behind a plus, of what it begins with."""
    weights = f"+{weights_sha256(config)}" if config.weights != RANDOM else ""
    model = f"+init-from:{init_sha256(config.init_from)}" if config.init_from else ""
    return dataset.sha256() + weights + model


def difference(found: Any, wanted: dict[str, Any]) -> str:
    """Say in which way a stored identity is that of another run; an empty text if it is the same.

    A setting that did not exist yet when it was stored has its default value.
    """
    try:
        old, new = (key(from_stored(each["config"])) for each in (found, wanted))
        data, code = str(found["data"]), found["fingerprint"]
    except (LookupError, TypeError, InputError) as error:
        return f"it cannot be compared: {error}"
    if old != new:
        names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        changes = (f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in names)
        return f"other settings: {'; '.join(changes)}"
    if data != wanted["data"]:
        if data.split("+")[0] == wanted["data"].split("+")[0]:
            return "other weights to begin with"
        return f"other images or labels: their hash {data[:8]} -> {wanted['data'][:8]}"
    if code != wanted["fingerprint"]:
        return f"code that computes other numbers: fingerprint {code} -> {wanted['fingerprint']}"
    return ""


def key(config: TrainConfig, *without: str) -> dict[str, Any]:
    """Return the settings that decide the result: equal for two runs of the same thing.

    Not among them are the machine's, the preset (which only fills in other settings), those that
    this method or selection does not read, and those named in ``without``.
    """
    left_out = {"preset", *get_method(config.method).unused_settings(), *without}
    if config.later_epochs in (None, config.epochs):
        left_out.add("later_epochs")
    if config.tasks == 1:
        left_out.add("first_classes")
    learned = range(config.times_learned())
    if all(config.epochs_to_run(t) == config.schedule_length(t) for t in learned):
        left_out.add("stop_at_epoch")
    left_out |= {"last": {"select_every", "held_out"}, "test": {"held_out"}}.get(
        config.selection, set()
    )
    if not config.learns_later():
        left_out |= _deciding("later")
    return settings(config, *left_out)


def settings(config: TrainConfig, *without: str) -> dict[str, Any]:
    """Return all settings but the machine's, read in this run or not: what a table shares.

    Where images and initial weights lie is not among them: the hash of the data says what they are.
    """
    left_out = _deciding("machine") | _deciding("data") | {*without}
    names = [part.name for part in fields(config) if part.name not in left_out]
    found = {name: getattr(config, name) for name in names}
    return found | ({"dataset": data_name(config)} if "dataset" in found else {})


def data_name(config: TrainConfig) -> str:
    """Name of the data set, and ``own`` for all images of one's own, wherever they lie."""
    return "own" if is_path(config.dataset) else config.dataset


def unread(config: TrainConfig) -> list[str]:
    """Return the settings, as ``name=value``, that were changed and change nothing here."""
    usual = TrainConfig(dataset=config.dataset, preset=config.preset, network=config.network)
    names = settings(config).keys() - key(config).keys() - {"preset"}
    if config.learns_later():
        names -= {"later_epochs"}  # as many as the first task's
    # These stay in the key, from which the folders of runs are named, though nothing reads them.
    if config.schedule == "one_cycle":
        names |= {"milestones"}
    if config.network != "resnet":
        names |= {"depth"}
    if config.init_from:
        names |= {"weights"}
    method = get_method(config.method)
    if method.term_names(True) == method.term_names(False):
        names |= {"teacher_statistics"}
    values = {name: getattr(config, name) for name in sorted(names)}
    return [f"{n}={value}" for n, value in values.items() if value != getattr(usual, n)]


def stored(config: TrainConfig) -> dict[str, Any]:
    """Return what is written down: all settings but those of loss terms that it does not have.

    So the weight of a term that somebody has added to a copy of the kit is in that copy's runs of
    this term, and all others can be read here.
    """
    unused = get_method(config.method).unused_settings()
    return {name: value for name, value in asdict(config).items() if name not in unused}


def from_stored(content: dict[str, Any]) -> TrainConfig:
    """Return a config that was written down, whatever its preset names today.

    All that a preset names was filled in by then, so None means what it says.

    Raises:
        InputError: for a setting that does not exist, or a value that is none.
    """
    checks.instance("config", content, dict, "settings by name")
    known = {part.name for part in fields(TrainConfig)}
    if unknown := sorted(set(content) - known):
        raise InputError(f"it has settings that this kit does not have: {', '.join(unknown)}")
    try:
        get_method(content.get("method", "csd"))
        get_spec(content.get("dataset", "digits"))
        check_name("network", content.get("network") or "resnet")
    except InputError as error:
        raise InputError(f"{error}; if a module of yours adds it, import that first") from error
    config = TrainConfig(**content)
    if content.get("later_epochs") is None and config.later_epochs:
        return replace(config, later_epochs=config.epochs)
    return config


def first_task(config: TrainConfig) -> TrainConfig | None:
    """Return the config whose only task is this one's first, or None if none can be shared.

    Methods with the same plasticity terms learn the same model on the first task; method
    ``initial``, or ``initial-ce``, is that model, so it is trained once for all of them.
    """
    method = get_method(config.method)
    learned = method.term_names(False)
    in_order = [*learned] == [name for name in TERMS if name in learned]
    if method.joint or not method.learns_later or not in_order:
        return None  # terms in another order add up to other last digits
    recipe = "+".join(learned)
    found = get_method(FIRST_TASK + recipe)  # a method of that name may have been registered
    names = found.unused_settings() | _deciding("later")
    unset: dict[str, Any] = {
        part.name: part.default for part in fields(config) if part.name in names
    }
    first = replace(config, method=FIRST_TASK + recipe, **unset)
    return first if found.recipe == recipe and not found.learns_later else None


def _deciding(what: str) -> set[str]:
    """Return the names of the settings that decide this (see ``checks.setting``)."""
    return {part.name for part in fields(TrainConfig) if part.metadata["decides"] == what}
