"""Time and memory of Recall@1 over 10,000 queries in a gallery of 10,000 (or any other number).

python benchmarks/recall.py
"""

from __future__ import annotations

import torch
from bench import alternate, machine, new_parser, peak_mb, write

from csd_lib.retrieval import recall_at_k


def main() -> None:
    """Measure, print one line, and add it to the records."""
    parser = new_parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(arguments.images, 64, generator=generator)
    labels = torch.randint(100, (arguments.images,), generator=generator)
    torch.randn(512, 512) @ torch.randn(512, 512)  # the matrix library is loaded before we look
    before = peak_mb()
    medians = alternate({"recall": lambda: recall_at_k(features, labels)}, arguments.rounds)
    seconds = medians["recall"]
    found = {
        "machine": machine(torch.device("cpu")),
        "images": arguments.images,
        "seconds": round(seconds, 3),
        "memory_mb_on_top": round(peak_mb() - before, 1),
    }
    write("recall", found, arguments.out)


if __name__ == "__main__":
    main()
