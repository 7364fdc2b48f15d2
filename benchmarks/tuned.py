"""Who holds on best, if each method may choose how hard? With weights chosen on held-out images.

All weights of a method's distillation terms are taken times one factor, the same tries for each
method; with --pairs CSD's two weights have a factor each, in all pairs. What has the highest
Recall@1, both tasks' own classes on average, over seeds that no table of results has, goes into
runs on the seeds that those tables have. Several processes may run this at the same time; each
takes free cells.

python benchmarks/tuned.py fashion --seeds 0 1 2 3 4 5 6 7
python benchmarks/tuned.py digits --seeds 0 1 2 3 4 5 6 7
python benchmarks/tuned.py digits --pairs --seeds 0 1 2 3 4 5 6 7
python benchmarks/tuned.py fashion --pairs --seeds 0 1 2 3 4 5 6 7
python benchmarks/tuned.py kinds --held-out-seeds 100 --seeds 0 1 2
python benchmarks/tuned.py kinds --held-out-seeds 100 --seeds 0 1 2 --pairs --factors 3 10 30 100 \
    --csd-factors 0.1 0.3 1 3
python benchmarks/tuned.py cifar100 --preset class --precision amp --held-out-seeds 100 \
    --methods lwf csd --factors 1 3 10 30  # and --methods mmd-kd --factors 0.3 1 3 10
python benchmarks/tuned.py cifar100 --preset class --depth 8 --precision amp --held-out-seeds 100
python benchmarks/tuned.py cifar100 --preset class --depth 8 --held-out-seeds 100 --pairs \
    --factors 3 10 30 100 --csd-factors 0.3 1 3 10 --seeds 3 4
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from choose import held_out_as_test

from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.datasets import load_dataset
from csd_lib.methods import TERMS, get_method
from csd_lib.paper.ledger import reproduce
from csd_lib.paper.report import load_runs
from csd_lib.record import Record

FOLDER = Path(__file__).parent.parent / "data" / "choosing" / "tuned"
PAIRS = FOLDER.with_name("pairs")
RECIPES = ("ce+kd", "lwf", "mmd-kd", "csd")
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SHARE = 0.2  # of the training images, held out
COMMON = ("dataset", "preset", "precision", "depth")
Factors = float | tuple[float, ...]  # of all of a method's weights, or one for each
USUAL: dict[str, Factors] = {"lwf": 1.0, "csd": 1.0}


def common(config: TrainConfig) -> dict[str, Any]:
    """Return what all tries of one search share."""
    return {name: getattr(config, name) for name in COMMON}


def weights_of(config: TrainConfig) -> list[str]:
    """Return the names of the weights of its method's distillation terms."""
    terms = [TERMS[name].weight for name in get_method(config.method).recipe.split("+")]
    return [*filter(None, terms)]


def times(config: TrainConfig, *factors: float) -> TrainConfig:
    """Return the config with the weights of its distillation terms times one factor, or each."""
    usual = TrainConfig(dataset=config.dataset, preset=config.preset)
    weights = zip(weights_of(config), itertools.cycle(factors), strict=False)
    return replace(config, **{name: factor * getattr(usual, name) for name, factor in weights})


def pair_of(config: TrainConfig) -> tuple[float, ...]:
    """Return the factors that ``times`` was called with, of each weight: KD's first."""
    usual = TrainConfig(dataset=config.dataset, preset=config.preset)
    pairs = [(getattr(config, name), getattr(usual, name)) for name in weights_of(config)]
    return tuple(float(f"{weight / as_usual:g}") for weight, as_usual in pairs)


def factor_of(config: TrainConfig) -> float:
    """Return the one factor that ``times`` was called with."""
    (factor,) = {*pair_of(config)}
    return factor


def load_tries(config: TrainConfig, folder: Path = FOLDER) -> list[Record]:
    """Return what has been tried with the config's data set, preset, precision and depth."""
    records, _ = load_runs(folder / config.dataset)
    return [r for r in records if common(r.config) == common(config)]


