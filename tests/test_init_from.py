"""Training goes on from a saved model: its weights decide the run, wherever the file lies."""

import sys
from dataclasses import replace

import pytest
import torch
from stopped import same_bits, stop_after
from typed import csd

from csd_lib import InputError, identity, networks
from csd_lib.config import TrainConfig
from csd_lib.data import merge_tasks
from csd_lib.engine import Precision
from csd_lib.experiment import load_run, run_experiment, run_name
from csd_lib.fingerprint import fingerprint
from csd_lib.networks import make_network
from csd_lib.paper import report
from csd_lib.prepare import add_head_rows, split_classes
from csd_lib.train import TaskTraining, train

QUICK = TrainConfig(epochs=2, device="cpu")


@pytest.fixture
def begun(digits, tmp_path):
    """A function that writes the untrained model of a config, and returns its path."""

    def write(config, name="start.pt", **changes):
        tasks = split_classes(digits, config)
        task = merge_tasks(tasks) if config.method == "joint" else tasks[0]
        student = make_network(config, digits.mean, digits.std)
        add_head_rows(student, None, task, config)
        torch.save({**student.state_dict(), **changes}, tmp_path / name)
        return str(tmp_path / name)

    return write


def going_on(path, **settings):
    return replace(QUICK, **{"init_from": str(path), **settings})


@pytest.mark.parametrize("settings", [{}, dict(embedding=8), dict(method="joint")])
def test_from_a_runs_own_beginning_it_is_that_run_bit_for_bit(digits, begun, settings):
    """So all weights, the head's and the statistics come from the file, and nothing else moves."""
    config = replace(QUICK, **settings)
    path = begun(config)
    other_seed = train(replace(config, seed=1), digits, progress=False)
    plain = train(config, digits, progress=False)
    assert same_bits(plain, train(replace(config, init_from=path), digits, progress=False))
    assert not same_bits(plain, other_seed)


def test_it_is_training_on_with_a_new_optimiser(digits, tmp_path):
    """The same as a second training by hand, of the network that the first has left."""
    first = replace(QUICK, method="initial", tasks=1)
    student = train(first, digits, folder=tmp_path / "first", progress=False).models[-1]
    path = tmp_path / "first" / "model-task1.pt"
    second = train(replace(first, init_from=str(path), seed=3), digits, progress=False)
    student.requires_grad_(True)
    generator = torch.Generator().manual_seed(3)
    precision = Precision("fp32", torch.device("cpu"))
    tasks = split_classes(digits, first)
    with precision.switches():
        by_hand = TaskTraining(student, None, tasks, first, precision, generator)
        losses = [by_hand.run_epoch()["loss"] for _ in range(2)]
    assert losses == [epoch["loss"] for epoch in second.history]
    expected = student.state_dict()
    assert all(torch.equal(v, expected[n]) for n, v in second.models[-1].state_dict().items())


def test_a_killed_run_goes_on_and_a_finished_one_is_read_without_the_file(digits, tmp_path, begun):
    config = going_on(begun(replace(QUICK, seed=7)))
    whole = train(config, digits, progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, digits, folder=tmp_path / "run", on_epoch=stop_after(3), progress=False)
    run = run_experiment(config, digits, folder=tmp_path / "run", progress=False)
    assert same_bits(whole, run)
    (tmp_path / "start.pt").unlink()
    assert same_bits(whole, load_run(tmp_path / "run", digits))
    assert report.notes_on_code([run.record]) == [""]


def test_its_weights_not_its_path_decide_which_run_it_is(digits, tmp_path, begun):
    first, other = begun(QUICK), begun(replace(QUICK, seed=7), "other.pt")
    run = run_experiment(going_on(first), digits, folder=tmp_path / "run", progress=False)
    state = dict(reversed(torch.load(first).items()))
    torch.save(state, tmp_path / "again.pt")  # another file, of the same numbers
    names = {}
    for name in (first, tmp_path / "again.pt", other, None):
        config = going_on(name) if name else QUICK
        data = identity.data_hash(config, digits)
        assert identity.key(config) == identity.key(QUICK)
        names.setdefault(run_name(config, data, ""), []).append(data)
    assert [len(found) for found in names.values()] == [2, 1, 1]
    assert run.record.data in next(iter(names.values()))
    assert run.record.data.startswith(digits.sha256() + "+init-from:")
    moved = run_experiment(
        going_on(tmp_path / "again.pt"), digits, folder=tmp_path / "run", progress=False
    )
    assert moved.record.date == run.record.date
    with pytest.raises(InputError, match="other weights to begin with"):
        run_experiment(going_on(other), digits, folder=tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="other weights to begin with"):
        run_experiment(QUICK, digits, folder=tmp_path / "run", progress=False)


