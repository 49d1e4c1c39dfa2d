"""Sums of table rows, replica by replica: the fast form of "one-hot inputs times a matrix", and of sparse attention.

Looking rows up and adding rows to where they came from are the same operation with the roles of rows and samples
exchanged. Both directions here use the gathering kernel (`embedding_bag`): several times faster on a CPU than a one-hot
matrix product or the scattering backward pass that PyTorch would choose, and deterministic on every device.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from grokscape.numerics import transforming

with warnings.catch_warnings():  # PyTorch tells once in a process that such tensors are new; `Pairs.dots` uses them
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False)


class _RowSum(torch.autograd.Function):
    """Table (R·M, f) → (R·N, f): the rows that a lookup adds up for each sample."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, lookup: "Lookup") -> Tensor:
        """Gather and add; detached, the kernel keeps nothing for a backward pass of its own."""
        ctx.lookup = lookup
        return F.embedding_bag(lookup.indices, table.detach(), lookup.offsets, mode="sum")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The adjoint of a linear map: the same operation the other way round."""
        return _RowSum.apply(grads[0].contiguous(), ctx.lookup.reversed), None


class _Turned(NamedTuple):
    """Row numbers (R, B, L), of R tables that lie one behind the other, as a list and in order of rows.

    Attributes:
        listed: the list, L of them to a bag.
        rows: the list, sorted.
        places: where each of them is in the list.
        bags: whose they are.
        starts: where each row's part begins.
    """

    listed: Tensor
    rows: Tensor
    places: Tensor
    bags: Tensor
    starts: Tensor

    @classmethod
    def of(cls, rows: Tensor, number_of_rows: int) -> "_Turned":
        """From row numbers below `number_of_rows`."""
        all_rows = torch.arange(len(rows) * number_of_rows, device=rows.device)
        listed = (rows + all_rows[::number_of_rows].view(-1, 1, 1)).flatten()
        places = _order(rows.flatten(1), number_of_rows)
        by_row, bags = listed.index_select(0, places), places.div(rows.shape[-1], rounding_mode="floor")
        return cls(listed, by_row, places, bags, torch.searchsorted(by_row, all_rows))


def _order(rows: Tensor, number_of_rows: int) -> Tensor:
    """Places of row numbers (R, P) in order of replicas, then rows, then places; (R·P,).

    NumPy sorts numbers of 16 bits by their digits, ten times faster than PyTorch by comparisons.
    """
    if rows.device.type == "cpu" and number_of_rows <= 2**16 and not torch.compiler.is_compiling():
        order = torch.from_numpy(rows.numpy().astype(np.uint16).argsort(1, kind="stable"))
    else:
        order = rows.argsort(dim=1, stable=True)
    return (order + torch.arange(0, rows.numel(), rows.shape[1], device=rows.device).unsqueeze(1)).flatten()


@dataclass(frozen=True)
class Lookup:
    """For each replica and sample, which rows of a table (R, M, F) are added up.

    Attributes:
        shape: (R, N), the replicas and samples of the result.
        indices, offsets: rows of the flattened table (R·M, F), grouped by sample.
        back_indices, back_offsets: samples of the flattened result (R·N, F), grouped by table row.
    """

    shape: tuple[int, int]
    indices: Tensor
    offsets: Tensor
    back_indices: Tensor
    back_offsets: Tensor

    @classmethod
    def of(cls, rows: Tensor, number_of_rows: int) -> "Lookup":
        """From row numbers (R, N, L) below `number_of_rows`: sample n gets the sum of its L rows."""
        replicas, samples, length = rows.shape
        offsets = torch.arange(0, rows.numel(), length, device=rows.device)
        turned = _Turned.of(rows, number_of_rows)
        return cls((replicas, samples), turned.listed, offsets, turned.bags, turned.starts)

    @classmethod
    def one_hot(cls, tokens: Tensor, vocabulary: int) -> "Lookup":
        """Of tokens (R, N, L) in a table with a row for each position and token, (R, L·vocabulary, F)."""
        length = tokens.shape[-1]
        return cls.of(tokens + torch.arange(length, device=tokens.device) * vocabulary, length * vocabulary)

    def __call__(self, table: Tensor) -> Tensor:
        """Row sums of a table (R, M, F), as (R, N, F)."""
        return _RowSum.apply(table.flatten(0, 1), self).unflatten(0, self.shape)

    @property
    def reversed(self) -> "Lookup":
        """For each table row, which samples have it."""
        return Lookup(self.shape, self.back_indices, self.back_offsets, self.indices, self.offsets)


_PAIRS_KEPT = 2**20  # larger tables of numbers, as in measuring, are made anew each time


class _Numbers(NamedTuple):
    """What depends on the numbers of queries, pairs of each and heads alone; `Pairs` says what a pair is.

    Attributes:
        head: (H,), 0, 1, 2, …
        bags: (R·B·H·L,), the bag of each pair.
        starts: (R·B·H + 1,), where each bag's pairs begin, and where the last one's end.
        by_place: (L·R·B·H,), where the pairs are that come in order of L first.
        by_bag: the other way round.
    """

    head: Tensor
    bags: Tensor
    starts: Tensor
    by_place: Tensor
    by_bag: Tensor

    @classmethod
    def of(cls, queries: int, length: int, heads: int, device: torch.device) -> "_Numbers":
        """From R·B, L and H."""
        head, pairs = torch.arange(heads, device=device), torch.arange(queries * heads * length, device=device)
        grid = pairs.view(-1, length)
        bags = torch.arange(len(grid), device=device).repeat_interleave(length)
        starts = torch.arange(0, len(pairs) + 1, length, device=device)
        return cls(head, bags, starts, grid.T.flatten(), pairs.view(length, -1).T.flatten())


@dataclass(frozen=True)
class Pairs:
    """For each replica and query, L rows of a table of keys and values that it attends to, with H heads.

    Queries (R, B, H, f) lie as R·B·H numbered bags, keys and values (R, M, 2, H, f) as R·M·2·H numbered rows: head h of
    a key is H rows before that of its value. A pair is a bag and a row that it looks at; pairs are in order of bags.

    Attributes:
        rows: (R·B, L), of the R tables one behind the other.
        hidden: what to add to scores, (L, B·H); None for nothing.
        keys: the key of each pair.
        back_bags: head by head, table row by table row, the bags that look at it.
        back_pairs: where these pairs are.
        back_starts: where each head and row's part of them begins, (H·R·M,).
        numbers: what is the same for all such tables.
    """

    rows: Tensor
    hidden: Tensor | None
    keys: Tensor
    back_bags: Tensor
    back_pairs: Tensor
    back_starts: Tensor
    numbers: _Numbers

    @classmethod
    def of(cls, rows: Tensor, number_of_rows: int, heads: int, hidden: Tensor | None = None) -> "Pairs":
        """From row numbers (R, B, L) below `number_of_rows`."""
        length, total = rows.shape[-1], rows.numel()
        turned = _Turned.of(rows, number_of_rows)
        build = partial(remembered, _Numbers.of) if total * heads <= _PAIRS_KEPT else _Numbers.of
        numbers = build(total // length, length, heads, rows.device)
        listed, column = turned.listed.view(-1, length), numbers.head.unsqueeze(1)
        return cls(
            rows=listed,
            hidden=hidden,
            keys=(listed.unsqueeze(1) * (2 * heads) + column).flatten(),
            back_bags=(turned.bags * heads + column).flatten(),
            back_pairs=(turned.places + turned.bags * ((heads - 1) * length) + column * length).flatten(),
            back_starts=(turned.starts + column * total).flatten(),
            numbers=numbers,
        )

    @property
    def heads(self) -> int:
        """H."""
        return len(self.numbers.head)

    def dots(self, bags: Tensor, table: Tensor, scale: float = 1.0) -> Tensor:
        """Bags (R·B·H, f) and table (R·M·2·H, f) → scale · bag · row for all pairs, (L, R·B·H)."""
        starts, length = self.numbers.starts, self.rows.shape[1]
        if bags.device.type == "cpu" and not torch.compiler.is_compiling():
            size, values = (len(bags), len(table)), bags.new_zeros(len(self.keys))
            pairs = torch.sparse_csr_tensor(starts, self.keys, values, size, device=bags.device, check_invariants=False)
            torch.sparse.sampled_addmm(pairs, bags, table.T, beta=0.0, alpha=scale, out=pairs)
            dots = pairs.values()
        else:  # the kernel that PyTorch has for the gradient of weights in a sum of rows
            kernel = torch.ops.aten._embedding_bag_per_sample_weights_backward
            dots = kernel(bags, table, self.keys, starts[:-1], self.numbers.bags, 0).mul_(scale)
        return dots.index_select(0, self.numbers.by_place).view(length, -1)

    def by_bag(self, weights: Tensor) -> Tensor:
        """(L, R·B·H) → a number for each pair."""
        return weights.flatten().index_select(0, self.numbers.by_bag)

    def sums(self, weights: Tensor, table: Tensor) -> Tensor:
        """A weight for each pair and table (R·M·2·H, f) → Σ weight · row over the pairs of each bag, (R·B·H, f)."""
        return F.embedding_bag(self.keys, table, self.numbers.starts[:-1], mode="sum", per_sample_weights=weights)

    def sums_back(self, weights: Tensor, bags: Tensor) -> Tensor:
        """A weight for each pair and bags (R·B·H, f) → Σ weight · bag over the pairs of each row, (R·M, H, f)."""
        scale = weights.index_select(0, self.back_pairs)
        sums = F.embedding_bag(self.back_bags, bags, self.back_starts, mode="sum", per_sample_weights=scale)
        return sums.view(self.heads, -1, bags.shape[-1]).transpose(0, 1)


def _of_the_moment() -> bool:
    """Whether tensors made now must not be kept: while PyTorch traces or transforms, and in inference mode."""
    return transforming() or torch.is_inference_mode_enabled()


_T = TypeVar("_T")


@lru_cache(maxsize=16)  # a run needs six or so; studies of other shapes may come after it
def _kept(build: Callable[..., _T], *key: Any) -> _T:
    return build(*key)


def remembered(build: Callable[..., _T], *key: Any) -> _T:
    """`build(*key)`, made once as long as it is in use."""
    return build(*key) if _of_the_moment() else _kept(build, *key)


class LookupCache:
    """Lookups of input tensors seen before; an entry lives as long as its tensor, and no longer than its content."""

    def __init__(self, build: Any) -> None:
        self._build = build
        self._known: Any = WeakIdKeyDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and what is pickled, know nothing yet."""
        return LookupCache, (self._build,)

    def __call__(self, inputs: Tensor) -> Any:
        """What `build(inputs)` gives; computed once per tensor, anew if the tensor was written to since."""
        if _of_the_moment() or inputs.is_inference():
            return self._build(inputs)
        version, value = self._known.get(inputs, (None, None))
        if version != inputs._version:
            value = self._build(inputs)
            self._known[inputs] = (inputs._version, value)
        return value
