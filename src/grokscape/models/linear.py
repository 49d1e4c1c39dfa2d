"""Linear maps of stacked replicas, with first derivatives by hand where PyTorch's own cost more passes over memory.

Shapes: R replicas, M rows, i inputs, h hidden units, o outputs.
"""

from typing import Any

import torch
from torch import Tensor


class _Product(torch.autograd.Function):
    """Inputs (R, M, i), weight (R, o, i) and what to add (R, M, o) or None → (R, M, o).

    The weight's gradient comes in the weight's layout; PyTorch's own comes transposed and is copied later.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, plus: Tensor | None) -> Tensor:
        """Product and sum in one."""
        return inputs @ weight.mT if plus is None else torch.baddbmm(plus, inputs, weight.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        """Keep what the gradient needs."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of a bilinear map; what is not asked for is not computed."""
        (inputs, weight), grad, (of_inputs, of_weight, of_plus) = ctx.saved_tensors, grads[0], ctx.needs_input_grad
        return (
            grad @ weight if of_inputs else None,
            grad.mT @ inputs if of_weight else None,
            grad if of_plus else None,
        )


class _ReluLayers(torch.autograd.Function):
    """Inputs (R, M, i), up (R, h, i), down (R, o, h), what to add (R, M, o) → relu(inputs · upᵀ) · downᵀ + plus.

    The hidden layer is the largest thing in a transformer: it is rectified in place, and so is its gradient.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, up: Tensor, down: Tensor, plus: Tensor) -> Tensor:
        """Product, ramp, product."""
        hidden = (inputs @ up.mT).relu_()
        ctx.save_for_backward(inputs, up, down, hidden)
        return torch.baddbmm(plus, hidden, down.mT)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where a second derivative may follow, everything anew with operations that have one."""
        (inputs, up, down, hidden), grad = ctx.saved_tensors, grads[0]
        of_hidden = grad @ down
        if torch.is_grad_enabled():
            hidden = (inputs @ up.mT).relu()
            of_hidden = of_hidden * (hidden > 0)
        else:
            torch.ops.aten.threshold_backward.grad_input(of_hidden, hidden, 0, grad_input=of_hidden)
        return of_hidden @ up, of_hidden.mT @ inputs, grad.mT @ hidden, grad


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """Affine map per replica: inputs (R, ..., i), weight (R, o, i), bias (R, o) → (R, ..., o), on top of `plus`.

    Under autocast the affine map is rounded as that of `torch.nn.Linear` is, and the sum with `plus` is not: a residual
    stream keeps its digits.
    """
    if inputs.dim() > 3:
        plus = None if plus is None else plus.flatten(1, -2)
        return linear(inputs.flatten(1, -2), weight, bias, plus).unflatten(1, inputs.shape[1:-1])
    if plus is not None and torch.is_autocast_enabled(inputs.device.type):
        return plus + linear(inputs, weight, bias)
    if bias is not None:
        plus = bias.unsqueeze(1).expand(-1, inputs.shape[1], -1) if plus is None else plus + bias.unsqueeze(1)
    if torch.is_autocast_enabled(inputs.device.type):
        return inputs @ weight.mT if plus is None else torch.baddbmm(plus, inputs, weight.mT)
    return _Product.apply(inputs, weight, plus)


def relu_layers(inputs: Tensor, up: Tensor, down: Tensor, plus: Tensor) -> Tensor:
    """Inputs (R, M, i), up (R, h, i), down (R, o, h) → relu(inputs · upᵀ) · downᵀ on top of `plus` (R, M, o)."""
    if torch.is_autocast_enabled(inputs.device.type):
        return linear(linear(inputs, up).relu(), down, plus=plus)
    plus = plus.view_as(plus) if plus is inputs else plus  # the compiler takes no tensor twice
    return _ReluLayers.apply(inputs, up, down, plus)
