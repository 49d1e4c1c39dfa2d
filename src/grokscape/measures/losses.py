"""Curvature of a loss in the logits, seen through the head: t_i = Tr(Wᵀ G_i W) with G_i = ∂²ℓ_i/∂z∂zᵀ.

Shapes: `...` any leading replica axes, N samples, d features, K outputs.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from grokscape.measures.flatness import row_variance
from grokscape.measures.softmax import Softmax

LossName = Literal["cross_entropy", "binary_cross_entropy", "squared_error"]
Loss = LossName | Callable[[Tensor, Tensor | None], Tensor]


def check_loss(loss: Loss) -> None:
    """Raise ValueError unless a loss is a function or has a known name."""
    if not callable(loss) and loss not in get_args(LossName):
        raise ValueError(f"loss must be one of {', '.join(get_args(LossName))} or a function, got {loss!r}")


def curvature(loss: Loss, weight: Tensor, logits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Tr(Wᵀ G_i W) of every sample, (..., N).

    Args:
        loss: "cross_entropy" (also with soft or smoothed labels: G does not depend on them), "binary_cross_entropy"
            (with logits, mean over outputs as in torch), "squared_error" (mean over outputs as in torch), or a function
            (logits, targets) → one loss per sample (..., N).
        weight: (..., K, d).
        logits: (..., N, K).
        targets: handed to a loss that is a function.

    Raises:
        ValueError: the loss has no such name.
    """
    check_loss(loss)
    if callable(loss):
        return _by_autodiff(loss, weight, logits, targets)
    if loss == "cross_entropy":
        return row_variance(Softmax.of(logits), weight)
    outputs = logits.shape[-1]
    if loss == "binary_cross_entropy":
        norms = weight.square().sum(-1)
        slope = torch.sigmoid(logits) * torch.sigmoid(-logits)
        return (slope @ norms[..., None]).squeeze(-1) / outputs
    return (2 / outputs * weight.square().sum((-2, -1)))[..., None].expand(logits.shape[:-1])


def _by_autodiff(
    loss: Callable[[Tensor, Tensor | None], Tensor], weight: Tensor, logits: Tensor, targets: Tensor | None
) -> Tensor:
    """The same for any loss, by one Hessian-vector product in the logits for each of min(K, d) directions."""
    keep_graph = torch.is_grad_enabled() and (logits.requires_grad or weight.requires_grad)
    with torch.inference_mode(False), torch.enable_grad():
        weight, logits, targets = _usable(weight), _usable(logits), None if targets is None else _usable(targets)
        points = logits if logits.requires_grad else logits.detach().requires_grad_()
        losses = loss(points, targets)
        if losses.shape != logits.shape[:-1]:
            raise ValueError(
                f"loss must give one value per sample, shape {tuple(logits.shape[:-1])}, got {tuple(losses.shape)}; "
                f"use reduction='none' and sum over outputs"
            )
        (slope,) = torch.autograd.grad(losses.sum(), points, create_graph=True)
        total = torch.zeros_like(losses)
        if not slope.requires_grad:
            return total.detach()
        for direction, dual in _directions(weight):
            (product,) = torch.autograd.grad(
                (slope * direction).sum(), points, create_graph=keep_graph, retain_graph=True, allow_unused=True
            )
            if product is not None:
                total = total + (product * dual).sum(-1)
    return total if keep_graph else total.detach()


def _usable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one that was made in inference mode, which no derivative may pass."""
    return tensor.clone() if tensor.is_inference() else tensor


def _directions(weight: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pairs (u, v), (..., 1, K) each, with Σ uᵀ G v = Tr(Wᵀ G W): columns of W, or unit vectors and rows of W Wᵀ."""
    outputs, width = weight.shape[-2:]
    if width <= outputs:
        columns = [weight[..., None, :, j] for j in range(width)]
        return list(zip(columns, columns, strict=True))
    units = torch.eye(outputs, dtype=weight.dtype, device=weight.device)
    gram = weight @ weight.mT
    return [(units[c], gram[..., c : c + 1, :]) for c in range(outputs)]
