"""Who keeps most, if each method may choose how fast it learns the later task?

The later learning rate is taken times one factor; all weights stay the usual ones, or are taken
times one of --weights, in all pairs. Tried and chosen as in tuned.py: on held-out images, with
seeds that no table of results has. Several processes may run this at the same time; each takes free
cells.

python benchmarks/rates.py digits --seeds 0 1 2 3 4 5 6 7
python benchmarks/rates.py fashion --seeds 0 1 2 3 4 5 6 7
python benchmarks/rates.py kinds --held-out-seeds 100 --seeds 0 1 2
python benchmarks/rates.py cifar100 --preset class --depth 8 --precision amp --held-out-seeds 100 \
    --methods fine-tuning lwf csd --factors 0.1 0.3 1 3 10 30 100
python benchmarks/rates.py fashion --seeds 0 1 2 3 4 5 6 7 --methods lwf mmd-kd csd \
    --factors 0.1 0.3 1 3 --weights 0.3 1 3 10 30
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import tuned

from csd_lib.config import TrainConfig
from csd_lib.datasets import load_dataset
from csd_lib.paper.ledger import reproduce

FOLDER = tuned.FOLDER.with_name("rates")
BOTH = tuned.FOLDER.with_name("both")
METHODS = ("fine-tuning", "lwf", "mmd-kd", "csd")
FACTORS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
USUAL = FACTORS[:-2]  # the last two were tried where the one before was best


def times(config: TrainConfig, factor: float, weight: float = 1.0) -> TrainConfig:
    """Return the config with the usual later learning rate and the usual weights times these."""
    usual = TrainConfig(**tuned.common(config)).later_learning_rate
    return replace(tuned.times(config, weight), later_learning_rate=factor * usual)


def both_of(config: TrainConfig) -> tuple[float, float]:
    """Return the factors that ``times`` was called with; the weights' is 1 if there are none."""
    rate = config.later_learning_rate / times(config, 1.0).later_learning_rate
    return float(f"{rate:g}"), tuned.factor_of(config) if tuned.weights_of(config) else 1.0


def main() -> None:
    """Try all factors on held-out images, then train with the best of each method."""
    parser = tuned.parser_of(__doc__, METHODS)
    parser.add_argument("--factors", type=float, nargs="+", choices=FACTORS, default=USUAL)
    parser.add_argument("--weights", type=float, nargs="+", choices=tuned.FACTORS, default=[1.0])
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in tuned.COMMON}
    tries = [
        times(TrainConfig(**settings, method=method, seed=seed), *pair)
        for seed in arguments.held_out_seeds
        for pair in itertools.product(arguments.factors, arguments.weights)
        for method in arguments.methods
    ]
    dataset = load_dataset(arguments.dataset)
    folder = FOLDER if arguments.weights == [1.0] else BOTH
    reached = tuned.search(tries, folder, dataset, both_of)
    chosen = [
        times(TrainConfig(**settings, method=method, seed=seed), *tuned.best(reached[method]))
        for seed in arguments.seeds
        for method in arguments.methods
    ]
    reproduce(chosen, dataset=dataset, progress=False)


if __name__ == "__main__":
    main()
