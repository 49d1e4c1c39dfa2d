"""What interventions do to tensors, of one network or of many replicas at once; `interventions` has their settings."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grokscape.measures import Snapshot, find_measure
from grokscape.numerics import holds


def schedule_gate(step: int, start: Tensor | int, until: Tensor | float | None, ramp: Tensor | int = 0) -> Tensor:
    """Share of the full strength: 0 before `start` and from `until` on, else min(1, (step − start + 1)/ramp)."""
    until = torch.inf if until is None else until
    start, until, ramp = (torch.as_tensor(each, dtype=torch.float64, device="cpu") for each in (start, until, ramp))
    inside = (step >= start) & (step < until)
    return inside * ((step - start + 1) / ramp.clamp(min=1)).clamp(0, 1)


def measure_at(name: str, snapshot: Snapshot, temperature: float = 1.0) -> Tensor:
    """A measure of the snapshot with its logits divided by a temperature, shape (...)."""
    if temperature != 1:
        snapshot = replace(snapshot, logits=snapshot.logits / temperature)
    row = find_measure(name)
    assert row is not None, name
    return row(snapshot)


def _known_to_be(acts: Tensor, value: bool) -> bool:
    """Whether all are so; False where to know that means waiting for a device."""
    return acts.device.type == "cpu" and holds((acts == value).all())


class Gate:
    """A snapshot with a gate in its gradients, closed for the replicas in which a penalty rests.

    A penalty of zero has a slope of zero; but where its measure does not exist the chain rule makes 0 · ∞ of it.

    Attributes:
        snapshot: what to compute the penalty from.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        acts: list[Tensor] = []  # hooks hold this list and not the gate, which holds them in turn: nobody could free it
        self._acts = acts

        def through(slope: Tensor) -> Tensor:
            """What of a gradient passes the gate."""
            if _known_to_be(acts[0], True):
                return slope
            return slope.where(acts[0].reshape(*acts[0].shape, *[1] * (slope.dim() - acts[0].dim())), 0)

        def gated(tensor: Tensor | None) -> Tensor | None:
            """The tensor, with the gate in what comes back to it."""
            if tensor is None or not tensor.requires_grad or not torch.is_grad_enabled():
                return tensor
            tensor = tensor.view_as(tensor)
            tensor.register_hook(through)
            return tensor

        names = ("features", "logits", "weight", "bias")
        behind: dict[str, Any] = {name: gated(getattr(snapshot, name)) for name in names}
        self.snapshot = replace(snapshot, **behind)

    @property
    def rests(self) -> bool:
        """Whether the penalty is known to rest in all replicas: its slope is zero, and need not be computed."""
        return _known_to_be(self._acts[0], False)

    def __call__(self, penalty: Tensor, acts: Tensor | None = None) -> Tensor:
        """Close the gate where the penalty (...) is zero, or does not act; to be called before its backward pass."""
        self._acts.append(penalty.detach() != 0 if acts is None else acts)
        return penalty


def smallest(dtype: torch.dtype) -> float:
    """Up to where a clamp does not look at a measure: 4.6e-31 in float32."""
    return torch.finfo(dtype).tiny ** 0.8


def clamp_penalty(
    value: Tensor, strength: Tensor | float, at_least: Tensor | float | None, at_most: Tensor | float | None
) -> Tensor:
    """strength · (relu(log at_least − log m)² + relu(log m − log at_most)²), exactly zero while the goal holds.

    A goal that is NaN (a level relative to a moment that has not come yet) asks for nothing, and nothing is asked of a
    measure that does not exist, or is zero or so small that the slope of its logarithm overflows (`smallest`).
    """
    total = torch.zeros_like(value)
    for goal, sign in ((at_least, 1), (at_most, -1)):
        if goal is not None:
            goal = torch.as_tensor(goal, dtype=value.dtype, device=value.device)
            gap = sign * (goal.log() - value.detach().log())
            missed = (gap > 0) & gap.isfinite() & (value > smallest(value.dtype))  # false for NaN
            one = torch.ones_like(value)  # keeps infinite slopes out of replicas that have reached their goal
            shortfall = torch.where(missed, goal, one).log() - torch.where(missed, value, one).log()
            total = total + shortfall**2
    return strength * total


def normalize_features(features: Tensor, radius: Tensor | float) -> Tensor:
    """radius·φ/‖φ‖ for every sample; a zero feature vector stays zero."""
    norm = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features * (radius / torch.where(norm > 0, norm, torch.ones_like(norm)))


def cap_factor(weight: Tensor, at_most: Tensor | float, norm: str) -> Tensor:
    """min(1, at_most/‖W‖), shape (..., 1, 1): times this a weight (..., K, d) keeps within the cap."""
    finite = torch.where(weight.isfinite(), weight, torch.zeros_like(weight))  # LAPACK raises for the whole batch
    size = torch.linalg.matrix_norm(finite, ord="fro" if norm == "frobenius" else 2, keepdim=True)
    at_most = torch.as_tensor(at_most, dtype=weight.dtype, device=weight.device)
    at_most = at_most.reshape((*at_most.shape, 1, 1)) if at_most.ndim else at_most
    return torch.where(size > at_most, at_most / size, torch.ones_like(size))
