"""What a linear layer or a convolution makes of a change of its weight that each sample has to itself.

A change of rank one, V_n = u_n r_nᵀ in the weight as a matrix (outputs, inputs), changes what sample n gets by u_n
times one number for each position, r_n · φ_{n,p}, with φ_{n,p} what one output sees there.

Shapes: N samples, i inputs of a linear layer, k numbers that one output of a convolution sees.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def response(module: Any, inputs: Tensor, rows: Tensor) -> Tensor:
    """r_n · φ_{n,p}: rows of their own for each sample, applied to what one output of the layer sees at each position.

    Args:
        module: a convolution (any stride, padding, dilation and groups), or a linear layer at any number of positions.
        inputs: of the layer, (N, channels, …) or (N, …, i).
        rows: (N, groups, k) or (N, i).

    Returns:
        (N, groups, …) with the positions of the outputs, or (N, …); differentiable.
    """
    if not isinstance(module, CONVOLUTIONS):
        positions = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return (positions @ rows.reshape(len(rows), -1, 1)).reshape(inputs.shape[:-1])
    samples, channels, *sizes = inputs.shape
    kernels = rows.reshape(samples * module.groups, -1, *module.kernel_size)
    found = convolved(module, inputs.reshape(1, samples * channels, *sizes), kernels, groups=len(kernels))
    return found.reshape(samples, module.groups, *found.shape[2:])


def convolved(module: Any, inputs: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Inputs (N, channels, …) under a convolution with another weight and no bias."""
    convolution = (F.conv1d, F.conv2d, F.conv3d)[len(module.kernel_size) - 1]
    padding = module.padding
    if module.padding_mode != "zeros":
        inputs, padding = F.pad(inputs, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    return convolution(inputs, weight, None, module.stride, padding, module.dilation, groups)
