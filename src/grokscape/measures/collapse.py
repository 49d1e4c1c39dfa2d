"""Neural collapse: how far within-class scatter has shrunk, and how close class means are to a simplex.

Every function takes `ClassStatistics`, so that all of them share one pass over the features, and gives a tensor of
shape (...), NaN where the measure does not exist (fewer than two classes with two samples, means that coincide).

Σ_W = (1/N) Σ_i (φ_i − μ_{y_i})(·)ᵀ and Σ_B = (1/K) Σ_c (μ_c − μ_G)(·)ᵀ; V_c is the mean squared distance of the samples
of class c to μ_c; K counts the classes that take part.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

import torch
from torch import Tensor

from grokscape.measures.statistics import ClassStatistics

NAN = float("nan")


def _pairs(statistics: ClassStatistics) -> Tensor:
    """Pairs of different classes that both take part, (..., K, K)."""
    present = statistics.present
    both = present[..., :, None] & present[..., None, :]
    return both & ~torch.eye(present.shape[-1], dtype=torch.bool, device=present.device)


def _mean_over(values: Tensor, mask: Tensor, dims: int) -> Tensor:
    """Mean of the values under a mask over the last `dims` axes; NaN where the mask is empty."""
    axes = tuple(range(-dims, 0))
    return values.where(mask, 0).sum(axes) / mask.sum(axes)


def _terms(statistics: ClassStatistics) -> tuple[Tensor, Tensor]:
    """(V_c + V_c')/(2‖μ_c − μ_c'‖²) for every ordered pair, and which pairs count."""
    pairs = _pairs(statistics)
    distances = statistics.mean_distances.where(pairs, 1)
    variances = statistics.variances
    terms = (variances[..., :, None] + variances[..., None, :]) / (2 * distances)
    return terms.where(distances > 0, NAN), pairs


def coincident_pairs(statistics: ClassStatistics) -> Tensor:
    """Pairs of different classes that take part and whose means coincide, bool (..., K, K)."""
    return _pairs(statistics) & (statistics.mean_distances == 0)


def classes(statistics: ClassStatistics) -> Tensor:
    """How many classes take part: those with at least two samples."""
    return statistics.number_present


def cdnv(statistics: ClassStatistics) -> Tensor:
    """Class-distance normalised variance: mean over pairs c ≠ c' of (V_c + V_c')/(2‖μ_c − μ_c'‖²)."""
    terms, pairs = _terms(statistics)
    return _mean_over(terms, pairs, 2)


def cdnv_sum(statistics: ClassStatistics) -> Tensor:
    """The same with sums: over ordered pairs, and with V_c a sum over the samples of its class."""
    pairs = _pairs(statistics)
    distances = statistics.mean_distances.where(pairs, 1)
    totals = statistics.variances * statistics.counts
    terms = ((totals[..., :, None] + totals[..., None, :]) / (2 * distances)).where(distances > 0, NAN)
    return terms.where(pairs, 0).sum((-2, -1)).where(statistics.number_present >= 2, NAN)


def within_variance(statistics: ClassStatistics) -> Tensor:
    """Numerator of `cdnv` alone: mean over classes of V_c."""
    return _mean_over(statistics.variances, statistics.present, 1)


def between_distance(statistics: ClassStatistics) -> Tensor:
    """Denominator of `cdnv` alone: mean over pairs c ≠ c' of ‖μ_c − μ_c'‖²."""
    return _mean_over(statistics.mean_distances, _pairs(statistics), 2)


def nc1(statistics: ClassStatistics, *, tolerance: float | None = None) -> Tensor:
    """Tr(Σ_W Σ_B⁺)/K, through the K×K Gram matrix of the centred means.

    Args:
        statistics: class statistics.
        tolerance: eigenvalues of the Gram matrix up to `tolerance` times the largest count as zero; by default
            K times the rounding error of the dtype.
    """
    gram, finite = _gram(statistics)
    inverse = torch.linalg.pinv(gram, rtol=_cut(statistics, tolerance), hermitian=True)
    total = statistics.within_through(inverse.to(statistics.means.dtype))
    return total.where(finite & (statistics.centred_means.square().sum((-2, -1)) > 0), NAN)


def nc1_rank(statistics: ClassStatistics, *, tolerance: float | None = None) -> Tensor:
    """How many directions `nc1` kept: the rank of Σ_B above its cut-off, K − 1 for means in general position."""
    gram, finite = _gram(statistics)
    rank = torch.linalg.matrix_rank(gram, rtol=_cut(statistics, tolerance), hermitian=True)
    return rank.to(statistics.means.dtype).where(finite, NAN)


def _cut(statistics: ClassStatistics, tolerance: float | None) -> float:
    means = statistics.means
    return tolerance if tolerance is not None else means.shape[-2] * torch.finfo(means.dtype).eps


def _gram(statistics: ClassStatistics) -> tuple[Tensor, Tensor]:
    """Gram matrix of the centred means in float64, and where it is finite; elsewhere 1, so a bad one stops nobody."""
    means = statistics.centred_means.to(torch.float64)
    gram = means @ means.mT
    finite = gram.isfinite().all(-1).all(-1)
    return gram.where(finite[..., None, None], 1.0), finite


def nc1_ratio(statistics: ClassStatistics) -> Tensor:
    """Tr Σ_W / Tr Σ_B."""
    between = statistics.centred_means.square().sum((-2, -1)) / statistics.number_present
    return (statistics.within_trace() / between).where(between > 0, NAN)


def rnc1(statistics: ClassStatistics, squared_norms: Tensor) -> Tensor:
    """Tr Σ_W / (mean_i ‖φ_i‖)²: within-class scatter on the scale of the features, without class separation."""
    return statistics.within_trace() / squared_norms.sqrt().mean(-1).square()


def rnc1_max(statistics: ClassStatistics, squared_norms: Tensor) -> Tensor:
    """Tr Σ_W / max_i ‖φ_i‖²."""
    return statistics.within_trace() / squared_norms.amax(-1)


def _spread_of_norms(rows: Tensor, present: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=-1)
    mean = _mean_over(norms, present, 1)
    variance = _mean_over((norms - mean[..., None]).square(), present, 1)
    return variance.sqrt() / mean


def nc2_equinorm(statistics: ClassStatistics) -> Tensor:
    """Standard deviation over mean of ‖μ_c − μ_G‖: 0 when all class means are equally far out."""
    return _spread_of_norms(statistics.centred_means, statistics.present)


def nc2_equinorm_weight(statistics: ClassStatistics, weight: Tensor) -> Tensor:
    """Standard deviation over mean of ‖w_c‖."""
    return _spread_of_norms(weight, statistics.present)


def _equiangular(rows: Tensor, statistics: ClassStatistics) -> Tensor:
    norms = torch.linalg.vector_norm(rows, dim=-1).where(statistics.present, 1)
    unit = rows / norms[..., None]
    simplex = -1 / (statistics.number_present - 1)
    return _mean_over((unit @ unit.mT - simplex[..., None, None]).abs(), _pairs(statistics), 2)


def nc2_equiangular(statistics: ClassStatistics) -> Tensor:
    """Mean over pairs of |cos∠(μ_c − μ_G, μ_c' − μ_G) + 1/(K−1)|: 0 at the angles of a simplex."""
    return _equiangular(statistics.centred_means, statistics)


def nc2_equiangular_weight(statistics: ClassStatistics, weight: Tensor) -> Tensor:
    """Mean over pairs of |cos∠(w_c, w_c') + 1/(K−1)|."""
    return _equiangular(weight, statistics)


def nc2_etf(statistics: ClassStatistics) -> Tensor:
    """‖G/‖G‖_F − (I − 11ᵀ/K)/√(K−1)‖_F, G the Gram matrix of the centred means: 0 at a simplex, at most 2."""
    means = statistics.centred_means
    gram = means @ means.mT
    present = statistics.present.to(gram.dtype)
    count = statistics.number_present[..., None, None]
    simplex = torch.diag_embed(present) - present[..., :, None] * present[..., None, :] / count
    return torch.linalg.matrix_norm(gram / _size(gram) - simplex / (count - 1).sqrt())


def nc3(statistics: ClassStatistics, weight: Tensor) -> Tensor:
    """‖Wᵀ/‖W‖_F − M/‖M‖_F‖_F², M the centred means: 0 when head and means are dual, 2 when orthogonal, at most 4."""
    means = statistics.centred_means
    rows = weight.where(statistics.present[..., None], 0)
    apart = means / _size(means) - rows / _size(rows)
    return apart.square().sum((-2, -1))


def _size(matrix: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrix)[..., None, None]


def nc4(statistics: ClassStatistics, prediction: Tensor) -> Tensor:
    """Share of samples where the head's decision, bias included, is not the class of the nearest mean."""
    wrong = statistics.nearer_mean(prediction).to(statistics.means.dtype).mean(-1)
    return wrong.where(statistics.number_present >= 1, NAN)


def ildr(statistics: ClassStatistics) -> Tensor:
    """Mean distance between class means over mean distance of samples to their class mean; meant for held-out data."""
    between = _mean_over(statistics.mean_distances.sqrt(), _pairs(statistics), 2)
    return between / statistics.mean_deviation()
