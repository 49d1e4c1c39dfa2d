"""Causal attention written out, for short sequences and any number of derivatives."""

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

SHORT = 8
"""Up to this many positions, products and sums beat matrix products of 2 × 32 × 4 each, several times over on a CPU."""


def causal_attention(query: Tensor, keys_values: Sequence[Tensor], heads: int) -> Tensor:
    """Attention of the last Q of S positions to all before them and themselves, heads side by side in d.

    Args:
        query: (R, N, Q, d).
        keys_values: keys and values of consecutive positions, S in all, side by side: (R, N, ·, 2d) each.
        heads: number of heads H, each d / H wide.

    Returns:
        (R, N, Q, d): per head, Σ_s softmax_s(q·k_s / √(d/H)) v_s.
    """
    queries, positions = query.shape[2], sum(part.shape[2] for part in keys_values)
    future = torch.ones(queries, positions, dtype=torch.bool, device=query.device).triu(positions - queries + 1)
    scale = (query.shape[-1] // heads) ** -0.5
    attend = _by_products if positions <= SHORT else _by_matmul
    return attend(query, keys_values, heads, future, scale)


def _by_products(query: Tensor, keys_values: Sequence[Tensor], heads: int, future: Tensor, scale: float) -> Tensor:
    query = query.unflatten(-1, (heads, -1)).unsqueeze(3)
    pairs = [part.unflatten(-1, (2, heads, -1)).unbind(3) for part in keys_values]
    scores = torch.cat([(query * key.unsqueeze(2)).sum(-1) for key, _ in pairs], 3) * scale
    weights = torch.softmax(scores.masked_fill(future.unsqueeze(-1), -math.inf), 3).unsqueeze(-1)
    shares = weights.split([key.shape[2] for key, _ in pairs], 3)
    mixed = [(share * value.unsqueeze(2)).sum(3) for share, (_, value) in zip(shares, pairs)]
    return functools.reduce(torch.add, mixed).flatten(-2)


def _by_matmul(query: Tensor, keys_values: Sequence[Tensor], heads: int, future: Tensor, scale: float) -> Tensor:
    key, value = torch.cat(list(keys_values), 2).chunk(2, -1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(2, 3) for part in (query, key, value))
    weights = torch.softmax((query @ key.mT * scale).masked_fill(future, -math.inf), -1)
    return (weights @ value).transpose(2, 3).flatten(-2)
