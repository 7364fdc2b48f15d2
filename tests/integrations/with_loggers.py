"""--log with the tools themselves, without a network: what was sent can be read back."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def train(tmp_path, tool, **environment):
    command = [sys.executable, "-m", "csd_lib", "train", "--epochs", "2", "--quiet", "--log", tool]
    environment |= {"CSD_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_tensorboard_holds_every_epoch(tmp_path):
    train(tmp_path, "tensorboard")
    (folder,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("ce")] == [0, 1, 2, 3]
    assert [event.step for event in events.Scalars("csd")] == [2, 3]


def test_wandb_keeps_a_run_offline(tmp_path):
    train(tmp_path, "wandb", WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true")
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
