"""The order of the rooms, what an import costs, and that all files about versions agree."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import warm
from packaging.requirements import Requirement
from packaging.version import Version

from csd_lib import InputError, __version__

ROOT = Path(__file__).resolve().parent.parent
# Lower modules first. A module may import only those before it.
ORDER = [
    *("stored", "checks", "paths", "output", "files", "fetch", "archive", "download", "data"),
    *("fine_grained", "own_images", "datasets"),
    *("numerics", "losses", "model", "networks", "retrieval", "methods", "config", "identity"),
    *("engine", "prepare", "runs", "features", "steps", "watch", "train", "drift", "projection"),
    *("fingerprint", "record", "experiment", "doctor", "api"),
    *("paper.published", "paper.seeds", "paper.report", "paper.ledger", "paper.comparison"),
    *("paper.figures",),
    *("export", "grid", "sweep"),
    *("course.plots", "course.widgets", "course.checkers", "course.session", "commands"),
    *("integrations.metric_learning", "integrations.avalanche", "integrations.loggers"),
]
# What Google Colab has: installing the kit there must change none of it.
COLAB = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "numpy": "2.1.3",
    "matplotlib": "3.10.0",
    "seaborn": "0.13.2",
    "umap-learn": "0.5.12",
    "ipywidgets": "7.7.1",
    "ipython": "7.34.0",
}


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements():
    extras = project()["optional-dependencies"].values()
    texts = [*project()["dependencies"], *(text for extra in extras for text in extra)]
    # Without the kit itself: an extra includes another one that way.
    return [r for r in map(Requirement, texts) if r.name != project()["name"]]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in found}


def files_of(module):
    path = ROOT / "csd_lib" / module.replace(".", "/")
    return sorted(path.glob("*.py")) or [path.with_suffix(".py")]


def module_of(path):
    """Name of a file's entry in ORDER."""
    parts = path.relative_to(ROOT / "csd_lib").with_suffix("").parts
    return ".".join(parts[:2])


