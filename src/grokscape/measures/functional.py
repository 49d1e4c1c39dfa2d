"""The measures people call by hand: tensors in, tensor out, with what is wrong with an input said aloud.

Shapes: `...` any leading replica axes, N samples, d features, K classes. A sequence model's positions are samples:
flatten batch and positions to one axis and give a mask, or leave masked positions out.
"""

from typing import Literal

import torch
from torch import Tensor

from grokscape.measures import checks, collapse
from grokscape.measures.chunks import in_chunks
from grokscape.measures.losses import Loss, curvature
from grokscape.measures.snapshot import Measure, Quantities, Snapshot
from grokscape.measures.softmax import Softmax
from grokscape.measures.statistics import ClassMeans, ClassStatistics
from grokscape.measures.table import MEASURES
from grokscape.numerics import full_precision, holds, squared_norms, sum_by_class, widen

Reduction = Literal["mean", "sample", "class"]


@full_precision()
def relative_flatness(
    features: Tensor,
    weight: Tensor,
    logits: Tensor | None = None,
    *,
    loss: Loss = "cross_entropy",
    bias: Tensor | None = None,
    targets: Tensor | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    chunk_size: int | None = None,
) -> Tensor:
    """Exact relative flatness κ = mean_i ‖φ_i‖² Tr(Wᵀ G_i W) of a linear head; small is flat.

    Args:
        features: what enters the head, (..., N, d).
        weight: the head's weight, (..., K, d).
        logits: what leaves the head, bias included, (..., N, K); without them they are made from features, weight
            and bias, chunk by chunk.
        loss: "cross_entropy" (also for soft and smoothed labels, which G does not depend on), "binary_cross_entropy"
            (with logits) and "squared_error" (both a mean over outputs, as in torch), or any function
            (logits, targets) → one twice differentiable loss per sample (..., N).
        bias: the head's bias (..., K); used only when logits are not given.
        targets: for a loss that is a function, (..., N, and more); class indices (..., N) for reduction="class".
        mask: which samples count, bool (..., N).
        reduction: "mean" gives κ (...); "sample" the summands (..., N), 0 where masked; "class" their mean over the
            samples of each class (..., K), NaN for classes without samples.
        chunk_size: so many samples at a time; by default as many as keep memory near 256 MiB. With gradients, chunks
            are computed again in the backward pass.

    Returns:
        κ, differentiable, of the dtype of the features (float32 for half precision).

    Raises:
        TypeError: integer features.
        ValueError: shapes that do not fit, no samples, an unknown loss or reduction, a chunk_size below 1.

    Example:
        >>> features, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> relative_flatness(features, weight, torch.zeros(1, 2))
        tensor(1.)

    Source: Petzka et al., Relative flatness and generalization, NeurIPS 2021, Definition 3.
    """
    checks.check_head(features, weight, logits, bias)
    checks.check_tensors(targets=targets, mask=mask)
    features, weight = widen(features), widen(weight)

    def part(features: Tensor, logits: Tensor, targets: Tensor | None) -> Tensor:
        """κ of every sample of a chunk."""
        return squared_norms(features) * curvature(loss, weight, logits, targets)

    of_loss = targets if callable(loss) else None
    values = in_chunks(part, features, weight, bias, logits, of_loss, chunk_size, mask)
    result = _reduce(values, mask, reduction, targets, weight.shape[-2])
    if reduction != "class":
        checks.warn_if_nan("relative_flatness", result, lambda: _why_nan(features, weight, logits, mask))
    return result


