"""Images, splits without leaks, augmentation, and files that are not what they should be."""

import gzip
import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from csd_lib import InputError
from csd_lib.data import augment, class_incremental_split, hold_out, merge_tasks
from csd_lib.datasets import DATASETS, FASHION, load_dataset
from csd_lib.model import ResNet
from csd_lib.retrieval import embed


def bytes_of(images):
    return [image.numpy().tobytes() for image in images]


# --- digits ----------------------------------------------------------------------------------


def test_digits_are_all_there_and_train_and_test_do_not_overlap(digits):
    assert digits.train_images.shape == (1195, 1, 8, 8) and digits.test_images.shape[0] == 602
    assert digits.train_images.dtype == torch.uint8 and digits.train_labels.dtype == torch.int64
    assert digits.train_images.min() == 0 and digits.train_images.max() == 255
    assert not set(bytes_of(digits.train_images)) & set(bytes_of(digits.test_images))
    for labels in (digits.train_labels, digits.test_labels):
        assert torch.bincount(labels).min() > 50 and len(labels.unique()) == 10


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    original = load_digits()
    ours = torch.cat([digits.train_images, digits.test_images]).squeeze(1).double() / 255 * 16
    labels = torch.cat([digits.train_labels, digits.test_labels])
    for digit in range(10):
        theirs = np.sort(original.images[original.target == digit].sum(axis=(1, 2)))
        np.testing.assert_allclose(ours[labels == digit].sum((1, 2)).sort().values, theirs, atol=1)


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_mean_and_std_are_those_of_the_training_images(name):
    dataset = load_dataset(name)
    pixels = dataset.train_images.double() / 255
    assert dataset.mean[0] == pytest.approx(pixels.mean().item(), abs=1e-3)
    assert dataset.std[0] == pytest.approx(pixels.std().item(), abs=1e-3)


def test_unknown_data_set_is_refused_with_the_choices():
    with pytest.raises(InputError, match=f"'mnist'.*{', '.join(DATASETS)}"):
        load_dataset("mnist")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_no_numbers_are_named_and_not_the_learning_rate(digits, value):
    images, test_images = digits.train_images.float(), digits.test_images.float()
    features = dict(train_images=images.mean((2, 3), keepdim=True))
    features["test_images"] = test_images.mean((2, 3), keepdim=True)
    replace(digits, **features)
    images[[3, 5], 0, 2, 2] = value
    features["train_images"][[3, 5]] = value
    with pytest.raises(InputError, match=r"2 of 1195 train_images contain NaN or infinite"):
        replace(digits, **features)
    with pytest.raises(InputError, match=r"2 of 1195 images contain NaN or infinite"):
        embed(ResNet(8, 10, 1, digits.mean, digits.std), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_whole_type_make_the_same_tasks(digits, dtype):
    parts = ("train_labels", "test_labels")
    other = replace(digits, **{part: getattr(digits, part).to(dtype) for part in parts})
    for task, wanted in zip(*(class_incremental_split(d, 2) for d in (other, digits)), strict=True):
        assert all(torch.equal(getattr(task, part), getattr(wanted, part)) for part in parts)


def test_images_scaled_by_hand_are_refused(digits):
    """The network scales and normalises uint8 images; floats would be taken as normalised."""
    scaled = {f"{p}_images": getattr(digits, f"{p}_images") / 255 for p in ("train", "test")}
    with pytest.raises(InputError, match=r"float32 with shape \(1195, 1, 8, 8\): give .* uint8"):
        replace(digits, **scaled)


# --- fashion ---------------------------------------------------------------------------------


def test_fashion_has_all_ten_classes_equally_and_no_image_twice():
    fashion = load_dataset("fashion")
    assert fashion.train_images.shape == (5000, 1, 28, 28) and len(fashion.class_names) == 10
    assert torch.bincount(fashion.train_labels).tolist() == [500] * 10
    assert torch.bincount(fashion.test_labels).tolist() == [100] * 10
    every = [*bytes_of(fashion.train_images), *bytes_of(fashion.test_images)]
    assert len(set(every)) == 6000


def test_fashion_is_the_file_that_its_page_describes_with_its_licence():
    page = FASHION.with_name("README.md").read_text("utf-8")
    assert hashlib.sha256(FASHION.read_bytes()).hexdigest() in page
    assert load_dataset("fashion").sha256() in page
    assert FASHION.stat().st_size < 4e6
    assert "Copyright © 2017 Zalando SE" in FASHION.with_name("LICENSE").read_text("utf-8")


@pytest.fixture
def official(tool, tmp_path, monkeypatch):
    """The tool that makes the subset, a folder of four made-up idx files, and their arrays."""
    fashion, arrays = tool("fashion"), {}
    generator = np.random.default_rng(1)
    for name, count in (("train", 70), ("t10k", 40)):
        arrays[f"{name}-labels-idx1-ubyte"] = np.arange(count, dtype=np.uint8) % 10
        shape = (count, 2, 2)
        arrays[f"{name}-images-idx3-ubyte"] = generator.integers(256, size=shape, dtype=np.uint8)
    for name, array in arrays.items():
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = head + array.tobytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
        monkeypatch.setitem(fashion.SHA256, name, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fashion, "TRAIN", 5)
    monkeypatch.setattr(fashion, "TEST", 2)
    return fashion, tmp_path, arrays


def test_the_subset_takes_equally_many_of_each_class_each_with_its_label(official):
    tool, folder, arrays = official
    made = tool.subset(folder)
    assert made["train_images"].shape == (50, 2, 2, 1) and made["test_images"].shape == (
        20,
        2,
        2,
        1,
    )
    for part, source, count in (("train", "train", 5), ("test", "t10k", 2)):
        assert np.bincount(made[f"{part}_labels"]).tolist() == [count] * 10
        images, labels = (
            arrays[f"{source}-{kind}-ubyte"] for kind in ("images-idx3", "labels-idx1")
        )
        class_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        taken = [class_of[image.tobytes()] for image in made[f"{part}_images"]]
        assert taken == made[f"{part}_labels"].tolist()
    again = tool.subset(folder)
    assert all(np.array_equal(made[name], again[name]) for name in made)


def test_the_subset_is_made_of_the_official_files_only(official):
    tool, folder, _ = official
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1] + b"?"))
    with pytest.raises(SystemExit, match="does not hold the official t10k-images"):
        tool.subset(folder)
    path.write_bytes(b"no gzip")
    with pytest.raises(SystemExit, match="cannot be read"):
        tool.subset(folder)


