"""Files that come from somebody else: read without executing them, and refused in one line."""

import io
import json
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch
from stopped import stop_after
from strange import Evil

from csd_lib import InputError, datasets, files, runs
from csd_lib.config import TrainConfig
from csd_lib.course.widgets import load_recording
from csd_lib.datasets import read_npz
from csd_lib.experiment import run_experiment
from csd_lib.paper import ledger
from csd_lib.record import Record, read_records
from csd_lib.train import train

QUICK = dict(epochs=1)
GIGABYTE = 2**30


@pytest.fixture(autouse=True)
def little_memory():
    """No refusal may cost more than half a gigabyte."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GIGABYTE / 2 / 1024


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in entries.items():
            target.writestr(name, content)
    return path


def one_line(error):
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


# --- arrays ------------------------------------------------------------------------------------

EIGHT = npy(np.zeros(8, np.uint8))
STRANGE_ARRAYS = {
    "a header of 10 GB": (
        {"a.npy": EIGHT.replace(b"(8,), }" + b" " * 10, b"(10000000000,), }")},
        "should be uint8",
    ),
    "a path out of its folder": ({"../../a.npy": npy(np.zeros(3))}, r"\.\./\.\./a\.npy is not"),
    "an absolute path": ({"/tmp/a.npy": npy(np.zeros(3))}, "/tmp/a.npy is not"),
    "another kind of file": ({"a.txt": b"text"}, r"a\.txt is not an array"),
    "no header": ({"a.npy": b"text"}, "cannot be read"),
    "no content": ({"a.npy": b""}, "cannot be read"),
}


@pytest.mark.parametrize("kind", STRANGE_ARRAYS)
def test_strange_arrays_are_refused(tmp_path, kind):
    entries, words = STRANGE_ARRAYS[kind]
    path = zipped(tmp_path / "cifar100.npz", entries)
    with pytest.raises(InputError, match=words) as error:
        read_npz(path, "cifar100", (0,) * 3, (1,) * 3)
    assert str(path) in one_line(error) and "move it away" in str(error.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_zip_bomb_of_arrays_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    assert datasets.MAX_UNPACKED <= GIGABYTE
    monkeypatch.setattr(datasets, "MAX_UNPACKED", 1_000_000)
    bomb = npy(np.zeros(150_000, np.uint8))
    path = zipped(tmp_path / "bomb.npz", {f"{i}.npy": bomb for i in range(9)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    with pytest.raises(InputError, match=r"would unpack to 1,35\d,\d+ bytes") as error:
        read_npz(path, "cifar100", (0,) * 3, (1,) * 3)
    one_line(error)


def test_an_array_of_pickled_objects_is_never_unpickled(tmp_path):
    array = np.array([Evil(tmp_path / "made")], dtype=object)
    path = zipped(tmp_path / "evil.npz", {"labels.npy": npy(array)})
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    for read in (load_recording, lambda p: read_npz(p, "cifar100", (0,) * 3, (1,) * 3)):
        with pytest.raises(
            InputError, match="labels holds Python objects, and could run a program"
        ) as error:
            read(path)
        one_line(error)
        with pytest.raises(InputError, match=r"pickle\.npz cannot be read"):
            read(tmp_path / "pickle.npz")
    assert not (tmp_path / "made").exists()


# --- checkpoints -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint of a task half done, with the one before it removed."""
    folder = tmp_path_factory.mktemp("made")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.RunFolder, "is_due", lambda self: True)
        with pytest.raises(KeyboardInterrupt):
            train(TrainConfig(epochs=4), folder=folder, on_epoch=stop_after(7), progress=False)
    content = files.read_tensors(folder / "checkpoint.pt")
    assert content["learning"]["student"] and len(content["history"]) == 6
    return content


def go_on(folder, content):
    files.write_tensors(folder / "checkpoint.pt", content)
    train(TrainConfig(epochs=4), folder=folder, progress=False)


def changed(content, *path, value):
    """A deep copy with one value replaced."""
    copy = pickle.loads(pickle.dumps(content))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


