"""What is exported can be read back: by the library itself, by the kit, and to train on."""

import json
from dataclasses import replace

import pytest
import torch

safetensors = pytest.importorskip("safetensors.torch")

from csd_lib import InputError, identity  # noqa: E402
from csd_lib.__main__ import main  # noqa: E402
from csd_lib.config import TrainConfig  # noqa: E402
from csd_lib.experiment import run_experiment  # noqa: E402
from csd_lib.export import export, load_exported  # noqa: E402
from csd_lib.networks import read_state  # noqa: E402
from csd_lib.paper import report  # noqa: E402
from csd_lib.record import Record  # noqa: E402
from csd_lib.train import train  # noqa: E402

QUICK = TrainConfig(epochs=1, device="cpu")


@pytest.fixture
def run(digits, own_folders):
    return run_experiment(QUICK, digits, progress=False)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_the_weights_are_equal_whoever_reads_them(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["csd", "export", str(run.folder), str(tmp_path / "out")])
    main()
    path = tmp_path / "out" / "model.safetensors"
    assert str(path) in capsys.readouterr().out
    expected = run.models[-1].state_dict()
    assert same(safetensors.load_file(path), expected) and same(read_state(path), expected)
    model, record = load_exported(tmp_path / "out")
    assert same(model.state_dict(), expected)
    assert record.key() == run.record.key() and record.fingerprint == run.record.fingerprint
    assert (tmp_path / "out" / "README.md").read_text().startswith("---\nlicense: ")
    again = load_exported(export(tmp_path / "out", tmp_path / "twice").parent)[0]
    assert same(again.state_dict(), expected)
    assert report.load_runs(tmp_path / "out")[0][0].key() == run.record.key()


def test_training_goes_on_from_both_kinds_of_file_as_one_run(run, digits, tmp_path):
    start = replace(QUICK, tasks=1)
    paths = run.folder / "model-task2.pt", export(run.folder, tmp_path / "out")
    configs = [replace(start, init_from=str(path)) for path in paths]
    assert len({identity.data_hash(config, digits) for config in configs}) == 1
    first, second = (train(config, digits, progress=False) for config in configs)
    assert same(first.models[-1].state_dict(), second.models[-1].state_dict())
    plain = train(start, digits, progress=False)
    assert not same(first.models[-1].state_dict(), plain.models[-1].state_dict())
    weights = [replace(start, weights=str(path)) for path in paths]  # the same, without the head
    first, second = (train(config, digits, progress=False) for config in weights)
    assert same(first.models[-1].state_dict(), second.models[-1].state_dict())


def test_a_folder_that_has_a_card_or_a_model_is_left_as_it_is(run, tmp_path):
    for name in ("README.md", "results.json", "model.safetensors"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(InputError, match=f"already has {name}"):
            export(run.folder, folder)
        assert [path.read_text() for path in folder.iterdir()] == ["mine"]


def test_a_damaged_or_exchanged_file_is_refused(run, tmp_path):
    path = export(run.folder, tmp_path / "out")
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[:100], whole[:-1], b"\xff" * 100, b"\x02" + b"\0" * 7):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not the file that was recorded"):
            load_exported(tmp_path / "out")
        with pytest.raises(InputError, match=r"model\.safetensors cannot be read"):
            read_state(path)
        with pytest.raises(InputError, match=r"cannot be read|no state"):
            train(replace(QUICK, init_from=str(path)), progress=False)


def test_nothing_that_is_published_names_a_folder_of_this_machine(run, digits, tmp_path):
    path = str(run.folder / "model-task1.pt")
    config = replace(QUICK, init_from=path)
    on = run_experiment(config, digits, folder=tmp_path / "on", progress=False)
    export(on.folder, tmp_path / "out")
    for file in (tmp_path / "out").glob("*.[mj]*"):
        assert str(tmp_path) not in file.read_text(errors="replace"), file
    record = Record.read(tmp_path / "out" / "results.json")
    assert record.config.init_from == "model-task1.pt" and record.data == on.record.data
    assert json.loads((tmp_path / "out" / "results.json").read_text())["files"].keys() == {
        "model.safetensors"
    }
