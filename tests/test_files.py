"""A folder belongs to one program at a time; a file is called damaged only if it is."""

import errno
import json
import random
import threading
import time
import zipfile

import numpy as np
import pytest
import torch
from disturbed import hold
from warm import PROCESSES

from csd_lib import InputError, download, files
from csd_lib.experiment import load_run
from csd_lib.export import load_exported
from csd_lib.files import make_folder
from csd_lib.own_images import find_own_images

# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_ends_a_write_leaves_no_partial_file_and_the_old_one(error, tmp_path):
    def write(partial):
        partial.write_text("half")
        raise error

    path = tmp_path / "a.json"
    files.write_json(path, "old")
    with pytest.raises(error):
        files.write_atomically(path, write)
    assert [*tmp_path.iterdir()] == [path] and files.read_json(path) == "old"


# --- the lock --------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path):
    """A process that works in the folder, and the event that ends its work."""
    inside, leave = PROCESSES.Event(), PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(tmp_path, inside, leave))
    process.start()
    assert inside.wait(60)
    yield process, leave
    if process.is_alive():  # to set an event that a killed process waited for would never end
        leave.set()
    process.join()


@pytest.mark.parametrize("name", ["a" * 5000, "a/\0b"], ids=["too long", "null"])
@pytest.mark.parametrize("takes", [make_folder, find_own_images, load_run, load_exported])
def test_a_name_that_no_file_can_have_is_refused(takes, name):
    with pytest.raises(InputError, match=r"cannot be a path .*: give |cannot write to .*: choose "):
        takes(name)


def test_another_process_is_waited_for_with_one_line(holder, tmp_path, capsys):
    _, leave = holder
    timer = threading.Timer(0.3, leave.set)
    timer.start()
    started = time.monotonic()
    with files.only_one(tmp_path, "training"):
        assert time.monotonic() - started > 0.25
    line = f"another program is training in {tmp_path}: waiting for it\n"
    assert capsys.readouterr().out == line


def test_without_waiting_busy_is_raised_at_once(holder, tmp_path, capsys):
    with (
        pytest.raises(files.Busy, match=r"another program is training in .*: wait for it, or"),
        files.only_one(tmp_path, "training", wait=False),
    ):
        pytest.fail("two programs in one folder")
    assert capsys.readouterr().out == ""


def test_a_killed_process_frees_the_folder(holder, tmp_path):
    process, _ = holder
    process.kill()
    process.join()
    with files.only_one(tmp_path, "training", wait=False):
        pass


def test_one_thread_may_enter_again_but_another_one_may_not(tmp_path):
    def busy():
        found = []

        def enter():
            try:
                with files.only_one(tmp_path, "training", wait=False):
                    found.append(False)
            except files.Busy:
                found.append(True)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return found == [True]

    alias = tmp_path / ".." / tmp_path.name
    with files.only_one(tmp_path, "training"):
        with files.only_one(alias, "training"):
            assert busy()
        assert busy(), "the inner one must not free the folder"
    assert not busy()


