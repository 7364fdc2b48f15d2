"""The whole path of a run on a GPU, on a computer without one: see ``pretend_gpu``.

The numbers must be a CPU's; inside a step the host may neither read nor copy; and no more than one
read may come with each epoch, since every one of them makes the host wait for all that is queued.
"""

import functools
from collections import Counter

import numpy as np
import pytest
import torch
from pretend_gpu import OnGpu, pretend_gpu

from csd_lib import drift, engine, runs
from csd_lib import train as training
from csd_lib.config import TrainConfig
from csd_lib.data import Dataset, class_incremental_split
from csd_lib.losses import csd_loss
from csd_lib.methods import METHODS
from csd_lib.model import ResNet
from csd_lib.retrieval import embed, recall_at_k, retrieval_matrix
from csd_lib.train import train

GPU = torch.device("cuda:1")  # not the one that is current in the beginning
T4, AMPERE = (7, 5), (8, 0)
STEPS = 2 * 3  # of an epoch of each task: batches of 10, 10 and 4


@pytest.fixture(scope="module")
def images():
    """Six classes of made-up colour images."""
    generator, parts = torch.Generator().manual_seed(0), {}
    for part, count in (("train", 8), ("test", 3)):
        labels = torch.arange(6).repeat_interleave(count)
        noise = torch.randint(0, 128, (len(labels), 3, 16, 16), generator=generator)
        parts[f"{part}_labels"] = labels
        parts[f"{part}_images"] = (noise + 20 * labels[:, None, None, None]).to(torch.uint8)
    stats = {"mean": (0.4,) * 3, "std": (0.2,) * 3}
    return Dataset(name="made up", class_names=tuple("abcdef"), **stats, **parts)