def found(
    records: Iterable[Record], tried: Callable[[TrainConfig], Any] = factor_of
) -> dict[str, dict[Any, float]]:
    """Return for each method what each factor, or pair, reaches on average over the seeds, in %."""
    reached: dict[str, dict[Any, list[float]]] = {}
    for record in records:
        of_factor = reached.setdefault(record.config.method, {})
        of_factor.setdefault(tried(record.config), []).append(record.matrix.own[-1].mean())
    return {
        method: {factor: 100 * float(np.mean(values)) for factor, values in sorted(each.items())}
        for method, each in reached.items()
    }


def best(reached: Mapping[Any, float]) -> Any:
    """Return what reaches most; of equal ones the smallest."""
    return max(sorted(reached), key=reached.__getitem__)


def pair_tries(config: TrainConfig) -> list[Record]:
    """Return tries with a factor for each of CSD's weights, in fp32 if not as asked for."""
    if not (PAIRS / config.dataset).is_dir():
        return []
    either = (load_tries(c, PAIRS) for c in (config, replace(config, precision="fp32")))
    return next(filter(None, either), [])


def chosen_factors(config: TrainConfig) -> dict[str, Factors]:
    """Return the factors that a search has chosen for LwF and CSD."""
    reached = found(load_tries(config))
    return {method: best(reached[method]) for method in USUAL}


def chosen_pair(config: TrainConfig) -> dict[str, Factors]:
    """Return the same, but CSD's two weights have a factor each."""
    pairs = found(pair_tries(config), pair_of)["csd"]
    return chosen_factors(config) | {"csd": best(pairs)}


def all_factors(config: TrainConfig) -> list[dict[str, Factors]]:
    """Return the usual factors, those that were chosen and, if it was tried, a pair of CSD's."""
    pair = [chosen_pair(config)] if pair_tries(config) else []
    return [USUAL, chosen_factors(config), *pair]


def search(
    tries: list[TrainConfig],
    folder: Path,
    dataset: Dataset,
    tried: Callable[[TrainConfig], Any] = factor_of,
) -> dict[str, dict[Any, float]]:
    """Train on all but the held-out images, and print and return what is found of those."""
    reproduce(tries, folder, dataset=held_out_as_test(dataset, SHARE), progress=False)
    reached = found(load_tries(tries[0], folder), tried)
    for method, each in reached.items():
        print(method, {f: round(value, 1) for f, value in each.items()}, "takes", best(each))
    return reached


def parser_of(doc: str, methods: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser of what all runs have in common, of their seeds and of a search's methods."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--preset", default="clean")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--depth", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    if methods:
        parser.add_argument("--held-out-seeds", type=int, nargs="+", default=[100, 101, 102])
        parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    return parser


def main() -> None:
    """Try all factors on held-out images, then train with the best of each method."""
    parser = parser_of(__doc__, RECIPES)
    parser.add_argument("--pairs", action="store_true", help="CSD only, a factor for each weight")
    parser.add_argument("--factors", type=float, nargs="+", choices=FACTORS, default=FACTORS)
    parser.add_argument("--csd-factors", type=float, nargs="+", choices=FACTORS, default=FACTORS)
    arguments = parser.parse_args()
    settings = {name: getattr(arguments, name) for name in COMMON}
    of_csd = [arguments.csd_factors] if arguments.pairs else []  # KD's factor stands before it
    pairs = [*itertools.product(arguments.factors, *of_csd)]
    recipes = ("csd",) if arguments.pairs else arguments.methods
    folder = PAIRS if arguments.pairs else FOLDER
    tries = [
        times(TrainConfig(**settings, method=recipe, seed=seed), *factors)
        for seed in arguments.held_out_seeds
        for factors in pairs
        for recipe in recipes
    ]
    dataset = load_dataset(arguments.dataset)
    reached = search(tries, folder, dataset, pair_of if arguments.pairs else factor_of)
    chosen = [
        times(
            TrainConfig(**settings, method=recipe, seed=seed), *np.atleast_1d(best(reached[recipe]))
        )
        for seed in arguments.seeds
        for recipe in recipes
    ]
    reproduce(chosen, dataset=dataset, progress=False)


if __name__ == "__main__":
    main()
