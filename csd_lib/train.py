"""One step, one task, one run: loops that are the same for every method."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import TrainingError, checks
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
    Precision,
    StepState,
    adam,
    check_machine,
    load_optimizer,
    set_learning_rate,
)
from csd_lib.losses import unit_length
from csd_lib.methods import LossSettings, Method, Outputs, get_method
from csd_lib.model import Network, freeze, load_state, make_network
from csd_lib.retrieval import embed, recall_at_k
from csd_lib.runs import RunFolder


@dataclass(frozen=True, eq=False)
class Run:
    """What training leaves behind."""

    config: TrainConfig
    tasks: list[Task]
    models: list[Network]  # frozen, after each task (joint training: one, after all of them)
    history: list[dict[str, float]]  # one record per epoch


def training_step(
    student: Network,
    teacher: Network | None,
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
    on_epoch: Callable[[list[dict[str, float]], Network], None] | None = None,
    progress: bool = True,
) -> Run:
    """Train one network on the tasks, one after the other, without keeping old images.

    Args:
        config: everything that decides the run.
        dataset: the images; default: loads ``config.dataset``.
        folder: where to keep history, checkpoints and the model after every task. Called again with
            the same config and images, a killed run goes on from there, on the CPU with the same
            result bit for bit. None keeps nothing.
        first_task: folder of a finished run of ``config.first_task()``, which is then not trained
            again; the result is the same.
        stop_after: train only this many tasks for now; a later call goes on from there.
        on_epoch: called after every epoch with the history so far, for live curves, and with the
            student as it is then, to look at and not to change: ``embed`` leaves it as it was.
        progress: show a progress bar.

    Raises:
        InputError: if the config is impossible for this data set or machine, or the folder holds
            another run.
        TrainingError: if the loss is not finite or the features collapse.
    """
    checks.instance("config", config, TrainConfig, "a TrainConfig")
    for name, value in {"folder": folder, "first_task": first_task}.items():
        checks.instance(name, value, (str, Path, type(None)), "a path, or None")
    if stop_after is not None:
        checks.whole("stop_after", stop_after, 1)
    device, precision = check_machine(config.device, config.precision, config.cuda_graph)
    dataset = load_dataset(config.dataset) if dataset is None else dataset
    tasks = class_incremental_split(dataset, config.tasks, seed=config.class_order_seed)
    method = get_method(config.method)
    stages = [merge_tasks(tasks)] if method.joint else tasks
    student = make_network(config, dataset.mean, dataset.std)
    student.to(device, memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(config.seed)
    run = Run(config, tasks, [], [])

    with RunFolder.open(folder, config, dataset) as kept, precision.switches():
        saved = kept.load() or RunFolder.load_first_task(first_task, config, dataset)
        if saved:
            with saved.restoring():
                run.history.extend(saved.history(config.epochs))
                for stage, state in zip(stages, saved["models"], strict=False):
                    learned = stage if method.learns_later else stages[0]
                    student.grow_head(learned.end_label - student.num_classes)
                    load_state(student, state)
                    run.models.append(freeze(student))
        kept.write_history(run.history)  # epochs after the checkpoint are run again

        for stage in stages[len(run.models) : stop_after]:
            teacher = run.models[-1] if run.models else None
            if teacher is not None and not method.learns_later:
                run.models.append(teacher)
                continue
            add_head_rows(student, teacher, stage, config)
            seen = stages[: stage.index + 1]
            learning = TaskTraining(student, teacher, seen, config, precision, generator)
            if saved:
                with saved.restoring():
                    saved.restore_generator(generator)
                    if "learning" in saved:
                        learning.load_state_dict(saved["learning"], run.history)
                saved = None
            title = f"{method.title}, task {stage.index + 1} of {len(stages)}"
            with learning.progress_bar(title if progress else None) as bar:
                while learning.epoch < config.epochs:
                    run.history.append(learning.run_epoch(bar))
                    kept.append_history(run.history[-1])
                    if on_epoch:
                        on_epoch(run.history, student)
                    if kept.is_due() and learning.epoch < config.epochs:
                        kept.save(run.models, run.history, generator, learning.state_dict())
            learning.finish()
            run.models.append(freeze(student))
            kept.save(run.models, run.history, generator)
    return run


class TaskTraining:
    """One task that is being learned: a step, an epoch, and all that is needed to go on from there.

    Args:
        student: learns the last task; its head has a row for each class so far.
        teacher: the frozen model from before, or None on the first task.
        tasks: all tasks so far. Only the published code's way of selecting a model looks at the
            test images of earlier ones.
        config: how to learn.
        precision: how the networks compute.
        generator: on the device; draws order and augmentation.
    """

    def __init__(
        self,
        student: Network,
        teacher: Network | None,
        tasks: Sequence[Task],
        config: TrainConfig,
        precision: Precision,
        generator: torch.Generator,
    ):
        task, device = tasks[-1], generator.device
        self.student, self.teacher, self.config = student, teacher, config
        self.precision, self.generator = precision, generator
        self.method = get_method(config.method)
        self.optimizer = adam(student, config.weight_decay, device)
        self.index, self.epoch = task.index, 0
        if teacher is not None and config.teacher_statistics == "batch":
            self.teacher = copy.deepcopy(teacher).train()
        self.selection = None
        if config.selection == "test":
            seen = merge_tasks(tasks)
            self.selection = Selection(seen.test_images.to(device), seen.test_labels.to(device))
        elif config.selection == "held_out":
            task, *held_out = hold_out(task, config.held_out, config.seed)
            self.selection = Selection(*(part.to(device) for part in held_out))
        if self.selection:
            self.selection.measure(student)  # before the first epoch too, as the published code

        self.images, self.labels = task.train_images.to(device), task.train_labels.to(device)
        terms = self.method.term_names(teacher is not None)
        self.names = ("loss", *terms, "spread")
        self.totals = torch.zeros(len(self.names), device=device)
        self.health = Health(len(task.classes), self._spread_before())
        self.step = self.eager_step
        if config.cuda_graph:  # the same step, recorded once and replayed
            networks = [student] if teacher is None else [student, self.teacher]
            state = StepState(networks, self.totals, self.optimizer, precision.scaler, generator)
            self.step = CapturedStep(self.eager_step, state)

    def eager_step(self, batch: Tensor) -> None:
        """Learn the images with these indices (int64 ``[B]``), and add up what was measured."""
        config = self.config
        images = augment(self.images[batch], config.crop_padding, config.flip, self.generator)
        labels = self.labels[batch]
        terms, features = training_step(
            self.student,
            self.teacher,
            self.optimizer,
            images,
            labels,
            self.method,
            config,
            self.precision,
        )
        numbers = torch.stack([sum(terms.values()), *terms.values(), feature_spread(features)])
        self.totals.add_(numbers, alpha=len(batch) / len(self.labels))

    def run_epoch(self, bar: tqdm | None = None) -> dict[str, float]:
        """Learn all images once, and return the epoch's record.

        Raises:
            TrainingError: if training has broken down.
        """
        started, config = time.perf_counter(), self.config
        rate = learning_rate(config, self.index, self.epoch)
        set_learning_rate(self.optimizer, rate)
        self.student.train()
        self.totals.zero_()
        device = self.labels.device
        order = torch.randperm(len(self.labels), device=device, generator=self.generator)
        for batch in order.split(config.batch_size):  # the last, smaller batch is kept
            self.step(batch)
            if bar is not None:
                bar.update()
        # The only place where the host waits for the device: once an epoch.
        means = dict(zip(self.names, self.totals.tolist(), strict=True))
        record = {"task": self.index, "epoch": self.epoch, **means, "learning_rate": rate}
        self.epoch += 1
        last = self.epoch == config.epochs
        healthy = self.health.check(record, self.student, last)
        if self.selection and healthy and (last or self.epoch % config.select_every == 0):
            record["selection_recall"] = self.selection.measure(self.student)
        record["seconds"] = time.perf_counter() - started
        if bar is not None:
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
        return record

    def finish(self) -> None:
        """Leave in the student the model that the task hands on."""
        if self.selection:
            self.student.load_state_dict(self.selection.state)

    def progress_bar(self, title: str | None) -> tqdm:
        """Return a bar that counts steps, beginning with those done; None shows none."""
        steps = math.ceil(len(self.labels) / self.config.batch_size)
        total, done = steps * self.config.epochs, steps * self.epoch
        return tqdm(desc=title, disable=title is None, total=total, initial=done, unit="step")

    def state_dict(self) -> dict[str, Any]:
        """Return all that another object of the same arguments needs to go on from here."""
        best = self.selection
        return {
            "epoch": self.epoch,
            "student": self.student.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "best": {"recall": best.recall, "state": best.state} if best else {},
        }

    def load_state_dict(
        self, state: dict[str, Any], history: Sequence[dict[str, float]] = ()
    ) -> None:
        """Go on from what ``state_dict`` returned, after the epochs in ``history``.

        Raises:
            ValueError: if it does not fit this task.
        """
        before = [record for record in history if record["task"] == self.index]
        if state["epoch"] != len(before) or not 0 < state["epoch"] < self.config.epochs:
            raise ValueError(f"it is in epoch {state['epoch']}, its history has {len(before)}")
        if self.selection:
            load_state(self.student, state["best"]["state"])
            checks.number("best_recall", state["best"]["recall"], at_least=0, at_most=1)
            self.selection.recall = state["best"]["recall"]
            self.selection.state = state["best"]["state"]
        load_state(self.student, state["student"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
        for record in before:
            self.health.note(record)
        self.epoch = state["epoch"]

    @torch.no_grad()
    def _spread_before(self) -> float:
        """Measure the spread of the student's features as it is now, on a batch in train mode."""
        student = copy.deepcopy(self.student).train()
        images = self.images[:: max(1, len(self.images) // self.config.batch_size)]
        with self.precision.autocast():
            features, _ = student(images[: self.config.batch_size])
        return feature_spread(features).item()


class Health:
    """Notices training that has broken down; a broken network can even score well in retrieval.

    Args:
        num_classes: of the task.
        spread_before: of the features before the first epoch.
    """

    def __init__(self, num_classes: int, spread_before: float):
        self.num_classes, self.spreads, self.collapsed = num_classes, [spread_before], False

    def note(self, record: dict[str, float]) -> None:
        """Take an epoch into account: are the features collapsed now?

        They are when they are four times closer together than at their best, before this task or
        since, and no longer tell the task's classes apart: cross entropy, if the method has it, is
        near that of guessing.
        """
        guesses = record.get("ce", math.inf) > 0.9 * math.log(self.num_classes)
        close = record["spread"] < 0.25 * max(self.spreads)
        self.collapsed = close and guesses and self.num_classes > 1
        self.spreads.append(record["spread"])

    def check(self, record: dict[str, float], student: Network, last: bool) -> bool:
        """Return False after an epoch that looks broken but may pass.

        Collapsed features can be a passing shock, so training stops after two such epochs in a
        row, or if it is the last one; it stops at once when a number is not finite.

        Raises:
            TrainingError: to stop it.
        """
        where = f"task {record['task'] + 1}, epoch {record['epoch'] + 1}"
        remedy = (
            f"lower the learning rate (here {record['learning_rate']:g}; "
            f"the paper uses 1e-3 on the first task and 1e-5 later)"
        )
        broken = [f"{name} {value}" for name, value in record.items() if not math.isfinite(value)]
        weights = [weight.isfinite().all() for weight in student.state_dict().values()]
        if broken or not torch.stack(weights).all():
            what = ", ".join(broken) or "the network's weights are not finite"
            raise TrainingError(f"{where}: training has diverged ({what}): {remedy}")
        best, was_collapsed = max(self.spreads), self.collapsed
        self.note(record)
        if self.collapsed and (last or was_collapsed):
            epoch = self.spreads.index(best)
            raise TrainingError(
                f"{where}: the features have collapsed, all images have nearly the same one (mean "
                f"cosine distance {record['spread']:.1e}; it was {best:.2g} "
                f"{f'in epoch {epoch}' if epoch else 'before this task'}): {remedy}"
            )
        return not self.collapsed


class Selection:
    """Keeps the best of a task's models, by Recall@1 among the images that it is measured on."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images, labels
        self.recall, self.state = -1.0, {}

    def measure(self, student: Network) -> float:
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


def add_head_rows(
    student: Network, teacher: Network | None, task: Task, config: TrainConfig
) -> None:
    """Give the student's head a row for each class of a new task, as the config says."""
    if teacher is not None and config.head_init == "class_means":
        student.head.grow(_class_means(teacher, task))
    else:
        rows = torch.Generator().manual_seed(1000 * config.seed + task.index)
        student.grow_head(len(task.classes), rows)


@torch.no_grad()
def _class_means(teacher: Network, task: Task, batch_size: int = 512) -> Tensor:
    """Sum of each new class's unit features, as the teacher sees it: ``[new classes, D]``."""
    device = teacher.head.weight.device
    batches = task.train_images.split(batch_size)
    features = torch.cat([unit_length(teacher(batch.to(device))[0]) for batch in batches])
    labels = task.train_labels.to(device) - task.first_label
    sums = torch.zeros(len(task.classes), features.shape[1], device=device)
    return sums.index_add_(0, labels, features)
