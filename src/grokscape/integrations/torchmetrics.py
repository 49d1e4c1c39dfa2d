"""Measures as `torchmetrics` metrics: accumulated over batches, merged across processes, reset between epochs.

Shapes: N samples of a batch, d features, K classes.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from grokscape.measures import MEASURES, relative_flatness
from grokscape.measures.locate import LinearHead
from grokscape.measures.losses import Loss
from grokscape.measures.snapshot import Quantities, Snapshot
from grokscape.measures.streaming import ClassMoments
from grokscape.numerics import has_float64, in_float64


class _Wide(Metric):
    """A metric with states in float64, or in float32 once it is on a device that has no float64.

    They stay so when a module that holds the metric goes to half precision, in which sums soon stop growing.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        if not has_float64(fn(torch.zeros(1, device=self.device)).device):
            self._computed = self._forward_cache = None
            for name, default in self._defaults.items():
                if isinstance(default, Tensor) and default.is_floating_point():
                    self._defaults[name] = default.float()
                    setattr(self, name, getattr(self, name).float())

        def moved(tensor: Tensor) -> Tensor:
            """To another device at most, unless `set_dtype` asks for more."""
            there = fn(tensor)
            return there if self._dtype_convert or there.dtype == tensor.dtype else tensor.to(there.device)

        return super()._apply(moved, exclude_state)


class RelativeFlatness(_Wide):
    """Exact relative flatness κ of a linear head over all samples seen since the last reset.

    κ is a mean over samples at fixed weights: update it in an evaluation loop, not while the weights move.

    Args:
        loss: as in `grokscape.relative_flatness`.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metric = RelativeFlatness()
        >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(1, 2))
        >>> float(metric.compute())
        1.0
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self, *, loss: Loss = "cross_entropy", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss: Loss = loss
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, features: Tensor, weight: Tensor, logits: Tensor, targets: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            features: what enters the head, (N, d).
            weight: the head's weight, (K, d).
            logits: what leaves the head, (N, K).
            targets: for a loss that is a function.
        """
        values = relative_flatness(
            features.detach(), weight.detach(), logits.detach(), loss=self.loss, targets=targets, reduction="sample"
        )
        self.total += in_float64(values).sum().to(self.total)
        self.samples += len(values)

    def compute(self) -> Tensor:
        """κ; NaN before the first update."""
        return self.total / self.samples


class NeuralCollapse(_Wide):
    """Measures of neural collapse over all samples seen since the last reset, by the names of `MEASURES`.

    Every one but nc4 and ildr, which look at single samples against the final class means.

    Args:
        num_classes: K.
        num_features: d.
        head: the linear head, or an adapter around it; with it nc3 and the measures of its rows are there too, for its
            weight at `compute`.
        kwargs: of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    moments: Tensor
    norms: Tensor
    largest: Tensor

    def __init__(
        self, num_classes: int, num_features: int, *, head: nn.Module | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self._head = (head,)  # in a tuple, so that the head does not become a part of the metric
        self._unpack = partial(_unpacked, num_classes, num_features)
        empty = _packed(ClassMoments.empty(num_classes, num_features))
        self.add_state("moments", empty, dist_reduce_fx=partial(_merged, self._unpack))
        self.add_state("norms", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("largest", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch: features (N, d), class indices (N)."""
        features = features.detach()
        self.moments = _packed(self._unpack(self.moments).update(features, labels))
        norms = torch.linalg.vector_norm(in_float64(features), dim=-1).to(self.norms)
        self.norms += norms.sum()
        self.largest = torch.maximum(self.largest, norms.amax()) if len(norms) else self.largest

    def compute(self) -> dict[str, Tensor]:
        """name → value, NaN where a measure does not exist."""
        moments = self._unpack(in_float64(self.moments))
        norms, largest = in_float64(self.norms), in_float64(self.largest)
        statistics = moments.compute()
        (head,) = self._head
        rows = moments.means if head is None else LinearHead("head", head).affine()[0].detach().to(moments.means)
        quantities = Quantities(Snapshot(rows, rows, rows, rows), statistics=statistics)
        values = {}
        for row in MEASURES.values():
            if row.property != "collapse" or row.name in ("nc4", "ildr", "rnc1", "rnc1_max"):
                continue
            if head is not None or "weight" not in row.inputs:
                values[row.name] = row.of(quantities)
        values["rnc1"] = statistics.within_trace() / (norms / moments.counts.sum()).square()
        values["rnc1_max"] = statistics.within_trace() / largest.square()
        return {name: value.to(self.norms) for name, value in values.items()}


def _packed(moments: ClassMoments) -> Tensor:
    """Class moments as one tensor (K + K d + K + d d): states of metrics are merged one by one."""
    return torch.cat([value.flatten() for value in vars(moments).values()])


def _unpacked(classes: int, width: int, packed: Tensor) -> ClassMoments:
    """The moments in it."""
    counts, means, squares, scatter = packed.split([classes, classes * width, classes, width * width])
    return ClassMoments(counts, means.reshape(classes, width), squares, scatter.reshape(width, width))


def _merged(unpack: Callable[[Tensor], ClassMoments], packed: Tensor) -> Tensor:
    """One state of several, (P, …) → (…): of processes, or of a batch and what came before."""
    return _packed(reduce(ClassMoments.merge, map(unpack, packed)))
