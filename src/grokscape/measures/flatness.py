"""Relative flatness of a linear head, in closed form, and the surrogate that bounds it.

κ = Σ_{s,s'} ⟨w_s, w_s'⟩ Tr(H_{s,s'}), H_{s,s'} the block of the Hessian of the mean loss for rows s and s' of the
head's weight. Because the head is linear, with G_i = ∂²ℓ_i/∂z∂zᵀ,

    κ = mean_i ‖φ_i‖² Tr(Wᵀ G_i W),

and under cross-entropy G = diag(p) − ppᵀ, so that Tr(Wᵀ G W) is the variance of the rows of W under p:

    Σ_c p_c ‖w_c‖² − ‖Σ_c p_c w_c‖² = ½ Σ_{c,c'} p_c p_c' ‖w_c − w_c'‖².

The right-hand form has no negative terms; it is what is computed, with the likeliest class split off.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

from typing import Any

import torch
from torch import Tensor

from grokscape.measures.softmax import Softmax
from grokscape.numerics import differentiated, has_float64, log, select_rows, squared_distances, transforming

_AT_ONCE = 2**22
"""Probabilities that are held in float64 at once."""


def row_distances(weight: Tensor) -> Tensor | None:
    """‖w_c − w_c'‖² for every pair, (..., K, K); None where there are too many classes for a table of all pairs."""
    classes, width = weight.shape[-2:]
    return None if classes > max(width, 128) else squared_distances(weight)


def row_variance(softmax: Softmax, weight: Tensor, distances: Tensor | None = None) -> Tensor:
    """Variance of the rows of the head's weight under each sample's probabilities, tr Cov_{c∼p_i}(w_c).

    Args:
        softmax: split softmax of the logits (..., N, K).
        weight: (..., K, d).
        distances: `row_distances` of the weight, where they are known already.

    Returns:
        (..., N).
    """
    distances = row_distances(weight) if distances is None else distances
    if distances is None:
        return _row_variance_of_many(softmax, weight)
    parts = softmax.rest, softmax.rest_mass, softmax.top
    if transforming() or weight.shape[:-2] != softmax.logits.shape[:-2]:
        return _row_variance_of_few(*parts, distances)
    return _RowVariance.apply(softmax.logits, weight, *(part.detach() for part in (*parts, distances)))


def log_row_variance(softmax: Softmax, weight: Tensor, distances: Tensor | None = None) -> Tensor:
    """Logarithm of `row_variance`, which does not underflow where a prediction is certain; shape (..., N).

    With o_c = p_c/p_r the odds against the likeliest class r, e^m the largest of them and q_c = o_c e^−m,

        log v = m − 2 log(1 + Σ_{c≠r} o_c) + log(Σ_{c≠r} q_c ‖w_c − w_r‖² + ½ e^m Σ_{c,c'≠r} q_c q_c' ‖w_c − w_c'‖²).
    """
    distances = row_distances(weight) if distances is None else distances
    others = torch.zeros_like(softmax.gaps).scatter(-1, softmax.top[..., None], -torch.inf) + softmax.gaps
    peak = others.detach().amax(-1, keepdim=True)
    odds, peak = (others - peak).exp(), peak.squeeze(-1)
    if distances is None:
        to_top, among = _distances_of_many(odds, softmax.top, weight)
    else:
        to_top, among = _distances_of_few(odds, softmax.top, distances)
    return peak - 2 * softmax.log_normaliser + log(to_top + peak.exp() * among)


