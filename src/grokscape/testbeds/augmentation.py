"""From stored pixels to what a network sees: scaling, and crops and flips that follow from a seed and a step alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

_MIX = 6_364_136_223


@dataclass(frozen=True)
class ImageTransform:
    """How stored images (…, C, H, W) become inputs: (x/255 − mean)/std for uint8, (x − mean)/std for floating point.

    Attributes:
        mean, std: per channel.
        crop: pixels of black border from which a window of the old size is cut at random, in training only; 0 for none.
        flip: whether half of the training images are mirrored.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: int = 0
    flip: bool = False

    @property
    def random(self) -> bool:
        """Whether training images differ from step to step."""
        return self.crop > 0 or self.flip

    def inputs(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """What the network sees, (…, C, H, W)."""
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        mean, std = (torch.tensor(v, dtype=dtype, device=images.device)[:, None, None] for v in (self.mean, self.std))
        return (images.to(dtype) / scale - mean) / std

    def augmented(self, images: Tensor, seed: int, step: int) -> Tensor:
        """Training images (N, C, H, W) as they are at a step: the same for every arm of a seed, whenever asked for."""
        if not self.random:
            return images
        generator = torch.Generator().manual_seed((seed * _MIX + step) % 2**63)
        count, _, height, width = images.shape
        top, left = torch.randint(2 * self.crop + 1, (2, count, 1), generator=generator).to(images.device)
        mirrored = torch.rand(count, 1, generator=generator).to(images.device) < (0.5 if self.flip else 0.0)
        rows = (top + torch.arange(height, device=images.device))[:, None, :, None]
        columns = torch.arange(width, device=images.device)
        columns = (left + torch.where(mirrored, width - 1 - columns, columns))[:, None, None, :]
        padded = torch.nn.functional.pad(images, (self.crop,) * 4)
        sample = torch.arange(count, device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        return padded[sample, channel, rows, columns]


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images (N, C, H, W), on the scale where uint8 runs from 0 to 1.

    The deviation of a channel that is the same everywhere is 1, so that others are told from it as they are stored.
    """
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    count = images.numel() / images.shape[1]
    parts = [part.transpose(0, 1).flatten(1) for part in images.split(1024)]
    mean = torch.stack([part.double().sum(1) for part in parts]).sum(0) / count
    squares = torch.stack([(part.double() - mean[:, None]).square().sum(1) for part in parts]).sum(0)
    std = (squares / count).sqrt() / scale
    std = torch.where(std > 0, std, torch.ones_like(std))
    return tuple((mean / scale).tolist()), tuple(std.tolist())
