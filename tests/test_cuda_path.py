"""The whole path of a run on a GPU, on a computer without one: see ``pretend_gpu``.

The numbers must be a CPU's; inside a step the host may neither read nor copy; and no more than one
read may come with each epoch, since every one of them makes the host wait for all that is queued.
"""

import contextlib
import functools
import gc
import weakref
from collections import Counter

import numpy as np
import pretend_gpu as pretend
import pytest
import torch
from pretend_gpu import OnGpu, pretend_gpu
from stopped import same_bits, stop_after

from csd_lib import InputError, TrainingError, drift, engine, fingerprint, networks, runs, steps
from csd_lib import train as training
from csd_lib.config import TrainConfig
from csd_lib.data import class_incremental_split
from csd_lib.experiment import run_experiment
from csd_lib.losses import csd_loss
from csd_lib.methods import METHODS, TERMS
from csd_lib.model import ResNet
from csd_lib.record import Record
from csd_lib.retrieval import embed, recall_at_k, retrieval_matrix
from csd_lib.train import train

GPU = torch.device("cuda:1")  # not the one that is current in the beginning
T4, AMPERE = (7, 5), (8, 0)
STEPS = 2 * 3  # of an epoch of each task: batches of 10, 10 and 4


@pytest.fixture(scope="module")
def images():
    """Six classes of made-up colour images."""
    return fingerprint._made_up_images(3, 16)


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
        if pretended.recording:
            pretended.recording.recorded = functools.partial(step, self, batch)
            return
        with pretended.step():
            real_step(self, batch)

    monkeypatch.setattr(training.TaskTraining, "eager_step", step)
    monkeypatch.setattr("csd_lib.fingerprint.fingerprint", lambda *_: "12345678")  # it takes long
    with pretend_gpu(str(GPU), AMPERE) as pretended:
        yield pretended


def tiny(device=GPU, **changes):
    settings = dict(dataset="cifar100", depth=8, epochs=1, batch_size=10, learning_rate=1e-3)
    settings |= dict(device=str(device), cuda_graph="false")
    return TrainConfig(**(settings | changes))


def losses_of(run):
    return [value for record in run.history for name, value in record.items() if name != "seconds"]


def assert_same(run, expected):
    assert losses_of(run) == losses_of(expected) and same_bits(run, expected)


