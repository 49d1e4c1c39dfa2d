"""Relative flatness κ of a hidden layer inside a loss: a second derivative along random changes of its weight.

κ = Σ_{s,s'} ⟨w_s, w_s'⟩ Tr(H_{s,s'}) of a weight W is E[d²L/dt²] at t = 0 where W becomes W + t·(W r₁) r₂ᵀ, r₁ and r₂
of independent signs. Where samples do not see each other, the Hessian of the mean loss is a mean over samples, and each
may have r₁ and r₂ of its own: one probe for all of them then has an error that falls with their number. In place of the
weight the layer's outputs change: by t·(W r₁)(r₂·φ) at every position φ of the sample. Where a sample has one position,
r₂ = φ/‖φ‖ takes the mean over r₂ exactly.

Shapes: `...` replicas, N samples, P positions of each, i inputs and o outputs of the layer; of a convolution, what one
output sees.

Source: Petzka et al., NeurIPS 2021, Definition 3; Hutchinson's trace identity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from grokscape.numerics import rademacher, widen

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Perturbation:
    """A change of a layer's weight for every sample, of a size that is zero and differentiated.

    Attributes:
        size: t, (...).
        columns: r₁, (N, i).
        rows: r₂, (N, i).
    """

    size: Tensor
    columns: Tensor
    rows: Tensor

    @classmethod
    def draw(cls, size: Tensor, samples: int, inputs: int, generator: torch.Generator) -> "Perturbation":
        """With signs from a generator, the same in all replicas; sample by sample, so that pieces have the whole's."""
        columns, rows = rademacher(samples, 2, inputs, generator=generator, like=size).unbind(1)
        return cls(size, columns, rows)

    def __call__(self, weight: Tensor, inputs: Tensor) -> Tensor:
        """What the change adds to a layer's outputs.

        Args:
            weight: (..., o, i).
            inputs: (..., N·P, i), sample by sample.

        Returns:
            (..., N·P, o), all of it zero.
        """
        along = inputs.unflatten(-2, (len(self.columns), -1))
        response = (along * self._rows(along)).sum(-1, keepdim=True) * (self.columns @ weight.mT).unsqueeze(-2)
        return self.size[..., None, None] * response.flatten(-3, -2)

    def _rows(self, inputs: Tensor) -> Tensor:
        """r₂ for inputs (..., N, P, i)."""
        if inputs.shape[-2] > 1:
            return self.rows.unsqueeze(-2)
        return unit(inputs.detach())


def unit(inputs: Tensor) -> Tensor:
    """Every row φ as φ/‖φ‖; zero as zero."""
    norm = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True)
    return inputs / norm.where(norm > 0, 1)


Perturbations = Mapping[str, Perturbation]
"""Layer name → its perturbation."""
UNPERTURBED: Perturbations = {}


