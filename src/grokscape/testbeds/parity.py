"""Sparse parity: the answer is the product of a few signs among many."""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from grokscape.settings import Settings, Size
from grokscape.testbeds.splits import split_in_order
from grokscape.testbeds.types import InputSpec, Split


class SparseParity(Settings):
    """Class 1 if an odd number of the first `relevant` bits is set; all other bits are noise.

    Inputs are vectors of ±1 (N, bits), −1 for a set bit, so the answer is the sign of a product of `relevant` inputs
    (Barak et al. 2022, arXiv 2207.08799). The relevant bits stand first, which no network here can know.
    Samples are distinct, and so are those of train and test.

    Attributes:
        bits: length of an input.
        relevant: how many bits decide.
        train_samples: number of training inputs, drawn by the split's seed.
        test_samples: number of test inputs; None means all the rest of the 2^bits inputs (up to 16 bits).
        random_labels: the control without structure: the labels of train and test are shuffled, by the split's seed.
    """

    kind: Literal["sparse_parity"] = "sparse_parity"
    bits: int = Field(default=40, ge=2, le=62)
    relevant: Size = 3
    train_samples: Size = 1000
    test_samples: Size | None = 1000
    random_labels: bool = False

    @model_validator(mode="after")
    def _enough_inputs(self) -> "SparseParity":
        if self.relevant > self.bits:
            raise ValueError(f"relevant must be at most bits={self.bits}, got relevant={self.relevant}")
        if self.test_samples is None and self.bits > 16:
            raise ValueError(
                f"test_samples=None tests on all the rest, which needs bits <= 16, got bits={self.bits}; "
                f"give a number of test samples"
            )
        wanted = self.train_samples + (self.test_samples or 1)
        if wanted > 2**self.bits:
            raise ValueError(
                f"{self.bits} bits give {2**self.bits} different inputs, got train_samples={self.train_samples} and "
                f"test_samples={self.test_samples}; ask for fewer samples or more bits"
            )
        return self

    @property
    def input_spec(self) -> InputSpec:
        """A vector of `bits` signs."""
        return InputSpec("vector", (self.bits,))

    @property
    def num_classes(self) -> int:
        """2."""
        return 2

    def split(self, seed: int) -> Split:
        """Distinct random inputs, the first `train_samples` of them to train on."""
        generator = torch.Generator().manual_seed(seed)
        total = 2**self.bits if self.test_samples is None else self.train_samples + self.test_samples
        numbers = _distinct(total, 2**self.bits, generator)
        bits = (numbers[:, None] >> torch.arange(self.bits)) & 1
        labels = bits[:, : self.relevant].sum(1) % 2
        return split_in_order((1 - 2 * bits).float(), labels, torch.arange(total), self.train_samples, seed, self)


def _distinct(count: int, limit: int, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `limit`, in random order."""
    if limit <= 4 * count:
        return torch.randperm(limit, generator=generator)[:count]
    numbers = torch.empty(0, dtype=torch.int64)
    while len(numbers) < count:
        more = torch.cat([numbers, torch.randint(limit, (count,), generator=generator)])
        values, where = more.unique(return_inverse=True)
        first = torch.full((len(values),), len(more)).scatter_reduce(0, where, torch.arange(len(more)), "amin")
        numbers = more[first.sort().values]
    return numbers[:count]
