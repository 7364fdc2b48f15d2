"""Can training start here, and how long will it take? Measured on this machine, in seconds.

What a run needs is counted (steps of the first and of later tasks, images to measure), and what one
of each takes here is measured, with training's own step. Their product is the forecast.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from csd_lib import InputError, checks, identity, paths
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset, class_incremental_split
from csd_lib.datasets import DATASETS, load_dataset
from csd_lib.download import CIFAR100, folders, locate
from csd_lib.engine import check_machine, half_precision, set_learning_rate, wait_for
from csd_lib.methods import get_method
from csd_lib.model import freeze
from csd_lib.output import duration
from csd_lib.prepare import add_head_rows, new_student
from csd_lib.retrieval import embed, recall_at_k
from csd_lib.train import TaskTraining

# Training images, test images, channels and pixels a side; CIFAR-100's, which may not be here yet.
SIZES = {"cifar100": (50_000, 10_000, 3, 32)}
# What chapters 1 to 6 train, for each of their seeds.
NOTEBOOK_RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((method, {}) for method in ("fine-tuning", "lwf", "csd", "joint", "ce")),
    ("fine-tuning", dict(later_learning_rate=1e-3, milestones=(0.25, 0.5, 0.75))),
    *((method, dict(tasks=5)) for method in ("fine-tuning", "csd")),
    *(
        ("csd", dict(teacher_statistics=statistics, selection=selection))
        for statistics, selection in (("batch", "last"), ("running", "test"), ("batch", "test"))
    ),
)
SMOKE_SEEDS = 3
# What the notebooks train on, by their mode.
MODE_SETTINGS: dict[str, dict[str, Any]] = {
    "smoke": dict(dataset="digits"),
    "clothes": dict(dataset="fashion"),
    "class": dict(dataset="cifar100", preset="class"),
    "paper": dict(dataset="cifar100", preset="clean"),
}
# What `make run` takes in all, as a multiple of training in chapters 1 to 6: the other chapters,
# kernels, figures, maps; two notebooks at a time. 228 s for a forecast of 86 s of training (two
# idle cores with AVX2, torch 2.14, November 2026).
NOTEBOOKS = 2.7
LEAST_DISK = 0.5e9  # bytes: CIFAR-100 with its archive has 350 MB, a run 20
LEAST_MEMORY = 1.5e9  # bytes: recorded runs in mode class took 1.8 GB, of which torch has 0.5


@dataclass(frozen=True)
class Rates:
    """What one of each takes here, in seconds."""

    first_step: float  # of a whole batch, on the first task
    later_step: float  # with a teacher
    test_image: float  # its feature
    test_pair: float  # one similarity in the search
    steps: tuple[str, ...] = ()  # on a GPU, how they were taken


def measure(config: TrainConfig, seconds: float = 2.0) -> Rates:
    """Measure training's own steps on made-up images of the right size, each for so many seconds.

    A GPU's trial of its graph comes on top. Data set, network, batch size, precision and device of
    the config count.
    """
    images = made_up_images(config, max(512, 3 * config.batch_size))
    times: list[float] = []
    decisions: list[str] = []
    for learning in tasks_to_learn(replace(config, selection="last"), images):
        set_learning_rate(learning.optimizer, 1e-4)
        learning.student.train()
        batch = torch.arange(config.batch_size, device=learning.labels.device)
        with learning.precision.switches():
            times.append(_repeated(partial(learning.step, batch), batch.device, seconds))
        decisions += map(str, learning.step.take_decisions())
    student, device = learning.student, learning.labels.device
    shown = images.train_images[:512]
    features, labels = torch.randn(2000, 64, device=device), torch.arange(2000, device=device) % 50
    each_image = _repeated(lambda: embed(student, shown), device, seconds / 2) / len(shown)
    each_pair = _repeated(lambda: recall_at_k(features, labels), device, seconds / 4) / 2000**2
    return Rates(times[0], times[1], each_image, each_pair, tuple(decisions))


def tasks_to_learn(config: TrainConfig, images: Dataset) -> Iterator[TaskTraining]:
    """Yield the first and the second of two tasks, each ready to be learned as ``train`` does it.

    What the first has become by then is the second's teacher, and the student it begins with.
    """
    device, precision = check_machine(config.device, config.precision, config.cuda_graph)
    student, teacher = new_student(config, images, device), None
    generator = torch.Generator(device).manual_seed(0)
    tasks = class_incremental_split(images, 2)
    for task in tasks:
        add_head_rows(student, teacher, task, config)
        parts = student, teacher, tasks[: task.index + 1]
        with precision.switches():
            learning = TaskTraining(*parts, config, precision, generator)
        yield learning
        learning.finish()
        teacher = freeze(student)


def made_up_images(config: TrainConfig, images: int) -> Dataset:
    """Make so many random training images, of the size and the classes of a config's data set."""
    _, _, channels, side = _size(config.dataset)
    classes = DATASETS[config.dataset].classes
    generator, parts = torch.Generator().manual_seed(0), {}
    for part, count in (("train", images), ("test", 2 * classes)):
        shape = (count, channels, side, side)
        pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        parts[f"{part}_images"] = pixels
        parts[f"{part}_labels"] = torch.arange(count) % classes
    names, stats = tuple(map(str, range(classes))), (0.5,) * channels
    return Dataset(name="made up", class_names=names, mean=stats, std=stats, **parts)


