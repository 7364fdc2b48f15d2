"""The commands, as ``csd train``; ``csd --help`` lists them."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from csd_lib import InputError, TrainingError, checks, identity
from csd_lib.config import PRESETS, TrainConfig
from csd_lib.datasets import DATASETS, are_scaled, is_path, load_dataset
from csd_lib.files import make_folder
from csd_lib.fine_grained import FINE_GRAINED, check_fine_grained, fetch_fine_grained
from csd_lib.methods import METHODS, TERMS
from csd_lib.networks import NETWORKS, import_network, input_size, make_network, try_network
from csd_lib.output import Output, printable, shorten_warnings
from csd_lib.own_images import describe, find_own_images, outline
from csd_lib.paper.published import EXPERIMENTS
from csd_lib.paths import results_folder, runs_folder, unknown_variables
from csd_lib.record import Record

OWN = "a folder of images or an .npz file, as ./flowers (with a slash)"
LIBRARY_NETWORKS = ["efficientnet:lite0", "torchvision:NAME", "timm:NAME", "package.module:Class"]
# Settings that all cells of an experiment share, where reproduce asks for them.
SHARED = (
    *("dataset", "preset", "image_size", "network", "weights", "depth", "embedding"),
    *("backbone_rate", "first_classes", "epochs", "stop_at_epoch"),
    *("device", "precision", "cuda_graph"),
)
app = tyro.extras.SubcommandApp()


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a function as a command that prints no control characters and short warnings."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        shorten_warnings("stderr")
        if isinstance(sys.stdout, Output):  # only now, since the help itself has colours
            sys.stdout.only_text = True
        for line in unknown_variables():
            print(f"note: {line}", file=sys.stderr)
        function(*arguments, **options)

    return app.command(run)


# These are called when a command line is read, so they list what is registered by then.
def _choice(what: str, *names: Iterable[str]) -> Any:
    """Return a help text for tyro: what it is, and one of which names."""
    return tyro.conf.arg(
        help=f"{what}: {', '.join(dict.fromkeys(n for some in names for n in some))}"
    )


def _settings(*only: str, **defaults: Any) -> Any:
    """Return TrainConfig as the command line shows it: with all names that are registered now.

    Args:
        only: names of the settings to show; none stands for all.
        defaults: of some, in the place of TrainConfig's.
    """
    presets = [PRESETS, *(spec.presets for spec in DATASETS.values())]
    terms = f"a sum of terms of {'+'.join(TERMS)} in this order"
    choices = {
        "dataset": _choice("Data set", DATASETS, [OWN]),
        "preset": _choice("Where settings left out come from", *presets),
        "method": _choice("Method", METHODS, [terms]),
        "network": _choice("Network", NETWORKS, LIBRARY_NETWORKS),
    }
    types, changed = get_type_hints(TrainConfig), []
    for part in fields(TrainConfig):
        default = field(default=defaults.get(part.name, part.default))
        if only and part.name not in only:
            changed.append((part.name, Annotated[types[part.name], tyro.conf.Suppress], default))
        elif part.name in choices:
            changed.append((part.name, Annotated[types[part.name], choices[part.name]], default))
    # It checks nothing: the command makes a TrainConfig of it.
    unchecked = {"__post_init__": lambda self: None}
    options: dict[str, Any] = dict(
        bases=(TrainConfig,), frozen=True, kw_only=True, namespace=unchecked
    )
    return Annotated[make_dataclass("TrainConfig", changed, **options), tyro.conf.arg(name="")]


@command
def train(
    config: _settings(),  # type: ignore[valid-type]
    *,
    folder: Path | None = None,
    log: Literal["tensorboard", "wandb", "trackio"] | None = None,
    quiet: bool = False,
) -> None:
    """Train one network on all tasks, print its matrices, keep config, history and results.

    Args:
        config: everything that decides the run.
        folder: where to keep the run. Default: a folder of its own under runs/. The same command
            again goes on where a killed run stopped.
        log: also send each epoch's numbers to this tool, if it is installed.
        quiet: show no progress bar.
    """
    from csd_lib.engine import check_machine
    from csd_lib.experiment import run_experiment
    from csd_lib.integrations.loggers import epoch_logger
    from csd_lib.paper.report import render_matrix

    config = TrainConfig(**vars(config))
    import_network(config)
    check_machine(config.device, config.precision, config.cuda_graph)
    if unread := identity.unread(config):
        print(f"note: this run does not read {', '.join(unread)}")
    with epoch_logger(log, config) as on_epoch:
        run = run_experiment(config, folder=folder, on_epoch=on_epoch, progress=not quiet)
        if on_epoch:  # of a run that was finished before nothing has been sent
            on_epoch(run.history, run.models[-1])
    print(render_matrix(run.matrix))
    print(f"\nconfig, history, models and results: {run.folder}")


@command
def reproduce(
    experiment: Annotated[str, tyro.conf.Positional, _choice("What to run", EXPERIMENTS)],
    config: _settings(*SHARED, dataset="cifar100", preset="reference"),  # type: ignore[valid-type]
    *,
    seeds: tuple[int, ...] = (0,),
    tasks: int | None = None,
    folder: Path | None = None,
    keep_models: bool = False,
    again: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> None:
    """Run what is missing of an experiment, go on with what is half done, record the results.

    Several processes may run the same command: they share the cells.

    Args:
        experiment: what to run.
        config: what all cells share; epochs are for trying a command.
        seeds: run every cell with each of these seeds.
        tasks: only the cells with this number of tasks.
        folder: where records are kept. Default: data/results/.
        keep_models: also keep the last model and its test features (2 + 1.3 MB a cell).
        again: run also what was recorded by code that computes other numbers.
        dry_run: run nothing, only list how far each cell is, and the hours that are left.
        quiet: show no progress bars.
    """
    from csd_lib.engine import check_machine
    from csd_lib.paper import ledger
    from csd_lib.paper.published import get_experiment
    from csd_lib.paper.report import render
    from csd_lib.prepare import load_images

    shared = {name: getattr(config, name) for name in SHARED}
    configs = get_experiment(experiment).configs(seeds, only_tasks=tasks, **shared)
    if not configs:
        raise InputError(f"tasks={tasks}: {experiment} has no cell with that number of tasks")
    import_network(configs[0])
    # Now, not when the first run has been trained.
    check_machine(config.device, config.precision, config.cuda_graph)
    if dry_run:
        cells = ledger.plan(configs, load_images(configs[0]), folder)
        print(ledger.render_plan(cells, again))
        return
    make_folder(folder or results_folder())
    places = ledger.reproduce(
        configs, folder, keep_models=keep_models, again=again, progress=not quiet
    )
    print("\n" + render([Record.read(place / "results.json") for place in places]))
    print("beside the paper's numbers: python -m csd_lib report")


@command
def sweep(
    experiment: Annotated[str, tyro.conf.Positional, _choice("What to run", EXPERIMENTS, ["grid"])],
    *,
    settings: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0,),
    engine: Literal["local", "slurm"] = "local",
    at_once: int | None = None,
    cpus: int = 1,
    gpus: int = 0,
    hours: float = 24.0,
    cells_per_job: int = 1,
    slurm: tuple[str, ...] = (),
    folder: Path | None = None,
    keep_models: bool = False,
    again: bool = False,
    dry_run: bool = False,
) -> None:
    """Run what is missing of an experiment or a grid of settings, on all cores, GPUs or a cluster.

    Args:
        experiment: what to run, with the data set and preset of reproduce; or grid: method csd,
            with the defaults of train.
        settings: what the cells share or differ in, as dataset=digits method=csd,lwf: all
            combinations. These values take the place of the experiment's.
        seeds: run every cell with each of these seeds.
        engine: local (processes of this machine, until all is done) or slurm (a job a cell).
        at_once: local: number of processes (default: one a GPU, or one for each of so many cpus;
            1 needs no submitit); slurm: most jobs of an array that run at the same time.
        cpus: cores of a process, and threads it uses.
        gpus: slurm: GPUs of a job, 0 or 1.
        hours: slurm: time limit of a job; one that is longer is requeued and goes on.
        cells_per_job: slurm: cells that a job runs one after the other.
        slurm: more options of sbatch, as partition=gpu account=me mem=16G.
        folder: where records are kept. Default: data/results/.
        keep_models: also keep the last model and its test features (2 + 1.3 MB a cell).
        again: run also what was recorded by code that computes other numbers.
        dry_run: start nothing, only list how far each cell is, and the jobs and hours left.
    """
    from csd_lib import grid, sweep
    from csd_lib.engine import check_machine
    from csd_lib.paper import ledger
    from csd_lib.paper.report import render
    from csd_lib.prepare import load_images

    checks.whole("at_once", 1 if at_once is None else at_once, 1, 10_000)
    checks.whole("cpus", cpus, 1, 1000)
    checks.whole("gpus", gpus, 0, 1, "a cell trains on one GPU")
    checks.number("hours", hours, above=0, at_most=100_000)
    checks.whole("cells_per_job", cells_per_job, 1, 10_000)
    options = sweep.read_options(slurm)
    if options and engine != "slurm":
        raise InputError(f"slurm={checks.shown(slurm)}: give --engine slurm as well")
    configs = grid.make_configs(experiment, seeds, grid.read_settings(settings))
    asked = configs[0]
    import_network(asked)
    if engine == "local":
        check_machine(asked.device, asked.precision, asked.cuda_graph)
    else:  # where jobs are sent from there may be no GPU; what is recorded does not depend on it
        configs = [replace(config, device="cpu") for config in configs]
    if not dry_run:
        if engine == "slurm" or at_once != 1:
            sweep.import_submitit()
        make_folder(folder or results_folder())
    images = load_images(asked)
    cells = ledger.plan(configs, images, folder)
    waiting = [cell for cell in cells if not cell.is_done(again)]
    job = sweep.Job(
        configs=tuple(cell.config for cell in waiting),
        folder=folder.resolve() if folder else None,
        keep_models=keep_models,
        device=asked.device,
        threads=cpus,
    )
    if dry_run:
        print(ledger.render_plan(cells, again))
        try:
            sweep.import_submitit()
        except InputError as error:
            print(f"note: {error}")
    elif engine == "slurm":
        groups = sweep.make_groups(waiting, job, cells_per_job)
        sent = sweep.send_to_slurm(groups, hours=hours, gpus=gpus, at_once=at_once, options=options)
        print(f"{len(waiting)} cells in {len(sent)} jobs named csd; see squeue, and --dry-run here")
    else:
        ended = sweep.run_here(job, at_once) if waiting else []
        cells = ledger.plan(configs, images, folder)
        if left := sum(not cell.is_done(again) for cell in cells):
            raise TrainingError(f"{left} of {len(cells)} cells are missing: {'; '.join(ended)}")
        print("\n" + render([cell.record for cell in cells if cell.record]))
        if older := sum(not cell.is_current for cell in cells):
            print(f"note: {older} of {len(cells)} cells are of other code: --again runs them again")


@command
def report(
    *,
    folder: Path | None = None,
    against: tuple[str, ...] = (),
    markdown: bool = False,
    json: bool = False,
    csv: bool = False,
    figures: Path | None = None,
) -> None:
    """Print the ledger, paper against ours, and one table of your own finished runs.

    Args:
        folder: show only the finished runs in this folder.
        against: settings, as method=csd: also compare each of your runs, seed by seed, with the
            one that has these and is otherwise the same.
        markdown: write the tables in Markdown.
        json: write all records for programs, as a JSON list; with --against instead of them
            the differences of your runs.
        csv: the same as CSV, one line each.
        figures: also draw paper against ours, and the curves of each experiment, into this folder;
            with --folder those of the runs in it.
    """
    from csd_lib.grid import read_baseline
    from csd_lib.paper import ledger, report
    from csd_lib.paper.comparison import paper_groups, render_paper

    if markdown + json + csv > 1:
        raise InputError("choose one of --markdown, --json and --csv")
    if figures and (json or csv):
        raise InputError(f"--figures {figures} comes with tables: leave out --json and --csv")
    baseline = read_baseline(against)
    if figures:
        from csd_lib.paper.figures import paper_figures  # needs packages of the course

        make_folder(figures)
    recorded, problems = ([], []) if folder else ledger.read_ledger()
    own, more_problems = report.load_runs(folder) if folder else ledger.read_ledger(runs_folder())
    problems = [printable(problem) for problem in [*problems, *more_problems]]
    if against and not own:
        raise InputError(f"--against: there are no runs of yours in {runs_folder()}")
    if json or csv:
        chosen = own if against else _each_run_once(recorded, own)
        print((report.render_json if json else report.render_csv)(chosen, baseline))
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        return
    tables = report.render(own, markdown, baseline)
    groups = paper_groups(own if folder else recorded) if figures or not folder else []
    if folder is None:
        print(render_paper(groups, markdown))
    if figures:
        for path in paper_figures(groups, figures):
            print(f"figure: {path}")
    if own:
        print("" if folder else f"\nYour runs in {runs_folder()}:\n")
        print(tables)
    print(*problems, sep="\n", end="\n" if problems else "")


def _each_run_once(recorded: list[Record], own: list[Record]) -> list[Record]:
    """Join two lists: what was recorded also lies under runs/, with the same numbers."""
    known = {(r.key(), r.fingerprint, r.matrix.own.tobytes()) for r in recorded}
    own = [r for r in own if (r.key(), r.fingerprint, r.matrix.own.tobytes()) not in known]
    return [*recorded, *own]


@command
def doctor(
    *, device: str = "auto", precision: str = "fp32", seconds: float = 2.0, json: bool = False
) -> None:
    """Say whether training can start here, and how long everything takes; about 20 seconds.

    Exit code 1: training cannot start.

    Args:
        device: auto, cpu, cuda, ...
        precision: fp32, tf32 or amp.
        seconds: how long each step is measured.
        json: write what was found for programs.
    """
    from json import dumps

    from csd_lib.doctor import examine, render

    checks.number("seconds", seconds, above=0, at_most=600)
    found = examine(device, precision, seconds)
    print(dumps(found, indent=1) if json else render(found))
    if not found["can_start"]:
        sys.exit(1)


@command
def features(
    what: Annotated[str, tyro.conf.Positional, _choice("Images of", DATASETS, [OWN])],
    into: Annotated[Path, tyro.conf.Positional],
    *,
    network: Annotated[str, _choice("Network", LIBRARY_NETWORKS)] = "efficientnet:lite0",
    weights: str = "published",
    image_size: int | None = None,
) -> None:
    """Write what a network makes of images to an .npz, to train on it in seconds.

    Train with --dataset ./FILE.npz --network features --embedding 512, or another size.

    Args:
        what: which images.
        into: the file.
        network: which network.
        weights: that it has: published, random, or a file of its state.
        image_size: scale the images to this height and width; default: as the weights want it.
    """
    from csd_lib.features import save_features, scaled

    if into.suffix != ".npz":
        raise InputError(f"{into} must end in .npz: it will be a data set")
    if into.exists():
        raise InputError(f"{into} is there already: choose another name, or move it away")
    asked: dict[str, Any] = dict(network=network, weights=weights, image_size=image_size)
    config = TrainConfig(dataset="./images", **asked)  # a size is for images that can be scaled
    import_network(config)
    size = input_size(config)
    images = load_dataset(what, image_size=size if are_scaled(what) else None)
    made = make_network(config, images.mean, images.std)
    try_network(made, network, scaled(images.train_images[:2], size))
    save_features(images, made, into, size)
    print(
        f"{into}: train with --dataset {os.path.join('.', into)} --network features --embedding 512"
    )


@command
def export(
    what: Annotated[Path, tyro.conf.Positional], into: Annotated[Path, tyro.conf.Positional]
) -> None:
    """Write a run's last model as .safetensors with a model card, as model hubs expect it.

    Args:
        what: folder of a finished run or of a record, as cifar100/NAME in data/results.
        into: a new folder.
    """
    from csd_lib.export import export

    print(f"{export(what, into)}: its model card is README.md beside it; read it before you share")


@command
def data(
    what: Annotated[str, tyro.conf.Positional, _choice("Which", DATASETS, [OWN])] = "cifar100",
    *,
    image_size: int | None = None,
    check: bool = False,
) -> None:
    """Describe a data set or your own images; fetch now what is to be fetched, and say where it is.

    Args:
        what: which.
        image_size: scale the images of a folder to this height and width.
        check: fetch nothing, only verify the files that are there.
    """
    if is_path(what):
        print(describe(find_own_images(what, image_size)))
        return
    checks.one_of("what", what, DATASETS, ", or a path with a slash, such as ./FOLDER")
    if image_size is not None:
        raise InputError(f"image_size={image_size} is for images of your own: leave it out")
    if what == "cifar100":
        _cifar100(check)
    elif what in FINE_GRAINED:
        if not check:
            fetch_fine_grained(what)
        print(*check_fine_grained(what), sep="\n")
        how = f"--dataset {what}, and --preset clean where that is not the default"
        print(f"\nTrain on it with {how}")
    elif check:
        raise InputError(f"check={check}: {what} has no files that were fetched: leave it out")
    else:
        print(*outline(load_dataset(what)), sep="\n")
        if source := DATASETS[what].source:
            print(f"source: {source}")
        print(f"\nIt is ready: train on it with --dataset {what}")


def _cifar100(check: bool) -> None:
    from csd_lib.download import CIFAR100, fetch_cifar100, folders, locate

    path = locate() if check else fetch_cifar100()
    archives = CIFAR100.check(folders(), "python -m csd_lib data")
    for archive in archives:
        print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB, the official archive")
    if not path.exists():
        raise InputError(f"{path} does not exist yet: python -m csd_lib data makes it")
    images = load_dataset("cifar100", root=path)
    print(
        f"{path}: {path.stat().st_size / 1e6:.0f} MB, {len(images.train_labels):,} training and "
        f"{len(images.test_labels):,} test images of {len(images.class_names)} classes"
    )
    print("\nFor others: copy a file named above to a stick or a shared folder. They type")
    print("  CSD_DATA=THAT_FOLDER python -m csd_lib data")
    for archive in archives:
        print("or keep this running, in a network where computers may talk to each other:")
        print(f"  python -m http.server 8000 --directory {archive.parent}")
        print("They type")
        print("  CSD_MIRRORS=http://ADDRESS_OF_THIS_COMPUTER:8000/ python -m csd_lib data")
