"""Interventions: hold a measure up, push it down, or lift a constraint, on one network or on many replicas at once.

A penalty joins the loss. With m the measure of a batch and s the strength,

    Promote   + s·m      (− s·m where higher values are connected with generalisation)
    Suppress  − s·m      (+ s·m likewise)
    Clamp     + s·(relu(log c_low − log m)² + relu(log m − log c_high)²), zero once the goal holds.

Every number of a penalty may be a tensor over replicas; m, and then the penalty, has the replicas' shape. The other
interventions act on features (`NormalizeFeatures`, `Rescale`), on weights after a step (`WeightCap`) or on the
optimiser (`Unplug`). All of them are frozen and go to JSON and back, so they stand in a study's specification as they
are.

Source: Han et al. 2025 (arXiv 2509.17738), sections 4–6 and appendices, for Suppress, NormalizeFeatures, WeightCap
and Unplug; the clamp is ours.
"""

import difflib
import warnings
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from grokscape.measures import MEASURES, OF_LAYER, Measure, MeasureWarning, Snapshot, find_measure
from grokscape.measures.checks import warn_if_nan
from grokscape.measures.functional import why_nan
from grokscape.numerics import holds
from grokscape.penalties import (
    Gate,
    cap_factor,
    clamp_penalty,
    measure_at,
    normalize_features,
    schedule_gate,
    smallest,
)
from grokscape.settings import NUMBER

_FROZEN = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)
Positive = Annotated[float, Field(gt=0), NUMBER]
NonNegative = Annotated[float, Field(ge=0), NUMBER]
_Step = Annotated[int, Field(ge=0, le=10**18)]  # PyTorch's integers hold the sum of a few
Step = Annotated[_Step, NUMBER]


def _differentiable_measure(name: str) -> Measure:
    row = find_measure(name)
    if row is None:
        near = difflib.get_close_matches(name, MEASURES, n=3) or sorted(MEASURES)
        raise ValueError(f"expected the name of a measure, got {name!r}; near: {', '.join(near)}")
    if not row.differentiable:
        usable = sorted(row.name for row in MEASURES.values() if row.differentiable)
        raise ValueError(f"{name!r} is not differentiable and cannot be a penalty; choose one of {', '.join(usable)}")
    return row


@dataclass(frozen=True, config=_FROZEN)
class _Scheduled:
    """Active from step `start` up to, not including, `until`; strength rises linearly over the first `ramp` steps."""

    def gate(self, step: int) -> float:
        """Share of the full strength at a step, 0 to 1."""
        return float(schedule_gate(step, self.start, self.until, getattr(self, "ramp", 0)))  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _ends_after_start(self) -> "_Scheduled":
        start, until = self.start, self.until  # type: ignore[attr-defined]
        if until is not None and until <= start:
            raise ValueError(f"expected until > start, got start={start}, until={until}; leave until out for no end")
        return self


@dataclass(frozen=True, config=_FROZEN)
class _Penalty(_Scheduled):
    @property
    def _row(self) -> Measure:
        name, temperature = self.measure, self.temperature  # type: ignore[attr-defined]
        if name.startswith(OF_LAYER) and temperature != 1:
            raise ValueError(f"{name!r} is taken with the loss itself and knows no temperature; leave temperature out")
        return _differentiable_measure(name)

    def value(self, snapshot: Snapshot) -> Tensor:
        """The measure that the penalty is about, at the penalty's temperature."""
        return measure_at(self.measure, snapshot, self.temperature)  # type: ignore[attr-defined]

    def _warn(self, value: Tensor, snapshot: Snapshot, then: str) -> None:
        name = self.measure  # type: ignore[attr-defined]
        warn_if_nan(f"{name} of this batch", value, lambda: f"{why_nan(name, snapshot)}; {then}")


def _nothing(snapshot: Snapshot) -> Tensor:
    """The term of a penalty that does not act, shape (...): the measure need not exist then.

    It hangs in no graph: through one the zero would cost a backward pass, and become NaN where a slope is infinite.
    """
    return snapshot.logits.new_zeros(snapshot.logits.shape[:-2])


@dataclass(frozen=True, config=_FROZEN)
class _Linear(_Penalty):
    measure: str
    strength: Positive
    start: Step = 0
    until: Step | None = None
    ramp: Step = 0
    temperature: Positive = 1.0

    @model_validator(mode="after")
    def _has_direction(self) -> "_Linear":
        if self._row.direction == "neither":
            raise ValueError(
                f"{self.measure!r} has no direction to promote or suppress; use Clamp with at_least or at_most"
            )
        return self

    @property
    def signed_strength(self) -> float:
        """Factor of the measure in the loss."""
        lower_is_better = self._row.direction == "lower"
        return self.strength * (1 if lower_is_better == self._promotes else -1)  # type: ignore[attr-defined]

    def __call__(self, snapshot: Snapshot, *, step: int = 0) -> Tensor:
        """The term to add to the loss, shape (...); NaN, with a warning, where the measure does not exist."""
        if not self.gate(step):
            return _nothing(snapshot)
        value = self.value(snapshot)
        self._warn(value, snapshot, "so is the penalty; leave such batches out (drop_last=True, larger batches)")
        return self.signed_strength * self.gate(step) * value

    def __str__(self) -> str:
        sign = "+" if self.signed_strength > 0 else "−"
        return f"loss {sign} {self.strength:g}·{self.measure}{_tau(self.temperature)}{_when(self)}"


