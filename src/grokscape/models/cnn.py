"""A small convolutional network for small images."""

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from grokscape.models.network import ParameterSpec, SpecifiedNetwork
from grokscape.perturbations import UNPERTURBED, Perturbation, Perturbations
from grokscape.settings import Settings, Sizes
from grokscape.testbeds.types import InputSpec


class SmallCNN(Settings):
    """3 × 3 convolutions with ReLU, the picture halved by max-pooling between them, mean over the picture, linear head.

    All replicas run as one grouped convolution.

    Attributes:
        channels: output channels per convolution; the last is the number of features d.
        init_scale: factor on every initial weight; weights start uniform on ±init_scale/√inputs, biases at zero.
        bias: whether convolutions and head have biases.
    """

    kind: Literal["small_cnn"] = "small_cnn"
    channels: Sizes = (16, 32)
    init_scale: float = Field(default=1.0, gt=0)
    bias: bool = True

    def build(self, input_spec: InputSpec, num_classes: int) -> "CNNNetwork":
        """The network for images and K classes.

        Raises:
            ValueError: the inputs are no images, or too small to be halved so often.
        """
        if input_spec.kind != "image":
            raise ValueError(f"a small_cnn needs image inputs, got {input_spec.kind!r} inputs; use an mlp for those")
        smallest = min(input_spec.shape[1:]) >> (len(self.channels) - 1)
        if smallest < 1:
            raise ValueError(
                f"{len(self.channels)} convolutions halve the picture {len(self.channels) - 1} times, but it has "
                f"{input_spec.shape[1]} × {input_spec.shape[2]} pixels; use fewer"
            )
        return CNNNetwork(self, input_spec, num_classes)


class CNNNetwork(SpecifiedNetwork):
    """Parameters "convolutions.0.weight" (out, in, 3, 3), "convolutions.0.bias", …, "head.weight", "head.bias"."""

    def __init__(self, config: SmallCNN, input_spec: InputSpec, num_classes: int) -> None:
        self.config = config
        specs: dict[str, ParameterSpec] = {}
        for layer, (inputs, outputs) in enumerate(pairwise((input_spec.shape[0], *config.channels))):
            scale = config.init_scale * (9 * inputs) ** -0.5
            specs[f"convolutions.{layer}.weight"] = ParameterSpec((outputs, inputs, 3, 3), "uniform", scale)
            if config.bias:
                specs[f"convolutions.{layer}.bias"] = ParameterSpec((outputs,), "constant", 0.0)
        width = config.channels[-1]
        specs["head.weight"] = ParameterSpec((num_classes, width), "uniform", config.init_scale * width**-0.5)
        if config.bias:
            specs["head.bias"] = ParameterSpec((num_classes,), "constant", 0.0)
        super().__init__(specs, head=("head.weight", "head.bias" if config.bias else None))

    def features(
        self, parameters: dict[str, Tensor], inputs: Tensor, perturbations: Perturbations = UNPERTURBED
    ) -> Tensor:
        """See `Network.features`; d = the last convolution's channels."""
        replicas, samples = inputs.shape[:2]
        x = inputs.to(parameters["convolutions.0.weight"].dtype).transpose(0, 1).flatten(1, 2)
        for layer in range(len(self.config.channels)):
            weight, bias = (parameters.get(f"convolutions.{layer}.{part}") for part in ("weight", "bias"))
            assert weight is not None
            x = F.max_pool2d(x, 2) if layer else x
            bias = None if bias is None else bias.flatten()
            outputs = F.conv2d(x, weight.flatten(0, 1), bias, padding=1, groups=replicas)
            if f"convolutions.{layer}" in perturbations:
                outputs = outputs + _change(perturbations[f"convolutions.{layer}"], weight, x)
            x = F.relu(outputs)
        return x.mean((-2, -1)).view(samples, replicas, -1).transpose(0, 1)


def _change(perturbation: Perturbation, weight: Tensor, x: Tensor) -> Tensor:
    """What a perturbation adds to a convolution of weights (R, o, c, 3, 3), inputs (N, R·c, h, w): (N, R·o, h, w)."""
    samples, (height, width) = len(x), x.shape[-2:]
    patches = F.unfold(x.unflatten(1, (len(weight), -1)).flatten(0, 1), 3, padding=1)  # (N·R, c·9, h·w)
    patches = patches.unflatten(0, (samples, -1)).permute(1, 0, 3, 2).flatten(1, 2)
    change = perturbation(weight.flatten(2), patches).unflatten(1, (samples, height, width))
    return change.permute(1, 0, 4, 2, 3).flatten(1, 2)
