import json
import math
from dataclasses import asdict, replace

import pytest
import torch

import csd_lib.train as training
from csd_lib import InputError
from csd_lib.data import augment
from csd_lib.losses import unit_length
from csd_lib.methods import METHODS, get_method
from csd_lib.model import ResNet, freeze
from csd_lib.train import TrainConfig, TrainingError, feature_spread, learning_rate, train

QUICK = dict(epochs=2, device="cpu")


def weights_of(run):
    return [model.state_dict() for model in run.models]


def same_bits(first, second):
    return all(
        torch.equal(a[name], b[name])
        for a, b in zip(weights_of(first), weights_of(second), strict=True)
        for name in a
    )


def quick(digits, method="csd", **changes):
    return train(TrainConfig(method=method, **{**QUICK, **changes}), digits, progress=False)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_and_leaves_a_model_per_stage(digits, method):
    run = quick(digits, method)
    stages = 1 if method == "joint" else 2
    classes = [10] if stages == 1 else [5, 10]
    assert [model.num_classes for model in run.models] == classes
    assert len(run.history) == 2 * stages
    first, last = run.history[0], run.history[1]
    assert last["ce"] < 0.7 * first["ce"]


@pytest.mark.parametrize(
    "method, stability",
    [("fine-tuning", set()), ("lwf", {"kd"}), ("csd", {"kd", "csd"})],
)
def test_stability_terms_join_on_the_second_task(digits, method, stability):
    first, *_, last = quick(digits, method).history
    assert {"ce", "triplet"} <= set(first) and not {"kd", "csd"} & set(first)
    assert {"kd", "csd"} & set(last) == stability


def test_same_seed_same_bits_other_seed_other_bits(digits):
    assert same_bits(quick(digits, seed=3), quick(digits, seed=3))
    assert not same_bits(quick(digits, seed=3), quick(digits, seed=4))


def test_training_neither_reads_nor_moves_the_global_random_state(digits):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = quick(digits)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same_bits(first, quick(digits))


def test_first_task_is_the_same_for_every_method(digits):
    """Otherwise a comparison after the second task would compare two things at once."""
    first, second = quick(digits, "fine-tuning"), quick(digits, "csd")
    a, b = weights_of(first)[0], weights_of(second)[0]
    assert all(torch.equal(a[name], b[name]) for name in a)


def spy_on_steps(monkeypatch):
    calls = []
    original = training.training_step

    def spy(student, teacher, optimizer, images, labels, method, settings):
        before = {k: v.clone() for k, v in teacher.state_dict().items()} if teacher else None
        result = original(student, teacher, optimizer, images, labels, method, settings)
        calls.append((teacher, before, images.clone(), labels.clone()))
        return result

    monkeypatch.setattr(training, "training_step", spy)
    return calls


def test_no_class_of_another_task_and_no_test_image_is_trained_on(digits, monkeypatch):
    calls = spy_on_steps(monkeypatch)
    run = quick(digits, crop_padding=0)
    steps = len(calls) // 2
    for task, part in zip(run.tasks, (calls[:steps], calls[steps:]), strict=True):
        seen_labels = torch.cat([labels for *_, labels in part])
        assert set(seen_labels.tolist()) == set(range(task.first_label, task.end_label))
        trained_on = {image.numpy().tobytes() for _, _, images, _ in part for image in images}
        assert trained_on == {image.numpy().tobytes() for image in task.train_images}
        test_images = {image.numpy().tobytes() for image in digits.test_images}
        assert not trained_on & test_images


def test_every_image_is_seen_once_per_epoch_and_the_short_last_batch_is_kept(digits, monkeypatch):
    calls = spy_on_steps(monkeypatch)
    run = quick(digits, epochs=1)
    sizes = [len(labels) for *_, labels in calls]
    first_task = len(run.tasks[0].train_labels)
    assert sum(sizes[: math.ceil(first_task / 64)]) == first_task and first_task % 64 in sizes


