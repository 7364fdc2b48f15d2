"""One step, one task, one run: loops that are the same for every method."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import checks, prepare
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset, Task, augment, merge_tasks
from csd_lib.engine import Precision, StepState, check_machine, make_optimizer, set_learning_rate
from csd_lib.methods import LossSettings, Method, Outputs, get_method
from csd_lib.model import Network, freeze
from csd_lib.numerics import torchs_numbers
from csd_lib.runs import RunFolder
from csd_lib.steps import Steps
from csd_lib.stored import StoredImages
from csd_lib.watch import Health, Selection, Totals, progress_bar, spread_in_training


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """What training leaves behind."""

    config: TrainConfig
    tasks: list[Task]
    models: list[Network]  # frozen, after each task (joint training: one, after all of them)
    history: list[dict[str, float]]  # one record per epoch

    def __repr__(self) -> str:
        """Name what was trained, without all images and weights."""
        which = f"{self.config.method!r}, seed={self.config.seed}"
        return f"{type(self).__name__}({which}, {len(self.models)} models)"


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
    loss = sum(terms.values())
    optimizer.zero_grad(set_to_none=True)
    precision.scaler.scale(loss).backward()  # type: ignore[arg-type] # no 0, as there are terms
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
    prefix: str | Path | None = None,
    stop_after: int | None = None,
    on_epoch: Callable[[list[dict[str, float]], Network], None] | None = None,
    progress: bool = True,
) -> Run:
    """Train one network on the tasks, one after the other, without keeping old images.

    Args:
        config, dataset: what decides the run; default: the images of ``config.dataset``.
        folder: where to keep history, checkpoints and the model after every task, or None. Called
            again, a killed run goes on from there, on the CPU to the same result bit for bit.
        first_task: folder of a finished run of ``identity.first_task(config)``, to begin after it.
        prefix: checkpoint of the same run as far as an earlier ``stop_at_epoch``, to go on from in
            the first task (see ``runs.find_prefix``).
        stop_after: train only this many tasks for now; a later call goes on from there.
        on_epoch: called after every epoch with history and student, to look at and not to change.
        progress: show a progress bar.

    Raises:
        InputError: if the config is impossible here, or the folder holds another run.
        TrainingError: if the loss is not finite or the features collapse.
    """
    checks.instance("config", config, TrainConfig, "a TrainConfig")
    if stop_after is not None:
        checks.whole("stop_after", stop_after, 1)
    checks.instance("on_epoch", on_epoch, Callable | None, "a function")
    device, precision = check_machine(config.device, config.precision, config.cuda_graph)
    dataset = prepare.load_images(config, dataset)
    run = Run(config, prepare.split_classes(dataset, config), [], [])
    method = get_method(config.method)
    stages = [merge_tasks(run.tasks)] if method.joint else run.tasks
    with precision.switches():
        student = prepare.new_student(config, dataset, device)
        prepare.check_stages(stages, student, config)
    generator = torch.Generator(device).manual_seed(config.seed)
    with RunFolder.open(folder, config, dataset) as kept, precision.switches():
        saved = kept.load() or RunFolder.load_begun(first_task, prefix, config, dataset)
        if saved:
            saved.restore(run, student, stages)
        kept.begin(run)  # epochs after the checkpoint are run again
        for stage in stages[len(run.models) : stop_after]:
            teacher = run.models[-1] if run.models else None
            if teacher is not None and not method.learns_later:
                run.models.append(teacher)
                continue
            prepare.add_head_rows(student, teacher, stage, config)
            seen = stages[: stage.index + 1]
            learning = TaskTraining(student, teacher, seen, config, precision, generator)
            if saved:
                saved.go_on(learning, run.history)
                saved = None
            title = f"{method.title}, task {stage.index + 1} of {len(stages)}"
            _learn(learning, run, kept, on_epoch, title if progress else None)
    return run


def _learn(
    learning: TaskTraining,
    run: Run,
    kept: RunFolder,
    on_epoch: Callable[[list[dict[str, float]], Network], None] | None,
    title: str | None,
) -> None:
    """Learn a task to its last epoch, and keep the model that it hands on."""
    with progress_bar(learning, title) as bar:
        while learning.epoch < learning.epochs:
            run.history.append(learning.run_epoch(bar))
            kept.append_history(run.history[-1])
            kept.note_steps(learning.index, learning.step.take_decisions(), bar)
            if on_epoch:
                on_epoch(run.history, learning.student)
            if kept.is_due() and learning.epoch < learning.epochs:
                kept.save(run, learning)
    if not run.models and learning.epochs < run.config.schedule_length(0):
        kept.save(run, learning, name="prefix.pt")
    learning.finish()
    run.models.append(freeze(learning.student))
    kept.save(run, learning, finished=True)


class TaskTraining:
    """One task that is being learned: a step, an epoch, and all that a checkpoint keeps of it.

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
        task, self.selection = Selection.begin(config, tasks, student)
        device = generator.device
        self.method = get_method(config.method)
        if self.method.term_names(True) == self.method.term_names(False):
            teacher = None  # no term would ask it
        if teacher is not None and config.teacher_statistics == "batch":
            teacher = copy.deepcopy(teacher).train()
        self.student, self.teacher, self.config = student, teacher, config
        self.precision, self.generator = precision, generator
        self.optimizer = make_optimizer(
            config.optimizer, student, config.weight_decay, device, config.backbone_rate
        )
        self.index, self.epoch = task.index, 0
        self.epochs = config.epochs_to_run(task.index)
        self.images, self.labels = task.train_images.to(device), task.train_labels.to(device)
        self.totals = Totals(self.method.term_names(teacher is not None), len(self.labels), device)
        batch = self.images[:: max(1, len(self.images) // config.batch_size)][: config.batch_size]
        with torchs_numbers(device, config.seed, task.index):
            self.health = Health(len(task.classes), spread_in_training(student, batch, precision))
        networks = [student] if teacher is None else [student, teacher]
        state = StepState(networks, self.totals.sums, self.optimizer, precision.scaler, generator)
        # A graph cannot read a file.
        graph = "false" if isinstance(self.images, StoredImages) else config.cuda_graph
        self.step = Steps(self.eager_step, state, graph, len(self.labels))

    def eager_step(self, batch: Tensor) -> None:
        """Learn the images with these indices (int64 ``[B]``), and add up what was measured."""
        config, networks, labels = self.config, (self.student, self.teacher), self.labels[batch]
        images = augment(self.images[batch], config.crop_padding, config.flip, self.generator)
        terms, features = training_step(
            *networks, self.optimizer, images, labels, self.method, config, self.precision
        )
        self.totals.add(terms, features)

    def run_epoch(self, bar: tqdm | None = None) -> dict[str, float]:
        """Learn all images once, and return the epoch's record.

        Raises:
            TrainingError: if training has broken down.
        """
        started, config = time.perf_counter(), self.config
        rate = learning_rate(config, self.index, self.epoch)
        set_learning_rate(self.optimizer, rate)
        self.student.train()
        self.totals.sums.zero_()
        device = self.labels.device
        order = torch.randperm(len(self.labels), device=device, generator=self.generator)
        with torchs_numbers(device, config.seed, self.index, self.epoch):
            for batch in order.split(config.batch_size):  # the last, smaller batch is kept
                self.step(batch)
                if bar is not None:
                    bar.update()
        means, shares, finite = self.totals.read(self.student)
        record = {"task": self.index, "epoch": self.epoch, **means, "learning_rate": rate}
        self.epoch += 1
        last = self.epoch == self.epochs
        healthy = self.health.check(record, finite, last, shares)
        # A prefix looks when the whole run does.
        ends = self.epoch == config.schedule_length(self.index)
        if self.selection and healthy and (ends or self.epoch % config.select_every == 0):
            record["selection_recall"] = self.selection.measure(self.student)
        record["seconds"] = time.perf_counter() - started
        if bar is not None:
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
        return record

    def finish(self) -> None:
        """Leave in the student the model that the task hands on."""
        self.step.release()
        if self.selection:
            self.student.load_state_dict(self.selection.state)


def learning_rate(config: TrainConfig, task_index: int, epoch: int) -> float:
    """Return the learning rate for one epoch of one task."""
    start = config.learning_rate if task_index == 0 else config.later_learning_rate
    length = config.schedule_length(task_index)
    if config.schedule == "one_cycle":
        share = (epoch + 0.5) / length  # of the task, in the middle of the epoch
        rise = 0.2
        falling = 0.5 * (1 + math.cos(math.pi * (share - rise) / (1 - rise)))
        return start * (share / rise if share < rise else falling)
    # Rounded, or 0.55 of 100 epochs would be a little more than 55.
    epochs = [m if m >= 1 else round(m * length, 6) for m in config.milestones]
    return start * 0.1 ** sum(epoch >= milestone for milestone in epochs)
