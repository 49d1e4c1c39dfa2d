"""Relative flatness of any linear layer of a network: κ = Σ_{s,s'} ⟨w_s, w_s'⟩ Tr(H_{s,s'}) for the rows of its weight.

Two routes, chosen for each layer:

* a linear layer that acts once per sample: κ = mean_i ‖φ_i‖² E_r[(Wr)ᵀ G_i (Wr)], r of independent signs, G_i the
  Hessian of sample i's loss in the layer's output. One Hessian-vector product in the output serves the whole batch,
  with other signs for each sample. Exact with the d_in unit vectors for r.
* every other weight (convolutions, attention, layers used at many positions or tied, samples that see each other):
  κ = E[vec(V)ᵀ H vec(V)] with V = (W r₁) r₂ᵀ. One Hessian-vector product in the weight for each probe. Exact with unit
  vectors for r₂ and the principal directions of W for Wr₁, rank × d_in products.

A weight is a matrix (outputs, inputs): convolutions flatten what one output sees, GPT-2's Conv1D and the table of an
embedding are transposed, and a grouped convolution is one matrix for each group, whose κ add up. Away from a minimum
the Hessian is indefinite, and κ of a hidden layer can be negative.

Shapes: B samples of a batch, o outputs, i inputs of a layer.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from grokscape.measures import model_loss
from grokscape.measures.batches import as_batch, batches, differentiable, eagerly, evaluating, placement
from grokscape.measures.checks import MeasureWarning
from grokscape.measures.locate import bare, has_own_forward, unwrapped
from grokscape.measures.losses import Loss
from grokscape.numerics import Estimate, full_precision, in_float64, rademacher, widen

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class _Layer:
    """One weight, how it is a matrix, and what was gathered about it.

    Attributes:
        weight: of the last forward pass; of a parametrised layer, what its parametrisation makes of the parameters.
        attribute: name of the weight in the module.
        calls, inputs, outputs: of the module in the forward pass of the current batch.
        per_sample: whether the first route applies; decided at the first batch.
        sums: sums over samples, one for each probe, or a single exact one.
        reached: whether the loss of any batch had a gradient in it.
    """

    name: str
    module: nn.Module
    weight: Tensor
    attribute: str = "weight"
    groups: int = 1
    transposed: bool = False
    calls: int = 0
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    per_sample: bool | None = None
    sums: Tensor | None = None
    reached: bool = False

    def matrix(self) -> Tensor:
        """The weight as (groups, outputs per group, inputs), in float32 at least."""
        weight = widen(self.weight.detach())
        flat = weight.T if self.transposed else weight.flatten(1)
        return flat.reshape(self.groups, -1, flat.shape[-1])

    def shaped(self, matrix: Tensor) -> Tensor:
        """A matrix (groups, outputs, inputs) in the shape of the weight."""
        flat = matrix.flatten(0, 1)
        return flat.T if self.transposed else flat.reshape(self.weight.shape)

    def decide(self, samples: int, total: Tensor) -> None:
        """Choose the route, once; `total` is the loss of the first batch."""
        if self.per_sample is None:
            self.per_sample = self._acts_once(samples) and self._acts_nowhere_else(total)

    def _acts_once(self, samples: int) -> bool:
        """Whether the module is a linear layer that was called once, on one row for each sample."""
        return (
            isinstance(self.module, nn.Linear)
            and not has_own_forward(self.module)
            and not self.module._forward_hooks
            and self.calls == 1
            and self.outputs is not None
            and self.outputs.shape == (samples, self.module.out_features)
        )

    def _acts_nowhere_else(self, total: Tensor) -> bool:
        """Whether all of the loss's gradient in the weight comes through the outputs of the module, up to rounding."""
        slope, through = _slopes(total, [self.weight, self.outputs])
        if slope is None or through is None:
            return slope is None
        assert self.inputs is not None
        through, inputs = widen(through), widen(self.inputs)
        apart = widen(slope) - through.T @ inputs
        elsewhere = apart.norm() > 4 * torch.finfo(slope.dtype).eps * (through.abs().T @ inputs.abs()).norm()
        return not elsewhere and self._keeps_samples_apart(through)

    def _keeps_samples_apart(self, through: Tensor) -> bool:
        """Whether slopes in the outputs of half of the samples, drawn, have no slope in the outputs of the others.

        They have under batch norm without running statistics, in networks on graphs, and between views in one batch.
        """
        if self.outputs is None or not through.requires_grad:
            return True
        generator = torch.Generator().manual_seed(0)
        half = torch.randperm(len(through), generator=generator)[:, None].remainder(2).to(through)
        along = (through * half * rademacher(*through.shape, generator=generator, like=through)).sum()
        (product,) = torch.autograd.grad(along, self.outputs, retain_graph=True, allow_unused=True)
        return product is None or not (product * (1 - half)).any()

    def variable(self) -> Tensor:
        """What the route differentiates with respect to."""
        return self.outputs if self.per_sample and self.outputs is not None else self.weight

    def exact_cost(self) -> int:
        """How many products with the Hessian an exact value takes."""
        groups, outputs, inputs = self.matrix().shape
        rank = min(outputs, inputs)
        return rank if self.per_sample else groups * rank * inputs

    def add(self, sums: Tensor) -> None:
        """Add a batch's sums."""
        self.sums = sums if self.sums is None else self.sums + sums