# --- splits ----------------------------------------------------------------------------------


def test_uneven_tasks_are_allowed_and_said(digits):
    with pytest.warns(UserWarning, match="10 classes do not divide into 3.*4, 3, 3 classes"):
        tasks = class_incremental_split(digits, 3)
    assert [task.classes for task in tasks] == [(0, 1, 2, 3), (4, 5, 6), (7, 8, 9)]


def test_the_first_task_may_have_more_classes_than_the_others(digits):
    tasks = class_incremental_split(digits, 3, first_classes=6)
    assert [task.classes for task in tasks] == [(0, 1, 2, 3, 4, 5), (6, 7), (8, 9)]
    assert [task.first_label for task in tasks] == [0, 6, 8]
    with pytest.warns(UserWarning, match="a task has one class, .* 100 % says nothing"):
        class_incremental_split(digits, 2, first_classes=9)
    with pytest.warns(UserWarning, match="5 classes do not divide into 2.*5, 3, 2 classes"):
        class_incremental_split(digits, 3, first_classes=5)
    tasks = class_incremental_split(digits, 3, first_classes=6, class_order=range(10)[::-1])
    assert [task.classes for task in tasks] == [(9, 8, 7, 6, 5, 4), (3, 2), (1, 0)]
    assert {*digits.train_labels[digits.train_labels > 3].tolist()} == {*tasks[0].classes}
    (whole,) = class_incremental_split(digits, 1, first_classes=6)
    assert len(whole.classes) == 10, "one task has all classes"


def test_a_seed_gives_one_order_and_another_seed_another(digits):
    orders = [
        [task.classes for task in class_incremental_split(digits, 2, seed=seed)]
        for seed in (3, 3, 4)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(num_tasks=11), "tasks=11: digits has 10 classes"),
        (dict(num_tasks=0), "tasks=0"),
        (dict(num_tasks=2.0), r"tasks=2\.0"),
        (dict(num_tasks=2, class_order=[0, 1]), "each class id"),
        (dict(num_tasks=2, class_order=[0] * 10), "each class id"),
        (dict(num_tasks=2, class_order=range(10), seed=1), "not both"),
        (dict(num_tasks=3, first_classes=9), "first_classes=9: every later task needs a class"),
    ],
)
def test_impossible_splits_are_refused(digits, arguments, words):
    with pytest.raises(InputError, match=words):
        class_incremental_split(digits, **arguments)


# --- augmentation ----------------------------------------------------------------------------


