"""Images of one's own: folders and files, what is wrong with them, and what makes them a run."""

import doctest
import hashlib
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stopped import same_bits
from typed import csd

from csd_lib import InputError, identity, own_images, paths
from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split, hold_out, merge_tasks
from csd_lib.datasets import DATASETS, DatasetSpec, load_dataset
from csd_lib.drift import cosine_drift
from csd_lib.engine import Precision
from csd_lib.experiment import load_run, run_experiment, run_name
from csd_lib.fingerprint import fingerprint
from csd_lib.networks import make_network
from csd_lib.own_images import describe, find_own_images, load_own_images
from csd_lib.paper import ledger
from csd_lib.prepare import load_images
from csd_lib.record import Record
from csd_lib.retrieval import embed
from csd_lib.stored import StoredImages
from csd_lib.train import TaskTraining

ROOT = Path(__file__).resolve().parent.parent
QUICK = dict(tasks=2, depth=8, epochs=1, batch_size=8, crop_padding=1, device="cpu")
NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture(autouse=True)
def kept(monkeypatch, tmp_path):
    """Where decoded folders, runs and records go."""
    monkeypatch.setattr(paths, "data_folder", lambda: tmp_path / "data")
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("CSD_RESULTS", str(tmp_path / "results"))
    return tmp_path / "data" / "own"


def picture(label, number, size=(12, 12), channels=3):
    """Noise around a level that the label decides: uint8 [H, W, C]."""
    random = np.random.default_rng([label, number, channels])
    return (random.integers(0, 80, (*size, channels)) + 40 * label).astype(np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).save(path)


def make(folder, split=True, count=6, **options):
    """A folder of four classes; with a split, ``count`` images for training and three for tests."""
    parts = (
        {"train": range(count), "test": range(count, count + 3)} if split else {"": range(count)}
    )
    for part, numbers in parts.items():
        for label, name in enumerate(NAMES):
            for number in numbers:
                pixels = picture(label, number, **options)
                save(folder / part / name / f"{number:03}.png", pixels)
    return folder


def arrays(kind="images"):
    pixels = np.stack([picture(label, n) for label in range(4) for n in range(8)])
    values = pixels if kind == "images" else pixels.reshape(32, -1)[:, :20].astype(np.float16)
    return {kind: values, "labels": np.arange(4).repeat(8)}


def test_the_examples_of_the_page_print_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    found = doctest.testfile(str(ROOT / "docs" / "own-images.md"), module_relative=False)
    assert found.failed == 0 and found.attempted > 20


# --- what is read --------------------------------------------------------------------------------


def test_a_folder_is_read_as_it_is(tmp_path):
    found = load_own_images(make(tmp_path / "pets"))
    assert found.name == "pets" and found.class_names == NAMES
    expected = np.stack([picture(label, n) for label in range(4) for n in range(6)])
    assert np.array_equal(found.train_images.permute(0, 2, 3, 1).numpy(), expected)
    assert found.train_labels.tolist() == np.arange(4).repeat(6).tolist()
    assert found.test_labels.tolist() == np.arange(4).repeat(3).tolist()
    values = expected / 255
    assert np.allclose(found.mean, values.mean(axis=(0, 1, 2)), atol=1e-6)
    assert np.allclose(found.std, values.std(axis=(0, 1, 2)), atol=1e-6)


def test_statistics_are_of_the_training_images_only(tmp_path):
    before = load_own_images(make(tmp_path / "a"))
    make(tmp_path / "b")
    for path in (tmp_path / "b" / "test").rglob("*.png"):
        save(path, 255 - np.asarray(Image.open(path)))
    after = load_own_images(tmp_path / "b")
    assert (after.mean, after.std) == (before.mean, before.std)
    assert after.sha256() != before.sha256()


def test_grey_images_have_one_channel_unless_one_is_coloured(tmp_path):
    folder = make(tmp_path / "grey", channels=1)
    assert load_own_images(folder).train_images.shape[1] == 1
    save(folder / "train" / "ant" / "coloured.png", picture(0, 99))
    found = load_own_images(folder)
    assert found.train_images.shape[1] == 3
    assert torch.equal(found.test_images[:, 0], found.test_images[:, 2])


def test_images_of_several_sizes_need_an_image_size_and_are_cut_in_their_middle(tmp_path):
    folder = make(tmp_path / "pets")
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200  # only the middle is bright
    save(folder / "train" / "ant" / "wide.png", wide)
    with pytest.raises(InputError, match=r"2 sizes .*12 x 12.*10 x 30: give an image size"):
        load_own_images(folder)
    found = load_own_images(folder, image_size=10)
    assert found.train_images.shape[1:] == (3, 10, 10)
    bright = [image for image in found.train_images if (image == 200).all()]
    assert len(bright) == 1
    assert load_own_images(make(tmp_path / "one"), image_size=20).test_images.shape[2:] == (20, 20)


