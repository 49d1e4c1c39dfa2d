"""Class statistics of features that come batch by batch, or process by process.

Counts, class means, and sums of squared deviations from them are sufficient for every measure of neural collapse but
nc4 and ildr, which look at single samples against the final means. Batches are merged by Chan's update:

    n = n_a + n_b,   δ = μ_b − μ_a,   μ = μ_a + δ n_b/n,   S = S_a + S_b + δδᵀ n_a n_b/n,

in float64 (float32 on devices that have none), so how samples are split into batches does not matter.

Shapes: N samples of a batch, d features, K classes.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from grokscape.measures.checks import check_floating, check_labels
from grokscape.measures.statistics import ClassMeans
from grokscape.numerics import full_precision, has_float64, select_rows, sum_by_class


@dataclass(frozen=True)
class ClassMoments:
    """Sufficient statistics of labelled features; `update` and `merge` give new ones, `compute` what measures take.

    Attributes:
        counts: samples in each class, (K).
        means: class means, (K, d).
        squares: sum over the samples of each class of ‖φ_i − μ_c‖², (K).
        scatter: Σ_i (φ_i − μ_{y_i})(φ_i − μ_{y_i})ᵀ, (d, d); None where it is not kept.
    """

    counts: Tensor
    means: Tensor
    squares: Tensor
    scatter: Tensor | None

    @classmethod
    def empty(
        cls, num_classes: int, num_features: int, device: torch.device | str = "cpu", *, scatter: bool = True
    ) -> "ClassMoments":
        """Statistics of nothing; without the scatter (d² numbers) there are no nc1, CKA and spectrum."""
        device = torch.device(device)
        dtype = torch.float64 if has_float64(device) else torch.float32
        zeros = partial(torch.zeros, dtype=dtype, device=device)
        return cls(
            zeros(num_classes),
            zeros(num_classes, num_features),
            zeros(num_classes),
            zeros(num_features, num_features) if scatter else None,
        )

    @torch.no_grad()
    @full_precision()
    def update(self, features: Tensor, labels: Tensor) -> "ClassMoments":
        """With a batch added: features (N, d), labels (N).

        Raises:
            TypeError: integer features, labels that are no indices.
            ValueError: another number of features, labels out of range.
        """
        check_floating(features=features)
        if features.dim() != 2 or features.shape[-1] != self.means.shape[-1]:
            raise ValueError(f"features must be (N, {self.means.shape[-1]}), got {tuple(features.shape)}")
        check_labels(labels, features, len(self.counts))
        found, index = labels.long().unique(return_inverse=True)
        wide = features.to(self.means.dtype)
        offset = wide.mean(0)
        shifted = wide - offset
        counts = sum_by_class(shifted.new_ones(len(shifted), 1), index, len(found)).squeeze(-1)
        means = sum_by_class(shifted, index, len(found)) / counts[:, None]
        deviations = shifted - select_rows(means, index)
        squares = sum_by_class(deviations.square().sum(-1, keepdim=True), index, len(found)).squeeze(-1)
        scatter = None if self.scatter is None else deviations.T @ deviations
        return self._with(found, ClassMoments(counts, means + offset, squares, scatter))

    def merge(self, other: "ClassMoments") -> "ClassMoments":
        """Statistics of the samples of both.

        Raises:
            ValueError: the numbers of classes or features differ.
        """
        if self.means.shape != other.means.shape:
            raise ValueError(
                f"statistics of {tuple(self.means.shape)} and {tuple(other.means.shape)} (classes, features) "
                f"do not merge"
            )
        found = other.counts.nonzero().squeeze(-1)
        return self._with(found, other._only(found))

    def _only(self, classes: Tensor) -> "ClassMoments":
        """Statistics of some classes; the scatter is that of all."""
        return ClassMoments(self.counts[classes], self.means[classes], self.squares[classes], self.scatter)

    def _with(self, classes: Tensor, other: "ClassMoments") -> "ClassMoments":
        """With the statistics of other samples, all of them of some classes, merged in: the work is in these alone."""
        own = self._only(classes)
        counts = own.counts + other.counts
        apart = other.means - own.means
        weighted = apart * (own.counts * other.counts / counts).sqrt()[:, None]
        scatter = None
        if self.scatter is not None and other.scatter is not None:
            scatter = self.scatter + other.scatter + weighted.T @ weighted
        squares = own.squares + other.squares + weighted.square().sum(-1)
        return ClassMoments(
            self.counts.index_copy(0, classes, counts),
            self.means.index_copy(0, classes, own.means + apart * (other.counts / counts)[:, None]),
            self.squares.index_copy(0, classes, squares),
            scatter,
        )

    def total_scatter(self) -> Tensor:
        """Scatter of all samples around their mean, (d, d); of statistics that keep the scatter."""
        assert self.scatter is not None
        centred = self.means - (self.means * self.counts[:, None]).sum(0) / self.counts.sum()
        return self.scatter + centred.T @ (self.counts[:, None] * centred)

    def compute(self) -> "StreamedStatistics":
        """Class statistics for the measures of the table, in the moments' dtype."""
        present = self.counts >= 2
        offset = (self.means * self.counts[:, None]).sum(0, keepdim=True) / self.counts.sum().clamp(min=1)
        variances = (self.squares / self.counts.clamp(min=1)).where(present, 0)
        return StreamedStatistics(
            self.counts, present, self.means - offset, variances, offset, "sample", scatter=self.scatter
        )

    def around(self, other: "ClassMoments") -> "StreamedStatistics":
        """Class statistics of these samples around the class means of others (held-out around training means).

        The pooled scatter, and with it nc1, is NaN if a class with samples here does not take part there.
        """
        centre = other.compute()
        present = centre.present & (self.counts >= 1)
        means = centre.means + centre.offset
        apart = (self.means - means).where(present[:, None], 0)
        squares = self.squares + self.counts * apart.square().sum(-1)
        weighted = apart * self.counts.sqrt()[:, None]
        foreign = ((self.counts >= 1) & ~centre.present).any()
        scatter = self.scatter
        if scatter is not None:
            scatter = (scatter + weighted.T @ weighted).where(~foreign, float("nan"))
        return StreamedStatistics(
            self.counts, present, centre.means, (squares / self.counts.clamp(min=1)).where(present, 0), centre.offset,
            "sample", scatter=scatter,
        )


@dataclass(frozen=True)
class StreamedStatistics(ClassMeans):
    """Class means with the pooled scatter in place of the samples' deviations.

    Attributes:
        scatter: Σ_i (φ_i − μ_{y_i})(φ_i − μ_{y_i})ᵀ, (d, d); None where it was not kept.
    """

    scatter: Tensor | None

    def within_through(self, matrix: Tensor) -> Tensor:
        """Tr(A M Σ_W Mᵀ Aᵀ) for A (m, K) and M the centred means (K, d)."""
        directions = matrix @ self.centred_means
        return ((directions @ self.within_scatter()) * directions).sum() / self.kept_counts.sum()

    def within_scatter(self) -> Tensor:
        """Σ_i (φ_i − μ_{y_i})(φ_i − μ_{y_i})ᵀ, (d, d)."""
        assert self.scatter is not None
        return self.scatter

    def within_with(self, matrix: Tensor) -> Tensor:
        """Tr(Σ_W B) for B (d, d)."""
        return (self.within_scatter() * matrix).sum() / self.kept_counts.sum()
