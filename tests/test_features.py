"""Features made once, the stand-in for the paper's fine-grained data sets, and its first task."""

import re
import sys
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from typed import csd

from csd_lib import InputError, datasets, features, identity, paths
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset
from csd_lib.datasets import load_dataset
from csd_lib.experiment import run_experiment, run_name
from csd_lib.features import KINDS, features_of, order_of_kinds, save_features
from csd_lib.model import ResNet
from csd_lib.networks import make_network, weights_sha256
from csd_lib.own_images import find_own_images
from csd_lib.prepare import load_images
from csd_lib.retrieval import embed

LITE = dict(network="efficientnet:lite0", weights="published")
KINDS_BEGIN = [87, 21, 32, 88, 55, 98]
NAMES = tuple(sorted(name for kinds in KINDS.values() for name in kinds.split()))


@pytest.fixture(autouse=True)
def folders(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "data_folder", lambda: tmp_path / "data")
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


def colours(classes, each=2, size=32):
    """Images of one colour a class with noise, in the place of CIFAR-100."""
    random = np.random.default_rng(0)
    parts = {}
    for part in ("train", "test"):
        labels = np.repeat(np.arange(classes), each)
        levels = np.random.default_rng(1).integers(0, 200, (classes, 3, 1, 1))[labels]
        pixels = levels + random.integers(0, 40, (len(labels), 3, size, size))
        parts[f"{part}_images"] = torch.from_numpy(pixels.astype(np.uint8))
        parts[f"{part}_labels"] = torch.from_numpy(labels)
    return Dataset(
        name="colours", class_names=NAMES[:classes], mean=(0.5,) * 3, std=(0.2,) * 3, **parts
    )


def test_features_are_what_the_network_embeds_of_scaled_images():
    images = colours(5).train_images
    network = ResNet(8, 0, 3, (0.5,) * 3, (0.2,) * 3, 0)
    plain, same = features_of(images, network), features_of(images, network, 32)
    assert plain.dtype == np.float32 and plain.shape == (10, 64)
    assert np.allclose(plain, embed(network, images).numpy(), atol=1e-5) and (plain == same).all()
    larger = F.interpolate(images.float(), (48, 48), mode="bilinear", antialias=True)
    wanted = embed(network, larger.round().to(torch.uint8)).numpy()
    assert np.allclose(features_of(images, network, 48), wanted, atol=1e-5)
    assert not np.allclose(plain, wanted, atol=1e-2)
    normalised = network.normalize_images(images)  # larger than 1, and below 0
    found = features_of(normalised, network, 48)
    assert np.allclose(found, features_of(images, network, 48), atol=0.05)


def test_many_batches_make_the_same_features(monkeypatch):
    images, network = colours(5).train_images, ResNet(8, 0, 3, (0.5,) * 3, (0.2,) * 3, 0)
    whole = features_of(images, network)
    monkeypatch.setattr(features, "AT_ONCE", 3)
    assert np.allclose(features_of(images, network), whole, atol=1e-5)


def test_saved_features_are_a_data_set_with_the_same_split_and_labels(tmp_path):
    images, network = colours(6), ResNet(8, 0, 3, (0.5,) * 3, (0.2,) * 3, 0)
    path = tmp_path / "colours.npz"
    save_features(images, network, path)
    found = load_dataset(str(path))
    assert found.class_names == images.class_names
    assert found.train_labels.tolist() == images.train_labels.tolist()
    raw = features_of(images.train_images, network)
    scaled = (raw - raw.mean(axis=0)) / np.maximum(raw.std(axis=0), 1e-6)
    kept = raw.std(axis=0) > 1e-4
    assert np.allclose(found.train_images.flatten(1).numpy()[:, kept], scaled[:, kept], atol=1e-2)
    settings = dict(network="features", embedding=8, epochs=2, batch_size=6, device="cpu")
    run = run_experiment(TrainConfig(dataset=str(path), **settings), progress=False)
    assert run.models[-1].feature_size == 8 and run.matrix.own.shape == (2, 2)


