import functools
import json
import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from stopped import same_bits, stop_after

import csd_lib.train as training
from csd_lib import InputError, TrainingError, identity
from csd_lib.config import TrainConfig
from csd_lib.data import augment, class_incremental_split, hold_out
from csd_lib.engine import Precision
from csd_lib.experiment import run_experiment, run_folder
from csd_lib.files import read_tensors, write_tensors
from csd_lib.methods import METHODS, TERMS, Method, Term, get_method
from csd_lib.model import ResNet, freeze
from csd_lib.numerics import unit_length
from csd_lib.prepare import add_head_rows, split_classes
from csd_lib.retrieval import embed
from csd_lib.runs import RunFolder
from csd_lib.train import learning_rate, train
from csd_lib.watch import Health, Selection, Totals, feature_spread, spread_in_training

QUICK = dict(epochs=2, device="cpu")
STABILITY = {name for name, term in TERMS.items() if term.distils}
LATER_TERMS = {  # besides ce and triplet; written out, so that no recipe can change unseen
    **dict.fromkeys(("initial", "fine-tuning", "joint"), frozenset()),
    **{"lwf": {"kd"}, "mmd": {"mmd"}, "mmd-kd": {"kd", "mmd"}, "fecd": {"fecd"}},
    **{"csd": {"kd", "csd"}, "ce+triplet+csd_paper": {"csd_paper"}},
}


def quick(digits, method="csd", folder=None, stop_after=None, on_epoch=None, **changes):
    config = TrainConfig(method=method, **{**QUICK, **changes})
    options = dict(folder=folder, stop_after=stop_after, on_epoch=on_epoch)
    return train(config, digits, **options, progress=False)


@pytest.fixture(scope="module")
def undisturbed(digits):
    """A function that trains in one go and writes no file; the same run only once."""
    return functools.cache(lambda **changes: quick(digits, **changes))


@pytest.mark.parametrize("method", [*METHODS, "ce+triplet+csd_paper"])
def test_every_method_learns_and_leaves_a_model_per_stage(digits, method):
    """Its stability terms join on the second task."""
    run = quick(digits, method)
    classes = {"joint": [10], "initial": [5, 5]}.get(method, [5, 10])
    assert [model.num_classes for model in run.models] == classes
    assert len(run.history) == 2 * len(set(classes))
    first, second, *_, last = *run.history, run.history[-1]
    assert second["ce"] < 0.7 * first["ce"] and not STABILITY & set(first)
    if method in LATER_TERMS:  # else a method that somebody has added
        assert {"ce", "triplet"} <= set(first) and STABILITY & set(last) == LATER_TERMS[method]


def test_training_neither_reads_nor_moves_the_global_random_state(digits, undisturbed):
    """So the same seed gives the same bits."""
    expected = undisturbed()
    torch.manual_seed(1 + torch.initial_seed() % 2**32)  # another state than it had
    before = torch.get_rng_state()
    assert same_bits(quick(digits), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def steps(monkeypatch):
    """Of every training step: the teacher, its state before, the images and the labels."""
    calls, original = [], training.training_step

    def spy(student, teacher, optimizer, images, labels, *rest):
        before = {k: v.clone() for k, v in teacher.state_dict().items()} if teacher else None
        result = original(student, teacher, optimizer, images, labels, *rest)
        calls.append((teacher, before, images.clone(), labels.clone()))
        return result

    monkeypatch.setattr(training, "training_step", spy)
    return calls


def pixels_of(images):
    return {image.numpy().tobytes() for image in images}


def test_no_class_of_another_task_and_no_test_image_is_trained_on(digits, steps):
    run = quick(digits, crop_padding=0)
    half = len(steps) // 2
    for task, part in zip(run.tasks, (steps[:half], steps[half:]), strict=True):
        seen_labels = torch.cat([labels for *_, labels in part])
        assert set(seen_labels.tolist()) == set(range(task.first_label, task.end_label))
        trained_on = pixels_of(torch.cat([images for _, _, images, _ in part]))
        assert trained_on == pixels_of(task.train_images)
        assert not trained_on & pixels_of(digits.test_images)


def test_every_image_is_seen_once_per_epoch_and_the_short_last_batch_is_kept(digits, steps):
    run = quick(digits, epochs=1)
    sizes = [len(labels) for *_, labels in steps]
    first_task = len(run.tasks[0].train_labels)
    assert sum(sizes[: math.ceil(first_task / 64)]) == first_task and first_task % 64 in sizes


def test_teacher_never_changes_not_even_its_buffers(digits, steps):
    run = quick(digits)
    with_teacher = [(teacher, before) for teacher, before, *_ in steps if teacher is not None]
    assert len(with_teacher) == len(steps) // 2
    for teacher, before in with_teacher:
        assert teacher is run.models[0] and not teacher.training
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(p.grad is None for p in run.models[0].parameters())


def test_head_rows_keep_length_one_during_training(undisturbed):
    for model in undisturbed().models:
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
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)  # of an earlier batch
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