# --- a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*METHODS, "ce+triplet+csd_paper"])
def test_a_run_of_every_method_has_the_numbers_of_a_cpu(gpu, images, on_cpu, method):
    config = tiny(method=method, later_learning_rate=1e-3)
    run = train(config, images, progress=False)
    assert gpu.steps == {"initial": STEPS // 2, "joint": 5}.get(method, STEPS)
    assert {value.device for model in run.models for value in model.state_dict().values()} == {GPU}
    expected = on_cpu(method=method, later_learning_rate=1e-3)
    assert np.allclose(losses_of(run), losses_of(expected), rtol=1e-4, atol=1e-5)
    matrix = retrieval_matrix(run.models, run.tasks)
    expected = retrieval_matrix(expected.models, expected.tasks)
    for name, values in vars(matrix).items():
        assert np.allclose(values, vars(expected)[name], equal_nan=True), name


@pytest.mark.parametrize(
    "preset, selection", [("reference", "test"), ("clean", "last"), ("class", "held_out")]
)
def test_a_run_of_every_preset_and_selection_goes_through(gpu, images, preset, selection):
    run = train(tiny(preset=preset, selection=selection, held_out=0.3), images, progress=False)
    assert len(run.history) == 2 and gpu.steps >= STEPS - 2
    assert ("selection_recall" in run.history[0]) == (selection != "last")


def test_new_head_rows_from_class_means_are_made_on_the_gpu(gpu, images):
    run = train(tiny(head_init="class_means"), images, progress=False)
    assert len(run.history) == 2 and run.models[-1].head.weight.device == GPU


@pytest.mark.parametrize("precision, card", [("tf32", AMPERE), ("amp", AMPERE), ("amp", T4)])
def test_a_run_in_every_precision_learns_the_same(gpu, images, on_cpu, precision, card):
    """With all terms at once: none of them breaks down in 16 bits."""
    gpu.capability = card
    settings = dict(method="+".join(TERMS), later_learning_rate=1e-3)
    run, expected = (
        train(tiny(precision=precision, **settings), images, progress=False),
        on_cpu(**settings),
    )
    assert run.history[-1].keys() == expected.history[-1].keys() >= TERMS.keys()
    first = [record["ce"] for record in (run.history[0], expected.history[0])]
    assert first[0] == pytest.approx(first[1], rel=0.02)
    assert (first[0] == first[1]) == (precision == "tf32")


def test_float16_goes_through_the_scaler_and_bfloat16_does_not(gpu):
    assert not engine.Precision("amp", GPU).scaler.is_enabled()
    gpu.capability = T4
    assert engine.Precision("amp", GPU).scaler.is_enabled()


def test_a_run_that_was_stopped_goes_on_to_the_same_end(gpu, images, tmp_path, monkeypatch):
    """Its checkpoint also opens where there is no GPU."""
    gpu.capability = T4
    config = tiny(precision="amp", epochs=2, selection="test", select_every=1)
    whole = train(config, images, progress=False)

    monkeypatch.setattr(runs.RunFolder, "is_due", lambda self: bool(self.folder))
    with pytest.raises(KeyboardInterrupt):
        train(config, images, folder=tmp_path, on_epoch=stop_after(4), progress=False)
    gpu.capability = (8, 0)
    with pytest.raises(InputError, match="another 16-bit type"):
        train(config, images, folder=tmp_path, progress=False)
    gpu.capability = T4
    assert_same(train(config, images, folder=tmp_path, progress=False), whole)


def reads_and_copies(gpu, images, epochs, **changes):
    gpu.reads, gpu.copies = Counter(), Counter()
    train(tiny(tasks=1, epochs=epochs, **changes), images, progress=False)
    return gpu.reads.total(), gpu.copies.total()


@pytest.mark.parametrize("precision, card", [("fp32", AMPERE), ("amp", T4)])
def test_the_host_waits_once_an_epoch(gpu, images, precision, card):
    gpu.capability = card
    (reads, copies), (more_reads, more_copies) = (
        reads_and_copies(gpu, images, epochs, precision=precision) for epochs in (1, 3)
    )
    assert more_reads - reads == 2
    assert more_copies == copies


def test_a_selection_waits_only_when_it_looks(gpu, images):
    counts = [
        reads_and_copies(gpu, images, 3, selection="test", select_every=every) for every in (1, 3)
    ]
    reads = (counts[0][0] - counts[1][0]) / 2  # with each look
    copies = (counts[0][1] - counts[1][1]) / 2
    assert reads <= 5  # finite (twice) and different, which queries count, how many hit
    assert copies == 0  # the images to look at have been on the GPU from the beginning


# --- captured steps ------------------------------------------------------------------------------


@pytest.fixture
def decisions(gpu, monkeypatch):
    """All decisions about the steps of a run, in which a graph is four times faster."""
    made, take = [], steps.Steps.take_decisions
    monkeypatch.setattr(
        steps.Steps,
        "_seconds",
        lambda self, way, batches: 0.001 if isinstance(way, engine.CapturedStep) else 0.004,
    )

    def taken(self):
        made.extend(self.new_decisions)
        return take(self)

    monkeypatch.setattr(steps.Steps, "take_decisions", taken)
    monkeypatch.setattr(steps, "STEPS", 2)
    return made


EAGER = {}


@pytest.fixture
def eagerly(gpu, images):
    """A function that returns the run that any other way of taking its steps must equal."""

    def run(**changes):
        key = str(changes)
        EAGER[key] = EAGER.get(key) or train(tiny(**changes), images, progress=False)
        return EAGER[key]

    return run


def test_a_right_and_faster_graph_is_used_and_changes_nothing(
    gpu, images, decisions, eagerly, tmp_path, monkeypatch, capsys
):
    """For every batch size and every task, and it leaves no memory behind."""
    graphs = []

    class Counted(pretend.Graph):
        def __init__(self):
            super().__init__()
            graphs.append(weakref.ref(self))

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Counted)
    gc.disable()
    try:
        finished = run_experiment(tiny(epochs=2, cuda_graph="auto"), images, folder=tmp_path)
        assert len(graphs) == 4 and not any(graph() for graph in graphs)
    finally:
        gc.enable()
    assert_same(finished, eagerly(epochs=2))
    assert [(d.batch_size, d.captured) for d in decisions] == [(10, True), (4, True)] * 2
    kept = Record.read(tmp_path / "results.json").steps
    assert [step["task"] for step in kept] == [0, 0, 1, 1]
    assert all(step["captured_ms"] == 1 and step["eager_ms"] == 4 for step in kept)
    assert all(step["difference"] == 0 for step in kept)
    said = "steps of 10 images: captured in a CUDA graph (the faster of the two; eager 4.00 ms"
    assert capsys.readouterr().out.count(said) == 2


