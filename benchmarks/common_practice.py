"""Images per second of this kit's training loop beside common practice, in one run, in turn.

    python benchmarks/common_practice.py
    pip install avalanche-lib && python benchmarks/common_practice.py    # with Avalanche's LwF

The same network (ResNet-32), batch size and number of images for all:

* plain: a DataLoader with PIL transforms, pytorch-metric-learning's miner, triplet and SupCon loss,
  Adam as it comes, and a teacher that autograd runs through, as in the published code. On a GPU
  once more with half the cores as the DataLoader's workers and pinned memory. Its convolutions are
  in TF32 where PyTorch's default says so.
* Avalanche: its own LwF strategy (cross entropy and distillation) without loggers, on PIL images.
* this kit: ``TaskTraining`` as it is, in each precision that this device has.

Images are random: the work is the same, and no download is needed.
"""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from bench import alternate, machine, new_parser, write
from PIL import Image
from pytorch_metric_learning import distances, losses, miners, reducers
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from csd_lib.config import TrainConfig
from csd_lib.doctor import made_up_images, tasks_to_learn
from csd_lib.engine import half_precision, pick_device
from csd_lib.losses import kd_loss
from csd_lib.model import ResNet

BATCH = 128
MEAN, STD = (0.5,) * 3, (0.25,) * 3  # of the made-up images, about
RATE = 1e-5  # learning noise faster than that makes the features collapse


class PilImages(Dataset):
    """Images as most loaders hand them out: one at a time, through PIL."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable | None):
        self.images, self.targets, self.transform = images, labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.images[index])
        return self.transform(image) if self.transform else image, self.targets[index]


TRANSFORM = transforms.Compose(
    [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


def network(classes: int) -> ResNet:
    """Return the network of the paper."""
    return ResNet(32, classes, 3, MEAN, STD, seed=0)


def plain_loop(
    images: np.ndarray, labels: np.ndarray, device: torch.device, later: bool, workers: int = 0
):
    """Return a function that trains one epoch the plain way."""
    pinned = dict(num_workers=workers, persistent_workers=True, pin_memory=True) if workers else {}
    loader = DataLoader(PilImages(images, labels, TRANSFORM), BATCH, shuffle=True, **pinned)
    student = network(50).to(device)
    teacher = None
    if later:
        teacher = copy.deepcopy(student)  # in train mode and with gradients, as published
        student.grow_head(50)
    cosine = distances.CosineSimilarity()
    miner = miners.BatchHardMiner(distance=cosine)
    triplet = losses.TripletMarginLoss(
        margin=1.0, distance=cosine, reducer=reducers.AvgNonZeroReducer()
    )
    contrast = losses.SupConLoss(temperature=0.07)
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE, weight_decay=5e-4)

    def epoch() -> None:
        student.train()
        for batch, targets in loader:
            batch, targets = batch.to(device), targets.to(device)
            features, logits = student(batch)
            loss = torch.nn.functional.cross_entropy(logits, targets)
            loss = loss + triplet(features, targets, miner(features, targets))
            if teacher is not None:
                old_features, old_logits = teacher(batch)
                both = torch.cat([features, old_features])
                loss = loss + kd_loss(logits, old_logits) + contrast(both, targets.repeat(2))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            student.head.normalize_()

    return epoch


def this_kit(images: int, device: torch.device, later: bool, precision: str, method: str):
    """Return a function that trains one epoch with this kit."""
    settings = dict(dataset="cifar100", epochs=1000, learning_rate=RATE, later_learning_rate=RATE)
    config = TrainConfig(method=method, device=str(device), precision=precision, **settings)
    tasks = tasks_to_learn(config, made_up_images(config, 2 * images))
    learning = next(islice(tasks, int(later), None))

    def epoch() -> None:
        with learning.precision.switches():
            learning.run_epoch()

    return epoch


def avalanche_lwf(images: np.ndarray, labels: np.ndarray, device: torch.device):
    """Return a function that trains one epoch of a second experience with Avalanche's LwF."""
    logging.disable(logging.WARNING)
    from avalanche.benchmarks import nc_benchmark
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import LwF

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(100)

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return self.network(batch)[1]

    both = PilImages(np.concatenate([images, images]), np.concatenate([labels - 50, labels]), None)
    benchmark = nc_benchmark(
        *(both, both, 2, False),
        fixed_class_order=list(range(100)),
        train_transform=TRANSFORM,
        eval_transform=TRANSFORM,
    )
    model = Logits()
    strategy = LwF(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=5e-4),
        criterion=torch.nn.CrossEntropyLoss(),
        alpha=1.0,
        temperature=2.0,
        train_mb_size=BATCH,
        train_epochs=1,
        device=device,
        evaluator=EvaluationPlugin(),
    )
    strategy.train(benchmark.train_stream[0])
    return lambda: strategy.train(benchmark.train_stream[1])


def main() -> None:
    """Measure, print images per second and ratios, and add them to the records."""
    parser = new_parser(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=1280, help="per epoch")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    device = pick_device(arguments.device)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (arguments.images, 32, 32, 3), dtype=np.uint8)
    precisions = ["fp32"] + (["amp"] if half_precision(device) else [])
    if device.type == "cuda" and half_precision(device) is torch.bfloat16:  # as Precision asks
        precisions.append("tf32")
    found = {"machine": machine(device), "images": arguments.images, "batch": BATCH}

    def measure(title: str, baseline: str, candidates: dict[str, Callable]) -> None:
        seconds = alternate(candidates, arguments.rounds)
        rates = {name: arguments.images / value for name, value in seconds.items()}
        print(title)
        for name, rate in rates.items():
            print(f"  {rate:7.0f} images/s  {rate / rates[baseline]:5.2f} x  {name}", flush=True)
        found[title] = {
            name: {"images_per_second": round(rate), "ratio": round(rate / rates[baseline], 2)}
            for name, rate in rates.items()
        }

    def ours(method: str, later: bool) -> dict[str, Callable]:
        return {
            f"this kit, {p}": this_kit(arguments.images, device, later, p, method)
            for p in precisions
        }

    for later in (False, True):
        labels = rng.integers(0, 50, arguments.images) + 50 * later
        candidates = {"plain": plain_loop(images, labels, device, later)}
        if device.type == "cuda" and (workers := (os.cpu_count() or 1) // 2):
            loop = plain_loop(images, labels, device, later, workers)
            candidates[f"plain, {workers} workers"] = loop
        candidates |= ours("csd", later)
        measure("CSD, later task" if later else "CSD, first task", "plain", candidates)
    try:
        found["machine"]["avalanche"] = importlib.metadata.version("avalanche-lib")
    except importlib.metadata.PackageNotFoundError:
        print("Avalanche is not installed: its LwF is left out")
    else:
        candidates = {"Avalanche": avalanche_lwf(images, labels, device), **ours("ce+kd", True)}
        measure("LwF, later task", "Avalanche", candidates)
    write("common_practice", found, arguments.out)


if __name__ == "__main__":
    main()
