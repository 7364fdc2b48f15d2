"""How a task's steps are taken on this GPU: as they are written, or replayed as one CUDA graph.

A graph saves the time in which the CPU launches a step's kernels one by one. Whether it may be used
is not believed but tried, at the start of every task: a few steps are taken in both ways from the
same state, compared, and timed. Everything is then as it was before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from csd_lib import InputError
from csd_lib.engine import CapturedStep, StepState, wait_for

STEPS = 5  # that are compared
# Of each loss, and of the way that each tensor goes in one step. Two eager steps from one state
# may differ too, if the GPU adds in another order: four times that much is allowed on top.
# Several steps in a row are not compared, because Adam and the hardest triplets can blow up the
# last digits: on an H100 a graph was refused for 8 % after five.
TOLERANCE = 0.03
# A longer step has the GPU at work all the time, and its trial would take more than 15 seconds. (On
# the slow CPU beside an H100 a step took 51 ms that took 9 as a graph.)
LONG_STEP = 0.2


@dataclass(frozen=True)
class Decision:
    """How the steps of one size are taken, and why."""

    batch_size: int
    captured: bool
    reason: str
    eager_ms: float | None = None
    captured_ms: float | None = None
    difference: float | None = None  # of the two ways, as a share

    def __str__(self) -> str:
        times = [
            f"{name} {value:.2f} ms a step"
            for name, value in (("eager", self.eager_ms), ("captured", self.captured_ms))
            if value is not None
        ]
        if self.difference is not None:
            times.append(f"they differ by {self.difference:.1e}")
        how = "captured in a CUDA graph" if self.captured else "eager"
        return f"steps of {self.batch_size} images: {how} ({'; '.join([self.reason, *times])})"

    def for_record(self) -> dict[str, Any]:
        """Return what ``results.json`` keeps."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class _Trial:
    """What one step has done."""

    numbers: Tensor  # [totals]: what it has added to the running sums
    moved: list[Tensor]  # how far each tensor has gone
    random_state: Tensor

    def distance(self, other: _Trial) -> float:
        """Return the largest difference in losses and movements, as a share of their size."""
        pairs = [
            *zip(self.numbers, other.numbers, strict=True),
            *zip(self.moved, other.moved, strict=True),
        ]
        shares = [
            (b.double() - a.double()).norm() / a.double().norm().clamp_min(1e-12) for a, b in pairs
        ]
        return torch.stack(shares).nan_to_num(nan=torch.inf, posinf=torch.inf).max().item()

    def does_nothing(self) -> bool:
        """Say whether the sums are exactly 0 and no tensor has changed."""
        return not any(tensor.any().item() for tensor in (self.numbers, *self.moved))


