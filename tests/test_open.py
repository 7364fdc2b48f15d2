"""A weighted term, added as CONTRIBUTING.md says, a method, a data set and a network, in a copy."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
LOSS, FIELD, LINE, TEST, *DATA, NETWORK, NETWORK_LINE = re.findall(
    r"```python\n(.*?)```", PAGE, re.DOTALL
)
SETTING = '''
    patience: int = setting(3, checks.whole, 2, 9)
    """Made up: a whole number with limits of its own."""
'''


def insert(path, before, text):
    content = path.read_text()
    assert content.count(before) == 1, f"{path.name} has no single {before!r}"
    path.write_text(content.replace(before, text + before))


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The kit with one function, one line and one documented field more, and so on."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("csd_lib", "tests", "docs", "tools", "notebooks", "benchmarks", "data"):
        ignored = shutil.ignore_patterns("*.npz", "*.pt", "runs", "__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "data" / "results" / "digits-epochs.npz", folder / "data" / "results")
    shutil.copy(ROOT / "pyproject.toml", folder)
    library = folder / "csd_lib"
    with (library / "losses.py").open("a") as file:
        file.write("\n\n" + LOSS)
    insert(
        library / "methods.py",
        "    def __post_init__(self) -> None:\n        checks.check_settings(self)\n",
        FIELD + "\n",
    )
    insert(library / "methods.py", '    "fecd": Term(\n', LINE)
    (folder / "tests" / "test_cosine.py").write_text(TEST)
    insert(
        library / "methods.py",
        '    "joint": Method(',
        '    "cos": Method("Cosine", "ce+triplet+cosine"),\n',
    )
    insert(library / "config.py", "    device: str = setting(", SETTING.lstrip("\n"))
    data, networks = library / "datasets.py", library / "networks.py"
    insert(data, "@dataclass(frozen=True)\nclass DatasetSpec:", f"{DATA[0]}\n\n")
    insert(data, '    "digits": DatasetSpec(', DATA[1])
    insert(networks, "# What a config's ``network`` names:", f"{NETWORK}\n\n")
    insert(networks, '    "resnet": lambda', NETWORK_LINE)
    return folder


@pytest.fixture
def csd(copy, tmp_path):
    """The command line of the copy."""

    def run(*arguments):
        names = {"PYTHONPATH": copy, "CSD_RUNS": tmp_path / "runs", "COLUMNS": "100"}
        environment = {**os.environ, **{k: str(v) for k, v in names.items()}}
        environment["CSD_RESULTS"] = str(tmp_path / "records")
        done = warm.run("-m", "csd_lib", *arguments, cwd=copy, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def test_all_four_are_in_the_help_train_and_appear_in_every_report(csd, tmp_path):
    text = " ".join(csd("train", "--help").split())
    for name in (
        "--lambda-cosine",
        "Weight of the mean cosine",
        "noise",
        "small",
        "cos,",
        "+cosine",
    ):
        assert name in text, name
    quick = ("--epochs", "1", "--quiet")
    csd("train", "--method", "cos", "--lambda-cosine", "3", *quick)
    csd("train", "--method", "ce+kd+cosine", "--network", "small", *quick)
    csd("train", "--dataset", "noise", "--network", "small", "--tasks", "3", "--quiet")
    report = csd("report")
    assert "Cosine" in report and "lambda_cosine=3" in report and "ce + kd + cosine" in report
    assert "network=small" in report and "noise, 3 tasks" in report
    found = {record["method"]: record for record in json.loads(csd("report", "--json"))}
    assert found["cos"]["lambda_cosine"] == 3.0 and found["cos"]["is_current"]
    (history,) = (tmp_path / "runs").glob("*-cos-*/history.jsonl")
    assert "cosine" in json.loads(history.read_text().splitlines()[-1])


def test_its_tests_try_the_new_loss_setting_and_options_by_themselves(copy, tmp_path):
    tests = [
        "tests/test_cosine.py::test_cosine_by_hand",
        "tests/test_fuzz.py::test_every_public_function_is_tried_or_exempt_for_a_reason",
        "tests/test_fuzz.py::test_a_bad_argument_is_named_in_one_line[losses.cosine_loss]",
        "tests/test_fuzz.py::test_a_bad_argument_is_named_in_one_line[methods.LossSettings]",
        "tests/test_fuzz.py::test_a_bad_argument_is_named_in_one_line[config.TrainConfig]",
        "tests/test_cli_fuzz.py::test_a_wrong_value_is_refused_before_any_work[train-lambda_cosine]",
        "tests/test_cli_fuzz.py::test_a_wrong_value_is_refused_before_any_work[train-patience]",
        "tests/test_properties.py::test_every_field_of_a_config_is_drawn",
        "tests/test_properties.py::test_configs_have_different_names_exactly_if_they_differ_in_what_is_read",
        "tests/test_train.py::test_every_method_learns_and_leaves_a_model_per_stage[cos]",
        # And what says of all methods, terms and data sets what they are.
        "tests/test_fuzz.py::test_every_loss_computes_in_float32_whatever_it_is_given",
        "tests/test_house.py::test_the_science_is_an_afternoons_reading",
        "tests/test_plots.py",
        "tests/test_identity.py::test_a_method_of_ones_own_that_cannot_learn_is_refused_at_once",
        "tests/test_identity.py::test_the_fingerprint_is_the_same_on_every_machine_and_version",
        "tests/test_data.py::test_unknown_data_set_is_refused_with_the_choices",
        "tests/test_properties.py::test_configs_share_a_first_task_if_they_differ_only_in_what_comes_later",
    ]
    command = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "CSD_EXAMPLES": "20"}
    done = warm.run(*command, cwd=copy, env=environment)
    assert done.returncode == 0, done.stdout[-3000:]
