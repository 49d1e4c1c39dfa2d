"""What neural collapse implies for relative flatness, exactly, and how far a head is from what the theory assumes.

Assume exact collapse: every feature is its class mean, μ_c = μ_G + m_c, the m_c are a centred simplex of radius M
(⟨m_c, m_c'⟩ = −M²/(K−1)), the head's rows are w_c = λ m_c, and the bias makes decisions those of the nearest mean
(b_c = −λ⟨m_c, μ_G⟩ + constant). Then p is the same for all samples up to order, and with

    ε = exp(−λM²K/(K−1)),   q = (1 − ε)/(1 + (K−1)ε):

    κ = mean_c ‖μ_c‖² · λ²M² (1 − q²),

exactly. The paper's Proposition 5.3 bounds it by λ²K³M⁴ε/(1 + (K−1)ε)². Collapse fixes the geometry, not λ: flatness
comes from λ growing under cross-entropy.

Shapes: `...` any leading axes, N samples, d features, K classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grokscape.measures import checks, collapse
from grokscape.measures.functional import class_statistics, relative_flatness
from grokscape.measures.statistics import ClassStatistics
from grokscape.numerics import full_precision, holds, widen


def collapse_flatness(
    scale: Tensor, radius: Tensor, num_classes: int, mean_square_norm: Tensor | None = None
) -> Tensor:
    """Relative flatness under exact collapse, mean_c ‖μ_c‖² λ²M² (1 − q²).

    Args:
        scale: λ, rows over centred means.
        radius: M, norm of the centred means.
        num_classes: K ≥ 2.
        mean_square_norm: mean_c ‖μ_c‖² including the global mean; M² by default, which is a global mean of 0.

    Returns:
        κ of the broadcast shape; keeps its digits where ε is tiny.

    Raises:
        ValueError: fewer than two classes.
    """
    epsilon = _epsilon(scale, radius, num_classes)
    short = num_classes * epsilon / (1 + (num_classes - 1) * epsilon)
    norms = radius.square() if mean_square_norm is None else mean_square_norm
    return norms * scale.square() * radius.square() * short * (2 - short)


def collapse_flatness_bound(scale: Tensor, radius: Tensor, num_classes: int) -> Tensor:
    """The paper's bound under exact collapse, λ²K³M⁴ε/(1 + (K−1)ε)².

    Source: Han et al., NeurIPS 2025, Proposition 5.3.
    """
    epsilon = _epsilon(scale, radius, num_classes)
    size = scale.square() * num_classes**3 * radius.square().square()
    return size * epsilon / (1 + (num_classes - 1) * epsilon).square()


def _epsilon(scale: Tensor, radius: Tensor, num_classes: int) -> Tensor:
    if num_classes < 2:
        raise ValueError(f"there must be at least two classes, got {num_classes}")
    return torch.exp(-scale * radius.square() * (num_classes / (num_classes - 1)))


@dataclass(frozen=True)
class CollapseTheory:
    """The theory at the λ and M that fit a head best, beside what is measured.

    Attributes:
        scale: λ = ⟨W, M⟩/‖M‖², the best multiple of the centred means for the head's rows, (...).
        radius: M, root mean square norm of the centred means, (...).
        predicted: κ that exact collapse would have at these, (...).
        bound: the paper's bound at these, (...).
        measured: exact κ of the head, (...).
        assumptions: distance from each assumption, 0 where it holds: "collapsed" Tr Σ_W/Tr Σ_B; "simplex" as `nc2_etf`;
            "dual" ‖W̃ − λM‖/‖W̃‖, W̃ the rows minus their mean, which softmax does not see; "nearest_mean" the spread of
            b_c + ⟨w_c, μ_G⟩ over the logit gap λM²K/(K−1).
    """

    scale: Tensor
    radius: Tensor
    predicted: Tensor
    bound: Tensor
    measured: Tensor
    assumptions: dict[str, Tensor]


@full_precision()
def collapse_theory(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None = None
) -> CollapseTheory:
    """How a head compares with the theory of exact collapse.

    Args:
        features: (..., N, d).
        labels: class indices (..., N).
        weight: (..., K, d).
        bias: (..., K).

    Raises:
        TypeError, ValueError: input that does not fit, or a class with fewer than two samples.
    """
    checks.check_head(features, weight, None, bias)
    features, weight = widen(features), widen(weight)
    num_classes = weight.shape[-2]
    statistics = class_statistics(features, labels, num_classes=num_classes, weighting="class")
    if holds(~statistics.present.all()):
        raise ValueError("the theory needs at least two samples of every class")
    rows = weight - weight.mean(-2, keepdim=True)
    scale, radius = collapse.collapse_scale(statistics, rows), collapse.collapse_radius(statistics)
    norms = (statistics.means + statistics.offset).square().sum(-1).mean(-1)
    return CollapseTheory(
        scale,
        radius,
        collapse_flatness(scale, radius, num_classes, norms),
        collapse_flatness_bound(scale, radius, num_classes),
        relative_flatness(features, weight, bias=bias),
        _assumptions(statistics, rows, bias, scale, radius),
    )


def _assumptions(
    statistics: ClassStatistics, rows: Tensor, bias: Tensor | None, scale: Tensor, radius: Tensor
) -> dict[str, Tensor]:
    means, num_classes = statistics.centred_means, rows.shape[-2]
    centre = (statistics.means + statistics.offset).mean(-2)
    levels = (rows @ centre[..., None]).squeeze(-1) + (0 if bias is None else widen(bias))
    gap = scale.abs() * radius.square() * num_classes / (num_classes - 1)
    apart = torch.linalg.matrix_norm(rows - scale[..., None, None] * means)
    return {
        "collapsed": collapse.nc1_ratio(statistics),
        "simplex": collapse.nc2_etf(statistics),
        "dual": apart / torch.linalg.matrix_norm(rows),
        "nearest_mean": levels.std(-1, correction=0) / gap,
    }