def test_a_run_stopped_within_a_task_goes_on_with_a_new_graph(
    gpu, images, decisions, eagerly, tmp_path, monkeypatch
):
    monkeypatch.setattr(runs.RunFolder, "is_due", lambda self: bool(self.folder))
    config = tiny(epochs=2, cuda_graph="auto")
    with pytest.raises(KeyboardInterrupt):
        train(config, images, folder=tmp_path, on_epoch=stop_after(4), progress=False)
    assert_same(train(config, images, folder=tmp_path, progress=False), eagerly(epochs=2))
    assert [d.captured for d in decisions] == [True] * 6


@pytest.mark.parametrize("precision, card", [("fp32", AMPERE), ("amp", T4)])
def test_a_trial_leaves_everything_as_it_was(gpu, images, monkeypatch, precision, card):
    """Weights, optimiser, batch norms, random numbers, sums, scale; also after some steps."""
    gpu.capability = card
    monkeypatch.setattr(steps, "LONG_STEP", 60)
    monkeypatch.setattr(steps, "STEPS", 2)
    task, student = class_incremental_split(images, 2)[0], ResNet(8, 3, seed=0).to(GPU)
    config = tiny(precision=precision, cuda_graph="auto")
    rest = engine.Precision(precision, GPU), torch.Generator(GPU).manual_seed(0)
    learning = training.TaskTraining(student, None, [task], config, *rest)
    batch = torch.arange(10, device=GPU)

    def everything():
        state = learning.step.state
        moments = [t for s in state.optimizer.state.values() for t in s.values()]
        scaler = [torch.tensor(list(state.scaler.state_dict().values()))]
        values = [*state.tensors, *moments, state.generator.get_state(), *scaler]
        return [value.detach().clone() for value in values]

    with rest[0].switches():
        engine.set_learning_rate(learning.optimizer, 1e-3)
        student.train()
        for _ in range(2):
            learning.eager_step(batch)
        before = everything()
        learning.step._choose(batch)
        assert learning.step.take_decisions()[0].captured_ms
        for a, b in zip(before, everything(), strict=True):
            assert torch.equal(a, b)
        assert all(p.grad is None for p in student.parameters())


def old_images(graph, step, learning):
    graph.first = getattr(graph, "first", step.args[1].clone())
    step.func(learning, graph.first)


def another_rate(graph, step, learning):
    rate = learning.optimizer.param_groups[0]["lr"]
    rate.mul_(1.5)
    step()
    rate.div_(1.5)


def same_random_numbers(graph, step, learning):
    state = learning.generator.get_state()
    graph.first = getattr(graph, "first", state)
    learning.generator.set_state(graph.first)
    step()
    learning.generator.set_state(state)


def putting_back(tensors_of):
    """Return a replay after which some tensors are what they were."""

    def replay(graph, step, learning):
        tensors = tensors_of(learning)
        kept = [tensor.clone() for tensor in tensors]
        step()
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)

    return replay


