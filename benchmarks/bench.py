"""What every benchmark here needs: options, fair timing, and a record of what it ran on."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def new_parser(text: str) -> argparse.ArgumentParser:
    """Return a parser with the first line of a benchmark's text, and the folder of the records."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/results/benchmarks"))
    return parser


def alternate(candidates: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Time candidates in turn, A B B A A B ..., and return each one's median seconds.

    One round before the first is not counted: caches fill and algorithms are chosen in it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        order = list(candidates) if number % 2 else list(candidates)[::-1]
        for name in order:
            synchronize()
            started = time.perf_counter()
            candidates[name]()
            synchronize()
            if number > 0:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": gpu or f"cpu, {torch.get_num_threads()} threads",
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def peak_mb() -> float:
    """Return the most memory that this process has used so far; not on Windows."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def read(name: str, folder: Path) -> list[dict[str, Any]]:
    """Return all measurements in ``<folder>/<name>.jsonl``, the oldest first."""
    path = folder / f"{name}.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def write(name: str, content: dict[str, Any], folder: Path) -> None:
    """Add a measurement to ``<folder>/<name>.jsonl``; earlier ones stay."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(content) + "\n")
    print(f"added to {folder / name}.jsonl: {json.dumps(content)}", flush=True)
