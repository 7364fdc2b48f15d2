"""A GPU that is not there: tensors that say they are on ``cuda:1`` and hide their numbers.

torch's ``FakeTensorMode`` runs CUDA code without a GPU too, but its tensors have no values, so a
run stops where the first one is read. Here every operation is computed on the CPU, in the same
slot of the dispatcher as that mode, and so is the backward pass: a whole run goes through, from
the images to the measured matrices, and its numbers must be a CPU run's. What a real GPU refuses
is refused (tensors of two devices in one operation), and what makes the host wait for it, or
copies from the host's memory, is counted; inside a step it is an error.

What it cannot see: kernels' own rounding, streams, the capture itself, how long anything takes.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode, enable_reentrant_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")
aten = torch.ops.aten
# How many elements come out depends on the values, so the host must wait to know.
SHAPE_FROM_VALUES = (
    *(aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive),
    *(aten.bincount, aten.repeat_interleave, aten.argwhere),
)
VALUE = (aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.item, aten.allclose)
COPIES = (aten._to_copy, aten.copy_, aten.copy)


class OnGpu(torch.Tensor):
    """A tensor on a GPU: shape, type and device as torch shows them, numbers out of reach."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, where: torch.device) -> OnGpu:
        shell = torch.empty_strided(
            numbers.shape, numbers.stride(), dtype=numbers.dtype, device="meta"
        )
        self = torch.Tensor._make_subclass(
            cls, shell, False, dispatch_device=True, device_for_backend_keys=where
        )
        self.numbers, self.where = numbers, where
        return self

    @property
    def device(self) -> torch.device:
        return self.where

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} after the pretended GPU was gone")

    def __deepcopy__(self, memo: dict) -> OnGpu:
        twin = OnGpu(self.numbers.detach().clone(), self.where).requires_grad_(self.requires_grad)
        twin._is_param = getattr(self, "_is_param", False)
        memo[id(self)] = twin
        return twin

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)

    def tolist(self) -> list:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnGpu({tuple(self.shape)}, {self.dtype}, {self.where})"


def _each(values: Any, function: Any) -> Any:
    """Return the same tuples, lists and dicts with the function's value for each of their leaves.

    Torch's own way knows more containers, and takes half of the time of all tests here.
    """
    if isinstance(values, (tuple, list)):
        return type(values)([_each(value, function) for value in values])
    if isinstance(values, dict):
        return {name: _each(value, function) for name, value in values.items()}
    return function(values)


class Generator(torch.Generator):
    """A generator that knows on which device it draws; its numbers are a CPU generator's."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        self = super().__new__(cls, "cpu")
        self.where = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.where

    def graphsafe_set_state(self, other: Generator) -> None:
        self.set_state(other.get_state())


class Draws(TorchFunctionMode):
    """Refuses a generator of another device, which the dispatcher passes on without its name."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator, device = kwargs.get("generator"), torch.device(kwargs.get("device") or "cpu")
        if generator is not None and generator.device.type != device.type:
            raise RuntimeError(f"{func}: a generator on {device} is needed, not {generator.device}")
        return func(*args, **kwargs)


class Graph:
    """Stands in for a CUDA graph: keeps the step that was recorded, and runs it at each replay."""

    def __init__(self) -> None:
        self.generators, self.recorded, self.replays = [], None, 0

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        self.replays += 1
        self.recorded()


class Stream:
    """Stands in for a stream; what is on it is done at once."""

    def __init__(self, device: Any = None):
        self.device = torch.device(device) if device is not None else None

    def wait_stream(self, other: Stream) -> None:
        pass


