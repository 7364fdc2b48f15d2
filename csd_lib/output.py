"""What the command line prints: text that any terminal shows, and errors of where it goes.

It imports next to nothing, so that a command can be stopped in order from its first moment on.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
import warnings
from typing import Any, TextIO

# All control characters but tab and newline, and those that turn the direction of writing: a
# results file may come from a stranger, and a terminal obeys what is printed.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# For a terminal that knows no more than ASCII, where Python would raise an error.
_SPELLING = {"–": "-", "±": "+/-", "×": "x", "→": "->", "…": "...", "“": '"', "”": '"', "²": "^2"}


def printable(text: str) -> str:
    """Leave out what a terminal would obey and not show."""
    return _CONTROL.sub("", text)


def duration(seconds: float) -> str:
    """Write how long something takes, in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def shorten_warnings(stream: str) -> None:
    """From now on, show each warning as a note of one line on ``stderr`` or ``stdout``."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        bars = sys.modules.get("tqdm")  # a note beside a progress bar would be overlooked
        write = bars.tqdm.write if bars else print
        write(f"note: {printable(str(message))}", file=getattr(sys, stream))

    warnings.showwarning = show


class OutputError(Exception):
    """Standard output or standard error takes no more: its reader is gone, or the disk is full."""

    def __init__(self, stream: TextIO, error: OSError) -> None:
        super().__init__(f"cannot write the output: {error.strerror}")
        self.stream = stream
        self.reader_is_gone = isinstance(error, BrokenPipeError)

    def silence(self) -> None:
        """Let the rest go nowhere: Python writes it at the end, and would fail once more."""
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):
            pass  # a stream without a file has nothing to write at the end


class Output:
    """Standard output or standard error, but its failures can be told from those of files.

    With ``only_text`` it leaves out control characters. All else is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.only_text = False
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            codecs.register_error("csd-spelling", _spell)
            stream.reconfigure(errors="csd-spelling")

    def write(self, text: str) -> int:
        """Write a text."""
        try:
            return self.stream.write(printable(text) if self.only_text else text)
        except OSError as error:
            raise OutputError(self.stream, error) from error

    def flush(self) -> None:
        """Write what was held back."""
        try:
            self.stream.flush()
        except OSError as error:
            raise OutputError(self.stream, error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Write in ASCII what the stream's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_SPELLING.get(character, "?") for character in lacking), error.end
