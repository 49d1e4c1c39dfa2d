"""What a user's module must be like to be trained by an engine, looked for before anything is trained."""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

from grokscape.testbeds.types import InputSpec

Named = dict[str, Tensor]


def made(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module that draws what it draws from PyTorch's global generator, which is as it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def random_inputs(input_spec: InputSpec) -> Tensor:
    """For two replicas, four samples each; numbers lie in [0, 1), where roots and logarithms can be taken."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if input_spec.kind == "tokens":
            return torch.randint(input_spec.vocabulary, (2, 4, *input_spec.shape))
        return torch.rand(2, 4, *input_spec.shape)


def find_head(module: nn.Module, name: str, num_classes: int) -> nn.Linear:
    """The linear layer of that name with K outputs."""
    modules = dict(module.named_modules())
    linear = {key: one for key, one in modules.items() if isinstance(one, nn.Linear)}
    if name not in linear:
        found = f"a {type(modules[name]).__name__}" if name in modules else "nothing"
        raise ValueError(
            f"expected a linear layer called {name!r}, got {found}; "
            f"the module's linear layers are {', '.join(linear) or 'none'}"
        )
    if "weight" not in dict(linear[name].named_parameters(recurse=False)):
        raise ValueError(
            f"the head {name!r} makes its weight of other parameters (weight norm or the like), and measures and "
            f"interventions work on the weight itself; use a plain linear layer"
        )
    if linear[name].out_features != num_classes:
        raise ValueError(
            f"the head {name!r} has {linear[name].out_features} outputs, but the task has {num_classes} classes; "
            f"give the factory the right number through `arguments`"
        )
    return linear[name]


def check_parameters(module: nn.Module) -> None:
    """Refuse parameters and buffers that a run would not treat as the module does."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet; give the sizes of lazy layers in the factory")
        if not parameter.requires_grad:
            raise ValueError(
                f"parameter {name!r} is frozen, and a run trains every parameter; make it a buffer "
                f"(register_buffer), which is the same for all replicas"
            )
        if parameter.is_complex():
            raise ValueError(
                f"parameter {name!r} is complex, and a run trains real numbers; "
                f"keep its two parts in a real one, and use torch.view_as_complex on that"
            )
    for name, buffer in module.named_buffers():
        if isinstance(buffer, nn.parameter.UninitializedBuffer):
            raise ValueError(f"buffer {name!r} has no shape yet; give the sizes of lazy layers in the factory")


def check_twin(module: nn.Module, twin: nn.Module) -> None:
    """Refuse a factory whose second module, made from the same seed, is not another one with the same numbers."""
    if twin is module:
        raise ValueError("expected the factory to make a new module at each call, got the same one twice")
    again = dict(twin.named_parameters())
    for name, value in module.named_parameters():
        if name not in again or again[name].shape != value.shape or not torch.equal(again[name], value):
            raise ValueError(
                f"the factory gives parameter {name!r} other initial values each time, whatever PyTorch's seed; "
                f"runs must follow from their seeds alone: draw them with PyTorch, not with NumPy or Python"
            )


def refuse_dropout(module: nn.Module) -> None:
    """Dropped units would make a run depend on more than its seeds."""
    for name, one in module.named_modules():
        if isinstance(one, nn.modules.dropout._DropoutNd) and one.p > 0:
            raise ValueError(f"{name!r} drops units with p={one.p}; runs must follow from their seeds alone: set p=0")


def _states_of_chance() -> tuple[object, ...]:
    """Of the generators that everybody shares: PyTorch's, Python's and NumPy's."""
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002


