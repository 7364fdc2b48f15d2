"""A sweep as it is typed, in folders of its own, and what it has left there."""

import os
import re
import subprocess
import sys
from pathlib import Path

from csd_lib import files
from csd_lib.paper import ledger

LIMIT = 600  # seconds that a handful of small cells may take beside other work
EPOCHS, DISTURBED_AT = 200, 40  # of a cell that is disturbed: half a minute


class Kept:
    """The folders of a test."""

    def __init__(self, place: Path, environment=os.environ):
        self.runs, self.results = place / "runs", place / "results"
        own = {"CSD_RUNS": str(self.runs), "CSD_RESULTS": str(self.results)}
        self.environment = {**environment, **own}

    def start(self, *arguments):
        """Start a command of csd."""
        return subprocess.Popen(
            [sys.executable, "-m", "csd_lib", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments, code=0):
        """Run a command of csd to its end, and return what it says."""
        process = self.start(*arguments)
        try:
            text, _ = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
        assert process.returncode == code, text
        return text

    def records(self):
        return ledger.load_records(self.results)

    def history(self, **settings):
        """The lines of the run with these settings: one for each epoch that it has kept."""
        for path in self.runs.glob("*/config.json"):
            config = files.read_json(path)["config"]
            history = path.with_name("history.jsonl")
            if settings.items() <= config.items() and history.exists():
                return history.read_text().splitlines()
        return []

    def begun(self):
        """What the processes say of the cells that they begin: each begun cell is a title."""
        texts = [path.read_text() for path in self.runs.glob("sweeps/*/*log.out")]
        lines = [line for text in texts for line in text.splitlines()]
        return [line for line in lines if re.fullmatch(r"\[\d+/\d+\] .* seed \d+", line)]

    def said(self):
        return "\n".join(p.read_text() for p in sorted(self.runs.glob("sweeps/*/*log.*")))


def went_on(before, after):
    """Whether a history of EPOCHS is that of the same run, which has gone on from a checkpoint.

    Each line has the seconds that its epoch has taken, so an epoch that was trained again shows.
    Epochs after the last checkpoint are: it may take up 5 % of the time, so that is some of them.
    """
    pairs = enumerate(zip(before, after, strict=False))
    kept = next((number for number, (old, new) in pairs if old != new), len(before))
    return len(before) >= DISTURBED_AT and len(after) == EPOCHS and kept >= DISTURBED_AT / 4