@dataclass(frozen=True, config=_FROZEN)
class Promote(_Linear):
    """Push a measure towards what is connected with generalisation: loss + strength·m (− where higher is better).

    Args:
        measure: name in `MEASURES`, differentiable; or "relative_flatness@LAYER" for a hidden layer.
        strength: factor λ > 0.
        start, until: first step, and first step no longer, at which it acts. Before and after it is a plain zero: add
            it to the loss, `backward()` on it alone has nothing to go back through.
        ramp: number of steps over which the strength rises.
        temperature: the measure sees logits divided by it, which keeps slopes alive where softmax is nearly one-hot.

    Raises:
        pydantic.ValidationError: unknown or non-differentiable measure, strength ≤ 0, until ≤ start.

    >>> print(Promote("relative_flatness", strength=1e-2))
    loss + 0.01·relative_flatness
    """

    kind: Literal["promote"] = "promote"
    _promotes = True


@dataclass(frozen=True, config=_FROZEN)
class Suppress(_Linear):
    """Push a measure away from what is connected with generalisation: loss − strength·m (+ where higher is better).

    The arguments are those of `Promote`. Unbounded: above a narrow band of strengths it destroys training, below it
    does nothing. `Clamp` holds a level instead.

    >>> print(Suppress("cdnv", strength=1e-3, until=200))
    loss − 0.001·cdnv before step 200
    """

    kind: Literal["suppress"] = "suppress"
    _promotes = False


@dataclass(frozen=True, config=_FROZEN)
class Clamp(_Penalty):
    """Hold a measure at or above, or at or below, a level; no force at all once it is there.

    penalty = strength · (relu(log at_least − log m)² + relu(log m − log at_most)²)

    Args:
        measure: name in `MEASURES`, differentiable and positive; or "relative_flatness@LAYER" for a hidden layer.
        at_least, at_most: the levels; one of them or both. Factors of the reference if `relative_to` is given.
        strength: factor > 0.
        relative_to: None for absolute levels; "memorisation" or a step for levels relative to the measure's value
            at that moment (until it comes the clamp rests).
        start, until, ramp, temperature: as in `Promote`.

    Raises:
        pydantic.ValidationError: unknown, non-differentiable or signed measure, no level, levels ≤ 0 or crossed.

    >>> print(Clamp("relative_flatness", at_least=30))
    relative_flatness held ≥ 30 (strength 0.1)
    """

    measure: str
    at_least: Positive | None = None
    at_most: Positive | None = None
    strength: Positive = 0.1
    relative_to: Annotated[Literal["memorisation"] | _Step | None, NUMBER] = None
    start: Step = 0
    until: Step | None = None
    ramp: Step = 0
    temperature: Positive = 1.0
    kind: Literal["clamp"] = "clamp"

    @model_validator(mode="after")
    def _has_levels(self) -> "Clamp":
        if not self._row.positive:
            raise ValueError(
                f"{self.measure!r} can be negative, a clamp works on its logarithm; use Promote or Suppress"
            )
        if self.at_least is None and self.at_most is None:
            raise ValueError("expected at_least or at_most (or both), got neither")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise ValueError(f"expected at_least ≤ at_most, got at_least={self.at_least}, at_most={self.at_most}")
        return self

    def __call__(self, snapshot: Snapshot, *, step: int = 0, reference: Tensor | float | None = None) -> Tensor:
        """The term to add to the loss, shape (...); zero, with a warning, where the measure does not exist.

        Args:
            snapshot: of the batch.
            step: for the schedule.
            reference: the measure's value at the moment that `relative_to` names; needed then, and only then.
        """
        if self.relative_to is not None and reference is None:
            raise ValueError(
                f"this clamp is relative to {self.relative_to!r}; pass reference=, the value at that moment"
            )
        if self.relative_to is None and reference is not None:
            raise ValueError("the levels of this clamp are absolute; leave reference= out, or give it relative_to=")
        if not self.gate(step):
            return _nothing(snapshot)
        scale = 1.0 if reference is None else reference
        low, high = (None if level is None else level * scale for level in (self.at_least, self.at_most))
        gate = Gate(snapshot)
        value = self.value(gate.snapshot)
        self._warn(value, snapshot, "the clamp rests")
        if self.at_least is not None and holds((value <= smallest(value.dtype)).any()):
            text = f"{self.measure} of this batch is not above 0, or too small for the slope of its logarithm"
            warnings.warn(f"{text}: the clamp rests", MeasureWarning, stacklevel=2)
        return gate(clamp_penalty(value, self.strength * self.gate(step), low, high))

    def __str__(self) -> str:
        levels = [
            f"{sign} {level:g}" for sign, level in (("≥", self.at_least), ("≤", self.at_most)) if level is not None
        ]
        unit = "" if self.relative_to is None else f" × its value at {_moment(self.relative_to)}"
        goal = " and ".join(levels)
        return f"{self.measure}{_tau(self.temperature)} held {goal}{unit} (strength {self.strength:g}){_when(self)}"


