"""What happens to a run when processes are killed, disks fill up and folders vanish under it."""

import os
import random
import re
import shutil
import signal
import threading
import time

import pytest
import torch
import warm
from disturbed import (
    SETTINGS,
    command,
    train_and_copy,
    train_and_say,
    train_here,
    train_in_each,
)
from jupyter_client import KernelManager
from jupyter_client.provisioning import local_provisioner
from stopped import outcome, stop_after
from warm import PROCESSES

from csd_lib import InputError, files, runs
from csd_lib.config import TrainConfig
from csd_lib.experiment import run_experiment

KILLS = int(os.environ.get("CSD_KILLS", "15"))
LIMIT = 600  # seconds; what waits longer hangs, however busy the machine is
COMMAND = ["train", *(f"--{name}={value}" for name, value in SETTINGS.items())]


def start(target, *arguments):
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def exit_code(process):
    """Wait for the end of a process, but not for ever."""
    process.join(LIMIT)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"{process.name} did not end within {LIMIT} seconds")
    return process.exitcode


def start_to_say(target, *arguments):
    """Start a process that sends one thing; return a function that waits for it and for its end."""
    ours, theirs = PROCESSES.Pipe()
    process = start(target, theirs, *arguments)
    theirs.close()  # or its death would not end the pipe

    def said():
        try:
            assert ours.poll(LIMIT), f"{process.name} said nothing within {LIMIT} seconds"
            found = ours.recv()
        except EOFError:
            code = exit_code(process)
            raise AssertionError(f"{process.name} ended with {code} and said nothing") from None
        assert exit_code(process) == 0
        return found

    return said


