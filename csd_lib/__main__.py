"""Command line: ``python -m csd_lib train ...`` and ``python -m csd_lib report``."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated

import tyro

from csd_lib import InputError
from csd_lib.config import TrainConfig
from csd_lib.train import TrainingError

app = tyro.extras.SubcommandApp()


@app.command
def train(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")], *, folder: Path | None = None
) -> None:
    """Train one network on all tasks, print its matrices, keep config, history and results.

    Args:
        config: everything that decides the run.
        folder: where to keep the run. Default: a folder of its own under runs/. The same command
            again goes on where a killed run stopped.
    """
    from csd_lib.experiment import run_experiment
    from csd_lib.report import render_matrix

    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    run = run_experiment(config, folder=folder)
    print(render_matrix(run.matrix))
    print(f"\nconfig, history, models and results: {run.folder}")


@app.command
def report(*, folder: Path | None = None, markdown: bool = False) -> None:
    """Print one table of all finished runs, mean and sd over seeds.

    Args:
        folder: the folder that holds the runs. Default: runs/.
        markdown: write the table in Markdown.
    """
    from csd_lib.report import load_results, render

    print(render(load_results(folder), markdown))


def main() -> None:
    """Run one command; a user's mistake ends in one line and exit code 2, without a traceback."""
    try:
        app.cli(prog="python -m csd_lib", description=__doc__)
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last full epoch", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
