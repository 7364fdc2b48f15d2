"""One step, one task, one run: loops that are the same for every method."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import InputError, TrainingError, runs
from csd_lib.config import TrainConfig
from csd_lib.data import (
    Dataset,
    Task,
    augment,
    class_incremental_split,
    hold_out,
    load_dataset,
    merge_tasks,
)
from csd_lib.engine import (
    CapturedStep,
    Moving,
    Precision,
    adam,
    load_optimizer,
    pick_device,
    set_learning_rate,
)
from csd_lib.files import make_folder, write_json
from csd_lib.losses import unit_length
from csd_lib.methods import LossSettings, Method, Outputs, get_method
from csd_lib.model import ResNet, freeze
from csd_lib.retrieval import embed, recall_at_k


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
    precision: Precision | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Update the student on one batch.

    Args:
        images: uint8 ``[B, C, H, W]``, already augmented. Student and teacher see the same ones.
        labels: int64 ``[B]``.
        precision: how the two networks compute; default: float32.

    Returns:
        The weighted loss terms (scalars) and the student's features ``[B, D]``, all detached and
        still on the device: reading them here would make the GPU wait.
    """
    precision = precision or Precision("fp32", images.device)
    with precision.autocast():
        features, logits = student(images)
        with torch.no_grad():
            taught = teacher(images) if teacher is not None else ()
    outputs = Outputs(labels, features, logits, *taught)

    terms = method.loss_terms(outputs, settings)
    optimizer.zero_grad(set_to_none=True)
    precision.scaler.scale(sum(terms.values())).backward()
    precision.scaler.step(optimizer)
    precision.scaler.update()
    student.head.normalize_()
    return {name: term.detach() for name, term in terms.items()}, features.detach()


