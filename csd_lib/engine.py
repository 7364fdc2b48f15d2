"""What makes the one training step fast: device, precision, and its capture in a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from csd_lib import InputError, checks
from csd_lib.model import Network
from csd_lib.networks import top_and_backbone
from csd_lib.numerics import tf32, torchs_numbers


def pick_device(name: str) -> torch.device:
    """Return the device of a name, or raise InputError if this machine does not have it."""
    checks.instance("device", name, str, "its name, such as auto or cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # some, such as meta, can hold no value
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        reason = checks.first_line(error, 160)
        if reason.startswith("Expected one of"):  # followed by all that PyTorch was ever built for
            reason = "there is no such kind"
        raise InputError(
            f"device={checks.shown(name)} cannot be used here ({reason}): try auto, cpu, cuda, "
            f"cuda:1 or mps"
        ) from error
    return torch.device("cpu") if device.type == "cpu" else device  # cpu:0 is the same


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the 16-bit type that this device computes in by itself, or None if there is none.

    A T4 answers that it supports bfloat16 but only emulates it, so the compute capability decides.
    """
    checks.instance("device", device, torch.device, "what pick_device returns")
    if device.type == "cuda":
        recent = torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if recent else torch.float16
    if device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return torch.bfloat16
    return None


class Precision:
    """How the network computes: ``fp32``, ``tf32`` or ``amp``. The losses are always in float32.

    Raises:
        InputError: if the device cannot do that, or would be slower for it.
    """

    def __init__(self, name: str, device: torch.device):
        checks.one_of("precision", name, ("fp32", "tf32", "amp"))
        dtype = half_precision(device)
        if name == "tf32" and (dtype is not torch.bfloat16 or device.type == "cpu"):
            raise InputError(
                f"precision='tf32' needs an NVIDIA GPU of compute capability 8.0 or more, not "
                f"{device}: choose fp32"
            )
        if name == "amp" and dtype is None:
            raise InputError(
                f"precision='amp': {device} has no 16-bit arithmetic of its own, so it would be "
                f"slower than fp32: choose fp32"
            )
        self.device, self.tf32 = device, name == "tf32"
        self.dtype = dtype if name == "amp" else None
        # Small gradients vanish in float16 unless the loss is scaled up; bfloat16 has the range.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> torch.autocast:
        """Context in which the network's convolutions run in 16 bits, if this precision says so."""
        # A CUDA graph must not keep weights that were cast before it was captured.
        enabled = self.dtype is not None
        return torch.autocast(self.device.type, self.dtype, enabled=enabled, cache_enabled=False)

    @contextmanager
    def switches(self) -> Iterator[None]:
        """Set torch's switches and its current GPU for a run, and put them back at the end."""
        cudnn = torch.backends.cudnn
        benchmark, flushed = cudnn.benchmark, flushes_denormals()
        cudnn.benchmark = True  # every step has the same shapes
        # Adam with weight decay shrinks some numbers until a CPU handles them ten times slower.
        torch.set_flush_denormal(True)
        full = False
        try:
            # Only convolutions are in TF32: CSD divides the products of its features by 0.07.
            with tf32(convolutions=self.tf32), on_device(self.device):
                yield
        except torch.OutOfMemoryError:
            full = True
        finally:
            cudnn.benchmark = benchmark
            torch.set_flush_denormal(flushed)
        if full:  # not in a step: ``Steps`` would have said which batch fits
            raise InputError(
                f"{self.device}: its memory is too small for the images and the network: end what "
                f"else uses it (nvidia-smi lists that), or take fewer or smaller images"
            )


def on_device(device: torch.device) -> AbstractContextManager:
    """Context in which a GPU is the current one: streams, graphs and their memory belong to it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flushes_denormals() -> bool:
    """Say whether this thread's CPU arithmetic turns numbers below 1e-38 into zero."""
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    return (smallest / 2).item() == 0


def check_machine(
    name: str, precision: str, cuda_graph: str | bool
) -> tuple[torch.device, Precision]:
    """Return a config's device and precision, or raise InputError if this machine lacks one."""
    checks.automatic("cuda_graph", cuda_graph)
    device = pick_device(name)
    if str(cuda_graph).lower() == "true" and device.type != "cuda":
        raise InputError(f"cuda_graph=true needs an NVIDIA GPU, not {device}: leave it out")
    return device, Precision(precision, device)


