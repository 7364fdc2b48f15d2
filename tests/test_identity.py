"""A run is what made it: its settings, its images, and what the code computes."""

import json
import os
import shutil
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import warm
from stopped import same_bits

import csd_lib.fingerprint as fingerprinting
import csd_lib.train as training
from csd_lib import InputError, engine, identity, losses, model, prepare, retrieval
from csd_lib.config import TrainConfig
from csd_lib.experiment import last_model, load_run, run_experiment, run_name
from csd_lib.fingerprint import KEPT_CODES, fingerprint
from csd_lib.methods import METHODS, TERMS, Method, Term
from csd_lib.networks import NETWORKS
from csd_lib.record import Record
from csd_lib.train import train

ROOT = Path(__file__).resolve().parent.parent
QUICK = TrainConfig(epochs=1, device="cpu")
GOLDEN = {
    "initial": "3dd02dc4",
    "fine-tuning": "9f5882bd",
    "lwf": "9f3ec0d7",
    "mmd": "08ab89c6",
    "mmd-kd": "6a1a2f20",
    "fecd": "f6f0133e",
    "csd": "fc0b410b",
    "joint": "013d2af7",
}


@pytest.fixture
def swapped(digits):
    """The digits, with the labels of two training images exchanged."""
    labels = digits.train_labels.clone()
    labels[[0, -1]] = labels[[-1, 0]]
    return replace(digits, train_labels=labels)


def fingerprints(*methods, **settings):
    return [fingerprint(TrainConfig(method=m, **settings), 1, 8) for m in methods or ("csd",)]


# --- what the code computes ---------------------------------------------------------------------


def test_the_fingerprint_is_the_same_on_every_machine_and_version():
    """Change these only together with what a method is meant to compute."""
    assert dict(zip(GOLDEN, fingerprints(*GOLDEN), strict=True)) == GOLDEN


def test_it_does_not_depend_on_seed_length_threads_or_the_state_of_torch():
    before = fingerprints()
    torch.manual_seed(7)
    torch.set_num_threads(2)
    try:
        assert fingerprints(seed=3, batch_size=32, later_learning_rate=1e-4) != []
        assert fingerprints(seed=3, batch_size=32) == before
    finally:
        torch.set_num_threads(1)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        dict(csd_temperature=0.1),
        dict(lambda_kd=2.0),
        dict(margin=0.5),
        dict(head_init="class_means"),
        dict(teacher_statistics="batch"),
        dict(selection="test"),
        dict(selection="held_out"),
        dict(schedule="one_cycle"),
        dict(learning_rate=2e-3),
        dict(milestones=(0.5,)),
        dict(weight_decay=0.0),
        dict(crop_padding=2),
        dict(flip=True),
        dict(depth=14),
        dict(embedding=16),
        dict(backbone_rate=0.1),
        dict(backbone_rate=0.0),
    ],
)
def test_every_setting_that_is_computed_with_shows_in_it(settings):
    assert fingerprints(**settings) != fingerprints()


def patched(monkeypatch, module, name, change):
    monkeypatch.setattr(module, name, change(getattr(module, name)))


