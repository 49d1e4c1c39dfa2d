"""The measures people call by hand: tensors in, tensor out, with what is wrong with the input said aloud."""


from torch import Tensor

from grokscape.measures import collapse as _collapse
from grokscape.measures.snapshot import Measure, Quantities, Snapshot
from grokscape.measures.statistics import ClassStatistics
from grokscape.measures.table import MEASURES


def cdnv(features: Tensor, labels: Tensor, *, num_classes: int | None = None) -> Tensor:
    """Class-distance normalised variance: mean over pairs of classes of (V_c + V_c')/(2‖μ_c − μ_c'‖²).

    Args:
        features: (..., N, d).
        labels: int64 (..., N).
        num_classes: K; by default the largest label + 1.

    Returns:
        Shape (...), ≥ 0, differentiable.

    Source: Galanti et al., ICLR 2022.
    """
    return _collapse.cdnv(_statistics(features, labels, num_classes))


def neural_collapse(
    features: Tensor, labels: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *,
    num_classes: int | None = None,
) -> dict[str, Tensor]:
    """Every measure of neural collapse that the input allows.

    Args:
        features: (..., N, d).
        labels: int64 (..., N).
        weight: the head's weight (..., K, d); without it, nc3, nc4 and those of the head's rows are left out.
        bias: the head's bias (..., K).
        num_classes: K; by default the head's, or the largest label + 1.

    Returns:
        name → value of shape (...).
    """
    if num_classes is None:
        num_classes = weight.shape[-2] if weight is not None else int(labels.max()) + 1
    if weight is None:
        logits = features.new_zeros(*labels.shape, num_classes)
    else:
        logits = features @ weight.mT + (bias[..., None, :] if bias is not None else 0)
    snapshot = Snapshot(features, logits, labels, weight if weight is not None else features[..., :0, :], bias)
    quantities = Quantities(snapshot)
    return {row.name: row.of(quantities) for row in _collapse_rows(weight is not None)}


def _collapse_rows(with_head: bool) -> list[Measure]:
    rows = [row for row in MEASURES.values() if row.property == "collapse"]
    return rows if with_head else [row for row in rows if not {"weight", "prediction"} & set(row.inputs)]


def _statistics(features: Tensor, labels: Tensor, num_classes: int | None) -> ClassStatistics:
    return ClassStatistics.of(features, labels, num_classes if num_classes is not None else int(labels.max()) + 1)