@pytest.mark.parametrize(
    "term, weight",
    [
        ("kd", "lambda_kd"),
        ("csd", "lambda_csd"),
        ("csd_paper", "lambda_csd"),
        ("mmd", "lambda_mmd"),
        ("fecd", "lambda_fecd"),
    ],
)
def test_lambdas_weight_their_terms(two_tasks, term, weight):
    images, labels = two_tasks[1].train_images[:32], two_tasks[1].train_labels[:32]
    teacher = freeze(ResNet(8, 5, 1, seed=1))
    values = []
    for value in (1.0, 2.5):
        student = ResNet(8, 10, 1, seed=2).train()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.0)
        config = TrainConfig(**{weight: value})
        terms, _ = training.training_step(
            student, teacher, optimizer, images, labels, get_method(f"ce+{term}"), config
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
    run = quick(digits, head_init="class_means", later_learning_rate=1e-30)
    teacher, task = run.models[0], run.tasks[1]
    rows = run.models[1].head.weight[5:]  # the learning rate left them where they started
    features = unit_length(teacher(task.train_images)[0])
    for label in range(5, 10):
        mean = features[task.train_labels == label].mean(dim=0)
        assert torch.dot(rows[label - 5], mean / mean.norm()) > 0.9999


def test_stop_after_one_task_and_go_on_later_equals_one_go(digits, undisturbed, tmp_path):
    half = quick(digits, folder=tmp_path, stop_after=1)
    assert len(half.models) == 1
    later = quick(digits, folder=tmp_path)
    assert same_bits(undisturbed(), later) and len(later.history) == 4


@pytest.mark.parametrize("epochs_before_the_kill", [1, 2, 3])
def test_a_run_stopped_after_any_epoch_goes_on_to_the_same_bits(
    digits, undisturbed, tmp_path, epochs_before_the_kill
):
    whole = undisturbed(crop_padding=1)
    stop = stop_after(epochs_before_the_kill + 1)  # that epoch was not saved yet
    with pytest.raises(KeyboardInterrupt):
        quick(digits, crop_padding=1, folder=tmp_path, on_epoch=stop)
    resumed = quick(digits, crop_padding=1, folder=tmp_path)
    assert same_bits(whole, resumed)
    losses = [[r["loss"] for r in run.history] for run in (whole, resumed)]
    assert losses[0] == losses[1]
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 4


def test_checkpoint_of_another_config_is_refused_with_the_difference(digits, tmp_path):
    quick(digits, folder=tmp_path, stop_after=1)
    with pytest.raises(InputError, match=r"csd_temperature 0\.07 -> 0\.1"):
        quick(digits, folder=tmp_path, csd_temperature=0.1)


def test_truncated_checkpoint_is_named_and_the_one_before_it_used(digits, undisturbed, tmp_path):
    quick(digits, folder=tmp_path, stop_after=1)
    newest = tmp_path / "checkpoint.pt"
    part = newest.read_bytes()[: newest.stat().st_size // 2]
    newest.write_bytes(part)
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt cannot be read .*the one before it is used"
    ):
        resumed = quick(digits, folder=tmp_path)
    assert same_bits(undisturbed(), resumed)
    assert (tmp_path / "checkpoint.damaged.pt").read_bytes() == part, "nothing may be lost"


def test_two_damaged_checkpoints_are_named_and_left_alone(digits, tmp_path):
    quick(digits, folder=tmp_path, stop_after=1)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read.*move it away"):
        quick(digits, folder=tmp_path)
    assert (tmp_path / "checkpoint.previous.pt").read_bytes() == b"damaged"


def test_nan_stops_training_and_says_where(digits, monkeypatch):
    original = training.augment
    monkeypatch.setattr(training, "augment", lambda *a: original(*a).float() * float("nan"))
    with pytest.raises(
        TrainingError, match=r"task 1, epoch 1: training has diverged .loss nan.*learning rate"
    ):
        quick(digits)


def test_the_term_that_broke_down_first_is_named(digits):
    """One step later all of them are NaN, because the weights are."""
    seen = []

    def root(outputs, settings):
        seen.append(len(outputs.labels))
        below = 1.0 if len(seen) < 4 else -1.0
        return (outputs.features.square().mean() * 0 + below).sqrt()

    message = r"ce nan, root nan, spread nan; finite in the fewest steps: root\)"
    with (
        patch.dict(TERMS, root=Term("root", root, distils=False)),
        pytest.raises(TrainingError, match=message),
    ):
        quick(digits, method="ce+root")
    assert len(seen) > 5


def test_collapsed_features_stop_training_and_say_where(digits, monkeypatch):
    """A collapsed network would score Recall@1 = 100 %, because ties count as hits."""
    monkeypatch.setattr(training, "augment", lambda images, *a: torch.zeros_like(images))
    with pytest.raises(TrainingError, match=r"task 1, epoch 3: the features have collapsed"):
        quick(digits, epochs=5)  # two epochs in a row, the second of which learns nothing
    with pytest.raises(TrainingError, match=r"task 1, epoch 1: the features have collapsed"):
        quick(digits, epochs=1)  # never hand over a collapsed model
    seen = []
    first_task = 10 * 5  # steps

    def black_later(images, *_):
        seen.append(len(images))
        return images if len(seen) <= first_task else torch.zeros_like(images)

    monkeypatch.setattr(training, "augment", black_later)
    with pytest.raises(TrainingError, match=r"task 2, epoch \d: the features have collapsed"):
        quick(digits, epochs=5)  # guessing among its own five classes is what counts


def test_a_collapse_is_not_forgotten_by_a_run_that_goes_on(digits, tmp_path, monkeypatch):
    steps = []

    def black_until_killed(images, *_):
        steps.append(len(images) == 64)  # not those of a fingerprint
        if steps[-1] and sum(steps) == 2 * 9 + 1:  # in the third epoch
            raise KeyboardInterrupt
        return torch.zeros_like(images)

    monkeypatch.setattr(training, "augment", black_until_killed)
    monkeypatch.setattr(RunFolder, "is_due", lambda self: bool(self.folder))  # every epoch
    with pytest.raises(KeyboardInterrupt):
        quick(digits, epochs=5, folder=tmp_path)
    with pytest.raises(TrainingError, match=r"task 1, epoch 3: the features have collapsed"):
        quick(digits, epochs=5, folder=tmp_path)


def check_epochs(spread_and_ce, last, before=0.19):
    """What Health says of the last of some epochs of a task of 50 classes."""
    health = Health(50, before)
    for number, (spread, ce) in enumerate(spread_and_ce):
        record = dict(task=1, epoch=number, loss=1.0, spread=spread, learning_rate=0.05)
        record |= {} if ce is None else {"ce": ce}
        healthy = health.check(record, True, last and number + 1 == len(spread_and_ce))
    return healthy


@pytest.mark.parametrize(
    "spread_and_ce, last, outcome",
    [
        # A real collapse: 50 classes, ln 50 = 3.91.
        (((0.014, 3.97), (0.009, 3.91), (0.009, 3.91)), False, "stops"),
        (((0.014, 3.97),), False, "looks broken"),  # one epoch can be a passing shock
        (((0.014, 3.97),), True, "stops"),
        (((0.014, 3.97), (0.12, 2.5)), True, "healthy"),  # it recovered
        (((0.02, 0.3), (0.02, 0.2)), True, "healthy"),  # close together, but told apart
        (((0.15, 3.9), (0.15, 3.8)), True, "healthy"),  # guessing, but not collapsed
        (((0.014, None), (0.009, None)), False, "stops"),  # without cross entropy, features decide
        (((0.014, None),), False, "looks broken"),
        (((0.5, 5.3), (0.04, 4.2), (0.03, 4.0)), False, "looks broken"),  # but it learns
        (((0.5, 5.3), (0.04, 4.2), (0.03, 4.0), (0.03, 3.97)), False, "stops"),  # no longer
    ],
)
def test_what_counts_as_a_collapse(spread_and_ce, last, outcome):
    if outcome == "stops":
        with pytest.raises(TrainingError, match=r"it was 0\.\d+ (before|in).*lower the"):
            check_epochs(spread_and_ce, last)
    else:
        assert check_epochs(spread_and_ce, last) is (outcome == "healthy")


def test_features_that_were_never_further_apart_have_not_collapsed():
    """Large images of one's own can begin with features this close together."""
    epochs = ((0.012, 3.9), (0.011, 3.9))
    assert check_epochs(epochs, last=True, before=0.013)
    with pytest.raises(TrainingError, match=r"it was 0\.06 in epoch 1"):
        check_epochs(((0.06, 3.9), *epochs), last=True, before=0.013)


@pytest.mark.parametrize("broken", ["weight", "buffer"])
def test_a_network_that_is_not_finite_stops_training_in_that_epoch(digits, monkeypatch, broken):
    original = training.training_step

    def break_it(student, *rest):
        result = original(student, *rest)
        with torch.no_grad():
            (student.norm.weight if broken == "weight" else student.norm.running_var)[0] = math.inf
        return result

    monkeypatch.setattr(training, "training_step", break_it)
    with pytest.raises(TrainingError, match="task 1, epoch 1: training has diverged"):
        quick(digits)


def test_a_model_that_looks_collapsed_is_never_selected(digits, monkeypatch):
    """All images with one feature: every query ties with its class, Recall@1 = 100 %."""
    monkeypatch.setattr(Health, "check", lambda *a: False)
    run = quick(digits, selection="test", select_every=1)
    assert not any("selection_recall" in record for record in run.history)


@pytest.mark.filterwarnings("ignore:a task has one class")
@pytest.mark.parametrize("tasks", [5, 10])
def test_healthy_runs_are_not_stopped_not_even_with_one_class_a_task(digits, tasks):
    run = quick(digits, "fine-tuning", tasks=tasks, epochs=3)
    assert len(run.models) == tasks


def test_broken_epoch_is_not_saved(digits, tmp_path, monkeypatch):
    quick(digits, folder=tmp_path, stop_after=1)
    saved = (tmp_path / "checkpoint.pt").read_bytes()
    original = training.training_step

    def break_large_batches(student, teacher, optimizer, images, *rest):  # as no fingerprint has
        images = images.float() * math.nan if len(images) == 64 else images
        return original(student, teacher, optimizer, images, *rest)

    monkeypatch.setattr(training, "training_step", break_large_batches)
    with pytest.raises(TrainingError):
        quick(digits, folder=tmp_path)
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


def test_what_is_measured_before_and_in_an_epoch_is_of_all_its_images(digits):
    """A last batch that is smaller counts for less."""
    student, images = ResNet(8, 2, 1, seed=1).eval(), digits.train_images[:16]
    totals = Totals(["ce"], 3, torch.device("cpu"))
    for value, count in ((1.0, 2), (4.0, 1)):
        totals.add({"ce": torch.tensor(value)}, torch.eye(2)[:count])
    means, *_ = totals.read(student)
    assert means["ce"] == means["loss"] == pytest.approx(2.0)
    before = spread_in_training(student, images, Precision("fp32", images.device))
    assert not student.training
    assert before == pytest.approx(feature_spread(student.train()(images)[0]).item())


def test_augmentation_reaches_the_network(digits, monkeypatch):
    """The images are not yet normalised: only then is the border of zeros black."""
    seen = []

    def spy(images, padding, flip, generator):
        seen.append((images.dtype, padding, flip))
        return augment(images, padding, flip, generator)

    monkeypatch.setattr(training, "augment", spy)
    quick(digits, crop_padding=2, flip=True, epochs=1)
    assert set(seen) == {(torch.uint8, 2, True)}


def test_only_the_papers_network_has_a_rule_for_its_depth():
    assert TrainConfig(network="features", depth=18).depth == 18


def test_defaults_for_cifar_are_the_papers_protocol():
    config = TrainConfig(dataset="cifar100")
    assert (config.depth, config.epochs, config.batch_size) == (32, 800, 128)
    assert (config.learning_rate, config.later_learning_rate) == (1e-3, 1e-5)
    assert (config.weight_decay, config.crop_padding, config.flip) == (5e-4, 4, True)
    assert (config.kd_temperature, config.csd_temperature, config.margin) == (2.0, 0.07, 1.0)
    assert (config.lambda_kd, config.lambda_csd, config.lambda_mmd) == (1.0, 1.0, 10.0)
    assert (config.lambda_fecd, config.fecd_temperature, config.held_out) == (10.0, 4.0, 0.1)


def test_defaults_of_what_a_cpu_learns_are_those_of_the_recorded_runs():
    found = {name: TrainConfig(dataset=name) for name in ("digits", "fashion", "kinds")}
    assert {n: (c.epochs, c.later_learning_rate) for n, c in found.items()} == {
        "digits": (15, 1e-2),
        "fashion": (5, 1e-3),
        "kinds": (10, 1e-3),
    }


# --- presets, and the published code's traps ---------------------------------------------------


def test_reference_preset_is_the_published_code_and_clean_is_the_default():
    reference = TrainConfig(dataset="cifar100", preset="reference")
    assert reference.teacher_statistics == "batch" and reference.selection == "test"
    assert reference.milestones == (200, 400, 600) and reference.select_every == 2
    clean = TrainConfig(dataset="cifar100")
    assert clean.preset == "clean" and clean.teacher_statistics == "running"
    assert clean.selection == "last" and clean.milestones == (0.25, 0.5, 0.75)
    shared = ("epochs", "batch_size", "learning_rate", "later_learning_rate", "margin", "head_init")
    assert [getattr(reference, f) for f in shared] == [getattr(clean, f) for f in shared]
    rates = [[learning_rate(c, 1, e) for e in range(800)] for c in (reference, clean)]
    assert rates[0] == rates[1]


def test_a_setting_by_hand_counts_more_than_the_preset():
    config = TrainConfig(dataset="cifar100", preset="class", epochs=7, head_init="random")
    assert (config.epochs, config.head_init, config.schedule) == (7, "random", "one_cycle")
    usual = TrainConfig(dataset="cifar100", preset="class")
    assert (usual.epochs, usual.later_epochs) == (25, 8)
    assert (usual.learning_rate, usual.later_learning_rate) == (2e-3, 3e-4)


def test_one_cycle_rises_for_a_fifth_and_falls_to_zero():
    config = TrainConfig(schedule="one_cycle", epochs=50, learning_rate=1.0)
    rates = [learning_rate(config, 0, epoch) for epoch in range(50)]
    peak = rates.index(max(rates))
    assert peak in (9, 10) and 0.9 < rates[peak] <= 1.0 and rates[-1] < 0.01
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:])[::-1]
    assert rates[4] == pytest.approx(0.45) and rates[29] == pytest.approx(0.5, abs=0.03)


