"""Neural collapse: how far within-class scatter has shrunk, and how close class means are to a simplex.

Every function takes class statistics, so that all of them share one pass over the features, and gives a tensor of
shape (...), NaN where the measure does not exist (fewer than two classes with two samples, means that coincide).

Σ_W = (1/N) Σ_i (φ_i − μ_{y_i})(·)ᵀ and Σ_B = (1/K) Σ_c (μ_c − μ_G)(·)ᵀ; V_c is the mean squared distance of the samples
of class c to μ_c; K counts the classes that take part.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from grokscape.measures.statistics import ClassMeans
from grokscape.numerics import pseudo_inverse, root

NAN = float("nan")
_STEPS = 100
"""To how many parts of a degree angles are counted."""


def _pairs(statistics: ClassMeans, block: slice) -> Tensor:
    """Pairs of different classes that both take part, the first from a block: (..., block, K)."""
    present = statistics.present
    return present[..., block, None] & present[..., None, :] & ~_diagonal(statistics, block)


def _diagonal(statistics: ClassMeans, block: slice) -> Tensor:
    """Where a class of the block meets itself, bool (block, K)."""
    index = torch.arange(statistics.present.shape[-1], device=statistics.present.device)
    return index[block, None] == index


Term = Callable[[ClassMeans, slice, Tensor], Tensor]
"""What pairs of classes add: of statistics, a block of first classes and which pairs count, (..., block, K)."""


def _sum_over_pairs(statistics: ClassMeans, term: Term) -> Tensor:
    """Sum of a term over ordered pairs of classes that take part, block by block: (...)."""
    statistics = statistics.taking_part
    total = statistics.means.new_zeros(statistics.number_present.shape)
    for block in statistics.blocks():
        pairs = _pairs(statistics, block)
        total = total + term(statistics, block, pairs).where(pairs, 0).sum((-2, -1))
    return total


def _mean_over_pairs(statistics: ClassMeans, term: Term) -> Tensor:
    """The same as a mean; NaN where there is no pair."""
    count = statistics.number_present
    return _sum_over_pairs(statistics, term) / (count * (count - 1))


def _normalised(statistics: ClassMeans, block: slice, pairs: Tensor, *, sums: bool = False) -> Tensor:
    """The term (V_c + V_c')/(2‖μ_c − μ_c'‖²), NaN where two means coincide; `sums` for V_c as a sum over samples."""
    variances = statistics.variances * statistics.counts if sums else statistics.variances
    distances = statistics.distances_from(block).where(pairs, 1)
    terms = (variances[..., block, None] + variances[..., None, :]) / (2 * distances)
    return terms.where(distances > 0, NAN)


def _mean_over_classes(values: Tensor, present: Tensor) -> Tensor:
    """Mean over the classes that take part; NaN where there is none."""
    return values.where(present, 0).sum(-1) / present.sum(-1)


def coincident_pair(statistics: ClassMeans) -> tuple[int, int] | None:
    """The first two classes that take part and whose means coincide."""
    numbers, statistics = statistics.kept, statistics.taking_part
    for block in statistics.blocks():
        same = _pairs(statistics, block) & (statistics.distances_from(block) == 0)
        if same.any():
            first = same.nonzero()[0].tolist()
            pair = first[-2] + (block.start or 0), first[-1]
            return pair if numbers is None else (int(numbers[pair[0]]), int(numbers[pair[1]]))
    return None


def classes(statistics: ClassMeans) -> Tensor:
    """How many classes take part: those with at least two samples."""
    return statistics.number_present


def cdnv(statistics: ClassMeans) -> Tensor:
    """Class-distance normalised variance: mean over pairs c ≠ c' of (V_c + V_c')/(2‖μ_c − μ_c'‖²)."""
    return _mean_over_pairs(statistics, _normalised)


def cdnv_by_class(statistics: ClassMeans) -> Tensor:
    """For each class the mean over the others of (V_c + V_c')/(2‖μ_c − μ_c'‖²), (..., K); `cdnv` is their mean."""
    part, rows = statistics.taking_part, []
    for block in part.blocks():
        pairs = _pairs(part, block)
        rows.append(_normalised(part, block, pairs).where(pairs, 0).sum(-1))
    values = torch.cat(rows, -1) / (statistics.number_present[..., None] - 1)
    if statistics.kept is None:
        return values
    return torch.zeros_like(statistics.variances).index_copy(-1, statistics.kept, values)


def cdnv_sum(statistics: ClassMeans) -> Tensor:
    """The same with sums: over ordered pairs, and with V_c a sum over the samples of its class."""
    total = _sum_over_pairs(statistics, partial(_normalised, sums=True))
    return total.where(statistics.number_present >= 2, NAN)


def within_variance(statistics: ClassMeans) -> Tensor:
    """Numerator of `cdnv` alone: mean over classes of V_c."""
    return _mean_over_classes(statistics.variances, statistics.present)


def between_distance(statistics: ClassMeans) -> Tensor:
    """Denominator of `cdnv` alone: mean over pairs c ≠ c' of ‖μ_c − μ_c'‖²."""
    return _mean_over_pairs(statistics, lambda part, block, _: part.distances_from(block))


def _around_their_mean(statistics: ClassMeans) -> tuple[Tensor, Tensor]:
    """Class means minus their mean (..., K, d), zero where a class does not take part; and that mean (..., d)."""
    kept = statistics.present[..., None]
    centre = statistics.means.where(kept, 0).sum(-2) / statistics.number_present[..., None]
    return (statistics.means - centre[..., None, :]).where(kept, 0), centre + statistics.offset.squeeze(-2)


def collapse_radius(statistics: ClassMeans) -> Tensor:
    """M of the theory of collapse: root mean square over classes of ‖μ_c − mean_c μ_c‖."""
    means, _ = _around_their_mean(statistics)
    radius = root(means.square().sum((-2, -1)) / statistics.number_present)
    return radius.where(statistics.number_present >= 2, NAN)


def collapse_scale(statistics: ClassMeans, weight: Tensor) -> Tensor:
    """λ of the theory of collapse: ⟨W, M⟩/‖M‖², the multiple of the centred class means that fits the head best."""
    means, _ = _around_their_mean(statistics)
    size = means.square().sum((-2, -1))
    return (weight * means).sum((-2, -1)) / size.where((size > 0) & (statistics.number_present >= 2), NAN)


def mean_offset(statistics: ClassMeans) -> Tensor:
    """‖mean_c μ_c‖: how far the centre of the class means lies from the origin."""
    _, centre = _around_their_mean(statistics)
    return torch.linalg.vector_norm(centre, dim=-1).where(statistics.number_present >= 2, NAN)


def nc1(statistics: ClassMeans, *, tolerance: float | None = None) -> Tensor:
    """Tr(Σ_W Σ_B⁺)/K, through the Gram matrix of the centred means, of size K or d, whichever is smaller.

    Args:
        statistics: class statistics.
        tolerance: eigenvalues of the Gram matrix up to `tolerance` times the largest count as zero; by default 1e-11,
            which is above what float32 features leave in a direction that they do not use (behind a layer norm there
            is one). With means that coincide the result depends on it: see `nc1_rank`.
    """
    gram, exists = statistics.gram
    inverse = pseudo_inverse(gram, statistics.gram_null, _cut(gram, tolerance)).to(statistics.means.dtype)
    classes, width = statistics.means.shape[-2:]
    total = statistics.within_through(inverse) if classes <= width else statistics.within_with(inverse)
    return total.where(exists, NAN)


def nc1_rank(statistics: ClassMeans, *, tolerance: float | None = None) -> Tensor:
    """How many directions `nc1` kept: the rank of Σ_B above its cut-off, K − 1 for means in general position."""
    gram, exists = statistics.gram
    rank = torch.linalg.matrix_rank(gram, rtol=_cut(gram, tolerance), hermitian=True)
    return rank.to(statistics.means.dtype).where(exists, NAN)


def _cut(gram: Tensor, tolerance: float | None) -> float:
    return tolerance if tolerance is not None else max(1e-11, gram.shape[-1] * torch.finfo(gram.dtype).eps)


def nc1_ratio(statistics: ClassMeans) -> Tensor:
    """Tr Σ_W / Tr Σ_B."""
    between = statistics.centred_means.square().sum((-2, -1)) / statistics.number_present
    return (statistics.within_trace() / between).where(between > 0, NAN)


def rnc1(statistics: ClassMeans, squared_norms: Tensor) -> Tensor:
    """Tr Σ_W / (mean_i ‖φ_i‖)²: within-class scatter on the scale of the features, without class separation."""
    return statistics.within_trace() / root(squared_norms).mean(-1).square()


def rnc1_max(statistics: ClassMeans, squared_norms: Tensor) -> Tensor:
    """Tr Σ_W / max_i ‖φ_i‖²."""
    return statistics.within_trace() / squared_norms.amax(-1)


def _spread_of_norms(rows: Tensor, present: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=-1)
    mean = _mean_over_classes(norms, present)
    variance = _mean_over_classes((norms - mean[..., None]).square(), present)
    return root(variance) / mean


def nc2_equinorm(statistics: ClassMeans) -> Tensor:
    """Standard deviation over mean of ‖μ_c − μ_G‖: 0 when all class means are equally far out."""
    return _spread_of_norms(statistics.centred_means, statistics.present)


def nc2_equinorm_weight(statistics: ClassMeans, weight: Tensor) -> Tensor:
    """Standard deviation over mean of ‖w_c‖."""
    return _spread_of_norms(weight, statistics.present)


def _directions(rows: Tensor, statistics: ClassMeans) -> tuple[ClassMeans, Tensor]:
    """The classes to be paired, and their rows at length one; NaN for a row of length zero."""
    part = statistics.taking_part
    rows = rows if part is statistics else rows[..., statistics.kept, :]
    norms = torch.linalg.vector_norm(rows, dim=-1).where(part.present, 1)
    return part, rows / norms[..., None]


def _equiangular(rows: Tensor, statistics: ClassMeans) -> Tensor:
    part, unit = _directions(rows, statistics)
    simplex = -1 / (statistics.number_present - 1)[..., None, None]
    return _mean_over_pairs(part, lambda _, block, pairs: (unit[..., block, :] @ unit.mT - simplex).abs())


def nc2_equiangular(statistics: ClassMeans) -> Tensor:
    """Mean over pairs of |cos∠(μ_c − μ_G, μ_c' − μ_G) + 1/(K−1)|: 0 at the angles of a simplex."""
    return _equiangular(statistics.centred_means, statistics)


def nc2_equiangular_weight(statistics: ClassMeans, weight: Tensor) -> Tensor:
    """Mean over pairs of |cos∠(w_c, w_c') + 1/(K−1)|."""
    return _equiangular(weight, statistics)


def class_angle(statistics: ClassMeans, *, share: float) -> Tensor:
    """A quantile of ∠(μ_c − μ_G, μ_c' − μ_G) over pairs, in degrees, rounded to 0.01.

    The simplex has arccos(−1/(K−1)) everywhere. Angles are counted by hundredths of a degree, block by block, so no
    table of all pairs is sorted or kept.

    Args:
        statistics: class statistics.
        share: the angle given is the smallest that at least this share of the pairs does not exceed; 0 for the very
            smallest.
    """
    part, unit = _directions(statistics.centred_means, statistics)
    counts = torch.zeros(*part.present.shape[:-1], 180 * _STEPS + 1, dtype=torch.int64, device=unit.device)
    for block in part.blocks():
        degrees = (unit[..., block, :] @ unit.mT).clamp(-1, 1).nan_to_num().arccos().rad2deg()
        places = (degrees * _STEPS).round().to(torch.int64)
        counts.scatter_add_(-1, places.flatten(-2), _pairs(part, block).flatten(-2).to(torch.int64))
    upto = counts.cumsum(-1)
    rank = (share * upto[..., -1:].to(unit.dtype)).clamp(min=1)
    angle = (upto < rank).sum(-1).to(unit.dtype) / _STEPS
    return angle.where((upto[..., -1] > 0) & ~unit.isnan().any(-1).any(-1), NAN)


def nc2_etf(statistics: ClassMeans) -> Tensor:
    """‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F, G the Gram matrix of the centred means: 0 at a simplex, at most 2."""
    statistics = statistics.taking_part
    means = statistics.centred_means / _size(statistics.centred_means)  # their fourth powers leave float32's range
    few = len(statistics.blocks()) == 1 and means.shape[-2] <= means.shape[-1]
    size = _size(means @ means.mT if few else means.mT @ means)  # both products have the same norm
    present = statistics.present.to(means.dtype)
    count = statistics.number_present[..., None, None]
    total = torch.zeros_like(statistics.number_present)
    for block in statistics.blocks():
        diagonal = _diagonal(statistics, block).to(means.dtype)
        simplex = present[..., block, None] * (diagonal - present[..., None, :] / count)
        apart = means[..., block, :] @ means.mT / size - simplex / (count - 1).sqrt()
        total = total + apart.square().sum((-2, -1))
    return root(total)


def nc3(statistics: ClassMeans, weight: Tensor) -> Tensor:
    """‖Wᵀ/‖W‖_F − M/‖M‖_F‖_F², M the centred means: 0 when head and means are dual, 2 when orthogonal, at most 4."""
    means = statistics.centred_means
    rows = weight.where(statistics.present[..., None], 0)
    apart = means / _size(means) - rows / _size(rows)
    return apart.square().sum((-2, -1))


def _size(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)[..., None, None]


def nc4(statistics: ClassMeans, prediction: Tensor) -> Tensor:
    """Share of samples where the head's decision, bias included, is not the class of the nearest mean."""
    exists = (statistics.number_present >= 1) & ~statistics.within_trace().isnan()  # nothing is nearer than NaN
    return statistics.share_nearer(prediction).where(exists, NAN)


def ildr(statistics: ClassMeans) -> Tensor:
    """Mean distance between class means over mean distance of samples to their class mean; meant for held-out data."""
    between = _mean_over_pairs(statistics, lambda part, block, pairs: part.distances_from(block).where(pairs, 1).sqrt())
    return between / statistics.mean_deviation()
