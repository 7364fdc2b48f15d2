"""What one training step costs on a GPU, and which way of running it is fastest.

    python benchmarks/step_anatomy.py --steps 10 --no-compile  # on an H100: 80 seconds
    python benchmarks/step_anatomy.py --device cpu --steps 2   # try the same code without one

Prints and records, for the first task and for a later one with CSD: kernels and host waits of a
step (profiler); milliseconds a step, eager and captured, in fp32, tf32 and amp, in NCHW and
channels_last; torch.compile for comparison; 1, 2, 4 and 8 captured runs side by side on streams;
and whether 50 captured steps give the same losses as 50 eager ones. Images are random: only time
is measured.
"""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import torch
from bench import alternate, machine, new_parser, synchronize, write

from csd_lib.config import TrainConfig
from csd_lib.doctor import made_up_images, tasks_to_learn
from csd_lib.engine import CapturedStep, StepState, pick_device, set_learning_rate

BATCH = 128
IMAGES = 4096  # of a task


class Loop:
    """One task of a ResNet-32 on random images, ready to step: training's own steps."""

    def __init__(self, device, later_task, precision="fp32", channels_last=True, compiled=False):
        config = TrainConfig(dataset="cifar100", precision=precision, device=str(device))
        tasks = tasks_to_learn(config, made_up_images(config, 2 * IMAGES))
        self.learning = it = next(islice(tasks, int(later_task), None))
        self.networks = [it.student] if it.teacher is None else [it.student, it.teacher]
        if not channels_last:
            for network in self.networks:
                network.to(memory_format=torch.contiguous_format)
        it.student.train()
        if compiled:
            it.student = torch.compile(it.student, dynamic=False)
        set_learning_rate(it.optimizer, 1e-3)
        self.batch = torch.arange(BATCH, device=device)
        self.step = it.eager_step

    def capture(self):
        """Replay the step as a CUDA graph from now on."""
        it = self.learning
        parts = (it.totals.sums, it.optimizer, it.precision.scaler, it.generator)
        self.step = CapturedStep(it.eager_step, StepState(self.networks, *parts))
        return self

    def run(self, steps):
        """Take some steps."""
        with self.learning.precision.switches():
            for _ in range(steps):
                self.step(self.batch)


