"""Causal attention written out, for short sequences and any number of derivatives."""

import math

import torch
from torch import Tensor

SHORT = 8
"""Up to this many positions, products and sums beat matrix products of 2 × 32 × 4 each, several times over on a CPU."""


def causal_attention(query: Tensor, keys_values: Tensor, heads: int) -> Tensor:
    """Attention of the last Q of S positions to all before them and themselves, heads side by side in d.

    Args:
        query: (R, N, Q, d).
        keys_values: keys and values side by side, (R, N, S, 2d).
        heads: number of heads H, each d / H wide.

    Returns:
        (R, N, Q, d): per head, Σ_s softmax_s(q·k_s / √(d/H)) v_s.
    """
    query = query.unflatten(-1, (heads, -1))
    key, value = keys_values.unflatten(-1, (2, heads, -1)).unbind(3)
    scale, positions = query.shape[-1] ** -0.5, key.shape[2]
    if positions <= SHORT:
        scores = (query.unsqueeze(3) * key.unsqueeze(2)).sum(-1) * scale  # (R, N, Q, S, H)
        weights = _past_only(scores, 2).softmax(3).unsqueeze(-1)
        return (weights * value.unsqueeze(2)).sum(3).flatten(-2)
    query, key, value = (part.transpose(2, 3) for part in (query, key, value))
    weights = _past_only(query @ key.mT * scale, 3).softmax(-1)
    return (weights @ value).transpose(2, 3).flatten(-2)


def _past_only(scores: Tensor, axis: int) -> Tensor:
    """Scores with −∞ where a position would see a later one; Q and S are `axis` and the next."""
    queries, positions = scores.shape[axis : axis + 2]
    if queries == 1:
        return scores
    future = torch.ones(queries, positions, dtype=torch.bool, device=scores.device).triu(positions - queries + 1)
    return scores.masked_fill(future.view(queries, positions, *[1] * (scores.dim() - axis - 2)), -math.inf)
