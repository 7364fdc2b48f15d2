"""A real Slurm of one node, in a folder of its own and for as long as it is needed.

Debian's packages bring the programs; nothing of them runs or is set up before or after:

    apt-get install --no-install-recommends slurmctld slurmd slurm-client munge

It needs neither root nor systemd. All it writes is in the folder; all that it has started is gone
at the end, jobs included.
"""

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
PACKAGES = "slurmctld slurmd slurm-client munge"
LIMIT = 120  # seconds for something that takes one or two
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
# A job that is requeued waits until its old credential cannot be used any more: 120 s by default.
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
# A job that is to end is told so, and killed after these seconds.
KillWait=1
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus}
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder, cpus=2):
    """Start it; yields the environment in which sbatch and the others know it."""
    if lacking := [name for name in PROGRAMS if not _find(name)]:
        raise RuntimeError(f"there is no {', '.join(lacking)}: apt-get install {PACKAGES}")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(1024))
    conf = folder / "slurm.conf"
    user, host = pwd.getpwuid(os.getuid()).pw_name, socket.gethostname().split(".")[0]
    ports = _free_ports(2)
    conf.write_text(CONF.format(folder=folder, host=host, user=user, ports=ports, cpus=cpus))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    own = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    munge = [f"--{option}={folder}/munge.{name}" for option, name in own.items()]
    with ExitStack() as stack:
        stack.callback(_check_that_nothing_is_left, conf)
        for name, *options in (
            ("munged", "--foreground", "--force", f"--key-file={key}", *munge),
            ("slurmctld", "-D", "-i", "-f", conf),
            ("slurmd", "-D", "-f", conf),
        ):
            stack.enter_context(_running(folder, environment, name, *options))
        stack.callback(_end_all_jobs, environment)
        wait_for(lambda: "idle" in said(environment, "sinfo", "-h", "-o", "%T"), folder)
        yield environment


def said(environment, *command):
    """What a command of Slurm prints."""
    done = subprocess.run(
        [_find(command[0]), *map(str, command[1:])], env=environment, capture_output=True, text=True
    )
    return done.stdout + done.stderr


def wait_for(true, what, seconds=LIMIT):
    """Wait until a function returns something true, and return that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.2)
    logs = [f"{p}:\n{p.read_text()[-2000:]}" for p in Path(what).glob("*.log")]
    raise TimeoutError("\n".join(logs) or str(what))


def processes_of(text):
    """Numbers of the processes that have a text in their command or environment, but this one."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes() + (place / "environ").read_bytes()
        except OSError:
            continue
        if str(text).encode() in words and int(place.name) != os.getpid():
            found.append(int(place.name))
    return found


def _find(name):
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin")


def _free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _running(folder, environment, name, *options):
    with (folder / f"{name}.log").open("w") as log:
        command = [_find(name), *map(str, options)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            time.sleep(0.5)
            if process.poll() is not None:
                raise RuntimeError(f"{name} does not start: {(folder / f'{name}.log').read_text()}")
            yield process
        finally:
            process.terminate()
            try:
                process.wait(LIMIT)
            finally:
                process.kill()


def _end_all_jobs(environment):
    said(environment, "scancel", "--user", str(os.getuid()))
    wait_for(lambda: not said(environment, "squeue", "-h").strip(), "jobs do not end")


def _check_that_nothing_is_left(conf):
    wait_for(lambda: not processes_of(conf), f"processes of {conf} are left")
