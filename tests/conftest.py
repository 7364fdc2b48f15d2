import pytest
import torch

from csd_lib.data import class_incremental_split, load_dataset


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def two_tasks(digits):
    return class_incremental_split(digits, 2)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
