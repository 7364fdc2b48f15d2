"""Drift in numbers: what each measure must notice, and what it must not."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from csd_lib import InputError
from csd_lib.drift import cosine_drift, linear_cka, neighborhood_overlap
from csd_lib.projection import fit_map, place_on_map


def cloud(n=200, dim=8, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_drift_is_measured_per_class():
    old = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    new = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]])  # stays, right angle, opposite
    drift = cosine_drift(old, new, torch.tensor([5, 5, 7]))
    assert drift == {5: pytest.approx(0.5), 7: pytest.approx(2.0)}
    assert cosine_drift(old, old * 3, torch.tensor([5, 5, 7])) == {5: 0.0, 7: 0.0}


@pytest.mark.parametrize("k", [0, 200])
def test_impossible_neighbourhoods_are_refused(k):
    with pytest.raises(InputError, match=f"k={k}"):
        neighborhood_overlap(cloud(), cloud(), k=k)


def test_cka_equals_its_definition_with_kernel_matrices():
    old, new = cloud(40).numpy(), (cloud(40) + cloud(40, seed=4)).numpy()
    centering = np.eye(40) - 1 / 40
    kernels = [centering @ x @ x.T @ centering for x in (old, new)]

    def alignment(a, b):
        return np.trace(a @ b)

    expected = alignment(*kernels) / np.sqrt(
        alignment(kernels[0], kernels[0]) * alignment(kernels[1], kernels[1])
    )
    assert linear_cka(torch.from_numpy(old), torch.from_numpy(new)) == pytest.approx(expected)


def test_a_map_is_of_directions_and_seeded_and_leaves_torch_its_threads(monkeypatch):
    """UMAP's compiler sets them for the whole process, as this stand-in does."""

    asked = {}

    class SetsThreads:
        def __init__(self, **options):
            asked.update(options)
            self._raw_data = torch.zeros(20, 8)

        def fit(self, features):
            torch.set_num_threads(threads + 1)
            return self

        transform = fit

    threads = torch.get_num_threads()
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=SetsThreads))
    try:
        fitted = fit_map(cloud(20), seed=3)
        assert (asked["metric"], asked["random_state"]) == ("cosine", 3)
        assert torch.get_num_threads() == threads
        place_on_map(fitted, cloud(20))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
