"""Everything that decides a run, in one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from csd_lib import checks
from csd_lib.checks import setting
from csd_lib.datasets import MAX_CLASSES, get_spec
from csd_lib.methods import METHODS, LossSettings, get_method
from csd_lib.networks import PUBLISHED, RANDOM, check_file, check_name

# ``int | Default`` is given as an int or left at None, but always read as an int, because a config
# fills it in when it is made. So Default is None to Python, and nothing to a type checker.
if TYPE_CHECKING:
    from typing import Never as Default
else:
    Default = None
# What a field left at None becomes, from three sources; a later one counts more.
# 1. What small images want, and our decisions where the paper is silent or at odds with its code.
_DEFAULTS: dict[str, Any] = dict(
    network="resnet",
    depth=8,
    milestones=(),
    crop_padding=0,
    flip=False,
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


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LossSettings):
    """Everything that decides a run. It is stored with the run's results.

    ``csd train --help`` says of each setting what it means and what it is if it is left out.
    """

    dataset: str = setting("digits", lambda name, value: get_spec(value))
    """Data set: one of datasets.DATASETS, or the path of a folder of images or an .npz file."""
    image_size: int | None = setting(None, checks.whole, 1, 4096, optional=True, decides="data")
    """Scale a folder's images to this height and width (None: as the network's weights want)."""
    preset: str = setting("clean", checks.text)
    """Where settings left out come from: clean, reference (what the published code does, traps
    included) or class (CIFAR-100 in 25 instead of 800 epochs)."""
    method: str = setting("csd", lambda name, value: get_method(value))
    """Method: one of methods.METHODS, or a sum of terms such as ce+kd. (initial-ce is what ce,
    ce+kd and so on have learned after the first task.)"""
    tasks: int = setting(2, checks.whole, 1, MAX_CLASSES)
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
    weights: str | Default = setting(None, check_file, RANDOM, PUBLISHED, decides="data")
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
    depth: int | Default = setting(None, checks.whole, 8, 1202)
    """Layers of the ResNet, 6n + 2 (None: what the data set names; in the paper 32)."""
    epochs: int | Default = setting(None, checks.epochs)
    """Epochs per task (None: what the data set and the preset name; 800 for cifar100 as in the
    paper)."""
    later_epochs: int | None = setting(None, checks.epochs, optional=True, decides="later")
    """Epochs of each later task (None: as the first, or what the preset names)."""
    stop_at_epoch: int | None = setting(None, checks.epochs, optional=True)
    """Stop each task at this epoch of its schedule (None: at its end). The run is then a prefix of
    the whole one, which can go on from it."""
    batch_size: int | Default = setting(None, checks.whole, 2, 16_384, "losses compare images")
    """Images per step (None: what the data set names; in the paper 128)."""
    learning_rate: float | Default = setting(None, checks.number, above=0, at_most=100)
    """Learning rate on the first task (None: what data set and preset name; in the paper 1e-3)."""
    later_learning_rate: float | Default = setting(
        None, checks.number, above=0, at_most=100, decides="later"
    )
    """Learning rate on later tasks (None: what data set and preset name; in the paper 1e-5)."""
    optimizer: str = setting("adam", checks.one_of, ("adam", "sgd"))
    """Optimiser: adam (paper) or sgd with momentum 0.9."""
    milestones: tuple[float, ...] | Default = setting(None, checks.milestones)
    """When to divide the learning rate by 10, in fractions of a task's epochs or, from 1 on, in
    epochs (None: what data set and preset name; for cifar100 0.25 0.5 0.75, the published
    code's 200, 400, 600 of 800)."""
    schedule: str | Default = setting(None, checks.one_of, ("steps", "one_cycle"))
    """Learning rate over a task: steps (at the milestones; paper) or one_cycle (rises for a fifth
    of the epochs, then falls to zero)."""
    weight_decay: float = setting(5e-4, checks.number, at_least=0, at_most=100)
    """L2 penalty inside the optimiser, on every parameter (paper)."""
    crop_padding: int | Default = setting(None, checks.whole, 0, 64)
    """Black pixels around an image before the random crop (None: what the data set names; 4 for
    cifar100 and images of one's own)."""
    flip: bool | Default = setting(None, checks.flag)
    """Mirror images at random (None: what the data set names; True for cifar100 and images of one's
    own, False for digits and fashion)."""
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
    select_every: int = setting(2, checks.epochs)
    """Epochs between two looks of the selection (published code: 2)."""
    held_out: float = setting(0.1, checks.number, above=0, at_most=0.5)
    """Share of each class's training images that selection=held_out does not train on."""
    seed: int = setting(0, checks.seed)
    """Decides the initial weights, the order of the images and their augmentation."""
    device: str = setting("auto", checks.instance, str, "its name, such as cpu", decides="machine")
    """Where to train: auto (a CUDA GPU if there is one), cpu, cuda, cuda:1, mps."""
    precision: str = setting("fp32", checks.one_of, ("fp32", "tf32", "amp"))
    """fp32, tf32 (NVIDIA from compute capability 8.0) or amp (bfloat16; float16 on older GPUs)."""
    cuda_graph: str = setting("auto", checks.automatic, decides="machine")
    """Replay steps as a CUDA graph: auto (if a trial finds it right and faster), true or false."""

    def __post_init__(self) -> None:
        data = get_spec(self.dataset)
        object.__setattr__(self, "preset", "clean" if self.preset is None else self.preset)
        presets = {**PRESETS, **data.presets}
        checks.one_of("preset", self.preset, presets, f" for {self.dataset}")
        defaults = {**_DEFAULTS, **data.defaults, **presets[self.preset]}
        later_is_left_out = self.later_epochs is None
        network = defaults["network"] if self.network is None else self.network
        if isinstance(network, str) and network == "features":  # which are no images
            defaults |= dict(crop_padding=0, flip=False)
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
        if self.network == "resnet":
            checks.depth("depth", self.depth)
        data.check(self.dataset, self.tasks, self.first_classes, self.image_size)

    def schedule_length(self, task: int) -> int:
        """Return the epochs of the schedule of a task, counted from 0."""
        return self.epochs if task == 0 else self.later_epochs or self.epochs

    def epochs_to_run(self, task: int) -> int:
        """Return the epochs that a task, counted from 0, is trained for."""
        return min(self.schedule_length(task), self.stop_at_epoch or checks.MAX_EPOCHS)

    def learns_later(self) -> bool:
        """Say whether there is a second task that is learned after the first."""
        method = get_method(self.method)
        return self.tasks > 1 and method.learns_later and not method.joint

    def times_learned(self) -> int:
        """Return how often something is learned: once for each task, or only once."""
        return self.tasks if self.learns_later() else 1