HUGE = torch.zeros(1).expand(10**11, 64)  # claims 25 TB and holds 4 bytes
STRANGE_CHECKPOINTS = {
    "a model of another width": (("models", 0, "stem.weight"), torch.zeros(8, 1, 3, 3)),
    "a model of doubles": (("models", 0, "stem.weight"), torch.zeros(16, 1, 3, 3).double()),
    "a model with NaN": (("models", 0, "stem.weight"), torch.full((16, 1, 3, 3), float("nan"))),
    "a head of 25 TB": (("models", 0, "head.weight"), HUGE),
    "a model that is a list": (("models", 0), [1, 2]),
    "a student with infinities": (
        ("learning", "student", "head.weight"),
        torch.full((10, 64), torch.inf),
    ),
    "a student without a layer": (
        ("learning", "student"),
        {"stem.weight": torch.zeros(16, 1, 3, 3)},
    ),
    "a random state of another size": (("generator",), torch.zeros(3, dtype=torch.uint8)),
    "a random state that is text": (("generator",), "seed"),
    "a history that is text": (("history",), "text"),
    "an epoch without its spread": (("history", 3, "spread"), None),
    "an epoch of another task": (("learning", "epoch"), 3),
    "the state of another device": (("device",), "cuda"),
    "an epoch that is text": (("history", 0, "epoch"), "first"),
    "an epoch before all others": (("history", 3, "epoch"), -1000),
    "a loss that is a list": (("history", 0, "loss"), [1]),
    "an optimiser without state": (("learning", "optimizer"), {}),
    "moments of another shape": (("learning", "optimizer", "state", 0, "exp_avg"), torch.zeros(3)),
    "moments with NaN": (
        ("learning", "optimizer", "state", 0, "exp_avg"),
        torch.full((16, 1, 3, 3), float("nan")),
    ),
}


@pytest.mark.parametrize("kind", STRANGE_CHECKPOINTS)
def test_a_checkpoint_that_does_not_fit_its_run_is_refused(made, tmp_path, kind):
    path, value = STRANGE_CHECKPOINTS[kind]
    with pytest.raises(InputError, match=r"checkpoint\.pt (does not fit|is not a checkpoint)"):
        go_on(tmp_path, changed(made, *path, value=value))


@pytest.mark.parametrize("best", [{}, {"recall": 0.5, "state": 3}, {"recall": "high", "state": {}}])
def test_a_best_model_that_is_none_is_refused(tmp_path, monkeypatch, best):
    monkeypatch.setattr(runs.RunFolder, "is_due", lambda self: True)
    config = TrainConfig(epochs=3, selection="test", select_every=1)

    with pytest.raises(KeyboardInterrupt):
        train(config, folder=tmp_path, on_epoch=stop_after(2), progress=False)
    path = tmp_path / "checkpoint.pt"
    files.write_tensors(path, changed(files.read_tensors(path), "learning", "best", value=best))
    with pytest.raises(InputError, match=r"checkpoint\.pt does not fit"):
        train(config, folder=tmp_path, progress=False)


def test_an_unchanged_checkpoint_is_accepted(made, tmp_path):
    go_on(tmp_path, made)


@pytest.mark.parametrize("content", [[], {"identity": "me"}, {"models": []}, torch.zeros(3)])
def test_tensors_that_are_no_checkpoint_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="is not a checkpoint of this kit"):
        go_on(tmp_path, content)


def test_a_checkpoint_that_would_run_code_is_refused(made, tmp_path):
    for content in ({**made, "learning": Evil(tmp_path / "made")}, Evil(tmp_path / "made")):
        with pytest.raises(InputError, match=r"cannot be read.* could run a program") as error:
            go_on(tmp_path, content)
        one_line(error)
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    with pytest.raises(InputError, match="cannot be read"):
        train(TrainConfig(epochs=4), folder=tmp_path, progress=False)
    assert not (tmp_path / "made").exists()


