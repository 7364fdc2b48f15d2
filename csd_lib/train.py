"""One step, one epoch and one flat loop, the same for every method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import InputError, runs
from csd_lib.config import TrainConfig
from csd_lib.data import (
    Dataset,
    Task,
    augment,
    class_incremental_split,
    load_dataset,
    merge_tasks,
)
from csd_lib.losses import unit_length
from csd_lib.methods import LossSettings, Method, Outputs, get_method
from csd_lib.model import ResNet, freeze


class TrainingError(RuntimeError):
    """Training cannot go on usefully: the loss is not finite, or the features have collapsed."""


def pick_device(name: str) -> torch.device:
    """Turn a device name into a device that works here.

    Raises:
        InputError: for an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device={name!r} cannot be used here ({reason}): try auto") from error
    return device


@dataclass(frozen=True)
class Run:
    """What training leaves behind."""

    config: TrainConfig
    tasks: list[Task]
    models: list[ResNet]  # frozen, after each task (joint training: one, after all of them)
    history: list[dict[str, float]]  # one record per epoch


def training_step(
    student: ResNet,
    teacher: ResNet | None,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    method: Method,
    settings: LossSettings,
) -> tuple[dict[str, Tensor], Tensor]:
    """Update the student on one batch.

    Args:
        images: uint8 ``[B, C, H, W]``, already augmented. Student and teacher see the same ones.
        labels: int64 ``[B]``.

    Returns:
        The weighted loss terms (scalars) and the student's features ``[B, D]``, all detached and
        still on the device: reading them here would make the GPU wait.
    """
    features, logits = student(images)
    outputs = Outputs(labels, features, logits)
    if teacher is not None:
        with torch.no_grad():
            teacher_features, teacher_logits = teacher(images)
        outputs = Outputs(labels, features, logits, teacher_features, teacher_logits)

    terms = method.loss_terms(outputs, settings)
    optimizer.zero_grad(set_to_none=True)
    sum(terms.values()).backward()
    optimizer.step()
    student.head.normalize_()
    return {name: term.detach() for name, term in terms.items()}, features.detach()


