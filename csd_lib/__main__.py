"""Command line, as ``csd`` or ``python -m csd_lib``: the commands of ``commands.py``.

Here is what holds for all of them: how they end.
This module imports next to nothing at first: torch takes seconds, in which one may press Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csd_lib import InputError, TrainingError, __version__
from csd_lib.output import Output, OutputError, printable

HELP = """Contrastive Supervised Distillation: train, measure, set beside the paper.

csd --version prints the versions of the kit, Python and torch."""
# As a shell says that a program was ended by a signal.
BY_SIGNAL = 128
READER_IS_GONE = BY_SIGNAL + 13  # SIGPIPE, which Windows has not


def main() -> None:
    """Run one command; whatever ends it, the user sees at most one line and no traceback.

    Exit code 2 is a mistake in what was given, or a full disk; 130 is Ctrl-C, 143 SIGTERM, and 141
    a reader such as ``head`` that has seen enough.
    """
    stopped_by: list[int] = []
    with _own_streams(), _listening(stopped_by):
        try:
            code = _run(stopped_by)
            sys.stdout.flush()
        except OutputError as error:
            error.silence()
            code = READER_IS_GONE if error.reader_is_gone else _say(error)
    if code:
        sys.exit(code)


def _run(stopped_by: list[int]) -> int | str | None:
    """Run the command that was typed and return the exit code."""
    try:
        if sys.argv[1:] == ["--version"]:
            print(_versions())
            return 0
        for place, given in enumerate(sys.argv[1:], start=1):
            if not given or (given.startswith("--") and given.endswith("=")):  # a path would be "."
                option = given.rstrip("=") or sys.argv[place - 1]
                raise InputError(f"what follows {option} is empty: give a value, or leave it out")
        from csd_lib.commands import app

        called = Path(sys.argv[0]).stem
        app.cli(prog="csd" if called == "csd" else "python -m csd_lib", description=HELP)
        return 0
    except OutputError:
        raise
    except BaseException as error:
        # First, because an import that is interrupted may end in another error.
        if stopped_by or isinstance(error, KeyboardInterrupt):
            line = "stopped; the same command goes on (train: from the last checkpoint)"
            print(line, file=sys.stderr)
            return BY_SIGNAL + (stopped_by[0] if stopped_by else signal.SIGINT)
        if isinstance(error, SystemExit):  # of --help, and of an option that does not exist
            return error.code
        if isinstance(error, (InputError, TrainingError)):
            return _say(error)
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("csd_lib"):
            return _say(f"{error.name} is missing: install it, or csd-lib with its extra [course]")
        raise


def _versions() -> str:
    """Name the versions that a bug report needs, without the seconds that importing torch takes."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "is missing"
    python = ".".join(map(str, sys.version_info[:3]))
    return f"csd-lib {__version__} (Python {python}, torch {torch})"


def _say(error: object) -> int:
    """Print one line, and return the exit code of a mistake."""
    print("error:", printable(" ".join(str(error).splitlines())), file=sys.stderr)
    return 2


@contextmanager
def _listening(stopped_by: list[int]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block in order, and note which it was.

    A second one ends the program at once, and just as silently while it shuts down.
    """

    def stop(number: int, _: object) -> None:
        stopped_by.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup, or in a script
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        if not stopped_by:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _own_streams() -> Iterator[None]:
    """Print through ``Output``, also where there is no output at all, as after ``>&-``."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stdout, sys.stderr = (Output(stream or nowhere) for stream in before)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


if __name__ == "__main__":
    main()
