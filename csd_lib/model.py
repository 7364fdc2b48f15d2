"""Networks with a normalised head that grows with every task; the paper's ResNet is one of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csd_lib import checks
from csd_lib.numerics import at_least_float32, without_autocast

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and a shortcut without parameters.

    Where the block halves the image, the shortcut takes every second pixel and fills the new
    channels with zeros (option A of He et al. 2016).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.stride, self.new_channels = stride, channels_out - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, channels_out, H / stride, W / stride]`` for ``[B, channels_in, H, W]``."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)) + shortcut)


class NormalizedHead(nn.Module):
    """A linear classifier without bias whose rows, one per class, have length 1.

    It starts without rows and grows with every task; old rows keep their values.
    """

    def __init__(self, feature_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, feature_size))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of features ``[B, feature_size]``."""
        return F.linear(features, self.weight)

    @torch.no_grad()
    def grow(self, rows: Tensor) -> None:
        """Append rows ``[new classes, feature_size]`` of any length, normalised."""
        self.weight = nn.Parameter(torch.cat([self.weight, F.normalize(rows.to(self.weight))]))

    @torch.no_grad()
    def normalize_(self) -> None:
        """Scale every row back to length 1, in place, after an optimiser step."""
        self.weight.copy_(F.normalize(self.weight))


class Network(nn.Module):
    """What every network of this kit is: ``features, logits = network(images)``, and a head.

    To bring your own, subclass it: call ``super().__init__`` first, define ``backbone``, compute in
    the type of your parameters, and add a line to ``NETWORKS``.

    Args:
        feature_size: D, the length of the features.
        mean, std: channel statistics for pixel values in [0, 1], kept with the model so that
            images are normalised the same way in training and retrieval.
    """

    mean: Tensor
    std: Tensor
    smallest_image = 1  # height and width that the network needs at least

    def __init__(self, feature_size: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        checks.whole("feature_size", feature_size, 1, 100_000)
        checks.channels(mean, std, len(mean))
        self.feature_size = feature_size
        self.head = NormalizedHead(feature_size)
        self.added_embedding: nn.Linear | None = None
        self.backbone_is_frozen = False
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def backbone(self, images: Tensor) -> Tensor:
        """Return features ``[B, D]`` of normalised images ``[B, C, H, W]``: yours to define."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features ``[B, D]`` and logits ``[B, num_classes]`` of images ``[B, C, H, W]``.

        uint8 images are scaled to [0, 1] and normalised here; float images are taken as
        normalised already.
        """
        checks.images("images", images, like=self.mean)
        x = self.normalize_images(images) if images.dtype == torch.uint8 else images
        features = self.backbone(x)
        # Under autocast the convolutions are in half precision; what the losses see is not.
        with without_autocast(x.device.type):
            features = at_least_float32(features)
            if self.added_embedding is not None:
                features = self.added_embedding(features)
            return features, self.head(features)

    def normalize_images(self, images: Tensor) -> Tensor:
        """Turn uint8 images into floats with the model's mean and standard deviation."""
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std

    def train(self, mode: bool = True) -> Network:
        """Switch to training or to evaluation, in which a frozen backbone stays."""
        super().train(mode)
        for module in self.children() if self.backbone_is_frozen else ():
            if module not in (self.head, self.added_embedding):
                module.eval()
        return self

    @property
    def num_classes(self) -> int:
        """Rows of the head, which is the number of classes seen so far."""
        return self.head.weight.shape[0]

    def grow_head(self, new_classes: int, generator: torch.Generator | None = None) -> None:
        """Add a row in a random direction for each new class (the published code's way)."""
        checks.whole("new_classes", new_classes, 0, 1_000_000)
        checks.generator("generator", generator, torch.device("cpu"))
        self.head.grow(torch.randn(new_classes, self.feature_size, generator=generator))


class ResNet(Network):
    """ResNet-(6n + 2) for small images: ``features, logits = model(images)``.

    Three stages of n blocks with 16, 32 and 64 channels, a final ReLU and global average pooling
    give a 64-d feature, which is not normalised. The head is linear without bias; its rows, one
    per class seen so far, have length 1. Depth 32 with 100 classes and 3 channels has 469,904
    parameters, as in the published code. Depth 8 suits 8x8 digits.

    Args:
        depth: 8, 14, 20, 26, 32, ...
        num_classes: rows of the head to begin with; ``grow_head`` adds more.
        in_channels: 3 for colour images, 1 for grey ones.
        mean, std: as of ``Network``. Default: 0 and 1.
        seed: decides the initial weights. The global random state is left as it was.
    """

    def __init__(
        self,
        depth: int = 32,
        num_classes: int = 0,
        in_channels: int = 3,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        seed: int = 0,
    ):
        checks.depth("depth", depth)
        checks.whole("num_classes", num_classes, 0, 1_000_000)
        checks.whole("in_channels", in_channels, 1, 1000)
        checks.seed("seed", seed)
        mean = (0.0,) * in_channels if mean is None else mean
        std = (1.0,) * in_channels if std is None else std
        checks.channels(mean, std, in_channels)
        super().__init__(64, mean, std)
        blocks = (depth - 2) // 6
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(16)
            self.stage1 = self._stage(16, 16, 1, blocks)
            self.stage2 = self._stage(16, 32, 2, blocks)
            self.stage3 = self._stage(32, 64, 2, blocks)
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        if num_classes:
            self.grow_head(num_classes, torch.Generator().manual_seed(seed))

    @staticmethod
    def _stage(channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Sequential:
        others = (Block(channels_out, channels_out, 1) for _ in range(blocks - 1))
        return nn.Sequential(Block(channels_in, channels_out, stride), *others)

    def backbone(self, images: Tensor) -> Tensor:
        """Return features ``[B, 64]`` of normalised images ``[B, C, H, W]``."""
        x = F.relu(self.norm(self.stem(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return at_least_float32(x).mean(dim=(2, 3))


def freeze(model: AnyModule) -> AnyModule:
    """Return a copy of the model that never changes: the teacher of the next task.

    Parameters take no gradient, and batch normalisation uses its running statistics (the
    published code leaves its teacher in train mode, where they drift).

    Raises:
        InputError: for what is no network.
    """
    checks.instance("model", model, nn.Module, "a network, such as a ResNet")
    teacher = copy.deepcopy(model).eval()
    return teacher.requires_grad_(False)
