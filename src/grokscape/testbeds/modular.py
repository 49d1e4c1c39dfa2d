"""Arithmetic modulo p: every operation of Power et al. 2022 (arXiv 2201.02177) on residues."""

import difflib
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from grokscape.settings import Settings
from grokscape.testbeds.splits import TRAIN_FRACTION, split_by_fraction
from grokscape.testbeds.types import InputSpec, Split


def _divide(x: Tensor, y: Tensor, p: int) -> Tensor:
    """x / y modulo a prime p, where y is not 0."""
    inverses = torch.tensor([0] + [pow(value, -1, p) for value in range(1, p)])
    return x * inverses[y]


OPERATIONS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "x+y": lambda x, y, p: x + y,
    "x-y": lambda x, y, p: x - y,
    "x*y": lambda x, y, p: x * y,
    "x/y": _divide,
    "x^2+y^2": lambda x, y, p: x**2 + y**2,
    "x^2+xy+y^2": lambda x, y, p: x**2 + x * y + y**2,
    "x^2+xy+y^2+x": lambda x, y, p: x**2 + x * y + y**2 + x,
    "x^3+xy": lambda x, y, p: x**3 + x * y,
    "x^3+xy^2+y": lambda x, y, p: x**3 + x * y**2 + y,
    "x/y if y odd else x-y": lambda x, y, p: torch.where(y % 2 == 1, _divide(x, y, p), x - y),
}
"""Name → function of operands and modulus, before the remainder is taken."""

_SPELLINGS = {"−": "-", "·": "*", "×": "*", "÷": "/", "²": "^2", "³": "^3", "**": "^"}


def canonical_operation(name: str, known: tuple[str, ...]) -> str:
    """The known operation that a name spells, spaces and typographic signs aside.

    Raises:
        ValueError: none does; the text lists the operations and the nearest ones.
    """
    plain = name
    for sign, ascii_sign in _SPELLINGS.items():
        plain = plain.replace(sign, ascii_sign)
    spellings = {operation.replace(" ", ""): operation for operation in known}
    if plain.replace(" ", "") in spellings:
        return spellings[plain.replace(" ", "")]
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(operation) for operation in near)}?" if near else "."
    raise ValueError(f"unknown operation {name!r}{hint} Allowed: {', '.join(repr(o) for o in known)}")


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


class ModularArithmetic(Settings):
    """x ∘ y modulo p from the two operands; a fraction of the whole table is for training, the rest is the test.

    Inputs are token ids (N, 2), classes the p residues. Division leaves y = 0 out: p·(p−1) pairs instead of p².

    Attributes:
        operation: a key of `OPERATIONS`; "x·y", "x²+y²" and spaces are understood too.
        p: modulus; prime where the operation divides.
        train_fraction: share of the table that is trained on, rounded to a whole number of pairs.
        random_labels: the control without structure: the table's answers are shuffled, by the split's seed.
    """

    kind: Literal["modular"] = "modular"
    operation: str = "x+y"
    p: int = Field(default=97, ge=2, le=1000)
    train_fraction: float = TRAIN_FRACTION
    random_labels: bool = False

    @field_validator("operation")
    @classmethod
    def _known_operation(cls, name: str) -> str:
        return canonical_operation(name, tuple(OPERATIONS))

    @model_validator(mode="after")
    def _divisible(self) -> "ModularArithmetic":
        if "/" in self.operation and not _is_prime(self.p):
            near = [q for q in range(2, 1000) if _is_prime(q)]
            near.sort(key=lambda q: (abs(q - self.p), q))
            raise ValueError(
                f"operation {self.operation!r} divides modulo p, which needs a prime p, got p={self.p}; "
                f"the nearest primes are {near[0]} and {near[1]}"
            )
        return self

    @property
    def input_spec(self) -> InputSpec:
        """Two tokens below p."""
        return InputSpec("tokens", (2,), vocabulary=self.p)

    @property
    def num_classes(self) -> int:
        """p."""
        return self.p

    def table(self) -> tuple[Tensor, Tensor]:
        """Every pair of operands (M, 2) and its answer (M,), in lexicographic order."""
        pairs = torch.cartesian_prod(torch.arange(self.p), torch.arange(self.p))
        if self.operation == "x/y":
            pairs = pairs[pairs[:, 1] != 0]
        x, y = pairs.unbind(1)
        return pairs, OPERATIONS[self.operation](x, y, self.p) % self.p

    def split(self, seed: int) -> Split:
        """A random split of the table; every seed trains on the same number of pairs."""
        return split_by_fraction(*self.table(), self.train_fraction, seed, self)
