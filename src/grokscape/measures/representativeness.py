"""Representativeness and feature robustness: the generalisation gap, taken apart at the features.

With ξ noise around each training feature,

    E_test ℓ − E_train ℓ = [E_test ℓ − E_{i,ξ} ℓ(W(φ_i + ξ) + b, y_i)] + [E_{i,ξ} ℓ(W(φ_i + ξ) + b, y_i) − E_train ℓ]
                         =  representativeness                        +  feature robustness,

an identity for every noise. Two kernels: "sphere", ξ uniform on the sphere of radius δ‖φ_i‖, and "gaussian",
ξ ∼ N(0, δ²‖φ_i‖² I), the estimator of the paper's Appendix D with bandwidth 1 and sample weight δ = 0.02. To second
order feature robustness is δ²/(2d) · κ for the sphere and δ²/2 · κ for the Gaussian, κ the relative flatness of the
head.

The published estimator differs: it hands the bandwidths of the samples to a density estimate as their weights, which
the library then normalises away, and takes the root of the distance once more. Here every sample has the bandwidth
δ‖φ_i‖.

Noise comes in pairs ±ξ, so that the first-order term cancels exactly and, the loss being convex in the logits, feature
robustness under cross-entropy is never negative. All of it is in float64: the difference is far below the loss.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from grokscape.measures import checks
from grokscape.measures.softmax import Softmax
from grokscape.numerics import Estimate, full_precision, in_float64

_PRODUCT = 64
"""Samples that share a product with the weight, at least: with few, reading the weight is what takes the time."""
_BLOCK = 2**17
"""Logits passed over at once: what a processor's cache holds, since every sample takes a dozen passes over them."""
Kernel = Literal["sphere", "gaussian"]
RADIUS = 0.02
"""δ of the paper's Appendix D."""


def smoothing_excess(
    features: Tensor,
    weight: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    radius: float = RADIUS,
    kernel: Kernel = "gaussian",
    probes: int = 4,
    generator: torch.Generator | None = None,
) -> Tensor:
    """ℓ(z_i + Wξ)/2 + ℓ(z_i − Wξ)/2 − ℓ(z_i) with the cross-entropy ℓ, for each of the probes.

    All replicas see the same noise directions.

    Args:
        features: (..., N, d).
        weight: (..., K, d).
        logits: (..., N, K).
        labels: int64 (..., N).
        radius: δ.
        kernel: "sphere" or "gaussian".
        probes: independent draws for every sample.
        generator: of the noise; by default one with seed 0.

    Returns:
        (probes, ..., N), float64.
    """
    if kernel not in ("sphere", "gaussian"):
        raise ValueError(f"kernel must be 'sphere' or 'gaussian', got {kernel!r}")
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)
    features, weight, logits = in_float64(features), in_float64(weight), in_float64(logits)
    labels = labels.to(logits.device, torch.int64)
    sizes = radius * torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    before = _cross_entropies(logits, labels)
    size = max(_PRODUCT, _at_once(logits))
    pieces = list(zip(logits.split(size, -2), labels.split(size, -1), sizes.split(size, -2), strict=True))
    values = []
    for _ in range(probes):
        noise = torch.randn(features.shape[-2:], generator=generator, dtype=torch.float64, device=generator.device)
        if kernel == "sphere":
            noise = noise / torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
        shifted = []
        for (piece, own, scale), draw in zip(pieces, noise.to(logits.device).split(size), strict=True):
            shift = (scale * draw) @ weight.mT
            shifted.append(torch.stack([_cross_entropies(piece, own, shift, sign) for sign in (1, -1)]))
        values.append(((torch.cat(shifted, -1) - before) / 2).sum(0).clamp(min=0))
    return torch.stack(values)


def _cross_entropies(logits: Tensor, labels: Tensor, shift: Tensor | None = None, sign: int = 1) -> Tensor:
    """Cross-entropy of every sample, (..., N), with the logits moved by plus or minus a shift."""
    pieces = logits.split(_at_once(logits), -2)
    if shift is not None:
        shifts = shift.split(_at_once(logits), -2)
        pieces = (torch.add(piece, by, alpha=sign) for piece, by in zip(pieces, shifts, strict=True))
    owned = zip(pieces, labels.split(_at_once(logits), -1), strict=True)
    return torch.cat([Softmax.of(piece).cross_entropy(own) for piece, own in owned], -1)