def teachers_of(steps):
    """Each teacher once, in order."""
    return [*{id(teacher): teacher for teacher, *_ in steps if teacher is not None}.values()]


def test_a_method_that_distils_nothing_asks_no_teacher(digits, steps):
    quick(digits, "fine-tuning")
    assert teachers_of(steps) == []
    run = quick(digits, "lwf", tasks=5, epochs=1)
    asked = [*map(id, teachers_of(steps))]
    assert asked == [*map(id, run.models[:-1])], "each the model of the task before"


def test_batch_statistics_are_the_published_codes_teacher(digits, undisturbed, steps):
    """It normalises with the current batch, its running statistics drift, its weights do not."""
    run = quick(digits, teacher_statistics="batch")
    (teacher,), before = teachers_of(steps), run.models[0]
    assert teacher is not before and teacher.training and not before.training
    for name, value in before.state_dict().items():
        drifts = "running" in name or "tracked" in name
        assert torch.equal(value, teacher.state_dict()[name]) != drifts, name
    assert all(p.grad is None for p in teacher.parameters())
    assert not same_bits(run, undisturbed())


def test_selection_on_test_images_hands_on_the_best_looked_at_model(digits):
    """The published code's trap: what is reported was chosen by what is reported."""
    from csd_lib.retrieval import embed, recall_at_k

    run = quick(digits, "fine-tuning", epochs=5, selection="test", select_every=2)
    for i, model in enumerate(run.models):
        records = [r for r in run.history if r["task"] == i and "selection_recall" in r]
        looks = {r["epoch"] + 1: r["selection_recall"] for r in records}
        assert [*looks] == [2, 4, 5], "every second epoch, and the last"
        seen = run.tasks[: i + 1]
        images = torch.cat([task.test_images for task in seen])
        labels = torch.cat([task.test_labels for task in seen])
        assert recall_at_k(embed(model, images), labels)[1] == max(looks.values())


