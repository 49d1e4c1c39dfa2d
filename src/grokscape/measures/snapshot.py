"""What a measure sees: the inputs and outputs of a linear head at one moment, with fixed weights.

Shapes here and in every measure: `...` any leading replica axes, N samples, d features, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from grokscape.measures.checks import check_tensors
from grokscape.measures.comparison import margins
from grokscape.measures.flatness import log_row_variance, row_distances, row_variance
from grokscape.measures.representation import spectrum
from grokscape.measures.representativeness import smoothing_excess
from grokscape.measures.softmax import Softmax
from grokscape.measures.statistics import ClassMeans, ClassStatistics
from grokscape.numerics import full_precision, has_float64, squared_norms, widen


@dataclass(frozen=True)
class Snapshot:
    """Features, logits and labels of a batch or data set, with the head that maps the one to the other.

    Attributes:
        features: what enters the head, (..., N, d).
        logits: what leaves it, (..., N, K); equals `features @ weight.mT + bias`.
        labels: class indices, int64, (..., N).
        weight: the head's weight, (..., K, d).
        bias: the head's bias, (..., K), or None.
        parameters: every parameter of the network, name → (..., its shape); needed by measures of the whole network.
        layers: measures of hidden layers that were taken with it, such as "relative_flatness@first" → (...).

    Raises:
        TypeError: something that is no tensor.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_tensors(**{name: getattr(self, name) for name in ("features", "logits", "labels", "weight", "bias")})

    @property
    def num_classes(self) -> int:
        """K, the number of outputs of the head."""
        return self.logits.shape[-1]


def with_float64(snapshot: Snapshot) -> Snapshot:
    """The snapshot on a device that has float64: itself, or a copy on the CPU."""
    if has_float64(snapshot.features.device):
        return snapshot
    names = ("features", "logits", "labels", "weight", "bias")
    moved: dict[str, Any] = {name: value.cpu() for name in names if (value := getattr(snapshot, name)) is not None}
    for name in ("parameters", "layers"):
        moved[name] = {key: value.cpu() for key, value in getattr(snapshot, name).items()}
    return replace(snapshot, **moved)


def _widened(snapshot: Snapshot) -> Snapshot:
    """The snapshot with half precision as float32; itself where there is none."""
    fields = {name: getattr(snapshot, name) for name in ("features", "logits", "weight", "bias")}
    wide: dict[str, Any] = {name: widen(value) for name, value in fields.items() if value is not None}
    changed = any(wide[name] is not fields[name] for name in wide)
    return replace(snapshot, **wide) if changed else snapshot


