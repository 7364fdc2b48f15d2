"""The paper's own numbers and claims, and which experiments they belong to. No number of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig

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

# Published, but beyond this kit: no code, and images that cannot be fetched without asking.
NOT_ATTEMPTED = {
    "Table 2": "CUB-200 and Stanford Dogs with a pre-trained Inception network",
    "Table 3 and Figure 5 as printed": "both on CUB-200; the kit has the same grid and the same "
    "loss components for CIFAR-100 (experiments table3 and figure5)",
}


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper, or one question about it: a set of configs to train."""

    title: str
    methods: tuple[str, ...]
    tasks: tuple[int, ...] = (2,)
    variants: tuple[dict[str, Any], ...] = ({},)  # changes to the preset

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
    ),
    "figure3": Experiment(
        "Figure 3: the first task while 5 and 10 tasks arrive",
        ("initial", "fine-tuning", "lwf", "mmd", "mmd-kd", "fecd", "csd"),
        tasks=(5, 10),
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
    """Look an experiment up by name.

    Raises:
        InputError: if there is no such experiment.
    """
    if not isinstance(name, str) or name not in EXPERIMENTS:
        raise InputError(
            f"unknown experiment {checks.shown(name)}: choose one of {', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name]
