"""Relative flatness of any linear layer of a network: κ = Σ_{s,s'} ⟨w_s, w_s'⟩ Tr(H_{s,s'}) for the rows of its weight.

Three routes, chosen for each layer:

* in the outputs of a linear layer whose positions do not see each other (it acts once per sample, or nothing after it
  mixes positions): κ = mean_i ‖φ_i‖² E_r[(Wr)ᵀ G_i (Wr)], r of independent signs, G_i the Hessian of the loss in the
  outputs at i. One Hessian-vector product in the outputs serves the whole batch, with other signs for each position.
  Exact with the principal directions of W for Wr, rank products.
* in the outputs of a linear layer or a convolution at positions that do see each other, in samples that do not:
  κ = mean_n E[δ_nᵀ G_n δ_n] with δ_n what V_n = (W r₁) r₂ᵀ in place of the weight makes of sample n, G_n the Hessian of
  its loss in all its outputs. One product in the outputs serves the whole batch, with other signs for each sample.
* in every other weight (attention's stacked projection, embeddings, tied weights, layers that are called more than
  once, samples that see each other): κ = E[vec(V)ᵀ H vec(V)] with one V for the batch. One Hessian-vector product in
  the weight for each probe. Exact with unit vectors for r₂ and the principal directions of W for Wr₁, rank × d_in
  products; exact values of the second route go this way too.

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
from grokscape.measures.layer_routes import Layer
from grokscape.measures.locate import bare, unwrapped
from grokscape.measures.losses import Loss
from grokscape.numerics import Estimate, full_precision
from grokscape.perturbations import CONVOLUTIONS, TwiceDifferentiable, is_convolution_1d
from grokscape.plural import counted


@dataclass(frozen=True)
class _Plan:
    """How much work is spent on each layer."""

    probes: int
    exact: bool | None
    generator: torch.Generator

    def is_exact(self, layer: Layer) -> bool:
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
        model: any module that returns logits, with classes last.
        data: a DataLoader, iterable of batches, Dataset, or (inputs, labels); the loss is its mean over all samples.
        layers: names, or one, as in `named_modules()` of the model without wrappers; by default every layer that has a
            linear weight, embeddings apart: name those.
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
        ValueError: a layer of that name does not exist or has no linear weight; no samples; probes below 1; labels do
            not fit the logits, or do not tell which axis has the classes.

    Warns:
        MeasureWarning: a layer is NaN, because the loss has no gradient in it, or because something is not finite.

    Source: Petzka et al., NeurIPS 2021; estimators by Hutchinson's trace identity.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    plan = _Plan(probes, exact, generator if generator is not None else torch.Generator().manual_seed(0))
    model, samples = bare(model), 0
    device, dtype = placement(model)
    with ExitStack() as stack:
        gradients: tuple[Any, ...] = (torch.inference_mode(False), torch.enable_grad(), TwiceDifferentiable())
        for context in (evaluating(model), eagerly(model), *gradients):
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
                layers_chosen = counted(len(chosen), "layer")
                progress(f"layer flatness: batch {number}, {counted(samples, 'sample')}, {layers_chosen}")
    samples = model_loss.at_least_one(samples)
    found = {layer.name: _estimate(layer, samples) for layer in chosen}
    if lost := [layer.name for layer in chosen if layer.reached and math.isnan(found[layer.name].value)]:
        warnings.warn(
            f"relative flatness of {', '.join(map(repr, lost))} is NaN: there is NaN or infinity in the data, in a "
            f"weight, or in what the model makes of them",
            MeasureWarning, stacklevel=2,
        )
    return found


def _find(model: nn.Module, names: Sequence[str] | None) -> list[Layer]:
    """Layers by name, each weight once."""
    modules = dict(unwrapped(model).named_modules())
    names = [names] if isinstance(names, str) else names
    for name in names or ():
        if name not in modules:
            raise ValueError(f"the model has no layer {name!r}; named_modules() has {', '.join(filter(None, modules))}")
    found: list[Layer] = []
    seen: set[int] = set()
    for name in modules if names is None else names:
        layer = _as_layer(name, modules[name])
        if names is None and isinstance(modules[name], nn.Embedding):
            continue
        if layer is None and names is not None:
            raise ValueError(
                f"layer {name!r} is a {type(modules[name]).__name__}, which has no real linear weight; supported are "
                f"Linear, Conv1d, Conv2d, Conv3d, MultiheadAttention, Embedding and transformers' Conv1D"
            )
        if layer is not None and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            found.append(layer)
    if not found:
        raise ValueError("the model has no layer with a linear weight")
    return found


def _as_layer(name: str, module: Any) -> Layer | None:
    if any(parameter.is_complex() for parameter in module.parameters(recurse=False)):
        return None
    if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
        return Layer(name, module, module.in_proj_weight, "in_proj_weight")
    known = isinstance(module, (nn.Linear, nn.Embedding, *CONVOLUTIONS)) or is_convolution_1d(module)
    return Layer(name, module, module.weight) if known else None


@contextmanager
def _watched(layers: Sequence[Layer]) -> Iterator[None]:
    """Note inputs, outputs and weights of layers during one forward pass.

    What goes on is a copy of the output, so that an activation in place leaves the noted one alone. A weight that is
    made from other parameters (weight norm and the like) is made once for all looks at it, and has a graph.
    """

    def hook(layer: Layer) -> Callable[..., Tensor | None]:
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
    handles = [layer.module.register_forward_hook(hook(layer)) for layer in layers if layer.maps_its_inputs]
    try:
        with parametrize.cached():
            yield
            for layer in layers:
                layer.weight = getattr(layer.module, layer.attribute)
    finally:
        for handle in handles:
            handle.remove()


def _add_batch(layers: Sequence[Layer], total: Tensor, samples: int, plan: _Plan) -> None:
    """Add what one batch contributes to every layer; `total` is the sum of its losses."""
    weights, outputs = [layer.weight for layer in layers], [layer.outputs for layer in layers]
    slopes = _slopes(total, [*weights, *outputs])
    for layer, slope, through in zip(layers, slopes[: len(layers)], slopes[len(layers) :], strict=True):
        layer.reached |= slope is not None
        layer.decide(samples, slope, through)
        exact = plan.is_exact(layer)
        variable = layer.variable(exact)
        slope = slope if variable is layer.weight else through
        sums = torch.zeros(1 if exact else plan.probes, dtype=torch.float64, device="cpu")
        if slope is not None and slope.requires_grad:
            for index, direction in enumerate(_directions(layer, exact, plan)):
                along = (slope * direction).sum()
                (product,) = torch.autograd.grad(along, variable, retain_graph=True, allow_unused=True)
                if product is not None:
                    sums[0 if exact else index] += layer.weighted(direction * product)
        layer.add(sums, exact)


def _slopes(total: Tensor, variables: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients of a loss, with graph; None where it has none."""
    able = [variable for variable in variables if variable is not None and variable.requires_grad]
    slopes = torch.autograd.grad(total, able, create_graph=True, allow_unused=True) if able else ()
    found = dict(zip(map(id, able), slopes, strict=True))
    return [found.get(id(variable)) for variable in variables]


def _directions(layer: Layer, exact: bool, plan: _Plan) -> Iterator[Tensor]:
    """What is multiplied with the Hessian."""
    if exact:
        yield from layer.exact_directions()
        return
    for _ in range(plan.probes):
        yield layer.random_direction(plan.generator)


def _estimate(layer: Layer, samples: int) -> Estimate:
    if not layer.reached:
        warnings.warn(
            f"relative flatness of layer {layer.name!r} is NaN: the loss has no gradient in it; it takes no part in "
            f"the forward pass, or does so under torch.no_grad, detached or in a reentrant checkpoint",
            MeasureWarning, stacklevel=3,
        )
        return Estimate(math.nan, math.nan, 0)
    assert layer.sums is not None
    if layer.exact:
        return Estimate(float(layer.sums[0]) / samples, 0.0, layer.exact_cost(), exact=True)
    return Estimate.of(layer.sums / samples)
