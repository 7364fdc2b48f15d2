"""Precision, and what a CUDA graph needs: a step that can be rehearsed without leaving a trace.

How a run on a GPU uses it is in ``test_cuda_path``.
"""

import pytest
import torch

from csd_lib import InputError, engine
from csd_lib import train as training
from csd_lib.config import TrainConfig
from csd_lib.engine import CapturedStep, Precision, StepState, half_precision
from csd_lib.model import ResNet, freeze
from csd_lib.train import train

CPU = torch.device("cpu")


def snapshot(networks, optimizer, generator, totals):
    tensors = [t.clone() for network in networks for t in network.state_dict().values()]
    moments = [t.clone() for s in optimizer.state.values() for t in s.values()]
    return [*tensors, *moments, generator.get_state(), totals.clone()]


def changed(before, after):
    return [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.equal(a, b)]


@pytest.fixture
def loop(two_tasks):
    """One training step of CSD on the second task, and all that it changes."""
    task, config = two_tasks[1], TrainConfig(crop_padding=1)
    student = ResNet(8, 5, 1, seed=1)
    teacher = freeze(student).train()  # batch statistics: its buffers move too
    student.grow_head(5, torch.Generator().manual_seed(0))
    student.train()
    optimizer = engine.make_optimizer("adam", student, 5e-4, CPU)
    engine.set_learning_rate(optimizer, 1e-3)
    generator, totals = torch.Generator().manual_seed(0), torch.zeros(1)
    precision, method = Precision("fp32", CPU), training.get_method("csd")

    def step(batch):
        images = training.augment(task.train_images[batch], 1, False, generator)
        terms, _ = training.training_step(
            *(student, teacher, optimizer, images, task.train_labels[batch]),
            *(method, config, precision),
        )
        totals.add_(sum(terms.values()))

    step_state = StepState([student, teacher], totals, optimizer, precision.scaler, generator)
    return step, step_state, ([student, teacher], optimizer, generator, totals)


@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_rehearsal_leaves_everything_as_it_was(loop, steps_before):
    step, step_state, state = loop
    for _ in range(steps_before):
        step(torch.arange(32))
    before, moments = snapshot(*state), len(state[1].state)
    CapturedStep(step, step_state).rehearse(torch.arange(32))
    after = snapshot(*state)
    if moments == 0:  # a new optimiser: its state now exists, and is that of a new one
        made = [t for s in state[1].state.values() for t in s.values()]
        assert made and all(not t.any() for t in made)
        after = [*after[: len(before) - 2], *after[-2:]]
    assert changed(before, after) == []
    assert all(p.grad is None for p in state[0][0].parameters())


def test_a_step_does_move_all_that(loop):
    """Otherwise the test above could not fail."""
    step, _, state = loop
    step(torch.arange(32))
    before = snapshot(*state)
    step(torch.arange(32))
    still = [t for i, t in enumerate(before) if i not in changed(before, snapshot(*state))]
    constants = {"mean", "std"}
    frozen = [n for n in state[0][1].state_dict() if "running" not in n and "tracked" not in n]
    assert len(still) == len(constants) + len(frozen)


def test_learning_rate_is_set_in_place_where_a_graph_would_read_it():
    rate = torch.zeros(())
    optimizer = torch.optim.Adam(
        [torch.zeros(1, requires_grad=True)], lr=rate, capturable=False, fused=True
    )
    engine.set_learning_rate(optimizer, 0.5)
    assert rate.item() == 0.5 and optimizer.param_groups[0]["lr"] is rate
    engine.load_optimizer(optimizer, optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate


def test_sgd_has_a_momentum_of_nine_tenths():
    model = ResNet(8, 2, 1)
    optimizer, weight = engine.make_optimizer("sgd", model, 0.0, CPU), model.head.weight
    engine.set_learning_rate(optimizer, 0.1)
    for moved in (0.1, 0.19, 0.271):
        before, weight.grad = weight.detach().clone(), torch.ones_like(weight)
        optimizer.step()
        torch.testing.assert_close(before - weight, torch.full_like(weight, moved))


def test_half_precision_is_what_the_device_computes_in_by_itself(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))  # a T4
    assert half_precision(cuda) is torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert half_precision(cuda) is torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert half_precision(CPU) is None
    with pytest.raises(InputError, match=r"amp.*fp32"):
        Precision("amp", CPU)


@pytest.mark.skipif(half_precision(CPU) is None, reason="this CPU has no bfloat16 of its own")
def test_amp_runs_the_network_in_bfloat16_and_the_losses_in_float32(digits):
    images = digits.train_images[:8]
    model, seen = ResNet(8, 5, 1, digits.mean, digits.std, seed=0), []
    model.stage2[0].conv1.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    with Precision("amp", CPU).autocast():
        features, logits = model(images)
    assert seen == [torch.bfloat16] and {features.dtype, logits.dtype} == {torch.float32}
    exact, _ = model(images)
    assert torch.cosine_similarity(features, exact).min() > 0.999
    run = train(TrainConfig(epochs=2, device="cpu", precision="amp"), digits, progress=False)
    assert run.history[-1]["ce"] < run.history[2]["ce"]


def test_a_scaled_loss_gives_the_same_step(two_tasks):
    """float16 needs the loss scaled up; the update must not notice."""
    task, config, method = two_tasks[0], TrainConfig(), training.get_method("fine-tuning")
    results = []
    for enabled in (False, True):
        student = ResNet(8, 5, 1, seed=1).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        precision = Precision("fp32", CPU)
        precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=enabled)
        images, labels = task.train_images[:32], task.train_labels[:32]
        training.training_step(student, None, optimizer, images, labels, method, config, precision)
        results.append(student.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)