def test_the_command_features_writes_what_train_then_reads(monkeypatch):
    known = replace(datasets.DATASETS["digits"], load=lambda root: IMAGES)
    monkeypatch.setitem(datasets.DATASETS, "colours", known)
    typed = "features colours small.npz --network efficientnet:lite0 --image-size 32"
    assert "--dataset ./small.npz --network features" in csd(*typed.split()).stdout
    assert find_own_images("./small.npz").train.pixels.shape[1:] == (1280, 1, 1)
    assert "must end in .npz" in csd("features", "colours", "small.txt").stderr


@pytest.mark.parametrize("size", [(), ("--image-size", "32")])
def test_the_command_features_reads_images_from_a_file(tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(12) % 2)
    options = ["--network", "efficientnet:lite0", "--weights", "random", *size]
    csd("features", "./images.npz", "out.npz", *options)
    assert find_own_images("./out.npz").train.pixels.shape[1:] == (1280, 1, 1)
    before = (tmp_path / "images.npz").read_bytes()
    done = csd("features", "./images.npz", "./images.npz", *options)
    assert "images.npz is there already" in done.stderr
    assert (tmp_path / "images.npz").read_bytes() == before


@pytest.mark.parametrize(
    "network, into, words",
    [
        ("features", "out.npz", r"backbone returned .* expected \[2, 1\]"),
        ("torchvision:inception_v3", "out.npz", "cannot take images .C, H, W. of 1x8x8"),
        ("resnet", "pixels.npz/out.npz", "cannot write to pixels.npz"),
    ],
)
def test_features_that_cannot_be_made_are_refused_before_the_first(
    network, into, words, monkeypatch, tmp_path
):
    (tmp_path / "pixels.npz").touch()
    monkeypatch.setattr(features, "features_of", None)
    done = csd("features", "digits", into, "--network", network, "--weights", "random")
    assert done.returncode == 2 and re.search(words, done.stderr)


def test_published_weights_take_the_images_of_a_file_as_they_are(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(12) % 2)
    dataset = f"{tmp_path}/images.npz"
    assert load_images(TrainConfig(dataset=dataset, **LITE)).train_images.shape[2:] == (20, 20)
    with pytest.raises(InputError, match="image_size=32 is for folders"):
        load_images(TrainConfig(dataset=dataset, image_size=32, **LITE))


IMAGES = colours(3)


def test_published_weights_are_the_same_for_every_seed_and_their_statistics_are_used():
    first, second = (TrainConfig(**LITE, seed=seed, embedding=4) for seed in (0, 1))
    assert weights_sha256(first) == weights_sha256(second)
    networks_made = [make_network(config, (0.1,) * 3, (0.9,) * 3) for config in (first, second)]
    states = [network.body.state_dict() for network in networks_made]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    added = [network.added_embedding.weight for network in networks_made]
    assert not torch.equal(*added)
    assert (networks_made[0].mean * 255).flatten().tolist() == pytest.approx([127] * 3)
    random = make_network(TrainConfig(network=LITE["network"]), (0.1,) * 3, (0.9,) * 3)
    assert not torch.equal(random.body.state_dict()["_bn1.weight"], states[0]["_bn1.weight"])
    assert random.mean.flatten().tolist() == pytest.approx([0.1] * 3)


def test_imagenets_weights_know_a_photograph():
    """The sample photograph of a flower is nearer to itself, mirrored, than to that of a palace."""
    samples = pytest.importorskip("sklearn.datasets").load_sample_images().images
    palace, flower = (torch.from_numpy(s.copy()).permute(2, 0, 1)[:, :400, :400] for s in samples)
    network = make_network(TrainConfig(**LITE), (0.5,) * 3, (0.5,) * 3)
    images = torch.stack([palace, flower, palace.flip(2), flower.flip(2)])
    found = F.normalize(torch.from_numpy(features_of(images, network, 128)))
    similar = found @ found.T
    assert min(similar[0, 2], similar[1, 3]) > 0.8 > 0.5 > similar[:2, [1, 0]].diagonal().max()


def test_a_network_that_is_unknown_or_not_installed_says_what_to_do(monkeypatch):
    with pytest.raises(InputError, match=r"efficientnet:lite9.*did you mean lite"):
        make_network(TrainConfig(network="efficientnet:lite9"), (0.5,) * 3, (0.5,) * 3)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"pip install 'csd-lib\[pretrained\]'"):
        make_network(TrainConfig(**LITE), (0.5,) * 3, (0.5,) * 3)


