"""Made-up features and records: chosen or random numbers, of a run of today's code."""

import zlib

import numpy as np
import torch

from csd_lib.config import TrainConfig
from csd_lib.fingerprint import fingerprint
from csd_lib.methods import get_method
from csd_lib.record import Record
from csd_lib.retrieval import RetrievalMatrix

SHAPES = {"digits": (1, 8, 8), "cifar100": (3, 32, 32), "kinds": (1280, 1, 1)}


def on_circle(*degrees):
    """Features of length 1 in two dimensions."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def matrix_of(config, first_column=None, last=None):
    stages = 1 if get_method(config.method).joint else config.tasks
    random = np.random.default_rng(zlib.crc32(repr(config).encode()))
    values = random.uniform(0.2, 0.9, (stages, config.tasks))
    if first_column is not None:
        values[:, 0] = first_column
    if last is not None:
        values[-1] = last
    old = np.tril(random.uniform(0.2, 0.9, (stages, stages)))
    old[np.triu_indices(stages, 1)] = np.nan
    return RetrievalMatrix(own=values, seen=values, accuracy=values, old_gallery=old)


def record(config=None, first_column=None, last=None, **changes):
    """A record; ``changes`` are its own fields, and settings of a small ResNet on CIFAR-100."""
    fields = {name: changes.pop(name) for name in [*changes] if name in Record.__annotations__}
    config = config or TrainConfig(**{"dataset": "cifar100", "depth": 8, **changes})
    shape = SHAPES[config.dataset]
    made = dict(
        matrix=matrix_of(config, first_column, last),
        date="2026-01-01",
        device="a GPU",
        data="0" * 64,
        image_shape=shape,
        versions={"torch": "2"},
        training_seconds=3600.0,
        peak_memory_mb=100,
    )
    if "fingerprint" not in fields:
        made["fingerprint"] = fingerprint(config, shape[0], shape[1])
    return Record(config=config, **{**made, **fields})


def write(folder, records):
    """Write each record into a folder of its own."""
    for number, found in enumerate(records):
        place = folder / f"{found.config.dataset}-{number}"
        place.mkdir(parents=True)
        found.write(place / "results.json")
    return folder