def test_it_is_not_the_run_that_begins_with_the_same_file_as_weights(digits, begun):
    """Those keep no head, so the two compute other numbers."""
    path = begun(replace(QUICK, seed=7))
    hashes = {
        identity.data_hash(replace(QUICK, **{s: path}), digits) for s in ("weights", "init_from")
    }
    assert len(hashes) == 2
    assert fingerprint(going_on(path), 1, 8) == fingerprint(QUICK, 1, 8)


def test_all_methods_share_the_first_task_that_goes_on(digits, own_folders, begun, trained):
    path = begun(replace(QUICK, seed=7))
    for method in ("csd", "lwf"):
        config = going_on(path, method=method)
        run = run_experiment(config, digits, share_first_task=True, progress=False)
        assert same_bits(run, train(config, digits, progress=False))
    assert [later for _, later in trained] == [False, True, False, True, True, False, True]


def test_a_head_of_another_size_is_left_out_and_said(digits, begun):
    config = going_on(begun(replace(QUICK, tasks=5)), tasks=2)
    with pytest.warns(UserWarning, match="its head has 2 rows, what is learned first has 5"):
        run = train(config, digits, progress=False)
    with pytest.warns(UserWarning, match="the head begins anew"):
        student = make_network(config, digits.mean, digits.std)
        add_head_rows(student, None, split_classes(digits, config)[0], config)
    plain = make_network(QUICK, digits.mean, digits.std)
    plain.grow_head(5, torch.Generator().manual_seed(0))
    assert torch.equal(student.head.weight, plain.head.weight)
    assert run.models[0].num_classes == 5


WRONG = {
    "other depth": (dict(depth=14), {}, "not a model of this network"),
    "other embedding": (dict(embedding=8), {}, "head.weight is .*64.* expected .*8"),
    "other channels": ({}, {"mean": torch.zeros(1, 3, 1, 1)}, r"mean is .*3, 1, 1.* expected"),
    "not finite": ({}, {"stem.weight": torch.full((16, 1, 3, 3), torch.nan)}, "is not finite"),
    "no head": ({}, {"head.weight": torch.zeros(())}, "head.weight is"),
    "a head that is not finite": ({}, {"head.weight": torch.full((5, 64), torch.inf)}, "head"),
    "half precision": ({}, {"stem.weight": torch.zeros(16, 1, 3, 3).half()}, "float16"),
    "16 bits": ({}, {"stem.weight": torch.zeros(16, 1, 3, 3).bfloat16()}, "bfloat16"),
    "a number": ({}, {"stem.weight": 3}, "holds no weights by name"),
    "a sparse tensor": ({}, {"stem.weight": torch.eye(3).to_sparse()}, "holds no weights by name"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_is_refused(digits, tmp_path, begun, name):
    settings, changes, words = WRONG[name]
    config = going_on(begun(QUICK, **changes), **settings)
    for folder in (None, tmp_path / "run"):
        with pytest.raises(InputError, match=f"init_from='.*start.pt' .*{words}"):
            run_experiment(config, digits, folder=folder or tmp_path / "other", progress=False)
    with pytest.raises(InputError, match=words):
        train(config, digits, progress=False)


def test_names_that_are_no_text_are_refused(tmp_path):
    torch.save({"stem.weight": torch.zeros(3), 7: torch.zeros(3)}, tmp_path / "start.pt")
    with pytest.raises(InputError, match="holds no weights by name"):
        train(going_on(tmp_path / "start.pt"), progress=False)


def test_a_file_that_is_none_or_another_is_refused_before_any_work(own_folders, tmp_path):
    path = tmp_path / "model.pt"

    def refused():
        done = csd("train", "--init-from", str(path))
        assert done.returncode == 2
        return done.stderr

    assert "there is no such file" in refused()
    path.write_bytes(b"no model")
    assert "model.pt cannot be read" in refused()
    torch.save([1], path)
    assert "holds no weights by name" in refused()


def test_safetensors_is_named_with_its_extra_where_it_is_missing(tmp_path, monkeypatch):
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(InputError, match=r"pip install 'csd-lib\[export\]'"):
        networks.init_sha256(str(path))
