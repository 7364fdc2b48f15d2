"""Do the leads hold for other orders of the classes? Every seed gets an order of its own.

The tables of results have one order, that of the labels, so their intervals say nothing about
others. Here the classes come in an order that is drawn anew for each seed. Weights are the usual
ones, and those that ``tuned.py`` has chosen for each method in label order.

python benchmarks/orders.py digits --seeds 0 1 2 3 4 5 6 7
python benchmarks/orders.py fashion --seeds 0 1 2 3 4 5 6 7
python benchmarks/orders.py kinds --seeds 0 1 2 3 4
"""

from __future__ import annotations

import numpy as np
import tuned

from csd_lib.config import TrainConfig
from csd_lib.datasets import load_dataset
from csd_lib.paper.ledger import reproduce

FOLDER = tuned.FOLDER.parent.parent / "orders"


def main() -> None:
    """Train what is missing, one order after the other."""
    arguments = tuned.parser_of(__doc__).parse_args()
    settings = {name: getattr(arguments, name) for name in tuned.COMMON}
    configs = [
        tuned.times(
            TrainConfig(**settings, method=method, seed=seed, class_order_seed=seed),
            *np.atleast_1d(factor),
        )
        for seed in arguments.seeds
        for factors in ({"fine-tuning": 1.0}, *tuned.all_factors(TrainConfig(**settings)))
        for method, factor in factors.items()
    ]
    configs = list(dict.fromkeys(configs))  # with a pair of CSD's, LwF's factor is the same
    reproduce(configs, FOLDER, dataset=load_dataset(arguments.dataset), progress=False)


if __name__ == "__main__":
    main()
