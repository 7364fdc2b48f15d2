"""Which cells a sweep has, and which jobs it makes of them; tests/sweep/ starts real ones."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest

from csd_lib import InputError, TrainingError, commands, grid, identity, sweep
from csd_lib.config import TrainConfig
from csd_lib.datasets import DATASETS
from csd_lib.methods import METHODS, TERMS, Method, Term
from csd_lib.model import ResNet
from csd_lib.networks import NETWORKS
from csd_lib.paper import ledger
from csd_lib.paper import published as paper

QUICK = {"dataset": ["digits"], "preset": ["clean"], "epochs": [1], "device": ["cpu"]}
training = sys.modules["csd_lib.train"]  # csd_lib.train is its function


def keys(configs):
    return [identity.key(config) for config in configs]


# --- which cells -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, values",
    [
        ("method=csd,ce+kd", ["csd", "ce+kd"]),
        ("epochs=1,2", [1, 2]),
        ("lambda_kd=1,0.5", [1.0, 0.5]),
        ("milestones=[0.5,0.75],[0.3]", [[0.5, 0.75], [0.3]]),
        ("flip=True,false", [True, False]),
        ("later_epochs=None,3", [None, 3]),
        ("dataset=./my flowers", ["./my flowers"]),
    ],
)
def test_settings_are_read_as_what_they_are(text, values):
    (found,) = grid.read_settings([text]).values()
    assert found == values and [*map(type, found)] == [*map(type, values)]


@pytest.mark.parametrize(
    "texts, word",
    [
        (["method"], "'method'"),
        (["method="], "'method='"),
        (["epochs=1", "epochs=2"], "'epochs=2'"),
        (["lamda_kd=1"], "lambda_kd"),
        (["seed=1"], "--seeds"),
        (["dataset=digits,fashion"], "one dataset"),
        (["device=cpu,cuda"], "one device"),
        *(([text], "a value") for text in ("method=,", "epochs= ", "dataset=,")),
    ],
)
def test_settings_that_make_no_sense_are_refused(texts, word):
    with pytest.raises(InputError, match=word):
        grid.read_settings(texts)


def test_an_experiment_has_the_cells_of_reproduce_and_what_is_named_takes_their_place():
    plain = grid.make_configs("table1", (0, 1), {})
    expected = paper.get_experiment("table1").configs(
        (0, 1), dataset="cifar100", preset="reference"
    )
    assert keys(plain) == keys(expected)
    named = grid.make_configs("table3", (0,), {"lambda_kd": [3.0], "tasks": [5]})
    assert [(c.lambda_kd, c.lambda_csd, c.tasks) for c in named] == [
        (3.0, weight, 5) for weight in (0.1, 1.0, 10.0)
    ]


def test_an_experiment_that_is_not_of_this_data_set_is_refused():
    assert {c.dataset for c in grid.make_configs("table2", (0,), {"dataset": ["kinds"]})} == {
        "kinds"
    }
    for name, dataset in (("table2", "digits"), ("table1", "kinds")):
        with pytest.raises(InputError, match=f"dataset='{dataset}' has no 'Table"):
            grid.make_configs(name, (0,), {"dataset": [dataset]})


def test_a_grid_is_every_combination_and_no_run_twice():
    settings = {**QUICK, "method": ["lwf", "csd"], "csd_temperature": [0.05, 0.5]}
    found = grid.make_configs("grid", (3, 4), settings)
    # LwF does not read the temperature of CSD: it is the same run at both.
    assert sorted((c.method, c.seed) for c in found) == [
        *[("csd", 3)] * 2,
        *[("csd", 4)] * 2,
        ("lwf", 3),
        ("lwf", 4),
    ]
    assert {c.csd_temperature for c in found if c.method == "csd"} == {0.05, 0.5}
    (plain,) = grid.make_configs("grid", (0,), {})
    assert plain == TrainConfig()


# --- which jobs --------------------------------------------------------------------------------


def planned(digits, seeds=(0,), **settings):
    methods = ["initial", "fine-tuning", "csd", "lwf", "ce+kd", "joint"]
    configs = grid.make_configs("grid", seeds, {**QUICK, "method": methods, **settings})
    return ledger.plan(configs, digits)


def test_every_cell_is_in_one_job_and_waits_only_for_the_first_task_it_shares(own_folders, digits):
    cells = planned(digits, seeds=(0, 1))
    groups = sweep.make_groups(cells, sweep.Job(threads=3, device="cuda"), size=2)
    *shared, (nothing, free) = groups
    assert nothing is None and len(shared) == 2, "a first task a seed"
    jobs = [job for first, later in groups for job in (*([first] if first else []), *later)]
    assert all(job.threads == 3 and job.device == "cuda" for job in jobs)
    assert all(0 < len(job.configs) <= 2 for job in jobs)
    in_jobs = [config for job in jobs for config in job.configs]
    assert sorted(map(str, in_jobs)) == sorted(str(cell.config) for cell in cells)
    for first, later in shared:
        (initial,) = first.configs
        assert initial.method == "initial" and not first.is_first_task, "it is a cell as well"
        methods = [config.method for job in later for config in job.configs]
        assert methods == ["fine-tuning", "csd", "lwf"]
        assert {c.seed for job in later for c in job.configs} == {initial.seed}
    assert {config.method for job in free for config in job.configs} == {"ce+kd", "joint"}


def test_the_papers_table_with_five_seeds_is_as_many_jobs_as_the_docs_say(own_folders):
    configs = grid.make_configs("table1", (0, 1, 2, 3, 4), {})
    cells = [ledger.Cell(config, "data", lambda _: "code", own_folders) for config in configs]
    *shared, (_, free) = sweep.make_groups(cells, sweep.Job())
    waiting = sum(len(later) for _, later in shared)
    assert [len(cells), len(shared), waiting, len(free)] == [50, 5, 35, 10]
    text = (Path(__file__).resolve().parent.parent / "docs" / "sweeps.md").read_text()
    assert "= 50 cells" in text and "35 wait for them, and ten need nobody" in text


def test_a_first_task_that_is_no_cell_is_trained_once_and_not_recorded(
    own_folders, digits, trained
):
    cells = planned(digits, method=["csd", "lwf"])
    (first, later), (_, free) = sweep.make_groups(cells, sweep.Job(device="cpu"))
    assert first.is_first_task and len(later) == 2 and free == []
    first()
    assert [later for _, later in trained] == [False] and ledger.load_records() == []
    # Now nobody waits for it any more.
    ((nothing, free),) = sweep.make_groups(cells, sweep.Job(device="cpu"))
    assert nothing is None and free == later
    for job in free:
        job()
        job()  # as a job that is requeued when it had just finished
    assert [later for _, later in trained] == [False, True, True]
    assert sorted(found.config.method for found in ledger.load_records()) == ["csd", "lwf"]
    assert all(cell.is_done(again=False) for cell in planned(digits, method=["csd", "lwf"]))


def test_a_job_is_put_into_the_queue_again_as_it_is(submitit):
    job = sweep.Job(configs=(TrainConfig(),))
    assert job.checkpoint() == ("again", job)


@pytest.mark.parametrize("kind", [TrainingError, InputError])
def test_a_cell_that_breaks_down_does_not_stop_the_others(kind, own_folders, monkeypatch):
    original = training.TaskTraining

    def breaks(student, teacher, tasks, config, *rest):
        if config.learning_rate == 100:
            raise kind("training has diverged")
        return original(student, teacher, tasks, config, *rest)

    monkeypatch.setattr(training, "TaskTraining", breaks)
    settings = {**QUICK, "method": ["joint"], "learning_rate": [100.0, 0.001]}
    configs = grid.make_configs("grid", (0,), settings)
    with pytest.raises(TrainingError, match=r"1 of 2 cells.*\[1/2\] Joint training.*diverged"):
        ledger.reproduce(configs, progress=False)
    (found,) = ledger.load_records()
    assert found.config.learning_rate == 0.001


def test_a_job_reads_only_the_records_of_its_own_cells(own_folders, digits, monkeypatch):
    cells = planned(digits, method=["joint"])
    sweep.Job(configs=(cells[0].config,), device="cpu")()

    def read(*_):
        raise AssertionError("it reads the whole ledger")

    monkeypatch.setattr(ledger, "read_ledger", read)
    (cell,) = ledger.plan([cells[0].config], digits, everywhere=False)
    assert cell.is_current
    sweep.Job(configs=(cells[0].config,), device="cpu")()


# --- submitit, and what stands for it ----------------------------------------------------------


@pytest.fixture
def submitit(monkeypatch):
    """A stand-in of submitit: what was ``sent``, with which parameters; what goes wrong in it."""

    class Executor:
        def __init__(self, folder, **_):
            self.parameters = {}
            if not fake.is_cluster:
                raise RuntimeError("Could not detect srun.")

        def update_parameters(self, **changes):
            self.parameters |= changes

        def submit_array(self, jobs):
            if fake.refuses:
                raise RuntimeError("exit code 1\nsbatch: error: invalid partition specified: gpu\n")
            return [self.submit(job) for job in jobs]

        def submit(self, job):
            fake.sent.append((job, dict(self.parameters)))
            end = fake.ends.pop(0) if fake.ends else ""
            return SimpleNamespace(
                job_id=f"{len(fake.sent)}",
                exception=lambda: fake.sent.append("waited") or end or None,
                stderr=lambda: f"Traceback\n{end}",
                paths=SimpleNamespace(stderr="0.err"),
                cancel=lambda: fake.sent.append("cancelled"),
            )

    fake = ModuleType("submitit")
    fake.sent, fake.ends, fake.refuses, fake.is_cluster = [], [], False, True
    fake.LocalExecutor = fake.SlurmExecutor = Executor
    fake.helpers = SimpleNamespace(DelayedSubmission=lambda job: ("again", job))
    monkeypatch.setitem(sys.modules, "submitit", fake)
    return fake


def test_on_slurm_cells_depend_on_the_job_that_trains_their_first_task(
    own_folders, digits, submitit
):
    groups = sweep.make_groups(planned(digits, seeds=(0, 1)), sweep.Job(threads=2))
    handles = sweep.send_to_slurm(groups, hours=1.5, gpus=1, options={"partition": "gpu"})
    assert len(handles) == len(submitit.sent) == 12
    number = {job.configs[0]: str(n) for n, (job, _) in enumerate(submitit.sent, start=1)}
    for job, parameters in submitit.sent:
        (config,) = job.configs
        after = None
        if config.method in ("fine-tuning", "csd", "lwf"):
            (first,) = (c for c in number if (c.method, c.seed) == ("initial", config.seed))
            after = f"afterany:{number[first]}"
        assert parameters["dependency"] == after, config.method
        assert parameters["time"] == 90 and parameters["gpus_per_node"] == 1
        assert parameters["cpus_per_task"] == 2
        assert parameters["additional_parameters"] == {"requeue": True, "partition": "gpu"}


def test_what_slurm_refuses_is_one_line(own_folders, digits, submitit):
    groups = sweep.make_groups(planned(digits), sweep.Job())
    submitit.refuses = True
    with pytest.raises(InputError, match=r"invalid partition specified: gpu .0 jobs"):
        sweep.send_to_slurm(groups)
    submitit.is_cluster = False
    with pytest.raises(InputError, match="engine='slurm': Could not detect srun"):
        sweep.send_to_slurm(groups)


def test_a_cell_that_breaks_down_in_every_process_is_said_once(own_folders, submitit):
    submitit.ends = ["TrainingError: it diverged\n", "TrainingError: it diverged\n", ""]
    job = sweep.Job(configs=tuple(TrainConfig(seed=seed) for seed in range(3)), device="cpu")
    assert sweep.run_here(job, 3) == ["0.err: TrainingError: it diverged"]


def test_here_each_process_has_all_cells_and_one_gpu_in_turn(own_folders, submitit, monkeypatch):
    sent = submitit.sent
    monkeypatch.setattr(sweep, "pick_device", lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    job = sweep.Job(configs=tuple(TrainConfig(seed=seed) for seed in range(3)))
    assert sweep.run_here(job, 3) == []
    assert [parameters["visible_gpus"] for _, parameters in sent[:3]] == [[2], [5], [2]]
    assert {each for each, _ in sent[:3]} == {job}
    assert sent[3:] == ["waited"] * 3 + ["cancelled"] * 3
    sent.clear()
    sweep.run_here(job)
    assert len([each for each in sent if isinstance(each, tuple)]) == 2, "a process a GPU"
    sent.clear()
    sweep.run_here(sweep.Job(configs=(TrainConfig(),)))
    assert len([each for each in sent if isinstance(each, tuple)]) == 1, "but no more than cells"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1234")
    with pytest.raises(InputError, match="GPU-1234"):
        sweep.run_here(job)
    with pytest.raises(InputError, match="cuda:1"):
        sweep.run_here(sweep.Job(device="cuda:1"))


def test_without_submitit_the_extra_is_named_in_a_dry_run_too(own_folders, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'csd-lib\[sweep\]'"):
        sweep.import_submitit()
    commands.sweep("grid", settings=("dataset=digits", "epochs=1"), dry_run=True)
    assert "missing" in (said := capsys.readouterr().out) and "pip install 'csd-lib[sweep]'" in said
    commands.sweep("grid", settings=("dataset=digits", "epochs=1", "tasks=1,2"), at_once=1)
    assert len(ledger.load_records()) == 2, "one process needs none"


def test_a_job_knows_what_is_registered_where_it_is_made(own_folders, digits):
    own = Term("own", lambda o, s: (o.features - o.teacher_features).square().mean())
    data = replace(DATASETS["digits"], load=lambda root: digits)
    small = patch.dict(NETWORKS, small=lambda config, mean, std: ResNet(8, 0, 1, mean, std))
    with (
        small,
        patch.dict(TERMS, own=own),
        patch.dict(METHODS, mine=Method("Mine", "ce+own")),
        patch.dict(DATASETS, noise=data),
    ):
        chosen = {"method": ["mine"], "dataset": ["noise"], "network": ["small"]}
        (config,) = grid.make_configs("grid", (0,), {**QUICK, **chosen})
        job = sweep.Job(configs=(config,))
    assert not {"own", "noise", "small"} & {*TERMS, *DATASETS, *NETWORKS}
    with patch.dict(TERMS), patch.dict(METHODS), patch.dict(DATASETS), patch.dict(NETWORKS):
        job()
        (record,) = ledger.load_records()
    assert record.config.method == "mine" and "own" in record.history[-1]


@pytest.mark.parametrize("text", ["", "=1", "--wrap=rm", "a b=1", "a\nb"])
def test_options_of_sbatch_have_a_name(text):
    with pytest.raises(InputError, match="option of sbatch"):
        sweep.read_options([text])
    assert sweep.read_options(["mem=16G", "exclusive"]) == {"mem": "16G", "exclusive": True}
