"""``csd doctor``: what it says of this machine, and whether its forecast adds up."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from csd_lib import doctor
from csd_lib.config import TrainConfig
from csd_lib.doctor import Rates, forecast, runs_of
from csd_lib.paper.published import EXPERIMENTS
from csd_lib.train import train

# Steps of 1 s and 100 s, a test image in 10,000 s: each part can be read off the sum.
RATES = Rates(1.0, 100.0, 1e4, 0.0)
CIFAR = dict(dataset="cifar100", epochs=3, device="cpu")
FIRST, LATER, MEASURED = 3 * 196, 3 * 196 * 100, 2 * 10_000 * 1e4


@pytest.mark.parametrize(
    "config, seconds",
    [
        (dict(method="csd"), FIRST + LATER + MEASURED),
        (dict(method="initial"), FIRST + MEASURED / 2),
        (dict(method="joint"), 3 * 391 + MEASURED / 2),
        (dict(method="csd", tasks=5), 3 * 79 * (1 + 4 * 100) + 5 * 10_000 * 1e4),
        (dict(method="csd", batch_size=500, tasks=1), 3 * 100 + MEASURED / 2),
        # The selection looks before the first epoch, after the second, and after the last.
        (dict(method="csd", selection="test"), FIRST + LATER + MEASURED + 3 * 15_000 * 1e4),
        (dict(method="initial", selection="held_out"), FIRST + MEASURED / 2 + 3 * 2500 * 1e4),
    ],
)
def test_a_forecast_counts_steps_and_images(config, seconds):
    assert forecast([TrainConfig(**CIFAR, **config)], RATES) == pytest.approx(seconds, rel=1e-9)


def test_a_shared_first_task_counts_once():
    one, two = (TrainConfig(**CIFAR, method=method) for method in ("csd", "lwf"))
    expected = forecast([one], RATES) + LATER + MEASURED
    assert forecast([one, two], RATES) == pytest.approx(expected, rel=1e-9)
    initial = TrainConfig(**CIFAR, method="initial")
    assert forecast([initial, one], RATES) == forecast([one, initial], RATES)
    assert forecast([initial, one], RATES) == pytest.approx(FIRST + LATER + 1.5 * MEASURED)
    other_seed = TrainConfig(**CIFAR, method="lwf", seed=1)
    both = forecast([one], RATES) + forecast([other_seed], RATES)
    assert forecast([one, other_seed], RATES) == pytest.approx(both, rel=1e-9)


def test_runs_are_those_of_a_mode():
    assert {c.dataset for c in runs_of("clothes")} == {"fashion"}
    assert len(runs_of("smoke")) == doctor.SMOKE_SEEDS * len(runs_of("class"))


def test_the_measured_rates_are_those_of_real_steps(digits, monkeypatch):
    """A run's own epochs take what its steps promise, wherever this runs, and beside whatever."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    config = TrainConfig(device="cpu", epochs=6)
    times = []
    for _ in range(3):  # the machine may be busy for a moment
        promised = forecast([config], doctor.measure(config, seconds=0.5))
        started = time.perf_counter()
        train(config, digits, progress=False)
        times.append(promised / (time.perf_counter() - started))
        if 0.5 < times[-1] < 2:
            return
    raise AssertionError(f"promised, in shares of what it took: {times}")


def test_only_a_problem_keeps_training_from_starting(monkeypatch):
    measured = {"device": "cpu", "precision": "fp32", "half_precision": "", "steps": []}
    measured |= {"milliseconds": {}, "minutes": {"mode class": 600.0, "make run": 0.5}}
    monkeypatch.setattr(doctor, "_measured", lambda *_: measured)
    monkeypatch.setattr(doctor, "locate", lambda: doctor.Path("nowhere.npz"))
    monkeypatch.setattr(doctor, "folders", list)
    found = doctor.examine()
    said = doctor.render(found)
    assert found["can_start"] and said.endswith("training can start")
    assert "note: CIFAR-100 is not here" in said and "10.0 h  mode class" in said
    assert "30 s  make run" in said and json.loads(json.dumps(found)) == found

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=1e8))
    found = doctor.examine()
    assert not found["can_start"] and "0.1 GB of disk" in found["problems"][0]


def test_a_machine_that_cannot_do_what_is_asked_is_a_problem():
    found = doctor.examine("cuda:77")
    assert not found["can_start"] and "cuda:77" in doctor.render(found)
    assert doctor.render(found).endswith("training cannot start")


def test_a_driver_without_a_gpu_in_torch_is_noted(monkeypatch):
    """The usual trouble: a build of torch that is newer than the driver."""
    monkeypatch.setattr(doctor, "_driver", lambda: "470.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = doctor._software()
    assert "470.1" in found["gpu_problem"] and "pytorch.org" in found["gpu_problem"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, answer in {
        "device_count": lambda: 1,
        "get_device_capability": lambda index: (3, 7),
        "mem_get_info": lambda index: (10e9, 12e9),
        "get_device_name": lambda index: "K80",
        "get_arch_list": lambda: ["sm_75", "sm_90a"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    found = doctor._software()
    assert "no kernels for K80" in found["gpu_problem"]
    assert found["gpus"] == ["cuda:0, K80, compute capability 3.7, 10.0 of 12.0 GB free"]


def table_1(preset):
    settings = dict(dataset="cifar100", preset=preset, device="cpu")
    return EXPERIMENTS["table1"].configs((0,), **settings)


@pytest.mark.parametrize(
    "row, configs, rates",
    [
        (
            "CSD, two tasks",
            [TrainConfig(dataset="cifar100", preset="class", device="cpu")],
            Rates(10.7e-3, 13.7e-3, 31e-6, 2e-10),
        ),
        ("Table 1 in preset `class`", table_1("class"), Rates(10.7e-3, 13.7e-3, 31e-6, 2e-10)),
        ("everything", runs_of("class", "cpu"), Rates(10.7e-3, 13.7e-3, 31e-6, 2e-10)),
        ("the same in `amp`", runs_of("class", "cpu"), Rates(5.3e-3, 6.9e-3, 16e-6, 2e-10)),
        ("Table 1 in preset `ref", table_1("reference"), Rates(10.7e-3, 13.7e-3, 31e-6, 2e-10)),
    ],
)
def test_the_page_about_gpus_has_the_forecast_of_its_own_figures(row, configs, rates):
    """From the milliseconds that a T4's memory needs for a step; the search hardly counts."""
    page = (Path(__file__).resolve().parent.parent / "docs" / "gpu.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {row}")]
    full, slower = (float(cell) for cell in line.strip("|").split("|")[1:])
    assert forecast(configs, rates) / 60 == pytest.approx(full, abs=0.06)
    parts = ("first_step", "later_step", "test_image")
    slow = replace(rates, **{part: getattr(rates, part) / 0.6 for part in parts})
    assert forecast(configs, slow) / 60 == pytest.approx(slower, rel=0.01, abs=0.06)
