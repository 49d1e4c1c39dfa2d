"""What a measure sees: the inputs and outputs of a linear head at one moment, with fixed weights.

Shapes here and in every measure: `...` any leading replica axes, N samples, d features, K classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Snapshot:
    """Features, logits and labels of a batch or data set, with the head that maps the one to the other.

    Attributes:
        features: what enters the head, (..., N, d).
        logits: what leaves it, (..., N, K); equals `features @ weight.mT + bias`.
        labels: class indices, int64, (..., N).
        weight: the head's weight, (..., K, d).
        bias: the head's bias, (..., K), or None.
        parameters: every parameter of the network by name, (..., *shape); needed by measures of the whole network.
    """

    features: Tensor
    logits: Tensor
    labels: Tensor
    weight: Tensor
    bias: Tensor | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """K, the number of outputs of the head."""
        return self.logits.shape[-1]


Property = Literal["flatness", "collapse", "fit", "norm", "margin", "representation", "representativeness", "curvature"]


@dataclass(frozen=True)
class Measure:
    """A row of the table `MEASURES`: a function of a snapshot's fields, and what is known about it.

    Attributes:
        name: key in the table and column name in a trajectory.
        function: tensors in, a tensor of shape (...) out.
        inputs: names of the snapshot's fields, in the order in which `function` takes them.
        property: the family that verdicts are about.
        direction: whether the literature connects generalisation with lower or higher values.
        unit: unit or range, for people.
        source: paper and equation.
        title: how figures and tables call it.
        differentiable: whether it can stand in a loss.
        positive: whether it is never negative, so that it can be clamped and drawn on a log scale.
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

    def __call__(self, snapshot: Snapshot, **options: object) -> Tensor:
        """Value of the measure on a snapshot, shape (...)."""
        return self.function(*(getattr(snapshot, name) for name in self.inputs), **options)