class Quantities:
    """What many measures need from one snapshot, each computed when first asked for and then kept.

    Args:
        snapshot: the snapshot.
        around: quantities of another snapshot whose class means take the place of the snapshot's own.
        known: quantities by name that are known already.
    """

    def __init__(self, snapshot: Snapshot, around: "Quantities | None" = None, **known: Any) -> None:
        self._snapshot = _widened(snapshot)
        self._around = around
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._snapshot, name)

    @classmethod
    def of(cls, snapshot: "Snapshot | Quantities") -> "Quantities":
        """Of a snapshot; or those that are there already."""
        return cls(snapshot) if isinstance(snapshot, Snapshot) else snapshot

    def measured_around(self, other: "Quantities") -> "Quantities":
        """The same with other class means in place of its own; what does not depend on them is not computed again."""
        own = {"_snapshot", "_around", "statistics", "smoothed_loss"}
        return Quantities(self._snapshot, other, **{k: v for k, v in self.__dict__.items() if k not in own})

    @cached_property
    def softmax(self) -> Softmax:
        """Split softmax of the logits."""
        return Softmax.of(self._snapshot.logits)

    @cached_property
    def prediction(self) -> Tensor:
        """The class with the largest logit, int64 (..., N)."""
        return self.softmax.top

    @cached_property
    def cross_entropies(self) -> Tensor:
        """−log p_y of every sample, (..., N)."""
        return self.softmax.cross_entropy(self._snapshot.labels)

    @cached_property
    def entropies(self) -> Tensor:
        """Entropy of the predicted probabilities of every sample, (..., N)."""
        return self.softmax.entropy()

    @cached_property
    def margins(self) -> Tensor:
        """z_y − max_{c≠y} z_c of every sample, (..., N)."""
        return margins(self._snapshot.logits, self._snapshot.labels)

    @cached_property
    def spectrum(self) -> Tensor:
        """Singular values of the centred features, (..., min(N, d))."""
        return spectrum(self._snapshot.features)

    @cached_property
    def smoothed_loss(self) -> Tensor:
        """Cross-entropy under noise in the features of the samples that are measured around, (...)."""
        if self._around is not None:
            return self._around.smoothed_loss
        return (self.cross_entropies + self.smoothing_excesses).mean(-1)

    @cached_property
    def noise(self) -> torch.Generator:
        """Generator of the noise in the features; one for all batches of a data set, so that no two share theirs."""
        return torch.Generator().manual_seed(0)

    @cached_property
    def smoothing_excesses(self) -> Tensor:
        """How much noise in its features raises a sample's cross-entropy, (..., N)."""
        excess = smoothing_excess(self.features, self.weight, self.logits, self.labels, generator=self.noise)
        return excess.mean(0).to(self.logits.dtype)

    @property
    def saturated(self) -> Tensor:
        """Whether the softmax of a sample rounds to one-hot, bool (..., N)."""
        return self.softmax.saturated()

    @cached_property
    def row_variance(self) -> Tensor:
        """tr Cov_{c∼p_i}(w_c), (..., N)."""
        return row_variance(self.softmax, self._snapshot.weight, self.row_distances)

    @cached_property
    def log_row_variance(self) -> Tensor:
        """log tr Cov_{c∼p_i}(w_c), (..., N), also where the covariance underflows."""
        return log_row_variance(self.softmax, self._snapshot.weight, self.row_distances)

    @cached_property
    def row_distances(self) -> Tensor | None:
        """‖w_c − w_c'‖² for every pair, (..., K, K), where that is what `row_variance` takes."""
        return row_distances(self._snapshot.weight)

    @cached_property
    def squared_norms(self) -> Tensor:
        """‖φ_i‖², (..., N)."""
        return squared_norms(self._snapshot.features)

    @cached_property
    def statistics(self) -> ClassMeans:
        """Class means and scatter."""
        snapshot = self._snapshot
        around = self._around.statistics if self._around is not None else None
        return ClassStatistics.of(snapshot.features, snapshot.labels, snapshot.num_classes, around)


WITHOUT_SAMPLES = {"weight", "bias", "parameters"}
"""Inputs of measures that look at no sample."""

Property = Literal["flatness", "collapse", "fit", "norm", "margin", "representation", "representativeness", "curvature"]


@dataclass(frozen=True)
class Measure:
    """A row of the table `MEASURES`: a function of a snapshot's fields, and what is known about it.

    Attributes:
        name: key in the table and column name in a trajectory.
        function: tensors in, a tensor of shape (...) out.
        inputs: what `function` takes, in its order: names of fields of a snapshot, or of what is derived from one
            (see `Quantities`).
        property: the family that verdicts are about.
        direction: whether the literature connects generalisation with lower or higher values.
        unit: unit or range, for people.
        source: paper and equation.
        title: how figures and tables call it.
        differentiable: whether it can stand in a loss.
        positive: whether it is never negative, so that it can be clamped and drawn on a log scale.
        around: whether held-out samples can be measured around the class means of another snapshot.
    """

    name: str
    function: Callable[..., Tensor]
    inputs: tuple[str, ...]
    property: Property
    direction: Literal["lower", "higher", "neither"]
    unit: str
    source: str
    title: str
    differentiable: bool = True
    positive: bool = True
    around: bool = False

    def __call__(self, snapshot: Snapshot, **options: object) -> Tensor:
        """Value of the measure on a snapshot, shape (...); NaN, without a word, where the measure does not exist.

        Options go to `function`.
        """
        return self.of(Quantities(snapshot), **options)

    def of(self, quantities: Quantities, **options: object) -> Tensor:
        """Value from quantities that other measures may have computed already; NaN where it needs samples, of none."""
        if not quantities.labels.shape[-1] and not set(self.inputs) <= WITHOUT_SAMPLES:
            return quantities.weight.new_full(quantities.weight.shape[:-2], float("nan"))
        with full_precision():
            return self.function(*(getattr(quantities, name) for name in self.inputs), **options)