class Steps:
    """Takes the steps of one task.

    Args:
        step, state: as of ``CapturedStep``.
        cuda_graph: "auto", "true" or "false", as in ``TrainConfig``.
        images: how many images the task has.
    """

    def __init__(
        self, step: Callable[[Tensor], None], state: StepState, cuda_graph: str, images: int
    ):
        self.step, self.state, self.images = step, state, images
        on_gpu = state.totals.device.type == "cuda"
        self.may_capture = cuda_graph == "true" or (cuda_graph == "auto" and on_gpu)
        self.must_capture = cuda_graph == "true"
        self.chosen: dict[int, Callable[[Tensor], None]] = {}
        self.new_decisions: list[Decision] = []

    def __call__(self, batch: Tensor) -> None:
        """Take a step; InputError if the memory is too small, or it must be captured and cannot."""
        full = False
        try:
            if len(batch) not in self.chosen:
                self.chosen[len(batch)] = self._choose(batch)
            self.chosen[len(batch)](batch)
        except torch.OutOfMemoryError:
            full = True  # only after this block is what the step had made free again
        if full:
            raise self._out_of_memory(batch)

    def take_decisions(self) -> list[Decision]:
        """Return the decisions since the last call."""
        taken, self.new_decisions = self.new_decisions, []
        return taken

    def release(self) -> None:
        """Give back the graphs and the memory that belongs to them."""
        had_graphs = any(isinstance(way, CapturedStep) for way in self.chosen.values())
        self.chosen.clear()
        if had_graphs:
            self.state.optimizer.zero_grad(set_to_none=True)  # they lie in a graph's memory
            torch.cuda.empty_cache()

    def _choose(self, batch: Tensor) -> Callable[[Tensor], None]:
        if not self.may_capture:
            return self.step
        captured = CapturedStep(self.step, self.state)
        random_state = self.state.generator.get_state()
        try:
            with self.state.put_back():
                decision = self._decide(captured, batch)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            decision = Decision(len(batch), False, f"it cannot be captured: {reason}")
        if not decision.captured:
            captured.recorded = None
            self._recover(random_state)
            if self.must_capture:
                raise InputError(f"cuda_graph=true: {decision.reason}: choose auto")
        self.new_decisions.append(decision)
        return captured if decision.captured else self.step

    def _recover(self, random_state: Tensor) -> None:
        """Let eager steps go on after a capture that broke off."""
        # In the middle of a capture a generator refuses to draw for anything else.
        generator = self.state.generator
        fresh = torch.Generator(generator.device)
        fresh.set_state(random_state)
        if generator.device.type == "cuda":
            generator.graphsafe_set_state(fresh)
            torch.cuda.empty_cache()
        else:
            generator.set_state(random_state)

    def _decide(self, captured: CapturedStep, batch: Tensor) -> Decision:
        """Take a few steps in both ways, and compare."""
        size = len(batch)
        # Other images in each step: a graph may not keep those that it was recorded with.
        batches = [(batch + 7 * number) % self.images for number in range(STEPS)]
        self._seconds(self.step, batches[:2])  # cuDNN looks for its algorithms
        eager_ms = 1000 * self._seconds(self.step, batches[:2])
        if eager_ms > 1000 * LONG_STEP and not self.must_capture:
            reason = "the GPU is at work all the time: a graph would save next to nothing"
            return Decision(size, False, reason, eager_ms)
        noise = difference = 0.0
        for batch in batches:  # each step from where the eager ones before it have led
            replayed, again = self._try(captured, batch), self._try(self.step, batch)
            eager = self._try(self.step, batch, stay=True)
            noise = max(noise, eager.distance(again))
            difference = max(difference, eager.distance(replayed))
            if replayed.does_nothing() and not eager.does_nothing():
                return Decision(size, False, "a replay does nothing", eager_ms, None, difference)
            if not torch.equal(eager.random_state, replayed.random_state):
                reason = "it draws other random numbers"
                return Decision(size, False, reason, eager_ms, None, difference)
        allowed = TOLERANCE + 4 * noise
        if not difference <= allowed:
            reason = f"it computes something else: more than {allowed:.1e}"
            return Decision(size, False, reason, eager_ms, None, difference)
        ways = (self.step, captured, captured, self.step)  # neither is always the first
        first, second, third, fourth = (1000 * self._seconds(way, batches * 2) for way in ways)
        eager_ms, captured_ms = min(first, fourth), min(second, third)
        faster = captured_ms < eager_ms
        reason = "the faster of the two" if faster else "a graph is not faster"
        is_used = faster or self.must_capture
        return Decision(size, is_used, reason, eager_ms, captured_ms, difference)

    def _seconds(self, way: Callable[[Tensor], None], batches: list[Tensor]) -> float:
        """Return how long a step takes, and leave no trace."""
        with self.state.put_back():
            wait_for(self.state.totals.device)
            started = time.perf_counter()
            for batch in batches:
                way(batch)
            wait_for(self.state.totals.device)
            return (time.perf_counter() - started) / len(batches)

    def _try(self, way: Callable[[Tensor], None], batch: Tensor, stay: bool = False) -> _Trial:
        """Return what a step does, and stay there or leave no trace."""
        totals = self.state.totals
        with nullcontext() if stay else self.state.put_back():
            before = [tensor.detach().clone() for tensor in self.state.tensors]
            sums = totals.clone()
            way(batch)
            pairs = zip(self.state.tensors, before, strict=True)
            moved = [(tensor.detach() - old).float() for tensor, old in pairs]
            return _Trial(totals - sums, moved, self.state.generator.get_state())

    def _out_of_memory(self, batch: Tensor) -> InputError:
        """Say which batch size would fit, after trying."""
        self.release()
        size = len(batch)
        while size > 1:
            size //= 2
            torch.cuda.empty_cache()
            try:
                with self.state.put_back():
                    self.step(batch[:size])
                break
            except torch.OutOfMemoryError:
                continue
        free, total = torch.cuda.mem_get_info(self.state.totals.device)
        fits = f"batch_size={size} fits" if size > 1 else "not even a step of two images fits"
        return InputError(
            f"batch_size={len(batch)}: the GPU's memory is too small for it ({total / 1e9:.1f} GB, "
            f"of which {free / 1e9:.1f} are free now): {fits}; precision=amp needs less, and so "
            f"does a GPU that nothing else uses"
        )