def _distances_of_few(rest: Tensor, top: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_c a_c ‖w_c − w_r‖² and ½ Σ_{c,c'} a_c a_c' ‖w_c − w_c'‖² for any a (..., N, K) that is 0 at r, the top."""
    spread = rest @ distances
    return spread.gather(-1, top[..., None]).squeeze(-1), (rest * spread).sum(-1) / 2


def _row_variance_of_few(rest: Tensor, rest_mass: Tensor, top: Tensor, distances: Tensor) -> Tensor:
    """½ Σ_{c,c'} p_c p_c' ‖w_c − w_c'‖² of every sample, from a split softmax and `row_distances`."""
    to_top, among = _distances_of_few(rest, top, distances)
    return (1 - rest_mass) * to_top + among


def _row_variance_from_logits(logits: Tensor, weight: Tensor) -> Tensor:
    """The same from the start: logits (..., N, K) and weight (..., K, d)."""
    softmax = Softmax.of(logits)
    return _row_variance_of_few(softmax.rest, softmax.rest_mass, softmax.top, squared_distances(weight))


class _RowVariance(torch.autograd.Function):
    """`_row_variance_of_few` as a function of logits (..., N, K) and weight (..., K, d), with its slopes.

    ∂v/∂z_c = p_c (Σ_c' p_c' ‖w_c − w_c'‖² − 2v) and ∂v/∂w_c = 2 Σ_c' p_c p_c' (w_c − w_c'), as differences, so that
    nothing cancels where p is nearly one-hot.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: Tensor, *parts: Tensor) -> Tensor:
        """v of every sample, (..., N); `parts` are what the other function takes."""
        variance = _row_variance_of_few(*parts)
        ctx.save_for_backward(logits, weight, variance, *parts)
        return variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand where one derivative is asked for, else by differentiating the other function."""
        (logits, weight, variance, rest, mass, top, distances), grad = ctx.saved_tensors, grads[0]
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[:2]
            return *differentiated(_row_variance_from_logits, (logits, weight), needed, grad), *[None] * 4
        probabilities = rest.scatter(-1, top[..., None], (1 - mass)[..., None])
        weighted = probabilities * grad[..., None]
        slope = (probabilities @ distances).sub_(2 * variance[..., None]) * weighted
        pairs = weighted.mT @ probabilities
        pairs.diagonal(dim1=-2, dim2=-1).zero_()
        centred = weight - weight.mean(-2, keepdim=True)
        return slope, 2 * (pairs.sum(-1, keepdim=True) * centred - pairs @ centred), *[None] * 4


def _row_variance_of_many(softmax: Softmax, weight: Tensor) -> Tensor:
    """½ Σ_{c,c'} p_c p_c' ‖w_c − w_c'‖² of every sample, without K × K numbers."""
    to_top, among = _distances_of_many(softmax.rest, softmax.top, weight)
    return (1 - softmax.rest_mass) * to_top + among


def _distances_of_many(rest: Tensor, top: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """As `_distances_of_few`, without K × K numbers: rows are taken relative to that of the likeliest class.

    This cancels where the likeliest rows are close to each other and far from the rest, so all of it is done in
    float64; only for a gradient, where that would cost a training step too much, in the rows' own dtype.
    """
    classes, width = weight.shape[-2:]
    lead = top.shape[:-1]
    trains = torch.is_grad_enabled() and (weight.requires_grad or rest.requires_grad)
    wide = weight.dtype if trains or not has_float64(weight.device) else torch.float64
    centred = weight.to(wide)
    centred = centred - centred.detach().mean(-2, keepdim=True)
    norms = centred.square().sum(-1)
    pieces = rest.split(max(1, _AT_ONCE // classes), -2) if wide != weight.dtype else (rest,)
    table = torch.cat([centred, norms[..., None], torch.ones_like(norms)[..., None]], -1)
    sums = torch.cat([piece.to(wide) @ table for piece in pieces], -2)
    mean_row, mean_norm, mass = sums[..., :width], sums[..., -2], sums[..., -1]
    top_row = select_rows(centred.expand(*lead, classes, width), top)
    top_norm = norms.expand(*lead, classes).gather(-1, top)
    to_top = mean_norm + mass * top_norm - 2 * (top_row * mean_row).sum(-1)
    among = mass * mean_norm - mean_row.square().sum(-1)
    return to_top.to(weight.dtype), among.to(weight.dtype)


def relative_flatness_from(squared_norms: Tensor, row_variance: Tensor) -> Tensor:
    """Exact κ under cross-entropy from shared quantities: mean_i ‖φ_i‖² tr Cov_{c∼p_i}(w_c), shape (...)."""
    return (squared_norms * row_variance).mean(-1)


def relative_flatness_geometric(squared_norms: Tensor, log_row_variance: Tensor) -> Tensor:
    """exp mean_i log κ_i with κ_i = ‖φ_i‖² tr Cov_{c∼p_i}(w_c), shape (...): κ of a typical sample, at most κ.

    κ is a mean, which a few samples near a decision boundary can carry alone; this falls when most samples turn flat.
    0, with slope 0, where κ_i is 0 for any sample, as it is without features.
    """
    return (log(squared_norms) + log_row_variance).mean(-1).exp()


def relative_flatness_participation(squared_norms: Tensor, row_variance: Tensor) -> Tensor:
    """(Σ_i κ_i)² / (N Σ_i κ_i²), shape (...): the effective share of samples that carry κ, 1/N to 1; NaN if κ = 0."""
    flatness = squared_norms * row_variance
    flatness = flatness / flatness.detach().amax(-1, keepdim=True)
    return flatness.mean(-1).square() / flatness.square().mean(-1)


def relative_flatness_bound_from(
    softmax: Softmax, squared_norms: Tensor, weight: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The surrogate κ̄ from shared quantities: ‖W‖_F² mean_i ‖φ_i‖² (1 − ‖p_i‖²), shape (...)."""
    if temperature != 1.0:
        softmax = softmax.at(temperature)
    return weight.square().sum((-2, -1)) * (squared_norms * softmax.impurity()).mean(-1)


def relative_flatness_looseness(
    softmax: Softmax, squared_norms: Tensor, weight: Tensor, row_variance: Tensor
) -> Tensor:
    """κ̄/κ: how much the surrogate overstates, shape (...)."""
    bound = relative_flatness_bound_from(softmax, squared_norms, weight)
    return bound / relative_flatness_from(squared_norms, row_variance)


def relative_flatness_per_loss(squared_norms: Tensor, row_variance: Tensor, cross_entropies: Tensor) -> Tensor:
    """κ over the mean cross-entropy, shape (...): what is left of flatness when the loss alone is taken out."""
    return relative_flatness_from(squared_norms, row_variance) / cross_entropies.mean(-1)
