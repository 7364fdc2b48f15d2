"""Time and memory of Recall@1 over 10,000 queries in a gallery of 10,000 (or any other number).

python benchmarks/recall.py
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

import torch
from bench import alternate, machine, write

from csd_lib.retrieval import recall_at_k


def main() -> None:
    """Measure, print one line, and add it to the records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("data/results/benchmarks"))
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(arguments.images, 64, generator=generator)
    labels = torch.randint(100, (arguments.images,), generator=generator)
    torch.randn(512, 512) @ torch.randn(512, 512)  # the matrix library is loaded before we look
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    medians = alternate({"recall": lambda: recall_at_k(features, labels)}, arguments.rounds)
    seconds = medians["recall"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    found = {
        "machine": machine(torch.device("cpu")),
        "images": arguments.images,
        "seconds": round(seconds, 3),
        "memory_mb_on_top": round(peak - before, 1),
    }
    print(f"{found['images']} x {found['images']}: {seconds:.2f} s, {peak - before:.0f} MB on top")
    write("recall", found, arguments.out)


if __name__ == "__main__":
    main()
