"""How settings were chosen: candidates on held-out images, with seeds that no table uses.

A share of each class's training images is set aside and takes the place of the test images, which
are not looked at. Several processes may run this at the same time; each takes free cells.

python benchmarks/choose.py class      # the preset class, on CIFAR-100
python benchmarks/choose.py fashion    # the defaults of the data set fashion
python benchmarks/choose.py kinds      # those of the data set kinds
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from csd_lib.config import TrainConfig
from csd_lib.data import Dataset, class_incremental_split, hold_out
from csd_lib.datasets import load_dataset
from csd_lib.paper.ledger import reproduce
from csd_lib.paper.report import load_runs, render

FOLDER = Path("data/choosing")
SHARE = {"class": 0.1, "fashion": 0.2, "kinds": 0.1}  # of the training images, held out
COMMON: dict[str, dict[str, Any]] = {
    "class": dict(dataset="cifar100", preset="class", precision="amp", seed=100),
    "fashion": dict(dataset="fashion", seed=100),
    "kinds": dict(dataset="kinds", seed=100),
}
QUICK = dict(later_learning_rate=3e-4, later_epochs=8, head_init="random")
LONGER = dict(later_learning_rate=1e-4, later_epochs=15, head_init="random")
# The 70-epoch recipe of the same group's later work (CL2R).
SGD = dict(optimizer="sgd", learning_rate=0.1, schedule="steps", milestones=(49, 64), epochs=70)
# Each line: methods, and the settings that they are tried with. A method alone shows little.
CANDIDATES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "class": [
        ("csd lwf fine-tuning", QUICK),
        ("csd lwf", {**QUICK, "head_init": "class_means"}),
        ("csd lwf", LONGER),
        ("csd lwf", {**LONGER, "later_learning_rate": 3e-4}),
        ("csd", {**QUICK, "teacher_statistics": "batch"}),
        ("csd lwf", {**QUICK, "later_learning_rate": 1e-3}),
        ("initial", SGD),
    ],
    "fashion": [
        ("initial fine-tuning lwf csd joint", {}),
        *(("initial fine-tuning lwf csd", dict(seed=seed)) for seed in (101, 102)),
        *(("initial fine-tuning lwf csd", dict(later_learning_rate=r)) for r in (5e-4, 3e-3)),
        ("initial fine-tuning lwf csd", dict(learning_rate=3e-3)),
        ("initial fine-tuning lwf csd", dict(epochs=10)),
        *(("initial fine-tuning lwf csd", dict(class_order_seed=seed)) for seed in (1, 2)),
    ],
    "kinds": [
        ("initial fine-tuning lwf csd joint", dict(epochs=20)),
        ("initial fine-tuning csd", dict(epochs=10)),
        ("fine-tuning lwf csd", dict(epochs=20, later_learning_rate=1e-4)),
    ],
}


def held_out_as_test(dataset: Dataset, share: float) -> Dataset:
    """Return the data set without its test images: held-out training images are in their place."""
    task, images, labels = hold_out(class_incremental_split(dataset, 1)[0], share, seed=0)
    return replace(
        dataset,
        train_images=task.train_images,
        train_labels=task.train_labels,
        test_images=images,
        test_labels=labels,
    )


def main() -> None:
    """Run the candidates that are not recorded yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=list(CANDIDATES))
    what = parser.parse_args().what
    configs = [
        TrainConfig(**{**COMMON[what], "method": method, **settings})
        for methods, settings in CANDIDATES[what]
        for method in methods.split()
    ]
    dataset = held_out_as_test(load_dataset(configs[0].dataset), SHARE[what])
    reproduce(configs, FOLDER / what, dataset=dataset, progress=False)
    print(render(load_runs(FOLDER / what)[0]))


if __name__ == "__main__":
    main()