def test_a_zip_bomb_of_tensors_is_refused_before_it_is_unpacked(made, tmp_path):
    files.write_tensors(tmp_path / "whole.pt", made)
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole:
        entries = {name: whole.read(name) for name in whole.namelist()}
    largest = max((name for name in entries if "/data/" in name), key=lambda n: len(entries[n]))
    entries[largest] = bytes(GIGABYTE // 8)
    zipped(tmp_path / "checkpoint.pt", entries, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"would unpack to 1[34]\d,\d+,\d+ bytes"):
        train(TrainConfig(epochs=4), folder=tmp_path, progress=False)


# --- results and records -----------------------------------------------------------------------

RESULTS = {
    "config": {"dataset": "digits", "method": "csd", "tasks": 2, "seed": 0},
    "date": "2026-01-01",
    "device": "cpu",
    "matrix": {name: [[1.0, 0.5], [0.9, 0.8]] for name in ("own", "seen", "accuracy")},
}
CHANGED_RESULTS = {
    "a matrix of words": {"matrix": {"own": [["high"]]}},
    "a ragged matrix": {"matrix": {"own": [[1, 2], [3]]}},
    "an empty matrix": {"matrix": {"own": []}},
    "a matrix of percentages": {"matrix": {n: [[98.5, 50], [90, 80]] for n in RESULTS["matrix"]}},
    "a matrix of many tasks": {"matrix": {"own": [[0.5] * 200] * 200}},
    "images of two sizes": {"image_shape": [1, 8]},
    "images of no size": {"image_shape": [1, 0, 8]},
    "images of a size that is text": {"image_shape": [1, "8", 8]},
    "versions that are a number": {"versions": 3},
    "a config that is text": {"config": "csd"},
    "a billion tasks": {"config": {**RESULTS["config"], "tasks": 10**9}},
    "a setting that no longer exists": {"config": {**RESULTS["config"], "replay": 3}},
    "a method that is gone": {"config": {**RESULTS["config"], "method": "ce+replay"}},
    "a method that is a number": {"config": {**RESULTS["config"], "method": 3}},
}
STRANGE_RESULTS = {
    "a list": "[]",
    "deeply nested": "[" * 100_000,
    "cut off": json.dumps(RESULTS)[:-9],
    "not text": "\udcff",
    **{kind: json.dumps({**RESULTS, **change}) for kind, change in CHANGED_RESULTS.items()},
}


@pytest.mark.parametrize("kind", STRANGE_RESULTS)
def test_strange_results_are_refused_and_do_not_stop_the_others(tmp_path, kind):
    path = tmp_path / "x" / "results.json"
    path.parent.mkdir()
    path.write_bytes(STRANGE_RESULTS[kind].encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"results\.json (is not a record|cannot be read)") as e:
        Record.read(path)
    one_line(e)
    good = tmp_path / "results.json"
    good.write_text(json.dumps(RESULTS))
    records, problems = read_records([path, good])
    assert [r.folder for r in records] == [tmp_path] and len(problems) == 1
    assert "x/results.json" in problems[0] and "\n" not in problems[0]


def test_records_of_methods_that_are_not_here_are_one_line_with_what_to_do(tmp_path):
    content = {**RESULTS, "config": {**RESULTS["config"], "method": "mine"}}
    for name in "abc":
        files.write_json(tmp_path / name, content)
    records, (problem,) = read_records(sorted(tmp_path.iterdir()))
    assert not records and "/a and 2 more are no records: unknown method 'mine'" in problem
    assert problem.endswith("if a module of yours adds it, import that first")


def test_results_larger_than_any_run_makes_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(RESULTS))
    assert Record.read(path).matrix.own.tolist() == RESULTS["matrix"]["own"]
    monkeypatch.setattr(files, "MAX_JSON", 100)
    with pytest.raises(InputError, match="larger than"):
        Record.read(path)


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A record with model and features; returns a function that puts other ones in their place."""
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "runs"))
    run = run_experiment(TrainConfig(**QUICK), progress=False)
    place = ledger.write_record(run, tmp_path / "records", keep_models=True)

    def with_file(name, content):
        (place / name).write_bytes(content)
        record = files.read_json(place / "results.json")
        record["files"][name] = ledger.sha256_of(place / name)
        files.write_json(place / "results.json", record)
        (found,) = ledger.load_records(tmp_path / "records")
        return found

    return with_file


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npz(features=np.zeros((4, 64), np.float32), labels=np.zeros(4, np.uint8)),
        npz(features=np.zeros((4, 8, 8), np.float16), labels=np.zeros(4, np.uint8)),
        npz(features=np.full((4, 64), np.nan, np.float16), labels=np.zeros(4, np.uint8)),
        npz(features=np.zeros((4, 64), np.float16), labels=np.zeros(5, np.uint8)),
        npz(features=np.zeros((4, 64), np.float16)),
    ],
)
def test_recorded_features_of_a_wrong_kind_are_refused_even_with_the_right_hash(recorded, content):
    record = recorded("features.npz", content)
    with pytest.raises(InputError, match=r"features\.npz does not hold finite float16") as error:
        ledger.load_features(record)
    one_line(error)


def test_a_recorded_model_of_a_wrong_kind_is_refused_even_with_the_right_hash(recorded, tmp_path):
    for content in ({}, [1], {"head.weight": HUGE}, {"head.weight": torch.zeros(10, 64)}):
        record = recorded("model.pt", bytes(files.pack_tensors(content)))
        with pytest.raises(InputError, match=r"model\.pt is not the model of its record") as error:
            ledger.load_model(record)
        one_line(error)
    record = recorded("model.pt", bytes(files.pack_tensors(Evil(tmp_path / "made"))))
    with pytest.raises(InputError, match=r"model\.pt cannot be read"):
        ledger.load_model(record)
    assert not (tmp_path / "made").exists()


def test_a_run_of_somebody_else_in_my_folder_is_not_taken_for_mine(tmp_path):
    train(TrainConfig(**QUICK), folder=tmp_path, stop_after=1, progress=False)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"belongs to another run.*seed 0 -> 1"):
        train(TrainConfig(**QUICK, seed=1), folder=tmp_path, progress=False)