@dataclass(frozen=True)
class _Plan:
    """How much work is spent on each layer."""

    probes: int
    exact: bool | None
    generator: torch.Generator

    def is_exact(self, layer: _Layer) -> bool:
        """Whether a layer is computed exactly: as asked for, or where that costs no more than the probes."""
        return self.exact if self.exact is not None else layer.exact_cost() <= self.probes


@full_precision()
def layer_flatness(
    model: nn.Module,
    data: Any,
    layers: Sequence[str] | None = None,
    probes: int = 32,
    *,
    loss: Loss = "cross_entropy",
    exact: bool | None = None,
    generator: torch.Generator | None = None,
    batch_size: int = 256,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Estimate]:
    """Relative flatness of layers of a network on a data set, each with its standard error.

    The model is in evaluation mode meanwhile, and is left as it was found. BatchNorm then couples no samples.

    Args:
        model: any module that returns logits.
        data: a DataLoader, iterable of batches, Dataset, or (inputs, labels); the loss is its mean over all samples.
        layers: names as in `named_modules()` of the model without wrappers; by default every layer that has a linear
            weight, embeddings apart: name those.
        probes: random probes for each layer; where an exact value takes no more products, it is exact.
        loss: as in `grokscape.relative_flatness`; a function gets the model's logits and the labels as they are.
            Positions labelled −100 are left out, also under a function that gives one loss for each label, or for each
            but the first of a sequence; one that gives other numbers of losses must leave them out itself.
        exact: True for exact values at any cost, False for estimates always.
        generator: for the probes; by default one with seed 0.
        batch_size: for data that is not in batches.
        progress: called with a line of text after every batch, for long work.

    Returns:
        layer name → Estimate. A weight that several layers share is named once, for all its uses.

    Raises:
        ValueError: a layer of that name does not exist or has no linear weight; no samples; probes below 1.

    Warns:
        MeasureWarning: a layer is NaN, because the loss has no gradient in it.

    Source: Petzka et al., NeurIPS 2021; estimators by Hutchinson's trace identity.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    plan = _Plan(probes, exact, generator if generator is not None else torch.Generator().manual_seed(0))
    model, samples = bare(model), 0
    device, dtype = placement(model)
    with ExitStack() as stack:
        for context in (evaluating(model), eagerly(model), torch.inference_mode(False), torch.enable_grad()):
            stack.enter_context(context)
        chosen = _find(model, layers)
        stack.enter_context(differentiable([p for layer in chosen for p in layer.module.parameters()]))
        for number, raw in enumerate(batches(data, batch_size), start=1):
            batch = as_batch(raw).to(device, dtype)
            with _watched(chosen):
                total, count = model_loss.total_loss(model, batch, loss)
            if count:
                _add_batch(chosen, total, len(batch.labels), plan)
            samples += count
            if progress is not None:
                progress(f"layer flatness: batch {number}, {samples} samples, {len(chosen)} layers")
    if samples == 0:
        raise ValueError("there are no samples to measure: the data is empty, or every label is ignored")
    return {layer.name: _estimate(layer, samples, plan) for layer in chosen}


def _find(model: nn.Module, names: Sequence[str] | None) -> list[_Layer]:
    """Layers by name, each weight once."""
    modules = dict(unwrapped(model).named_modules())
    for name in names or ():
        if name not in modules:
            raise ValueError(f"the model has no layer {name!r}; named_modules() has {', '.join(filter(None, modules))}")
    found: list[_Layer] = []
    seen: set[int] = set()
    for name in modules if names is None else names:
        layer = _as_layer(name, modules[name])
        if names is None and isinstance(modules[name], nn.Embedding):
            continue
        if layer is None and names is not None:
            raise ValueError(
                f"layer {name!r} is a {type(modules[name]).__name__}, which has no linear weight; supported are "
                f"Linear, Conv1d, Conv2d, Conv3d, MultiheadAttention, Embedding and transformers' Conv1D"
            )
        if layer is not None and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            found.append(layer)
    if not found:
        raise ValueError("the model has no layer with a linear weight")
    return found


def _as_layer(name: str, module: nn.Module) -> _Layer | None:
    if isinstance(module, nn.Linear):
        return _Layer(name, module, module.weight)
    if isinstance(module, _CONVOLUTIONS):
        return _Layer(name, module, module.weight, groups=module.groups)
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return _Layer(name, module, module.in_proj_weight, "in_proj_weight")
    if isinstance(module, nn.Embedding):
        return _Layer(name, module, module.weight, transposed=True)
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, nn.Parameter):
        return _Layer(name, module, weight, transposed=True)
    return None


@contextmanager
def _watched(layers: Sequence[_Layer]) -> Iterator[None]:
    """Note inputs, outputs and weights of layers during one forward pass.

    What goes on is a copy of the output, so that an activation in place leaves the noted one alone. A weight that is
    made from other parameters (weight norm and the like) is made once for all looks at it, and has a graph.
    """

    def hook(layer: _Layer) -> Callable[..., Tensor | None]:
        """What notes inputs and outputs of one layer."""

        def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
            """Note this call, and hand on a copy of its output."""
            layer.calls += 1
            if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
                return None
            layer.inputs, layer.outputs = inputs[0].detach(), output
            return output.clone()

        return note

    for layer in layers:
        layer.calls, layer.inputs, layer.outputs = 0, None, None
    linear = [layer for layer in layers if isinstance(layer.module, nn.Linear)]
    handles = [layer.module.register_forward_hook(hook(layer)) for layer in linear]
    try:
        with parametrize.cached():
            yield
            for layer in layers:
                layer.weight = getattr(layer.module, layer.attribute)
    finally:
        for handle in handles:
            handle.remove()


def _add_batch(layers: Sequence[_Layer], total: Tensor, samples: int, plan: _Plan) -> None:
    """Add what one batch contributes to every layer; `total` is the sum of its losses."""
    for layer in layers:
        layer.decide(samples, total)
    variables = [layer.variable() for layer in layers]
    slopes = _slopes(total, variables)
    for layer, variable, slope in zip(layers, variables, slopes, strict=True):
        layer.reached |= slope is not None
        exact = plan.is_exact(layer)
        sums = torch.zeros(1 if exact else plan.probes, dtype=torch.float64)
        if slope is not None and slope.requires_grad:
            for index, direction in enumerate(_directions(layer, exact, plan, samples)):
                along = (slope * direction).sum()
                (product,) = torch.autograd.grad(along, variable, retain_graph=True, allow_unused=True)
                if product is not None:
                    sums[0 if exact else index] += _weighted(layer, direction * product)
        layer.add(sums)


def _slopes(total: Tensor, variables: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of a loss, with graph; None where it has none."""
    able = [variable for variable in variables if variable is not None and variable.requires_grad]
    slopes = torch.autograd.grad(total, able, create_graph=True, allow_unused=True) if able else ()
    found = dict(zip(map(id, able), slopes, strict=True))
    return [found.get(id(variable)) for variable in variables]


