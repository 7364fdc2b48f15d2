"""Does a long first task collapse? Recall@1 of features and of softmaxes while it is learned.

The paper's frozen first model has 67.6 on its own classes and 21.7 on new ones. This looks at what
features and the head's softmax find, every ten epochs of the first task of the paper's protocol.

python benchmarks/first_task.py --stop-at-epoch 250 --precision amp
python benchmarks/first_task.py --stop-at-epoch 400 --precision amp --begun runs/cifar100-...

The second goes on from a prefix that ran on another kind of device, which the library refuses since
random numbers differ there: here they begin anew, and each line says where the run began.
"""

from __future__ import annotations

from pathlib import Path

import torch
from bench import machine, new_parser, read, write
from torch import Tensor

from csd_lib.config import TrainConfig
from csd_lib.data import Task, class_incremental_split
from csd_lib.datasets import load_dataset
from csd_lib.engine import pick_device
from csd_lib.experiment import load_run, run_experiment
from csd_lib.model import Network
from csd_lib.paths import runs_folder
from csd_lib.retrieval import embed, recall_at_k
from csd_lib.train import train


def effective_rank(features: Tensor) -> float:
    """How many directions features use: the exponential of their spectrum's entropy.

    The spectrum is that of the singular values of the centred features, as shares of their sum (Roy
    and Vetterli, EUSIPCO 2007): 1 if all lie on a line, D if all directions count alike.
    """
    values = torch.linalg.svdvals(features.double() - features.double().mean(dim=0))
    return torch.exp(torch.special.entr(values / values.sum()).sum()).item()


@torch.no_grad()
def look(model: Network, tasks: list[Task]) -> dict[str, float]:
    """Measure a model of the first task on the test images of its own and of new classes."""
    found: dict[str, float] = {}
    for name, task in zip(("old", "new"), tasks, strict=True):
        features = embed(model, task.test_images)
        seen = model.head(features).softmax(dim=1)  # as recall_at_k uses it: a vector of 50 shares
        found[f"features_{name}"] = recall_at_k(features, task.test_labels)[1]
        found[f"softmax_{name}"] = recall_at_k(seen, task.test_labels)[1]
        found[f"effective_rank_{name}"] = effective_rank(features)
        found[f"dead_dimensions_{name}"] = int((features.std(dim=0) == 0).sum())
    return found


def moved_here(run: Path, folder: Path, config: TrainConfig) -> Path:
    """Copy a run's prefix into a folder as one of this machine, with new random numbers."""
    saved = torch.load(run / "prefix.pt", weights_only=True, map_location="cpu")
    generator = torch.Generator(pick_device(config.device)).manual_seed(config.seed)
    saved |= {"device": generator.device.type, "generator": generator.get_state()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(saved, folder / "prefix.pt")
    return folder / "prefix.pt"


def main() -> None:
    """Train, look, and add a line to the records for every look."""
    parser = new_parser(__doc__)
    parser.add_argument("--stop-at-epoch", type=int)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--dataset", default="cifar100")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--begun", type=Path, help="folder of the prefix to go on from")
    arguments = parser.parse_args()
    dataset = load_dataset(arguments.dataset)
    config = TrainConfig(
        dataset=arguments.dataset,
        method="initial",
        seed=arguments.seed,
        precision=arguments.precision,
        stop_at_epoch=arguments.stop_at_epoch,
    )
    begun = load_run(arguments.begun) if arguments.begun else None
    tasks = class_incremental_split(dataset, 2)
    known = read("first_task", arguments.out)
    seen = {(line["dataset"], line["seed"], line["epoch"]) for line in known}

    def on_epoch(history: list[dict[str, float]], student: Network) -> None:
        place = (config.dataset, config.seed, len(history))
        if len(history) % arguments.every or place in seen:
            return
        found = dict(zip(("dataset", "seed", "epoch"), place, strict=True))
        found |= {"learning_rate": history[-1]["learning_rate"], "loss": history[-1]["loss"]}
        found |= look(student, tasks) | {"precision": config.precision}
        found["machine"] = machine(student.head.weight.device)
        if begun:
            found["began"] = f"{len(begun.history)} epochs on {begun.record.device}"
        write("first_task", found, arguments.out)

    if begun is None:
        run_experiment(config, dataset, on_epoch=on_epoch, progress=False)
        return
    on_epoch(begun.history, begun.models[0])
    folder = runs_folder() / f"first-task-on-from-{begun.folder.name}"
    prefix = moved_here(begun.folder, folder / "prefix", config)
    train(config, dataset, folder=folder, prefix=prefix, on_epoch=on_epoch, progress=False)


if __name__ == "__main__":
    main()