def forecast(configs: Iterable[TrainConfig], rates: Rates) -> float:
    """Return the seconds that some runs take; a first task that they share counts once."""
    total, first_tasks = 0.0, set()
    for config in configs:
        method, first = get_method(config.method), identity.first_task(config)
        if not method.learns_later:  # it is the first task itself, which others share
            first = config
        count = config.times_learned()
        key = str(identity.key(first or config))
        for number in range(count):
            share = 1 if method.joint else 1 / config.tasks
            is_known = number == 0 and first is not None and key in first_tasks
            total += 0 if is_known else _task_seconds(config, number, share, rates)
        if first is not None:
            first_tasks.add(key)
        test = _size(config.dataset)[1]
        pairs = test**2 * (1 + 1 / config.tasks)  # in both galleries
        total += count * (test * rates.test_image + pairs * rates.test_pair)
    return total


def runs_of(mode: str, device: str = "auto", precision: str = "fp32") -> list[TrainConfig]:
    """Return the runs of chapters 1 to 6 in a mode."""
    common: dict[str, Any] = dict(device=device, precision=precision)
    return [
        TrainConfig(method=method, seed=seed, **(common | MODE_SETTINGS[mode] | changes))
        for method, changes in NOTEBOOK_RUNS
        for seed in range(SMOKE_SEEDS if mode == "smoke" else 1)
    ]


def examine(device: str = "auto", precision: str = "fp32", seconds: float = 2.0) -> dict[str, Any]:
    """Return what ``csd doctor`` says: facts, problems, rates and forecasts in minutes.

    Training can start if there are no ``problems``; ``notes`` are only worth knowing.
    """
    found: dict[str, Any] = {"problems": [], "notes": [], **_software(), **_places()}
    if found["disk_free_gb"] * 1e9 < LEAST_DISK:
        found["problems"].append(f"{found['disk_free_gb']} GB of disk are free: make room")
    if found["memory_free_gb"] is not None and found["memory_free_gb"] * 1e9 < LEAST_MEMORY:
        found["notes"].append(f"only {found['memory_free_gb']} GB of memory are free")
    if found["gpu_problem"]:
        found["notes"].append(found["gpu_problem"])
    if not found["cifar100"]:
        found["notes"].append("CIFAR-100 is not here: python -m csd_lib data fetches it")
    try:
        found |= _measured(device, precision, seconds)
    except InputError as error:
        found["problems"].append(str(error))
    found["can_start"] = not found["problems"]
    return found


def render(found: dict[str, Any]) -> str:
    """Write what ``examine`` found as plain text."""
    memory = found["memory_free_gb"]
    lines = [
        f"Python {found['python']}, torch {found['torch']}, "
        + (f"built for CUDA {found['cuda']}" if found["cuda"] else "built without CUDA")
        + f", driver {found['driver'] or 'none found'}",
        *(f"GPU: {gpu}" for gpu in found["gpus"]),
        f"{found['cores']} cores, memory free: {'unknown' if memory is None else f'{memory} GB'}, "
        f"disk free for runs: {found['disk_free_gb']} GB ({found['runs']})",
        f"CIFAR-100: {found['cifar100'] or 'not here'}",
    ]
    if "minutes" in found:
        lines.append(
            f"training on {found['device']} in {found['precision']}; 16-bit type: "
            f"{found['half_precision'] or 'none of its own'}"
        )
        for name, rates in found["milliseconds"].items():
            lines.append(
                f"  {name}: a step of the first task {rates['first_step']:.1f} ms, of a later one "
                f"{rates['later_step']:.1f} ms, a test image {rates['test_image']:.2f} ms"
            )
        lines += [f"  {line}" for line in found["steps"]]
        lines.append("forecast for this machine as busy as it is now:")
        lines += [f"  {duration(60 * m):>12}  {name}" for name, m in found["minutes"].items()]
    lines += [f"note: {note}" for note in found["notes"]]
    lines += [f"problem: {problem}" for problem in found["problems"]]
    lines.append("training can start" if found["can_start"] else "training cannot start")
    return "\n".join(lines)


def mode_forecast(mode: str, device: str = "auto", seconds: float = 1.0) -> str:
    """Return one line for a notebook: how long all six take in a mode, measured here and now."""
    checks.one_of("mode", mode, MODE_SETTINGS)
    configs = runs_of(mode, device)
    time_needed = duration(forecast(configs, measure(configs[2], seconds)))
    return f"Training in chapters 1 to 6 takes about {time_needed} here in mode {mode}."