@pytest.mark.parametrize("selection", ["test", "held_out"])
def test_only_selection_on_held_out_images_may_hand_back_the_untrained_network(digits, selection):
    """The published code looks at test images before the first epoch, and forgets what it saw."""
    settings = dict(epochs=1, later_learning_rate=30.0)
    run = quick(digits, "fine-tuning", selection=selection, **settings)
    first, second = (model.state_dict()["stem.weight"] for model in run.models)
    assert torch.equal(first, second) == (selection == "held_out")


def test_selection_on_held_out_images_never_sees_a_test_image(digits, steps, monkeypatch):
    looked_at = []
    original = Selection.__init__

    def spy(self, images, labels):
        looked_at.append(images)
        original(self, images, labels)

    monkeypatch.setattr(Selection, "__init__", spy)
    run = quick(digits, selection="held_out", select_every=1, seed=1)
    for task, images in zip(run.tasks, looked_at, strict=True):
        wanted = hold_out(task, run.config.held_out, seed=1)[1]
        assert torch.equal(images, wanted), "those that new rows of the head leave out too"
    trained_on = pixels_of(torch.cat([images for _, _, images, _ in steps]))
    held_out = pixels_of(torch.cat(looked_at))
    assert held_out and not held_out & (trained_on | pixels_of(digits.test_images))


