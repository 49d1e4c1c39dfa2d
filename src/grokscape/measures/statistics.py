"""Class means and scatter of features: what every measure of neural collapse is made of.

Means are kept relative to an offset near all features, and variances come from deviations, never from
E‖φ‖² − ‖μ‖²: with features far from the origin the latter is rounding noise.

Classes with fewer than two samples have no variance. They are left out of every measure (`present` is False for
them), and so are their samples; they never count as a mean at the origin.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from grokscape.numerics import (
    finite_or_identity,
    select_rows,
    squared_distances,
    sum_by_class,
    transforming,
    widest,
)

Weighting = Literal["sample", "class"]

WHOLE_UP_TO = 2048
"""Up to so many classes, tables of all pairs of classes are held whole; above, they are worked on in blocks of rows."""


@dataclass(frozen=True)
class ClassMeans:
    """Class means and what follows from them alone.

    The global mean and Σ_W weigh every sample alike, or every class alike; with classes of one size that is the same.

    Attributes:
        counts: samples in each class, (..., K), of the features' dtype.
        present: classes that take part, (..., K).
        means: class means minus the offset, (..., K, d).
        variances: V_c, mean squared distance of the class's samples to its mean, (..., K); 0 where not present.
        offset: what the means are relative to, (..., 1, d).
        weighting: "sample" or "class".
    """

    counts: Tensor
    present: Tensor
    means: Tensor
    variances: Tensor
    offset: Tensor
    weighting: Weighting

    @cached_property
    def kept_counts(self) -> Tensor:
        """n_c of the classes that take part, 0 of the others, (..., K)."""
        return self.counts.where(self.present, 0)

    @cached_property
    def weights(self) -> Tensor:
        """Weight of each class: n_c / N, or 1 / K, over the classes that take part; zero elsewhere, (..., K)."""
        kept = self.kept_counts if self.weighting == "sample" else self.present.to(self.means.dtype)
        return kept / kept.sum(-1, keepdim=True)

    @cached_property
    def number_present(self) -> Tensor:
        """How many classes take part, (...)."""
        return self.present.sum(-1).to(self.means.dtype)

    @cached_property
    def mean_distances(self) -> Tensor:
        """‖μ_c − μ_c'‖² for every pair, (..., K, K)."""
        return squared_distances(self.means)

    @cached_property
    def kept(self) -> Tensor | None:
        """Classes that take part in some replica, int64 (K',), where leaving out the others saves work; else None."""
        if self.means.shape[-2] <= WHOLE_UP_TO:
            return None
        return self.present.reshape(-1, self.present.shape[-1]).any(0).nonzero().squeeze(-1)

    @property
    def taking_part(self) -> "ClassMeans":
        """The same over the classes in `kept` alone: all that a sum over pairs of classes depends on."""
        return self if self.kept is None else self._selected  # keeping itself, it would outlive the step

    @cached_property
    def _selected(self) -> "ClassMeans":
        counts, present, variances = (x[..., self.kept] for x in (self.counts, self.present, self.variances))
        return ClassMeans(counts, present, self.means[..., self.kept, :], variances, self.offset, self.weighting)

    @cached_property
    def half_norms(self) -> Tensor:
        """‖μ_c‖²/2 relative to the offset, (..., 1, K)."""
        return torch.linalg.vector_norm(self.means, dim=-1).square()[..., None, :] / 2

    def blocks(self) -> list[slice]:
        """Rows of the table of pairs of classes that are worked on at once."""
        classes = self.means.shape[-2]
        if classes <= WHOLE_UP_TO:
            return [slice(None)]
        size = max(1, WHOLE_UP_TO**2 // classes)
        return [slice(start, start + size) for start in range(0, classes, size)]

    def distances_from(self, block: slice) -> Tensor:
        """‖μ_c − μ_c'‖² for c in a block, (..., block, K)."""
        return self.mean_distances if block == slice(None) else squared_distances(self.means, block)

    @cached_property
    def centred_means(self) -> Tensor:
        """μ_c − μ_G, (..., K, d); zero rows for classes that do not take part."""
        kept = self.present[..., None]
        centre = (self.weights[..., None] * self.means.where(kept, 0)).sum(-2, keepdim=True)
        return (self.means - centre).where(kept, 0)

    @cached_property
    def gram(self) -> tuple[Tensor, Tensor]:
        """Gram matrix of the centred means, of size K or d, in the widest type; and where it is finite and not zero."""
        means = widest(self.centred_means)
        gram = means @ means.mT if means.shape[-2] <= means.shape[-1] else means.mT @ means
        safe, finite = finite_or_identity(gram)
        return safe, finite & (gram.diagonal(dim1=-2, dim2=-1).sum(-1) > 0)

    @cached_property
    def gram_null(self) -> Tensor:
        """Projector onto directions in which the Gram matrix is zero whatever the means are, of its size and type.

        The weighted sum of the rows is zero, and so are the rows of classes that do not take part.
        """
        gram, weights = self.gram[0], widest(self.weights.detach())
        if gram.shape[-1] < weights.shape[-1]:
            return torch.zeros_like(gram)
        direction = weights / torch.linalg.vector_norm(weights, dim=-1, keepdim=True)
        return direction[..., :, None] * direction[..., None, :] + torch.diag_embed((~self.present).to(gram.dtype))

    def within_trace(self) -> Tensor:
        """Tr Σ_W, (...)."""
        return (self.weights * self.variances).sum(-1)

    # What depends on more than the means; statistics that lack what it takes do not offer it.

    def within_through(self, matrix: Tensor) -> Tensor:
        """Tr(A M Σ_W Mᵀ Aᵀ) for A (..., m, K) and M the centred means (K, d): (...)."""
        raise NotImplementedError

    def within_with(self, matrix: Tensor) -> Tensor:
        """Tr(Σ_W B) for B (..., d, d): (...)."""
        raise NotImplementedError

    def within_scatter(self) -> Tensor:
        """Σ_i (φ_i − μ_{y_i})(φ_i − μ_{y_i})ᵀ, (..., d, d)."""
        raise NotImplementedError

    def share_nearer(self, prediction: Tensor) -> Tensor:
        """Share of samples with the mean of some class nearer than that of the predicted class, (...)."""
        raise NotImplementedError

    def mean_deviation(self) -> Tensor:
        """Mean distance of a sample to the mean of its class, (...)."""
        raise NotImplementedError


def _variances(_: Tensor, deviations: Tensor, distances: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Mean square of each class's distances, (..., K)."""
    return sum_by_class(distances.square()[..., None], labels, counts.shape[-1]).squeeze(-1) / counts


class _Variances(torch.autograd.Function):
    """`_variances` of features around their own means, with the slope 2 (φ_i − μ_{y_i}) / n_{y_i} in one pass.

    The means' own slopes are zero, because deviations from a mean have none left.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, deviations: Tensor, distances: Tensor, labels: Tensor, counts: Tensor
    ) -> Tensor:
        """Features (..., N, d), what follows from them, and samples in each class (..., K) → (..., K)."""
        ctx.save_for_backward(deviations, labels, counts)
        return _variances(features, deviations, distances, labels, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Through the features alone."""
        deviations, labels, counts = ctx.saved_tensors
        return select_rows((2 * grads[0] / counts)[..., None], labels) * deviations, None, None, None, None


@dataclass(frozen=True)
class ClassStatistics(ClassMeans):
    """Class means with the samples' deviations from them.

    Attributes:
        labels: int64 (..., N).
        deviations: φ_i − μ_{y_i}, of samples of classes that do not take part too, (..., N, d).
        distances: their norms, (..., N).
    """

    labels: Tensor
    deviations: Tensor
    distances: Tensor

    @classmethod
    def of(
        cls, features: Tensor, labels: Tensor, num_classes: int, around: ClassMeans | None = None,
        weighting: Weighting = "sample",
    ) -> "ClassStatistics":
        """Statistics of features (..., N, d) with labels (..., N).

        Args:
            features: (..., N, d).
            labels: int64 (..., N).
            num_classes: K.
            around: measure deviations around these means, not around the features' own.
            weighting: how the global mean and Σ_W weigh.
        """
        counts = sum_by_class(features.new_ones(*labels.shape, 1), labels, num_classes).squeeze(-1)
        offset = features.detach().mean(-2, keepdim=True) if around is None else around.offset
        shifted = features - offset
        if around is None:
            present = counts >= 2
            means = sum_by_class(shifted, labels, num_classes) / counts.clamp(min=1)[..., None]
        else:
            present = around.present & (counts >= 1)
            means = around.means
        graph = torch.is_grad_enabled()  # without one, in place: writing into a view costs a graph two copies
        deviations = shifted - select_rows(means, labels) if graph else select_rows(-means, labels).add_(shifted)
        distances = torch.linalg.vector_norm(deviations, dim=-1)
        variances = _variances if around is not None or transforming() else _Variances.apply
        variances = variances(features, deviations, distances, labels, counts.clamp(min=1)).where(present, 0)
        return cls(counts, present, means, variances, offset, weighting, labels, deviations, distances)

    @cached_property
    def projections(self) -> Tensor:
        """(μ_c − μ_G) · (φ_i − μ_{y_i}), classes first: (..., K, N)."""
        return self.centred_means @ self.deviations.mT

    def within_through(self, matrix: Tensor) -> Tensor:
        """Tr(A M Σ_W Mᵀ Aᵀ) for A (..., m, K) and M the centred means (K, d): (...)."""
        return self._weighted((matrix @ self.projections).square().sum(-2))

    def _weighted(self, values: Tensor) -> Tensor:
        """Mean of values (..., N) over the samples, or over classes and within each over its samples: (...)."""
        return self._summed(values, self.weights / self.counts.clamp(min=1))

    def _summed(self, values: Tensor, shares: Tensor) -> Tensor:
        """Sum of values (..., N), each times the share of its class (..., K): (...)."""
        return (values * select_rows(shares[..., None], self.labels).squeeze(-1)).sum(-1)

    def mean_deviation(self) -> Tensor:
        """Mean distance of a sample to the mean of its class, (...)."""
        return self._summed(self.distances, self.present.to(self.means.dtype)) / self.kept_counts.sum(-1)

    def within_scatter(self) -> Tensor:
        """Σ_i (φ_i − μ_{y_i})(φ_i − μ_{y_i})ᵀ, (..., d, d)."""
        return self.deviations.mT @ self.deviations

    def within_with(self, matrix: Tensor) -> Tensor:
        """Tr(Σ_W B) for B (..., d, d): (...)."""
        return self._weighted(((self.deviations @ matrix) * self.deviations).sum(-1))

    def share_nearer(self, prediction: Tensor) -> Tensor:
        """Share of samples with the mean of some class nearer than that of the predicted class, (...)."""
        return self._nearer(prediction).to(self.means.dtype).mean(-1)

    def _nearer(self, prediction: Tensor) -> Tensor:
        if self.means.shape[-2] > WHOLE_UP_TO:
            return nearer_mean(self, self.deviations + select_rows(self.means, self.labels), prediction)
        index = self.labels[..., None, :].expand_as(self.projections)
        closeness = self.projections - self.mean_distances.gather(-1, index) / 2
        closeness = closeness.where(self.present[..., :, None], float("-inf"))
        return closeness.gather(-2, prediction[..., None, :]).squeeze(-2) < closeness.amax(-2)


def nearer_mean(statistics: ClassMeans, samples: Tensor, prediction: Tensor) -> Tensor:
    """Whether some mean is nearer than that of the predicted class, a bounded number of samples at a time.

    Args:
        statistics: class means.
        samples: features minus the statistics' offset, (..., N, d).
        prediction: int64 (..., N).

    Returns:
        bool (..., N).
    """
    part, kept = statistics.taking_part, statistics.kept
    if kept is not None:
        if not len(kept):
            return torch.zeros_like(prediction, dtype=torch.bool)
        place = kept.new_full(statistics.present.shape[-1:], -1)
        place[kept] = torch.arange(len(kept), device=kept.device)
        prediction = place[prediction]
    size = max(1, WHOLE_UP_TO**2 // part.means.shape[-2])
    found = []
    for piece, predicted in zip(samples.split(size, -2), prediction.split(size, -1), strict=True):
        closeness = (piece @ part.means.mT - part.half_norms).where(part.present[..., None, :], float("-inf"))
        own = closeness.gather(-1, predicted.clamp(min=0)[..., None]).squeeze(-1)
        found.append(own.where(predicted >= 0, float("-inf")) < closeness.amax(-1))
    return torch.cat(found, -1)
