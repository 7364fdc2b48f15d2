"""What a run, and each of its tasks, begins with: images, network, and new rows of its head."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset, Task, class_incremental_split, hold_out
from csd_lib.datasets import are_scaled, load_dataset
from csd_lib.model import Network
from csd_lib.networks import init_head, input_size, make_network, try_network
from csd_lib.numerics import in_parts, torchs_numbers, unit_length
from csd_lib.stored import StoredImages


def load_images(config: TrainConfig, given: Dataset | None = None) -> Dataset:
    """Load the images of a config: of a folder, in the size that the network's weights want.

    Images that are given are returned instead.
    """
    if given is not None:
        checks.instance("dataset", given, Dataset, "what load_dataset returns")
        return given
    size = input_size(config) if are_scaled(config.dataset) else config.image_size
    return load_dataset(config.dataset, image_size=size)


def _check_images(config: TrainConfig, dataset: Dataset) -> None:
    """Refuse to crop or mirror features, and a CUDA graph of images that stay in their file."""
    images = dataset.train_images
    if images.dtype != torch.uint8 and (config.crop_padding or config.flip):
        raise InputError(
            f"{dataset.name} holds features, which cannot be cropped or mirrored: choose "
            f"network='features', or crop_padding=0 and flip=False"
        )
    if config.cuda_graph == "true" and isinstance(images, StoredImages):
        raise InputError(
            f"cuda_graph=true: the images of {dataset.name} stay in their file, and a graph cannot "
            f"read it: leave it out"
        )


def split_classes(dataset: Dataset, config: TrainConfig) -> list[Task]:
    """Split a data set into the tasks of a config; classes without images are warned of.

    InputError as of ``class_incremental_split``, and if nothing of a task can be learned or found,
    or settings make no sense for these images.
    """
    _check_images(config, dataset)
    tasks = class_incremental_split(
        dataset, config.tasks, seed=config.class_order_seed, first_classes=config.first_classes
    )
    for task in tasks:
        for part, least in (("train", 1), ("test", 2)):  # a test image is found by another one
            labels = getattr(task, f"{part}_labels") - task.first_label
            counts = torch.bincount(labels, minlength=len(task.classes))
            where = f"task {task.index + 1} ({', '.join(task.class_names[:10])})"
            if counts.max() < least:
                few = "no class with two test images" if counts.any() else f"no {part} images"
                raise InputError(f"{dataset.name}: {where} has {few}: add some, or leave it out")
            empty = [task.class_names[place] for place in (counts == 0).nonzero().flatten()]
            if empty:
                warnings.warn(
                    f"{dataset.name}: no {part} images of {', '.join(empty)}", stacklevel=3
                )
    return tasks


def check_stages(stages: Sequence[Task], student: Network, config: TrainConfig) -> None:
    """Refuse, before the first epoch, what would break a later task or leave it unlearned.

    These are selections that cannot select, and last batches that cannot be learned. ``stages`` are
    all tasks, even if this run stops after the first: others go on from it.
    """
    for stage in stages:
        first_look = min(config.select_every, config.schedule_length(stage.index))
        if config.selection != "last" and config.epochs_to_run(stage.index) < first_look:
            raise InputError(
                f"stop_at_epoch={config.stop_at_epoch}: selection={config.selection} first looks "
                f"at epoch {first_look}, so no trained model would be kept: stop later, or choose "
                f"a smaller select_every"
            )
        if config.selection == "held_out":
            if len(stage.classes) == 1:
                raise InputError(
                    f"selection=held_out: task {stage.index + 1} has one class, of which every "
                    f"image is found whatever is learned: choose selection=last, or fewer tasks"
                )
            stage, *_ = hold_out(stage, config.held_out, config.seed)
        count = len(stage.train_labels)
        if (count % config.batch_size or config.batch_size) == 1:
            _try_one_image(student, stage, config)


def _try_one_image(student: Network, stage: Task, config: TrainConfig) -> None:
    """Refuse a last batch of one image, if the network cannot take batch statistics of it."""
    image = stage.train_images[:1].to(student.head.weight.device)
    try:
        with torch.no_grad(), torchs_numbers(image.device, config.seed):
            copy.deepcopy(student).train()(image)
    except ValueError as error:
        raise InputError(
            f"task {stage.index + 1}: the last batch of an epoch has one image, of which this "
            f"network cannot take batch statistics: choose another batch_size, or larger images"
        ) from error


def new_student(config: TrainConfig, dataset: Dataset, device: torch.device) -> Network:
    """Return the network that training begins with, in the memory order of augmented images."""
    student = make_network(config, dataset.mean, dataset.std).to(device)
    try_network(student, str(config.network), dataset.train_images)
    return student.to(memory_format=torch.channels_last)


def add_head_rows(
    student: Network, teacher: Network | None, task: Task, config: TrainConfig
) -> None:
    """Give the student's head a row for each class of a new task, as the config says."""
    first = config.init_from if teacher is None else None
    if first and (saved := init_head(first, len(task.classes))) is not None:
        student.head.grow(saved)
        with torch.no_grad():
            student.head.weight.copy_(saved)  # to normalise once more would move the last bits
    elif teacher is not None and config.head_init == "class_means":
        if config.selection == "held_out":  # what is held out selects, and is not learned from
            task, *_ = hold_out(task, config.held_out, config.seed)
        student.head.grow(_class_means(teacher, task))
    else:
        rows = torch.Generator().manual_seed(1000 * config.seed + task.index)
        student.grow_head(len(task.classes), rows)


@torch.no_grad()
def _class_means(teacher: Network, task: Task) -> Tensor:
    """Sum of each new class's unit features, as the teacher sees it: ``[new classes, D]``."""
    device = teacher.head.weight.device
    batches = task.train_images.split(512)
    features = torch.cat([unit_length(in_parts(teacher, batch.to(device))[0]) for batch in batches])
    labels = task.train_labels.to(device) - task.first_label
    sums = torch.zeros(len(task.classes), features.shape[1], device=device)
    return sums.index_add_(0, labels, features)
