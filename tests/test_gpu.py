"""What only a real GPU can show; ``test_cuda_path`` runs the same code without one.

python -m pytest tests/test_gpu.py -rs        # about a minute; skipped where there is no GPU
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from stopped import stop_after

from csd_lib import InputError, losses
from csd_lib.config import TrainConfig
from csd_lib.experiment import run_experiment
from csd_lib.retrieval import recall_at_k

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU here")
GPU = "cuda"
GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))


def digits(device=GPU, **changes):
    return TrainConfig(**dict(dataset="digits", method="csd", device=device) | changes)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """A run of CSD on digits, on the CPU."""
    return run_experiment(digits("cpu"), folder=tmp_path_factory.mktemp("cpu"), progress=False)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "amp"])
def test_the_graph_is_right_and_a_run_finds_what_a_cpu_finds(on_cpu, tmp_path, precision):
    run = run_experiment(digits(precision=precision), folder=tmp_path, progress=False)
    decisions = run.record.steps
    assert decisions and all(
        decision["reason"] in ("the faster of the two", "a graph is not faster")
        for decision in decisions
    ), decisions
    for gallery in ("own", "seen"):
        ours, cpus = (getattr(r.record.matrix, gallery) for r in (run, on_cpu))
        assert np.nanmax(np.abs(ours - cpus)) < 0.05, (gallery, ours, cpus)


@pytest.mark.parametrize("method", ["csd", "mmd-kd", "fecd", "ce+triplet+csd_paper"])
def test_every_loss_can_be_captured(tmp_path, method):
    config = digits(method=method, cuda_graph="true", epochs=3)
    run = run_experiment(config, folder=tmp_path, progress=False)
    assert run.record.steps and all(decision["captured"] for decision in run.record.steps)


def test_a_run_that_is_stopped_goes_on_to_the_same_end(tmp_path):
    config = digits(epochs=4)
    whole = run_experiment(config, folder=tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, folder=tmp_path / "half", on_epoch=stop_after(6), progress=False)
    again = run_experiment(config, folder=tmp_path / "half", progress=False)
    assert len(again.history) == len(whole.history) == 8
    # A GPU may add in another order each time, so not the last bits.
    ends = [run.history[-1]["loss"] for run in (again, whole)]
    assert ends[0] == pytest.approx(ends[1], rel=0.2)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_losses_equal_the_published_functions_in_value_and_gradient(path):
    z = {k: torch.from_numpy(v).to(GPU) for k, v in np.load(path).items()}
    for name, inputs, loss, exact in (
        ("csd", z["student"], lambda x: losses.csd_loss(x, z["teacher"], z["labels"]), True),
        ("kd", z["student_logits"], lambda x: losses.kd_loss(x, z["teacher_logits"]), True),
        # Recorded in float32.
        ("triplet", z["student"].float(), lambda x: losses.triplet_loss(x, z["labels"]), False),
    ):
        inputs = inputs.clone().requires_grad_()
        value = loss(inputs)
        value.backward()
        near = dict(rtol=1e-6, atol=1e-10) if exact else dict(rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(value.detach(), z[name], **near)
        torch.testing.assert_close(inputs.grad, z[f"{name}_grad"], **near)


def test_recall_is_that_of_the_cpu():
    features = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3000) % 50
    assert recall_at_k(features, labels) == recall_at_k(features.to(GPU), labels.to(GPU))


def test_a_full_memory_names_the_batch_that_fits(tmp_path):
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 6e8) / total)
    try:
        config = digits(epochs=1, batch_size=512, depth=302)
        with pytest.raises(InputError, match=r"batch_size=512: .* fits"):
            run_experiment(config, folder=tmp_path, progress=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