def _measured(device: str, precision: str, seconds: float) -> dict[str, Any]:
    """Measure both data sets' steps, and forecast."""
    from csd_lib.paper.published import EXPERIMENTS

    here, _ = check_machine(device, precision, "auto")  # before anything that takes time
    digits = runs_of("smoke", "cpu")
    images = runs_of("class", device, precision)
    small, large = measure(digits[2 * SMOKE_SEEDS], seconds), measure(images[2], seconds)
    minutes = {"make run: the notebooks": NOTEBOOKS * forecast(digits, small)}
    minutes["mode class: training in chapters 1 to 6"] = forecast(images, large)
    common: dict[str, Any] = dict(dataset="cifar100", device=device, precision=precision)
    for preset in ("class", "reference"):
        known: list[TrainConfig] = []
        for config in EXPERIMENTS["table1"].configs((0,), preset=preset, **common):
            before = forecast(known, large)
            known.append(config)
            name = f"Table 1, preset {preset}, {get_method(config.method).title}"
            minutes[name] = forecast(known, large) - before
        minutes[f"Table 1, preset {preset}, all cells of one seed"] = forecast(known, large)
    rates = {"digits": small, "cifar100": large}
    return {
        "device": str(here),
        "precision": precision,
        "half_precision": str(half_precision(here) or "").removeprefix("torch."),
        "milliseconds": {
            name: {
                part: round(1000 * getattr(rate, part), 4)
                for part in ("first_step", "later_step", "test_image")
            }
            for name, rate in rates.items()
        },
        "steps": [f"{name}, {step}" for name, rate in rates.items() for step in rate.steps],
        "minutes": {name: round(value / 60, 2) for name, value in minutes.items()},
    }


def _software() -> dict[str, Any]:
    """Name the versions, and why torch sees no GPU although there is one."""
    gpus, problem = [], ""
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            gpus.append(
                f"cuda:{index}, {name}, compute capability {major}.{minor}, {free / 1e9:.1f} of "
                f"{total / 1e9:.1f} GB free"
            )
            built_for = [arch for arch in torch.cuda.get_arch_list() if arch.startswith("sm_")]
            known = [int(arch[3:].rstrip("af")) for arch in built_for]
            if known and 10 * major + minor < min(known):
                problem = f"this torch has no kernels for {name}: install an older build of torch"
    driver = _driver()
    if driver and not gpus:
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        problem = (
            f"there is an NVIDIA driver ({driver}), but torch {torch.__version__} {build} and sees "
            f"no GPU: install the build of torch that pytorch.org names for this driver"
        )
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver,
        "gpus": gpus,
        "gpu_problem": problem,
    }


def _driver() -> str:
    """Return the version of the NVIDIA driver, or an empty text."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    ask = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(ask, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(said.stdout.split()), "") if said.returncode == 0 else ""


def _places() -> dict[str, Any]:
    """Say how much room there is, and whether CIFAR-100 is here."""
    runs, problems = paths.runs_folder(), []
    try:
        paths.try_writing(runs)
    except OSError as error:
        problems.append(f"{runs} cannot be written to ({error.strerror}): set CSD_RUNS")
    there = next(place for place in (runs, *runs.absolute().parents) if place.exists())
    images = [path for path in (locate(), *CIFAR100.found_in(folders())) if path.exists()]
    return {
        "problems": problems,
        "cores": os.cpu_count(),
        "memory_free_gb": _free_memory(),
        "runs": str(runs),
        "disk_free_gb": round(shutil.disk_usage(there).free / 1e9, 1),
        "cifar100": str(images[0]) if images else "",
    }


def _free_memory() -> float | None:
    """Return the GB that programs can have, or None where the system does not say (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return round(int(found[0]) * 1024 / 1e9, 1) if found else None


def _size(dataset: str) -> tuple[int, int, int, int]:
    if dataset not in SIZES:
        images = load_dataset(dataset)
        shape = images.train_images.shape
        SIZES[dataset] = (len(images.train_images), len(images.test_images), *shape[1:3])
    return SIZES[dataset]


def _repeated(action: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return the median time of some repetitions of an action, for so many seconds."""
    times: list[float] = []
    many = 10 if device.type == "cuda" else 1  # a GPU is asked for several at a time
    ends = time.perf_counter() + seconds
    action()
    while len(times) < 3 or time.perf_counter() < ends:
        wait_for(device)
        started = time.perf_counter()
        for _ in range(many):
            action()
        wait_for(device)
        times.append((time.perf_counter() - started) / many)
    return sorted(times)[len(times) // 2]


def _task_seconds(config: TrainConfig, number: int, share: float, rates: Rates) -> float:
    """Return the seconds of one task that has a share of all images."""
    train_images, test_images, *_ = _size(config.dataset)
    step = rates.later_step if number else rates.first_step
    steps = math.ceil(share * train_images / config.batch_size)
    epochs = config.epochs_to_run(number)
    seconds = epochs * steps * step
    if config.selection != "last":
        looks = 2 + epochs // config.select_every
        seen = test_images * share * (number + 1)
        if config.selection == "held_out":
            seen = config.held_out * train_images * share
        seconds += looks * (seen * rates.test_image + seen**2 * rates.test_pair)
    return seconds
