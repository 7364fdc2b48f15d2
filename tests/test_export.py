"""A recorded model for others. What needs safetensors is in tests/integrations."""

import io
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from csd_lib import InputError, identity
from csd_lib.config import TrainConfig
from csd_lib.experiment import run_experiment
from csd_lib.export import CARD, CITATION, _without_places, export, load_exported, render_card
from csd_lib.files import pack_tensors
from csd_lib.model import Network
from csd_lib.paper.ledger import load_records, write_record
from csd_lib.retrieval import average

ROOT = Path(__file__).resolve().parent.parent
QUICK = dict(epochs=1, device="cpu")


def states_agree(first, second):
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.fixture(scope="module")
def record():
    records = load_records(ROOT / "data" / "results" / "cifar100")
    (found,) = (r for r in records if r.config.method == "csd" and "model.pt" in r.files)
    return found


@pytest.mark.parametrize("method", ["csd", "joint", "initial"])
def test_the_last_model_of_a_run_and_of_its_record_is_found(digits, own_folders, method):
    run = run_experiment(TrainConfig(method=method, **QUICK), digits, progress=False)
    place = write_record(run, own_folders / "results" / "digits" / "mine", keep_models=True)
    for what in (run.folder, place, str(place), "digits/mine"):
        model, found = load_exported(what)
        assert states_agree(model, run.models[-1]) and found.data == run.record.data
    for path in run.folder.glob("*.pt"):
        path.unlink()
    with pytest.raises(InputError, match=r"model-task\d.pt is missing"):
        load_exported(run.folder)
    with pytest.raises(InputError, match="'nothing' holds no results"):
        load_exported("nothing")


def test_a_card_says_in_its_header_and_text_what_the_record_says(record):
    card = render_card(record, 469_904)
    _, header, text = card.split("---\n", 2)
    about = yaml.safe_load(header)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["license"] == project["license"].lower()
    assert about["library_name"] == project["name"]
    assert about["datasets"] == ["uoft-cs/cifar100"]
    ((result,),) = (model["results"] for model in about["model-index"])
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    for part, name in (("own", "own classes"), ("seen", "all classes seen")):
        expected = average(getattr(record.matrix, part))
        assert values[f"Recall@1, {name}"] == pytest.approx(expected, abs=1e-4)
        assert f"average {100 * expected:.1f}" in text
    for name, value in identity.key(record.config).items():
        assert f"| {name} | `{value}` |" in text
    assert record.date in text and "469,904 parameters" in text


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(selection="test"), "numbers are too good"),
        (dict(stop_at_epoch=1), "Stopped at epoch 1"),
        (dict(init_from="old.pt"), "went on from old.pt"),
        (dict(weights="published"), "began with published weights"),
        (dict(dataset="./pets", preset="clean"), "nobody else can repeat"),
    ],
)
def test_a_card_names_the_limits_of_its_run(record, settings, words):
    plain = render_card(record, 1)
    changed = render_card(replace(record, config=replace(record.config, **settings)), 1)
    assert words in changed and words not in plain


def test_a_card_says_what_goes_into_a_network_of_images_and_one_of_features(record):
    assert "# uint8 images [N, 3, H, W]" in render_card(record, 1)
    config = replace(record.config, network="features")
    made = replace(record, config=config, image_shape=(1280, 1, 1))
    assert "# float32 features [N, 1280, 1, 1]" in render_card(made, 1)


def test_a_card_of_one_task_has_no_forgetting(digits, own_folders):
    run = run_experiment(TrainConfig(tasks=1, **QUICK), digits, progress=False)
    about = yaml.safe_load(render_card(run.record, 1).split("---\n")[1])
    names = [m["name"] for m in about["model-index"][0]["results"][0]["metrics"]]
    assert len(names) == 3 and "datasets" not in about


def test_what_is_published_names_no_folder_of_this_machine():
    places = dict(dataset="/home/anna/pets", weights="/home/anna/w.pt", init_from="/home/anna/m.pt")
    config = TrainConfig(**places)
    public = _without_places(config)
    assert "anna" not in str(public) and identity.key(public) == identity.key(config)
    assert (public.dataset, public.weights, public.init_from) == ("./pets", "w.pt", "m.pt")
    assert _without_places(TrainConfig()) == TrainConfig()
    archive = _without_places(TrainConfig(dataset="/home/anna/pets.npz"))
    assert archive.dataset == "./pets.npz"


def test_the_card_cites_the_paper_as_the_citation_file_does():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert cited["title"] in CITATION and cited["doi"] in CITATION
    assert f"{cited['start']}--{cited['end']}" in CITATION and str(cited["year"]) in CITATION
    families = [author["family-names"] for author in cited["authors"]]
    assert re.sub(r"\s+", " ", CITATION).count(" and ") >= len(families) - 1
    assert [name for name in families if name not in CITATION] == []


class Tied(Network):
    """Two layers that share a weight."""

    def __init__(self, config, mean, std):
        super().__init__(64, mean, std)
        self.one, self.other = nn.Linear(64, 64), nn.Linear(64, 64)
        self.other.weight = self.one.weight

    def backbone(self, images):
        return self.other(self.one(images.flatten(1)).relu())


@pytest.fixture
def stand_in(monkeypatch):
    """A stand-in of safetensors, which refuses weights that share memory as that does."""

    def save(tensors, _):
        assert len({tensor.data_ptr() for tensor in tensors.values()}) == len(tensors)
        return bytes(pack_tensors(tensors))

    def load_file(path):  # from memory: of a path that ends so, torch would ask safetensors
        return torch.load(io.BytesIO(path.read_bytes()))

    module = SimpleNamespace(save=save, load_file=load_file)
    package = SimpleNamespace(SafetensorError=ValueError, torch=module)
    monkeypatch.setitem(sys.modules, "safetensors", package)
    monkeypatch.setitem(sys.modules, "safetensors.torch", module)


def test_a_network_whose_layers_share_a_weight_is_exported_and_loads_again(
    digits, own_folders, stand_in, tmp_path
):
    config = TrainConfig(network=f"{__name__}:Tied", **QUICK)
    run = run_experiment(config, digits, progress=False)
    model, _ = load_exported(export(run.folder, tmp_path / "out").parent)
    assert states_agree(model, run.models[-1]) and model.one.weight is model.other.weight


def test_without_safetensors_its_extra_is_named_and_nothing_is_written(
    record, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"pip install 'csd-lib\[export\]'"):
        export(record.folder, tmp_path / "new")
    assert not (tmp_path / "new" / CARD).exists()
