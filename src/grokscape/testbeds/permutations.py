"""The symmetric group: permutations and their products, the non-commutative task of Power et al. 2022."""

from itertools import permutations
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from grokscape.settings import Settings
from grokscape.testbeds.modular import canonical_operation
from grokscape.testbeds.splits import TRAIN_FRACTION, split_by_fraction
from grokscape.testbeds.types import InputSpec, Split

PRODUCTS = ("xy", "xyx^-1", "xyx")


class SymmetricGroup(Settings):
    """x ∘ y in the group of permutations of `degree` things; (xy)(i) = x(y(i)).

    A token and a class is a permutation; token k is the k-th in lexicographic order, so 0 is the identity. Degree 5 has
    120 of them and 14 400 pairs.

    Attributes:
        operation: "xy", "xyx^-1" or "xyx".
        degree: how many things are permuted.
        train_fraction: share of all pairs that is trained on, rounded to a whole number of pairs.
        random_labels: the control without structure: the table's answers are shuffled, by the split's seed.
    """

    kind: Literal["symmetric_group"] = "symmetric_group"
    operation: str = "xy"
    degree: int = Field(default=5, ge=2, le=6)
    train_fraction: float = TRAIN_FRACTION
    random_labels: bool = False

    @field_validator("operation")
    @classmethod
    def _known_operation(cls, name: str) -> str:
        return canonical_operation(name.replace("⁻¹", "^-1"), PRODUCTS)

    @property
    def elements(self) -> Tensor:
        """Every permutation as a row (M, degree): entry i is where i goes."""
        return torch.tensor(list(permutations(range(self.degree))))

    @property
    def input_spec(self) -> InputSpec:
        """Two tokens, one per permutation."""
        return InputSpec("tokens", (2,), vocabulary=self.num_classes)

    @property
    def num_classes(self) -> int:
        """degree!, the order of the group."""
        return len(self.elements)

    def table(self) -> tuple[Tensor, Tensor]:
        """Every pair of elements (M², 2) and its product (M²,), in lexicographic order."""
        elements = self.elements
        pairs = torch.cartesian_prod(torch.arange(len(elements)), torch.arange(len(elements)))
        x, y = elements[pairs[:, 0]], elements[pairs[:, 1]]
        last = {"xy": None, "xyx^-1": x.argsort(1), "xyx": x}[self.operation]
        product = x.gather(1, y if last is None else y.gather(1, last))
        return pairs, _rank(product, elements)

    def split(self, seed: int) -> Split:
        """A random split of the table; every seed trains on the same number of pairs."""
        return split_by_fraction(*self.table(), self.train_fraction, seed, self)


def _rank(permutation: Tensor, elements: Tensor) -> Tensor:
    """Row numbers in the lexicographically ordered `elements`."""
    digits = elements.shape[1] ** torch.arange(elements.shape[1] - 1, -1, -1)
    return torch.searchsorted((elements * digits).sum(1), (permutation * digits).sum(1))
