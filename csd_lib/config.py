"""Everything that decides a run, in one frozen dataclass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from csd_lib import InputError, checks
from csd_lib.checks import setting
from csd_lib.datasets import get_spec, is_path
from csd_lib.methods import FIRST_TASK, METHODS, TERMS, LossSettings, Term, get_method
from csd_lib.networks import DEFAULTS, RANDOM, check_file, check_name, check_weights

# ``int | Default`` is given as an int or left at None, but always read as an int, because a config
# fills it in when it is made. So Default is None to Python, and nothing to a type checker.
if TYPE_CHECKING:
    from typing import Never as Default
else:
    Default = None
# What a field left at None becomes, from three sources; a later one counts more.
# 1. Our decisions where the paper is silent or its code is at odds with it.
_DEFAULTS: dict[str, Any] = dict(
    network="resnet",
    weights=RANDOM,
    backbone_rate=1.0,
    schedule="steps",
    head_init="random",
    teacher_statistics="running",
    selection="last",
)
# 2. The data set's own, in datasets.DATASETS.
# 3. The preset: one of these, or one of the data set's own.
PRESETS: dict[str, dict[str, Any]] = {
    # The method done right: a frozen teacher, the last epoch's model, milestones as fractions.
    "clean": dict(),
    # What the published code does, with its traps. (Margin 1, KD temperature 2 without T^2, black
    # crop padding before normalisation and the kept last batch are common to all presets.)
    "reference": dict(
        teacher_statistics="batch",  # its teacher stays in train mode
        selection="test",  # it keeps the model that is best on the test images
        milestones=(200, 400, 600),  # epochs, so a shorter run never gets there
    ),
}
# Limits are far beyond what makes sense, and far below what fills a memory or never ends.
MAX_EPOCHS = 100_000
MAX_CLASSES = 10_000  # of images of one's own, which are not known here


def _check_milestones(name: str, value: Any) -> None:
    if isinstance(value, list | tuple) and {type(m) for m in value} <= {int, float}:
        fractions = all(0 < m < 1 for m in value)
        epochs = all(1 <= m <= MAX_EPOCHS and m == int(m) for m in value)
        if (fractions or epochs) and list(value) == sorted(set(value)):
            return
    raise InputError(
        f"{name}={checks.shown(value)}: give rising fractions between 0 and 1, or rising whole "
        f"epochs"
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LossSettings):
    """Everything that decides a run. It is stored with the run's results."""

    dataset: str = setting("digits", lambda name, value: get_spec(value))
    """Data set: digits, fashion, cifar100, or the path of a folder of images or an .npz file."""
    image_size: int | None = setting(None, checks.whole, 1, 4096, optional=True, decides="data")
    """Scale the images of a folder to this height and width (None: as the network's weights want
    it, or they have one size)."""
    preset: str = setting("clean", checks.text)
    """Where settings left out come from: clean, reference (what the published code does, traps
    included) or class (CIFAR-100 in 25 instead of 800 epochs)."""
    method: str = setting("csd", lambda name, value: get_method(value))
    """Method: initial, fine-tuning, lwf, mmd, mmd-kd, fecd, csd, joint, or a sum of terms such as
    ce+kd. (initial-ce is what ce, ce+kd and so on have learned after the first task.)"""
    tasks: int = setting(2, checks.whole, 1)
    """Number of tasks that the classes are split into."""
    first_classes: int | None = setting(None, checks.whole, 1, MAX_CLASSES, optional=True)
    """Classes of the first task; the other tasks share the rest (None: all tasks are equal; half of
    them for the paper's fine-grained data sets)."""
    class_order_seed: int | None = setting(None, checks.seed, optional=True)
    """Seed of a random class order (None: label order, as in the paper)."""
    network: str | Default = setting(None, check_name)
    """Network: resnet, the paper's for small images; features, for features made elsewhere;
    efficientnet:lite0, torchvision:NAME or timm:NAME; or package.module:Class (None: resnet, or
    what the data set names)."""
    weights: str | Default = setting(None, check_weights, decides="data")
    """Weights that the network begins with: random, published (by its library), or a file of its
    state (None: random, or what the data set names)."""
    init_from: str | None = setting(None, check_file, optional=True, decides="data")
    """Model file of this kit, .pt or .safetensors, whose weights training goes on from (None: the
    network's own beginning). A head for another number of classes begins anew."""
    embedding: int | None = setting(None, checks.whole, 1, 100_000, optional=True)
    """Size of a linear layer on top of the network's features (None: no such layer)."""
    backbone_rate: float | Default = setting(None, checks.number, at_least=0, at_most=1000)
    """Learning rate of what is below embedding and classifier, as a multiple of theirs (0: frozen;
    None: 1, and 10 in the paper's fine-grained experiments)."""
    depth: int | Default = setting(None, checks.whole, 8, 1202, "a ResNet has 6n + 2 layers")
    """Layers of the ResNet, 6n + 2 (None: 32 for cifar100, else 8)."""
    epochs: int | Default = setting(None, checks.whole, 1, MAX_EPOCHS)
    """Epochs per task (None: what the data set and the preset name; 800 for cifar100 as in the
    paper)."""
    later_epochs: int | None = setting(
        None, checks.whole, 1, MAX_EPOCHS, optional=True, decides="later"
    )
    """Epochs of each later task (None: as the first, or what the preset names)."""
    stop_at_epoch: int | None = setting(None, checks.whole, 1, MAX_EPOCHS, optional=True)
    """Stop each task at this epoch of its schedule (None: at its end). The run is then a prefix of
    the whole one, which can go on from it."""
    batch_size: int | Default = setting(
        None, checks.whole, 2, 16_384, "the losses compare images of one batch"
    )
    """Images per step (None: 128 for cifar100 as in the paper, else 64)."""
    learning_rate: float | Default = setting(None, checks.number, above=0, at_most=100)
    """Learning rate on the first task (None: 1e-3, as in the paper)."""
    later_learning_rate: float | Default = setting(
        None, checks.number, above=0, at_most=100, decides="later"
    )
    """Learning rate on later tasks (None: 1e-5 for cifar100 as in the paper, 1e-2 for digits, 1e-3
    for fashion)."""
    optimizer: str = setting("adam", checks.one_of, ("adam", "sgd"))
    """Optimiser: adam (paper) or sgd with momentum 0.9."""
    milestones: tuple[float, ...] | Default = setting(None, _check_milestones)
    """When to divide the learning rate by 10, in fractions of a task's epochs or, from 1 on, in
    epochs (None: 0.25 0.5 0.75 for cifar100, the published code's 200, 400, 600 of 800; else
    never)."""
    schedule: str | Default = setting(None, checks.one_of, ("steps", "one_cycle"))
    """Learning rate over a task: steps (at the milestones; paper) or one_cycle (rises for a fifth
    of the epochs, then falls to zero)."""
    weight_decay: float = setting(5e-4, checks.number, at_least=0, at_most=100)
    """L2 penalty inside the optimiser, on every parameter (paper)."""
    crop_padding: int | Default = setting(None, checks.whole, 0, 64)
    """Black pixels around an image before the random crop (None: 4 for cifar100, else 0)."""
    flip: bool | Default = setting(None, checks.flag)
    """Mirror images at random (None: True for cifar100, else False)."""
    head_init: str | Default = setting(
        None, checks.one_of, ("random", "class_means"), decides="later"
    )
    """New head rows: random (published code) or class_means of the teacher's features."""
    teacher_statistics: str | Default = setting(
        None, checks.one_of, ("running", "batch"), decides="later"
    )
    """Batch normalisation of the teacher: running (frozen) or batch (published code: it normalises
    with the statistics of the current batch)."""
    selection: str | Default = setting(None, checks.one_of, ("last", "test", "held_out"))
    """Which model a task hands on: that of the last epoch, or the one with the best Recall@1 on the
    test images (published code: they decide what is then reported) or on held_out images."""
    select_every: int = setting(2, checks.whole, 1, MAX_EPOCHS)
    """Epochs between two looks of the selection (published code: 2)."""
    held_out: float = setting(0.1, checks.number, above=0, at_most=0.5)
    """Share of each class's training images that selection=held_out does not train on."""
    seed: int = setting(0, checks.seed)
    """Decides the initial weights, the order of the images and their augmentation."""
    device: str = setting(
        "auto", checks.instance, str, "its name, such as auto or cpu", decides="machine"
    )
    """Where to train: auto (a CUDA GPU if there is one), cpu, cuda, cuda:1, mps."""
    precision: str = setting("fp32", checks.one_of, ("fp32", "tf32", "amp"))
    """fp32, tf32 (NVIDIA from compute capability 8.0) or amp (bfloat16; float16 on older GPUs)."""
    cuda_graph: str = setting("auto", checks.automatic, decides="machine")
    """Replay steps as a CUDA graph: auto (if a trial finds it right and faster), true or false."""

    def __post_init__(self) -> None:
        data = get_spec(self.dataset)
        object.__setattr__(self, "preset", "clean" if self.preset is None else self.preset)
        presets = {**PRESETS, **data.presets}
        if not isinstance(self.preset, str) or self.preset not in presets:
            raise InputError(
                f"preset={checks.shown(self.preset)}: choose one of {', '.join(presets)} for "
                f"{self.dataset}"
            )
        defaults = {**_DEFAULTS, **data.defaults, **presets[self.preset]}
        later_is_left_out = self.later_epochs is None
        network = defaults["network"] if self.network is None else self.network
        defaults |= DEFAULTS.get(network, {}) if isinstance(network, str) else {}
        for name, default in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        super().__post_init__()
        if later_is_left_out and self.later_epochs:  # who tries one epoch means it of all tasks
            object.__setattr__(self, "later_epochs", min(self.later_epochs, self.epochs))
        method = get_method(self.method)
        if self.method not in METHODS and method in METHODS.values():  # one recipe has one name
            name = next(name for name in METHODS if METHODS[name] is method)
            object.__setattr__(self, "method", name)
        # The command line reads whole epochs as 200.0, JSON makes lists of tuples.
        whole = [int(m) if m >= 1 else m for m in self.milestones]
        object.__setattr__(self, "milestones", tuple(whole))
        object.__setattr__(self, "cuda_graph", str(self.cuda_graph).lower())
        if self.network == "resnet" and self.depth % 6 != 2:
            raise InputError(f"depth={self.depth}: a ResNet has 6n + 2 layers: 8, 14, 20, 32")
        if self.image_size is not None and not data.scaled:
            raise InputError(
                f"image_size={self.image_size}: {self.dataset} has images of one size: leave it out"
            )
        classes = data.classes or MAX_CLASSES
        if self.tasks > classes:
            raise InputError(
                f"tasks={self.tasks}: {self.dataset} has {classes} classes, and every task "
                f"needs one"
            )
        checks.first_classes(self.first_classes, self.tasks, classes)

    @classmethod
    def from_stored(cls, content: dict[str, Any]) -> TrainConfig:
        """Return a config that was written down, whatever its preset names today.

        All that a preset names was filled in by then, so None means what it says.
        """
        known = {part.name for part in fields(cls)}
        if unknown := sorted(set(content) - known):
            raise InputError(f"it has settings that this kit does not have: {', '.join(unknown)}")
        config = cls(**content)
        if content.get("later_epochs") is None and config.later_epochs:
            return replace(config, later_epochs=config.epochs)
        return config

    def stored(self) -> dict[str, Any]:
        """Return what is written down: all settings but those of loss terms that it does not have.

        So the weight of a term that somebody has added to a copy of the kit is in that copy's runs
        of this term, and all others can be read here.
        """
        unread = get_method(self.method).unused_settings()
        return {name: value for name, value in asdict(self).items() if name not in unread}

    def settings(self, *without: str) -> dict[str, Any]:
        """Return all settings but the machine's, read in this run or not: what a table shares.

        Where images and initial weights lie is not among them: the hash of the data says what they
        are.
        """
        found = {
            part.name: getattr(self, part.name)
            for part in fields(self)
            if part.name not in without and part.metadata["decides"] not in ("machine", "data")
        }
        return found | ({"dataset": self.data_name} if "dataset" in found else {})

    @property
    def data_name(self) -> str:
        """Name of the data set, and ``own`` for all images of one's own, wherever they lie."""
        return "own" if is_path(self.dataset) else self.dataset

    def key(self, *without: str) -> dict[str, Any]:
        """Return the settings that decide the result: equal for two runs of the same thing.

        Not among them are the machine's, the preset (which only fills in other settings), those
        that this method or selection does not read, and those named in ``without``.
        """
        left_out = {"preset", *get_method(self.method).unused_settings(), *without}
        if self.later_epochs in (None, self.epochs):
            left_out.add("later_epochs")
        if self.tasks == 1:
            left_out.add("first_classes")
        learned = range(self.tasks if self.learns_later() else 1)
        if all(self.epochs_to_run(t) == self.schedule_length(t) for t in learned):
            left_out.add("stop_at_epoch")
        left_out |= {"last": {"select_every", "held_out"}, "test": {"held_out"}}.get(
            self.selection, set()
        )
        if not self.learns_later():
            left_out |= {part.name for part in fields(self) if part.metadata["decides"] == "later"}
        return self.settings(*left_out)

    def unread(self) -> list[str]:
        """Return the settings, as ``name=value``, that were changed and change nothing here."""
        usual = TrainConfig(dataset=self.dataset, preset=self.preset, network=self.network)
        unread = self.settings().keys() - self.key().keys() - {"preset"}
        if self.learns_later():
            unread -= {"later_epochs"}  # as many as the first task's
        values = {name: getattr(self, name) for name in sorted(unread)}
        return [f"{n}={value}" for n, value in values.items() if value != getattr(usual, n)]

    def schedule_length(self, task: int) -> int:
        """Return the epochs of the schedule of a task, counted from 0."""
        return self.epochs if task == 0 else self.later_epochs or self.epochs

    def epochs_to_run(self, task: int) -> int:
        """Return the epochs that a task, counted from 0, is trained for."""
        return min(self.schedule_length(task), self.stop_at_epoch or MAX_EPOCHS)

    def learns_later(self) -> bool:
        """Say whether there is a second task that is learned after the first."""
        method = get_method(self.method)
        return self.tasks > 1 and method.learns_later and not method.joint

    def first_task(self) -> TrainConfig | None:
        """Return the config whose only task is this one's first, or None if none can be shared.

        Methods with the same plasticity terms learn the same model on the first task; method
        ``initial``, or ``initial-ce``, is that model, so it is trained once for all of them.
        """
        method = get_method(self.method)
        learned = method.term_names(False)
        in_order = [*learned] == [name for name in TERMS if name in learned]
        if method.joint or not method.learns_later or not in_order:
            return None  # terms in another order add up to other last digits
        later = [term for term in TERMS.values() if term.distils]
        names = _settings_of(later) - _settings_of([TERMS[name] for name in learned])
        names |= {part.name for part in fields(self) if part.metadata["decides"] == "later"}
        unset: dict[str, Any] = {
            part.name: part.default for part in fields(self) if part.name in names
        }
        recipe = "+".join(learned)
        first = replace(self, method=FIRST_TASK + recipe, **unset)
        found = get_method(first.method)  # a method of that name may have been registered
        return first if found.recipe == recipe and not found.learns_later else None


def _settings_of(terms: Iterable[Term]) -> set[str]:
    """Return the names of all settings that some terms read."""
    return {name for term in terms for name in (term.weight, *term.settings)}
