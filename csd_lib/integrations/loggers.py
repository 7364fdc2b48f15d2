"""Each epoch's numbers for TensorBoard, Weights & Biases or trackio, whichever is installed.

The record stays the run's own history.jsonl; this is for looking at it in a tool you know.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from typing import Any

from csd_lib import InputError, checks
from csd_lib.config import TrainConfig
from csd_lib.identity import data_name
from csd_lib.paths import runs_folder

TOOLS = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


@contextmanager
def epoch_logger(tool: str | None, config: TrainConfig) -> Iterator[Callable[..., None] | None]:
    """Enter with an ``on_epoch`` for ``train`` and ``run_experiment`` that sends epochs to a tool.

    A run that goes on after a kill sends its earlier epochs again, so that the curves are whole.
    TensorBoard's files are under ``runs/tensorboard``; the others have a project ``csd-kit``. The
    config is stored beside the curves. InputError for another tool, or one that is not installed.
    """
    if tool is None:
        yield None
        return
    checks.one_of("log", tool, TOOLS)
    try:
        package: Any = import_module(TOOLS[tool])
    except ImportError as error:
        raise InputError(f"log={tool!r} is not installed ({error}): pip install {tool}") from error
    name = f"{data_name(config)}-{config.method}-{config.tasks}tasks-seed{config.seed}"
    if tool == "tensorboard":
        folder = runs_folder() / tool / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        writer = package.SummaryWriter(folder)
        writer.add_text("config", json.dumps(asdict(config)))
        finish = writer.close
    else:
        package.init(project="csd-kit", name=name, config=asdict(config))
        finish = package.finish
    sent = 0

    def on_epoch(history: list[dict[str, float]], _: Any) -> None:
        nonlocal sent
        for step, record in enumerate(history[sent:], sent):
            if tool != "tensorboard":
                package.log(record, step=step)
                continue
            for key, value in record.items():
                writer.add_scalar(key, value, step)
        sent = len(history)

    try:
        yield on_epoch
    finally:
        finish()
