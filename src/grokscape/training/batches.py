"""Training data of all replicas, and which of it each step sees.

The order of epoch e of a seed follows from (seed, e) alone: no state to save, and arms of one seed see one order.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from grokscape.testbeds import Split
from grokscape.training.plan import Replica

_MIX = 1_000_003
_KEEP = 2**24  # elements up to which the rows of a chunk are kept between evaluations


def _unique(splits: Sequence[Split]) -> tuple[list[Split], list[int]]:
    seen: dict[int, int] = {}
    kept: list[Split] = []
    for split in splits:
        if id(split) not in seen:
            seen[id(split)] = len(kept)
            kept.append(split)
    return kept, [seen[id(split)] for split in splits]


def _some(count: int, limit: int) -> Tensor:
    """Which samples stand for all, always the same: the first ones would be of few classes where data are sorted."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:limit].sort().values


class Batches:
    """Inputs and labels for R replicas.

    Args:
        replicas: R of them; replicas that share a `Split` object share its memory.
        batch_size: samples a step, None for all.
        device, dtype: where the data live; `dtype` is for inputs that are not token ids.
    """

    def __init__(
        self, replicas: Sequence[Replica], batch_size: int | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        kept, owner = _unique([r.split for r in replicas])
        self._owner = torch.tensor(owner, device=device)
        self._order_seeds = [r.init_seed for r in replicas]
        self.batch_size = batch_size
        self.device, self._dtype = device, dtype
        self._transforms = [split.transform for split in kept]

        def stack(name: str) -> Tensor:
            """One tensor of all splits, on the device."""
            tensor = torch.stack([getattr(split, name) for split in kept])
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        self._train = stack("train_inputs"), stack("train_labels")
        self._test = stack("test_inputs"), stack("test_labels")
        self.train_size = self._train[1].shape[1]
        self.steps_per_epoch = 1 if batch_size is None else self.train_size // batch_size
        self._order = -1, torch.empty(0)
        self._kept: dict[tuple[str, int, int, int | None], tuple[Tensor, Tensor]] = {}

    def all(self, side: Literal["train", "test"], rows: slice, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """All samples of one side, or some `limit` of them, for the replicas in `rows`; (r, N, …) and (r, N)."""
        key = (side, rows.start, rows.stop, limit)
        if key not in self._kept:
            inputs, labels = self._train if side == "train" else self._test
            owner = self._owner[rows]
            if limit is None or limit >= labels.shape[1]:
                found = inputs[owner], labels[owner]
            else:
                chosen = _some(labels.shape[1], limit).to(self.device)
                found = inputs[owner[:, None], chosen], labels[owner[:, None], chosen]
            if found[0].numel() > _KEEP:
                return found
            self._kept[key] = found
        return self._kept[key]

    def at(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """The batch of the replicas in `rows` at a step, counted from 0."""
        if self.batch_size is None:
            inputs, labels = self.all("train", rows)
            return self.seen(inputs, rows, step), labels
        epoch, position = divmod(step, self.steps_per_epoch)
        index = self._epoch_order(epoch)[rows, position * self.batch_size : (position + 1) * self.batch_size]
        owner = self._owner[rows, None]
        return self.seen(self._train[0][owner, index], rows, step), self._train[1][owner, index]

    def seen(self, inputs: Tensor, rows: slice, step: int | None = None) -> Tensor:
        """Stored inputs (r, N, …) of the replicas in `rows` as their networks see them; augmented if for a step."""
        if not any(self._transforms):
            return inputs
        seen = []
        for images, owner, seed in zip(inputs, self._owner[rows].tolist(), self._order_seeds[rows], strict=True):
            transform = self._transforms[owner]
            if transform is not None:
                images = images if step is None else transform.augmented(images, seed, step)
                images = transform.inputs(images, self._dtype)
            seen.append(images)
        return torch.stack(seen)

    def _epoch_order(self, epoch: int) -> Tensor:
        """Order of the training set in an epoch, (R, N); the last one asked for is kept."""
        if self._order[0] == epoch:
            return self._order[1]
        orders = {}
        for seed in set(self._order_seeds):
            generator = torch.Generator().manual_seed((seed * _MIX + epoch) % 2**63)
            orders[seed] = torch.randperm(self.train_size, generator=generator)
        self._order = epoch, torch.stack([orders[seed] for seed in self._order_seeds]).to(self.device)
        return self._order[1]