@full_precision()
def relative_flatness_bound(
    features: Tensor,
    weight: Tensor,
    logits: Tensor | None = None,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """The surrogate κ̄ = ‖W‖_F² mean_i ‖φ_i‖² (1 − ‖p_i‖²) ≥ κ, with p = softmax(z / τ).

    Not κ: it is larger, and unlike κ it changes when the same vector is added to every row of W.

    Args:
        features: (..., N, d).
        weight: (..., K, d).
        logits: (..., N, K); made from features, weight and bias when not given.
        temperature: τ, > 0; the bound holds for τ = 1.
        bias: (..., K); used only when logits are not given.
        mask: which samples count, bool (..., N).
        chunk_size: as in `relative_flatness`.

    Returns:
        κ̄ of shape (...), ≥ 0, differentiable.

    Raises:
        TypeError: integer features.
        ValueError: shapes that do not fit, no samples, a temperature that is not positive, a chunk_size below 1.

    Source: Walter et al. 2024; Han et al., NeurIPS 2025, Lemma A.2.
    """
    checks.check_head(features, weight, logits, bias)
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    checks.check_tensors(mask=mask)
    features, weight = widen(features), widen(weight)

    def part(features: Tensor, logits: Tensor, _: Tensor | None) -> Tensor:
        """‖φ_i‖² (1 − ‖p_i‖²) of every sample of a chunk."""
        return squared_norms(features) * Softmax.of(logits, temperature).impurity()

    values = in_chunks(part, features, weight, bias, logits, None, chunk_size, mask)
    result = weight.square().sum((-2, -1)) * _reduce(values, mask, "mean", None, weight.shape[-2])
    checks.warn_if_nan("relative_flatness_bound", result, lambda: _why_nan(features, weight, logits, mask))
    return result


@full_precision()
def cdnv(
    features: Tensor, labels: Tensor, *, num_classes: int | None = None, around: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Class-distance normalised variance: mean over pairs of classes of (V_c + V_c')/(2‖μ_c − μ_c'‖²).

    Classes with fewer than two samples are left out.

    Args:
        features: (..., N, d).
        labels: class indices, (..., N).
        num_classes: K; by default the largest label + 1.
        around: (features, labels) of other samples, around whose class means the variance is taken.

    Returns:
        Shape (...), ≥ 0, differentiable; NaN with a `MeasureWarning` if fewer than two classes have two samples, or if
        two class means coincide.

    Raises:
        TypeError: integer features, labels that are no indices.
        ValueError: shapes that do not fit, labels out of range, no samples.

    Source: Galanti et al., ICLR 2022; Han et al., NeurIPS 2025, Definition 3.1 (which sums; see `cdnv_sum`).
    """
    statistics = class_statistics(features, labels, num_classes=num_classes, around=around)
    value = collapse.cdnv(statistics)
    checks.warn_if_nan("cdnv", value, lambda: why_no_collapse(features, statistics))
    return value


@full_precision()
def neural_collapse(
    features: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    num_classes: int | None = None,
    around: tuple[Tensor, Tensor] | None = None,
    weighting: Literal["sample", "class"] = "sample",
) -> dict[str, Tensor]:
    """Every measure of neural collapse that the input allows, by the names of `MEASURES`.

    Args:
        features: (..., N, d).
        labels: class indices, (..., N).
        weight: the head's weight (..., K, d); without it nc3, nc4 and the measures of its rows are left out.
        bias: the head's bias (..., K).
        num_classes: K; by default the head's, or the largest label + 1.
        around: (features, labels) of other samples (training samples, for held-out ones) around whose class means
            everything is taken; then measures of the means alone are left out.
        weighting: how Σ_W and the global mean weigh: every sample alike, or every class alike.

    Returns:
        name → value of shape (...); NaN with one `MeasureWarning` that says which and why.

    Raises:
        TypeError: integer features, labels that are no indices.
        ValueError: shapes that do not fit, labels out of range, no samples.
    """
    if weight is not None:
        checks.check_head(features, weight, None, bias)
        num_classes = num_classes if num_classes is not None else weight.shape[-2]
    statistics = class_statistics(features, labels, num_classes=num_classes, around=around, weighting=weighting)
    wide = widen(features)
    rows = wide[..., :0, :] if weight is None else widen(weight)
    snapshot = Snapshot(wide, wide[..., :0], labels, rows, bias)
    prediction = None if weight is None else _predictions(wide, rows, bias)
    quantities = Quantities(snapshot, statistics=statistics, prediction=prediction)
    wanted = [row for row in _collapse_rows(weight is not None) if around is None or row.around]
    values = {row.name: row.of(quantities) for row in wanted}
    missing = [name for name, value in values.items() if holds(value.isnan().any())]
    if missing:
        checks.warn_if_nan(", ".join(missing), values[missing[0]], lambda: why_no_collapse(features, statistics))
    return values


@full_precision()
def collapse_by_class(
    features: Tensor, labels: Tensor, *, num_classes: int | None = None, around: tuple[Tensor, Tensor] | None = None
) -> dict[str, Tensor]:
    """What single classes contribute to neural collapse.

    Args:
        features: (..., N, d).
        labels: class indices, (..., N).
        num_classes: K; by default the largest label + 1.
        around: as in `neural_collapse`.

    Returns:
        "count" n_c, "variance" V_c, "mean_norm" ‖μ_c − μ_G‖ and "cdnv", the mean over other classes of
        (V_c + V_c')/(2‖μ_c − μ_c'‖²), each (..., K); NaN for classes with fewer than two samples.

    Raises:
        TypeError, ValueError: as in `neural_collapse`.
    """
    statistics = class_statistics(features, labels, num_classes=num_classes, around=around)
    values = {
        "variance": statistics.variances,
        "mean_norm": torch.linalg.vector_norm(statistics.centred_means, dim=-1),
        "cdnv": collapse.cdnv_by_class(statistics),
    }
    nan = float("nan")
    return {"count": statistics.counts, **{k: v.where(statistics.present, nan) for k, v in values.items()}}


def class_statistics(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int | None = None,
    around: tuple[Tensor, Tensor] | None = None,
    weighting: Literal["sample", "class"] = "sample",
) -> ClassStatistics:
    """Class means and scatter with checked input; see `cdnv` for the arguments and what is raised."""
    checks.check_floating(features=features)
    checks.check_samples(features)
    checks.check_indices(labels)
    labels = labels.long()
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    checks.check_labels(labels, features, num_classes)
    labels = labels.expand(features.shape[:-1])
    centre = None
    if around is not None:
        centre = class_statistics(*around, num_classes=num_classes, weighting=weighting)
    return ClassStatistics.of(widen(features), labels, num_classes, centre, weighting=weighting)


def _per_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean of the values (..., N) over the samples of each class, (..., K); NaN for classes without samples."""
    stacked = torch.stack([values, torch.ones_like(values)], -1)
    sums = sum_by_class(stacked, labels.expand(values.shape), num_classes)
    return sums[..., 0] / sums[..., 1]


def _predictions(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The class with the largest logit, int64 (..., N); all logits at once never exist."""
    with torch.no_grad():
        return in_chunks(lambda _, logits, __: logits.argmax(-1), features, weight, bias)


def _reduce(
    values: Tensor, mask: Tensor | None, reduction: Reduction, targets: Tensor | None, num_classes: int
) -> Tensor:
    if mask is not None:
        values = values.where(mask, 0)
    if reduction == "sample":
        return values
    if reduction == "mean":
        return values.mean(-1) if mask is None else values.sum(-1) / mask.expand(values.shape).sum(-1)
    if reduction != "class":
        raise ValueError(f"reduction must be 'mean', 'sample' or 'class', got {reduction!r}")
    if targets is None:
        raise ValueError("reduction='class' needs class indices: give targets=labels")
    checks.check_indices(targets)
    targets = targets.long() if mask is None else targets.long().where(mask, 0)
    checks.check_labels(targets, values[..., None], num_classes)
    if mask is not None:
        weights = mask.to(values.dtype).expand(values.shape)
        return _per_class(values, targets, num_classes) / _per_class(weights, targets, num_classes)
    return _per_class(values, targets, num_classes)


def _why_nan(features: Tensor, weight: Tensor, logits: Tensor | None, mask: Tensor | None) -> str:
    if mask is not None and holds((~mask).all(-1).any()):
        return "the mask leaves no sample"
    return checks.nan_inputs(features=features, weight=weight, logits=logits) or "a value overflowed its dtype"


def why_no_collapse(features: Tensor | None, statistics: ClassMeans) -> str:
    """Why a measure of collapse is NaN for these statistics (of these features)."""
    reason = checks.nan_inputs(features=features, class_means=statistics.means.where(statistics.present[..., None], 0))
    if reason is not None:
        return reason
    if holds((statistics.number_present < 2).any()):
        return (
            f"it needs two classes with at least two samples each, and there are {int(statistics.number_present.min())}"
        )
    pair = collapse.coincident_pair(statistics)
    if pair is not None:
        return f"the means of classes {pair[0]} and {pair[1]} coincide"
    return "class means or the head's weight are zero, or a value overflowed its dtype"


def why_nan(name: str, snapshot: Snapshot) -> str:
    """Why a measure of the table is NaN for a snapshot."""
    if not snapshot.labels.shape[-1]:
        return "there are no samples, or every label is ignored"
    inputs = {"features": snapshot.features, "logits": snapshot.logits, "weight": snapshot.weight}
    reason = checks.nan_inputs(**inputs)
    if reason is None and "statistics" in MEASURES[name].inputs:
        reason = why_no_collapse(snapshot.features, Quantities(snapshot).statistics)
    return reason or "it divides by zero, or a value overflowed its dtype"


def _collapse_rows(with_head: bool) -> list[Measure]:
    rows = [row for row in MEASURES.values() if row.property == "collapse"]
    return rows if with_head else [row for row in rows if not {"weight", "prediction"} & set(row.inputs)]
