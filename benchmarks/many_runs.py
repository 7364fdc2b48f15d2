"""Seconds that ``python -m csd_lib report`` takes for a thousand runs.

python benchmarks/many_runs.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench import machine, write

from csd_lib.config import TrainConfig
from csd_lib.experiment import run_experiment


def main() -> None:
    """Copy one run's results under a thousand seeds, report them three times, record the best."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("data/results/benchmarks"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        first = run_experiment(
            TrainConfig(epochs=1), folder=Path(temporary) / "first", progress=False
        )
        results = json.loads((first.folder / "results.json").read_text())
        folder = Path(temporary) / "runs"
        for seed in range(arguments.runs):
            results["config"]["seed"] = seed
            place = folder / str(seed)
            place.mkdir(parents=True)
            (place / "results.json").write_text(json.dumps(results, indent=1))
        command = [sys.executable, "-m", "csd_lib", "report", "--folder", str(folder)]
        seconds = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(round(time.perf_counter() - started, 2))
    print(f"{arguments.runs} runs: {min(seconds)} s, start of Python and torch included")
    found = {"machine": machine(torch.device("cpu")), "runs": arguments.runs, "seconds": seconds}
    write("many_runs", found, arguments.out)


if __name__ == "__main__":
    main()
