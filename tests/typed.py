"""A command as it is typed, in this process."""

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import patch

from csd_lib.__main__ import main


def csd(*arguments, runs=None, **environment):
    """Run ``csd`` with variables of the environment; return its exit code, stdout and stderr."""
    environment |= {"CSD_RUNS": str(runs)} if runs else {}
    stdout, stderr, code = StringIO(), StringIO(), 0
    argv, variables = patch.object(sys, "argv", ["csd", *arguments]), patch.dict("os.environ")
    with argv, variables, redirect_stdout(stdout), redirect_stderr(stderr):
        os.environ.update(environment)
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return subprocess.CompletedProcess(arguments, code, stdout.getvalue(), stderr.getvalue())