@pytest.fixture(scope="module")
def on_cpu(images):
    """A function that trains on the CPU; the same run only once."""
    return functools.cache(
        lambda **changes: train(tiny(torch.device("cpu"), **changes), images, progress=False)
    )


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose training steps are watched."""
    real_step = training.TaskTraining.eager_step

    def step(self, batch):
        with pretended.step():
            real_step(self, batch)

    monkeypatch.setattr(training.TaskTraining, "eager_step", step)
    with pretend_gpu(str(GPU), AMPERE) as pretended:
        yield pretended


def tiny(device=GPU, **changes):
    settings = dict(dataset="cifar100", depth=8, epochs=1, batch_size=10, learning_rate=1e-3)
    return TrainConfig(**(settings | {"device": str(device), **changes}))


def losses_of(run):
    return [value for record in run.history for name, value in record.items() if name != "seconds"]


# --- a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "ce+triplet+csd_paper"])
def test_a_run_of_every_method_has_the_numbers_of_a_cpu(gpu, images, on_cpu, method):
    config = tiny(method=method, later_learning_rate=1e-3)
    run = train(config, images, progress=False)
    assert gpu.steps == {"initial": STEPS // 2, "joint": 5}.get(method, STEPS)
    assert {value.device for model in run.models for value in model.state_dict().values()} == {GPU}
    expected = on_cpu(method=method, later_learning_rate=1e-3)
    assert np.allclose(losses_of(run), losses_of(expected), rtol=1e-4)
    matrix = retrieval_matrix(run.models, run.tasks)
    expected = retrieval_matrix(expected.models, expected.tasks)
    for name, values in vars(matrix).items():
        assert np.allclose(values, vars(expected)[name], equal_nan=True), name


@pytest.mark.parametrize("selection", ["last", "test", "held_out"])
@pytest.mark.parametrize("preset", ["reference", "clean", "class"])
def test_a_run_of_every_preset_and_selection_goes_through(gpu, images, preset, selection):
    run = train(tiny(preset=preset, selection=selection, held_out=0.3), images, progress=False)
    assert len(run.history) == 2 and gpu.steps >= STEPS - 2
    assert ("selection_recall" in run.history[0]) == (selection != "last")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision, card", [("tf32", AMPERE), ("amp", AMPERE), ("amp", T4)])
def test_a_run_in_every_precision_learns_the_same(gpu, images, on_cpu, method, precision, card):
    gpu.capability = card
    settings = dict(method=method, later_learning_rate=1e-3)
    run, expected = (
        train(tiny(precision=precision, **settings), images, progress=False),
        on_cpu(**settings),
    )
    first = [record["ce"] for record in (run.history[0], expected.history[0])]
    assert first[0] == pytest.approx(first[1], rel=0.02)
    assert (first[0] == first[1]) == (precision == "tf32")


def test_float16_goes_through_the_scaler_and_bfloat16_does_not(gpu):
    assert not engine.Precision("amp", GPU).scaler.is_enabled()
    gpu.capability = T4
    assert engine.Precision("amp", GPU).scaler.is_enabled()


def test_a_run_that_was_stopped_goes_on_to_the_same_end(gpu, images, tmp_path, monkeypatch):
    """Its checkpoint also opens where there is no GPU."""
    monkeypatch.setattr("csd_lib.fingerprint.fingerprint", lambda *_: "12345678")
    gpu.capability = T4
    config = tiny(precision="amp", epochs=3, selection="test", select_every=1)
    whole = train(config, images, progress=False)

    def stop(history, student):
        if len(history) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(runs.RunFolder, "is_due", lambda self: bool(self.folder))
    with pytest.raises(KeyboardInterrupt):
        train(config, images, folder=tmp_path, on_epoch=stop, progress=False)
    again = train(config, images, folder=tmp_path, progress=False)
    assert losses_of(again) == losses_of(whole)
    for a, b in zip(whole.models, again.models, strict=True):
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def reads_and_copies(gpu, images, epochs, **changes):
    gpu.reads, gpu.copies = Counter(), Counter()
    train(tiny(tasks=1, epochs=epochs, **changes), images, progress=False)
    return gpu.reads.total(), gpu.copies.total()


@pytest.mark.parametrize("precision, card", [("fp32", AMPERE), ("amp", T4)])
def test_the_host_waits_once_an_epoch(gpu, images, precision, card):
    gpu.capability = card
    (reads, copies), (more_reads, more_copies) = (
        reads_and_copies(gpu, images, epochs, precision=precision) for epochs in (1, 4)
    )
    assert more_reads - reads == 3
    assert more_copies == copies


def test_a_selection_waits_only_when_it_looks(gpu, images):
    counts = [
        reads_and_copies(gpu, images, 4, selection="test", select_every=every) for every in (1, 4)
    ]
    reads = (counts[0][0] - counts[1][0]) / 3  # with each look
    copies = (counts[0][1] - counts[1][1]) / 3
    assert reads <= 3  # are the features finite, which queries count, how many hit
    assert copies == 0  # the images to look at have been on the GPU from the beginning


# --- measuring -----------------------------------------------------------------------------------


def test_everything_that_measures_works_on_the_gpu(gpu, images):
    network = ResNet(8, 6, seed=0)
    on_cpu = embed(network, images.test_images)
    on_gpu = embed(network.to(GPU), images.test_images)
    assert on_gpu.device == GPU and torch.allclose(on_gpu.cpu(), on_cpu, atol=1e-5)
    labels = images.test_labels
    assert recall_at_k(on_gpu, labels.to(GPU), ks=(1, 2)) == recall_at_k(on_cpu, labels, ks=(1, 2))
    pair, moved = (on_gpu, on_gpu.flip(1)), (on_cpu, on_cpu.flip(1))
    there, here = (
        (
            *drift.cosine_drift(*features, where).values(),
            drift.neighborhood_overlap(*features, 2),
            drift.linear_cka(*features),
        )
        for features, where in ((pair, labels.to(GPU)), (moved, labels))
    )
    assert there == pytest.approx(here, rel=1e-4)
    assert drift.best_rotation(*pair).device == GPU


def test_no_switch_of_the_caller_changes_what_is_measured(images):
    """TF32, autocast and cuDNN's benchmark are off while it is measured, and then as before."""
    seen, network = [], ResNet(8, 6, seed=0)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def switches():
        autocast = torch.is_autocast_enabled("cpu")
        return cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, autocast

    network.register_forward_hook(lambda *_: seen.append(switches()))
    precision = engine.Precision("fp32", torch.device("cpu"))
    precision.tf32 = True
    with precision.switches(), torch.autocast("cpu", torch.bfloat16):
        during = switches()
        embed(network, images.test_images)
        assert switches() == during == (True, False, True, True)
    assert seen == [(False, False, False, False)]


