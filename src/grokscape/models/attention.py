"""Causal attention over the positions of a batch, two ways behind one set of methods.

`Grid` is the plain way, for long sequences. `Gathered` is for short ones: matrix products of 2 × 32 × 4 numbers cost
more in overhead than in arithmetic, so every query looks its few keys and values up in one table instead; states that
samples share then need to be there only once.

Shapes: R replicas, N samples, S positions, d features, H heads; M rows in all, whatever samples or tokens they are of.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from grokscape.models.lookup import Lookup, Pairs, remembered
from grokscape.numerics import differentiated

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


def _plainly(query: Tensor, keys_values: Tensor, pairs: Pairs) -> Tensor:
    """What `_Attention` computes, from parts that can be differentiated any number of times."""
    key, value = keys_values.flatten(0, 1)[pairs.rows].unbind(2)  # (R·B, L, H, f) each
    scores = torch.einsum("bhf,blhf->lbh", query.flatten(0, 1), key) * query.shape[-1] ** -0.5
    if pairs.hidden is not None:
        scores = scores + pairs.hidden.unsqueeze(1).expand(-1, len(query), -1).reshape(scores.shape)
    return torch.einsum("lbh,blhf->bhf", scores.softmax(0), value).view_as(query)


class _Attention(torch.autograd.Function):
    """Queries (R, B, H, f), keys and values (R, M, 2, H, f) → (R, B, H, f): Σ_l softmax_l(q·k_l / √f) v_l.

    All the way through in numbered rows: splitting keys from values, or turning heads around, costs more than the
    arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys_values: Tensor, pairs: Pairs) -> Tensor:
        """Scores, softmax over the pairs of each query, weighted sum."""
        bags, table = query.reshape(-1, query.shape[-1]), keys_values.reshape(-1, query.shape[-1])
        scores = pairs.dots(bags, table, query.shape[-1] ** -0.5)
        if pairs.hidden is not None:
            scores.unflatten(1, (len(query), -1)).add_(pairs.hidden.unsqueeze(1))
        weights = scores.softmax(0)
        by_bag = pairs.by_bag(weights)
        ctx.pairs = pairs
        ctx.save_for_backward(query, keys_values, weights, by_bag)
        return pairs.sums(by_bag, table[pairs.heads :]).view_as(query)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By hand where one derivative is asked for, else by differentiating `_plainly`."""
        (query, keys_values, weights, by_bag), pairs, grad = ctx.saved_tensors, ctx.pairs, grads[0]
        if torch.is_grad_enabled():
            plainly, needed = partial(_plainly, pairs=pairs), ctx.needs_input_grad[:2]
            return *differentiated(plainly, (query, keys_values), needed, grad), None
        size = query.shape[-1]
        bags, table, grad = query.reshape(-1, size), keys_values.reshape(-1, size), grad.reshape(-1, size)
        of_scores = torch._softmax_backward_data(pairs.dots(grad, table[pairs.heads :]), weights, 0, weights.dtype)
        of_scores = pairs.by_bag(of_scores.mul_(size**-0.5))
        of_table = torch.empty_like(keys_values)
        of_key, of_value = of_table.flatten(0, 1).unbind(1)
        of_key.copy_(pairs.sums_back(of_scores, bags))
        of_value.copy_(pairs.sums_back(by_bag, grad))
        return pairs.sums(of_scores, table).view_as(query), of_table, None


def _hidden(mask: Tensor, heads: int) -> Tensor:
    """Which of the S rows a query must not see, (B, S) → what to add to scores, (S, B·H)."""
    seen = torch.zeros(mask.T.shape, device=mask.device)
    return seen.masked_fill_(mask.T, -math.inf).repeat_interleave(heads, 1)


class _Rows(NamedTuple):
    """Row numbers for `Gathered.per_token`, less each sample's own tokens.

    Attributes:
        first: (M, S), the embedded rows around each row after the first attention.
        own: (M, 1), which of them the row itself comes from: its position.
        later: (M, S), the rows around it in later layers.
        hidden: see `_hidden`.
    """

    first: Tensor
    own: Tensor
    later: Tensor
    hidden: Tensor

    @classmethod
    def of(cls, vocabulary: int, samples: int, first: int, heads: int, device: torch.device) -> "_Rows":
        """For V tokens, N samples, and a start sign (1) or none (0)."""
        none = torch.zeros(2 * max(vocabulary, samples), dtype=torch.int64, device=device)
        token = torch.cat([torch.arange(vocabulary, device=device).repeat(2), none[: 2 * samples]])
        sample = torch.cat([none[: 2 * vocabulary], torch.arange(samples, device=device).repeat(2)])
        a, sign, own = token + first, torch.zeros_like(token) + first + vocabulary, first + 2 * vocabulary
        begin = [torch.zeros_like(token)] * first
        around = torch.stack([*begin, a, sign, sign + 1, sign + 1 + vocabulary], 1)
        later = torch.stack([*begin, a, sign + token, own + sample, own + samples + sample], 1)
        sizes = enumerate([vocabulary, vocabulary, samples, samples], first)
        place = torch.cat([torch.full((size,), position, device=device) for position, size in sizes])
        around, later = (F.pad(rows, (0, 0, first, 0)) for rows in (around, later))  # the start sign's own
        place = F.pad(place, (first, 0)).unsqueeze(1)
        return cls(around, place, later, _hidden(torch.arange(first + 4, device=device) > place, heads))


@dataclass(frozen=True)
class Gathered:
    """Rows that samples may share; which row is where is a matter of indices alone.

    Attributes:
        parting: from the embedded rows to those after the first attention; None if they are the same.
        ends: the last positions among the rows that enter the last block.
        pairs: for each layer, the S rows around each query's sample; those that it must not see are hidden.
    """

    parting: Lookup | None
    ends: Lookup | slice
    pairs: tuple[Pairs, ...]

    @classmethod
    def per_sample(cls, tokens: Tensor, positions: int, layers: int, heads: int) -> "Gathered":
        """Every sample has its own row for every one of its S positions, sample by sample, as in `Grid`."""
        replicas, samples = tokens.shape[:2]
        place = torch.arange(positions, device=tokens.device)
        each = (torch.arange(samples, device=tokens.device).unsqueeze(1) * positions + place).expand(replicas, -1, -1)
        rows, hidden = samples * positions, _hidden((place > place.unsqueeze(1)).repeat(samples, 1), heads)
        pairs = [Pairs.of(each.repeat_interleave(positions, 1), rows, heads, hidden)] if layers > 1 else []
        pairs = [*pairs * (layers - 1), Pairs.of(each, rows, heads)]
        return cls(None, slice(positions - 1, None, positions), tuple(pairs))

    @classmethod
    def per_token(cls, tokens: Tensor, vocabulary: int, start: bool, layers: int, heads: int) -> "Gathered":
        """States of (start,) a, ∘, b, = for tokens (R, N, 2), once per token where they depend on one operand alone.

        Causality makes those of a, ∘ functions of a: they have one row per token throughout, and a start sign has one
        in all. Before the first attention those of b are functions of b alone and signs have one row each: what is
        embedded is (start,) every token as a, ∘, every token as b, =. After it, every sample has rows of its own:
        (start,) a of every token, ∘ of every token, b of every sample, = of every sample.
        """
        (replicas, samples, _), (a, b), first = tokens.shape, tokens.unbind(-1), int(start)
        kept, embedded = first + 2 * vocabulary, first + 2 * vocabulary + 2
        rows = remembered(_Rows.of, vocabulary, samples, first, heads, tokens.device)

        def filled(template: Tensor, own: int, *columns: tuple[int, Tensor]) -> Tensor:
            """Row numbers (R, M, S): from row `own` on, each sample's tokens are added in their columns."""
            numbers = template.repeat(replicas, 1, 1)
            for column, token in columns:
                numbers[:, own:].unflatten(1, (-1, samples))[..., column].add_(token.unsqueeze(1))
            return numbers

        before = filled(rows.first, kept, (first, a), (first + 2, b))
        if layers == 1:
            last = before[:, kept + samples :]
            return cls(None, Lookup.of(last[..., -1:], embedded), (Pairs.of(last, embedded, heads),))
        parting = Lookup.of(before.gather(2, rows.own.expand(replicas, -1, -1)), embedded)
        pairs, later = [Pairs.of(before, embedded, heads, rows.hidden)], kept + 2 * samples
        if layers > 2:
            between = filled(rows.later, kept, (first, a), (first + 1, a))
            pairs += [Pairs.of(between, later, heads, rows.hidden)] * (layers - 2)
        pairs += [Pairs.of(filled(rows.later[kept + samples :], 0, (first, a), (first + 1, a)), later, heads)]
        return cls(parting, slice(kept + samples, None), tuple(pairs))

    def spread(self, rows: Tensor) -> Tensor:
        """See `Grid.spread`: samples part from each other in the first attention."""
        return rows if self.parting is None else self.parting(rows)

    def last(self, rows: Tensor) -> Tensor:
        """See `Grid.last`."""
        return rows[:, self.ends] if isinstance(self.ends, slice) else self.ends(rows)

    def attend(self, layer: int, query: Tensor, keys_values: Tensor) -> Tensor:
        """See `Grid.attend`."""
        if query.dtype in (torch.bfloat16, torch.float16):  # under autocast; not all of the kernels know these
            query, keys_values = query.float(), keys_values.float()
        pairs = self.pairs[layer]
        query, keys_values = query.unflatten(-1, (pairs.heads, -1)), keys_values.unflatten(-1, (2, pairs.heads, -1))
        return _Attention.apply(query, keys_values, pairs).flatten(-2)