def test_an_error_inside_frees_the_folder_and_stays_itself(tmp_path):
    for error in (ZeroDivisionError(), OSError(errno.ENOLCK, "of the work"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, files.only_one(tmp_path, "training"):
            raise error
        assert caught.value is error
    with files.only_one(tmp_path, "training", wait=False):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_where_nothing_can_be_locked_a_note_says_so(tmp_path, monkeypatch, number):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    entered = False
    with (
        pytest.warns(UserWarning, match="cannot be locked") as notes,
        files.only_one(tmp_path, "training"),
    ):
        entered = True
    assert entered and len(notes) == 1
    monkeypatch.undo()
    with files.only_one(tmp_path, "training", wait=False):  # nothing was left that locks for ever
        pass


def test_a_folder_that_cannot_be_locked_for_another_reason_is_named(tmp_path):
    (tmp_path / ".lock").mkdir()
    with (
        pytest.raises(InputError, match=r"cannot write .*\.lock"),
        files.only_one(tmp_path, "training"),
    ):
        pass


# --- damaged, or an error of ours ------------------------------------------------------------


def write_arrays(path):
    with path.open("wb") as file:
        np.savez(file, a=np.arange(40, dtype=np.uint8).reshape(5, 8), names=np.array(["x", "yy"]))


# How to write a file of each kind, and how to read it.
KINDS = {
    "json": (
        lambda path: files.write_json(path, {"a": [1, 2.5, None], "b": {"c": "x"}}),
        files.read_json,
    ),
    "tensors": (
        lambda path: files.write_tensors(path, {"w": torch.ones(3, 2), "epochs": [1, 2.5, "x"]}),
        files.read_tensors,
    ),
    "arrays": (write_arrays, lambda path: files.read_arrays(path, 10**6)),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
    write, read = KINDS[request.param]
    path = tmp_path / "file"
    write(path)
    return request.param, path, read


def refused_in_one_line(path, read):
    """Read a file; say whether it was refused as damaged. Any other error is an error of ours."""
    try:
        read(path)
    except files.Damaged as error:
        assert "\n" not in str(error) and len(str(error)) < 500 and "move it away" in str(error)
        return True
    return False


def test_a_file_cut_anywhere_is_damaged(kind):
    _, path, read = kind
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert refused_in_one_line(path, read), f"the first {length} bytes"


def test_a_file_changed_at_random_is_damaged_or_read(kind):
    _, path, read = kind
    content, chance, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(1000):
        changed = bytearray(content)
        for _ in range(chance.choice([1, 1, 2, 8])):
            changed[chance.randrange(len(changed))] = chance.choice([0, 255, chance.randrange(256)])
        path.write_bytes(changed)
        refused += refused_in_one_line(path, read)
    assert refused > 300


def test_random_bytes_are_damaged(kind):
    _, path, read = kind
    chance = random.Random(0)
    for length in (0, 1, 10, 100, 1000):
        path.write_bytes(b"PK\3\4"[: length % 7] + chance.randbytes(length))
        assert refused_in_one_line(path, read)


def npy(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"12345678"


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (8,)",  # open brackets
        b"{'descr': '|u1', 1: False, 'shape': (8,)}",  # keys that cannot be sorted
        b"if x:\n    1\n  2",  # odd indentation
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -4)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': 'x'}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os')}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (8" + b", 1" * 90 + b")}",
        b"{'descr': '|V0', 'fortran_order': False, 'shape': (8,)}",
        b"{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (1,)}",
        b"(" * 900,
        b"-" * 60_000 + b"1",  # would exhaust the parser's stack, which it calls a lack of memory
    ],
)
def test_array_headers_that_are_none_are_damaged(tmp_path, header):
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a.npy", npy(header))
    assert refused_in_one_line(path, lambda path: files.read_arrays(path, 10**6))


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_compression_is_refused(tmp_path, compression):
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w", compression) as target:
        target.writestr("a.npy", npy(b"{}"))
    for read in (files.read_tensors, lambda path: files.read_arrays(path, 10**6)):
        with pytest.raises(files.Damaged, match="compressed in an unusual way"):
            read(path)


def planted(error):
    def fail(*_, **__):
        raise error

    return fail


# A function of each reader that is no parser, and stands for a line of ours.
OURS = {"json": "MAX_JSON", "tensors": "_unzipped", "arrays": "_read_array"}


@pytest.mark.parametrize("error", [NameError, TypeError, AttributeError, AssertionError, KeyError])
def test_an_error_of_ours_is_not_taken_for_a_damaged_file(kind, monkeypatch, error):
    name, path, read = kind
    monkeypatch.setattr(files, OURS[name], planted(error("a bug")))
    expected = TypeError if name == "json" else error  # a number compared with a function
    with pytest.raises(expected) as caught:
        read(path)
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_lack_of_memory_is_not_taken_for_a_damaged_file(kind, monkeypatch, error):
    name, path, read = kind
    parser = {"json": (json, "loads"), "tensors": (torch, "load"), "arrays": (np, "frombuffer")}
    monkeypatch.setattr(*parser[name], planted(error))
    with pytest.raises(type(error)) as caught:
        read(path)
    assert caught.value is error


def test_a_bug_in_the_reader_of_the_archive_is_not_taken_for_a_damaged_file(tmp_path, monkeypatch):
    for error in (NameError("a bug"), TypeError("a bug"), MemoryError()):
        monkeypatch.setattr(download, "members", planted(error))
        with pytest.raises(type(error)) as caught:
            download.read_archive(tmp_path / "file")
        assert caught.value is error


def test_a_file_that_cannot_be_opened_is_not_called_damaged(kind, tmp_path):
    _, _, read = kind
    for other in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match="cannot be read") as caught:
            read(other)
        assert not isinstance(caught.value, files.Damaged)
        assert "move it away" not in str(caught.value)
