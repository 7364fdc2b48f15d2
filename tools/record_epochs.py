"""Record how retrieval and the map of features change from epoch to epoch, for chapter 5.

    python tools/record_epochs.py            # some minutes on two cores

Trains fine-tuning, LwF and CSD on digits with five tasks. After every third epoch it measures
Recall@1 on the test images of every task, among all classes seen so far, and places all test images
on one map. That map is a UMAP of a network that learned all ten digits jointly. (A map of the
network after task 1 knows two digits only, and has no place for the others.) The features of each
moment are first turned as a whole, as near as they come to those of the joint network, because
two networks never choose the same directions, and no search notices a turn.

The result is data/results/digits-epochs.npz; ``csd_lib.course.widgets.load_recording`` reads it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import drift, projection
from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split
from csd_lib.datasets import load_dataset
from csd_lib.fingerprint import fingerprint
from csd_lib.model import ResNet
from csd_lib.numerics import unit_length
from csd_lib.paper.ledger import results_folder
from csd_lib.retrieval import embed, retrieval_matrix
from csd_lib.train import train

METHODS = ("fine-tuning", "lwf", "csd")


def turned(features: Tensor, target: Tensor) -> Tensor:
    """Turn unit features ``[N, D]`` as a whole, as near to a target as a turn can bring them."""
    features, target = unit_length(features.double()), unit_length(target.double())
    return (features @ drift.best_rotation(target, features)).float()


def record(tasks: int, every: int, seed: int) -> dict[str, np.ndarray]:
    """Train the methods, look at them after every so many epochs, and return the arrays."""
    dataset = load_dataset("digits")
    split = class_incremental_split(dataset, tasks)
    images = torch.cat([task.test_images for task in split])
    moments: list[tuple[int, int]] = []
    recall: list[np.ndarray] = []
    features: list[Tensor] = []

    def look(history: list[dict[str, float]], student: ResNet) -> None:
        epoch = history[-1]["epoch"] + 1
        if epoch % every == 0:
            moments.append((history[-1]["task"] + 1, epoch))
            recall.append(retrieval_matrix([student], split).seen[0])
            features.append(embed(student, images).cpu())

    config = TrainConfig(tasks=tasks, seed=seed, device="cpu")
    for method in METHODS:
        train(replace(config, method=method), dataset, on_epoch=look)
    count = len(moments) // len(METHODS)
    joint = embed(train(replace(config, method="joint"), dataset).models[-1], images)
    fitted = projection.fit_map(unit_length(joint), seed=0)
    placed = [
        projection.place_on_map(fitted, turned(of_moment, joint))
        for of_moment in tqdm(features, desc="placing on the map")
    ]
    about = {
        "methods": METHODS,
        "config": {**asdict(config), "method": "each of methods"},
        "fingerprints": {m: fingerprint(replace(config, method=m), 1, 8) for m in METHODS},
        "map": "UMAP (cosine, 15 neighbours, seed 0) of joint training; features turned to fit it",
        "device": f"cpu, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "umap-learn")},
        },
        "date": datetime.date.today().isoformat(),
    }
    return {
        "about": np.array(json.dumps(about)),
        "moments": np.array(moments[:count], dtype=np.uint8),
        "recall": np.array(recall, dtype=np.float16).reshape(len(METHODS), count, tasks),
        "positions": np.array(placed, dtype=np.float16).reshape(len(METHODS), count, -1, 2),
        "home": fitted.embedding_.astype(np.float16),
        "labels": torch.cat([task.test_labels for task in split]).numpy().astype(np.uint8),
        "task_of_image": np.repeat(
            np.arange(tasks, dtype=np.uint8), [len(task.test_labels) for task in split]
        ),
    }


def main() -> None:
    """Record, and write the file in one step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--every", type=int, default=3, help="epochs between two moments")
    parser.add_argument("--seed", type=int, default=0)
    default = results_folder() / "digits-epochs.npz"
    parser.add_argument("--file", type=Path, default=default)
    arguments = parser.parse_args()
    arrays = record(arguments.tasks, arguments.every, arguments.seed)
    partial = arguments.file.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(arguments.file)
    print(f"{arguments.file}: {arguments.file.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
