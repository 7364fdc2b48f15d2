"""Images that stay in a file: only the batch that is asked for is ever copied into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class StoredImages:
    """Stands for a uint8 tensor ``[N, C, H, W]`` that is too large for memory.

    Training and measuring index it, split it and ask for its shape; what they get are ordinary
    tensors, with the same bytes in the same memory order as from a tensor.

    Args:
        pixels: uint8 ``[M, H, W, C]`` on the CPU, in a memory-mapped file.
        rows: int64 ``[N]``: which of the M images these are.
        device: where the batches are moved.
    """

    ndim, dtype, is_meta = 4, torch.uint8, False

    def __init__(self, pixels: Tensor, rows: Tensor, device: torch.device | str = "cpu"):
        self.pixels, self.rows, self.device = pixels, rows, torch.device(device)
        _, height, width, channels = pixels.shape
        self.shape = torch.Size((len(rows), channels, height, width))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | list[int] | Tensor) -> Tensor:
        """Return a copy of some images, as a tensor on ``device``."""
        index = index.cpu() if isinstance(index, Tensor) else index
        return self.pixels[self.rows[index]].movedim(-1, -3).contiguous().to(self.device)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, in batches of ``size``."""
        return (self[first : first + size] for first in range(0, len(self), size))

    def to(self, device: torch.device | str) -> StoredImages:
        """Return the same images, whose batches will be on another device."""
        return StoredImages(self.pixels, self.rows, device)


def select(images: Tensor | StoredImages, chosen: Tensor) -> Tensor | StoredImages:
    """Return some images (bool ``[N]``, or int64 indices); those in a file stay there."""
    if not isinstance(images, StoredImages):
        return images[chosen]
    return StoredImages(images.pixels, images.rows[chosen.cpu()], images.device)


HASHED_AT_ONCE = 4096  # images, for those that are in a file


def sha256(first: str, parts: Sequence[Tensor | StoredImages]) -> str:
    """Return the hash of a text and of tensors, with their types and shapes."""
    digest = hashlib.sha256(first.encode())
    for part in parts:
        digest.update(repr((part.dtype, tuple(part.shape))).encode())
        for chunk in part.split(HASHED_AT_ONCE):
            digest.update(chunk.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def join(parts: Sequence[Tensor | StoredImages]) -> Tensor | StoredImages:
    """Return all images of several parts; those in a file stay there, which must be one file."""
    first = parts[0]
    if not isinstance(first, StoredImages):
        return torch.cat(parts)  # type: ignore[arg-type]
    assert all(part.pixels is first.pixels for part in parts)  # type: ignore[union-attr]
    return StoredImages(
        first.pixels,
        torch.cat([part.rows for part in parts]),  # type: ignore[union-attr]
        first.device,
    )
