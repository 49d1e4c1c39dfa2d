"""Random splits of a data set into what is trained on and all the rest."""

from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from grokscape.testbeds.types import InputSpec, Split

TRAIN_FRACTION = Field(default=0.5, gt=0, lt=1, description="share of all samples that is trained on")


class Described(Protocol):
    """What a split needs to know of its task."""

    @property
    def input_spec(self) -> InputSpec:
        """Shape and kind of one input."""
        ...

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    @property
    def random_labels(self) -> bool:
        """Whether labels are drawn at random, the control that cannot generalise."""
        ...


def split_by_fraction(inputs: Tensor, labels: Tensor, fraction: float, seed: int, task: Described) -> Split:
    """Train on a random `round(fraction · M)` of M samples, test on all others.

    Raises:
        ValueError: the train or the test set would be empty.
    """
    total = len(labels)
    count = round(fraction * total)
    if not 0 < count < total:
        raise ValueError(
            f"train_fraction={fraction} of {total} samples leaves {count} to train on and {total - count} to test on; "
            f"both need at least one: choose a fraction between {1 / total:.3g} and {1 - 1 / total:.3g}"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    return split_in_order(inputs, labels, order, count, seed, task)


def split_in_order(inputs: Tensor, labels: Tensor, order: Tensor, count: int, seed: int, task: Described) -> Split:
    """Train on the first `count` of sample numbers, test on the rest; random labels are each side's own, shuffled."""
    train, test = order[:count], order[count:]
    train_labels, test_labels = assigned(labels[train], labels[test], seed, task.random_labels)
    return Split(inputs[train], train_labels, inputs[test], test_labels, task.input_spec, task.num_classes)


def assigned(train_labels: Tensor, test_labels: Tensor, seed: int, random: bool) -> tuple[Tensor, Tensor]:
    """The labels as they are, or each side's own in an order that has nothing to do with the inputs."""
    return (_shuffled(train_labels, seed), _shuffled(test_labels, seed + 1)) if random else (train_labels, test_labels)


def _shuffled(labels: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed ^ 0x5DEECE66D)
    return labels[torch.randperm(len(labels), generator=generator)]


def stratified_split(inputs: Tensor, labels: Tensor, train_samples: int, seed: int, task: Described) -> Split:
    """Train on `train_samples` random samples, each class equally often (up to one), test on all others."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    one_hot = torch.nn.functional.one_hot(labels[order], task.num_classes)
    turn = one_hot.cumsum(0)[torch.arange(len(order)), labels[order]]
    luck = torch.randperm(task.num_classes, generator=generator)[labels[order]]
    order = order[(turn * task.num_classes + luck).argsort(stable=True)]
    return split_in_order(inputs, labels, order, train_samples, seed, task)