def train(
    config: TrainConfig,
    dataset: Dataset | None = None,
    *,
    folder: str | Path | None = None,
    first_task: str | Path | None = None,
    stop_after: int | None = None,
    on_epoch: Callable[[list[dict[str, float]], ResNet], None] | None = None,
    progress: bool = True,
) -> Run:
    """Train one network on the tasks, one after the other, without keeping old images.

    Args:
        config: everything that decides the run.
        dataset: the images; default: loads ``config.dataset``.
        folder: where to keep history, checkpoints and the model after every task. Called again with
            the same config, a killed run goes on from there, on the CPU with the same result bit
            for bit. None keeps nothing.
        first_task: folder of a finished run of ``config.first_task()``, which is then not trained
            again; the result is the same.
        stop_after: train only this many tasks for now; a later call goes on from there.
        on_epoch: called after every epoch with the history so far, for live curves, and with the
            student as it is then, to look at and not to change: ``embed`` leaves it as it was.
        progress: show a progress bar.

    Raises:
        InputError: if the config is impossible for this data set or machine.
        TrainingError: if the loss is not finite or the features collapse.
    """
    method = get_method(config.method)
    device = pick_device(config.device)
    precision = Precision(config.precision, device)
    if config.cuda_graph and device.type != "cuda":
        raise InputError(f"cuda_graph=True needs an NVIDIA GPU, not {device}: leave it out")
    precision.apply()
    dataset = dataset or load_dataset(config.dataset)
    tasks = class_incremental_split(dataset, config.tasks, seed=config.class_order_seed)
    stages = [merge_tasks(tasks)] if method.joint else tasks
    student = ResNet(
        config.depth, 0, dataset.train_images.shape[1], dataset.mean, dataset.std, config.seed
    ).to(device, memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(config.seed)
    models: list[ResNet] = []
    history: list[dict[str, float]] = []

    checkpoints = saved = None
    if folder:
        folder = make_folder(folder)
        checkpoints = runs.Checkpoints(folder, runs.identity(config))
        saved = checkpoints.load()
        write_json(folder / "config.json", checkpoints.identity)
    if first_task and not saved:
        saved = runs.Checkpoints(first_task, runs.identity(config.first_task())).load()
        if not saved:
            raise InputError(f"first_task={str(first_task)!r} holds no run: train that one first")
    if saved:
        with runs.restoring(saved):
            history = saved["history"]
            runs.check_history(history, config.epochs)
            for stage, state in zip(stages, saved["models"], strict=False):
                learned = stage if method.learns_later else stages[0]
                models.append(runs.restore_model(student, state, learned.end_label))
            generator.set_state(saved["generator"])
    if folder:
        runs.write_history(folder, history)  # epochs after the checkpoint are run again

    def save(**state: Any) -> None:
        """Keep all that the loop needs to go on from here."""
        checkpoints.save(
            models=[model.state_dict() for model in models],
            history=history,
            generator=generator.get_state(),
            **state,
        )

    def after_epoch(state: Callable[[], dict[str, Any]]) -> None:
        if on_epoch:
            on_epoch(history, student)
        if checkpoints:
            runs.append_history(folder, history[-1])
            if checkpoints.is_due() and history[-1]["epoch"] + 1 < config.epochs:
                save(**state())

    for stage in stages[len(models) : stop_after]:
        if stage.index > 0 and not method.learns_later:
            models.append(models[-1])
            continue
        teacher = models[-1] if models else None
        if teacher is not None and config.head_init == "class_means":
            student.head.grow(_class_means(teacher, stage))
        else:
            rows = torch.Generator().manual_seed(1000 * config.seed + stage.index)
            student.grow_head(len(stage.classes), rows)
        seen = merge_tasks(stages[: stage.index + 1])
        title = f"{method.title}, task {stage.index + 1} of {len(stages)}"
        train_task(
            *(student, teacher, stage, seen, config, precision, generator, history),
            saved=saved if saved and saved.get("student") else None,
            after_epoch=after_epoch,
            title=title if progress else None,
        )
        saved = None
        models.append(freeze(student))
        if checkpoints:
            save()
    return Run(config, tasks, models, history)


def train_task(
    student: ResNet,
    teacher: ResNet | None,
    task: Task,
    seen: Task,
    config: TrainConfig,
    precision: Precision,
    generator: torch.Generator,
    history: list[dict[str, float]],
    *,
    saved: dict[str, Any] | None = None,
    after_epoch: Callable[[Callable[[], dict[str, Any]]], None] = lambda state: None,
    title: str | None = None,
) -> None:
    """Train the student on one task: ``config.epochs`` times all of its images.

    Args:
        task: the images to learn.
        seen: all tasks so far; only the published code's way of selecting a model looks at them.
        generator: on the device; draws order and augmentation.
        history: gets one record an epoch.
        saved: what ``after_epoch`` was given when this task was interrupted.
        after_epoch: called after every epoch with a function that returns the loop's state.
        title: of the progress bar; None shows none.
    """
    method, device = get_method(config.method), generator.device
    optimizer = adam(student, config.weight_decay, device)
    if teacher is not None and config.teacher_statistics == "batch":
        teacher = copy.deepcopy(teacher).train()
    selection = None
    if config.selection == "test":
        selection = Selection(seen.test_images.to(device), seen.test_labels.to(device))
    elif config.selection == "held_out":
        task, *held_out = hold_out(task, config.held_out, config.seed)
        selection = Selection(*(part.to(device) for part in held_out))
    first_epoch = 0
    if saved:
        with runs.restoring(saved):
            first_epoch = history[-1]["epoch"] + 1
            if selection:
                runs.load_state(student, saved["best_state"])
                selection.recall, selection.state = saved["best_recall"], saved["best_state"]
            runs.load_state(student, saved["student"])
            load_optimizer(optimizer, saved["optimizer"])
            precision.scaler.load_state_dict(saved["scaler"])
    elif selection:
        selection.look(student)  # before the first epoch too, as the published code does

    images, labels = task.train_images.to(device), task.train_labels.to(device)
    names = ("loss", *method.term_names(teacher is not None), "spread")
    totals = torch.zeros(len(names), device=device)

    def step(batch: Tensor) -> None:
        augmented = augment(images[batch], config.crop_padding, config.flip, generator)
        terms, features = training_step(
            student, teacher, optimizer, augmented, labels[batch], method, config, precision
        )
        numbers = torch.stack([sum(terms.values()), *terms.values(), feature_spread(features)])
        totals.add_(numbers, alpha=len(batch) / len(labels))

    if config.cuda_graph:  # the same step, recorded once and replayed
        networks = [student] if teacher is None else [student, teacher]
        step = CapturedStep(step, Moving(networks, totals, optimizer, precision.scaler, generator))

    def state() -> dict[str, Any]:
        best = {"best_recall": selection.recall, "best_state": selection.state} if selection else {}
        return {
            "student": student.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": precision.scaler.state_dict(),
            **best,
        }

    steps = math.ceil(len(labels) / config.batch_size)
    progress = {"total": steps * config.epochs, "initial": steps * first_epoch, "unit": "step"}
    with tqdm(desc=title, disable=title is None, **progress) as bar:
        for epoch in range(first_epoch, config.epochs):
            started = time.perf_counter()
            rate = learning_rate(config, task.index, epoch)
            set_learning_rate(optimizer, rate)
            student.train()
            totals.zero_()
            order = torch.randperm(len(labels), device=device, generator=generator)
            for batch in order.split(config.batch_size):  # the last, smaller batch is kept
                step(batch)
                bar.update()
            # The only place where the host waits for the device: once an epoch.
            means = dict(zip(names, totals.tolist(), strict=True))
            history.append({"task": task.index, "epoch": epoch, **means, "learning_rate": rate})
            last_epoch = epoch + 1 == config.epochs
            healthy = _check_health(history, len(task.classes), last_epoch)
            due = last_epoch or (epoch + 1) % config.select_every == 0
            if selection and due and healthy:  # collapsed features would score 100 %
                history[-1]["selection_recall"] = selection.look(student)
            history[-1]["seconds"] = time.perf_counter() - started
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
            after_epoch(state)
    if selection:
        student.load_state_dict(selection.state)


class Selection:
    """Keeps the best of a task's models, by Recall@1 among the images that it looks at."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels
        self.recall, self.state = -1.0, {}

    def look(self, student: ResNet) -> float:
        """Measure the student now, and keep a copy if it is better than every one before."""
        recall = recall_at_k(embed(student, self.images), self.labels)[1]
        if recall > self.recall:
            self.recall = recall
            self.state = {name: value.clone() for name, value in student.state_dict().items()}
        return recall


def learning_rate(config: TrainConfig, task_index: int, epoch: int) -> float:
    """Return Adam's learning rate for one epoch of one task."""
    start = config.learning_rate if task_index == 0 else config.later_learning_rate
    if config.schedule == "one_cycle":
        share = (epoch + 0.5) / config.epochs  # of the task, in the middle of the epoch
        rise = 0.2
        falling = 0.5 * (1 + math.cos(math.pi * (share - rise) / (1 - rise)))
        return start * (share / rise if share < rise else falling)
    epochs = [m if m >= 1 else m * config.epochs for m in config.milestones]
    return start * 0.1 ** sum(epoch >= milestone for milestone in epochs)


def feature_spread(features: Tensor) -> Tensor:
    """Mean cosine distance between two features ``[B, D]`` of a batch: 0 if all point one way."""
    unit = unit_length(features)
    others = len(unit) * (len(unit) - 1)
    return 1 - ((unit.sum(dim=0) ** 2).sum() - (unit**2).sum()) / max(others, 1)


def _check_health(history: list[dict[str, float]], classes: int, last_epoch: bool) -> bool:
    """Stop a run that has broken down; a broken network can even score well in retrieval.

    Returns False for an epoch that looks broken but may pass.

    Features have collapsed when they are four times closer together than in the best epoch so far
    and no longer tell the task's classes apart: cross entropy, if the method has it, is near that
    of guessing. One such epoch can be a passing shock, so training stops after two in a row, or if
    it is the last one.
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
    recent = [r for r in history[-2:] if r["task"] == record["task"]]
    collapsed = [
        classes > 1
        and r["spread"] < 0.25 * best
        and r.get("ce", math.inf) > 0.9 * math.log(classes)
        for r in recent
    ]
    if collapsed[-1] and (last_epoch or collapsed == [True, True]):
        raise TrainingError(
            f"{where}: the features have collapsed, all images have nearly the same one (mean "
            f"cosine distance {record['spread']:.1e}, it was {best:.2g}): {remedy}"
        )
    return not collapsed[-1]


@torch.no_grad()
def _class_means(teacher: ResNet, stage: Task, batch_size: int = 512) -> Tensor:
    """Sum of each new class's unit features, as the teacher sees it: ``[new classes, D]``."""
    device = teacher.head.weight.device
    batches = stage.train_images.split(batch_size)
    features = torch.cat([unit_length(teacher(batch.to(device))[0]) for batch in batches])
    labels = stage.train_labels.to(device) - stage.first_label
    sums = torch.zeros(len(stage.classes), features.shape[1], device=device)
    return sums.index_add_(0, labels, features)