def make_optimizer(
    name: str,
    model: Network,
    weight_decay: float,
    device: torch.device,
    backbone_rate: float = 1.0,
) -> torch.optim.Optimizer:
    """Return a new optimiser over all parameters, in the form that a CUDA graph can hold.

    Those below embedding and head learn at ``backbone_rate`` times the learning rate; at 0 they are
    left out.
    """
    graphable = device.type == "cuda"
    common: dict[str, Any] = dict(weight_decay=weight_decay, fused=device.type in ("cuda", "cpu"))
    groups: list[dict[str, Any]] = [{"params": [*model.parameters()]}]
    if backbone_rate != 1:
        top, below = top_and_backbone(model)
        groups = [{"params": top}]
        groups += [{"params": below, "rate": backbone_rate}] if below and backbone_rate else []
    for group in groups:  # each has its own, which set_learning_rate fills
        group["lr"] = torch.zeros((), device=device) if graphable else 0.0
    if name == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, **common)
    return torch.optim.Adam(groups, capturable=graphable, **common)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate in place, so that a captured step sees it too."""
    for group in optimizer.param_groups:
        rate = value * group.get("rate", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a checkpoint's state, keeping the learning rate where the optimiser had put it.

    Raises a ValueError for one of other shapes than the parameters, or that is not finite.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (LookupError, TypeError, AttributeError) as error:  # torch's, for a state of another
        raise ValueError(f"it is not the state of this optimizer ({error!r})") from error
    for parameter, moments in optimizer.state.items():
        for name, tensor in moments.items():
            if (tensor.ndim and tensor.shape != parameter.shape) or not tensor.isfinite().all():
                raise ValueError(f"{name} of a parameter {tuple(parameter.shape)} does not fit it")
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


class StepState:
    """All that a training step changes, so that it can be put back as it was.

    ``networks`` are the student and the teacher, if any; ``totals`` the running sums of the losses.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        totals: Tensor,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        generator: torch.Generator,
    ):
        parts = [(*network.parameters(), *network.buffers()) for network in networks]
        self.tensors, self.totals = [*sum(parts, ()), totals], totals
        self.optimizer, self.scaler, self.generator = optimizer, scaler, generator

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Undo, in place, whatever the steps inside the context do, also if one fails."""
        tensors = [tensor.detach().clone() for tensor in self.tensors]
        moments = copy.deepcopy(self.optimizer.state_dict()["state"])
        scale, random_state = self.scaler.state_dict(), self.generator.get_state()
        try:
            with torchs_numbers(self.totals.device):
                yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(self.tensors, tensors, strict=True):
                    tensor.copy_(before)
                # In place, because a graph keeps the addresses. A new optimiser starts from zeros.
                for index, state in self.optimizer.state_dict()["state"].items():
                    for name, tensor in state.items():
                        if isinstance(tensor, Tensor):
                            tensor.copy_(moments[index][name]) if moments else tensor.zero_()
            self.scaler.load_state_dict(scale)
            # What a step that broke off has begun: the scaler would refuse the next one.
            getattr(self.scaler, "_per_optimizer_states", {}).clear()
            self.generator.set_state(random_state)
            self.optimizer.zero_grad(set_to_none=True)


class CapturedStep:
    """The same step as one CUDA graph: the CPU launches it in one go, not kernel by kernel.

    The first batch is recorded: three rehearsals let cuDNN choose its algorithms and Adam make its
    state, everything they moved is put back, then the kernels are recorded without being run. From
    then on a step copies its batch, of the same size, into place and replays them.

    Args:
        step: takes the indices of a batch (int64 ``[B]``) and only enqueues work on the device.
        state: what the step changes.
    """

    def __init__(self, step: Callable[[Tensor], None], state: StepState):
        self.step, self.state = step, state
        self.recorded: tuple[Tensor, torch.cuda.CUDAGraph] | None = None

    def __call__(self, batch: Tensor) -> None:
        """Run the step on a batch."""
        if self.recorded is None:
            self.recorded = self._capture(batch.clone())
        static_batch, graph = self.recorded
        static_batch.copy_(batch)
        graph.replay()

    def _capture(self, static_batch: Tensor) -> tuple[Tensor, torch.cuda.CUDAGraph]:
        # A stream of this GPU: torch's own belongs to the one that was captured on first.
        side_stream = torch.cuda.Stream(self.state.totals.device)
        side_stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        # Around the capture too, which leaves its stream current when its end fails.
        with torch.cuda.stream(side_stream):
            self.rehearse(static_batch)
            graph.register_generator_state(self.state.generator)
            with torch.cuda.graph(graph, stream=side_stream):
                self.step(static_batch)
        torch.cuda.current_stream().wait_stream(side_stream)
        return static_batch, graph

    def rehearse(self, batch: Tensor) -> None:
        """Run the step three times and leave everything as it was."""
        with self.state.put_back():
            for _ in range(3):
                self.step(batch)