# --- kinds ---------------------------------------------------------------------------------------


def test_every_super_class_gives_three_or_two_of_its_five_kinds_to_the_first_half():
    assert len(NAMES) == len(set(NAMES)) == 100 and {len(k.split()) for k in KINDS.values()} == {5}
    order = order_of_kinds(NAMES)
    assert sorted(order) == [*range(100)] and order == order_of_kinds(NAMES)
    first = {NAMES[label] for label in order[:50]}
    known = Counter(len(first & {*kinds.split()}) for kinds in KINDS.values())
    assert known == {2: 10, 3: 10}
    assert order[:6] == KINDS_BEGIN  # drawn once: another order would be other data


def test_kinds_are_features_of_cifar100_in_their_order_and_made_once(monkeypatch, tmp_path):
    images = colours(100)
    monkeypatch.setattr(datasets, "_load_cifar100", lambda root=None: images)
    monkeypatch.setattr(features, "PIXELS", 32)
    found = load_dataset("kinds")
    order = order_of_kinds(NAMES)
    assert found.name == "kinds" and found.class_names == tuple(NAMES[label] for label in order)
    assert found.train_images.shape == (200, 1280, 1, 1)
    names = [found.class_names[label] for label in found.train_labels.tolist()]
    assert names == [NAMES[label] for label in images.train_labels.tolist()]
    monkeypatch.setattr(features, "save_features", None)
    assert load_dataset("kinds").sha256() == found.sha256()

    config = TrainConfig(dataset="kinds", tasks=5, epochs=1, device="cpu", method="csd")
    with pytest.warns(UserWarning, match="50, 13, 13, 12, 12"):
        run = run_experiment(config, progress=False)
    assert [len(task.classes) for task in run.tasks] == [50, 13, 13, 12, 12]
    assert run.models[-1].feature_size == 512 and run.models[-1].num_classes == 100


def test_birds_and_dogs_are_data_sets_with_the_papers_settings(monkeypatch):
    asked = []
    monkeypatch.setattr(datasets, "fetch_fine_grained", lambda name: f"./{name}")
    monkeypatch.setattr(
        datasets, "load_own_images", lambda path, size=None: asked.append((path, size)) or IMAGES
    )
    assert load_dataset("cub200", image_size=64).name == "cub200"
    assert load_dataset("dogs").name == "dogs" and asked == [("./cub200", 64), ("./dogs", None)]
    config = TrainConfig(dataset="dogs")
    assert (config.network, config.weights) == ("torchvision:inception_v3", "published")
    rates = config.learning_rate, config.learning_rate * config.backbone_rate
    assert rates == pytest.approx((1e-6, 1e-5))  # classifier, convolutions
    assert (config.embedding, config.image_size, config.first_classes) == (512, 224, 60)
    assert TrainConfig(dataset="dogs", weights="random").weights == "random"


# --- a first task of another size -----------------------------------------------------------------


def test_a_run_with_another_first_task_is_another_run_unless_there_is_one_task():
    def name(**settings):
        return run_name(TrainConfig(dataset="digits", **settings), "", "")

    assert len({name(), name(first_classes=5), name(first_classes=4)}) == 3
    assert name(tasks=1) == name(tasks=1, first_classes=4)


@pytest.mark.parametrize("value, tasks", [(0, 2), (10, 2), (8, 4), (2.5, 2), (True, 2)])
def test_a_first_task_that_leaves_too_few_classes_is_refused(value, tasks):
    with pytest.raises(InputError, match=f"first_classes={value}"):
        TrainConfig(dataset="digits", tasks=tasks, first_classes=value)


def test_what_a_preset_names_later_does_not_change_what_was_written_down():
    """Preset class once had tasks of equal length, and its records say None."""
    old = TrainConfig(dataset="cifar100", preset="class", later_epochs=25)
    stored = {**asdict(old), "later_epochs": None}
    read = identity.from_stored(stored)
    assert read == old and read.schedule_length(1) == 25
    assert TrainConfig(dataset="cifar100", preset="class").schedule_length(1) == 8
    plain = TrainConfig(dataset="digits")
    assert identity.from_stored(asdict(plain)) == plain and plain.later_epochs is None
    assert TrainConfig(dataset="cifar100", preset="class", epochs=2).schedule_length(1) == 2