class PretendGpu(TorchDispatchMode):
    """While it is entered, ``device`` is a GPU that this program can use.

    Attributes:
        reads: how often the host waited for a value, by operation.
        copies: how often the host's memory was copied to the GPU, by operation.
        steps: how many training steps were taken.
        current: what ``torch.cuda.current_device()`` would return.
    """

    # The slot of FakeTensorMode: in it torch does not ask the driver for a device.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self, device: str, capability: tuple[int, int]):
        super().__init__()
        self.where, self.capability = torch.device(device), capability
        self.reads: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.steps, self.current, self._inside = 0, 0, False
        self._leaves: dict[int, weakref.ref] = {}
        self.recording: Graph | None = None
        self.graphs: list[weakref.ref[Graph]] = []

    @contextlib.contextmanager
    def record(self, graph: Graph, stream: Stream) -> Iterator[None]:
        """Do what ``torch.cuda.graph`` does: a step in this block is kept and not taken."""
        assert stream.device == self.where and self.current == self.where.index
        self.recording = graph
        self.graphs.append(weakref.ref(graph))
        try:
            yield
        finally:
            self.recording = None

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Enter a training step, in which the host may neither wait nor copy."""
        self._inside, self.steps = True, self.steps + 1
        try:
            yield
        finally:
            self._inside = False

    @contextlib.contextmanager
    def device_context(self, device: Any) -> Iterator[None]:
        """Do what ``torch.cuda.device`` does."""
        before, index = self.current, torch.device(device).index
        self.current = before if index is None else index
        try:
            yield
        finally:
            self.current = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].where
        kwargs = kwargs or {}
        tensors: list[torch.Tensor] = []
        _each((args, kwargs), lambda v: isinstance(v, torch.Tensor) and tensors.append(v))
        on_gpu = [value for value in tensors if isinstance(value, OnGpu)]
        asked = kwargs.get("device")
        target = torch.device(asked or (on_gpu[0].where if on_gpu else CPU))
        if target.type == "cuda" and target.index is None:
            target = torch.device("cuda", self.current)
        self._watch(func, target, tensors, on_gpu, args)
        shells: dict[int, OnGpu] = {}

        def to_host(value: Any) -> Any:
            if isinstance(value, OnGpu):
                if value.requires_grad and value.is_leaf:  # a parameter
                    value.numbers.requires_grad_()
                    self._leaves[id(value)] = weakref.ref(value)
                shells[id(value.numbers)] = value
                return value.numbers
            is_gpu = isinstance(value, torch.device) and value.type == "cuda"
            return CPU if is_gpu else value

        host_args, host_kwargs = _each((args, kwargs), to_host)
        # Autograd records the operation on the numbers, so that there is something to run backward.
        with enable_reentrant_dispatch() if on_gpu else contextlib.nullcontext():
            if func is aten.cudnn_batch_norm.default:  # the only kernel here that a CPU lacks
                result = aten.native_batch_norm(*host_args)
                result = (*result, result[0].new_empty(0, dtype=torch.uint8))
            else:
                result = func(*host_args, **host_kwargs)

        def to_gpu(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if target.type != "cuda":
                return value.detach() if on_gpu else value
            return shells[id(value)] if id(value) in shells else OnGpu(value, target)

        return _each(result, to_gpu)

    def _watch(self, func, target, tensors, on_gpu, args) -> None:
        """Refuse what a GPU refuses, and count or refuse what makes the host wait or copy."""
        op = func.overloadpacket
        if not on_gpu and target.type != "cuda":
            return
        places = {tensor.device for tensor in tensors if tensor.ndim} | {t.where for t in on_gpu}
        is_index = op in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)
        if op not in COPIES:
            if is_index:  # indices may be on the CPU: they are copied
                places = {args[0].device} | {p for p in places if p.type == "cuda"}
            if len(places | ({target} if on_gpu else set())) > 1:
                raise RuntimeError(f"{func}: tensors on {sorted(map(str, places))}, not on one")
        masks = is_index and any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
        masks = masks and not (op is not aten.index and tensors[-1].dtype == torch.bool)
        to_host = (
            op in COPIES
            and on_gpu
            and (target.type == "cpu" or (op is aten.copy_ and not isinstance(args[0], OnGpu)))
        )
        if op in VALUE or op in SHAPE_FROM_VALUES or to_host or masks:
            self._note(self.reads, func, "the host waits for the GPU")
        elif op is not aten.fill_ and len(on_gpu) < len(tensors):  # a filling number is no copy
            self._note(self.copies, func, "the host's memory is copied to the GPU")
        if self._inside and self.current != target.index and target.type == "cuda":
            raise AssertionError(f"{func} on {target}, while cuda:{self.current} is current")

    def _note(self, counts: Counter[str], func: Any, what: str) -> None:
        assert not self._inside, f"inside a step {what}: {func}"
        counts[str(func)] += 1

    def backward(self, loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        """Do what ``Tensor.backward`` does, through the operations on the numbers."""
        if not isinstance(loss, OnGpu):
            return self.real_backward(loss, *arguments, **options)
        self.real_backward(loss.numbers)
        for reference in self._leaves.values():
            leaf = reference()
            if leaf is not None and leaf.numbers.grad is not None:
                gradient, leaf.numbers.grad = OnGpu(leaf.numbers.grad, leaf.where), None
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return None


@contextlib.contextmanager
def pretend_gpu(
    device: str = "cuda:1", capability: tuple[int, int] = (8, 0)
) -> Iterator[PretendGpu]:
    """Let torch believe in a GPU. Each stub stands for something that only a driver can do."""
    gpu = PretendGpu(device, capability)
    with pytest.MonkeyPatch.context() as patch:
        # What torch asks the driver about the card.
        answers = {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "is_bf16_supported": lambda including_emulation=True: True,
            "get_device_capability": lambda device=None: gpu.capability,
            "get_device_name": lambda device=None: "a pretended GPU",
            "max_memory_allocated": lambda device=None: 0,
            "mem_get_info": lambda device=None: (15 * 2**30, 16 * 2**30),
            "synchronize": lambda device=None: None,
            "empty_cache": lambda: None,
            "current_device": lambda: gpu.current,
            "get_rng_state": lambda device=None: None,  # its own numbers are the CPU's here
            "set_rng_state": lambda state, device=None: None,
            "is_current_stream_capturing": lambda: False,
            "device": gpu.device_context,
            # Streams and graphs: what is put on them is done at once, or at each replay.
            "Stream": Stream,
            "current_stream": Stream,
            "stream": lambda stream: contextlib.nullcontext(),
            "CUDAGraph": Graph,
            "graph": gpu.record,
        }
        for name, answer in answers.items():
            patch.setattr(torch.cuda, name, answer)
        # The autograd engine asks for the device's streams before it runs anything.
        gpu.real_backward = torch.Tensor.backward
        patch.setattr(torch.Tensor, "backward", lambda *a, **k: gpu.backward(*a, **k))
        # A CUDA generator is made by the driver's library.
        patch.setattr(torch, "Generator", Generator)
        # A file's tensors go back to the device they came from, unless torch.load is told.
        load = torch.load

        def load_as_told(*arguments: Any, map_location: Any = None, **options: Any) -> Any:
            assert map_location == "cpu", f"torch.load(map_location={map_location!r}) needs a GPU"
            return load(*arguments, map_location=map_location, **options)

        patch.setattr(torch, "load", load_as_told)
        # Module.to puts other numbers into a parameter, which cannot become one on another device.
        kept = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        # torch.tensor(..., device=...) then makes it on the CPU and copies it, as it does anyway.
        torch._C._set_only_lift_cpu_tensors(True)
        # Operations make their tensor's device the current one.
        torch._C._ensureCUDADeviceGuardSet()
        try:
            with gpu, Draws():
                yield gpu
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(kept)
            torch._C._set_only_lift_cpu_tensors(False)
