"""Functions of samples' logits, a chunk of samples at a time: all logits at once need not exist.

Shapes: `...` any leading replica axes, N samples, d features, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grokscape.numerics import widen

ELEMENTS_AT_ONCE = 2**26
"""Without a chunk size, so many logits are worked on at once (256 MiB in float32)."""


def in_chunks(
    part: Callable[[Tensor, Tensor, Tensor | None], Tensor], features: Tensor, weight: Tensor, bias: Tensor | None,
    logits: Tensor | None = None, targets: Tensor | None = None, chunk_size: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Values of a per-sample function (..., N), with bounded memory; of masked samples as if they were zero.

    NaN in the padding of a sequence would otherwise reach the gradient, though not the value.
    """

    def with_logits(features: Tensor, logits: Tensor | None, targets: Tensor | None) -> Tensor:
        """The function of a chunk, whose logits are made here where they are not given."""
        if logits is None:
            logits = features @ weight.mT
            logits = logits if bias is None else logits + widen(bias)[..., None, :]
        return part(features, widen(logits), targets)

    samples = features.shape[-2]
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}; leave it out for one that fits memory")
    if mask is not None:
        _check_mask(mask, samples)
        features = features.where(mask[..., None], 0)
    if chunk_size is None:
        outputs = features[..., 0].numel() // samples * weight.shape[-2]
        chunk_size = max(1, ELEMENTS_AT_ONCE // max(1, outputs))
    if chunk_size >= samples:
        return with_logits(features, _unmasked(logits, mask), targets)
    values = []
    for start in range(0, samples, chunk_size):
        piece = slice(start, start + chunk_size)
        arguments = (
            features[..., piece, :],
            None if logits is None else _unmasked(logits[..., piece, :], None if mask is None else mask[..., piece]),
            None if targets is None else targets.movedim(features.dim() - 2, 0)[piece].movedim(0, features.dim() - 2),
        )
        if torch.is_grad_enabled():
            values.append(checkpoint(with_logits, *arguments, use_reentrant=False))
        else:
            values.append(with_logits(*arguments))
    return torch.cat(values, -1)


def _unmasked(logits: Tensor | None, mask: Tensor | None) -> Tensor | None:
    return logits if logits is None or mask is None else logits.where(mask[..., None], 0)


def _check_mask(mask: Tensor, samples: int) -> None:
    if mask.dtype != torch.bool or mask.shape[-1] != samples:
        raise ValueError(
            f"mask must be bool (..., {samples}) and say which samples count, got {mask.dtype} {tuple(mask.shape)}"
        )
