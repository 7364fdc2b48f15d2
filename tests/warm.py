"""Processes of Python that need not import torch and the like, because a server has done so.

That takes two to seven seconds each time, and the tests start some hundred processes. The server
imports other people's packages once, and forks. What such a process imports of this kit, what it
is given, where it runs and how it ends are its own, as of any process of Python.
"""

import asyncio
import functools
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path

from jupyter_client.provisioning import local_provisioner

ROOT = Path(__file__).resolve().parent.parent
PROCESSES = multiprocessing.get_context("forkserver")
# A process of tests has one server, so that what is imported is said only here.
PROCESSES.set_forkserver_preload(
    [
        *("csd_lib.commands", "csd_lib.experiment"),  # for functions that are started by PROCESSES
        *("torch._dynamo", "sklearn.datasets", "seaborn"),  # the first optimiser imports _dynamo
        *("ipykernel.kernelapp", "ipywidgets", "nbval.plugin"),
    ]
)


class Python:
    """A process as ``subprocess.Popen([sys.executable, *arguments], ...)`` starts it.

    Args:
        arguments: ``-m MODULE ...``, ``-c CODE ...`` or ``FILE ...``.
        env, cwd: as of Popen.
        jupyter: whether it may find parts of Jupyter imported; by them tqdm knows a notebook.
        context: who forks it, the server or this process.
    """

    stdin = stdout = stderr = None

    def __init__(self, *arguments, env=None, cwd=None, jupyter=False, context=PROCESSES):
        self.args = [*map(str, arguments)]
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.files = [Path(folder, name) for name in ("stdout", "stderr")]
        environment = {name: str(value) for name, value in (env or os.environ).items()}
        place = str(cwd or Path.cwd())
        task = (self.args, environment, place, jupyter, self.files)
        self.process = context.Process(target=_run, args=task)
        self.process.start()
        self.pid = self.process.pid
        with suppress(ProcessLookupError):  # whoever signals its group must not be in it
            while self.returncode is None and os.getpgid(self.pid) != self.pid:
                time.sleep(0.002)

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """Wait for the end; return the texts of stdout and stderr."""
        self.wait(timeout)
        return self.printed(), self.printed(1)

    def printed(self, number=0):
        """What is in stdout by now, or in stderr."""
        path = self.files[number]
        return path.read_text("utf-8") if path.exists() else ""


def run(*arguments, **options):
    """As ``subprocess.run`` with ``capture_output`` and ``text``."""
    process = Python(*arguments, **options)
    try:
        out, err = process.communicate()
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_notebook(path, **options):
    """Run nbval on a notebook, in a kernel that need not import other people's packages either."""
    code = "import sys, pytest, warm; warm.fork_kernels(); sys.exit(pytest.main(sys.argv[1:]))"
    nbval = ["-p", "nbval.plugin", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300"]
    env = {**options.pop("env", os.environ), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return run("-c", code, *nbval, "-p", "no:cacheprovider", path, env=env, jupyter=True, **options)


def kernel(command, env, cwd=None, context=PROCESSES, **_):
    """Start a kernel as ``jupyter_client.launcher.launch_kernel`` does."""
    # What a kernel says to matplotlib before that is imported.
    env = {**env, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    return Python(*command[1:], env=env, cwd=cwd, jupyter=True, context=context)


def fork_kernels():
    """From now on, let Jupyter fork kernels from this process."""
    fork = multiprocessing.get_context("fork")
    local_provisioner.launch_kernel = functools.partial(kernel, context=fork)


def _run(arguments, environment, folder, jupyter, output):
    os.setpgid(0, 0)
    for number, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    _forget("csd_lib", "tqdm", *([] if jupyter else ["ipykernel"]))
    _as_if_new(environment, folder)
    option, *rest = arguments
    if option == "-m":
        sys.argv = rest
        sys.path.insert(0, folder)
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(option))
        runpy.run_path(option, run_name="__main__")


def _forget(*packages):
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


def _as_if_new(environment, folder):
    """Give this process its folder and its environment."""
    asyncio.set_event_loop(asyncio.new_event_loop())  # who forked may be within one
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    given = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    ours = {"", str(ROOT), *map(str, ROOT.iterdir()), *given}
    sys.path[:] = given + [path for path in sys.path if path not in ours]
    if "MPLBACKEND" in environment:
        import matplotlib

        matplotlib.rcParams["backend"] = environment["MPLBACKEND"]
