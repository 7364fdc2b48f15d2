"""What the processes do that tests/test_faults.py kills, starves and lets wait for each other.

A module of its own, because every one of them imports it.
"""

import os
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import torch

from csd_lib.__main__ import main
from csd_lib.config import TrainConfig
from csd_lib.experiment import run_experiment

SETTINGS = dict(tasks=2, epochs=2)


def train_here(folder):
    torch.set_num_threads(1)  # sums are added in another order with more
    return run_experiment(TrainConfig(**SETTINGS), folder=folder, progress=False)


def train_and_die(folder, number):
    """Kill this process right before it changes its folder for the number-th time."""
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        changes = event in ("os.rename", "os.remove", "os.mkdir") or (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if changes and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    train_here(folder)


def command_with_limit(connection, limit, arguments):
    """Run the command line where no file may grow beyond a limit, as on a full disk."""
    import resource

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["csd_lib", *map(str, arguments)]
    stderr, code = StringIO(), 0
    with redirect_stderr(stderr), redirect_stdout(StringIO()):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    connection.send((code, stderr.getvalue()))


def train_and_say(folder, connection):
    printed = StringIO()
    with redirect_stdout(printed):
        train_here(folder)
    connection.send(printed.getvalue())