def wait_for_epochs(folder, number, process=None):
    """Wait until a run has finished that many epochs; its folder may have stars."""
    for _ in range(20 * LIMIT):
        found = list(folder.parent.glob(f"{folder.name}/history.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= number:
            return
        assert process is None or process.is_alive(), f"it ended with {process.exitcode}"
        time.sleep(0.05)
    raise AssertionError("the run does not go on")


def finish(folder):
    assert exit_code(start(train_here, folder)) == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed; copy from it, and leave it as it is."""
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return folder


@pytest.fixture(scope="module")
def reference(whole):
    return outcome(whole)


# --- kills -------------------------------------------------------------------------------------


def test_kills_at_random_moments_leave_every_bit_as_without_them(reference, tmp_path):
    moments, kills, finished = random.Random(0), 0, 0
    while kills < KILLS:
        folder = tmp_path / str(finished)
        process = start(command, None, [*COMMAND, f"--folder={folder}"])
        process.join(moments.uniform(0.02, 0.6))
        if process.is_alive():
            process.kill()
            kills += exit_code(process) == -signal.SIGKILL
        else:
            assert process.exitcode == 0
            assert outcome(folder) == reference
            finished += 1
    finish(folder)
    assert outcome(folder) == reference
    print(f"{kills} kills over {finished + 1} runs")


def test_a_kill_before_any_change_of_a_file_loses_nothing(reference, tmp_path):
    folder, copies = tmp_path / "whole", tmp_path / "copies"
    assert exit_code(start(train_and_copy, folder, copies)) == 0
    assert outcome(folder) == reference
    killed = sorted(copies.iterdir(), key=lambda copy: int(copy.name))
    assert len(killed) > 15, "a run must have made that many changes to its files"
    assert exit_code(start(train_in_each, killed)) == 0
    for copy in killed:
        assert outcome(copy) == reference, f"killed before change {copy.name}"


# --- disks and folders -------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 300, 1000, 100_000, 500_000])
def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(reference, tmp_path, limit):
    code, stderr = start_to_say(command, [*COMMAND, f"--folder={tmp_path}"], limit)()
    last_line = re.split(r"[\r\n]+", stderr.strip())[-1]
    assert code == 2 and "Traceback" not in stderr, stderr
    assert re.fullmatch(r"error: cannot write .*(File too large).*goes on from there", last_line)
    assert not list(tmp_path.glob("*.partial")), "half a file only takes space"
    finish(tmp_path)
    assert outcome(tmp_path) == reference


def test_a_folder_removed_during_the_run_is_named_and_the_run_can_start_again(tmp_path):
    folder = tmp_path / "run"

    def remove(history, student):
        if len(history) == 3:
            shutil.rmtree(folder)

    config = TrainConfig(**SETTINGS)
    with pytest.raises(InputError, match=r"cannot write .*run.* \(No such file or directory\)"):
        run_experiment(config, folder=folder, on_epoch=remove, progress=False)
    expected = run_experiment(config, folder=tmp_path / "other", progress=False)
    again = run_experiment(config, folder=folder, progress=False)
    assert (again.matrix.own == expected.matrix.own).all()


def test_a_checkpoint_cut_off_at_any_length_is_named_and_the_one_before_it_is_used(whole, tmp_path):
    identity = files.read_json(whole / "config.json")
    content = (whole / "checkpoint.pt").read_bytes()
    lengths = {0, 1, 4, 100, len(content) - 1, len(content) - 30}
    lengths |= {len(content) * part // 40 for part in range(40)}
    for length in sorted(lengths):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "checkpoint.pt").write_bytes(content[:length])
        with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read .*move it away"):
            runs.RunFolder(folder, identity).load()
        shutil.copy(whole / "checkpoint.previous.pt", folder)
        with pytest.warns(UserWarning, match=r"cannot be read.*the one before it is used"):
            assert runs.RunFolder(folder, identity).load()["history"]


@pytest.mark.parametrize("part", range(12))
def test_a_flipped_bit_anywhere_in_a_checkpoint_is_noticed_or_harmless(whole, tmp_path, part):
    identity = files.read_json(whole / "config.json")
    path = whole / "checkpoint.pt"
    expected, content = files.read_tensors(path), bytearray(path.read_bytes())
    place = len(content) * part // 12 + 7
    content[place] ^= 0x10
    (tmp_path / "checkpoint.pt").write_bytes(content)
    try:
        found = runs.RunFolder(tmp_path, identity).load()
    except InputError:
        return
    # Between the arrays there is padding, and fields of the format that nobody reads.
    assert found["history"] == expected["history"]
    for one, other in zip(found["models"], expected["models"], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_two_programs_in_one_folder_take_turns_and_find_the_same(reference, tmp_path):
    both = [start_to_say(train_and_say, tmp_path) for _ in range(2)]
    waited = f"another program is training in {tmp_path}: waiting for it\n"
    assert sorted(said() for said in both) == ["", waited]
    assert outcome(tmp_path) == reference


def test_whoever_waits_goes_on_when_the_other_one_is_killed(reference, tmp_path):
    first = start(train_here, tmp_path)
    wait_for_epochs(tmp_path, 0, first)
    second = start(train_here, tmp_path)
    time.sleep(0.1)
    first.kill()
    assert exit_code(second) == 0 and outcome(tmp_path) == reference


def test_a_clock_that_runs_backwards_changes_nothing(monkeypatch, tmp_path):
    config = TrainConfig(**SETTINGS)
    expected = run_experiment(config, folder=tmp_path / "one", progress=False)
    now = time.time()
    ticks = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now - 3600 * next(ticks))
    stopped = tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, folder=stopped, on_epoch=stop_after(3), progress=False)
    again = run_experiment(config, folder=stopped, progress=False)
    assert (again.matrix.own == expected.matrix.own).all()
    assert [r["epoch"] for r in again.history] == [0, 1] * 2


# --- notebooks ---------------------------------------------------------------------------------


class Kernel:
    """A kernel of Jupyter, as behind a notebook."""

    def __init__(self, folder):
        self.manager = KernelManager(kernel_name="python3")
        environment = {**os.environ, "CSD_RUNS": str(folder), "CSD_MODE": "smoke"}
        self.manager.start_kernel(env={**environment, "OMP_NUM_THREADS": "1"})
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run(self, code):
        """Run a cell; return what it printed, and the lines of its error."""
        printed, error = [], []

        def look(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                printed.append(content["text"])
            if message["msg_type"] == "error":
                error.extend("\n".join(content["traceback"]).splitlines())

        self.client.execute_interactive(code, timeout=LIMIT, output_hook=look)
        return "".join(printed), error

    def stop(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


START = """
from csd_lib import course
session = course.start()
"""
CELL = """
run = session.run("csd", epochs=8)
print("own", run.matrix.own.tolist())
"""


def test_mistakes_ctrl_c_and_a_restarted_kernel_are_one_line_and_lose_no_epoch(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(local_provisioner, "launch_kernel", warm.kernel)
    kernel = Kernel(tmp_path / "one")
    initial, csd = (tmp_path / "one" / pattern for pattern in ("*-initial-*", "*-csd-*"))
    try:
        _, error = kernel.run(START + "session.run('replay')")
        assert len(error) == 1 and "unknown method 'replay'" in error[0]
        interrupt = threading.Thread(
            target=lambda: (wait_for_epochs(initial, 3), kernel.manager.interrupt_kernel())
        )
        interrupt.start()
        _, error = kernel.run(CELL)
        interrupt.join()
        assert len(error) == 1 and "stopped: run this cell again" in error[0], error
        kernel.client.execute(CELL)
        wait_for_epochs(csd, 10)
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=60)
        again, error = kernel.run(START + CELL)
        assert not error
        undisturbed, _ = kernel.run(
            f"import os\nos.environ['CSD_RUNS'] = {str(tmp_path / 'two')!r}\n" + CELL
        )
        assert re.findall("own.*", again) == re.findall("own.*", undisturbed) != []
    finally:
        kernel.stop()
