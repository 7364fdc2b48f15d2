"""The commands: ``csd train``, ``reproduce``, ``report`` and ``data``."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from csd_lib import InputError
from csd_lib.config import TrainConfig
from csd_lib.output import Output, printable

app = tyro.extras.SubcommandApp()


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a function as a command that prints no control characters and short warnings."""

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> None:
        warnings.showwarning = lambda message, *_: print(
            f"note: {printable(str(message))}", file=sys.stderr
        )
        if isinstance(sys.stdout, Output):  # only now, since the help itself has colours
            sys.stdout.only_text = True
        function(*arguments, **options)

    return app.command(run)


@command
def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")], *, folder: Path | None = None
) -> None:
    """Train one network on all tasks, print its matrices, keep config, history and results.

    Args:
        config: everything that decides the run.
        folder: where to keep the run. Default: a folder of its own under runs/. The same command
            again goes on where a killed run stopped.
    """
    from csd_lib.engine import check_machine
    from csd_lib.experiment import run_experiment
    from csd_lib.paper.report import render_matrix

    check_machine(config.device, config.precision, config.cuda_graph)
    run = run_experiment(config, folder=folder)
    print(render_matrix(run.matrix))
    print(f"\nconfig, history, models and results: {run.folder}")


@command
def reproduce(
    experiment: Annotated[str, tyro.conf.Positional],
    *,
    preset: str = "reference",
    seeds: tuple[int, ...] = (0,),
    dataset: str = "cifar100",
    epochs: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    cuda_graph: bool = False,
    folder: Path | None = None,
    keep_models: bool = False,
    again: bool = False,
) -> None:
    """Run what is missing of an experiment, go on with what is half done, record the results.

    Args:
        experiment: table1, figure3, figure5, table3, traps or eq8.
        preset: reference (the published code, traps included), clean, or class (short).
        seeds: run every cell with each of these seeds.
        dataset: cifar100, or digits to try the same commands within a minute.
        epochs: epochs per task, to try a command; default: the preset's.
        device: auto, cpu, cuda, ...
        precision: fp32, tf32 or amp.
        cuda_graph: replay each training step as one CUDA graph.
        folder: where records are kept. Default: data/results/.
        keep_models: also keep the last model and its test features (2 + 1.3 MB a cell).
        again: run also what an older version of the code has recorded.
    """
    from csd_lib.engine import check_machine
    from csd_lib.files import make_folder
    from csd_lib.paper import ledger
    from csd_lib.paper.published import get_experiment
    from csd_lib.paper.report import render

    configs = get_experiment(experiment).configs(
        seeds,
        dataset=dataset,
        preset=preset,
        epochs=epochs,
        device=device,
        precision=precision,
        cuda_graph=cuda_graph,
    )
    # Now, not when the first run has been trained.
    check_machine(device, precision, cuda_graph)
    make_folder(folder or ledger.results_folder())
    places = ledger.reproduce(configs, folder, keep_models=keep_models, again=again)
    wanted = {place.resolve() for place in places}
    records = [r for r in ledger.load_records(folder) if r["folder"].resolve() in wanted]
    print("\n" + render(records))
    print("beside the paper's numbers: python -m csd_lib report")


@command
def report(
    *, folder: Path | None = None, markdown: bool = False, figures: Path | None = None
) -> None:
    """Print the ledger, paper against ours, and one table of your own finished runs.

    Args:
        folder: show only the finished runs in this folder.
        markdown: write the tables in Markdown.
        figures: also draw paper against ours, and Figure 3's curves, into this folder.
    """
    from csd_lib.files import make_folder
    from csd_lib.paper import ledger
    from csd_lib.paper.comparison import render_paper
    from csd_lib.paper.report import load_results, render
    from csd_lib.paths import runs_folder

    if folder and figures:
        raise InputError(f"--figures {figures} draws the ledger: leave out --folder {folder}")
    if figures:
        from csd_lib.paper import figures as paper_figures  # needs packages of the course

        make_folder(figures)
    if folder is None:
        records = ledger.load_records()
        print(render_paper(records, markdown))
        if figures:
            for path in paper_figures.paper_figures(records, figures):
                print(f"figure: {path}")
        if not any(runs_folder().glob("*/results.json")):
            return
        print(f"\nYour runs in {runs_folder()}:\n")
    print(render(load_results(folder), markdown))


@command
def data(*, check: bool = False) -> None:
    """Fetch CIFAR-100 now, say where it lies and how others can use it.

    Args:
        check: fetch nothing, only verify the files that are there.
    """
    from csd_lib import download
    from csd_lib.archive import archive_problem
    from csd_lib.data import load_dataset

    path = download.locate() if check else download.fetch_cifar100()
    archives = download.local_archives()
    for archive in archives:
        if problem := archive_problem(archive):
            raise InputError(f"{archive} {problem}: delete it, and run python -m csd_lib data")
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
