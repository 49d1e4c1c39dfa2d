"""What is wrong with an input, said so that it can be put right.

Shapes and dtypes are checked always. Values are looked at only where a result came out as NaN or where a label would be
used as an index, and not while tracing or under `torch.vmap`, where values cannot be looked at.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from grokscape.numerics import holds


class MeasureWarning(UserWarning):
    """A measure does not exist for this input and is NaN; the message says why."""


def check_tensors(**tensors: object) -> None:
    """Raise TypeError unless all of them are tensors, or None."""
    for name, tensor in tensors.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}; convert with torch.as_tensor")


def check_floating(**tensors: Tensor | None) -> None:
    """Raise TypeError unless every tensor is floating point."""
    check_tensors(**tensors)
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            remedy = "take .real or .abs()" if tensor.is_complex() else "convert with .float()"
            raise TypeError(f"{name} must be floating point, got {tensor.dtype}; {remedy}")


def check_head(features: Tensor, weight: Tensor, logits: Tensor | None, bias: Tensor | None = None) -> None:
    """Raise unless features (..., N, d), weight (..., K, d), logits (..., N, K) and bias (..., K) fit together."""
    check_floating(features=features, weight=weight, logits=logits, bias=bias)
    if features.dim() < 2 or weight.dim() < 2:
        raise ValueError(
            f"features must be (..., N, d) and weight (..., K, d), "
            f"got {tuple(features.shape)} and {tuple(weight.shape)}"
        )
    check_samples(features)
    if features.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"features have {features.shape[-1]} columns but weight has {weight.shape[-1]}: features are what enters "
            f"the head and weight is (classes, features) as in torch.nn.Linear"
        )
    if logits is not None and logits.shape[-2:] != (features.shape[-2], weight.shape[-2]):
        raise ValueError(
            f"logits must be (..., {features.shape[-2]}, {weight.shape[-2]}) for these features and this weight, "
            f"got {tuple(logits.shape)}"
        )
    if bias is not None and bias.shape[-1] != weight.shape[-2]:
        raise ValueError(f"bias must be (..., {weight.shape[-2]}), got {tuple(bias.shape)}")


def check_samples(features: Tensor) -> None:
    """Raise ValueError if there are no samples."""
    if features.shape[-2] == 0:
        raise ValueError(f"there are no samples: features have shape {tuple(features.shape)}")


def form_of_labels(labels: Tensor) -> str:
    """What to do with labels that are no indices (...)."""
    if labels.dim() > 1 and holds(((labels == 1).sum(-1) > 1).any()):
        return (
            "rows with several ones name several classes, and measures need one for each sample; of such targets "
            "layer_flatness knows κ, with loss='binary_cross_entropy'"
        )
    return "soft and one-hot labels become indices by .argmax(-1), a column of indices by .squeeze(-1)"


def check_indices(labels: Tensor | None) -> None:
    """Raise TypeError unless labels are a tensor of whole numbers, of any width."""
    if labels is None:
        raise TypeError("labels must be a tensor of class indices, got None")
    check_tensors(labels=labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        remedy = form_of_labels(labels) if labels.dim() > 1 else "convert with .long()"
        raise TypeError(f"labels must be class indices (int64), got {labels.dtype}; {remedy}")


def check_labels(labels: Tensor, features: Tensor, num_classes: int) -> None:
    """Raise unless labels are class indices (..., N), one for each sample, below the number of classes."""
    check_indices(labels)
    labels = labels.long()
    if labels.shape[-1:] != features.shape[-2:-1]:
        raise ValueError(
            f"labels must be one for each sample, (..., {features.shape[-2]}), got {tuple(labels.shape)}; "
            f"{form_of_labels(labels)}"
        )
    if labels.numel() and holds(((labels < 0) | (labels >= num_classes)).any()):
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(
            f"labels must lie in 0 … {num_classes - 1}, got {low} … {high}; leave ignored positions (such as -100) "
            f"out, or give num_classes"
        )


def warn_if_nan(name: str, value: Tensor, reason: Callable[[], str]) -> None:
    """Warn that a value is NaN, and why; the reason is looked for only then."""
    if holds(value.isnan().any()):
        warnings.warn(f"{name} is NaN: {reason()}", MeasureWarning, stacklevel=3)


def nan_inputs(**tensors: Tensor | None) -> str | None:
    """Which of the tensors hold NaN or infinity, and where first; None if none does."""
    for name, tensor in tensors.items():
        if tensor is not None and holds(~tensor.isfinite().all()):
            first = (~tensor.isfinite()).nonzero()[0].tolist()
            return f"there is NaN or infinity in {name}, first at index {first}"
    return None
