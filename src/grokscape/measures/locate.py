"""The head of somebody's model: the last linear layer, z = W φ + b, found by name or looked for.

Heads are `nn.Linear`, transformers' `Conv1D`, and adapters around them (low-rank and others, as long as the whole is
affine). Containers stand for the last linear layer in them. Wrappers (`DataParallel`, `DistributedDataParallel`,
`torch.compile`) are seen through, so names are those of the model itself.

Shapes: N samples, d features, K classes.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from grokscape.perturbations import CONVOLUTIONS, is_convolution_1d

_WRAPPED = ("_orig_mod", "module")
_ADAPTED = ("base_layer", "original_module", "base", "original", "linear")
_ADDING = (nn.Sequential, nn.Dropout, nn.Identity, nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)
_USUAL_NAMES = ("lm_head", "classifier", "score", "head", "fc", "heads", "logits", "out_proj")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers that compile it or spread it over devices."""
    while True:
        inner = next((getattr(model, name, None) for name in _WRAPPED if _wraps(model, name)), None)
        if inner is None:
            return model
        model = inner


def bare(model: nn.Module) -> nn.Module:
    """The model without torch's own wrappers, for derivatives that neither compiled code nor a reducer can take."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        else:
            return model


def is_compiled(model: nn.Module) -> bool:
    """Whether a model, or a part of it, runs through `torch.compile`."""
    return any(
        "_orig_mod" in part._modules
        or getattr(part, "_compiled_call_impl", None)
        or hasattr(getattr(part, "forward", None), "_torchdynamo_orig_callable")
        for part in model.modules()
    )


class Hook:
    """A hook of this model that does nothing in its copies: teachers, averages of weights, files."""

    def __init__(self, function: Callable[..., Any] | None = None) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        """What the function gives, if this is no copy."""
        return None if self._function is None else self._function(*arguments)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


def _wraps(model: nn.Module, name: str) -> bool:
    inner = getattr(model, name, None)
    return isinstance(inner, nn.Module) and [id(child) for child in model.children()] == [id(inner)]


def is_linear(module: object) -> bool:
    """Whether a module is one affine map with a weight matrix of its own."""
    return isinstance(module, nn.Linear) or is_convolution_1d(module)


def without_probes(kind: type[nn.Module]) -> type[nn.Module]:
    """A module's class without the subclasses that a probe put on it to record what passes through."""
    while "_records" in kind.__dict__:
        kind = kind.__dict__["_records"]
    return kind


def has_own_forward(module: nn.Module) -> bool:
    """Whether a subclass of `nn.Linear` or a convolution computes something else, such as W φ + B A φ + b."""
    kinds = (nn.Linear, *CONVOLUTIONS)
    forward = without_probes(type(module)).forward
    return any(isinstance(module, kind) and forward is not kind.forward for kind in kinds)


def is_adapter(module: nn.Module) -> bool:
    """Whether a module wraps a linear layer and adds to it, as low-rank adapters do: as a whole it is affine too.

    Networks and heads of several layers have a linear one under such a name as well (`self.linear`).
    """
    if is_linear(module) or not any(is_linear(getattr(module, name, None)) for name in _ADAPTED):
        return False
    return is_linear(getattr(module, "base_layer", None)) or _is_affine(module)


@torch.no_grad()
def _is_affine(module: nn.Module) -> bool:
    """Whether a module of linear parts alone maps rows as its linear layer does, in an affine way."""
    if not all(isinstance(part, _ADDING) or is_linear(part) for part in module.modules() if part is not module):
        return False
    outputs, width = _linear_in(module).shape
    rows = torch.arange(8.0 * width).sin().reshape(8, width).to(next(module.parameters()))
    try:
        with _quiet(module), torch.autocast(rows.device.type, enabled=False):
            zero, once, twice, back = (module(factor * rows) for factor in (0, 4, 8, -4))
    except (RuntimeError, TypeError, ValueError, IndexError):  # it does not take rows of features
        return False
    if not isinstance(zero, Tensor) or zero.shape != (8, outputs):
        return False
    rounding = 16 * torch.finfo(zero.dtype).eps * max(zero.abs().max(), twice.abs().max())
    bends = torch.stack([twice - 2 * once + zero, once + back - 2 * zero])
    return bool(bends.abs().max() <= rounding)


@dataclass(frozen=True)
class LinearHead:
    """The last linear layer of a model.

    Attributes:
        name: as in `named_modules()` of the model without wrappers.
        module: the layer, or the adapter around it.
    """

    name: str
    module: nn.Module

    def affine(self) -> tuple[Tensor, Tensor | None]:
        """Weight (K, d) and bias (K,) or None, with their graph; of an adapter, those of the whole."""
        module: Any = self.module
        if has_own_forward(module) or not is_linear(module):
            return _affine_of(module, self.features_dim)
        with evaluation_flags(module):  # a spectral norm would take a step of its iteration at each look
            return _linear_in(module), module.bias

    @property
    def features_dim(self) -> int:
        """d, the width of what enters the head."""
        return _linear_in(self.module).shape[1]


