"""One weight of a network, the route that its κ takes, and the directions in which that route looks.

Whether a route is open is found out by derivatives of the loss, not by names: all of its slope in the weight comes
through the noted outputs of one call, and slopes in some of these outputs have no slope in others.

Shapes: N samples, G groups, o outputs of a group, i inputs, P positions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from grokscape.measures.locate import has_own_forward
from grokscape.numerics import in_float64, rademacher, widen
from grokscape.perturbations import CONVOLUTIONS, applied, convolved, is_transposed, matrix_of


@dataclass
class Layer:
    """One weight, and what was gathered about it.

    Attributes:
        weight: of the last forward pass; of a parametrised layer, what its parametrisation makes of the parameters.
        attribute: name of the weight in the module.
        calls, inputs, outputs: of the module in the forward pass of the current batch.
        route: in the outputs with a direction for each position, or for each sample, or in the weight.
        decided: calls, shape of the outputs and number of samples that the route was chosen for.
        sums: sums over samples, one for each probe, or a single exact one.
        exact: whether those of all batches were exact.
        reached: whether the loss of any batch had a gradient in it.
    """

    name: str
    module: nn.Module
    weight: Tensor
    attribute: str = "weight"
    calls: int = 0
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    route: Literal["position", "sample", "weight"] = "weight"
    decided: tuple[int, torch.Size, int] | None = None
    sums: Tensor | None = None
    exact: bool = True
    reached: bool = False

    def matrix(self) -> Tensor:
        """The weight as (groups, outputs per group, inputs), in float32 at least."""
        return matrix_of(self.module, widen(self.weight.detach()))

    def shaped(self, matrix: Tensor) -> Tensor:
        """A matrix (groups, outputs, inputs) in the shape of the weight."""
        flat = matrix.flatten(0, 1)
        return flat.T if is_transposed(self.module) else flat.reshape(self.weight.shape)

    @property
    def maps_its_inputs(self) -> bool:
        """Whether calling the module applies the weight to what it is called with."""
        return self.attribute == "weight" and not isinstance(self.module, nn.Embedding)

    def decide(self, samples: int, slope: Tensor | None, through: Tensor | None) -> None:
        """Choose the route for a batch, from slopes of its loss in the weight and in the outputs."""
        if slope is None or through is None or self.inputs is None or self.outputs is None:
            self.route, self.decided = "weight", None
            return
        batch = (self.calls, self.outputs.shape, samples)
        if batch == self.decided:
            return
        self.route, self.decided = "weight", batch
        if self._acts_once(samples) and self.acts_nowhere_else(slope, through):
            lead = through.dim() - 1
            if not isinstance(self.module, CONVOLUTIONS) and self.is_apart(through, lead):
                self.route = "position"
            elif lead > 1 and self.is_apart(through, 1):
                self.route = "sample"

    def _acts_once(self, samples: int) -> bool:
        """Whether the module is linear as its kind is, and was called once, on one row or more for each sample."""
        assert self.inputs is not None
        assert self.outputs is not None
        if has_own_forward(self.module) or self.module._forward_hooks or self.calls != 1:
            return False
        shape = self.outputs.shape
        if isinstance(self.module, CONVOLUTIONS):
            return len(shape) == self.weight.dim() and shape[0] == samples
        return shape == (samples, *self.inputs.shape[1:-1], self.matrix().shape[1])

    def acts_nowhere_else(self, slope: Tensor, through: Tensor) -> bool:
        """Whether all of the loss's gradient in the weight comes through the outputs of the module, up to rounding."""
        assert self.inputs is not None
        kind = max((torch.finfo(tensor.dtype) for tensor in (slope, through, self.inputs)), key=lambda kind: kind.eps)
        inputs, through = widen(self.inputs), widen(through.detach())
        apart = widen(slope.detach()) - self._pulled_back(inputs, through)
        rounding = 4 * self._pulled_back(inputs.abs(), through.abs()).norm()
        rounding = rounding + kind.tiny * apart.numel() ** 0.5  # numbers below tiny are tiny · eps apart
        return not apart.norm() > kind.eps * rounding

    def _pulled_back(self, inputs: Tensor, through: Tensor) -> Tensor:
        """Slope in the weight of a layer with these inputs and slopes in its outputs."""
        if not isinstance(self.module, CONVOLUTIONS):
            return self.shaped((through.flatten(0, -2).T @ inputs.flatten(0, -2))[None])
        weight = widen(self.weight.detach()).requires_grad_()
        return torch.autograd.grad(convolved(self.module, inputs, weight, self.module.groups), weight, through)[0]

    def is_apart(self, through: Tensor, lead: int) -> bool:
        """Whether slopes in some rows of the outputs, drawn, have no slope in the others; rows go by `lead` axes.

        They have under batch norm without running statistics, in networks on graphs, between views in one batch, and
        between positions under attention. Of up to four rows, no two are in the same half both times.
        """
        assert self.outputs is not None
        if not through.requires_grad:
            return True
        generator = torch.Generator().manual_seed(0)
        shape = through.shape[:lead] + (1,) * (through.dim() - lead)
        order = torch.randperm(math.prod(shape), generator=generator, device=generator.device).reshape(shape)
        for bit in (0, 1):
            half = (order >> bit).remainder(2).to(through)
            along = (through * half * rademacher(*through.shape, generator=generator, like=through)).sum()
            (slope,) = torch.autograd.grad(along, self.outputs, retain_graph=True, allow_unused=True)
            if slope is not None and (slope * (1 - half)).nan_to_num().any():  # NaN of a row stays in it
                return False
        return True

    def exact_cost(self) -> int:
        """How many products with the Hessian an exact value takes."""
        groups, outputs, inputs = self.matrix().shape
        rank = min(outputs, inputs)
        return rank if self.route == "position" else groups * rank * inputs

    def variable(self, exact: bool) -> Tensor:
        """What is differentiated by: the outputs, or the weight, as for exact values where positions are not apart."""
        within = self.route == "position" or (self.route == "sample" and not exact)
        return self.outputs if within and self.outputs is not None else self.weight

    def add(self, sums: Tensor, exact: bool) -> None:
        """Add a batch's sums."""
        self.sums = sums if self.sums is None else self.sums + sums
        self.exact &= exact

    def random_direction(self, generator: torch.Generator) -> Tensor:
        """A direction whose square is κ in expectation, in the layer's outputs or in its weight."""
        matrix = self.matrix()
        groups, _, inputs = matrix.shape

        def signs(*shape: int) -> Tensor:
            """Independent ones."""
            return rademacher(*shape, generator=generator, like=matrix)

        if self.route == "weight" or self.outputs is None or self.inputs is None:
            column = matrix @ signs(groups, inputs, 1)
            return self.shaped(column * signs(groups, 1, inputs))
        if self.route == "position":
            return signs(*self.outputs.shape[:-1], inputs) @ matrix[0].T
        columns, rows = (signs(len(self.outputs), groups, inputs) for _ in range(2))
        return applied(self.module, matrix, widen(self.inputs), columns, rows).reshape(self.outputs.shape)

    def exact_directions(self) -> Iterator[Tensor]:
        """Directions whose squares add up to the exact value, along the principal ones of each group's matrix."""
        matrix = self.matrix()
        left, sizes, _ = torch.linalg.svd(matrix, full_matrices=False)
        principal = left * sizes[:, None, :]
        for group, index in product(range(len(principal)), range(principal.shape[-1])):
            if self.route == "position":
                yield principal[group, :, index]
                continue
            for position in range(matrix.shape[-1]):
                direction = torch.zeros_like(matrix)
                direction[group, :, position] = principal[group, :, index]
                yield self.shaped(direction)

    def weighted(self, products: Tensor) -> Tensor:
        """Sum of products of directions with the Hessian's; on the first route each has the weight ‖φ_i‖²."""
        if self.route != "position" or self.inputs is None:
            return in_float64(products).sum().cpu()
        norms = torch.linalg.vector_norm(self.inputs, dim=-1).square()
        return (in_float64(products.sum(-1)) * in_float64(norms)).sum().cpu()
