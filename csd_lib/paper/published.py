"""The paper's own numbers and claims, and which experiments they belong to. No number of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig
from csd_lib.fine_grained import FINE_GRAINED

# Table 1: CIFAR-100 in two tasks, Recall@1 in %: classes 1-50, classes 51-100, their average.
# One value a cell; the paper gives no seeds, no standard deviations and no gallery.
TABLE_1 = {
    "initial": (67.6, 21.7, 44.7),
    "fine-tuning": (37.4, 64.1, 50.8),
    "lwf": (64.0, 59.4, 61.7),
    "mmd": (61.8, 60.9, 61.4),
    "csd": (65.1, 61.6, 63.4),
    "joint": (70.5, 71.9, 71.2),
}

# Table 2: a pre-trained Inception network learns half of the kinds, and then the other half.
TABLE_2 = {
    "dogs": {
        "initial": (81.3, 69.3, 75.3),
        "fine-tuning": (74.0, 83.7, 78.8),
        "mmd": (79.5, 83.4, 81.4),
        "fecd": (79.9, 83.5, 81.7),
        "csd": (80.9, 83.5, 82.2),
        "joint": (80.4, 83.1, 81.7),
    },
    "cub200": {
        "initial": (79.2, 46.9, 63.1),
        "fine-tuning": (70.2, 75.1, 72.7),
        "mmd": (77.0, 74.1, 75.6),
        "fecd": (77.7, 75.0, 76.4),
        "csd": (78.6, 78.3, 78.5),
        "joint": (78.2, 79.2, 78.7),
    },
}

# Table 3: CSD's average on CUB-200 with one later task, by (lambda_kd, lambda_csd).
TABLE_3 = {
    **{(0.1, 0.1): 77.53, (0.1, 1.0): 78.35, (0.1, 10.0): 77.32},
    **{(1.0, 0.1): 76.57, (1.0, 1.0): 78.48, (1.0, 10.0): 77.22},
    **{(10.0, 0.1): 77.56, (10.0, 1.0): 78.23, (10.0, 10.0): 77.22},
}

# Published, and ready here, but on images that the kit could not fetch.
NOT_ATTEMPTED = {
    "Table 3 and Figure 5 as printed": "both on CUB-200 (csd reproduce table3 --dataset cub200)",
}
_FINE_GRAINED = ("kinds", *FINE_GRAINED)
_LEARNING = ("initial", "fine-tuning", "lwf", "mmd", "mmd-kd", "fecd", "csd")


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper, or one question about it: a set of configs to train."""

    title: str
    methods: tuple[str, ...]
    tasks: tuple[int, ...] = (2,)
    variants: tuple[dict[str, Any], ...] = ({},)  # changes to the preset
    fine_grained: bool | None = None  # only such data sets, or only others; None: any

    def fits(self, dataset: str) -> bool:
        """Say whether it is an experiment on this data set."""
        return self.fine_grained in (None, dataset in _FINE_GRAINED)

    def configs(
        self, seeds: tuple[int, ...], only_tasks: int | None = None, **settings: Any
    ) -> list[TrainConfig]:
        """Return every config of the experiment, seed by seed.

        Args:
            seeds: run all cells with the first one, then all with the second, ...
            only_tasks: leave out cells of another number of tasks.
            settings: fields of ``TrainConfig`` that all cells share, such as dataset and preset.

        Raises:
            InputError: for no seed, one that is named twice, or an impossible setting.
        """
        checks.sequence("seeds", seeds, int, "one or more whole numbers")
        for seed in seeds:
            checks.seed("seeds", seed)
        if len(set(seeds)) < len(seeds):
            raise InputError(f"seeds={checks.shown(seeds)}: name each seed once")
        checks.setting_names(TrainConfig, settings)
        if not self.fits(dataset := settings.get("dataset", "")):
            meant = "another experiment" if self.fine_grained else "table2 or figure4"
            raise InputError(f"dataset={checks.shown(dataset)} has no {self.title!r}: run {meant}")
        return [
            TrainConfig(**{**settings, "method": method, "tasks": tasks, "seed": seed, **variant})
            for seed in seeds
            for tasks in self.tasks
            if only_tasks in (None, tasks)
            for method in self.methods
            for variant in self.variants
        ]


EXPERIMENTS = {
    # The paper's rows, and ours: LwF without triplets, MMD with KD, FECD, CSD without KD.
    "table1": Experiment(
        "Table 1: two tasks, every method",
        (
            *("initial", "fine-tuning", "ce+kd", "lwf", "mmd", "mmd-kd", "fecd"),
            *("ce+triplet+csd", "csd", "joint"),
        ),
        fine_grained=False,
    ),
    "table2": Experiment(
        "Table 2: half of the kinds first, the other half as one task",
        (*_LEARNING[:-1], "ce+triplet+csd", "csd", "joint"),
        fine_grained=True,
    ),
    "figure3": Experiment(
        "Figure 3: the first task while 5 and 10 tasks arrive",
        _LEARNING,
        tasks=(5, 10),
        fine_grained=False,
    ),
    "figure4": Experiment(
        "Figure 4: half of the kinds first, the other half as 4 and 10 tasks",
        _LEARNING,
        tasks=(5, 11),
        fine_grained=True,
    ),
    "figure5": Experiment(
        "Figure 5: loss components (the paper: CUB-200, 10 tasks)",
        tuple(
            f"ce{triplet}{kd}{csd}"
            for triplet in ("", "+triplet")
            for kd in ("", "+kd")
            for csd in ("", "+csd")
        ),
        tasks=(2, 10),
    ),
    "table3": Experiment(
        "Table 3: the weights of KD and CSD (the paper: CUB-200, one task)",
        ("csd",),
        variants=tuple(
            {"lambda_kd": kd, "lambda_csd": csd}
            for kd in (0.1, 1.0, 10.0)
            for csd in (0.1, 1.0, 10.0)
        ),
    ),
    "temperature": Experiment(
        "The temperature of the CSD term",
        ("csd",),
        variants=tuple({"csd_temperature": t} for t in (0.02, 0.05, 0.07, 0.1, 0.2, 0.5)),
    ),
    "head": Experiment(
        "How new rows of the head begin",
        ("fine-tuning", "lwf", "csd"),
        variants=({"head_init": "random"}, {"head_init": "class_means"}),
    ),
    "traps": Experiment(
        "How much the published code's traps matter",
        ("csd",),
        variants=tuple(
            {"teacher_statistics": statistics, "selection": selection}
            for statistics in ("running", "batch")
            for selection in ("last", "test")
        ),
    ),
    "eq8": Experiment(
        "CSD as in the published code, and as printed in the paper's Eq. 8",
        ("csd", "ce+triplet+kd+csd_paper"),
    ),
}


def get_experiment(name: str) -> Experiment:
    """Look an experiment up by name."""
    checks.one_of("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]