class TwiceDifferentiable(TorchFunctionMode):
    """Inside, hardsigmoid (of MobileNetV3) is written out: PyTorch's own has one derivative only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Put something else in the place of one function."""
        if func is F.hardsigmoid:
            return _hardsigmoid(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class DifferentiableNorms(TwiceDifferentiable):
    """Inside, layer and instance norms are written out, so that κ has the slopes that it should have.

    They are third derivatives, and PyTorch's own of these norms are wrong without a word (pytorch/pytorch#175754).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Put something else in the place of two functions."""
        if func in (F.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        if func is F.instance_norm:
            return _instance_norm(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs)


def _hardsigmoid(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return F.relu6(input + 3) / 6


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    x = _standardised(input, tuple(range(-len(normalized_shape), 0)), eps)
    x = x if weight is None else x * weight
    return _as_own(x if bias is None else x + bias, input)


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if running_mean is not None:
        raise ValueError("κ of a hidden layer needs instance norms without running statistics; use GroupNorm")
    x, places = _standardised(input, tuple(range(2, input.dim())), eps), (-1, *[1] * (input.dim() - 2))
    x = x if weight is None else x * weight.view(places)
    return _as_own(x if bias is None else x + bias.view(places), input)


def _standardised(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    x = widen(x)
    x = x - x.mean(dims, keepdim=True)
    return x * (x.square().mean(dims, keepdim=True) + eps).rsqrt()


def _as_own(output: Tensor, input: Tensor) -> Tensor:
    """In the type that PyTorch's own norms have: float32 under autocast on a GPU, else that of the input."""
    device = input.device.type
    return output if device != "cpu" and torch.is_autocast_enabled(device) else output.to(input.dtype)


def perturbed(outputs: Tensor, name: str, weight: Tensor, inputs: Tensor, perturbations: Perturbations) -> Tensor:
    """Outputs (..., N·P, o) of a layer, plus what its perturbation adds if it has one."""
    found = perturbations.get(name)
    return outputs if found is None else outputs + found(weight, inputs)


def perturbed_table(outputs: Tensor, name: str, table: Tensor, ones: int, perturbations: Perturbations) -> Tensor:
    """The same for a layer whose inputs are zeros and so many `ones`: outputs (..., N, o), table (..., i, o)."""
    found = perturbations.get(name)
    return outputs if found is None else outputs + found.size[..., None, None] * ones**0.5 * (found.columns @ table)


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


def applied(layer: Any, matrix: Tensor, inputs: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """What a layer with V_n = (W r₁) r₂ᵀ in place of its weight W makes of the inputs of sample n.

    Args:
        layer: a convolution, or a linear layer at any number of positions.
        matrix: W, (groups, o, i).
        inputs: of the layer, (N, …).
        columns, rows: r₁ and r₂ of every sample, (N, groups, i).

    Returns:
        (N, groups, o, P) of a convolution, (N, P, o) of a linear layer.
    """
    columns, found = torch.einsum("goi,ngi->ngo", matrix, columns), response(layer, inputs, rows)
    if isinstance(layer, CONVOLUTIONS):
        return columns.unsqueeze(-1) * found.flatten(2).unsqueeze(2)
    return columns * found.reshape(len(inputs), -1, 1)


def is_convolution_1d(layer: object) -> bool:
    """Whether it is what transformers calls Conv1D: a linear layer with its weight the other way round."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


def is_transposed(layer: object) -> bool:
    """Whether the layer's weight has a row for each of its inputs, as a table does."""
    return isinstance(layer, nn.Embedding) or is_convolution_1d(layer)


def matrix_of(layer: Any, weight: Tensor | None = None) -> Tensor:
    """A layer's weight, or another in its place, as (groups, outputs of a group, inputs)."""
    weight = layer.weight if weight is None else weight
    rows = weight.T if is_transposed(layer) else weight.flatten(1)
    return rows.unflatten(0, (layer.groups if isinstance(layer, CONVOLUTIONS) else 1, -1))


def signs_of(layer: Any) -> int:
    """How many signs r₁ and r₂ have for one sample."""
    groups, _, inputs = matrix_of(layer).shape
    return groups * inputs


def can_be_perturbed(layer: nn.Module) -> bool:
    """Whether `perturbed_module` knows the layer; subclasses that compute something else it does not."""
    kinds = (nn.Linear, *CONVOLUTIONS)
    known = any(isinstance(layer, kind) and type(layer).forward is kind.forward for kind in kinds)
    return known or is_convolution_1d(layer)


def perturbed_module(perturbation: Perturbation, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Output of a layer for inputs (N, …), plus what its perturbation adds; with the first argument given, a hook.

    The signs are (N, groups·i).
    """
    x, matrix = inputs[0], matrix_of(layer)
    columns, rows = (signs.unflatten(1, (len(matrix), -1)) for signs in (perturbation.columns, perturbation.rows))
    if x.dim() == 2:
        rows = unit(x.detach())
    return output + perturbation.size * applied(layer, matrix, x, columns, rows).reshape(output.shape)


def curvatures(loss: Tensor, perturbations: Perturbations, *, differentiable: bool = False) -> dict[str, Tensor]:
    """κ of every perturbed layer, name → (...): d²L/dt², an unbiased estimate.

    Args:
        loss: mean over samples of each replica, (...), of a network that was perturbed.
        perturbations: of its layers.
        differentiable: whether the results have a graph of their own.
    """
    with torch.enable_grad():
        sizes = [perturbation.size for perturbation in perturbations.values()]
        slopes = torch.autograd.grad(loss.sum(), sizes, create_graph=True)
        results = [
            torch.autograd.grad(slope.sum(), size, create_graph=differentiable, retain_graph=True)[0]
            for slope, size in zip(slopes, sizes, strict=True)
        ]
    return dict(zip(perturbations, results, strict=True))
