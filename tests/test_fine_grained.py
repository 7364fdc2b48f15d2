"""CUB-200-2011 and Stanford Dogs from small archives of the same structure, hostile ones too."""

import hashlib
import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from strange import link, pack
from typed import csd

from csd_lib import InputError, fine_grained, paths
from csd_lib.fine_grained import check_fine_grained, fetch_fine_grained
from csd_lib.own_images import load_own_images

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
DOGS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02087394-Rhodesian_ridgeback")


def jpeg(number):
    pixels = np.random.default_rng(number).integers(0, 256, (9 + number, 11, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def birds():
    """Members of an archive like the official one: two classes of four, of which one tests."""
    places = [f"{name}/bird_{n}.jpg" for name in BIRDS for n in range(4)]
    numbered = list(enumerate(places, start=1))
    folder = "CUB_200_2011"
    return {
        f"{folder}/README": b"no image",
        **{f"{folder}/images/{place}": jpeg(number) for number, place in numbered},
        f"{folder}/images.txt": "".join(f"{n} {p}\n" for n, p in numbered).encode(),
        f"{folder}/train_test_split.txt": "".join(
            f"{n} {int('_3' not in p)}\n" for n, p in numbered
        ).encode(),
        f"{folder}/bounding_boxes.txt": b"1 0.0 0.0 1.0 1.0\n",
        "attributes.txt": b"1 has_bill\n",
    }


def mat(places):
    file, cells = io.BytesIO(), np.empty((len(places), 1), dtype=object)
    cells[:, 0] = places
    savemat(file, {"file_list": cells, "labels": np.ones((len(places), 1))})
    return file.getvalue()


def dogs():
    places = [f"{name}/{name[:9]}_{n}.jpg" for name in DOGS for n in range(3)]
    test = [place for place in places if "_2.jpg" in place]
    lists = {
        "train_list.mat": mat([p for p in places if p not in test]),
        "test_list.mat": mat(test),
    }
    images = {f"Images/{place}": jpeg(number) for number, place in enumerate(places)}
    return {"file_list.mat": mat(places), **lists}, images


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    """The folder of data sets; nothing is fetched from the real origin."""
    monkeypatch.setattr(paths, "data_folder", lambda: tmp_path / "data")
    for name in ("CSD_DATA", "CSD_MIRRORS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data"


@pytest.fixture
def offer(monkeypatch, tmp_path):
    """Packs archives where a data set's origin is, and pins them."""

    def offer(name, *contents, counts, classes):
        spec, pinned = fine_grained.FINE_GRAINED[name], []
        for archive, members in zip(spec.archives, contents, strict=True):
            path = tmp_path / archive.name
            pack(path, members)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            pinned.append(fine_grained.Archive(str(path), path.stat().st_size, digest))
        small = dict(zip(("train", "test"), counts, strict=True))
        changed = replace(spec, archives=tuple(pinned), counts=small, classes=classes)
        monkeypatch.setitem(fine_grained.FINE_GRAINED, name, changed)

    return offer


def test_birds_are_laid_out_after_the_official_split(offer, data):
    offer("cub200", birds(), counts=(6, 2), classes=2)
    folder = fetch_fine_grained("cub200")
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}
    expected = {
        f"{'test' if '_3' in name else 'train'}/{name.split('/images/')[1]}": content
        for name, content in birds().items()
        if name.endswith(".jpg")
    }
    assert found == expected
    dataset = load_own_images(folder, image_size=8)
    assert dataset.class_names == BIRDS and len(dataset.test_labels) == 2
    assert "2 images of 2 classes" in " ".join(check_fine_grained("cub200"))


def test_dogs_are_laid_out_after_their_lists(offer, data):
    lists, images = dogs()
    offer("dogs", lists, images, counts=(6, 3), classes=3)
    dataset = load_own_images(fetch_fine_grained("dogs"), image_size=8)
    assert dataset.class_names == DOGS
    assert dataset.test_labels.tolist() == [0, 1, 2] and len(dataset.train_labels) == 6


def test_the_command_fetches_and_says_what_to_do_next(offer, data):
    offer("cub200", birds(), counts=(6, 2), classes=2)
    done = csd("data", "cub200")
    # By its path it would train with the settings of own images.
    assert "--dataset cub200" in done.stdout
    next((data / "cub200" / "images").rglob("*.jpg")).unlink()
    done = csd("data", "cub200", "--check")
    assert done.returncode == 2 and "images instead of" in done.stderr


@pytest.mark.parametrize("variable", ["CSD_DATA", "CSD_MIRRORS"])
def test_an_archive_of_a_colleague_is_taken_if_it_is_the_official_one(
    offer, data, tmp_path, monkeypatch, variable
):
    offer("cub200", birds(), counts=(6, 2), classes=2)
    spec = fine_grained.FINE_GRAINED["cub200"]
    (archive,) = spec.archives
    (tmp_path / "stick").mkdir()
    there = tmp_path / "stick" / archive.name
    (tmp_path / archive.name).replace(there)  # so the origin has nothing
    monkeypatch.setenv(variable, str(there.parent))
    content = there.read_bytes()
    there.write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=r"CUB_200_2011\.tgz is not here yet"):
        fetch_fine_grained("cub200")
    there.write_bytes(content)
    assert fetch_fine_grained("cub200").is_dir()


FIRST = f"CUB_200_2011/images/{BIRDS[0]}/bird_0.jpg"
LIST, SPLIT = "CUB_200_2011/images.txt", "CUB_200_2011/train_test_split.txt"
HOSTILE = {
    "a way out in the list": (
        {LIST: birds()[LIST].replace(b"001.Black_footed_Albatross/bird_0", b"../../../out")},
        "no place of an image",
    ),
    "an absolute place": (
        {LIST: birds()[LIST].replace(b"001.Black_footed_Albatross/bird_0", b"/tmp/out")},
        "no place of an image",
    ),
    "a symbolic link": ({FIRST: link(FIRST, "/etc/passwd", tarfile.SYMTYPE)}, "is not a file"),
    "a hard link": ({FIRST: link(FIRST, "../x", tarfile.LNKTYPE)}, "is not a file"),
    "a device": ({FIRST: link(FIRST, "", tarfile.CHRTYPE)}, "is not a file"),
    "no list": ({LIST: None}, "lacks CUB_200_2011/images.txt"),
    "an image that is missing": ({FIRST: None}, "it holds .*expected"),
    "a split of others": ({SPLIT: b"1 1\n"}, "do not belong together"),
    "a split that is none": ({SPLIT: b"1 2 3\n"}, "cannot be read"),
    "a list that is no text": ({LIST: b"1 \xff.jpg\n"}, "cannot be read"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_and_damaged_archives_are_refused_and_write_nothing_outside(
    offer, data, tmp_path, what
):
    """Even if they had the pinned hash."""
    change, words = HOSTILE[what]
    members = {**birds(), **change}
    members = {name: content for name, content in members.items() if content is not None}
    offer("cub200", members, counts=(6, 2), classes=2)
    before = {path for path in tmp_path.rglob("*") if data not in path.parents}
    with pytest.raises(InputError, match=words):
        fetch_fine_grained("cub200")
    after = {path for path in tmp_path.rglob("*") if data not in path.parents}
    assert after - before <= {data} and not (data / "cub200" / "images").exists()


def test_members_that_no_list_names_are_never_written(offer, data, tmp_path):
    extra = {
        "CUB_200_2011/images/../../../out.jpg": b"x",
        "/tmp/out.jpg": b"x",
        f"CUB_200_2011/images/{BIRDS[0]}/unlisted.jpg": b"x",
    }
    offer("cub200", {**birds(), **extra}, counts=(6, 2), classes=2)
    folder = fetch_fine_grained("cub200")
    assert len(list(folder.rglob("*.jpg"))) == 8 and not list(tmp_path.rglob("out.jpg"))


def test_what_unpacks_to_too_much_is_refused(offer, data, monkeypatch):
    monkeypatch.setattr(fine_grained, "MAX_UNPACKED", 1000)
    offer("cub200", birds(), counts=(6, 2), classes=2)
    with pytest.raises(InputError, match="unpacks to more than"):
        fetch_fine_grained("cub200")


def test_lists_of_dogs_that_are_no_lists_are_refused(offer, data):
    lists, images = dogs()
    for change, words in (
        ({"test_list.mat": b"no matlab"}, "holds no file_list"),
        ({"test_list.mat": lists["train_list.mat"]}, "both for training and for testing"),
    ):
        offer("dogs", {**lists, **change}, images, counts=(6, 3), classes=3)
        with pytest.raises(InputError, match=words):
            fetch_fine_grained("dogs")


def test_a_layout_that_was_killed_is_made_again(offer, data, monkeypatch):
    offer("cub200", birds(), counts=(6, 2), classes=2)
    left = data / "cub200" / "images.partial" / "train" / "stale"
    left.mkdir(parents=True)
    (left / "old.jpg").write_bytes(b"x")
    folder = fetch_fine_grained("cub200")
    assert len(list(folder.rglob("*.jpg"))) == 8
    monkeypatch.setattr(fine_grained.Archive, "fetch", None)  # it is not fetched again
    assert fetch_fine_grained("cub200") == folder


def test_the_official_archives_are_pinned():
    for spec in fine_grained.FINE_GRAINED.values():
        for archive in spec.archives:
            assert len(archive.sha256) == 64 and archive.address.startswith("http")
    assert sum(fine_grained.FINE_GRAINED["cub200"].counts.values()) == 11_788
    assert sum(fine_grained.FINE_GRAINED["dogs"].counts.values()) == 20_580
