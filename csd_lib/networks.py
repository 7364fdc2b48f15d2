"""The networks that the kit knows by name, and how one is made from a config or from its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from csd_lib import checks
from csd_lib.model import Network, ResNet, freeze

if TYPE_CHECKING:
    from csd_lib.config import TrainConfig

# What a config's ``network`` names: called with the config and the data set's channel statistics.
# To add one: a line here, or at run time ``NETWORKS["mine"] = lambda config, mean, std: ...``.
NETWORKS: dict[str, Callable[..., Network]] = {
    "resnet": lambda config, mean, std: ResNet(config.depth, 0, len(mean), mean, std, config.seed)
}


def make_network(config: TrainConfig, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Return the network that a config names, with initial weights from its seed and no head rows.

    The global random state is left as it was.

    Raises:
        InputError: if what was made is no ``Network``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = NETWORKS[config.network](config, mean, std)
    checks.instance(f"NETWORKS[{config.network!r}]", network, Network, "what returns a Network")
    return network


def network_from_state(config: TrainConfig, state: dict[str, Tensor]) -> Network:
    """Return the network that a state belongs to, frozen.

    Raises:
        ValueError: if it is not the state of such a network.
    """
    try:
        classes, mean, std = (state[name] for name in ("head.weight", "mean", "std"))
    except (LookupError, TypeError) as error:
        raise ValueError(f"it is not the state of a network: {error!r} is missing") from error
    network = make_network(config, mean.flatten().tolist(), std.flatten().tolist())
    network.grow_head(len(classes))
    load_state(network, state)
    return freeze(network)


def load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a model's state, if it has the right shapes and types and is finite.

    Raises:
        ValueError: if it has not.
    """
    wanted, found = (
        {name: (value.dtype, tuple(value.shape)) for name, value in values.items()}
        for values in (model.state_dict(), state)
    )
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name} is {found.get(name)}, expected {wanted.get(name)}")
        if not torch.isfinite(state[name]).all():
            raise ValueError(f"{name} is not finite")
    model.load_state_dict(state)
