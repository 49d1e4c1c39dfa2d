"""Class means and scatter of features: what every measure of neural collapse is made of.

Means are kept relative to an offset near all features, and variances come from deviations, never from
E‖φ‖² − ‖μ‖²: with features far from the origin the latter is rounding noise.

Classes with fewer than two samples have no variance. They are left out of every measure (`present` is False for
them), and so are their samples; they never count as a mean at the origin.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from grokscape.numerics import select_rows, squared_distances, sum_by_class


@dataclass(frozen=True)
class ClassStatistics:
    """Means and within-class variances, with the samples' deviations from the mean of their class.

    Attributes:
        counts: samples in each class, (..., K), of the features' dtype.
        present: classes that take part, (..., K).
        means: class means minus the offset, (..., K, d).
        variances: V_c, mean squared distance of the class's samples to its mean, (..., K); 0 where not present.
        offset: what the means are relative to, (..., 1, d).
        deviations: φ_i − μ_{y_i}, zero for samples of classes that are not present, (..., N, d).
    """

    counts: Tensor
    present: Tensor
    means: Tensor
    variances: Tensor
    offset: Tensor
    deviations: Tensor

    @classmethod
    def of(
        cls, features: Tensor, labels: Tensor, num_classes: int, around: "ClassStatistics | None" = None
    ) -> "ClassStatistics":
        """Statistics of features (..., N, d) with labels (..., N).

        Args:
            features: (..., N, d).
            labels: int64 (..., N).
            num_classes: K.
            around: measure deviations around the means of these statistics, not around the features' own.
        """
        counts = _counts(labels, num_classes, features.dtype)
        offset = features.detach().mean(-2, keepdim=True) if around is None else around.offset
        shifted = features - offset
        if around is None:
            present = counts >= 2
            means = sum_by_class(shifted, labels, num_classes) / counts.clamp(min=1)[..., None]
        else:
            present = around.present & (counts >= 1)
            means = around.means
        deviations = shifted - select_rows(means.expand(*labels.shape[:-1], *means.shape[-2:]), labels)
        if around is not None:
            deviations = deviations * present.to(deviations.dtype).gather(-1, labels)[..., None]
        squares = torch.linalg.vector_norm(deviations, dim=-1, keepdim=True).square()
        variances = sum_by_class(squares, labels, num_classes).squeeze(-1) / counts.clamp(min=1)
        return cls(counts, present, means, variances.where(present, 0), offset, deviations)

    @cached_property
    def weights(self) -> Tensor:
        """n_c / N over the classes that take part, (..., K); zero elsewhere."""
        kept = self.counts.where(self.present, 0)
        return kept / kept.sum(-1, keepdim=True)

    @property
    def number_present(self) -> Tensor:
        """How many classes take part, (...)."""
        return self.present.sum(-1).to(self.means.dtype)

    def within_trace(self) -> Tensor:
        """Tr Σ_W = (1/N) Σ_i ‖φ_i − μ_{y_i}‖², (...)."""
        return (self.weights * self.variances).sum(-1)

    @cached_property
    def mean_distances(self) -> Tensor:
        """‖μ_c − μ_c'‖² for every pair, (..., K, K)."""
        return squared_distances(self.means)

    @cached_property
    def centred_means(self) -> Tensor:
        """μ_c − μ_G with the global mean over samples, (..., K, d); zero rows for classes that are not present."""
        kept = self.present[..., None]
        centre = (self.weights[..., None] * self.means.where(kept, 0)).sum(-2, keepdim=True)
        return (self.means - centre).where(kept, 0)

    def within_along(self, directions: Tensor) -> Tensor:
        """uᵀ Σ_W u for each column u of `directions` (..., d, m), → (..., m)."""
        projected = self.deviations @ directions
        weights = self.counts.where(self.present, 0).sum(-1)
        return projected.square().sum(-2) / weights[..., None]


def _counts(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    ones = torch.ones(*labels.shape, 1, dtype=dtype, device=labels.device)
    return sum_by_class(ones, labels, num_classes).squeeze(-1)
