"""What else features, logits and weights tell: rank, kernels, frequencies, and softmax that no longer learns.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from grokscape.measures.softmax import Softmax
from grokscape.measures.statistics import ClassMeans
from grokscape.numerics import finite_or_identity, widen, widest

NAN = float("nan")


def spectrum(features: Tensor) -> Tensor:
    """Singular values of the centred features, largest last: (..., N, d) → (..., min(N, d)); NaN where not finite."""
    wide = widest(features)
    centred = wide - wide.mean(-2, keepdim=True)
    gram = centred @ centred.mT if wide.shape[-2] < wide.shape[-1] else centred.mT @ centred
    return roots_of_eigenvalues(gram).to(features.dtype)


def roots_of_eigenvalues(gram: Tensor) -> Tensor:
    """Square roots of the eigenvalues of Gram matrices (..., n, n), largest last; NaN where not finite."""
    safe, exists = finite_or_identity(gram)
    return torch.linalg.eigvalsh(safe).clamp(min=0).sqrt().where(exists[..., None], NAN)


def _entropy(weights: Tensor) -> Tensor:
    """Entropy of weights that are normalised to 1 over the last axis, in nats; NaN where they are all zero."""
    shares = weights / weights.sum(-1, keepdim=True)
    return -torch.special.xlogy(shares, shares).sum(-1)


def spectral_entropy(spectrum: Tensor) -> Tensor:
    """Entropy of the shares of variance along the principal directions of the features, in nats."""
    return _entropy(spectrum.square())


def effective_rank(spectrum: Tensor) -> Tensor:
    """exp of the entropy of the singular values' shares: how many directions the features use."""
    return _entropy(spectrum).exp()


def kernel_alignment(statistics: ClassMeans) -> Tensor:
    """Centred kernel alignment (linear CKA) of the features with one-hot labels, over the classes that take part."""
    counts = statistics.kept_counts
    shares = statistics.weights
    between = (counts[..., None] * statistics.centred_means).square().sum((-2, -1))
    total = counts.sum(-1)
    weighted = statistics.centred_means * counts.sqrt()[..., None]
    scatter = statistics.within_scatter() + weighted.mT @ weighted
    size = scatter.diagonal(dim1=-2, dim2=-1).sum(-1)
    feature_norm = torch.linalg.matrix_norm(scatter / size[..., None, None])  # its squares would leave float32's range
    label_norm = total * (shares.square().sum(-1) - 2 * shares.pow(3).sum(-1) + shares.square().sum(-1).square()).sqrt()
    return between / size / (feature_norm * label_norm)


def softmax_collapse(saturated: Tensor, weight: Tensor) -> Tensor:
    """Share of samples whose Σ_c exp(z_c − max z) rounds to 1: what else is computed from p takes them for one-hot."""
    return saturated.to(weight.dtype).mean(-1)


def fourier_concentration(weight: Tensor) -> Tensor:
    """Σ_k (‖û_k‖/‖û‖)⁴ with û the Fourier transform of the head's rows over the classes, as residues of a cyclic group.

    1/(number of frequencies) when all are used alike, 1/2 for one real frequency, at most 1. The mean over the
    classes, which softmax does not see, is left out.
    """
    wave = torch.fft.fft(weight - weight.mean(-2, keepdim=True), dim=-2)
    power = wave.abs().square().sum(-1)
    return (power / power.sum(-1, keepdim=True)).square().sum(-1)


def head_sharpness(features: Tensor, logits: Tensor, labels: Tensor, *, radius: float = 0.05) -> Tensor:
    """SAM sharpness of the head: how much the loss rises one step of length `radius` up the gradient in its weight."""
    gradient = _loss_slope(logits, labels).mT @ features / features.shape[-2]
    size = torch.linalg.matrix_norm(gradient)[..., None, None]
    shifted = logits + radius * features @ (gradient / size).mT
    rise = Softmax.of(shifted).cross_entropy(labels) - Softmax.of(logits).cross_entropy(labels)
    return rise.mean(-1)


def _loss_slope(logits: Tensor, labels: Tensor) -> Tensor:
    """p − onehot(y), without cancellation at y: (..., N, K)."""
    probabilities = torch.softmax(logits, -1)
    hot = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    others = probabilities.where(~hot, 0).sum(-1, keepdim=True)
    return torch.where(hot, -others, probabilities)


def distance_from(parameters: Mapping[str, Tensor], initial: Mapping[str, Tensor], replica_axes: int = 0) -> Tensor:
    """‖θ − θ₀‖ over all parameters.

    Args:
        parameters: name → (..., *shape).
        initial: the same at initialisation.
        replica_axes: how many leading axes are replicas.

    Raises:
        KeyError: the names differ.
    """
    if parameters.keys() != initial.keys():
        raise KeyError(f"parameters differ: {sorted(parameters.keys() ^ initial.keys())} are in one only")
    norms = layer_norms({name: value - initial[name] for name, value in parameters.items()}, replica_axes)
    return torch.stack(list(norms.values()), -1).square().sum(-1).sqrt()


def layer_norms(parameters: Mapping[str, Tensor], replica_axes: int = 0) -> dict[str, Tensor]:
    """Frobenius norm of every parameter by name: (..., *shape) → (...), in float32 for half precision."""
    return {
        name: torch.linalg.vector_norm(widen(value).reshape(*value.shape[:replica_axes], -1), dim=-1)
        for name, value in parameters.items()
    }