def _at_once(logits: Tensor) -> int:
    """How many samples are passed over at once."""
    return max(1, _BLOCK * logits.shape[-2] // max(1, logits.numel()))


@full_precision()
def feature_robustness(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    radius: float = RADIUS,
    kernel: Kernel = "sphere",
    probes: int = 32,
    generator: torch.Generator | None = None,
) -> Estimate:
    """How much noise in the features raises the cross-entropy: E_{i,ξ} ℓ(W(φ_i + ξ) + b, y_i) − E_i ℓ.

    Args:
        features: (N, d).
        labels: class indices (N).
        weight: the head's weight (K, d).
        bias: the head's bias (K).
        radius: δ; noise has the size δ‖φ_i‖ ("sphere"), or that standard deviation in every coordinate ("gaussian").
        kernel: "sphere" or "gaussian".
        probes: draws for every sample.
        generator: of the noise; by default one with seed 0.

    Raises:
        TypeError, ValueError: input that does not fit, a radius that is not positive, probes below 1.

    Source: Petzka et al., NeurIPS 2021, Section 4.
    """
    _check(features, labels, weight, bias, radius)
    logits = in_float64(features) @ in_float64(weight).mT + (0 if bias is None else in_float64(bias))
    excess = smoothing_excess(
        features, weight, logits, labels, radius=radius, kernel=kernel, probes=probes, generator=generator
    )
    return Estimate.of(excess.mean(-1))


@dataclass(frozen=True)
class GapDecomposition:
    """The generalisation gap in two parts.

    Attributes:
        gap: E_test ℓ − E_train ℓ; the sum of the parts.
        representativeness: how much worse test samples are than noisy training samples; near 0 when training features,
            widened by the noise, stand for the distribution.
        robustness: how much worse noisy training samples are than training samples; ∝ relative flatness.
    """

    gap: float
    representativeness: Estimate
    robustness: Estimate


@full_precision()
def decompose_gap(
    features: Tensor,
    labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    radius: float = RADIUS,
    kernel: Kernel = "gaussian",
    probes: int = 32,
    generator: torch.Generator | None = None,
) -> GapDecomposition:
    """The gap E_test ℓ − E_train ℓ as representativeness plus feature robustness.

    Args:
        features: training features (N, d).
        labels: class indices (N).
        test_features: (M, d).
        test_labels: class indices (M).
        weight: the head's weight (K, d).
        bias: the head's bias (K).
        radius, kernel, probes, generator: as in `feature_robustness`.

    Raises:
        TypeError, ValueError: input that does not fit, a radius that is not positive, probes below 1.

    Source: Petzka et al., NeurIPS 2021, Section 3; Han et al., NeurIPS 2025, Appendix D.
    """
    _check(test_features, test_labels, weight, bias, radius)
    robustness = feature_robustness(
        features, labels, weight, bias, radius=radius, kernel=kernel, probes=probes, generator=generator
    )
    wide, offset = in_float64(weight), 0 if bias is None else in_float64(bias)
    losses = [
        float(Softmax.of(in_float64(some) @ wide.mT + offset).cross_entropy(their.to(wide.device, torch.int64)).mean())
        for some, their in ((test_features, test_labels), (features, labels))
    ]
    gap = losses[0] - losses[1]
    rest = Estimate(gap - robustness.value, robustness.stderr, robustness.probes)
    return GapDecomposition(gap, rest, robustness)


def _check(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, radius: float) -> None:
    checks.check_head(features, weight, None, bias)
    checks.check_labels(labels, features, weight.shape[-2])
    if not radius > 0:
        raise ValueError(f"radius must be positive, got {radius}")


def robustness_column(smoothing_excesses: Tensor) -> Tensor:
    """Feature robustness of a snapshot with the paper's kernel, (...)."""
    return smoothing_excesses.mean(-1)


def representativeness_column(cross_entropies: Tensor, smoothed_loss: Tensor) -> Tensor:
    """E ℓ of the samples minus the smoothed loss of the samples they are measured around, (...)."""
    return cross_entropies.mean(-1) - smoothed_loss
