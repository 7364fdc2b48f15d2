"""A recorded model for others: ``model.safetensors`` with a model card, as model hubs expect it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from csd_lib import REPOSITORY, InputError, __version__, checks, identity
from csd_lib.config import TrainConfig
from csd_lib.experiment import last_model
from csd_lib.files import make_folder, write_atomically
from csd_lib.methods import get_method
from csd_lib.model import Network
from csd_lib.networks import RANDOM
from csd_lib.output import printable
from csd_lib.paper.ledger import SAFETENSORS, load_model, record_folders
from csd_lib.paper.report import render, render_matrix
from csd_lib.record import Record
from csd_lib.retrieval import average, forgetting

CARD = "README.md"
# The data sets' names on the hub; own images, and the kit's own extracts of others, have none.
HUB_DATASETS = {"cifar100": "uoft-cs/cifar100"}
TAGS = ["continual-learning", "image-retrieval", "representation-learning"]
CITATION = """@inproceedings{barletti2022contrastive,
  title = {Contrastive Supervised Distillation for Continual Representation Learning},
  author = {Barletti, Tommaso and Biondi, Niccol{\\`o} and Pernici, Federico and Bruni, Matteo and
            Del Bimbo, Alberto},
  booktitle = {Image Analysis and Processing, ICIAP 2022},
  pages = {597--609},
  year = {2022},
  publisher = {Springer},
  doi = {10.1007/978-3-031-06427-2_50}
}"""


def load_exported(what: str | Path) -> tuple[Network, Record]:
    """Return the last model and the record of a run, of a record, or of what was exported.

    ``what`` is its folder, or that of a record below the ``record_folders()``. InputError if there
    is none, or it kept no model.
    """
    checks.path("what", what, "the folder of a run or of a record")
    places = [Path(what), *(folder / what for folder in record_folders())]
    for place in places:
        if (place / "results.json").is_file():
            record = Record.read(place / "results.json")
            return (load_model if record.files else last_model)(record), record
    raise InputError(f"{str(what)!r} holds no results.json: give the folder of a run or a record")


def export(what: str | Path, into: str | Path) -> Path:
    """Write the last model of a run or record, its record and a model card into a new folder.

    No path of this machine is written: of own images and weights the last part of the name stays.

    Args:
        what: as of ``load_exported``.
        into: the folder; it may hold other files, but no model or card.

    Returns:
        The model's file.

    Raises:
        InputError: if there is no model, safetensors is missing, or the folder has such files.
    """
    with checks.needs_extra("export"):
        from safetensors.torch import save
    model, record = load_exported(what)
    folder = make_folder(into)
    for name in (SAFETENSORS, "results.json", CARD):
        if (folder / name).exists():
            raise InputError(f"{folder} already has {name}: choose a new folder")
    # Copies: the format refuses weights that two layers share.
    state = {name: value.cpu().contiguous().clone() for name, value in model.state_dict().items()}
    packed = save(state, {"format": "pt"})
    path = folder / SAFETENSORS
    write_atomically(path, lambda partial: partial.write_bytes(packed))
    files = {SAFETENSORS: hashlib.sha256(packed).hexdigest()}
    public = replace(record, config=_without_places(record.config), files=files)
    public.write(folder / "results.json")
    card = render_card(public, sum(value.numel() for value in model.parameters()))
    content = card.encode(errors="replace")
    write_atomically(folder / CARD, lambda partial: partial.write_bytes(content))
    return path


def render_card(record: Record, parameters: int) -> str:
    """Write the model card of a record whose paths may be published, with the model's size."""
    config, method = record.config, get_method(record.config.method)
    header = [f"{name}: {json.dumps(value)}" for name, value in _metadata(record).items()]
    source = "" if "_" in REPOSITORY.split("/")[0] else f" (https://github.com/{REPOSITORY})"
    values = sorted(identity.key(config).items())
    settings = "\n".join(f"| {name} | `{printable(str(value))}` |" for name, value in values)
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    limits = "\n".join(f"* {printable(limit)}" for limit in _limits(record))
    channels = record.image_shape[0] if record.image_shape else "C"
    input_form = f"uint8 images [N, {channels}, H, W]"
    if config.network == "features":
        input_form = f"float32 features [N, {channels}, 1, 1]"
    return f"""---
{chr(10).join(header)}
---

# {_name(config)}

A network that turns an image into a feature vector for search, with a classifier on top.

* method: {method.title}, with the losses `{method.recipe}`
* data: {printable(identity.data_name(config))}, in {config.tasks} task(s)
* network: `{printable(str(config.network))}`, {parameters:,} parameters

## Use

`pip install 'csd-lib[export]'`{source}, then, with this folder as `model`:

```python
import csd_lib.api as csd
from csd_lib.export import load_exported

network, record = load_exported("model")
features = csd.embed(network, images)  # {input_form}
```

`csd train --init-from model/{SAFETENSORS}` and the settings below goes on training.

## Training

| setting | value |
| --- | --- |
{settings}

* recorded on {printable(record.date)}, {printable(record.device)} ({printable(versions)})
* hash of the data: `{printable(record.data or "not recorded")}`
* fingerprint of the code: `{printable(record.fingerprint or "not recorded")}`

## Results on the test images

{printable(render([record], markdown=True))}

```
{render_matrix(record.matrix)}
```

## Limits

{limits}

## Citation

```bibtex
{CITATION}
```

This card was written by csd-lib {__version__} from the record beside it, `results.json`.
"""


def _name(config: TrainConfig) -> str:
    method = config.method.replace("+", "-")
    return f"csd-kit-{identity.data_name(config)}-{method}-{config.tasks}tasks"


def _metadata(record: Record) -> dict[str, Any]:
    config, matrix = record.config, record.matrix
    found = {
        "Recall@1, own classes": ("recall", average(matrix.own)),
        "Recall@1, all classes seen": ("recall", average(matrix.seen)),
        "Forgetting of Recall@1, all classes seen": ("recall", forgetting(matrix.seen)),
        "Accuracy, all classes seen": ("accuracy", average(matrix.accuracy)),
    }
    metrics = [
        {"type": kind, "name": name, "value": round(value, 4)}
        for name, (kind, value) in found.items()
        if value == value  # forgetting of a single task is NaN
    ]
    data = identity.data_name(config)
    dataset = HUB_DATASETS.get(data)
    result = {
        "task": {"type": "image-feature-extraction", "name": "Image retrieval"},
        "dataset": {
            "type": dataset or data,
            "name": f"{data}, {config.tasks} tasks",
            "split": "test",
        },
        "metrics": metrics,
    }
    return {
        "license": "mit",
        "library_name": "csd-lib",
        "pipeline_tag": "image-feature-extraction",
        "tags": TAGS,
        **({"datasets": [dataset]} if dataset else {}),
        "metrics": ["recall", "accuracy"],
        "model-index": [{"name": _name(config), "results": [result]}],
    }


def _limits(record: Record) -> list[str]:
    """Say what a reader might take for granted and must not."""
    config, data = record.config, identity.data_name(record.config)
    found = [
        f"One run with one seed ({config.seed}): another seed gives other numbers.",
        f"Measured on {data}'s test images only; other images were not tried.",
        "Nobody has looked for unfair differences between groups of people or kinds of images.",
        "The license is the kit's; what the images and other weights allow is for their makers.",
    ]
    if data == "own":
        found.append("The images are its maker's own, so nobody else can repeat the numbers.")
    if config.selection == "test":
        found.append("The model was chosen by its test images, so its numbers are too good.")
    if config.stop_at_epoch:
        found.append(f"Stopped at epoch {config.stop_at_epoch} of a longer schedule.")
    if config.weights != RANDOM:
        found.append(f"It began with {config.weights} weights, which have learned other images.")
    if config.init_from:
        found.append(f"It went on from {config.init_from}, which has learned images before.")
    return found


def _without_places(config: TrainConfig) -> TrainConfig:
    """Return a config that names the last part of each path; it is the same run."""
    weights = Path(str(config.weights)).name  # of a file; the names of others have no folder
    model = Path(config.init_from).name if config.init_from else None
    is_own = identity.data_name(config) == "own"
    dataset = f"./{Path(config.dataset).name}" if is_own else config.dataset
    return replace(config, dataset=dataset, weights=weights, init_from=model)