def test_teacher_never_changes_not_even_its_buffers(digits, monkeypatch):
    calls = spy_on_steps(monkeypatch)
    run = quick(digits)
    with_teacher = [(teacher, before) for teacher, before, *_ in calls if teacher is not None]
    assert len(with_teacher) == len(calls) // 2
    for teacher, before in with_teacher:
        assert teacher is run.models[0] and not teacher.training
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in run.models[0].parameters())


def test_head_rows_keep_length_one_during_training(digits):
    run = quick(digits)
    for model in run.models:
        torch.testing.assert_close(model.head.weight.norm(dim=1), torch.ones(model.num_classes))


def test_step_descends_along_the_gradient_of_the_sum_of_the_terms(two_tasks):
    """One plain SGD step must equal the step computed from the losses by hand."""
    task, config, method = two_tasks[1], TrainConfig(), get_method("csd")
    student = ResNet(8, 5, 1, seed=1)
    teacher = freeze(student)
    student.grow_head(5, torch.Generator().manual_seed(0))
    by_hand = ResNet(8, 10, 1)
    by_hand.load_state_dict(student.state_dict())
    images, labels = task.train_images[:64], task.train_labels[:64]

    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    training.training_step(student.train(), teacher, optimizer, images, labels, method, config)

    from csd_lib import losses

    features, logits = by_hand.train()(images)
    teacher_features, teacher_logits = teacher(images)
    loss = (
        losses.cross_entropy(logits, labels)
        + losses.triplet_loss(features, labels, 1.0)
        + losses.kd_loss(logits, teacher_logits, 2.0)
        + losses.csd_loss(features, teacher_features, labels, 0.07)
    )
    loss.backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad
    by_hand.head.normalize_()
    for expected, parameter in zip(by_hand.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)


@pytest.mark.parametrize("term, weight", [("kd", "lambda_kd"), ("csd", "lambda_csd")])
def test_lambdas_weight_their_terms(two_tasks, term, weight):
    images, labels = two_tasks[1].train_images[:32], two_tasks[1].train_labels[:32]
    teacher = freeze(ResNet(8, 5, 1, seed=1))
    values = []
    for value in (1.0, 2.5):
        student = ResNet(8, 10, 1, seed=2).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
        config = TrainConfig(**{weight: value})
        terms, _ = training.training_step(
            student, teacher, optimizer, images, labels, get_method("csd"), config
        )
        values.append(terms[term].item())
    assert values[1] == pytest.approx(2.5 * values[0])


def test_learning_rate_follows_task_and_milestones():
    config = TrainConfig(dataset="cifar100")  # the paper's protocol
    assert [learning_rate(config, 0, e) for e in (0, 199)] == [1e-3, 1e-3]
    expected = [1e-3, 1e-4, 1e-5, 1e-6]
    assert [learning_rate(config, 0, e) for e in (0, 200, 400, 600)] == pytest.approx(expected)
    assert learning_rate(config, 1, 0) == 1e-5 and learning_rate(config, 9, 799) < 2e-8
    assert learning_rate(replace(config, epochs=8), 0, 2) == pytest.approx(1e-4)


def test_class_means_start_new_rows_where_the_teacher_sees_the_class(digits):
    config = TrainConfig(head_init="class_means", later_learning_rate=1e-30, **QUICK)
    run = train(config, digits, progress=False)
    teacher, task = run.models[0], run.tasks[1]
    rows = run.models[1].head.weight[5:]  # the learning rate left them where they started
    features = unit_length(teacher(task.train_images)[0])
    for label in range(5, 10):
        mean = features[task.train_labels == label].mean(dim=0)
        assert torch.dot(rows[label - 5], mean / mean.norm()) > 0.9999


def test_stop_after_one_task_and_go_on_later_equals_one_go(digits, tmp_path):
    config = TrainConfig(**QUICK)
    whole = train(config, digits, progress=False)
    half = train(config, digits, folder=tmp_path, stop_after=1, progress=False)
    assert len(half.models) == 1
    later = train(config, digits, folder=tmp_path, progress=False)
    assert same_bits(whole, later) and len(later.history) == 4


class KilledError(Exception):
    pass


