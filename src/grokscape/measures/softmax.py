"""Softmax probabilities kept so that nothing cancels when they are nearly one-hot.

Late in training p is one-hot to rounding, 1 − p_top is what everything depends on, and `softmax` in float32 no longer
holds it. So the likeliest class is named, and the mass of all others is kept as a number of its own.

Shapes: `...` any leading replica axes, N samples, K classes.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Softmax:
    """softmax(z / τ), split into the likeliest class of each sample and the rest.

    Attributes:
        logits: z / τ, (..., N, K).
        top: index r of the likeliest class, int64 (..., N).
        gaps: z_c − z_r ≤ 0, divided by τ, (..., N, K).
        odds: p_c / p_r for c ≠ r and 0 at r, (..., N, K).
        odds_sum: Σ_{c≠r} p_c / p_r, (..., N).
    """

    logits: Tensor
    top: Tensor
    gaps: Tensor
    odds: Tensor
    odds_sum: Tensor

    @classmethod
    def of(cls, logits: Tensor, temperature: float = 1.0) -> "Softmax":
        """Split the softmax of logits (..., N, K) at a temperature τ."""
        if temperature != 1.0:
            logits = logits / temperature
        peak, top = logits.max(-1, keepdim=True)
        gaps = logits - peak
        odds = gaps.exp().scatter(-1, top, 0.0)
        zero = (peak - peak).detach()  # NaN under a logit of infinity, which has no odds
        return cls(logits, top.squeeze(-1), gaps, odds, odds.sum(-1) + zero.squeeze(-1))

    @cached_property
    def rest(self) -> Tensor:
        """p_c for c ≠ r and 0 at r, (..., N, K)."""
        return self.odds / (1 + self.odds_sum)[..., None]

    @cached_property
    def rest_mass(self) -> Tensor:
        """1 − p_r = Σ_{c≠r} p_c, (..., N)."""
        return self.odds_sum / (1 + self.odds_sum)

    @cached_property
    def log_normaliser(self) -> Tensor:
        """log Σ_c exp(z_c − z_r) ≥ 0, (..., N)."""
        return torch.log1p(self.odds_sum)

    def at(self, temperature: float) -> "Softmax":
        """The same logits at another temperature τ."""
        return Softmax.of(self.gaps, temperature)

    def cross_entropy(self, labels: Tensor) -> Tensor:
        """−Σ_c t_c log p_c of every sample, (..., N); it and its derivatives keep their digits where p is one-hot.

        Args:
            labels: classes y, int64 (..., N), for −log p_y; or targets t, (..., N, K).
        """
        if labels.is_floating_point():
            gaps = self.gaps.scatter(-1, self.top[..., None], 0.0)
            return self.log_normaliser * labels.sum(-1) - (labels * gaps).sum(-1)
        gap = self.gaps.gather(-1, labels[..., None]).squeeze(-1)
        return self.log_normaliser - torch.where(labels == self.top, 0.0, gap)

    def saturated(self) -> Tensor:
        """Whether Σ_c exp(z_c − max z) rounds to 1 in the logits' dtype, bool (..., N)."""
        return 1 + self.rest_mass == 1

    def impurity(self) -> Tensor:
        """1 − ‖p‖² = Tr(diag(p) − ppᵀ) of every sample, (..., N)."""
        return self.rest_mass * (2 - self.rest_mass) - self.rest.square().sum(-1)

    def entropy(self) -> Tensor:
        """−Σ_c p_c log p_c of every sample, (..., N), in nats; keeps its digits where p is one-hot to rounding."""
        gaps = torch.where(self.rest > 0, self.gaps, 0.0)
        return self.log_normaliser - (self.rest * gaps).sum(-1)