@pytest.mark.parametrize("renamed", [False, True])
def test_tf32_is_as_it_was_by_whichever_name_it_was_set(renamed):
    """torch 2.9 and later refuse to tell the one to a program that has used the other."""
    matmul, conv = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)
    if renamed and not hasattr(conv, "fp32_precision"):
        pytest.skip("this torch has only the old names")
    before = torch.get_float32_matmul_precision()
    try:
        if renamed:
            matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision("medium")
        with engine.Precision("fp32", torch.device("cpu")).switches():
            assert matmul.allow_tf32 is False
        if renamed:
            assert matmul.fp32_precision == "tf32"
        else:
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_losses_and_head_are_in_true_float32_when_convolutions_are_in_tf32(
    gpu, images, monkeypatch
):
    """In their backward pass too, where no context of the forward pass is left."""
    seen, allowed = set(), torch.backends.cuda.matmul

    class Network(ResNet):
        def backbone(self, batch):
            seen.add(torch.backends.cudnn.allow_tf32)
            return super().backbone(batch)

    backward = torch.Tensor.backward

    def watched(*arguments, **options):
        assert not allowed.allow_tf32
        return backward(*arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    monkeypatch.setitem(
        training.make_network.__globals__["NETWORKS"],
        "resnet",
        lambda config, mean, std: Network(config.depth, 0, len(mean), mean, std, config.seed),
    )
    train(tiny(precision="tf32", tasks=1), images, progress=False)
    assert True in seen


# --- does it notice? -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mistake, what",
    [
        (lambda x: x.sum().item(), "waits"),
        (lambda x: bool(x.any()), "waits"),
        (lambda x: x.cpu(), "waits"),
        (lambda x: x.tolist(), "waits"),
        (lambda x: x[x > 0], "waits"),
        (lambda x: x.nonzero(), "waits"),
        (lambda x: torch.zeros(4).copy_(x), "waits"),
        (lambda x: x.index_put_((x > 0,), x), "waits"),
        (lambda x: torch.tensor(0.07, device=x.device), "copied"),
        (lambda x: x / torch.tensor(0.07), "copied"),
        (lambda x: x.copy_(torch.zeros(4)), "copied"),
        (lambda x: torch.zeros(4).to(x.device), "copied"),
        (lambda x: x[torch.arange(2)], "copied"),
        (lambda x: x + torch.zeros(4), "not on one"),
        (lambda x: torch.stack([x, torch.zeros(4)]), "not on one"),
        (lambda x: x + OnGpu(torch.zeros(4), torch.device("cuda:0")), "not on one"),
        (lambda x: torch.rand(4, device=x.device, generator=torch.Generator()), "generator"),
    ],
)
def test_a_mistake_inside_a_step_is_noticed(gpu, mistake, what):
    with gpu.device_context(GPU), gpu.step():
        x = torch.rand(4, device=GPU)
        with pytest.raises((AssertionError, RuntimeError), match=what):
            mistake(x)


def test_a_step_on_another_gpu_than_the_current_one_is_noticed(gpu):
    with gpu.step(), pytest.raises(AssertionError, match="while cuda:0 is current"):
        torch.zeros(1, device=GPU)


def test_what_a_step_does_is_allowed(gpu):
    """A scalar is a kernel's argument, and indices and masks on the GPU stay there."""
    with gpu.device_context(GPU), gpu.step():
        x = torch.rand(4, 3, device=GPU, requires_grad=True)
        labels = torch.zeros(4, dtype=torch.int64, device=GPU)
        loss = csd_loss(torch.where(x > 0.5, 1.0, x)[labels], x.detach(), labels)
        loss.backward()
        assert isinstance(x.grad, OnGpu) and x.grad.shape == x.shape
        labels.fill_(2)
        x.detach()[0] = 1.0
    assert not gpu.reads and not gpu.copies


def test_a_split_stays_on_the_host_and_a_task_goes_to_the_gpu_once(gpu, images):
    tasks = class_incremental_split(images, 2)
    assert tasks[0].train_images.device.type == "cpu" and not gpu.copies
    config, student = tiny(), ResNet(8, 3, seed=0).to(GPU)
    gpu.copies.clear()
    learning = training.TaskTraining(
        *(student, None, tasks[:1], config, engine.Precision("fp32", GPU)),
        torch.Generator(GPU).manual_seed(0),
    )
    assert gpu.copies == {"aten._to_copy.default": 2}
    assert learning.images.device == learning.labels.device == GPU