def test_a_run_is_shown_in_a_line(digits):
    assert repr(quick(digits, "csd")) == "Run('csd', seed=0, 2 models)"


def test_a_model_for_which_all_images_are_alike_is_never_the_best():
    torch.manual_seed(0)
    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8) % 2
    student, says_one_thing = ResNet(8, 2, 1), ResNet(8, 2, 1)
    says_one_thing.backbone = lambda images: torch.ones(len(images), 64)
    best = Selection(images, labels)
    assert best.measure(student) == best.recall > 0
    kept = best.state
    assert best.measure(says_one_thing) == 0 and best.state is kept


def test_features_of_zeros_are_a_collapse_too():
    assert feature_spread(torch.zeros(6, 4)) == 0
    some = torch.cat([torch.zeros(6, 4), torch.eye(2, 4)])
    assert 0 < feature_spread(some) < feature_spread(torch.eye(8)) == 1


@pytest.mark.parametrize("selection, epochs", [("test", 2), ("test", 4), ("held_out", 4)])
def test_a_run_with_selection_goes_on_to_the_same_bits(digits, tmp_path, selection, epochs):
    """On test images the first epoch is the first task's best, which is known after a kill too."""
    settings = dict(selection=selection, select_every=1, teacher_statistics="batch")
    with pytest.raises(KeyboardInterrupt):
        quick(digits, folder=tmp_path, on_epoch=stop_after(epochs), **settings)
    assert same_bits(quick(digits, **settings), quick(digits, folder=tmp_path, **settings))


