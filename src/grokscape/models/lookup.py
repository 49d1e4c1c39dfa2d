"""Sums of table rows, replica by replica: the fast form of "one-hot inputs times a matrix", and of sparse attention.

Looking rows up and adding rows to where they came from are the same operation with the roles of rows and samples
exchanged. Both directions here use the gathering kernel (`embedding_bag`): several times faster on a CPU than a one-hot
matrix product or the scattering backward pass that PyTorch would choose, and deterministic on every device.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


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
        by_row, places = torch.sort(listed, stable=True)
        bags = places.div(rows.shape[-1], rounding_mode="floor")
        return cls(listed, by_row, places, bags, torch.searchsorted(by_row, all_rows))


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

    def __call__(self, table: Tensor) -> Tensor:
        """Row sums of a table (R, M, F), as (R, N, F)."""
        return _RowSum.apply(table.flatten(0, 1), self).unflatten(0, self.shape)

    @property
    def reversed(self) -> "Lookup":
        """For each table row, which samples have it."""
        return Lookup(self.shape, self.back_indices, self.back_offsets, self.indices, self.offsets)


class _Order(NamedTuple):
    """Pairs of a bag and a row, in order of heads, then bags; head h of item i is number i·H + h.

    Attributes:
        rows: (H·P,), the pairs' rows.
        bags: (H·P,), the pairs' bags.
        offsets: (H·B,), where the pairs of a head and bag begin.
        turned: (P,), where the pairs are that come in order of rows.
    """

    rows: Tensor
    bags: Tensor
    offsets: Tensor
    turned: Tensor


class _WeightedSum(torch.autograd.Function):
    """Weights (H, P) and table (M, H, f) → (B, H, f): Σ over a bag's pairs of weight · row, head by head."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, table: Tensor, there: _Order, back: _Order) -> Tensor:
        """Gather, scale and add."""
        ctx.save_for_backward(weights, table)
        ctx.orders = there, back
        flat, scale = table.detach().view(-1, table.shape[-1]), weights.detach().view(-1)
        sums = F.embedding_bag(there.rows, flat, there.offsets, mode="sum", per_sample_weights=scale)
        return sums.view(len(weights), -1, table.shape[-1]).transpose(0, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of a bilinear map: products of pairs for the weights, the sum with the roles exchanged for the table."""
        (weights, table), (there, back), grad = ctx.saved_tensors, ctx.orders, grads[0].contiguous()
        turned = weights.index_select(1, there.turned)
        return _Dots.apply(grad, table, there, back), _WeightedSum.apply(turned, grad, back, there), None, None


class _Dots(torch.autograd.Function):
    """Bags (B, H, f) and table (M, H, f) → (H, P): for every pair, its bag · its row, head by head."""

    @staticmethod
    def forward(ctx: Any, bags: Tensor, table: Tensor, there: _Order, back: _Order) -> Tensor:
        """With the kernel that PyTorch has for the gradient of weights in a sum of rows."""
        ctx.save_for_backward(bags, table)
        ctx.orders = there, back
        left, right = (x.view(-1, x.shape[-1]) for x in (bags, table))
        kernel = torch.ops.aten._embedding_bag_per_sample_weights_backward
        return kernel(left, right, there.rows, there.offsets, there.bags, 0).view(bags.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Of a bilinear map: weighted sums of rows for the bags, of bags for the rows."""
        (bags, table), (there, back), grad = ctx.saved_tensors, ctx.orders, grads[0].contiguous()
        turned = grad.index_select(1, there.turned)
        return _WeightedSum.apply(grad, table, there, back), _WeightedSum.apply(turned, bags, back, there), None, None


@dataclass(frozen=True)
class Pairs:
    """For each replica and bag, L table rows that it looks at, head by head: a sparse matrix with H values an entry.

    Attributes:
        shape: (R, B, L).
        there, back: the pairs in order of bags, and in order of rows with the roles of both exchanged.
    """

    shape: tuple[int, int, int]
    there: _Order
    back: _Order

    @classmethod
    def of(cls, rows: Tensor, number_of_rows: int, heads: int) -> "Pairs":
        """From row numbers (R, B, L) below `number_of_rows`."""
        replicas, bags, length = rows.shape
        device, total = rows.device, rows.numel()
        turned = _Turned.of(rows, number_of_rows)
        places_back = torch.empty_like(turned.places).scatter_(0, turned.places, torch.arange(total, device=device))
        head = torch.arange(heads, device=device).unsqueeze(1)

        def every(items: Tensor) -> Tensor:
            """Items numbered once per head, (H·n,)."""
            return (items * heads + head).flatten()

        of_bag = every(torch.arange(replicas * bags, device=device)).repeat_interleave(length)
        offsets = torch.arange(0, heads * total, length, device=device)
        there = _Order(every(turned.listed), of_bag, offsets, turned.places)
        back = _Order(every(turned.bags), every(turned.rows), (turned.starts + head * total).flatten(), places_back)
        return cls((replicas, bags, length), there, back)

    def dots(self, bags: Tensor, table: Tensor) -> Tensor:
        """Bags (R, B, H, f) and table (R, M, H, f) → dot products (H, R, B, L)."""
        bags, table = (x.flatten(0, 1).contiguous() for x in (bags, table))
        return _Dots.apply(bags, table, self.there, self.back).unflatten(1, self.shape)

    def sums(self, weights: Tensor, table: Tensor) -> Tensor:
        """Weights (H, R, B, L) and table (R, M, H, f) → weighted sums of rows (R, B, H, f)."""
        weights, table = weights.flatten(1), table.flatten(0, 1).contiguous()
        return _WeightedSum.apply(weights, table, self.there, self.back).unflatten(0, self.shape[:2])


class LookupCache:
    """Lookups of input tensors seen before; an entry lives as long as its tensor, and no longer than its content."""

    def __init__(self, build: Any) -> None:
        self._build = build
        self._known: Any = WeakIdKeyDictionary()

    def __call__(self, inputs: Tensor) -> Any:
        """What `build(inputs)` gives; computed once per tensor, anew if the tensor was written to since."""
        transformed = torch._C._functorch.maybe_current_level() is not None
        if transformed or torch.compiler.is_compiling() or inputs.is_inference():
            return self._build(inputs)
        version, value = self._known.get(inputs, (None, None))
        if version != inputs._version:
            value = self._build(inputs)
            self._known[inputs] = (inputs._version, value)
        return value
