"""Vectors of length 1, arithmetic in at least 32 bits, torch's random numbers and eval mode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csd_lib import checks


def in_full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a loss compute in float32, whatever its arguments are, and inside the caller's autocast.

    There products would be rounded to 16 bits: FECD's gradient would be 89 % off in bfloat16.
    """

    @functools.wraps(loss)
    def compute(*args: Any, **kwargs: Any) -> Tensor:
        args = tuple(at_least_float32(x) if isinstance(x, Tensor) else x for x in args)
        kwargs = {n: at_least_float32(x) if isinstance(x, Tensor) else x for n, x in kwargs.items()}
        first = next(iter((*args, *kwargs.values())), None)
        with without_autocast(first.device.type if isinstance(first, Tensor) else "cpu"):
            return loss(*args, **kwargs)

    return compute


def without_autocast(device_type: str) -> AbstractContextManager:
    """Context in which products are not rounded to 16 bits, whatever the caller has switched on."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


@contextmanager
def tf32(convolutions: bool) -> Iterator[None]:
    """Let a GPU round convolutions to TF32 or not, and matrix products never; then as before.

    torch 2.9 gave these switches new names, and refuses to tell the old ones to a program that has
    used the new. So both are kept, as far as they can be read.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    parts: list[Any] = [getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None), matmul]
    parts = [part for part in parts if hasattr(part, "fp32_precision")]
    new_names = [part.fp32_precision for part in parts]
    old_names: list[Any] = []
    for read in (lambda: cudnn.allow_tf32, torch.get_float32_matmul_precision):
        try:
            old_names.append(read())
        except RuntimeError:
            old_names.append(None)
    cudnn.allow_tf32 = convolutions
    torch.set_float32_matmul_precision("highest")
    for part in parts[:-1]:
        if (part.fp32_precision == "tf32") != convolutions:
            part.fp32_precision = "tf32" if convolutions else "ieee"
    try:
        yield
    finally:
        if old_names[0] is not None:
            cudnn.allow_tf32 = old_names[0]
        if old_names[1] is not None:
            torch.set_float32_matmul_precision(old_names[1])
        for part, value in zip(parts, new_names, strict=True):
            if part.fp32_precision != value:
                part.fp32_precision = value


@contextmanager
def true_float32(device_type: str) -> Iterator[None]:
    """Measure the same whatever training or the user has switched on: TF32, autocast, benchmark."""
    cudnn = torch.backends.cudnn
    benchmark = cudnn.benchmark
    cudnn.benchmark = False  # the algorithm that is fastest just now may round in another way
    try:
        with tf32(convolutions=False), without_autocast(device_type):
            yield
    finally:
        cudnn.benchmark = benchmark


@contextmanager
def torchs_numbers(device: torch.device, *seeds: int) -> Iterator[None]:
    """Let what draws from torch's own random numbers, as dropout does, depend on the seeds alone.

    Without seeds it goes on where it was. Afterwards torch's own numbers are as they were.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if seeds:
            torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]))
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Switch a network to eval mode, and put back the mode that each of its modules was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def in_parts(network: Callable[[Tensor], Any], batch: Tensor) -> Any:
    """Apply a network to a batch, in halves of halves where a GPU's memory is too small for it."""
    try:
        return network(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # Only here, after the exception, is what the attempt had made free again.
    return tuple(
        map(torch.cat, zip(*(in_parts(network, half) for half in batch.chunk(2)), strict=True))
    )


def unit_length(features: Tensor) -> Tensor:
    """Scale each row to Euclidean length 1; a row of zeros becomes zero, with a finite gradient.

    Rows are first divided by their largest entry, so that squares neither overflow nor vanish
    for features of size 1e20 or 1e-20. Where that entry is so small that its reciprocal would
    overflow in the gradient (below 1e-31 in float32), the row counts as one of zeros.
    """
    checks.batch(features=features)
    return rows_of_length_one(features)


def rows_of_length_one(features: Tensor) -> Tensor:
    """Do what ``unit_length`` does, for features that were checked already."""
    features = at_least_float32(features)
    largest = features.detach().abs().amax(dim=1, keepdim=True)
    info = torch.finfo(features.dtype)
    is_zero = largest < info.tiny / info.eps
    features = (features / torch.where(is_zero, 1.0, largest)).masked_fill(is_zero, 0.0)
    # A row that is not zero now has a length of at least 1, so 0.5 only touches rows of zeros.
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(0.5)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, and other types as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
