"""Memory of one process that trains run after run: ten tasks of digits, for twenty minutes.

python benchmarks/soak.py
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench import machine, new_parser, write

from csd_lib.config import TrainConfig
from csd_lib.experiment import run_experiment


def memory_mb() -> float:
    """Memory that this process has in use now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """Train until the time is up, print the memory after every run, and add it to the records."""
    parser = new_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    arguments = parser.parse_args()
    started, minutes, memory = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as folder:
        while not minutes or minutes[-1] < arguments.minutes:
            config = TrainConfig(tasks=10, seed=len(minutes))
            run_experiment(config, folder=Path(folder) / str(config.seed), progress=False)
            minutes.append((time.monotonic() - started) / 60)
            memory.append(memory_mb())
            print(f"run {len(minutes)}, {minutes[-1]:.1f} min: {memory[-1]:.0f} MB", flush=True)
    # The first runs fill the caches of the memory allocator; a leak would go on after them.
    later = len(memory) // 3
    slope = np.polyfit(minutes[later:], memory[later:], 1)[0]
    found = {
        "machine": machine(torch.device("cpu")),
        "runs": len(memory),
        "minutes": round(minutes[-1], 1),
        "memory_mb": [round(value) for value in memory],
        "mb_a_minute_in_the_last_two_thirds": round(float(slope), 3),
    }
    print(f"{found['runs']} runs: {memory[later]:.0f} -> {memory[-1]:.0f} MB, {slope:+.2f} MB/min")
    write("soak", found, arguments.out)


if __name__ == "__main__":
    main()
