"""κ of hidden layers during the forward passes of somebody's own training loop."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from grokscape.measures.batches import differentiable
from grokscape.measures.layer_routes import Layer
from grokscape.measures.locate import Hook, evaluation_flags
from grokscape.measures.softmax import Softmax
from grokscape.measures.table import OF_LAYER
from grokscape.numerics import full_precision, holds, widen
from grokscape.perturbations import (
    DifferentiableNorms,
    Perturbation,
    can_be_perturbed,
    curvatures,
    perturbed_module,
    signs_of,
)
from grokscape.plural import counted


@dataclass(frozen=True)
class _Lasting:
    """What outlasts the probes of a model, as loops make one in every step.

    Attributes:
        generator: of signs, which must not be the same ones in every step.
        checked: names of layers whose perturbations say what κ is, each with the mode of the model.
    """

    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    checked: set[tuple[str, bool]] = field(default_factory=set)


_LASTING: WeakKeyDictionary[nn.Module, _Lasting] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Call:
    """One call of a layer.

    Attributes:
        perturbation: what was added to its outputs.
        weight: of this call; torch.func.functional_call puts others in.
        inputs: of the layer.
        outputs: of the layer, before anything was added.
    """

    perturbation: Perturbation
    weight: Tensor
    inputs: Tensor
    outputs: Tensor


class HiddenLayers:
    """Perturbs layers of a model in every forward pass that has a graph.

    Args:
        model: the model, without wrappers.
        names: of layers, as in `named_modules()`: linear ones and convolutions.

    Raises:
        ValueError: there is no such layer, or its weight belongs to another one too.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._layers = {name: _found(model, name) for name in names}
        self._lasting = _LASTING.setdefault(model, _Lasting())
        self._seen: dict[str, list[_Call]] = {}
        self._found: tuple[Tensor, Mapping[str, Tensor]] | None = None

    def watch(self) -> Callable[[], None]:
        """Begin, and give what ends it."""
        stack = ExitStack()
        if self._layers:  # what κ is differentiated through: attention and norms have no third derivatives of their own
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(DifferentiableNorms())
        for name, layer in self._layers.items():
            stack.callback(layer.register_forward_hook(Hook(self._hook(name))).remove)
        return stack.close

    def forget(self) -> None:
        """Before the next forward pass."""
        self._seen, self._found = {}, None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
        def perturb(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            """Add a change of size zero."""
            if not torch.is_grad_enabled() or not inputs:
                return None
            if torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    f"layer {name!r} is computed again in a backward pass, and κ of hidden layers does not go through "
                    f"checkpoints: turn them off (model.gradient_checkpointing_disable() in transformers)"
                )
            self._refuse_batch_norm(name)
            output = output if output.requires_grad else output.detach().requires_grad_()  # of a frozen layer
            size = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
            with evaluation_flags(layer):  # a spectral norm would take a step of its iteration at each look
                perturbation = Perturbation.draw(size, len(inputs[0]), signs_of(layer), self._lasting.generator)
                call = _Call(perturbation, layer.weight, inputs[0].detach(), output)  # type: ignore[arg-type]
                self._seen.setdefault(name, []).append(call)
                return perturbed_module(perturbation, layer, inputs, output)

        return perturb

    def _refuse_batch_norm(self, name: str) -> None:
        for path, module in self._model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
                raise ValueError(
                    f"κ of layer {name!r} cannot be taken in this pass: every sample has a perturbation of its own, "
                    f"but in {path!r} ({type(module).__name__}, in training mode) samples see each other; put it in "
                    f"evaluation mode, or take another norm"
                )

    def flatness(self, logits: Tensor, labels: Tensor, rows: int) -> Mapping[str, Tensor]:
        """κ of each layer with a graph, by name of the measure; nothing for a pass without one, or under no_grad.

        What was found for these labels in this pass serves again, also after the backward pass.

        Args:
            logits, labels: of the samples that carry a loss, (M, K) and (M,).
            rows: of the batch, samples or sequences.

        Raises:
            RuntimeError: a layer was not called just once in the last forward pass, on a row for each of the batch's.
            ValueError: samples see each other, or the loss has another gradient in a layer's weight than through its
                outputs; found out at the first pass of a model in each mode.
        """
        if self._found is not None and torch.equal(self._found[0], labels):
            return self._found[1]
        if not self._layers or not logits.requires_grad or not torch.is_grad_enabled():
            return {}
        for name in self._layers:
            calls = self._seen.get(name, [])
            if len(calls) != 1 or len(calls[0].inputs) != rows:
                on = " and ".join(counted(len(call.inputs), "row") for call in calls) or (
                    "nothing, or without gradients (torch.no_grad, a reentrant checkpoint)"
                )
                raise RuntimeError(
                    f"κ of layer {name!r} needs it to be called once in a forward pass, on one row of inputs for each "
                    f"of the {rows} in the batch; it was called on {on}"
                )
        loss = Softmax.of(widen(logits)).cross_entropy(labels).mean()
        for name in self._layers:
            if (key := (name, self._model.training)) not in self._lasting.checked:
                self._check(name, loss)
                if holds(loss.isfinite()):  # NaN says nothing
                    self._lasting.checked.add(key)
        perturbations = {name: calls[0].perturbation for name, calls in self._seen.items()}
        found = curvatures(loss, perturbations, differentiable=True)
        self._found = labels, {OF_LAYER + name: value for name, value in found.items()}
        return self._found[1]

    @full_precision()
    def _check(self, name: str, loss: Tensor) -> None:
        """Refuse a layer of which κ would be another number than what its perturbations give."""
        (call,) = self._seen[name]
        layer = Layer(name, self._layers[name], call.weight)
        layer.inputs, layer.outputs = call.inputs, call.outputs
        plain = [call.weight] if isinstance(call.weight, nn.Parameter) and call.weight.requires_grad else []
        with differentiable(plain):
            through, *slope = torch.autograd.grad(loss, [call.outputs, *plain], create_graph=True, allow_unused=True)
        if through is None or any(each is None or not layer.acts_nowhere_else(each, through) for each in slope):
            raise ValueError(
                f"κ of layer {name!r} cannot be taken in a loop: the loss has another gradient in its weight than "
                f"through its outputs; the weight is used elsewhere too, or a hook changes the outputs"
            )
        if not layer.is_apart(through, 1):
            raise ValueError(
                f"κ of layer {name!r} cannot be taken in a loop: every sample has a perturbation of its own, but "
                f"samples (rows of the first axis) see each other, as on a graph or in sequences that come with "
                f"positions first; grokscape.layer_flatness measures such layers, without slopes"
            )


def _found(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    able = [each for each, module in modules.items() if can_be_perturbed(module)]
    if name not in able:
        what = f"a {type(modules[name]).__name__}" if name in modules else "nothing"
        raise ValueError(
            f"expected the name of a linear layer or a convolution without a forward of its own, got {name!r}, which "
            f"is {what}; the model has {', '.join(able) or 'none'}"
        )
    with evaluation_flags(modules[name]):
        weight = modules[name].weight
    owners = [path for path, module in modules.items() if any(each is weight for each in module.parameters(False))]
    if len(owners) > 1:
        raise ValueError(f"the weight of layer {name!r} is used in {' and '.join(owners)}; name a layer of its own")
    return modules[name]