@pytest.mark.filterwarnings("ignore:a task has one class")
@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(tasks=10, selection="held_out"), "task 1 has one class"),
        (dict(first_classes=9, selection="held_out"), "task 2 has one class"),
        (dict(stop_at_epoch=1, selection="held_out"), "selection=held_out first looks at epoch 2"),
        (dict(stop_at_epoch=1, selection="test"), "selection=test first looks at epoch 2"),
        (dict(selection="held_out", class_order_seed=0), "class few has only 2 training images"),
        (dict(batch_size=15), "task 2: the last batch of an epoch has one image"),
    ],
)
def test_what_would_break_later_is_refused_before_the_first_epoch(
    digits, monkeypatch, settings, words
):
    """The images are of 4 x 4 pixels, the features at the end of one: no statistics of a batch."""
    monkeypatch.setattr(training, "TaskTraining", None)  # no epoch can begin
    last = class_incremental_split(digits, 2, seed=0)[1].classes[-1]
    is_few = digits.train_labels == last
    kept = ~is_few | (is_few.cumsum(0) <= (2 if "class_order_seed" in settings else 1e9))
    if "batch_size" in settings:  # 30 images of task 1, and 31 of task 2
        counts = [6, 6, 6, 6, 6, 6, 6, 6, 6, 7]
        kept = torch.zeros_like(is_few)
        for label, count in enumerate(counts):
            kept[(digits.train_labels == label).nonzero()[:count]] = True
    few = replace(
        digits,
        class_names=tuple("few" if c == last else str(c) for c in range(10)),
        train_images=digits.train_images[kept][:, :, ::2, ::2].contiguous(),
        train_labels=digits.train_labels[kept],
        test_images=digits.test_images[:, :, ::2, ::2].contiguous(),
    )
    config = TrainConfig(**{"epochs": 4, "select_every": 2, "device": "cpu", **settings})
    with pytest.raises(InputError, match=words):
        train(config, few, progress=False)


def test_head_rows_at_class_means_do_not_know_the_images_held_out(digits):
    config = TrainConfig(selection="held_out", head_init="class_means", seed=1)
    task = class_incremental_split(digits, 2)[1]
    rest, images, _ = hold_out(task, config.held_out, config.seed)
    teacher = ResNet(8, 5, 1)
    students = [ResNet(8, 5, 1) for _ in range(2)]
    for student, selection, learned in zip(
        students, ("held_out", "last"), (task, rest), strict=True
    ):
        add_head_rows(student, teacher, learned, replace(config, selection=selection))
    assert len(images) and torch.equal(students[0].head.weight[5:], students[1].head.weight[5:])