WRONG = {
    "nothing": lambda graph, step, learning: None,
    "old_images": old_images,
    "no_update": putting_back(lambda learning: learning.student.state_dict().values()),
    "twice": lambda graph, step, learning: (step(), step()),
    "another_rate": another_rate,
    "same_random_numbers": same_random_numbers,
    "no_sums": putting_back(lambda learning: [learning.totals.sums]),
    "one_tensor_overwritten": lambda graph, step, learning: (
        step(),
        learning.student.norm.bias.detach().add_(1e-4),
    ),
    "not_a_number": lambda graph, step, learning: (
        step(),
        learning.student.norm.bias.detach().fill_(torch.nan),
    ),
    "no_batch_statistics": putting_back(lambda learning: [learning.student.norm.running_mean]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_graph_is_not_used(gpu, images, decisions, eagerly, monkeypatch, wrong):
    def replay(graph):
        with torch.no_grad():
            learning = graph.recorded.args[0]
            WRONG[wrong](graph, with_gradients(graph.recorded), learning)

    monkeypatch.setattr(pretend.Graph, "replay", replay)
    alike = dict(tasks=1, batch_size=24)  # no smaller last batch, which would be tried as well
    run = train(tiny(**alike, cuda_graph="auto"), images, progress=False)
    assert_same(run, eagerly(**alike))
    assert [d.captured for d in decisions] == [False]
    assert all(("nothing" in d.reason) == (wrong == "nothing") for d in decisions)
    if wrong == "nothing":
        with pytest.raises(InputError, match="cuda_graph=true"):
            train(tiny(cuda_graph="true"), images, progress=False)


def with_gradients(step):
    func = torch.enable_grad()(step.func)
    return functools.partial(func, *step.args)


def test_a_graph_that_is_not_faster_is_not_used(gpu, images, decisions, eagerly, monkeypatch):
    monkeypatch.setattr(steps.Steps, "_seconds", lambda self, way, batches: 0.004)
    run = train(tiny(tasks=1, cuda_graph="auto"), images, progress=False)
    assert_same(run, eagerly(tasks=1))
    assert {d.reason for d in decisions} == {"a graph is not faster"}


def test_a_long_step_is_not_tried(gpu, images, decisions, monkeypatch):
    """Of a second each, the trial's would take a minute."""
    taken = []
    monkeypatch.setattr(steps.Steps, "_seconds", lambda *_: taken.append(1) or 1.0)
    train(tiny(tasks=1, cuda_graph="auto"), images, progress=False)
    assert [d.captured_ms for d in decisions] == [None] * 2 and len(taken) == 4


@pytest.mark.parametrize(
    "where, error",
    [
        ("begin", RuntimeError("CUDA error: operation not permitted")),
        ("in the step", RuntimeError("CUDA error: capturing")),
        ("in the step", torch.OutOfMemoryError("CUDA out of memory")),
        ("end", RuntimeError("CUDA error: invalidated")),
        ("replay", RuntimeError("CUDA error: launch failed")),
    ],
)
def test_a_capture_that_fails_loses_nothing(
    gpu, images, decisions, eagerly, monkeypatch, where, error
):
    """The generator, which refuses to draw after a capture that broke off, gets a new state."""
    renewed, record = [], gpu.record

    @contextlib.contextmanager
    def capture(graph, stream):
        if where == "begin":
            raise error
        with record(graph, stream):
            yield
            if where == "in the step":
                raise error
        if where == "end":
            raise error

    def fails(graph):
        raise error

    monkeypatch.setattr(torch.cuda, "graph", capture)
    if where == "replay":
        monkeypatch.setattr(pretend.Graph, "replay", fails)
    renew = pretend.Generator.graphsafe_set_state
    monkeypatch.setattr(
        pretend.Generator,
        "graphsafe_set_state",
        lambda self, other: renewed.append(1) or renew(self, other),
    )
    run = train(tiny(tasks=1, cuda_graph="auto"), images, progress=False)
    assert_same(run, eagerly(tasks=1))
    assert [d.captured for d in decisions] == [False] * 2 and len(renewed) == 2
    assert all(str(error) in str(d) for d in decisions)


def test_steps_that_compute_nothing_stop_the_training(gpu, images, monkeypatch):
    """Should a graph stop working after its trial, as on a GPU that is not the current one."""
    monkeypatch.setattr(steps.Steps, "_choose", lambda self, batch: lambda batch: None)
    with pytest.raises(TrainingError, match="computed nothing"):
        train(tiny(), images, progress=False)


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuda_graph", ["auto", "false"])
def test_what_does_not_fit_is_said_with_what_would(gpu, images, monkeypatch, cuda_graph):
    real_step = training.TaskTraining.eager_step

    def step(self, batch):
        real_step(self, batch)
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training.TaskTraining, "eager_step", step)
    with pytest.raises(InputError, match=r"batch_size=10: .*batch_size=2 fits; precision=amp"):
        train(tiny(batch_size=10, cuda_graph=cuda_graph), images, progress=False)
    with pytest.raises(InputError, match=r"batch_size=8: .*batch_size=4 fits"):
        train(tiny(batch_size=8, cuda_graph=cuda_graph), images, progress=False)


@pytest.mark.parametrize("where", ["prepare.new_student", "train.spread_in_training"])
def test_what_does_not_fit_outside_a_step_is_said_to(gpu, images, monkeypatch, where):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(f"csd_lib.{where}", full)
    with pytest.raises(InputError, match=r"cuda:1: its memory is too small"):
        train(tiny(), images, progress=False)


def test_measuring_goes_on_in_smaller_batches(gpu, images, monkeypatch):
    network = ResNet(8, 6, seed=0).to(GPU)
    expected, forward = embed(network, images.test_images), ResNet.forward

    def limited(self, batch):
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch)

    monkeypatch.setattr(ResNet, "forward", limited)
    assert torch.allclose(embed(network, images.test_images), expected, atol=1e-6)


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
        networks.NETWORKS,
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