def test_every_image_has_its_own_draw_and_all_draws_are_equally_likely(generator):
    image = torch.randint(1, 256, (1, 1, 5, 5), generator=generator).byte()
    padded = F.pad(image, (1,) * 4)
    crops = [padded[..., row : row + 5, at : at + 5] for row in range(3) for at in range(3)]
    possible = {bytes_of(c)[0] for crop in crops for c in (crop, crop.flip(3))}
    results = augment(image.repeat(9000, 1, 1, 1), 1, True, generator)
    drawn = Counter(bytes_of(results))
    assert drawn.keys() == possible and len(possible) == 18
    assert min(drawn.values()) > 400 and max(drawn.values()) < 600  # 500 expected


def test_augmented_images_lie_as_convolutions_read_them_fastest():
    images = augment(torch.zeros(8, 3, 32, 32).byte(), 4, True, torch.Generator())
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_joint_training_is_a_first_task(digits):
    assert merge_tasks(class_incremental_split(digits, 2)).index == 0  # with its learning rate


# --- cifar100 files --------------------------------------------------------------------------


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8),
        "train_labels": np.arange(12) % 4,
        "test_images": rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8),
        "test_labels": np.arange(8) % 4,
        "class_names": np.array(["apple", "bear", "cup", "dog"]),
    }


def test_npz_is_read_with_channels_first(arrays, tmp_path):
    np.savez(tmp_path / "cifar100.npz", **arrays)
    dataset = load_dataset("cifar100", root=tmp_path)
    assert dataset.train_images.shape == (12, 3, 32, 32)
    assert dataset.train_images[5, 2, 7, 11] == arrays["train_images"][5, 7, 11, 2]
    assert dataset.class_names == ("apple", "bear", "cup", "dog")
    assert dataset.train_labels.dtype == torch.int64
    assert dataset.mean == (0.5071, 0.4867, 0.4408), "of red, green and blue"
    assert dataset.std == (0.2675, 0.2565, 0.2761)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_csd_data_names_a_folder_or_a_file(arrays, tmp_path, monkeypatch, what):
    np.savez(tmp_path / "cifar100.npz", **arrays)
    monkeypatch.setenv("CSD_DATA", str(tmp_path / "cifar100.npz" if what == "file" else tmp_path))
    assert len(load_dataset("cifar100").test_labels) == 8


# In the middle of the arrays, and the version, flags and method in the archive's directory.
@pytest.mark.parametrize("field, bit", [(None, 0xFF), (6, 0x40), (8, 1), (10, 1)])
def test_flipped_bits_are_noticed(arrays, tmp_path, field, bit):
    path = tmp_path / "cifar100.npz"
    np.savez(path, **arrays)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + field if field else len(content) // 2
    content[place] ^= bit
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cifar100\.npz cannot be read .*move it away"):
        load_dataset("cifar100", root=path)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(test_labels=None), "no array 'test_labels'"),
        (
            dict(train_images=np.zeros((12, 32, 32, 3), np.float32)),
            "train_images are torch.float32",
        ),
        *(
            (dict(train_images=np.zeros(shape, np.uint8)), "one size: delete the file")
            for shape in ((12, 3, 32, 32), (12, 32, 31, 3))
        ),
        (dict(train_images=np.zeros((12, 32, 32, 3), np.uint16)), "train_images are torch.uint16"),
        (dict(train_images=np.zeros((0, 32, 32, 3), np.uint8)), "train_images"),
        (dict(train_labels=np.arange(12) % 5), "train_labels are from 0 to 4"),
        (dict(test_labels=np.arange(8) % 4 - 1), "test_labels are from -1"),
        (dict(test_labels=np.arange(7) % 4), "test_labels are .* of the 8 images"),
        (dict(train_labels=np.zeros((12, 2), int)), "train_labels"),
        (dict(class_names=np.arange(4)), "class_names"),
    ],
)
def test_wrong_arrays_are_named(arrays, tmp_path, change, words):
    content = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    np.savez(tmp_path / "cifar100.npz", **content)
    with pytest.raises(InputError, match=words):
        load_dataset("cifar100", root=tmp_path)


def test_another_seed_holds_out_other_images_and_at_most_half_of_them(two_tasks):
    task = two_tasks[1]
    first, second = (hold_out(task, 0.5, seed)[1] for seed in (3, 4))
    assert not torch.equal(first, second)
    with pytest.raises(InputError, match=r"share=0\.6: .*up to 0\.5"):
        hold_out(task, 0.6, seed=3)