def imported_modules(path):
    """Modules of ORDER that are imported at the top level of a file (not inside functions)."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("csd_lib"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {".".join(name.split(".")[1:3]) for name in names}
            found |= {name.split(".")[1] for name in names if "." in name}
    return found & set(ORDER)


def test_every_module_has_its_place():
    modules = {module_of(path) for path in (ROOT / "csd_lib").rglob("*.py")}
    packages = {
        "__init__",
        "__main__",
        "paper.__init__",
        "course.__init__",
        "integrations.__init__",
    }
    assert modules - packages == set(ORDER)


def test_the_science_is_an_afternoons_reading():
    science = ("data", "model", "losses", "methods", "config", "train", "retrieval", "drift")
    texts = [files_of(module)[0].read_text() for module in science]
    most = 1730 + 30  # ours, and a term and a method of somebody's own
    assert sum(len(text.splitlines()) for text in texts) <= most
    functions = [n for t in texts for n in ast.walk(ast.parse(t)) if isinstance(n, ast.FunctionDef)]
    assert len(functions) > 50 and max(f.end_lineno - f.lineno + 1 for f in functions) <= 60


@pytest.mark.parametrize("module", ORDER)
def test_a_lower_module_never_imports_a_higher_one(module):
    not_lower = set(ORDER[ORDER.index(module) :])
    for path in files_of(module):
        itself = {module} if path.parent.name == module.split(".")[-1] else set()
        assert imported_modules(path) & not_lower <= itself


def test_the_library_imports_no_package_that_is_slow_to_import():
    code = (
        "import sys, csd_lib.experiment, csd_lib.drift, csd_lib.paper.report\n"
        "slow = {'umap', 'matplotlib', 'torchvision', 'sklearn', 'seaborn', 'pandas', "
        "'pytorch_metric_learning', 'avalanche'}\n"
        "print(*slow & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "module, package, extra",
    [
        ("metric_learning", "pytorch_metric_learning.losses", "metric-learning"),
        ("avalanche", "avalanche.evaluation", "avalanche"),
    ],
)
def test_a_missing_package_of_an_integration_is_named(monkeypatch, module, package, extra):
    monkeypatch.delitem(sys.modules, f"csd_lib.integrations.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, package.split(".")[0], None)
    with pytest.raises(InputError, match=re.escape(f"pip install 'csd-lib[{extra}]'")):
        import_module(f"csd_lib.integrations.{module}")
    assert extra in project()["optional-dependencies"]


def test_every_dependency_is_pinned_at_or_above_its_lower_bound():
    for requirement in requirements():
        pinned = pins()[requirement.name]
        assert pinned in requirement.specifier, f"{requirement} but constraints.txt has {pinned}"


def test_pyproject_has_lower_bounds_only():
    operators = {spec.operator for requirement in requirements() for spec in requirement.specifier}
    assert operators == {">="}


def test_colab_satisfies_the_lower_bounds_so_that_nothing_there_is_changed():
    texts = [*project()["dependencies"], *project()["optional-dependencies"]["course"]]
    needed = {r.name: r.specifier for r in map(Requirement, texts)}
    assert COLAB.keys() <= needed.keys()
    assert [n for n, version in COLAB.items() if Version(version) not in needed[n]] == []
    assert Version("3.13") in Requirement(f"python{project()['requires-python']}").specifier


def test_whoever_opens_a_notebook_or_runs_the_tests_gets_the_courses_packages():
    core = {Requirement(text).name for text in project()["dependencies"]}
    extras = project()["optional-dependencies"]
    course = {Requirement(text).name for text in extras["course"]}
    assert not core & course
    for name in ("lab", "test"):
        assert f"{project()['name']}[course]" in extras[name]
    for file in ("Makefile", "tools/versions.py"):
        assert ".[lab,test]" in (ROOT / file).read_text()


def test_citation_and_changelog_are_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation and "\n  doi: 10.1007/" in citation
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == __version__


def test_make_takes_the_pythons_that_pyproject_admits():
    low, high = re.search(
        r"\((\d, \d+)\) <= .* < \((\d, \d+)\)", (ROOT / "Makefile").read_text()
    ).groups()
    bounds = f">={low.replace(', ', '.')},<{high.replace(', ', '.')}"
    assert project()["requires-python"] == bounds


def test_the_console_script_is_the_command_line():
    module, _, name = project()["scripts"]["csd"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_conda_and_docker_install_the_same_pins_on_a_supported_python():
    conda, docker = (ROOT / "environment.yml").read_text(), (ROOT / "Dockerfile").read_text()
    assert "- -c constraints.txt\n      - -e .[lab,test]" in conda
    assert '-c constraints.txt -e ".[lab,test]"' in docker
    versions = {
        *re.findall(r"python=([\d.]+)", conda),
        *re.findall(r"FROM python:([\d.]+)", docker),
    }
    assert len(versions) == 1
    assert Version(versions.pop()) in Requirement(f"python{project()['requires-python']}").specifier


def test_docker_has_the_kits_folders_before_it_installs_the_kit():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    places = settings["package-dir"]
    folders = {places.get(name, name.replace(".", "/")) for name in settings["packages"]}
    before, install, _ = re.split(r"(RUN pip install)", (ROOT / "Dockerfile").read_text())
    made = " ".join(re.findall(r"RUN mkdir -p (.*)", before)).split()
    parents = {str(parent) for folder in made for parent in Path(folder).parents}
    assert install and folders <= {*made, *parents}


def test_docker_image_runs_as_an_ordinary_user():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    steps = [line.split()[0] for line in lines if re.match("(USER|CMD|ENTRYPOINT) ", line)]
    assert steps == ["USER", "CMD"]
    assert "USER student" in lines and "--allow-root" not in "".join(lines)


@pytest.mark.parametrize("name", ["Dockerfile", "docs/install.md"])
def test_docker_keeps_jupyters_own_token_and_is_reached_from_this_machine_only(name):
    text = (ROOT / name).read_text()
    # Neither switched off (token='') nor the same for everybody (JUPYTER_TOKEN=secret).
    assert not re.search(r"(token|password)\s*=", text, re.IGNORECASE)
    commands = re.findall(r"docker run .*", text)
    published = [re.findall(r"(?:-p|--publish)[ =](\S+)", command) for command in commands]
    assert published and all(ports == ["127.0.0.1:8888:8888"] for ports in published)
    assert not re.search(r" -P\b|--publish-all|--net", " ".join(commands))


def test_docker_image_gets_no_data_results_or_history():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "build", "runs", "data/*.npz"} <= set(ignored)


def test_ci_runs_the_test_command_of_the_readme():
    assert "make test" in (ROOT / "README.md").read_text()
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "run: .ci/run\n" in (ROOT / ".github" / "workflows" / "tests.yml").read_text()


def test_links_in_documents_lead_somewhere():
    named = ("*.md", "data/README.md", "docs/*.md", "notebooks/*.md")
    for document in (path for name in named for path in ROOT.glob(name)):
        links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", document.read_text("utf-8"))
        for target, anchor in links:
            place = document.parent / target if target else document
            assert place.exists(), f"{document.name} links to {target}"
            if anchor:
                headings = re.findall("^#+ (.+)", place.read_text("utf-8"), re.MULTILINE)
                found = {re.sub(r"[^\w-]", "", h.lower().replace(" ", "-")) for h in headings}
                assert anchor in found, f"{document.name} links to {target}#{anchor}"


def test_the_readme_is_one_screen_and_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name


def test_the_readmes_tables_are_rendered_from_the_records(tool, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["readme.py", "--check"])
    with pytest.raises(SystemExit) as end:
        tool("readme").main()
    assert end.value.code == 0, end.value.code


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_every_benchmark_starts(path):
    """What it imports of the kit is there: nobody runs it for months."""
    done = warm.run(path, "--help")
    assert done.returncode == 0, done.stderr
