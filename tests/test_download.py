"""CIFAR-100 arrives whole from any source, goes on after any kill, and executes nothing."""

import hashlib
import os
import pickle
import re
import shlex
import signal
import socket
import struct
import tarfile
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import warm
from servers import half, not_found, whole, wrong
from strange import Evil, link, pack

from csd_lib import InputError, download, fetch, paths
from csd_lib.datasets import load_dataset

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = download.CIFAR100.name
NOBODY = f"http://127.0.0.1:1/{ARCHIVE}"  # nothing listens there
NAMES = ["ant", "bee", "cow"]


# --- a small archive like the official one ---------------------------------------------------


def old_pickle(value):
    """Pickle as Python 2 did, whose pickles the official archive holds."""

    def write(value):
        if isinstance(value, dict):
            return b"}(" + b"".join(write(k) + write(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(write(v) for v in value) + b"e"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, str | bytes):
            value = value.encode() if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(value)) + value
        rows, columns = value.shape  # a uint8 array
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
            + (write(rows) + write(columns) + b"\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03")
            + (b"U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89" + write(value.tobytes()))
            + b"q\1tb"
        )

    return b"\x80\x02" + write(value) + b"."


def write_archive(path, members):
    folder = tarfile.TarInfo("cifar-100-python")
    folder.type = tarfile.DIRTYPE
    pack(path, {"": folder, **{f"cifar-100-python/{name}": c for name, c in members.items()}})