def test_a_camera_that_was_turned_has_taken_the_picture_upright(tmp_path):
    folder = make(tmp_path / "pets", size=(8, 12))
    for path in (folder / "train" / "ant").glob("*.png"):
        turned = Image.open(path).transpose(Image.Transpose.ROTATE_90)
        exif = turned.getexif()
        exif[0x0112] = 6  # to be turned by a quarter, clockwise
        turned.save(path, exif=exif)
    assert (
        load_own_images(folder).sha256()
        == load_own_images(make(tmp_path / "b", size=(8, 12))).sha256()
    )


def test_a_seeded_split_is_a_fifth_and_does_not_depend_on_names_or_order(tmp_path, monkeypatch):
    found = find_own_images(make(tmp_path / "a", split=False, count=20))
    assert np.bincount(found.test.labels).tolist() == [4] * 4
    assert not {*found.train.hashes} & {*found.test.hashes}
    for number, path in enumerate(sorted((tmp_path / "a").rglob("*.png"))):
        path.rename(path.with_name(f"{997 * number % 1000:03}-renamed.png"))
    again = find_own_images(tmp_path / "a")
    assert {*again.test.hashes} == {*found.test.hashes}
    monkeypatch.setattr(own_images, "SPLIT_SEED", 1)
    other = find_own_images(tmp_path / "a")
    assert {*other.test.hashes} != {*found.test.hashes}


def test_equal_images_are_on_the_same_side_of_a_seeded_split(tmp_path, monkeypatch):
    folder = make(tmp_path / "a", split=False, count=11)
    for name in NAMES:
        for number in range(11):  # every image three times
            for copy in ("x", "y"):
                pixels = np.asarray(Image.open(folder / name / f"{number:03}.png"))
                save(folder / name / f"{number:03}{copy}.png", pixels)
    for seed in range(5):
        monkeypatch.setattr(own_images, "SPLIT_SEED", seed)
        assert find_own_images(folder).duplicates() == []


def test_a_file_of_arrays_is_the_same_data_set_as_the_folder(tmp_path):
    folder = load_own_images(make(tmp_path / "pets"))
    parts = {
        f"{part}_{what}": getattr(folder, f"{part}_{what}").numpy()
        for part in ("train", "test")
        for what in ("images", "labels")
    }
    for part in ("train", "test"):
        parts[f"{part}_images"] = parts[f"{part}_images"].transpose(0, 2, 3, 1)
    for save_arrays in (np.savez, np.savez_compressed):
        save_arrays(tmp_path / "pets.npz", **parts, class_names=np.array(NAMES))
        found = load_own_images(tmp_path / "pets.npz")
        assert found.sha256() == folder.sha256()


def test_arrays_without_a_split_or_names_are_split_and_numbered(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays())
    found = load_own_images(tmp_path / "a.npz")
    assert found.class_names == ("0", "1", "2", "3")
    assert torch.bincount(found.test_labels).tolist() == [2] * 4
    grey = {**arrays(), "images": arrays()["images"][..., 0]}
    np.savez(tmp_path / "grey.npz", **grey)
    assert load_own_images(tmp_path / "grey.npz").train_images.shape[1] == 1


@pytest.mark.parametrize("scale", [1, 1e-9])
def test_features_made_elsewhere_have_mean_0_and_deviation_1_on_the_training_part(scale, tmp_path):
    made = arrays("features")
    np.savez(tmp_path / "f.npz", **{**made, "features": made["features"].astype("f4") * scale})
    found = load_own_images(tmp_path / "f.npz")
    train = found.train_images[:, :, 0, 0].double()
    assert found.train_images.dtype == torch.float32 and found.train_images.shape[1:] == (20, 1, 1)
    assert train.mean(dim=0).abs().max() < 1e-6
    assert (train.std(dim=0, correction=0) - 1).abs().max() < 1e-5
    assert found.test_images.mean(dim=0).abs().max() > 0.01, "its own mean is not known"


# --- what is wrong -------------------------------------------------------------------------------


