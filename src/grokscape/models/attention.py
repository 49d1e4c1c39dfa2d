"""Causal attention over the positions of a batch, two ways behind one set of methods.

`Grid` is the plain way, for long sequences. `Gathered` is for short ones: matrix products of 2 × 32 × 4 numbers cost
more in overhead than in arithmetic, so every query looks its few keys and values up in one table instead; states that
samples share then need to be there only once.

Shapes: R replicas, N samples, S positions, d features, H heads; M rows in all, whatever samples or tokens they are of.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from grokscape.models.lookup import Lookup, Pairs

SHORT = 8
"""Up to this many positions, looking up beats matrix products."""


@dataclass(frozen=True)
class Grid:
    """Every sample has its own row for every position, sample by sample.

    Attributes:
        samples, positions: N and S.
        heads: H, which divides d.
    """

    samples: int
    positions: int
    heads: int

    def spread(self, rows: Tensor) -> Tensor:
        """From the rows that are embedded to those after the first attention: the same."""
        return rows

    def last(self, rows: Tensor) -> Tensor:
        """Every sample's last position, (R, M, d) → (R, N, d)."""
        return self._grid(rows)[:, :, -1]

    def attend(self, layer: int, query: Tensor, keys_values: Tensor) -> Tensor:
        """What each query gathers from the positions before it and its own.

        Args:
            layer: 0 for the first.
            query: (R, M, d), or (R, N, d) for the last positions alone.
            keys_values: side by side, (R, M, 2d).

        Returns:
            Per head Σ_s softmax_s(q·k_s / √(d/H)) v_s, in the query's shape.
        """
        shape, query = query.shape, query.unflatten(1, (self.samples, -1))
        key, value = self._grid(keys_values).unflatten(-1, (2, self.heads, -1)).unbind(3)
        query, key, value = (x.transpose(2, 3) for x in (query.unflatten(-1, (self.heads, -1)), key, value))
        scores = query @ key.mT * query.shape[-1] ** -0.5
        if (queries := query.shape[3]) > 1:
            future = torch.ones(queries, self.positions, dtype=torch.bool, device=query.device).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        return (scores.softmax(-1) @ value).transpose(2, 3).reshape(shape)

    def _grid(self, rows: Tensor) -> Tensor:
        return rows.unflatten(1, (self.samples, self.positions))


@dataclass(frozen=True)
class Gathered:
    """Rows that samples may share; which row is where is a matter of indices alone.

    Attributes:
        parting: from the embedded rows to those after the first attention; None if they are the same.
        ends: the last positions among the rows that enter the last block.
        pairs: for each layer, the S rows around each query's sample, whether it may see them or not.
        future: (M, S), which of these a query must not see, before the last layer.
        heads: H, which divides d.
    """

    parting: Lookup | None
    ends: Lookup
    pairs: tuple[Pairs, ...]
    future: Tensor
    heads: int

    @classmethod
    def per_sample(cls, tokens: Tensor, positions: int, layers: int, heads: int) -> "Gathered":
        """Every sample has its own row for every one of its S positions, sample by sample, as in `Grid`."""
        replicas, samples = tokens.shape[:2]
        place = torch.arange(positions, device=tokens.device)
        each = (torch.arange(samples, device=tokens.device).unsqueeze(1) * positions + place).expand(replicas, -1, -1)
        rows = samples * positions
        pairs = [Pairs.of(each.repeat_interleave(positions, 1), rows, heads)] if layers > 1 else []
        pairs = [*pairs * (layers - 1), Pairs.of(each, rows, heads)]
        future = place > place.unsqueeze(1)
        return cls(None, Lookup.of(each[..., -1:], rows), tuple(pairs), future.repeat(samples, 1), heads)

    @classmethod
    def per_token(cls, tokens: Tensor, vocabulary: int, start: bool, layers: int, heads: int) -> "Gathered":
        """States of (start,) a, ∘, b, = for tokens (R, N, 2), once per token where they depend on one operand alone.

        Causality makes those of a, ∘ functions of a: they have one row per token throughout, and a start sign has one
        in all. Before the first attention those of b, = are functions of b alone, and have one row per token too; then
        every sample has its own.
        """
        replicas, samples, _ = tokens.shape
        device, first = tokens.device, int(start)
        kept = first + 2 * vocabulary
        place = torch.arange(2, device=device)
        head, tail = first + 2 * tokens[..., :1] + place, kept + 2 * tokens[..., 1:] + place
        own = (kept + 2 * torch.arange(samples, device=device).unsqueeze(1) + place).expand(replicas, -1, -1)
        begin = head.new_zeros(replicas, samples, first)  # the start sign's row
        pair = first + 2 * torch.arange(vocabulary, device=device).unsqueeze(1) + place
        of_kept = F.pad(torch.cat([pair, pair], 1).repeat_interleave(2, 0), (first, 0, first, 0))

        def around(tail: Tensor) -> Tensor:
            """The rows around each query, (R, M, S): those of the kept rows, then those of the samples."""
            of_samples = torch.cat([begin, head, tail], 2).repeat_interleave(2, 1)
            return torch.cat([of_kept.expand(replicas, -1, -1), of_samples], 1)

        embedded, later = kept + 2 * vocabulary, kept + 2 * samples
        shared = torch.arange(kept, device=device).expand(replicas, -1)
        parting = Lookup.of(torch.cat([shared, tail.flatten(1)], 1).unsqueeze(2), embedded)
        pairs = [Pairs.of(around(tail), embedded, heads)] if layers > 1 else []
        if layers > 2:
            pairs += [Pairs.of(around(own), later, heads)] * (layers - 2)
        tail, rows = (own, later) if layers > 1 else (tail, embedded)
        pairs += [Pairs.of(torch.cat([begin, head, tail], 2), rows, heads)]
        position = first + torch.cat([place.repeat(vocabulary), 2 + place.repeat(samples)])
        future = torch.arange(first + 4, device=device) > F.pad(position, (first, 0)).unsqueeze(1)
        return cls(parting, Lookup.of(tail[..., 1:], rows), tuple(pairs), future, heads)

    def spread(self, rows: Tensor) -> Tensor:
        """See `Grid.spread`: samples part from each other in the first attention."""
        return rows if self.parting is None else self.parting(rows)

    def last(self, rows: Tensor) -> Tensor:
        """See `Grid.last`."""
        return self.ends(rows)

    def attend(self, layer: int, query: Tensor, keys_values: Tensor) -> Tensor:
        """See `Grid.attend`."""
        pairs = self.pairs[layer]
        if query.dtype in (torch.bfloat16, torch.float16):  # under autocast; not all of the kernels know these
            query, keys_values = query.float(), keys_values.float()
        key, value = keys_values.unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = query.unflatten(-1, (self.heads, -1))
        scores = pairs.dots(query, key) * query.shape[-1] ** -0.5
        if layer < len(self.pairs) - 1:
            scores = scores.masked_fill(self.future, -math.inf)
        weights = scores.movedim(-1, 0).softmax(0).movedim(0, -1)  # many times faster than over the short last axis
        return pairs.sums(weights, value).flatten(-2)