def check_first_pass(module: nn.Module, inputs: Tensor) -> None:
    """Let a module make what it makes at its first forward pass, and refuse one that draws numbers for it."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = _states_of_chance()
        module.eval()(inputs.clone())
        drawn = _states_of_chance() != before
    if drawn:
        raise ValueError(
            "the module draws random numbers in its first forward pass; runs must follow from their seeds alone: draw "
            "them where it is made, or take it out"
        )


def check_repeatable(module: nn.Module, features: Callable[[bool], Tensor]) -> None:
    """Refuse a module that draws numbers, writes into its parameters, or gives other features when asked again.

    Args:
        module: as it was made.
        features: what it gives for some inputs and its buffers as they are, while it trains or not.
    """
    versions = {name: parameter._version for name, parameter in module.named_parameters()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        before = _states_of_chance()
        found = [features(training) for training in (False, True)]
        drawn = _states_of_chance() != before
        again = [features(training) for training in (True, False)][::-1]
    if not all(one.isfinite().all() for one in found):
        raise ValueError(
            "expected finite numbers to enter the head for any inputs, got NaN or infinity for some drawn from [0, 1); "
            "look for roots, logarithms and divisions in the forward pass"
        )
    if drawn:
        raise ValueError(
            "the module draws random numbers (dropout by function, noise, dropped layers); runs must follow from "
            "their seeds alone: take it out"
        )
    for name, parameter in module.named_parameters():
        if parameter._version != versions[name]:
            raise _writes_into(name)
    if not all(torch.equal(one, other) for one, other in zip(found, again, strict=True)):
        raise ValueError(
            "the module gives other features for the same inputs, parameters and buffers once it has trained on them; "
            "keep what changes in buffers (register_buffer), and nowhere else"
        )


def check_writes(parameters: dict[str, Tensor], call: Callable[[dict[str, Tensor]], object]) -> None:
    """Refuse a module that clips large weights past autograd (through `.data`), which only the values show."""
    large = {name: 1e3 * value.detach() for name, value in parameters.items()}
    before = {name: value.clone() for name, value in large.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), suppress(Exception):  # a module may refuse such weights
        call(large)
    for name, value in before.items():
        if not torch.equal(value, large[name]):
            raise _writes_into(name)


def _writes_into(name: str) -> ValueError:
    return ValueError(
        f"the module writes into its parameter {name!r} in its forward pass (max_norm of an embedding, clipped "
        f"weights), and a run's parameters change at its steps alone: take it out"
    )


def check_slopes(own: tuple[Tensor, list[Tensor | None]], ours: tuple[Tensor, list[Tensor | None]]) -> None:
    """Refuse a module that is not a function of its parameters.

    Args:
        own: features of the module with other parameters than it was made with, and slopes in them.
        ours: the same of the module as it was made, called with these parameters.
    """
    if not (same([own[0]], [ours[0]]) and same(own[1], ours[1])):
        raise ValueError(
            "the module gives other numbers when it is called with other parameters than when it has them: it keeps "
            "something beside parameters and buffers, draws buffers with NumPy or Python, or computes parts anew for "
            "its backward pass (torch.utils.checkpoint); take that out"
        )


def unlike_any_norm(features: Tensor) -> Tensor:
    """A number with slopes in all that features depend on: Σ w x² with weights w that differ.

    Σ x² is the same, behind a norm (LayerNorm, BatchNorm), whatever the layers before it do.
    """
    return (torch.linspace(0, 1, features.numel()).reshape(features.shape) * features.square()).sum()


def same(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    """Whether tensors equal each other to rounding: of their own norm, or of that of all; None is zero."""
    pairs = [(_known(one, other), _known(other, one)) for one, other in zip(ones, others, strict=True)]
    size = sum(float(one.square().sum()) for one, _ in pairs) ** 0.5
    return all(bool((one - other).norm() <= 1e-3 * one.norm() + 1e-5 * size) for one, other in pairs)


def _known(tensor: Tensor | None, like: Tensor | None) -> Tensor:
    if tensor is not None:
        return tensor.detach().float()
    return torch.zeros(()) if like is None else torch.zeros_like(like)


def first_sentence(error: Exception) -> str:
    """What an error says, in short."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:200]
