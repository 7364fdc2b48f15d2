"""What does a second task do to a first model that was trained for long?

Takes the first model of a finished run, or of a prefix of one, and learns the second task in the
short schedule of a preset, recipe by recipe: all that differs from that preset's recorded runs is
how long the first model was trained, and where the random numbers come from.

python benchmarks/second_task.py runs/cifar100-initial-2tasks-seed0-... --precision amp
"""

from __future__ import annotations

import itertools
from copy import deepcopy
from pathlib import Path

import torch
from bench import machine, new_parser, read, write

from csd_lib.api import Network, TrainConfig, load_run
from csd_lib.data import Task
from csd_lib.engine import check_machine
from csd_lib.model import freeze
from csd_lib.prepare import add_head_rows
from csd_lib.retrieval import RetrievalMatrix, retrieval_matrix
from csd_lib.train import TaskTraining


def learn(first: Network, tasks: list[Task], config: TrainConfig) -> RetrievalMatrix:
    """Learn the second task from the first one's model, and measure both models."""
    device, precision = check_machine(config.device, config.precision, config.cuda_graph)
    teacher = first.to(device)
    student = deepcopy(teacher).requires_grad_(True).to(memory_format=torch.channels_last)
    add_head_rows(student, teacher, tasks[1], config)
    generator = torch.Generator(device).manual_seed(config.seed)
    with precision.switches():
        learning = TaskTraining(student, teacher, tasks, config, precision, generator)
        while learning.epoch < learning.epochs:
            learning.run_epoch()
    learning.finish()
    return retrieval_matrix([teacher, freeze(learning.student)], tasks)


def main() -> None:
    """Learn with every recipe and seed that has no line yet, and add one for each."""
    parser = new_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of the run whose first model is taken")
    parser.add_argument("--methods", nargs="+", default=["fine-tuning", "lwf", "csd"])
    parser.add_argument("--head-init", nargs="+", default=["random", "class_means"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--preset", default="class")
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()

    run = load_run(arguments.run)
    first = {"first_run": arguments.run.name, "first_epochs": run.config.epochs_to_run(0)}
    cells = itertools.product(arguments.seeds, arguments.head_init, arguments.methods)
    for seed, head_init, method in cells:
        chosen = dict(method=method, head_init=head_init, seed=seed, preset=arguments.preset)
        place = first | chosen
        if any(place.items() <= line.items() for line in read("second_task", arguments.out)):
            continue
        of_run = dict(dataset=run.config.dataset, precision=arguments.precision)
        matrix = learn(run.models[0], run.tasks, TrainConfig(**of_run, **chosen))
        found = {
            "own": matrix.own.tolist(),  # rows: before, after; columns: old classes, new ones
            "seen": matrix.seen.tolist(),
            "old_gallery": matrix.in_first_gallery(),
            "precision": arguments.precision,
            "machine": machine(run.models[0].head.weight.device),
        }
        write("second_task", place | found, arguments.out)


if __name__ == "__main__":
    main()
