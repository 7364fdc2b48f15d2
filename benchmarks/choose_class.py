"""How the preset `class` was chosen: candidates on held-out images, with seeds that no table uses.

A tenth of each class's training images is set aside and takes the place of the test images, which
are not looked at. Several processes may run this at the same time; each takes free cells.

python benchmarks/choose_class.py            # run what is missing, then print the table
python benchmarks/choose_class.py --table    # print the table of what is recorded
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from csd_lib.config import TrainConfig
from csd_lib.data import Dataset, class_incremental_split, hold_out
from csd_lib.datasets import load_dataset
from csd_lib.paper.ledger import reproduce
from csd_lib.paper.report import load_runs, render

FOLDER = Path("data/choosing")
SEED = 100
FIRST = dict(dataset="cifar100", preset="class", precision="amp", seed=SEED)
SHORT = dict(later_epochs=15, head_init="random")
# The 70-epoch recipe of the same group's later work (CL2R).
SGD = dict(optimizer="sgd", learning_rate=0.1, schedule="steps", milestones=(49, 64), epochs=70)
CANDIDATES = [
    # Later rate and head rows, from one first model. A method alone shows little: the gaps count.
    *({"method": m, "later_learning_rate": 1e-4, **SHORT} for m in ("csd", "lwf", "fine-tuning")),
    *(
        {"method": m, "later_learning_rate": 1e-4, **SHORT, "head_init": "class_means"}
        for m in ("csd", "lwf")
    ),
    *({"method": m, "later_learning_rate": 3e-4, **SHORT} for m in ("csd", "lwf", "fine-tuning")),
    *({"method": m, "later_learning_rate": 1e-4, **SHORT} for m in ("mmd", "mmd-kd")),
    {"method": "csd", "later_learning_rate": 1e-4, **SHORT, "teacher_statistics": "batch"},
    *({"method": m, "later_learning_rate": 1e-3, **SHORT} for m in ("csd", "lwf")),
    *(
        {"method": m, "later_learning_rate": 3e-4, **SHORT, "later_epochs": 8}
        for m in ("csd", "lwf")
    ),
    {"method": "initial", **SGD},
]


def held_out_as_test(dataset: Dataset, share: float = 0.1, seed: int = 0) -> Dataset:
    """Return the data set without its test images: held-out training images are in their place."""
    task, images, labels = hold_out(class_incremental_split(dataset, 1)[0], share, seed)
    return replace(
        dataset,
        train_images=task.train_images,
        train_labels=task.train_labels,
        test_images=images,
        test_labels=labels,
    )


def main() -> None:
    """Run the candidates, or only print what is recorded of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        configs = [TrainConfig(**{**FIRST, **candidate}) for candidate in CANDIDATES]
        dataset = held_out_as_test(load_dataset("cifar100"))
        reproduce(configs, FOLDER, dataset=dataset, progress=False)
    print(render(load_runs(FOLDER)[0]))


if __name__ == "__main__":
    main()