def _directions(layer: _Layer, exact: bool, plan: _Plan, samples: int) -> Iterator[Tensor]:
    """What is multiplied with the Hessian: unit or random directions, in the layer's outputs or in its weight."""
    matrix = layer.matrix()
    if exact:
        left, sizes, _ = torch.linalg.svd(matrix, full_matrices=False)
        yield from _exact_directions(layer, left * sizes[:, None, :])
        return
    groups, _, inputs = matrix.shape
    for _ in range(plan.probes):
        if layer.per_sample:
            yield rademacher(samples, inputs, generator=plan.generator, like=matrix) @ matrix[0].T
        else:
            column = matrix @ rademacher(groups, inputs, 1, generator=plan.generator, like=matrix)
            yield layer.shaped(column * rademacher(groups, 1, inputs, generator=plan.generator, like=matrix))


def _exact_directions(layer: _Layer, principal: Tensor) -> Iterator[Tensor]:
    """Directions whose squares add up to the exact value; `principal` holds those of each group in its columns."""
    groups, outputs, rank = principal.shape
    inputs = layer.matrix().shape[-1]
    for group in range(groups):
        for index in range(rank):
            if layer.per_sample:
                yield principal[group, :, index].expand(1, outputs)
                continue
            for position in range(inputs):
                direction = principal.new_zeros(groups, outputs, inputs)
                direction[group, :, position] = principal[group, :, index]
                yield layer.shaped(direction)


def _weighted(layer: _Layer, products: Tensor) -> Tensor:
    """Sum of the products, for the first route weighted with the samples' squared input norms."""
    if not layer.per_sample or layer.inputs is None:
        return in_float64(products).sum().cpu()
    norms = torch.linalg.vector_norm(layer.inputs, dim=-1).square()
    return (in_float64(products.sum(-1)) * in_float64(norms)).sum().cpu()


def _estimate(layer: _Layer, samples: int, plan: _Plan) -> Estimate:
    if not layer.reached:
        warnings.warn(
            f"relative flatness of layer {layer.name!r} is NaN: the loss has no gradient in it; it takes no part in "
            f"the forward pass, or does so under torch.no_grad, detached or in a reentrant checkpoint",
            MeasureWarning, stacklevel=3,
        )
        return Estimate(math.nan, math.nan, 0)
    assert layer.sums is not None
    if plan.is_exact(layer):
        return Estimate(float(layer.sums[0]) / samples, 0.0, layer.exact_cost(), exact=True)
    return Estimate.of(layer.sums / samples)
