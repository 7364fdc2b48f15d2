"""What many runs cost: seconds and memory of ``report`` and of a plan, files and MB on the disk.

python benchmarks/many_runs.py
python benchmarks/many_runs.py --runs 10000 --epochs 25
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench import machine, new_parser, write

from csd_lib.config import TrainConfig
from csd_lib.experiment import FinishedRun, run_experiment


def main() -> None:
    """Copy one run's results under many seeds, report and plan them, record what that takes."""
    parser = new_parser(__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=1, help="of each task, in the records")
    parser.add_argument("--times", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        # The size of a run's files is that of the paper's network; its images do not matter.
        config = TrainConfig(epochs=1, depth=32, device="cpu")
        first = run_experiment(config, folder=Path(temporary) / "first", progress=False)
        folder = Path(temporary) / "records"
        make_records(first, folder, arguments.runs, arguments.epochs)
        report = ["report", "--folder", str(folder)]
        plan = ["sweep", "grid", "--settings", "epochs=1", "depth=32", "device=cpu", "--dry-run"]
        plan += ["--folder", str(folder), "--seeds", *map(str, range(arguments.runs))]
        found = {
            "machine": machine(torch.device("cpu")),
            "load": round(os.getloadavg()[0], 1),  # more than the cores: others work beside
            "runs": arguments.runs,
            "epochs": arguments.epochs,
            "records_mb": megabytes(folder),
            **{"run_files": count(first.folder), "run_mb": megabytes(first.folder)},
            **timed(report, arguments.times),
            "plan": timed(plan, 1),
        }
    print(json.dumps(found, indent=1))
    write("many_runs", found, arguments.out)


def make_records(run: FinishedRun, folder: Path, runs: int, epochs: int) -> None:
    """Write the results of a run as those of many seeds, with a history of so many epochs."""
    results = json.loads((run.folder / "results.json").read_text())
    results["history"] = [
        {**run.history[task], "epoch": epoch} for task in range(2) for epoch in range(epochs)
    ]
    for seed in range(runs):
        results["config"]["seed"] = seed
        place = folder / str(seed)
        place.mkdir(parents=True)
        (place / "results.json").write_text(json.dumps(results, indent=1))


def count(folder: Path) -> int:
    """Return how many files there are."""
    return sum(path.is_file() for path in folder.rglob("*"))


def megabytes(folder: Path) -> float:
    """Return what all files have together."""
    return round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6, 1)


def timed(command: list[str], times: int) -> dict[str, Any]:
    """Return the seconds of a command of csd, each time, and the most memory it needs, in MB."""
    seconds, memory = [], 0
    for _ in range(times):
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "csd_lib", *command], stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"error: {command[0]} ends with {status}")
        seconds.append(round(time.perf_counter() - started, 2))
        memory = max(memory, round(used.ru_maxrss / 1024))
    return {"seconds": seconds, "memory_mb": memory}


if __name__ == "__main__":
    main()