def _linear_in(module: Any) -> Tensor:
    """The weight (K, d) of a linear layer, or of the one that an adapter wraps."""
    if not is_linear(module):
        module = next(getattr(module, name) for name in _ADAPTED if is_linear(getattr(module, name, None)))
    weight: Tensor = module.weight
    return weight if isinstance(module, nn.Linear) else weight.T


def _affine_of(module: nn.Module, width: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of an affine module, from what it makes of the unit vectors and of zero."""
    like = next(module.parameters())
    rows = torch.cat([torch.eye(width), torch.zeros(1, width)]).to(like)
    with _quiet(module), torch.autocast(like.device.type, enabled=False):
        outputs = module(rows)
    return (outputs[:-1] - outputs[-1]).T, outputs[-1]


@contextmanager
def _quiet(module: nn.Module) -> Iterator[None]:
    """No dropout, no hooks on the module itself and no probe in it, meanwhile."""
    hooks, own = (module._forward_hooks, module._forward_pre_hooks), type(module)
    module._forward_hooks, module._forward_pre_hooks = type(hooks[0])(), type(hooks[1])()
    module.__class__ = without_probes(own)
    try:
        with evaluation_flags(module):
            yield
    finally:
        module._forward_hooks, module._forward_pre_hooks = hooks
        module.__class__ = own


@contextmanager
def evaluation_flags(module: nn.Module) -> Iterator[None]:
    """Every part's training flag off, and back as it was after.

    By hand, because `eval()` of some parts does more than that (adapters merge themselves into the weight), which
    putting the flags back would not undo.
    """
    flags = [(part, part.training) for part in module.modules()]
    for part, _ in flags:
        part.training = False
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer that could be a head, by name, in the order in which the model holds them; an adapter counts once.

    The output projection of `nn.MultiheadAttention` could not: it is never called, attention reads its weight.
    """
    found: dict[str, nn.Module] = {}
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{adapter}.") for adapter in inside):
            continue
        if is_adapter(module) and name:
            inside.append(name)
            found[name] = module
        elif is_linear(module) and not isinstance(module, NonDynamicallyQuantizableLinear):  # that of attention
            found[name] = module
    return found


def locate_head(model: nn.Module, head: str | nn.Module | None = None) -> LinearHead:
    """The head of a model.

    Without a name it is the model's output embeddings (language models of transformers), else the last of its linear
    layers that bears a usual name (`fc`, `classifier`, `head`, …), else the last linear layer.

    Args:
        model: any module; wrappers are seen through.
        head: the head or its name, or a container whose last linear layer is the head.

    Raises:
        ValueError: there is no linear layer, none of that name, or what bears the name is not linear.

    >>> locate_head(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))).name
    '2'
    """
    model = unwrapped(model)
    layers = linear_layers(model)
    kind = type(model).__name__
    if not layers:
        raise ValueError(
            f"found no linear layer in {kind}, and measures need the one that maps features to logits, z = W φ + b; "
            f"end the model in torch.nn.Linear, and measure it before it is scripted, traced, exported or quantised"
        )
    if isinstance(head, nn.Module):
        names = [name for name, module in model.named_modules() if module is head]
        if not names:
            raise ValueError(f"head is a {type(head).__name__} that is no part of the model")
        head = names[0]
    if head is not None:
        return _named(model, layers, head)
    embeddings = _output_embeddings(model)
    for name, module in layers.items():
        if module is embeddings:
            return LinearHead(name, module)
    usual = [name for name in layers if set(name.split(".")) & set(_USUAL_NAMES) and name.count(".") <= 1]
    name = (usual or list(layers))[-1]
    return LinearHead(name, layers[name])


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    getter: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    if getter is None:
        return None
    try:
        return getter()
    except NotImplementedError:
        return None


def _named(model: nn.Module, layers: dict[str, nn.Module], head: str) -> LinearHead:
    modules = dict(model.named_modules())
    choice = ", ".join(repr(name) for name in list(layers)[-5:])
    if head not in modules:
        near = difflib.get_close_matches(str(head), modules, n=3)
        hint = f"near: {', '.join(map(repr, near))}" if near else f"its last linear layers are {choice}"
        raise ValueError(f"{type(model).__name__} has no module {head!r}; {hint}")
    if head in layers or is_linear(modules[head]):
        return LinearHead(head, modules[head])
    inside = [name for name in layers if not head or name.startswith(f"{head}.")]
    if not inside:
        raise ValueError(
            f"module {head!r} of {type(model).__name__} is a {type(modules[head]).__name__}, which is not linear, and "
            f"measures need the layer that maps features to logits, z = W φ + b; its last linear layers are {choice}"
        )
    return LinearHead(inside[-1], layers[inside[-1]])