@pytest.fixture(scope="session")
def contents():
    rng = np.random.default_rng(0)
    parts = {
        name: {
            "fine_labels": rng.permutation(np.arange(count) % 3).tolist(),
            "coarse_labels": [0] * count,
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        for name, count in (("train", 90), ("test", 30))
    }
    return {"file.txt~": [], **parts, "meta": {"fine_label_names": NAMES}}


@pytest.fixture
def official(contents, tmp_path, monkeypatch):
    """The path of the stand-in, which the pinned size and hash are set to."""
    (tmp_path / "official").mkdir()
    path = tmp_path / "official" / ARCHIVE
    write_archive(path, {name: old_pickle(value) for name, value in contents.items()})
    pin(monkeypatch, **known_of(path))
    return path


def known_of(path):
    return dict(size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def pin(monkeypatch, **known):
    monkeypatch.setattr(download, "CIFAR100", replace(download.CIFAR100, **known))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The ordinary data folder, and no way to any other computer."""
    for name in ("CSD_DATA", "CSD_MIRRORS", "CSD_DOWNLOAD_MINUTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pin(monkeypatch, address=NOBODY)
    monkeypatch.setattr(paths, "data_folder", lambda: tmp_path / "home")
    return tmp_path / "home"


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


# --- servers, good and bad -------------------------------------------------------------------


def ranges(handler, content, start):
    if not start:
        return whole(handler, content, start)
    rest = content[start:]
    part = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return handler.reply(206, rest, Content_Length=len(rest), Content_Range=part)


def ranges_of_another_part(handler, content, start):
    if not start:
        return whole(handler, content, start)
    part = f"bytes 0-{len(content) - 1}/{len(content)}"
    return handler.reply(206, content, Content_Length=len(content), Content_Range=part)


def stalling(handler, content, start):
    half(handler, content, start)
    handler.server.end.wait(10)


def trickling(handler, content, start):
    half(handler, content, start)
    for _ in range(300):
        handler.wfile.write(b"\0")
        handler.server.end.wait(0.02)


def wrong_half(handler, content, start):
    half(handler, b"\0" * len(content), start)


def log_in_page(handler, content, start):
    page = b"<html>Please log in</html>"
    handler.reply(200, page, Content_Length=len(page), Content_Type="text/html")


def page_without_length(handler, content, start):
    handler.reply(200, b"<html>Please log in</html>", Content_Type="text/html")


def no_http(handler, content, start):
    handler.wfile.write(b"hello\r\n\r\n")


def moved(handler, content, start):
    if handler.path == "/elsewhere":
        return ranges(handler, content, start)
    return handler.reply(302, b"", Location="/elsewhere", Content_Length=0)


@pytest.fixture
def serve(serve, official):
    return lambda answer, content=None: serve(answer, content or official.read_bytes())


@pytest.fixture
def mirrors(serve, monkeypatch):
    """Start servers, name them in CSD_MIRRORS in this order, and return them."""

    def start(*answers):
        servers = [serve(answer) for answer in answers]
        monkeypatch.setenv("CSD_MIRRORS", " ".join(server.url for server in servers))
        return servers

    return start


def partial_in(home, content):
    home.mkdir(exist_ok=True)
    (home / f"{ARCHIVE}.partial").write_bytes(content)


# --- what is read ----------------------------------------------------------------------------


def test_the_archives_images_are_sorted_by_class_and_otherwise_as_they_were(official, contents):
    arrays = download.read_archive(official)
    assert arrays["class_names"].tolist() == NAMES
    for name in ("train", "test"):
        labels, data = np.array(contents[name]["fine_labels"]), contents[name]["data"]
        expected = np.concatenate([data[labels == label] for label in range(3)])
        images = arrays[f"{name}_images"]
        assert images.dtype == np.uint8 and images.shape == (len(labels), 32, 32, 3)
        assert arrays[f"{name}_labels"].dtype == np.int64
        assert arrays[f"{name}_labels"].tolist() == sorted(labels)
        for row, column, channel in ((0, 0, 0), (3, 7, 1), (31, 30, 2)):
            place = channel * 1024 + row * 32 + column
            assert (images[:, row, column, channel] == expected[:, place]).all()


def test_a_data_set_is_made_once(official, home, monkeypatch):
    monkeypatch.setenv("CSD_MIRRORS", str(official.parent))
    dataset = load_dataset("cifar100")
    assert files(home) == [ARCHIVE, download.NPZ]
    assert dataset.class_names == tuple(NAMES) and dataset.train_images.shape == (90, 3, 32, 32)
    monkeypatch.setattr(download, "read_archive", None)  # not needed a second time
    assert len(load_dataset("cifar100").test_labels) == 30


@pytest.mark.parametrize("name", ["train", "meta"])
def test_nothing_in_an_archive_is_executed(contents, home, tmp_path, monkeypatch, name):
    evil = pickle.dumps({"fine_label_names": Evil(tmp_path / "pwned")}, protocol=2)
    home.mkdir()
    write_archive(
        home / ARCHIVE,
        {**{key: old_pickle(value) for key, value in contents.items()}, name: evil},
    )
    pin(monkeypatch, **known_of(home / ARCHIVE))
    with pytest.raises(InputError, match=r"mkdir is neither a plain value nor an array") as caught:
        load_dataset("cifar100")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists() and files(home) == [ARCHIVE]
    pickle.loads(evil)
    assert (tmp_path / "pwned").exists(), "an ordinary unpickler would have executed it"


@pytest.mark.parametrize(
    "names", ["cbuiltins\neval\n", "cnumpy\nload\n", "cnumpy._core.multiarray\nscalar\n"]
)
def test_only_the_names_of_arrays_are_looked_up(tmp_path, names):
    write_archive(tmp_path / "a", {"meta": b"\x80\x02" + names.encode() + b"."})
    with pytest.raises(InputError, match="neither a plain value nor an array"):
        download.read_archive(tmp_path / "a")


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_ValuesAndArrays", None)  # nothing may be unpickled
    for name in ("train", "other"):
        write_archive(tmp_path / "bomb", {name: bytes(download.MAX_UNPACKED + 1)})
        assert (tmp_path / "bomb").stat().st_size < 2e6
        with pytest.raises(InputError, match="unpacks to more than 200,000,000 bytes"):
            download.read_archive(tmp_path / "bomb")


@pytest.mark.parametrize(
    "change",
    [
        dict(meta=b""),
        dict(meta=b"hello"),
        dict(meta=old_pickle({})),
        dict(meta=old_pickle([1])),
        dict(test=old_pickle({"fine_labels": [0, 1], "data": np.zeros((1, 3072), np.uint8)})),
        dict(test=old_pickle({"fine_labels": [0], "data": np.zeros((1, 3000), np.uint8)})),
        dict(test=old_pickle({"fine_labels": [0], "data": [0]})),
        dict(train=None),
    ],
)
def test_an_archive_of_other_content_is_named(contents, tmp_path, change):
    members = {**{key: old_pickle(value) for key, value in contents.items()}, **change}
    path = tmp_path / "other.tar.gz"
    write_archive(path, {key: value for key, value in members.items() if value is not None})
    with pytest.raises(InputError, match=r"other\.tar\.gz cannot be read") as caught:
        download.read_archive(path)
    assert "\n" not in str(caught.value)


def test_paths_and_links_of_an_archive_lead_nowhere(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    ways_out = ("../../made", "cifar-100-python/../../../made", "/made")
    members = [f"cifar-100-python/{name}" for name in ("train", "test", "meta")]
    for content in (
        dict.fromkeys(ways_out, b"x"),
        {name: link(name, "/etc/passwd") for name in members},
    ):
        pack(tmp_path / "a" / "b" / ARCHIVE, content)
        with pytest.raises(InputError, match="cannot be read"):
            download.read_archive(tmp_path / "a" / "b" / ARCHIVE)
        assert not list(tmp_path.rglob("made"))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_archive_is_named(official, keep):
    content = official.read_bytes()
    official.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(InputError, match=r"cannot be read"):
        download.read_archive(official)


# --- sources and their order -----------------------------------------------------------------


def test_sources_are_asked_in_order(official, home, serve, monkeypatch):
    origin, first, second = serve(whole), serve(not_found), serve(whole)
    pin(monkeypatch, address=f"{origin.url}origin/{ARCHIVE}")
    monkeypatch.setenv("CSD_MIRRORS", f"{first.url}  {second.url}a/file")

    def asked():
        return [[path for path, _ in server.asked] for server in (first, second, origin)]

    load_dataset("cifar100")
    assert asked() == [[f"/{ARCHIVE}"], ["/a/file"], []]
    load_dataset("cifar100")  # cifar100.npz is there
    (home / download.NPZ).unlink()
    load_dataset("cifar100")  # the archive is there
    assert asked() == [[f"/{ARCHIVE}"], ["/a/file"], []]
    second.answer = not_found
    for name in files(home):
        (home / name).unlink()
    load_dataset("cifar100")
    assert asked() == [[f"/{ARCHIVE}"] * 2, ["/a/file"] * 2, [f"/origin/{ARCHIVE}"]]


def test_the_origin_is_reached_over_tls():
    code = (
        "from csd_lib import download, fetch\n"
        "print(download.CIFAR100.address, download.CIFAR100.size, fetch.STALL_SECONDS)"
    )
    done = warm.run("-c", code)
    origin = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    assert done.stdout.split() == [origin, "169001437", "30"]


@pytest.mark.parametrize("what", ["folder", "archive"])
def test_csd_data_with_an_archive_needs_no_network(official, home, monkeypatch, what):
    monkeypatch.setenv("CSD_DATA", str(official.parent if what == "folder" else official))
    assert len(load_dataset("cifar100").train_labels) == 90
    assert files(official.parent) == [ARCHIVE, download.NPZ] and not home.exists()


def make_read_only(folder, monkeypatch):
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # root may write anyway: refuse the probe for it
        touch = Path.touch

        def refuse(path, *arguments):
            if path.parent == folder:
                raise PermissionError(13, "Permission denied")
            touch(path, *arguments)

        monkeypatch.setattr(Path, "touch", refuse)


def test_a_read_only_stick_is_read_and_the_data_folder_written(official, home, monkeypatch, capsys):
    monkeypatch.setenv("CSD_DATA", str(official.parent))
    make_read_only(official.parent, monkeypatch)
    for _ in range(2):  # the second time from data/
        assert len(load_dataset("cifar100").train_labels) == 90
        said = capsys.readouterr().out
        assert f"{official.parent} cannot be written to" in said and str(home) in said
        assert files(official.parent) == [ARCHIVE] and files(home) == [download.NPZ]
        monkeypatch.setattr(download, "read_archive", None)


def test_a_stick_with_the_npz_is_only_read(official, home, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CSD_DATA", str(official.parent))
    load_dataset("cifar100")
    official.unlink()
    make_read_only(official.parent, monkeypatch)
    assert len(load_dataset("cifar100").train_labels) == 90
    assert not home.exists() and "cannot be written" not in capsys.readouterr().out


def test_nowhere_to_write_is_one_line(official, home, monkeypatch):
    home.write_text("in the way")
    with pytest.raises(InputError, match=r"cannot write to .*home.*CSD_DATA"):
        load_dataset("cifar100")


def test_a_file_that_cannot_be_written_is_one_line(official, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(InputError, match=r"cannot write .*cifar100\.npz .*No space left"):
        load_dataset("cifar100", root=official.parent)
    assert download.NPZ not in files(official.parent)


@pytest.mark.parametrize("damage", ["short", "flipped"])
def test_a_damaged_local_archive_is_named_and_replaced(official, home, monkeypatch, capsys, damage):
    content = official.read_bytes()
    home.mkdir()
    bad = content[:-1] if damage == "short" else content[:-9] + b"\0" * 9
    (home / ARCHIVE).write_bytes(bad)
    monkeypatch.setenv("CSD_MIRRORS", str(official))  # a file is as good as its folder
    load_dataset("cifar100")
    assert (home / ARCHIVE).read_bytes() == content
    problem = f"{len(bad):,} bytes instead of" if damage == "short" else "another SHA-256"
    assert f"{home / ARCHIVE} has {problem}" in capsys.readouterr().out


def test_a_mirror_of_an_unknown_kind_is_refused(home, monkeypatch):
    monkeypatch.setenv("CSD_MIRRORS", "ftp://somewhere/")
    with pytest.raises(InputError, match=r"'ftp://somewhere/' must start with http"):
        load_dataset("cifar100")


# --- connections that end, stall, or bring something else ------------------------------------


@pytest.mark.parametrize("second", [ranges, whole, ranges_of_another_part, moved])
@pytest.mark.parametrize("first", [half, stalling])
def test_the_next_source_goes_on_where_one_ended(
    official, home, mirrors, monkeypatch, capsys, first, second
):
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.3)
    _, server = mirrors(first, second)
    load_dataset("cifar100")
    have = official.stat().st_size // 2
    expected = [f"bytes={have}-"]
    if second == ranges_of_another_part:
        expected += [None]  # asked again, for all
    if second == moved:
        expected += expected
    assert [asked for _, asked in server.asked] == expected
    assert (home / ARCHIVE).read_bytes() == official.read_bytes()
    assert "is deleted" not in capsys.readouterr().out


@pytest.mark.parametrize("first", [half, stalling])
def test_running_again_goes_on_where_the_last_run_ended(
    official, home, mirrors, monkeypatch, first, capsys
):
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.3)
    mirrors(first)
    with pytest.raises(InputError, match=r"0\.2 MB of 0\.4 MB.*CSD_MODE=smoke") as caught:
        load_dataset("cifar100")
    assert "\n" not in str(caught.value) and str(home) in str(caught.value)
    reason = "timed out" if first == stalling else "the connection ended after"
    assert reason in capsys.readouterr().out
    have = official.stat().st_size // 2
    assert (home / f"{ARCHIVE}.partial").stat().st_size == have
    (server,) = mirrors(ranges)
    load_dataset("cifar100")
    assert [asked for _, asked in server.asked] == [f"bytes={have}-"]
    assert files(home) == [ARCHIVE, download.NPZ]
    assert re.search(r"CIFAR-100: 100%.*B/s", capsys.readouterr().err)


def test_a_folder_goes_on_too(official, home, monkeypatch):
    content = official.read_bytes()
    partial_in(home, content[:1000])
    pin(monkeypatch, address=str(official))
    stream, start, total = fetch._open(str(official), 1000, len(content))
    with stream:
        assert (start, total) == (1000, len(content)) and stream.read() == content[1000:]
    load_dataset("cifar100")
    assert (home / ARCHIVE).read_bytes() == content


@pytest.mark.parametrize(
    "bad, words",
    [
        (log_in_page, "26 bytes of text/html instead of"),
        (page_without_length, "unknown bytes of text/html"),
        (not_found, "HTTP Error 404"),
        (no_http, "hello"),
    ],
)
def test_a_source_of_something_else_is_named_and_leaves_no_byte(
    official, home, mirrors, capsys, bad, words
):
    content = official.read_bytes()
    partial_in(home, content[:5000])
    server, good = mirrors(bad, ranges)
    load_dataset("cifar100")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if words in line]
    assert server.url in line
    assert [asked for _, asked in good.asked] == ["bytes=5000-"]
    assert (home / ARCHIVE).read_bytes() == content


def test_a_folder_or_an_address_that_is_none_is_named(
    official, home, tmp_path, monkeypatch, capsys
):
    (tmp_path / ARCHIVE).write_bytes(b"hello")
    sources = [tmp_path / "nothing", "http://[", tmp_path, official.parent]
    monkeypatch.setenv("CSD_MIRRORS", " ".join(map(str, sources)))
    load_dataset("cifar100")
    said = capsys.readouterr().out
    assert f"{tmp_path / ARCHIVE}: it has 5 bytes" in said
    assert f"{tmp_path / 'nothing'}: [Errno 2]" in said and "http://[: Invalid" in said


def test_wrong_bytes_of_the_right_size_are_named_and_deleted(official, home, mirrors, capsys):
    (bad,) = mirrors(wrong)
    with pytest.raises(InputError, match=r"0\.0 MB of 0\.4 MB"):
        load_dataset("cifar100")
    assert files(home) == [] and len(bad.asked) == 1
    bad, good = mirrors(wrong, ranges)
    load_dataset("cifar100")
    assert f"{bad.url}{ARCHIVE}: what arrived has another SHA" in capsys.readouterr().out
    assert [asked for _, asked in good.asked] == [None]
    assert (home / ARCHIVE).read_bytes() == official.read_bytes()


def test_wrong_bytes_of_one_source_do_not_spoil_the_next(official, home, mirrors):
    _, good = mirrors(wrong_half, ranges)
    load_dataset("cifar100")
    have = official.stat().st_size // 2
    assert [asked for _, asked in good.asked] == [f"bytes={have}-", None]
    assert (home / ARCHIVE).read_bytes() == official.read_bytes()


@pytest.mark.parametrize("damage", ["short", "full", "long"])
def test_a_damaged_partial_file_does_not_spoil_the_next_attempt(
    official, home, mirrors, capsys, damage
):
    size = official.stat().st_size
    length = dict(short=1000, full=size, long=size + 7)[damage]
    partial_in(home, b"\0" * length)
    (good,) = mirrors(ranges)
    load_dataset("cifar100")
    expected = ["bytes=1000-", None] if damage == "short" else [None]
    assert [asked for _, asked in good.asked] == expected
    assert "and is deleted" in capsys.readouterr().out
    assert (home / ARCHIVE).read_bytes() == official.read_bytes()


def test_starting_over_keeps_nothing_of_the_older_bytes(official, home, mirrors):
    content = official.read_bytes()
    partial_in(home, b"\0" * (len(content) * 3 // 4))
    mirrors(half)
    with pytest.raises(InputError):
        load_dataset("cifar100")
    partial = home / f"{ARCHIVE}.partial"
    assert partial.read_bytes() == content[: len(content) // 2]


def test_a_whole_partial_file_needs_no_source(official, home, mirrors):
    partial_in(home, official.read_bytes())
    (server,) = mirrors(not_found)
    load_dataset("cifar100")
    assert server.asked == [] and files(home) == [ARCHIVE, download.NPZ]


# --- the time limit --------------------------------------------------------------------------


def test_the_time_limit_holds_even_if_bytes_keep_trickling_in(official, home, mirrors, monkeypatch):
    monkeypatch.setenv("CSD_DOWNLOAD_MINUTES", "0.01")
    slow, next_one = mirrors(trickling, whole)
    with pytest.raises(InputError, match=r"the time is up \(CSD_DOWNLOAD_MINUTES=0\.01\)"):
        load_dataset("cifar100")
    assert len(slow.asked) == 1 and next_one.asked == []
    have = (home / f"{ARCHIVE}.partial").stat().st_size
    assert 0 <= have - official.stat().st_size // 2 < 200, "it went on after the limit"


@pytest.mark.parametrize("minutes", ["soon", "0", "-1", "inf", "nan"])
def test_an_impossible_time_limit_is_named(home, mirrors, monkeypatch, minutes):
    (server,) = mirrors(whole)
    monkeypatch.setenv("CSD_DOWNLOAD_MINUTES", minutes)
    with pytest.raises(InputError, match=rf"CSD_DOWNLOAD_MINUTES='{minutes}': choose a positive"):
        load_dataset("cifar100")
    assert server.asked == []


# --- any other file, whose size is not known before -----------------------------------------


def strict_ranges(handler, content, start):
    if start >= len(content):
        return handler.send_error(416)
    return ranges(handler, content, start)


def without_length(handler, content, start):
    handler.reply(200, content)


FEATURES = bytes(range(256)) * 40


def fetch_features(folder, *sources):
    digest = hashlib.sha256(FEATURES).hexdigest()
    return fetch.fetch("features", sources, folder / "features", digest, remedy="ask a colleague")


@pytest.mark.parametrize("second", [strict_ranges, whole, without_length, ranges_of_another_part])
def test_a_file_of_unknown_size_goes_on_where_it_ended(home, serve, capsys, second):
    first, second = serve(half, FEATURES), serve(second, FEATURES)
    with pytest.raises(InputError, match=r"features is not here yet.*5,120 of 10,240.*colleague"):
        fetch_features(home, first.url)
    assert files(home) == ["features.partial"]
    assert fetch_features(home, second.url).read_bytes() == FEATURES
    assert second.asked[0] == ("/", "bytes=5120-") and files(home) == ["features"]
    assert fetch_features(home, "http://nobody/").read_bytes() == FEATURES, "it is there"


@pytest.mark.parametrize("older", [b"\0" * 100, b"\0" * 10_240, b"\0" * 20_000])
def test_older_bytes_of_another_file_do_not_spoil_one_of_unknown_size(home, serve, older):
    home.mkdir()
    (home / "features.partial").write_bytes(older)
    server = serve(strict_ranges, FEATURES)
    assert fetch_features(home, server.url).read_bytes() == FEATURES
    assert server.asked == [("/", f"bytes={len(older)}-"), ("/", None)]


def test_a_whole_partial_file_of_unknown_size_needs_no_source(home):
    home.mkdir()
    (home / "features.partial").write_bytes(FEATURES)
    assert fetch_features(home).read_bytes() == FEATURES and files(home) == ["features"]


@pytest.mark.parametrize("answer", [whole, without_length])
def test_a_file_larger_than_any_is_not_fetched(home, serve, monkeypatch, answer):
    monkeypatch.setattr(fetch, "MAX_SIZE", 1000)
    with pytest.raises(InputError, match=r"at most 1,000 bytes|more than 1,000 bytes"):
        fetch_features(home, serve(answer, FEATURES).url)
    assert fetch.size_of(home / "features.partial") <= 1000


def test_a_full_disk_is_not_blamed_on_the_source(home, serve, monkeypatch):
    first, second = serve(whole, FEATURES), serve(whole, FEATURES)
    opened = Path.open

    def full(path, *arguments):
        if path.suffix == ".partial":
            raise OSError(28, "No space left on device")
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"cannot write .*features\.partial .*No space left"):
        fetch_features(home, first.url, second.url)
    assert second.asked == []


def test_of_two_threads_one_fetches_and_both_have_the_file(home, serve):
    server = serve(whole, FEATURES)
    server.answer = lambda *arguments: (server.end.wait(0.3), whole(*arguments))
    threads = [threading.Thread(target=fetch_features, args=(home, server.url)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.asked) == 1 and (home / "features").read_bytes() == FEATURES


# --- programs that are killed, or meet -------------------------------------------------------


@pytest.fixture
def program(official, home, tmp_path):
    """A program that stands for the kit, with the stand-in pinned and another origin."""

    def write(origin, call):
        path = tmp_path / "program.py"
        path.write_text(
            "from pathlib import Path\n"
            "from csd_lib import archive, download, paths\n"
            f"address = {origin + ARCHIVE!r}\n"
            f"download.CIFAR100 = archive.Archive(address, **{known_of(official)})\n"
            f"paths.data_folder = lambda: Path({str(home)!r})\n"
            f"{call}\n"
        )
        return str(path)

    return write


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_sigkill_in_mid_download_then_a_second_program_goes_on(official, home, serve, program):
    have = official.stat().st_size // 2
    partial = home / f"{ARCHIVE}.partial"
    server = serve(stalling)
    path = program(server.url, "download.fetch_cifar100()")
    process = warm.Python(path)
    # Of what has come, less than one buffer may not be in the file yet.
    wait_for(lambda: partial.exists() and partial.stat().st_size > have - (1 << 16), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert files(home) == [partial.name]
    kept = partial.stat().st_size
    server.answer = ranges
    assert warm.run(path).returncode == 0
    assert [asked for _, asked in server.asked] == [None, f"bytes={kept}-"]
    assert files(home) == [ARCHIVE, download.NPZ]
    assert len(load_dataset("cifar100").train_labels) == 90


def test_of_two_programs_one_fetches_and_the_other_waits(official, home, serve, program):
    server = serve(stalling)

    def all_of_it(handler, content, start):
        handler.server.end.wait(30)
        whole(handler, content, start)

    server.answer = all_of_it
    path = program(server.url, "print(download.fetch_cifar100())")
    first = warm.Python(path)
    wait_for(lambda: server.asked, first)
    second = warm.Python(path)
    wait_for(lambda: "waiting" in second.printed(), second)
    server.end.set()
    first.communicate()
    said, _ = second.communicate()
    assert first.returncode == second.returncode == 0 and len(server.asked) == 1
    assert said.splitlines()[1:] == [str(home / download.NPZ)]


def test_smoke_mode_touches_no_network(tmp_path):
    code = (
        "import socket\n"
        "touched = []\n"
        "def refuse(*where, **_):\n"
        "    touched.append(where)\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from csd_lib import InputError, course, download\n"
        "run = course.start().run('csd', epochs=2)\n"
        "print('trained', len(run.history), 'epochs, touched', len(touched))\n"
        "try:\n"
        f"    download.fetch_cifar100({str(tmp_path / 'data')!r})\n"
        "except InputError:\n"
        "    print('then touched', len(touched))\n"
    )
    env = {**os.environ, "CSD_MODE": "smoke", "CSD_RUNS": str(tmp_path / "runs")}
    done = warm.run("-c", code, env=env)
    assert done.returncode == 0, done.stderr
    assert "trained 4 epochs, touched 0\n" in done.stdout
    assert "then touched 1\n" in done.stdout, "the guard did not see a download"


# --- data/README.md --------------------------------------------------------------------------


def documented_commands():
    section = (ROOT / "data" / "README.md").read_text().split("## For a class of thirty")[1]
    blocks = re.findall(r"```bash\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_each_documented_command_for_a_class_works(serve, program, tmp_path):
    origin = serve(whole)
    path = program(
        origin.url,
        "paths.data_folder = lambda: Path.cwd() / 'data'\n"
        "from csd_lib.__main__ import main; main()",
    )

    def start(command, who):
        assert not set(command) & set("$`|&;<>(){}*?~#!\\"), "only a shell can read this"
        settings, arguments = command.split("python ")
        words = shlex.split(arguments)
        if words[:2] == ["-m", "csd_lib"]:
            words[:2] = [path]
        set_here = dict(word.split("=", 1) for word in shlex.split(settings))
        (tmp_path / who / "data").mkdir(parents=True, exist_ok=True)
        return warm.Python(*words, env={**os.environ, **set_here}, cwd=tmp_path / who)

    def run(command, who):
        process = start(command, who)
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        return said

    fetch, longer, check, by_stick, hand_out, by_mirror = documented_commands()
    for command, who in ((fetch, "teacher"), (longer, "patient teacher")):
        said = run(command, who)
        assert f"{tmp_path / who / 'data' / download.NPZ}: 0 MB, 90 training" in said
        assert f"http.server 8000 --directory {tmp_path / who / 'data'}" in said
    assert len(origin.asked) == 2
    assert "the official archive" in run(check, "teacher")

    for name in (download.NPZ, ARCHIVE):
        stick = tmp_path / f"stick {name.partition('.')[0]}"
        stick.mkdir()
        (stick / name).write_bytes((tmp_path / "teacher" / "data" / name).read_bytes())
        said = run(by_stick.replace("/media/usb", f"'{stick}'"), "student with a stick")
        assert f"{stick / download.NPZ}: 0 MB" in said

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = start(hand_out.replace("8000", port), "teacher")
    try:
        while server.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(port))):
                break
        by_mirror = by_mirror.replace("192.168.1.20:8000", f"127.0.0.1:{port}")
        assert f"{download.NPZ}: 0 MB" in run(by_mirror, "student")
    finally:
        server.kill()
        server.communicate()
    assert files(tmp_path / "student" / "data") == [ARCHIVE, download.NPZ]
    assert len(origin.asked) == 2, "only the teacher may ask the origin"
