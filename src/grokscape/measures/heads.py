"""The linear head of somebody's model: finding it, and what goes in and out of it.

Shapes: B samples or sequences, T positions, M samples that carry a loss, d features, K classes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from grokscape.measures.batches import Batch
from grokscape.measures.model_loss import align, forward
from grokscape.numerics import widen


@dataclass
class Head:
    """A linear module that makes the logits.

    Attributes:
        name: as in `model.named_modules()`.
        module: the module.
        found: whether it was found rather than named.
    """

    name: str
    module: nn.Module
    found: bool = False

    @property
    def weight(self) -> Tensor:
        """(K, d), at least float32."""
        weight = self.module.weight.detach()
        return widen(weight.T if _is_transposed(self.module) else weight)  # pyright: ignore[reportArgumentType]

    @property
    def bias(self) -> Tensor | None:
        """(K), or None."""
        bias = getattr(self.module, "bias", None)
        return widen(bias.detach()) if isinstance(bias, Tensor) else None


@dataclass
class _Note:
    """Input and output of a module in its last call."""

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    calls: int = field(default=0)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) or (_is_transposed(module) and isinstance(weight, Tensor))


@contextmanager
def _noting(modules: Sequence[nn.Module]) -> Iterator[list[_Note]]:
    notes = [_Note() for _ in modules]

    def hook(note: _Note):
        def remember(_: nn.Module, inputs: tuple, output: object) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                note.inputs, note.outputs = inputs[0].detach(), output.detach().clone()
                note.calls += 1

        return remember

    handles = [module.register_forward_hook(hook(note)) for module, note in zip(modules, notes, strict=True)]
    try:
        yield notes
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def find_head(model: nn.Module, head: str | nn.Module | None, batch: Batch) -> Head:
    """The head by name, by module, or, given neither, the last linear module whose output is the model's logits.

    Raises:
        ValueError: no such module, or none whose output is the logits.
        TypeError: the module is not linear.
    """
    modules = dict(model.named_modules())
    if isinstance(head, nn.Module):
        name = next((name for name, module in modules.items() if module is head), None)
        if name is None:
            raise ValueError(f"head is a {type(head).__name__} that is no part of the model")
        head = name
    if head is not None:
        return _named(modules, head)
    linear = {name: module for name, module in modules.items() if _is_linear(module)}
    with _noting(list(linear.values())) as notes:
        logits = forward(model, batch)
    for (name, module), note in reversed(list(zip(linear.items(), notes, strict=True))):
        if note.outputs is not None and _rows_of(note.outputs, logits) is not None:
            return Head(name, module, found=True)
    raise ValueError(
        f"no linear layer's output is the model's logits {tuple(logits.shape)}; name the head, one of "
        f"{', '.join(linear) or 'none'}"
    )


def _named(modules: dict[str, nn.Module], name: str) -> Head:
    if name not in modules:
        raise ValueError(f"the model has no layer {name!r}; it has {', '.join(filter(None, modules))}")
    if not _is_linear(modules[name]):
        raise TypeError(f"head {name!r} must be linear, but is a {type(modules[name]).__name__}")
    return Head(name, modules[name])


def _rows_of(outputs: Tensor, logits: Tensor) -> Tensor | slice | None:
    """How the logits lie in the head's outputs: all of them, one position of each sequence, or not at all."""
    if outputs.shape == logits.shape:
        return slice(None) if torch.equal(outputs, logits) else None
    if outputs.dim() == 3 and logits.dim() == 2 and (outputs.shape[0], outputs.shape[-1]) == tuple(logits.shape):
        same = (outputs == logits[:, None]).all(-1)
        return same.int().argmax(-1) if bool(same.any(-1).all()) else None
    return None


@torch.no_grad()
def through_head(model: nn.Module, head: Head, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Features (M, d), logits (M, K) and labels (M) of the samples of a batch that carry a loss, at least float32.

    Raises:
        ValueError: what the head puts out is not the model's logits, or is not linear in what goes in.
    """
    with _noting([head.module]) as (note,):
        logits = forward(model, batch)
    if note.inputs is None or note.outputs is None:
        raise ValueError(f"the head {head.name!r} was not called in the model's forward pass")
    rows = _rows_of(note.outputs, logits)
    if rows is None:
        raise ValueError(
            f"the output of head {head.name!r}, {tuple(note.outputs.shape)}, is not the model's logits, "
            f"{tuple(logits.shape)}: measures need logits that are linear in the features"
        )
    features = note.inputs
    if isinstance(rows, Tensor):
        features = features[torch.arange(len(features), device=features.device), rows]
    labels, logits, features = align(model, batch.labels.long(), logits, features)
    return widen(features), widen(logits), labels


def check_linear(head: Head, features: Tensor, logits: Tensor) -> None:
    """Raise ValueError unless the logits are the weight times the features plus the bias."""
    expected = features @ head.weight.mT + (head.bias if head.bias is not None else 0)
    half = head.module.weight.dtype in (torch.float16, torch.bfloat16)
    tolerance = 2e-2 if half else 1e-3
    if not torch.allclose(expected, logits, rtol=tolerance, atol=tolerance * float(logits.abs().max())):
        raise ValueError(
            f"head {head.name!r} does not put out weight · features + bias: it is wrapped or changed by a hook, so its "
            f"flatness is not that of its weight"
        )
