"""The data sets that the kit knows: how to load them, and which settings they want."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csd_lib import InputError, checks
from csd_lib.data import Dataset
from csd_lib.download import fetch_cifar100
from csd_lib.files import read_arrays
from csd_lib.fine_grained import FINE_GRAINED, fetch_fine_grained
from csd_lib.own_images import MAX_UNPACKED, load_own_images

MAX_CLASSES = 10_000  # of images of one's own, which are not known before they are loaded
# Inside the package, so that it is there wherever csd_lib is; tools/fashion.py makes it.
FASHION = Path(__file__).resolve().parent / "embedded" / "fashion.npz"


def load_dataset(
    name: str, root: str | Path | None = None, image_size: int | None = None
) -> Dataset:
    """Load a data set by name, or images of one's own.

    Args:
        name: one of ``DATASETS`` (``csd data NAME`` describes it), or the path of a folder or an
            ``.npz`` file (see ``is_path`` and ``own_images.find_own_images``).
        root: for cifar100 and kinds (not read for others): the folder that holds
            ``cifar100.npz``, or the file itself. Default: ``$CSD_DATA``, else ``data/``. If the
            file is missing, it is made from the official archive, which is fetched and verified by
            ``download.fetch_cifar100``.
        image_size: height and width that the images of a folder are scaled to.

    Raises:
        InputError: for an unknown name, a file that is corrupt or has the wrong arrays, or a
            download that failed.
    """
    checks.instance("root", root, (str, Path, type(None)), "a path, or None")
    spec = get_spec(name)
    if spec.scaled:
        return spec.load(name if is_path(name) else root, image_size)
    spec.check_size(name, image_size)
    return spec.load(root)


def is_path(name: Any) -> bool:
    """Say whether the name of a data set is a path: it has a slash, or ends in ``.npz``."""
    return isinstance(name, str) and ("/" in name or "\\" in name or name.endswith(".npz"))


def are_scaled(name: str) -> bool:
    """Say whether images are brought to a size as they load: those of a folder, not arrays."""
    return get_spec(name).scaled and not name.endswith(".npz")


def get_spec(name: str) -> DatasetSpec:
    """Look a data set up by name, or raise InputError; images of one's own have one entry."""
    if is_path(name):
        return OWN_IMAGES
    if not isinstance(name, str) or name not in DATASETS:
        raise InputError(
            f"dataset={checks.shown(name)}: choose one of {', '.join(DATASETS)}, or a path with a "
            f"slash, such as ./{name if isinstance(name, str) and name else 'FOLDER'}"
        )
    return DATASETS[name]