def test_what_is_no_function_is_refused_before_the_first_epoch(digits, monkeypatch):
    monkeypatch.setattr(training, "TaskTraining", None)  # no epoch can begin
    with pytest.raises(InputError, match="on_epoch=3: give a function"):
        quick(digits, on_epoch=3)


@pytest.mark.parametrize("selection", ["last", "held_out"])
def test_looking_at_the_student_after_every_epoch_leaves_the_run_the_same_bits(digits, selection):
    settings = dict(crop_padding=1, teacher_statistics="batch", selection=selection)
    looked = []

    def look(history, student):
        assert student.training
        features = embed(student, digits.test_images)
        looked.append((len(history), features.clone()))
        assert student.training

    alone, watched = quick(digits, **settings), quick(digits, on_epoch=look, **settings)
    assert same_bits(alone, watched)
    assert [r["loss"] for r in alone.history] == [r["loss"] for r in watched.history]
    assert [count for count, _ in looked] == [1, 2, 3, 4]
    assert not torch.equal(looked[0][1], looked[1][1]), "the student of that epoch, not a copy"
    if selection == "last":
        assert torch.equal(looked[-1][1], embed(watched.models[-1], digits.test_images))


# --- the first task, trained once for all ------------------------------------------------------


@pytest.mark.parametrize("method", ["csd", "fine-tuning", "ce+kd"])
def test_a_shared_first_task_gives_the_same_bits(digits, tmp_path, method):
    config = TrainConfig(method=method, crop_padding=1, lambda_csd=2.0, **QUICK)
    alone = train(config, digits, progress=False)
    first = train(identity.first_task(config), digits, folder=tmp_path / "first", progress=False)
    assert len({id(model) for model in first.models}) == 1 and len(first.models) == 2
    epochs = []
    shared = train(
        config,
        digits,
        folder=tmp_path / "rest",
        first_task=tmp_path / "first",
        on_epoch=lambda history, student: epochs.append(len(history)),
        progress=False,
    )
    assert same_bits(alone, shared) and epochs == [3, 4]
    lines = (tmp_path / "rest" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [r["loss"] for r in alone.history]


def test_what_cannot_share_a_first_task_does_not():
    for method in ("joint", "initial", "initial-ce"):
        assert identity.first_task(TrainConfig(method=method)) is None
    with patch.dict(METHODS, turned=Method("Terms in another order", "triplet+ce+kd")):
        assert identity.first_task(TrainConfig(method="turned")) is None, "other last digits"
    csd = TrainConfig(method="csd", kd_temperature=3.0, teacher_statistics="batch")
    assert identity.first_task(csd) == identity.first_task(TrainConfig(method="fine-tuning"))
    assert identity.first_task(csd) != identity.first_task(replace(csd, margin=0.5))
    assert identity.first_task(csd).method == "initial", "one name for one model"
    read_first = Term("mine", TERMS["ce"].compute, settings=("csd_temperature",), distils=False)
    with patch.dict(TERMS, mine=read_first):
        warmer = identity.first_task(TrainConfig(method="ce+csd+mine", csd_temperature=0.5))
        assert warmer.csd_temperature == 0.5, "a later term reads it, too"
    with patch.dict(
        TERMS, mine=Term("mine", TERMS["csd"].compute, "lambda_own", ("csd_temperature",))
    ):
        config = TrainConfig(method="ce+triplet+mine", lambda_own=3.0)
        assert identity.key(config)["lambda_own"] == 3.0
        assert identity.first_task(config) == identity.first_task(csd)
    assert "lambda_own" not in identity.key(csd), "no term of the kit reads it"
    with patch.dict(METHODS, {"initial-ce": Method("Not the first task", "ce+kd")}):
        assert identity.first_task(TrainConfig(method="ce+csd")) is None
    only_ce = [
        identity.first_task(TrainConfig(method=method)) for method in ("ce", "ce+kd", "ce+csd")
    ]
    assert [first.method for first in only_ce] == ["initial-ce"] * 3 and len({*only_ce}) == 1


def test_a_first_task_of_another_kind_of_device_is_trained_again(digits, own_folders):
    config = TrainConfig(method="csd", **QUICK)
    alone = train(config, digits, progress=False)
    first = run_experiment(identity.first_task(config), digits, progress=False).folder
    saved = read_tensors(first / "checkpoint.pt")
    write_tensors(first / "checkpoint.pt", {**saved, "device": "cuda"})
    found = run_experiment(config, digits, share_first_task=True, progress=False)
    assert same_bits(found, alone)


@pytest.mark.parametrize("tasks_done", [1, 2])
def test_a_run_that_has_trained_its_own_first_task_trains_no_other(digits, own_folders, tasks_done):
    config = TrainConfig(method="ce+kd", **QUICK)
    train(config, digits, folder=run_folder(config, digits), stop_after=tasks_done, progress=False)
    epochs = []
    run_experiment(
        config,
        digits,
        share_first_task=True,
        on_epoch=lambda history, student: epochs.append(history[-1]["task"]),
        progress=False,
    )
    assert epochs == [1] * config.epochs * (2 - tasks_done)


def test_a_first_task_of_other_settings_is_refused(digits, tmp_path):
    other = TrainConfig(method="initial", seed=1, **QUICK)
    train(other, digits, folder=tmp_path, progress=False)
    with pytest.raises(InputError, match="seed 1 -> 0"):
        train(TrainConfig(**QUICK), digits, first_task=tmp_path, progress=False)
    with pytest.raises(InputError, match="nothing' holds no finished run"):
        train(TrainConfig(**QUICK), digits, first_task=tmp_path / "nothing", progress=False)


@pytest.mark.parametrize("name", ["kd", "kd+ce", "ce+ce", "ce+replay", "", "ce+", "CE"])
def test_only_sums_of_terms_in_order_are_methods(name):
    with pytest.raises(InputError, match="unknown method"):
        get_method(name)


def test_a_method_written_as_its_terms_is_that_method():
    assert get_method("ce+triplet+kd") is METHODS["lwf"]
    assert TrainConfig(method="ce+triplet+kd").method == "lwf"


def only(dataset, part, kept):
    """A data set with some of its training or test images."""
    names = (f"{part}_images", f"{part}_labels")
    return replace(dataset, **{name: getattr(dataset, name)[kept] for name in names})


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_without_images_is_said_before_training(digits, part):
    kept = getattr(digits, f"{part}_labels") != 7
    with pytest.warns(UserWarning, match=f"digits: no {part} images of 7"):
        split_classes(only(digits, part, kept), TrainConfig())


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_task_without_images_is_refused_before_training(digits, part):
    kept = getattr(digits, f"{part}_labels") < 5
    with pytest.raises(InputError, match=rf"task 2 \(5, 6, 7, 8, 9\) has no {part} images"):
        train(TrainConfig(), only(digits, part, kept), progress=False)


def test_a_task_in_which_nothing_could_be_found_is_refused_before_training(digits):
    labels = digits.test_labels
    one = torch.cat([(labels == c).nonzero()[:1, 0] for c in range(5, 10)])
    kept = torch.cat([(labels < 5).nonzero()[:, 0], one])
    with pytest.raises(InputError, match="no class with two test images"):
        train(TrainConfig(), only(digits, "test", kept), progress=False)


def test_a_term_that_reads_an_undeclared_setting_is_refused(digits):
    hidden = Term("hidden", lambda o, s: s.csd_temperature * o.features.square().mean())
    with (
        patch.dict(TERMS, hidden=hidden),
        pytest.raises(InputError, match=r"reads the setting csd_"),
    ):
        train(TrainConfig(method="ce+hidden", epochs=1), digits, progress=False)
    declared = replace(hidden, settings=("csd_temperature",))
    with patch.dict(TERMS, hidden=declared):
        train(TrainConfig(method="ce+hidden", epochs=1), digits, progress=False)


def test_a_term_without_a_gradient_or_with_a_weight_that_is_no_setting_is_said(digits):
    detached = Term("detached", lambda o, s: o.features.detach().square().mean(), distils=False)
    with (
        patch.dict(TERMS, detached=detached),
        pytest.warns(UserWarning, match="the loss term 'detached' has no gradient"),
    ):
        train(TrainConfig(method="ce+detached", tasks=1, epochs=1, device="cpu"), digits)
    with pytest.raises(InputError, match="weight='lambda_mine': choose one of"):
        Term("own", detached.compute, "lambda_mine")


def test_a_network_that_began_collapsed_is_told_from_a_high_rate():
    health = Health(5, 0.0)
    record = {"task": 0, "epoch": 0, "loss": 1.6, "ce": 1.6, "spread": -1e-8, "learning_rate": 1.0}
    with pytest.raises(TrainingError, match="the network began like that") as error:
        health.check(record, finite=True, last=True)
    assert "learning rate" not in str(error.value)
