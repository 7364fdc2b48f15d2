"""Features of a network that stays as it is, made once: a frozen backbone for seconds on a CPU.

With them the kit has a stand-in for the paper's fine-grained data sets: the kinds within the
super-classes of CIFAR-100, as a network sees them that ImageNet has trained. ImageNet has images of
many of these kinds, as it has birds and dogs: what comes later is not all new to the first model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from csd_lib import checks, paths
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.files import make_folder, only_one, write_arrays
from csd_lib.model import Network
from csd_lib.networks import make_network
from csd_lib.retrieval import embed
from csd_lib.stored import StoredImages

KINDS = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
PIXELS = 96  # that CIFAR-100's images are scaled to: as fine as a CPU can take in minutes
AT_ONCE = 64  # images


@torch.no_grad()
def features_of(
    images: Tensor | StoredImages, network: Network, size: int | None = None
) -> np.ndarray:
    """Return a network's features of images ``[N, C, H, W]``, in eval mode: float32 ``[N, D]``.

    ``size`` is the height and width that they are scaled to; default: as they are.
    """
    checks.images("images", images)
    checks.instance("network", network, Network, "a Network")
    if size is not None:
        checks.whole("size", size, 1, 4096)
    network = network.to(memory_format=torch.channels_last)  # it computes the same, but faster
    batches = tqdm(images.split(AT_ONCE), total=-(-len(images) // AT_ONCE), leave=False)
    return torch.cat([embed(network, scaled(batch, size)) for batch in batches]).cpu().numpy()


def scaled(images: Tensor, size: int | None) -> Tensor:
    """Return images ``[N, C, H, W]`` with another height and width, or as they are."""
    if size is None or images.shape[2:] == (size, size):
        return images
    found = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    if images.dtype.is_floating_point:
        return found
    return found.round().clamp(0, 255).to(torch.uint8)


def save_features(
    dataset: Dataset, network: Network, path: str | Path, size: int | None = None
) -> None:
    """Write the features of a data set's images to an ``.npz`` that is a data set itself.

    Train on it with ``dataset=path, network="features"``. The split stays as it is.
    """
    make_folder(Path(path).parent)  # else half an hour of features could have nowhere to go
    arrays: dict[str, np.ndarray] = {"class_names": np.array(dataset.class_names)}
    for part in ("train", "test"):
        arrays[f"{part}_features"] = features_of(getattr(dataset, f"{part}_images"), network, size)
        arrays[f"{part}_labels"] = getattr(dataset, f"{part}_labels").numpy()
    write_arrays(Path(path), arrays)


def order_of_kinds(class_names: tuple[str, ...]) -> list[int]:
    """Return all class ids: first three or two kinds of each super-class, then all the others.

    Which, and in which order they come, was drawn once; it is the same for everybody.
    """
    random = np.random.default_rng(0)
    first, later = [], []
    for number, kinds in enumerate(KINDS.values()):
        names = random.permutation(kinds.split()).tolist()
        known = 3 - number % 2
        first += names[:known]
        later += names[known:]
    names = [*random.permutation(first).tolist(), *random.permutation(later).tolist()]
    return [class_names.index(name) for name in names]


def kinds_file(cifar100: Dataset) -> Path:
    """Return the file with the features of CIFAR-100's images; if it is missing, make it."""
    folder = make_folder(paths.data_folder())
    path = folder / f"kinds-lite0-{PIXELS}.npz"
    with only_one(folder, "making features"):
        if not path.exists():
            print(f"making {path}, once: about ten minutes on one core", flush=True)
            order = torch.tensor(order_of_kinds(cifar100.class_names))
            place = order.argsort()
            ordered = replace(
                cifar100,
                train_labels=place[cifar100.train_labels],
                test_labels=place[cifar100.test_labels],
                class_names=tuple(cifar100.class_names[label] for label in order.tolist()),
            )
            config = TrainConfig(network="efficientnet:lite0", weights="published")
            save_features(ordered, make_network(config, (0.5,) * 3, (0.5,) * 3), path, PIXELS)
    return path