# A function's place and name, and what makes another one of it.
CHANGES = {
    "a loss": (losses, "csd_loss", lambda f: lambda *a: 1.0001 * f(*a)),
    "a loss at its core": (losses, "rows_of_length_one", lambda f: lambda x: 1.0001 * f(x)),
    "the first task's": (losses, "cross_entropy", lambda f: lambda *a: 1.0001 * f(*a)),
    "augmentation": (training, "augment", lambda f: lambda x, *a: f(x, *a).roll(1, dims=3)),
    "the split": (
        *(prepare, "class_incremental_split"),
        lambda f: lambda d, n, **_: f(d, n, seed=5),
    ),
    "the optimiser": (
        *(training, "make_optimizer"),
        lambda f: lambda n, s, decay, *a: f(n, s, 1.01 * decay, *a),
    ),
    "the schedule": (training, "learning_rate", lambda f: lambda *a: 1.0001 * f(*a)),
    "the head": (model.NormalizedHead, "normalize_", lambda f: lambda self: None),
    "initial weights": (
        *(torch.nn.init, "kaiming_normal_"),
        lambda f: torch.nn.init.kaiming_uniform_,
    ),
    "the teacher": (training, "freeze", lambda f: lambda network: f(network).train()),
    "normalisation": (
        *(model.Network, "normalize_images"),
        lambda f: lambda self, x: f(self, x) + 1e-4,
    ),
    "the order of the images": (torch, "randperm", lambda f: lambda *a, **k: f(*a, **k).flip(0)),
    "recall": (retrieval, "recall_at_k", lambda f: lambda *a, **k: {1: 1 - f(*a, **k)[1]}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whoever_changes_a_number_never_sees_an_old_result(digits, tmp_path, monkeypatch, change):
    run_experiment(QUICK, digits, folder=tmp_path / "finished", progress=False)
    train(QUICK, digits, folder=tmp_path / "half done", stop_after=1, progress=False)
    patched(monkeypatch, *CHANGES[change])
    for folder in ("finished", "half done"):
        with pytest.raises(InputError, match="code that computes other numbers: fingerprint"):
            run_experiment(QUICK, digits, folder=tmp_path / folder, progress=False)


def test_in_mixed_precision_it_knows_what_is_computed_in_16_bits(monkeypatch):
    amp = dict(dataset="cifar100", preset="class", depth=8, precision="amp")
    config = TrainConfig(**amp)
    before = fingerprint(config, 3, 32)
    assert before != fingerprint(replace(config, precision="fp32"), 3, 32)
    monkeypatch.setattr(model, "at_least_float32", lambda x: x)
    patched(
        monkeypatch,
        model.Network,
        "forward",
        lambda f: (
            lambda self, images: (lambda x: (x, self.head(x)))(
                self.backbone(self.normalize_images(images))
            )
        ),
    )
    assert fingerprint(config, 3, 32) != before


REFACTORINGS = {
    "csd_lib/losses.py": [
        ("similarity", "cosines"),
        (
            "anchors = rows_of_length_one(student)",
            "anchors = (rows_of_length_one(student))  # tidied",
        ),
    ],
    "csd_lib/train.py": [
        ("def eager_step(", "def one_step("),
        ("self.eager_step", "self.one_step"),
        ("totals", "sums"),
    ],
    "csd_lib/data.py": [
        ("columns", "across"),
        ("return cropped.permute", "return (cropped).permute"),
    ],
    "csd_lib/config.py": [
        (
            "    device: str = setting(",
            "    sharpness: float = setting(1.0, checks.number, at_least=0)\n"
            '    """A new setting, with a default that changes nothing."""\n'
            "    device: str = setting(",
        )
    ],
    "csd_lib/methods.py": [
        (
            "METHODS = {\n",
            'METHODS = {\n    "later": Method("A new method", "ce+triplet+csd"),\n',
        )
    ],
}


def test_a_refactoring_keeps_every_record_and_every_half_done_run(digits, tmp_path, monkeypatch):
    """In a copy of the library, with names changed and with a setting and a method more."""
    shutil.copytree(ROOT / "csd_lib", tmp_path / "csd_lib")
    for name, changes in REFACTORINGS.items():
        path = tmp_path / name
        text = path.read_text()
        for before, after in changes:
            assert before in text, f"{name} has no {before!r} any more"
            text = text.replace(before, after)
        path.write_text(text)
    config = replace(QUICK, epochs=2, crop_padding=1, flip=True)
    monkeypatch.setenv("CSD_RUNS", str(tmp_path / "runs"))  # folders named after their config
    whole = run_experiment(config, digits, progress=False)
    train(config, digits, folder=tmp_path / "half", stop_after=1, progress=False)
    script = (
        "import json, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from csd_lib.config import TrainConfig\n"
        "from csd_lib.experiment import run_experiment\n"
        "import csd_lib\n"
        "assert hasattr(TrainConfig(), 'sharpness') and sys.argv[1] in csd_lib.__file__\n"
        f"settings = {dict(epochs=2, device='cpu', crop_padding=1, flip=True)!r}\n"
        "for folder in (None, sys.argv[1] + '/half'):\n"
        "    epochs = []\n"
        "    run = run_experiment(TrainConfig(**settings), folder=folder,\n"
        "        progress=False, on_epoch=lambda history, student: epochs.append(1))\n"
        "    print(json.dumps([len(epochs), run.matrix.seen.tolist(), run.record.fingerprint]))\n"
    )
    environment = {"PYTHONPATH": tmp_path, "PATH": "/usr/bin:/bin", "CSD_RUNS": tmp_path / "runs"}
    done = warm.run("-c", script, tmp_path, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    finished, half = map(json.loads, done.stdout.splitlines())
    expected = [whole.matrix.seen.tolist(), whole.record.fingerprint]
    assert finished == [0, *expected], "the finished run was trained again"
    assert half == [2, *expected], "only the second task's epochs were missing"


def test_code_that_computes_other_numbers_begins_in_a_folder_of_its_own(
    digits, own_folders, trained, monkeypatch
):
    """The first task does not compute the changed loss, so it stays shared."""

    def run():
        return run_experiment(QUICK, digits, share_first_task=True, progress=False)

    older = run()
    (older.folder / "results.json").unlink()  # as if it was killed
    with monkeypatch.context() as changed:
        patched(changed, *CHANGES["a loss"])
        with pytest.warns(UserWarning, match=f"{older.folder} holds a part of this run by code"):
            newer = run()
    assert newer.folder != older.folder and newer.record.fingerprint != older.record.fingerprint
    assert trained == [(5, False), (5, True), (5, True)]
    again = run()  # with the code of then
    assert again.folder == older.folder and again.record.fingerprint == older.record.fingerprint
    assert len(trained) == 3


# --- what the command line keeps of it -----------------------------------------------------------


@pytest.fixture
def reported(tmp_path):
    """Report one record with a library's own command, and return what it says and has kept."""
    name = "digits-csd-2tasks-seed0-10db6572"
    shutil.copytree(ROOT / "data" / "results" / "digits" / name, tmp_path / "records" / name)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    copied = copy_of_the_library(tmp_path / "copied")

    def report(library=copied, started=("-m", "csd_lib"), **variables):
        env = {**environment, "PYTHONPATH": str(library), **variables}
        command = [*started, "report", "--json", "--folder", str(tmp_path / "records")]
        done = warm.run(*command, cwd=library, env=env)
        assert done.returncode == 0, done.stderr
        (found,) = json.loads(done.stdout)
        return found["is_current"], sorted((tmp_path / "cache").rglob("*.json"))

    return report


def copy_of_the_library(folder):
    """One that was last written an hour ago."""
    shutil.copytree(ROOT / "csd_lib", folder / "csd_lib")
    make_older(folder)
    return folder


def make_older(folder):
    for path in folder.rglob("*.py"):
        os.utime(path, (time.time() - 3600,) * 2)


def overwrite(kept, text):
    for path in kept:
        path.write_text(text)


def test_a_second_command_finds_the_fingerprints_of_the_first(reported):
    is_current, (kept,) = reported()
    assert is_current and [*json.loads(kept.read_text()).values()] == [GOLDEN["csd"]]
    overwrite([kept], kept.read_text().replace(GOLDEN["csd"], "0" * 8))
    assert reported() == (False, [kept]), "it was computed again"


def test_other_code_never_finds_them(reported, tmp_path):
    _, kept = reported()
    losses = copy_of_the_library(tmp_path / "edited") / "csd_lib" / "losses.py"
    text = losses.read_text()
    assert text.count("positive + margin)") == 1
    losses.write_text(text.replace("positive + margin)", "positive + 0.9 * margin)"))
    assert reported(tmp_path / "edited") == (False, kept), "a moment ago: none is kept"
    make_older(tmp_path / "edited")
    is_current, now = reported(tmp_path / "edited")
    assert not is_current and len(now) == 2 and set(kept) < set(now)


def test_a_script_that_changes_the_code_in_memory_neither_finds_nor_leaves_any(reported, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from csd_lib import losses\n"
        "right = losses.csd_loss\n"
        "losses.csd_loss = lambda *a: 1.1 * right(*a)\n"
        "from csd_lib.__main__ import main\n"
        "main()\n"
    )
    before = reported()
    assert reported(started=[str(script)]) == (False, before[1])
    assert reported() == before


def test_code_that_changes_in_a_notebook_is_seen_at_once(monkeypatch):
    """Where the command line keeps fingerprints, a process remembers them for the same code."""
    measured, computed = fingerprinting._measured, []

    def tiny_run(*tiny):
        computed.append(tiny)
        return measured(*tiny)

    monkeypatch.setattr(tiny_run, "__module__", "csd_lib.fingerprint")
    monkeypatch.setattr(fingerprinting, "KNOWN", fingerprinting.KNOWN - {"test_identity"})
    monkeypatch.setattr("builtins.get_ipython", lambda: None, raising=False)  # as in a notebook
    monkeypatch.setattr(fingerprinting, "_measured", tiny_run)

    def found():
        """What it is now, and whether it was computed just now."""
        before = len(computed)
        return fingerprints()[0], len(computed) > before

    found()  # torch loads more of itself the first time
    (golden, _), again = found(), found()
    assert (golden, again) == (GOLDEN["csd"], (golden, False))
    original, factor, normalize = losses.csd_loss, 1.0, torch.nn.functional.normalize
    with monkeypatch.context() as exchanged:
        exchanged.setattr(losses, "csd_loss", lambda *a, **k: factor * original(*a, **k))
        assert found() == (golden, True)
        factor = 2.0  # in a function that stays the same
        other, is_new = found()
        assert other != golden and is_new
    assert found() == (golden, False)
    with monkeypatch.context() as exchanged:
        code = training.learning_rate.__code__.replace(co_name="edited")
        exchanged.setattr(training.learning_rate, "__code__", code)
        assert found() == (golden, True)
    with monkeypatch.context() as exchanged:
        exchanged.setattr(torch.nn.functional, "normalize", lambda *a, **k: 2 * normalize(*a, **k))
        assert found()[1]
    assert found() == (golden, False)


def test_half_a_file_or_no_place_for_one_costs_only_time(reported, tmp_path):
    _, kept = reported()
    for text in ('{"a": ', "[1]", ""):
        overwrite(kept, text)
        assert reported() == (True, kept)
    (tmp_path / "file").write_text("")
    for nowhere in (str(tmp_path / "file"), "relative"):
        assert reported(XDG_CACHE_HOME=nowhere) == (True, kept)
    assert not list(tmp_path.rglob("relative"))


def test_fingerprints_of_long_gone_code_are_thrown_away(reported, tmp_path):
    folder = tmp_path / "cache" / "csd-lib" / "fingerprints"
    folder.mkdir(parents=True)
    for number in range(KEPT_CODES + 5):
        (folder / f"{number}.json").write_text("{}")
        os.utime(folder / f"{number}.json", (number, number))
    _, kept = reported()
    assert len(kept) == KEPT_CODES and not {"0.json", "5.json"} & {path.name for path in kept}


# --- images and settings ------------------------------------------------------------------------


def test_a_run_never_answers_for_other_images_or_labels(digits, swapped, tmp_path, monkeypatch):
    monkeypatch.setenv("CSD_RUNS", str(tmp_path))
    first = run_experiment(QUICK, digits, progress=False)
    second = run_experiment(QUICK, swapped, progress=False)
    assert first.folder != second.folder and first.record.data != second.record.data
    for other in (swapped, replace(digits, test_images=255 - digits.test_images)):
        with pytest.raises(InputError, match="other images or labels"):
            run_experiment(QUICK, other, folder=first.folder, progress=False)
    with pytest.raises(InputError, match="other images or labels"):
        train(QUICK, swapped, folder=first.folder, progress=False)


@pytest.mark.parametrize(
    "change",
    [
        dict(mean=(0.31,)),
        dict(std=(0.38,)),
        dict(class_names=tuple("abcdefghij")),
        dict(name="renamed"),
    ],
)
def test_the_hash_of_a_data_set_covers_all_that_a_run_can_see(digits, change):
    same = change == dict(name="renamed")
    assert (replace(digits, **change).sha256() == digits.sha256()) is same


def test_results_left_without_their_checkpoints_are_not_believed(digits, tmp_path):
    run_experiment(QUICK, digits, folder=tmp_path, progress=False)
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    for _left in ("both files", "only the results"):
        with pytest.raises(InputError, match="seed 0 -> 1"):
            run_experiment(replace(QUICK, seed=1), digits, folder=tmp_path, progress=False)
        (tmp_path / "config.json").unlink(missing_ok=True)


def test_a_term_of_ones_own_that_changed_is_another_run(digits, tmp_path):
    def term(weight):
        return Term("own", lambda o, s: weight * (o.features - o.teacher_features).square().mean())

    config = None
    for weight, refused in ((1.0, False), (1.0, False), (2.0, True)):
        with patch.dict(TERMS, own=term(weight)):
            config = replace(QUICK, method="ce+triplet+own")
            if refused:
                with pytest.raises(InputError, match="code that computes other numbers"):
                    run_experiment(config, digits, folder=tmp_path, progress=False)
            else:
                run_experiment(config, digits, folder=tmp_path, progress=False)


OWN = """
from torch.nn import functional as F

LIMITS, WEIGHT = {{"from": [{labels}]}}, 3.0


def hardest(distances, count={count}):
    return distances.topk(min(count, len(distances)))[0].mean()


class Own:
    def __call__(self, o, settings):
        chosen = 1 + WEIGHT * (o.labels >= LIMITS["from"][0])
        return hardest(chosen * (o.features - o.teacher_features).square().mean(1))
"""
SAME_OWN = OWN.replace("def __call__", "# This is a comment.\n\n    def __call__")


@pytest.mark.parametrize(
    "text, same",
    [
        (OWN.format(labels=6, count=12), True),
        (SAME_OWN.format(labels=6, count=12), True),
        (OWN.format(labels=6, count=48), False),  # the made-up images have batches of 12
        (OWN.format(labels=7, count=12), False),  # and six classes
    ],
    ids=["nothing", "a comment", "more than a batch has", "more classes than there are"],
)
def test_a_change_that_made_up_images_do_not_show_makes_another_run(text, same):
    found = []
    for source in (OWN.format(labels=6, count=12), text):
        room = {"__name__": "somewhere"}
        exec(source, room)
        with patch.dict(TERMS, own=Term("own", room["Own"]())):
            found.append(fingerprint(replace(QUICK, method="ce+triplet+own"), 1, 8))
    assert (found[0] == found[1]) is same


def test_a_change_in_a_file_beside_a_term_of_ones_own_makes_another_run(monkeypatch):
    """The term names only the module: it calls ``helpers.pull``."""
    found = []
    for most in (12, 48, 12):
        helpers = ModuleType("own_helpers")
        exec(f"def pull(x): return (x if len(x) <= {most} else 2 * x).mean()", helpers.__dict__)
        monkeypatch.setitem(sys.modules, helpers.__name__, helpers)
        room = {"__name__": "somewhere", "helpers": helpers, "torch": torch}
        exec("def own(o, s): return helpers.pull(torch.relu(o.features))", room)
        with patch.dict(TERMS, own=Term("own", room["own"])):
            found.append(fingerprint(replace(QUICK, method="ce+triplet+own"), 1, 8))
    assert found[0] == found[2] != found[1]


OWN_NETWORK = """
from torch.nn import functional as F
from csd_lib.model import ResNet

LAYERS = (F.relu, len)  # functions, whose addresses must not count


class Small(ResNet):
    def __init__(self, config, mean, std):
        super().__init__(8, 0, len(mean), mean, std)
        self.layers = LAYERS

    def backbone(self, images):
        return super().backbone(F.adaptive_{shrink}_pool2d(images, 16))
"""


def test_a_network_that_differs_only_on_larger_images_is_another_one():
    found = []
    for shrink in (F.adaptive_max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d):

        class Small(model.ResNet):
            def backbone(self, images, shrink=shrink):
                return super().backbone(shrink(images, 16))  # the made-up images have no more

        with patch.dict(NETWORKS, own=lambda _, mean, std: Small(8, 0, len(mean), mean, std)):
            found.append(fingerprint(replace(QUICK, network="own"), 1, 16))
    assert found[0] == found[2] != found[1]


def test_a_network_of_ones_own_module_counts_as_it_is_written(monkeypatch):
    found = []
    for shrink in ("max", "avg", "max"):
        room = ModuleType("own_nets")
        text = OWN_NETWORK.format(shrink=shrink)
        exec(compile(text, "own_nets.py", "exec"), vars(room))
        monkeypatch.setitem(sys.modules, "own_nets", room)
        found.append(fingerprint(replace(QUICK, network="own_nets:Small"), 1, 16))
    assert found[0] == found[2] != found[1]


def test_a_term_that_is_another_one_each_time_is_refused_before_anything_is_trained(
    digits, tmp_path
):
    queue = []

    def remembers(o, settings):
        queue.append(o.features.detach().mean())
        return (o.features - queue[-2:][0]).square().mean()

    def noisy(o, settings):
        return (o.features * float(np.random.rand())).square().mean()

    def seeded(o, settings):
        return (o.features * torch.rand(())).square().mean()

    for term in (remembers, noisy):
        with patch.dict(TERMS, own=Term("own", term)):
            config = replace(QUICK, method="ce+triplet+own")
            with pytest.raises(InputError, match="'own' computes other numbers each time"):
                run_experiment(config, digits, folder=tmp_path, progress=False)
    assert not [*tmp_path.iterdir()]
    with patch.dict(TERMS, own=Term("own", seeded)):
        assert fingerprint(replace(QUICK, method="ce+triplet+own"), 1, 8)


def test_a_first_task_of_other_images_is_refused(digits, swapped, tmp_path):
    train(identity.first_task(QUICK), swapped, folder=tmp_path, progress=False)
    with pytest.raises(InputError, match="other images or labels"):
        train(QUICK, digits, first_task=tmp_path, progress=False)


def test_settings_that_do_not_matter_do_not_make_another_run():
    same = [
        TrainConfig(method="fine-tuning"),
        TrainConfig(method="fine-tuning", lambda_csd=5.0, kd_temperature=3.0),
        TrainConfig(method="fine-tuning", device="cuda:1", cuda_graph=True),
        TrainConfig(method="fine-tuning", select_every=7, held_out=0.3),
        TrainConfig(method="fine-tuning", preset="clean", milestones=()),
    ]
    assert len({run_name(config, "data", "code") for config in same}) == 1
    assert identity.key(TrainConfig(method="lwf", kd_temperature=3.0)) != identity.key(
        TrainConfig(method="lwf")
    )
    first, other = TrainConfig(method="initial"), TrainConfig(method="initial", head_init="random")
    assert identity.key(first) == identity.key(replace(other, later_learning_rate=0.5))


def test_an_identity_that_was_stored_before_a_setting_existed_has_its_default():
    stored = json.loads(json.dumps(asdict(TrainConfig())))
    wanted = {"config": dict(stored), "data": "a", "fingerprint": "b"}
    del stored["network"]
    assert identity.difference({**wanted, "config": stored}, wanted) == ""
    stored["gone"] = 1
    assert "not have: gone" in identity.difference({**wanted, "config": stored}, wanted)


def test_runs_of_a_kit_with_one_more_term_are_read_by_one_without_it(digits, tmp_path):
    """What a run does not read is not written down; so no other kit has to know its name."""
    run_experiment(QUICK, digits, folder=tmp_path, progress=False)
    for name in ("config.json", "results.json"):
        settings = json.loads((tmp_path / name).read_text())["config"]
        assert {"lambda_csd", "lambda_kd", "margin"} <= settings.keys()
        assert not {"lambda_mmd", "lambda_fecd", "fecd_temperature"} & settings.keys()
    content = json.loads((tmp_path / "results.json").read_text())
    content["config"]["lambda_mine"] = 2.0
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="settings that this kit does not have: lambda_mine"):
        Record.read(tmp_path / "results.json")


def test_a_run_of_other_code_is_loaded_with_a_warning(digits, tmp_path):
    with patch.dict(METHODS, csd=Method("CSD", "ce+triplet+csd")):
        run_experiment(QUICK, digits, folder=tmp_path, progress=False)
        with warnings.catch_warnings(action="error"):
            load_run(tmp_path, digits)
    words = f"code that computes other numbers .*today's {fingerprint(QUICK, 1, 8)}"
    with pytest.warns(UserWarning, match=words):
        load_run(tmp_path, digits)


FIRST, LAST = "model-task1.pt", "model-task2.pt"


def lose(path):
    path.unlink()


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def exchange(path):
    shutil.copy(path.with_name(FIRST if path.name == LAST else LAST), path)


def replace_by_another_runs(path):
    other = run_experiment(replace(QUICK, seed=1), progress=False, folder=path.parent / "other")
    shutil.copy(other.folder / path.name, path)


@pytest.mark.parametrize("name", [FIRST, LAST])
@pytest.mark.parametrize("change", [lose, cut, exchange, replace_by_another_runs])
def test_a_model_that_is_not_the_one_measured_is_never_loaded(digits, tmp_path, name, change):
    made = run_experiment(QUICK, digits, folder=tmp_path, progress=False)
    change(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} (is missing|is not the model|cannot be read)"):
        load_run(tmp_path, digits)
    if name == LAST:
        with pytest.raises(InputError, match=f"{name} (is missing|is not|cannot be read)"):
            last_model(Record.read(tmp_path / "results.json"))
    run_experiment(QUICK, digits, folder=tmp_path, progress=False)  # the checkpoint has them all
    assert same_bits(load_run(tmp_path, digits), made)


def test_models_that_another_run_left_are_not_taken_for_this_ones(digits, tmp_path):
    run_experiment(QUICK, digits, folder=tmp_path, progress=False)
    for name in ("checkpoint.pt", "checkpoint.previous.pt", "config.json", "results.json"):
        (tmp_path / name).unlink()
    made = run_experiment(replace(QUICK, seed=1), digits, folder=tmp_path, progress=False)
    assert same_bits(load_run(tmp_path, digits), made)


def test_a_checkpoint_of_other_models_than_were_measured_is_refused(digits, tmp_path):
    run_experiment(QUICK, digits, folder=tmp_path, progress=False)
    content = json.loads((tmp_path / "results.json").read_text())
    content["models"][1] = content["models"][0]
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"results\.json was measured on other models"):
        run_experiment(QUICK, digits, folder=tmp_path, progress=False)


@pytest.mark.parametrize("content", [b"", b'{"ce": 1.0}\n{"ce"', b"\xff\xfe", None])
def test_a_history_that_is_damaged_is_said(digits, tmp_path, content):
    made = run_experiment(QUICK, digits, folder=tmp_path, progress=False)
    path = tmp_path / "history.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(InputError, match=r"history\.jsonl"):
        load_run(tmp_path, digits)
    run_experiment(QUICK, digits, folder=tmp_path, progress=False)
    assert load_run(tmp_path, digits).history == made.history


def test_what_is_no_finished_run_is_said(digits, tmp_path):
    train(QUICK, digits, folder=tmp_path, stop_after=1, progress=False)
    with pytest.raises(InputError, match="is not finished: the command that began it goes on"):
        load_run(tmp_path, digits)
    with pytest.raises(InputError, match="is no run; give the folder of a finished run"):
        load_run(tmp_path / "config.json", digits)
    with pytest.raises(InputError, match=r"dataset='digits'.*what load_dataset returns"):
        train(QUICK, "digits", progress=False)


@pytest.mark.parametrize(
    "compute, words",
    [
        (lambda o, s: o.features.mean(dim=1), r"'own' is torch.float32 with shape \(64,\)"),
        (lambda o, s: 1.0, "'own' is 1.0: return a scalar tensor"),
    ],
)
def test_a_term_of_ones_own_that_is_not_one_number_is_named(digits, compute, words):
    with patch.dict(TERMS, own=Term("own", compute)), pytest.raises(InputError, match=words):
        train(replace(QUICK, method="ce+own"), digits, progress=False)


@pytest.mark.parametrize(
    "recipe, words", [("ce+nosuch", "no term nosuch"), ("kd+csd", "nothing learns the task")]
)
def test_a_method_of_ones_own_that_cannot_learn_is_refused_at_once(recipe, words):
    refused = pytest.raises(InputError, match=f"{words}: .* one of ce, triplet must be")
    with patch.dict(METHODS, own=Method("Own", recipe)), refused:
        TrainConfig(method="own")


def test_a_config_names_what_was_changed_for_nothing():
    assert identity.unread(TrainConfig(method="csd", lambda_csd=5.0, seed=3, epochs=4)) == []
    assert identity.unread(TrainConfig(dataset="cifar100", preset="class", later_epochs=25)) == []
    unread = identity.unread(
        TrainConfig(method="lwf", lambda_csd=5.0, stop_at_epoch=99, select_every=3)
    )
    assert unread == ["lambda_csd=5.0", "select_every=3", "stop_at_epoch=99"]
    assert identity.unread(TrainConfig(method="joint", later_learning_rate=0.5)) == [
        "later_learning_rate=0.5"
    ]
    config = TrainConfig(
        method="fine-tuning", schedule="one_cycle", milestones=(1,), teacher_statistics="batch"
    )
    assert identity.unread(config) == ["milestones=(1,)", "teacher_statistics=batch"]
    assert identity.unread(TrainConfig(network="features", depth=20)) == ["depth=20"]
    both = TrainConfig(network="mine:Net", weights="w.pt", init_from="a/model-task1.pt")
    assert identity.unread(both) == ["weights=w.pt"]


def test_switches_of_torch_are_as_they_were_after_training(digits):
    def switches():
        backends = torch.backends
        return (
            backends.cudnn.benchmark,
            backends.cudnn.allow_tf32,
            backends.cuda.matmul.allow_tf32,
            engine.flushes_denormals(),
        )

    before = switches()
    seen = []
    train(QUICK, digits, on_epoch=lambda *_: seen.append(switches()), progress=False)
    assert switches() == before
    assert seen[0][0] is True and seen[0][3] is True


def test_what_is_no_stop_is_refused(digits):
    for value in (-1, 0, "x", 1.5):
        with pytest.raises(InputError, match="stop_after"):
            train(QUICK, digits, stop_after=value)
    with pytest.raises(InputError, match="config="):
        train({})
    with pytest.raises(InputError, match="folder="):
        train(QUICK, digits, folder=3)