def test_broken_files_are_all_named(tmp_path):
    folder = make(tmp_path / "pets")
    good = (folder / "train" / "ant" / "000.png").read_bytes()
    broken = {"empty.png": b"", "text.jpg": b"no image", "half.png": good[: len(good) // 2]}
    for name, content in broken.items():
        (folder / "train" / "bee" / name).write_bytes(content)
    with pytest.raises(InputError, match="3 files are no images") as first:
        load_own_images(folder)
    for name in broken:
        assert f"bee/{name}" in str(first.value)
        (folder / "train" / "bee" / name).unlink()
    assert not list((tmp_path / "data" / "own").glob("*.np*"))
    jpeg = folder / "train" / "bee" / "half.jpg"  # its header is whole, its pixels are not
    Image.fromarray(picture(1, 1)).save(jpeg)
    jpeg.write_bytes(jpeg.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"1 files are no images .*half\.jpg"):
        load_own_images(folder)
    jpeg.unlink()
    assert len(load_own_images(folder).train_labels) == 24


def test_a_tiny_file_that_claims_a_huge_image_is_refused(tmp_path):
    folder = make(tmp_path / "pets")
    bomb = folder / "train" / "ant" / "bomb.ppm"
    bomb.write_bytes(b"P6 60000 60000 255\n")
    with pytest.raises(InputError, match=r"bomb\.ppm"):
        load_own_images(folder, image_size=8)


def test_duplicates_between_training_and_test_are_named(tmp_path, capsys):
    folder = make(tmp_path / "pets")
    save(folder / "test" / "dog" / "copy.png", picture(1, 2))
    with pytest.warns(UserWarning, match=r"1 test images .*test/dog/copy\.png.*train/bee/002\.png"):
        load_own_images(folder)
    text = describe(find_own_images(folder))
    assert "test/dog/copy.png is train/bee/002.png" in text
    assert "24 training and 13 test images of 4 classes, each 12 x 12 x 3" in text


FOLDERS = {
    "empty": (lambda f: f.mkdir(), "no folders"),
    "missing": (lambda f: None, "does not exist"),
    "a class without images": (
        lambda f: (make(f), (f / "train/eel").mkdir(), (f / "test/eel").mkdir()),
        "eel holds no image",
    ),
    "classes that differ": (lambda f: (make(f), (f / "test/eel").mkdir()), "only one .* eel"),
    "no part called test": (
        lambda f: (make(f), (f / "test").rename(f / "val")),
        "train holds folders, .* must be called train and test",
    ),
    "a part called Test": (
        lambda f: (make(f), (f / "test").rename(f / "Test")),
        "Test holds folders, .* must be called train and test",
    ),
    "too few to split": (lambda f: make(f, split=False, count=3), "ant has 3 images, too few"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_is_no_data_set_is_refused_with_the_reason(tmp_path, what):
    prepare, words = FOLDERS[what]
    prepare(tmp_path / "pets")
    with pytest.raises(InputError, match=words):
        load_own_images(tmp_path / "pets")


ARRAYS = {
    "no labels": (lambda a: a.pop("labels"), "no array labels"),
    "floats": (lambda a: a.update(images=a["images"] / 255.0), "expected uint8"),
    "labels of others": (lambda a: a.update(labels=np.arange(4)), "expected whole numbers"),
    "negative": (lambda a: a.update(labels=a["labels"] - 1), "expected whole numbers"),
    "few names": (lambda a: a.update(class_names=np.array(["a"])), "no name"),
    "nan": (
        lambda a: (a.pop("images"), a.update(features=np.full((32, 4), np.nan))),
        "NaN or infinite",
    ),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_arrays_that_are_no_data_set_are_refused_with_the_reason(tmp_path, what):
    change, words = ARRAYS[what]
    found = arrays()
    change(found)
    np.savez(tmp_path / "a.npz", **found)
    with pytest.raises(InputError, match=words):
        load_own_images(tmp_path / "a.npz")


def test_a_name_without_a_slash_is_a_known_data_set_or_a_typo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "pets")
    with pytest.raises(InputError, match=r"dataset='pets': choose one of .*\./pets"):
        TrainConfig(dataset="pets")
    with pytest.raises(InputError, match="image_size=8: digits has images of one size"):
        TrainConfig(dataset="digits", image_size=8)
    assert load_images(TrainConfig(dataset="./pets")).name == "pets"


@pytest.mark.parametrize(
    "typed, words",
    [
        (["nonsense"], f"what='nonsense': choose one of {', '.join(DATASETS)}, or a path"),
        ([""], "what follows data is empty"),
        (["--check", "1"], "what='1': choose one of"),
        (["cifar100", "--image-size", "8"], "image_size=8 is for images of your own"),
        (["digits", "--check"], "check=True: digits has no files that were fetched"),
        (["./gone"], "gone does not exist"),
        (["./gone.npz"], "gone.npz cannot be read"),
    ],
)
def test_the_command_data_names_what_it_cannot_do(typed, words):
    done = csd("data", *typed)
    assert done.returncode == 2 and words in done.stderr


def test_the_command_data_describes_a_folder(tmp_path):
    done = csd("data", str(make(tmp_path / "pets")), "--image-size", "9")
    assert "12 test images of 4 classes, each 9 x 9 x 3" in done.stdout


@pytest.mark.parametrize(
    "name, words",
    [
        ("digits", ["1,195 training and 602 test images of 10 classes, each 8 x 8 x 1", "CC BY"]),
        ("fashion", ["5,000 training and 1,000 test", "28 x 28 x 1", "a class: 500\n", "MIT"]),
        ("mine", ["mine: 24 training and 12 test images of 4 classes, each 9 x 9 x 3"]),
    ],
)
def test_the_command_data_describes_every_data_set_that_is_ready(
    name, words, tmp_path, monkeypatch
):
    mine = replace(load_own_images(make(tmp_path / "pets"), 9), name="mine")
    monkeypatch.setitem(DATASETS, "mine", DatasetSpec(lambda root: mine, 4, {}))
    out = csd("data", name).stdout
    for part in [*words, f"--dataset {name}"]:
        assert part in out, part


# --- larger than memory --------------------------------------------------------------------------


def memory_of(tensor):
    return tensor.untyped_storage().data_ptr()


def task_training(config, dataset, tasks):
    student = make_network(config, dataset.mean, dataset.std)
    student.grow_head(len(tasks[-1].classes))
    precision, generator = Precision("fp32", torch.device("cpu")), torch.Generator()
    return TaskTraining(student, None, tasks, config, precision, generator)


@pytest.mark.parametrize(
    "kind, selection", [("folder", "held_out"), ("file", "held_out"), ("file", "test")]
)
def test_images_in_their_file_give_the_same_results_bit_for_bit(
    tmp_path, monkeypatch, kind, selection
):
    path = make(tmp_path / "pets")
    if kind == "file":
        path = tmp_path / "pets.npz"
        np.savez(path, **arrays())
    config = TrainConfig(dataset=str(path), **QUICK, selection=selection, method="csd")
    found = {}
    for limit in (own_images.MAX_IN_MEMORY, 0):
        monkeypatch.setattr(own_images, "MAX_IN_MEMORY", limit)
        dataset = load_dataset(config.dataset)
        assert isinstance(dataset.train_images, StoredImages) is (limit == 0)
        run = run_experiment(config, dataset, folder=tmp_path / str(limit), progress=False)
        found[limit] = dataset.sha256(), run.matrix.seen.tolist(), run.record.data, run
    (*hashes_a, run_a), (*hashes_b, run_b) = found.values()
    assert hashes_a == hashes_b and same_bits(run_a, run_b)


def test_no_copy_of_all_images_is_made(tmp_path, monkeypatch):
    """From loading to held-out images, every part shows rows of one mapped file."""
    monkeypatch.setattr(own_images, "MAX_IN_MEMORY", 0)
    np.savez(tmp_path / "a.npz", **arrays())
    dataset = load_own_images(tmp_path / "a.npz")
    tasks = class_incremental_split(dataset, 2, seed=3)
    rest, held_out, _ = hold_out(merge_tasks(tasks), 0.2, 0)
    parts = [dataset.train_images, *(t.test_images for t in tasks), rest.train_images, held_out]
    assert all(isinstance(part, StoredImages) for part in parts)
    assert {memory_of(part.pixels) for part in parts} == {memory_of(parts[0].pixels)}
    config = TrainConfig(dataset="./a.npz", **QUICK)
    learning = task_training(config, dataset, tasks[:1])
    assert memory_of(learning.images.pixels) == memory_of(parts[0].pixels)
    assert learning.images[torch.tensor([1, 0])].shape == (2, 3, 12, 12)
    order = [dataset.class_names[c] for t in tasks for c in t.classes]
    assert sorted(order) != order


# --- what makes it a run -------------------------------------------------------------------------


def test_a_moved_folder_is_the_same_run_and_a_changed_one_is_not(tmp_path):
    folder = make(tmp_path / "pets")
    config = TrainConfig(dataset=str(folder), **QUICK)
    first = run_experiment(config, progress=False)
    folder.rename(tmp_path / "moved")
    moved = replace(config, dataset=str(tmp_path / "moved"))
    epochs = []
    again = run_experiment(moved, progress=False, on_epoch=lambda *_: epochs.append(1))
    assert again.folder == first.folder and not epochs
    assert first.folder.name.startswith("own-csd-2tasks-seed0-")
    save(tmp_path / "moved" / "train" / "ant" / "more.png", picture(0, 77))
    assert run_experiment(moved, progress=False).folder != first.folder


def test_a_record_is_read_when_the_folder_is_gone_and_its_models_with_the_images(tmp_path):
    config = TrainConfig(dataset=str(make(tmp_path / "pets")), **QUICK)
    dataset = load_images(config)
    run = run_experiment(config, dataset, progress=False)
    (tmp_path / "pets").rename(tmp_path / "gone")
    assert Record.read(run.folder / "results.json").config == config
    with pytest.raises(InputError, match="pets does not exist"):
        load_run(run.folder)
    old, new = load_run(run.folder, dataset).models
    images, labels = dataset.test_images, dataset.test_labels
    drift = cosine_drift(embed(old, images), embed(new, images), labels)
    assert drift.keys() == {0, 1, 2, 3} and max(drift.values()) > 0


def test_an_experiment_runs_on_own_images_and_finds_its_records_again(tmp_path):
    config = TrainConfig(dataset=str(make(tmp_path / "pets")), **QUICK)
    configs = [replace(config, method=method) for method in ("fine-tuning", "csd")]
    places = ledger.reproduce(configs, progress=False)
    assert [place.parent.name for place in places] == ["own", "own"]
    (tmp_path / "pets").rename(tmp_path / "moved")
    moved = [replace(c, dataset=str(tmp_path / "moved")) for c in configs]
    cells = ledger.plan(moved, load_images(moved[0]))
    assert all(cell.is_done(again=False) for cell in cells)


def test_names_of_own_images_say_nothing_of_where_they_lie():
    here, there = TrainConfig(dataset="./a"), TrainConfig(dataset="/somewhere/else/b.npz")
    assert identity.key(here) == identity.key(there)
    assert run_name(here, "x", "") == run_name(there, "x", "") != run_name(here, "y", "")
    assert "somewhere" not in json.dumps(identity.key(there))
    sized = replace(here, image_size=64)
    assert identity.key(sized) == identity.key(here)  # the hash of the images says their size


def test_the_fingerprint_of_named_data_sets_does_not_know_of_own_images():
    config = TrainConfig(dataset="./a", **QUICK)
    same = TrainConfig(dataset="digits", flip=True, milestones=(0.5, 0.75), **QUICK)
    assert fingerprint(replace(config, later_learning_rate=1e-2), 1, 8) == fingerprint(same, 1, 8)


def test_a_folder_is_decoded_once_while_its_pixels_are_there_and_whole(tmp_path, monkeypatch, kept):
    folder = make(tmp_path / "pets")
    first = load_own_images(folder).sha256()
    (stored,) = kept.glob("*.npy")
    stored.unlink()
    assert load_own_images(folder).sha256() == first, "they were moved away"
    assert stored.exists()
    monkeypatch.setattr(own_images, "_pixels", None)  # whoever decodes again fails
    assert load_own_images(folder).sha256() == first
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(InputError, match=re.escape(stored.name)):
        load_own_images(folder)


def test_features_are_never_cropped_or_mirrored(tmp_path):
    np.savez(tmp_path / "f.npz", **arrays("features"))
    options = {**QUICK, "crop_padding": None}
    wrong = TrainConfig(dataset=str(tmp_path / "f.npz"), **options)
    with pytest.raises(InputError, match="holds features"):
        run_experiment(wrong, progress=False)
    right = replace(wrong, network="features", embedding=8, crop_padding=0, flip=False)
    assert TrainConfig(dataset="./f.npz", network="features").crop_padding == 0
    run = run_experiment(right, progress=False)
    assert embed(run.models[-1], run.tasks[0].test_images).shape[1] == 8
    assert run.matrix.seen[1, 0] > 0.5


def test_hash_of_images_in_a_file_is_that_of_a_tensor():
    pixels = torch.randint(0, 256, (5000, 2, 3, 1), dtype=torch.uint8)
    stored = StoredImages(pixels, torch.arange(5000))
    whole = hashlib.sha256(stored[:].numpy().data).hexdigest()
    parts = hashlib.sha256()
    for batch in stored.split(4096):
        parts.update(batch.numpy().data)
    assert parts.hexdigest() == whole and stored.shape == (5000, 1, 2, 3)


def test_a_changed_image_is_seen_though_its_time_is_put_back(tmp_path):
    folder = make(tmp_path / "pets")
    image = folder / "train" / "ant" / "more.bmp"  # of one size, whatever it shows
    save(image, picture(0, 77))
    before, found = find_own_images(folder).train, image.stat()
    save(image, picture(1, 77))
    os.utime(image, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert image.stat().st_size == found.st_size
    assert {*find_own_images(folder).train.hashes} != {*before.hashes}