def _load_digits(root: str | Path | None = None) -> Dataset:
    """Split scikit-learn's digits: per class, the first two thirds train and the rest test.

    The file lists its writers one after the other, so this split, unlike a shuffled one, tests
    mostly on the hands of writers that were not trained on.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    is_train = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        members = (labels == label).nonzero().squeeze(1)
        is_train[members[: len(members) * 2 // 3]] = True
    return Dataset(
        "digits",
        images[is_train],
        labels[is_train],
        images[~is_train],
        labels[~is_train],
        tuple(str(digit) for digit in range(10)),
        mean=(0.3064,),
        std=(0.3754,),
    )


def _load_fashion(root: str | Path | None = None) -> Dataset:
    return read_npz(FASHION, "fashion", mean=(0.2875,), std=(0.3534,))


def _load_cifar100(root: str | Path | None = None) -> Dataset:
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    return read_npz(fetch_cifar100(root), "cifar100", mean, std)


def read_npz(
    path: str | Path, name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    """Read a data set from one .npz file, without executing anything in it.

    Arrays: ``train_images`` uint8 ``[N, H, W, C]``, ``train_labels`` int ``[N]``, ``test_images``,
    ``test_labels``, ``class_names``. InputError if one is missing or has a wrong shape, dtype or
    label, or the file is unreadable.
    """
    path = Path(path)
    remedy = "delete the file and load the data set again"
    arrays = read_arrays(path, max_bytes=MAX_UNPACKED)
    try:
        tensors: dict[str, Any] = {}
        for part in ("train", "test"):
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
            tensors[f"{part}_images"] = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
            tensors[f"{part}_labels"] = torch.from_numpy(labels.astype(np.int64, casting="safe"))
        names = tuple(arrays["class_names"].tolist())
        return Dataset(name=name, class_names=names, mean=mean, std=std, **tensors)
    except KeyError as error:
        raise InputError(f"{path} has no array {error}: {remedy}") from error
    except (InputError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}: {remedy}") from error


def _load_kinds(root: str | Path | None = None) -> Dataset:
    from csd_lib.features import kinds_file  # it makes a network, and so needs this module

    return replace(load_own_images(kinds_file(_load_cifar100(root))), name="kinds")


def _load_fine_grained(name: str) -> Callable[..., Dataset]:
    return lambda root, image_size: replace(
        load_own_images(fetch_fine_grained(name), image_size), name=name
    )


@dataclass(frozen=True)
class DatasetSpec:
    """What must be known of a data set before it is loaded."""

    load: Callable[..., Dataset]  # gets the folder or file to look in, or None
    classes: int  # 0: only the images say it
    defaults: Mapping[str, Any]  # settings of config.TrainConfig that it wants
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of its own, by name
    scaled: bool = False  # load also gets the size that images are scaled to, or None
    data: str = ""  # first digits of ``Dataset.sha256``; none where it may differ by machine
    source: str = ""  # where it comes from, and its licence

    def check(
        self, name: str, tasks: int, first_classes: int | None, image_size: int | None
    ) -> None:
        """Refuse tasks, first classes or an image size that this data set does not have."""
        self.check_size(name, image_size)
        classes = self.classes or MAX_CLASSES
        if tasks > classes:
            raise InputError(
                f"tasks={tasks}: {name} has {classes} classes, and every task needs one"
            )
        checks.first_classes(first_classes, tasks, classes)

    def check_size(self, name: str, image_size: int | None) -> None:
        """Refuse a size of images that have only one."""
        if image_size is not None and not self.scaled:
            raise InputError(
                f"image_size={checks.shown(image_size)}: {name} has images of one size: leave it "
                f"out"
            )


# To add a data set: a line here.
DATASETS = {
    # Small enough for seconds on a laptop, with later tasks learned so fast that forgetting shows.
    "digits": DatasetSpec(
        _load_digits,
        classes=10,
        data="decd603d904b",
        source="Optical Recognition of Handwritten Digits, UCI, CC BY 4.0; scikit-learn ships it",
        defaults=dict(epochs=15, batch_size=64, learning_rate=1e-3, later_learning_rate=1e-2),
    ),
    "fashion": DatasetSpec(
        _load_fashion,
        classes=10,
        data="04acc40b536f",
        source="a part of https://github.com/zalandoresearch/fashion-mnist, MIT; the kit ships it",
        defaults=dict(epochs=5, batch_size=64, learning_rate=1e-3, later_learning_rate=1e-3),
    ),
    # The paper's protocol.
    "cifar100": DatasetSpec(
        _load_cifar100,
        classes=100,
        data="d4b9c58dcd46",
        defaults=dict(
            depth=32,
            epochs=800,
            batch_size=128,
            learning_rate=1e-3,
            later_learning_rate=1e-5,
            milestones=(0.25, 0.5, 0.75),
            crop_padding=4,
            flip=True,
        ),
        # Within a class hour: 25 epochs, and 8 for a later task, instead of 800. Chosen on held-out
        # images, see benchmarks/choose.py and docs/results.md.
        presets={
            "class": dict(
                epochs=25,
                later_epochs=8,
                learning_rate=2e-3,
                later_learning_rate=3e-4,
                schedule="one_cycle",
                milestones=(),
            )
        },
    ),
    # A stand-in for the two below: features of an ImageNet network, made once, and an embedding of
    # the paper's size on top. Half of the kinds within each super-class of CIFAR-100 come first.
    # Ten epochs: twenty were no better on held-out images (benchmarks/choose.py).
    "kinds": DatasetSpec(
        _load_kinds,
        classes=100,
        source="cifar100, as features of EfficientNet-Lite0",
        defaults=dict(
            network="features",
            embedding=512,
            first_classes=50,
            epochs=10,
            batch_size=128,
            learning_rate=1e-3,
            later_learning_rate=1e-3,
        ),
    ),
    **{
        name: DatasetSpec(
            _load_fine_grained(name),
            classes=spec.classes,
            scaled=True,
            defaults=dict(
                network="torchvision:inception_v3",
                weights="published",
                image_size=224,
                embedding=512,
                backbone_rate=10.0,
                first_classes=spec.classes // 2,
                epochs=2300,
                batch_size=128,
                learning_rate=1e-6,
                later_learning_rate=1e-6,
                flip=True,
            ),
        )
        for name, spec in FINE_GRAINED.items()
    },
}

# Images of one's own, whatever they are: a middle way, to be changed. Its schedule is far shorter
# than the paper's, and later tasks learn as fast as the first.
OWN_IMAGES = DatasetSpec(
    load_own_images,
    classes=0,
    scaled=True,
    defaults=dict(
        depth=20,
        epochs=30,
        batch_size=64,
        learning_rate=1e-3,
        later_learning_rate=1e-3,
        milestones=(0.5, 0.75),
        crop_padding=4,
        flip=True,
    ),
)
