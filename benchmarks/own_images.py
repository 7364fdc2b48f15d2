"""Do 100,000 images of 64 x 64 train within 4 GB? Peak memory and seconds, from an .npz on disk.

python benchmarks/own_images.py
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench import machine, new_parser, peak_mb, write

from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split
from csd_lib.datasets import load_dataset
from csd_lib.doctor import tasks_to_learn
from csd_lib.retrieval import embed


def make_file(path: Path, images: int, size: int) -> None:
    """Write random images of ten classes, a tenth of them for testing, a few at a time."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in {"train": images - images // 10, "test": images // 10}.items():
        name = path.with_name(f"{part}.npy")
        pixels = np.lib.format.open_memmap(name, "w+", np.uint8, (count, size, size, 3))
        for first in range(0, count, 1000):
            shape = pixels[first : first + 1000].shape
            pixels[first : first + 1000] = random.integers(0, 256, shape, dtype=np.uint8)
        arrays |= {f"{part}_images": pixels, f"{part}_labels": np.arange(count) % 10}
    np.savez(path, **arrays)


def anonymous_mb() -> float:
    """Return this process's memory without pages of files, in MB; 0 where Linux is not."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if "RssAnon" in line), 0.0)


def measure(path: Path, steps: int) -> dict[str, float]:
    """Load, hash, split, learn a few batches of each task and embed the test images."""
    before, started = anonymous_mb(), time.perf_counter()
    # Of a method that needs no teacher.
    config = TrainConfig(dataset=str(path), method="fine-tuning", depth=8, epochs=1, device="cpu")
    dataset = load_dataset(config.dataset)
    dataset.sha256()
    loaded = time.perf_counter()
    highest = 0.0
    for learning in tasks_to_learn(config, dataset):
        order = torch.randperm(len(learning.labels), generator=learning.generator)
        for batch in order.split(config.batch_size)[:steps]:
            learning.step(batch)
            highest = max(highest, anonymous_mb())
    learned = time.perf_counter()
    embed(learning.student, class_incremental_split(dataset, 2)[0].test_images)
    return {
        "load_and_hash_seconds": round(loaded - started, 1),
        "step_seconds": round((learned - loaded) / (2 * steps), 3),
        "own_memory_mb": round(max(highest, anonymous_mb()) - before),
        "peak_mb": round(peak_mb()),
    }


def main() -> None:
    """Measure, print one line, and add it to the records."""
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        # In a process of its own, so that what it maps does not count for this one.
        job = (path, arguments.images, arguments.size)
        writer = multiprocessing.get_context("spawn").Process(target=make_file, args=job)
        writer.start()
        writer.join()
        found = {
            "machine": machine(torch.device("cpu")),
            "images": arguments.images,
            "size": arguments.size,
            "file_mb": round(path.stat().st_size / 1e6),
            **measure(path, arguments.steps),
        }
    write("own_images", found, arguments.out)


if __name__ == "__main__":
    main()