@dataclass(frozen=True, config=_FROZEN)
class NormalizeFeatures(_Scheduled):
    """Scale every sample's features to length `radius` before they enter the head: φ → radius·φ/‖φ‖.

    >>> print(NormalizeFeatures(until=200))
    features normalised to length 1 before step 200
    """

    radius: Positive = 1.0
    start: Step = 0
    until: Step | None = None
    kind: Literal["normalize_features"] = "normalize_features"

    def __call__(self, features: Tensor, *, step: int = 0) -> Tensor:
        """Features as the head gets them, (..., N, d)."""
        return normalize_features(features, self.radius) if self.gate(step) else features

    def __str__(self) -> str:
        return f"features normalised to length {self.radius:g}{_when(self)}"


@dataclass(frozen=True, config=_FROZEN)
class Rescale:
    """Features times `factor`, head weight divided by it from the start: the same function, the same κ, other norms.

    A control: whatever it changes in a verdict belongs to the parametrisation, not to the function.

    >>> print(Rescale(2))
    features × 2, head weight ÷ 2 from the start
    """

    factor: Positive
    kind: Literal["rescale"] = "rescale"

    def __str__(self) -> str:
        return f"features × {self.factor:g}, head weight ÷ {self.factor:g} from the start"


@dataclass(frozen=True, config=_FROZEN)
class WeightCap(_Scheduled):
    """After each step scale the head's weight down so that its norm stays at or below `at_most`.

    >>> print(WeightCap(50))
    head weight capped at Frobenius norm 50
    """

    at_most: Positive
    norm: Literal["frobenius", "spectral"] = "frobenius"
    start: Step = 0
    until: Step | None = None
    kind: Literal["weight_cap"] = "weight_cap"

    def __call__(self, weight: Tensor, *, step: int = 0) -> Tensor:
        """The weight as it goes on, (..., K, d)."""
        return weight * cap_factor(weight, self.at_most, self.norm) if self.gate(step) else weight

    def __str__(self) -> str:
        return f"head weight capped at {self.norm.capitalize()} norm {self.at_most:g}{_when(self)}"


@dataclass(frozen=True, config=_FROZEN)
class Unplug:
    """At `step` the arm's penalties and normalisation end, and the optimiser gets new settings.

    A `WeightCap` stays, as it does in the paper; one with `until=` ends there. `Rescale` is what it was from the start.

    Args:
        step: when.
        lr: learning rate from then on; None keeps it, and its schedule too.
        cosine: whether it falls to zero along half a cosine, from its value then, until the run's last step.
        weight_decay: decay from then on; None keeps it.

    >>> print(Unplug(200, lr=0.1, cosine=True, weight_decay=2e-4))
    unplugged at step 200: lr 0.1, cosine, weight decay 0.0002
    """

    step: Annotated[Step, Field(ge=1)]
    lr: Positive | None = None
    cosine: bool = False
    weight_decay: NonNegative | None = None
    kind: Literal["unplug"] = "unplug"

    def __str__(self) -> str:
        changes = [f"lr {self.lr:g}"] if self.lr is not None else []
        changes += ["cosine"] if self.cosine else []
        changes += [f"weight decay {self.weight_decay:g}"] if self.weight_decay is not None else []
        return f"unplugged at step {self.step}" + (f": {', '.join(changes)}" if changes else "")


Penalty = Promote | Suppress | Clamp
Intervention = Annotated[
    Promote | Suppress | Clamp | NormalizeFeatures | Rescale | WeightCap | Unplug, Field(discriminator="kind")
]


def describe(interventions: tuple[Intervention, ...]) -> str:
    """The interventions of an arm as one readable line.

    >>> describe((Clamp("cdnv", at_least=1.2), WeightCap(50)))
    'cdnv held ≥ 1.2 (strength 0.1); head weight capped at Frobenius norm 50'
    """
    return "; ".join(str(intervention) for intervention in interventions) or "no intervention"


def _tau(temperature: float) -> str:
    return f"(τ = {temperature:g})" if temperature != 1 else ""


def _moment(relative_to: str | int) -> str:
    return relative_to if isinstance(relative_to, str) else f"step {relative_to}"


def _when(scheduled: object) -> str:
    start, until = scheduled.start, scheduled.until  # type: ignore[attr-defined]
    ramp = getattr(scheduled, "ramp", 0)
    text = f" from step {start}" if start else ""
    text += f" before step {until}" if until is not None else ""
    return text + (f" (ramp {ramp})" if ramp else "")
