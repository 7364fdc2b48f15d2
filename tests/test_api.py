"""The documented way from Python, run as it is printed."""

import doctest
from pathlib import Path

import pytest
import torch

from csd_lib import api, datasets, methods, networks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def registries():
    """What an example registers is gone after it."""
    tables = [methods.TERMS, methods.METHODS, datasets.DATASETS, networks.NETWORKS]
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def test_the_examples_of_the_api_page_print_what_the_page_says(registries, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found = doctest.testfile(str(ROOT / "docs" / "api.md"), module_relative=False)
    assert found.failed == 0 and found.attempted > 30


def test_the_page_shows_or_names_all_of_the_api():
    page = (ROOT / "docs" / "api.md").read_text()
    names = [name for name in vars(api) if not name.startswith("_")]
    assert [name for name in names if name not in page] == [] and len(names) <= 23