def train_epoch(
    student: ResNet,
    teacher: ResNet | None,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
    after_step: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Show the student every image of a task once, in random order and augmented.

    Args:
        images: uint8 ``[N, C, H, W]``, on the device, not augmented.
        labels: int64 ``[N]``, on the device.
        generator: on the device; draws order and augmentation.
        after_step: called after every step, for a progress bar.

    Returns:
        Means over the epoch: the loss, each weighted term, and the spread of the features.
    """
    method = get_method(config.method)
    student.train()
    totals: dict[str, Tensor] = {}
    order = torch.randperm(len(labels), device=labels.device, generator=generator)
    for batch in order.split(config.batch_size):  # the last, smaller batch is kept
        augmented = augment(images[batch], config.crop_padding, config.flip, generator)
        terms, features = training_step(
            student, teacher, optimizer, augmented, labels[batch], method, config
        )
        numbers = {"loss": sum(terms.values()), **terms, "spread": feature_spread(features)}
        for name, value in numbers.items():
            totals[name] = totals.get(name, 0) + value * len(batch) / len(labels)
        after_step()
    # The only place where the host waits for the device: once an epoch.
    return {name: total.item() for name, total in totals.items()}


def train(
    config: TrainConfig,
    dataset: Dataset | None = None,
    *,
    folder: str | Path | None = None,
    stop_after: int | None = None,
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None,
    progress: bool = True,
) -> Run:
    """Train one network on the tasks, one after the other, without keeping old images.

    Args:
        config: everything that decides the run.
        dataset: the images; default: loads ``config.dataset``.
        folder: where to keep a checkpoint after every epoch and the model after every task. Called
            again with the same config, a killed run goes on from there, on the CPU with the same
            result bit for bit. None keeps nothing.
        stop_after: train only this many tasks for now; a later call goes on from there.
        on_epoch: called with the history so far after every epoch, for live curves.
        progress: show a progress bar.

    Raises:
        InputError: if the config is impossible for this data set or machine.
        TrainingError: if the loss is not finite or the features collapse.
    """
    method = get_method(config.method)
    device = pick_device(config.device)
    # Adam with weight decay shrinks some numbers until a CPU handles them ten times slower.
    torch.set_flush_denormal(True)
    dataset = dataset or load_dataset(config.dataset)
    tasks = class_incremental_split(dataset, config.tasks, seed=config.class_order_seed)
    stages = [merge_tasks(tasks)] if method.joint else tasks
    student = ResNet(
        config.depth, 0, dataset.train_images.shape[1], dataset.mean, dataset.std, config.seed
    ).to(device, memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(config.seed)
    models: list[ResNet] = []
    history: list[dict[str, float]] = []
    saved = None
    if folder:
        identity = {**asdict(config), "code": runs.code_hash()}
        saved = runs.load_checkpoint(folder, identity)
        runs.write_json(runs.make_folder(folder) / "config.json", identity)
    if saved:
        history = saved["history"]
        models = [runs.restore_model(student, state) for state in saved["models"]]

    for stage in stages[len(models) : stop_after]:
        teacher = models[-1] if models else None
        if teacher is not None and config.head_init == "class_means":
            student.head.grow(_class_means(teacher, stage))
        else:
            rows = torch.Generator().manual_seed(1000 * config.seed + stage.index)
            student.grow_head(len(stage.classes), rows)
        optimizer = torch.optim.Adam(student.parameters(), weight_decay=config.weight_decay)
        first_epoch = 0
        if saved and saved["student"]:
            first_epoch = history[-1]["epoch"] + 1
            student.load_state_dict(saved["student"])
            optimizer.load_state_dict(saved["optimizer"])
        if saved:
            generator.set_state(saved["generator"])
            saved = None

        images, labels = stage.train_images.to(device), stage.train_labels.to(device)
        steps = math.ceil(len(labels) / config.batch_size)
        title = f"{method.title}, task {stage.index + 1} of {len(stages)}"
        with tqdm(
            desc=title,
            unit="step",
            total=config.epochs * steps,
            initial=first_epoch * steps,
            disable=not progress,
        ) as bar:
            for epoch in range(first_epoch, config.epochs):
                started = time.perf_counter()
                optimizer.param_groups[0]["lr"] = learning_rate(config, stage.index, epoch)
                means = train_epoch(
                    student, teacher, optimizer, images, labels, config, generator, bar.update
                )
                history.append(
                    {
                        "task": stage.index,
                        "epoch": epoch,
                        **means,
                        "learning_rate": optimizer.param_groups[0]["lr"],
                        "seconds": time.perf_counter() - started,
                    }
                )
                last_epoch = epoch + 1 == config.epochs
                _check_health(history, len(stage.classes), last_epoch)
                bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
                if on_epoch:
                    on_epoch(history)
                if last_epoch:
                    models.append(freeze(student))
                if folder:
                    runs.save_checkpoint(
                        folder, identity, models, history, student, optimizer, generator
                    )
    return Run(config, tasks, models, history)


def learning_rate(config: TrainConfig, task_index: int, epoch: int) -> float:
    """Return Adam's learning rate for one epoch of one task."""
    start = config.learning_rate if task_index == 0 else config.later_learning_rate
    passed = sum(epoch >= milestone * config.epochs for milestone in config.milestones)
    return start * 0.1**passed


def feature_spread(features: Tensor) -> Tensor:
    """Mean cosine distance between two features ``[B, D]`` of a batch: 0 if all point one way."""
    unit = unit_length(features)
    others = len(unit) * (len(unit) - 1)
    return 1 - ((unit.sum(dim=0) ** 2).sum() - (unit**2).sum()) / max(others, 1)


def _check_health(history: list[dict[str, float]], classes: int, last_epoch: bool) -> None:
    """Stop a run that has broken down; a broken network can even score well in retrieval.

    Features have collapsed when they are four times closer together than in the best epoch so far
    and no longer tell the task's classes apart: cross entropy is near that of guessing. One such
    epoch can be a passing shock, so training stops after two in a row, or if it is the last one.
    (A ResNet-32 that collapsed on CIFAR-100 fell to a fifth; before training, the mean cosine
    distance is about 0.05.)
    """
    record = history[-1]
    where = f"task {record['task'] + 1}, epoch {record['epoch'] + 1}"
    remedy = (
        f"lower the learning rate (here {record['learning_rate']:g}; "
        f"the paper uses 1e-3 on the first task and 1e-5 later)"
    )
    if not math.isfinite(record["loss"]):
        raise TrainingError(f"{where}: the loss is {record['loss']}: {remedy}")

    best = max([0.05, *(earlier["spread"] for earlier in history)])
    recent = [r for r in history[-1 if last_epoch else -2 :] if r["task"] == record["task"]]
    collapsed = [r["spread"] < 0.25 * best and r["ce"] > 0.9 * math.log(classes) for r in recent]
    if classes > 1 and all(collapsed) and (last_epoch or len(recent) == 2):
        raise TrainingError(
            f"{where}: the features have collapsed, all images have nearly the same one (mean "
            f"cosine distance {record['spread']:.1e}, it was {best:.2g}): {remedy}"
        )


@torch.no_grad()
def _class_means(teacher: ResNet, stage: Task, batch_size: int = 512) -> Tensor:
    """Sum of each new class's unit features, as the teacher sees it: ``[new classes, D]``."""
    device = teacher.head.weight.device
    batches = stage.train_images.split(batch_size)
    features = torch.cat([unit_length(teacher(batch.to(device))[0]) for batch in batches])
    labels = stage.train_labels.to(device) - stage.first_label
    sums = torch.zeros(len(stage.classes), features.shape[1], device=device)
    return sums.index_add_(0, labels, features)