@pytest.mark.parametrize("epochs_before_the_kill", [1, 2, 3])
def test_a_run_stopped_after_any_epoch_goes_on_to_the_same_bits(
    digits, tmp_path, epochs_before_the_kill
):
    def kill(history):
        if len(history) == epochs_before_the_kill + 1:  # that epoch was not saved yet
            raise KilledError

    config = TrainConfig(crop_padding=1, **QUICK)
    whole = train(config, digits, progress=False)
    with pytest.raises(KilledError):
        train(config, digits, folder=tmp_path, on_epoch=kill, progress=False)
    resumed = train(config, digits, folder=tmp_path, progress=False)
    assert same_bits(whole, resumed)
    losses = [[r["loss"] for r in run.history] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 4


def test_checkpoint_of_another_config_is_refused_with_the_difference(digits, tmp_path):
    train(TrainConfig(**QUICK), digits, folder=tmp_path, stop_after=1, progress=False)
    with pytest.raises(InputError, match=r"csd_temperature 0\.07 -> 0\.1"):
        train(TrainConfig(csd_temperature=0.1, **QUICK), digits, folder=tmp_path, progress=False)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_checkpoint_is_named_and_nothing_is_overwritten(digits, tmp_path, keep):
    config = TrainConfig(**QUICK)
    train(config, digits, folder=tmp_path, stop_after=1, progress=False)
    path = tmp_path / "checkpoint.pt"
    whole = path.read_bytes()
    part = whole[: int(keep * len(whole)) if isinstance(keep, float) else keep]
    path.write_bytes(part)
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged.*delete it"):
        train(config, digits, folder=tmp_path, progress=False)
    assert path.read_bytes() == part


def test_checkpoint_that_would_run_code_is_refused(digits, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("pwned").touch, ())

    torch.save({"config": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="damaged"):
        train(TrainConfig(**QUICK), digits, folder=tmp_path, progress=False)
    assert not (tmp_path / "pwned").exists()


def test_nan_stops_training_and_says_where(digits, monkeypatch):
    original = training.augment
    monkeypatch.setattr(training, "augment", lambda *a: original(*a).float() * float("nan"))
    with pytest.raises(TrainingError, match=r"task 1, epoch 1: the loss is nan.*learning rate"):
        quick(digits)


def test_collapsed_features_stop_training_and_say_where(digits, monkeypatch):
    """A collapsed network would score Recall@1 = 100 %, because ties count as hits."""
    monkeypatch.setattr(training, "augment", lambda images, *a: torch.zeros_like(images))
    with pytest.raises(TrainingError, match=r"task 1, epoch 2: the features have collapsed"):
        quick(digits, epochs=5)  # two epochs in a row
    with pytest.raises(TrainingError, match=r"task 1, epoch 1: the features have collapsed"):
        quick(digits, epochs=1)  # never hand over a collapsed model


def epochs(*spread_and_ce):
    """A history: one good epoch of task 1, then epochs of task 2."""
    good = dict(task=0, epoch=0, loss=1.0, ce=0.5, spread=0.19, learning_rate=0.05)
    later = [
        {**good, "task": 1, "epoch": n, "spread": spread, "ce": ce}
        for n, (spread, ce) in enumerate(spread_and_ce)
    ]
    return [good, *later]


@pytest.mark.parametrize(
    "spread_and_ce, last_epoch, stops",
    [
        (((0.014, 3.97), (0.009, 3.91)), False, True),  # a real collapse: 50 classes, ln 50 = 3.91
        (((0.014, 3.97),), False, False),  # one epoch can be a passing shock
        (((0.014, 3.97),), True, True),
        (((0.014, 3.97), (0.12, 2.5)), True, False),  # it recovered
        (((0.02, 0.3), (0.02, 0.2)), True, False),  # close together, but told apart
        (((0.15, 3.9), (0.15, 3.8)), True, False),  # guessing, but not collapsed
    ],
)
def test_what_counts_as_a_collapse(spread_and_ce, last_epoch, stops):
    history = epochs(*spread_and_ce)
    if stops:
        with pytest.raises(TrainingError, match="lower the learning rate"):
            training._check_health(history, 50, last_epoch)
    else:
        training._check_health(history, 50, last_epoch)
        assert len(history) == len(spread_and_ce) + 1


@pytest.mark.parametrize("tasks", [2, 5, 10])
def test_healthy_runs_are_not_stopped_not_even_with_one_class_a_task(digits, tasks):
    run = quick(digits, "fine-tuning", tasks=tasks, epochs=3)
    assert len(run.models) == tasks


def test_broken_epoch_is_not_saved(digits, tmp_path, monkeypatch):
    config = TrainConfig(**QUICK)
    train(config, digits, folder=tmp_path, stop_after=1, progress=False)
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    original = training.augment
    monkeypatch.setattr(training, "augment", lambda *a: original(*a).float() * float("nan"))
    with pytest.raises(TrainingError):
        train(config, digits, folder=tmp_path, progress=False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == saved


def test_feature_spread_is_the_mean_cosine_distance_of_all_pairs(generator):
    features = torch.rand(7, 5, generator=generator, dtype=torch.float64)
    distances = [
        1 - torch.cosine_similarity(features[i], features[j], dim=0)
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    expected = torch.stack(distances).mean()
    torch.testing.assert_close(feature_spread(features), expected)
    assert feature_spread(torch.ones(4, 3)).abs() < 1e-6


def test_uneven_tasks_train(digits):
    with pytest.warns(UserWarning, match="4, 3, 3 classes"):
        run = quick(digits, tasks=3)
    assert [model.num_classes for model in run.models] == [4, 7, 10]


def test_augmentation_reaches_the_network(digits, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "augment", lambda *a: seen.append(a[1:3]) or augment(*a))
    quick(digits, crop_padding=2, flip=True, epochs=1)
    assert set(seen) == {(2, True)}


@pytest.mark.parametrize(
    "field, value",
    [
        ("dataset", "mnist"),
        ("method", "replay"),
        ("tasks", 0),
        ("tasks", 2.5),
        ("depth", 18),
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 1),
        ("batch_size", True),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("learning_rate", "fast"),
        ("later_learning_rate", math.inf),
        ("milestones", (0.5, 0.25)),
        ("milestones", (0.5, 1.5)),
        ("weight_decay", -1.0),
        ("crop_padding", -1),
        ("flip", "yes"),
        ("head_init", "zeros"),
        ("seed", -1),
        ("margin", -0.1),
        ("kd_temperature", 0.0),
        ("csd_temperature", -0.07),
        ("lambda_kd", math.nan),
        ("lambda_csd", -1.0),
    ],
)
def test_impossible_values_are_refused_by_name_and_value(field, value):
    with pytest.raises(InputError) as caught:
        TrainConfig(**{field: value})
    message = str(caught.value)
    assert repr(value) in message and "\n" not in message
    assert field in message or field in ("dataset", "method")


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="learning_rat"):
        TrainConfig(learning_rat=0.1)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_impossible_device_is_refused(digits, device):
    with pytest.raises(InputError, match=f"device='{device}'"):
        train(TrainConfig(device=device), digits, progress=False)


@pytest.mark.parametrize("dataset", ["digits", "cifar100"])
def test_config_to_json_and_back_is_the_identity(dataset):
    config = TrainConfig(dataset=dataset, method="lwf", tasks=5, seed=7)
    assert TrainConfig(**json.loads(json.dumps(asdict(config)))) == config


def test_defaults_for_cifar_are_the_papers_protocol():
    config = TrainConfig(dataset="cifar100")
    assert (config.depth, config.epochs, config.batch_size) == (32, 800, 128)
    assert (config.learning_rate, config.later_learning_rate) == (1e-3, 1e-5)
    assert (config.weight_decay, config.crop_padding, config.flip) == (5e-4, 4, True)
    assert (config.kd_temperature, config.csd_temperature, config.margin) == (2.0, 0.07, 1.0)
    assert (config.lambda_kd, config.lambda_csd) == (1.0, 1.0)