def profile(loop: Loop) -> dict[str, Any]:
    """Count the kernels of an eager step, and the times the host waits for the device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if loop.batch.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    loop.run(3)
    synchronize()
    with torch.profiler.profile(activities=activities) as profiler:
        loop.run(1)
    events = profiler.events()
    on_gpu = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    by_name: dict[str, list[float]] = {}
    for event in on_gpu:
        entry = by_name.setdefault(event.name.removeprefix("void ")[:120], [0, 0.0])
        entry[0], entry[1] = entry[0] + 1, entry[1] + event.device_time / 1000
    longest = sorted(by_name.items(), key=lambda entry: -entry[1][1])[:20]
    waits = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
    return {
        "operators": sum(e.name.startswith("aten::") for e in events),
        "kernels": len(on_gpu),
        "kernel_ms": round(sum(e.device_time for e in on_gpu) / 1000, 3),
        "host_waits": sum(e.name in waits for e in events),
        "longest": [[name, count, round(ms, 3)] for name, (count, ms) in longest],
    }


def milliseconds(loops: dict[str, Loop], steps: int) -> dict[str, float]:
    """Return the median time of a step of each loop, measured in turn."""
    candidates = {name: lambda loop=loop: loop.run(steps) for name, loop in loops.items()}
    return {
        name: round(1000 * seconds / steps, 3)
        for name, seconds in alternate(candidates, rounds=5).items()
    }


def side_by_side(device: torch.device, runs: int, steps: int) -> float:
    """Return milliseconds a step of each of several captured runs, replayed in turn on streams."""
    loops = [Loop(device, True, "amp").capture() for _ in range(runs)]
    streams = [torch.cuda.Stream() for _ in loops]
    for loop in loops:
        loop.run(2)
    synchronize()
    started = time.perf_counter()
    with loops[0].learning.precision.switches():
        for _ in range(steps):
            for loop, stream in zip(loops, streams, strict=True):
                with torch.cuda.stream(stream):
                    loop.step(loop.batch)
        synchronize()
    return round(1000 * (time.perf_counter() - started) / steps, 3)


def same_losses(device: torch.device, later_task: bool, steps: int = 50) -> dict[str, float]:
    """Run the same steps eagerly and captured, and return the largest difference of the losses."""
    losses = []
    for captured in (False, True):
        loop = Loop(device, later_task)
        if captured:
            loop.capture()
        values = []
        for number in range(steps):
            before = loop.learning.totals.sums[0].clone()
            with loop.learning.precision.switches():
                loop.step((loop.batch + BATCH * number) % IMAGES)
            values.append(loop.learning.totals.sums[0] - before)
        losses.append(torch.stack(values).double().cpu())
    difference = (losses[0] - losses[1]).abs()
    return {"steps": steps, "largest": difference.max().item(), "first": difference[0].item()}


def main() -> None:
    """Measure, print a short table, and add it to the records."""
    parser = new_parser(__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    device, steps = pick_device(arguments.device), arguments.steps
    gpu = device.type == "cuda"
    precisions = ["fp32", "tf32", "amp"] if gpu else ["fp32"]
    found: dict[str, Any] = {"machine": machine(device), "batch": BATCH, "steps": steps}

    for later_task in (False, True):
        task = "later task (CSD)" if later_task else "first task"
        found[task] = {"profile": {}}
        for precision in precisions:
            found[task]["profile"][precision] = what = profile(Loop(device, later_task, precision))
            numbers = {name: value for name, value in what.items() if name != "longest"}
            print(f"{task}, {precision}: {numbers}", flush=True)
        loops = {}
        for precision in precisions:
            for channels_last in (False, True):
                layout = "channels_last" if channels_last else "NCHW"
                for captured in (False, True) if gpu else (False,):
                    # tf32 differs from fp32 in single switches of torch, set when a loop is made;
                    # so each loop is timed right after it is made.
                    loop = Loop(device, later_task, precision, channels_last)
                    loop = loop.capture() if captured else loop
                    how = "captured" if captured else "eager"
                    name = f"{precision} {layout} {how}"
                    loops[name] = milliseconds({name: loop}, steps)[name]
                    print(f"  {loops[name]:8.3f} ms  {name}", flush=True)
        found[task]["milliseconds"] = loops
        if gpu:
            pair = {"eager": Loop(device, later_task, "amp")}
            pair["captured"] = Loop(device, later_task, "amp").capture()
            times = milliseconds(pair, steps)
            found[task]["amp, in turn"] = {**times, "ratio": times["eager"] / times["captured"]}
            found[task]["captured = eager"] = same_losses(device, later_task)
            print(f"  in turn: {found[task]['amp, in turn']}", flush=True)
            print(f"  losses differ by: {found[task]['captured = eager']}", flush=True)
        write("step_anatomy", {**found, "complete": False}, arguments.out)
    if gpu:
        found["runs side by side, ms a step of all"] = {
            runs: side_by_side(device, runs, steps) for runs in (1, 2, 4, 8)
        }
        print(f"side by side: {found['runs side by side, ms a step of all']}", flush=True)
    if not arguments.no_compile:
        started = time.perf_counter()
        loop = Loop(device, True, "amp" if gpu else "fp32", compiled=True)
        loop.run(2)
        synchronize()
        warm_up = round(time.perf_counter() - started, 1)
        times = milliseconds({"compiled": loop}, steps)
        found["torch.compile"] = {"warm_up_seconds": warm_up, **times}
        print(f"torch.compile, later task: {found['torch.compile']}", flush=True)
    found["complete"] = True
    write("step_anatomy", found, arguments.out)


if __name__ == "__main__":
    main()
