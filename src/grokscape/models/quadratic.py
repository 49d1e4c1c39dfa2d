"""The quadratic network: the smallest one that groks, in seconds."""

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from grokscape.models.linear import linear
from grokscape.models.lookup import Lookup, LookupCache
from grokscape.models.network import ParameterSpec, SpecifiedNetwork
from grokscape.perturbations import UNPERTURBED, Perturbations, perturbed, perturbed_table
from grokscape.settings import Settings, Size
from grokscape.testbeds.types import InputSpec


class QuadraticMLP(Settings):
    """z = W (Σ_l A_l x_l)², no biases: one hidden layer with a squared activation.

    For tokens, A_l is a table with one row per token at position l, so two operands give W (A a + B b)². For vectors
    and images it is one matrix. Modular addition has an exact solution in this form (Gromov 2023, arXiv 2301.02679).

    Attributes:
        width: hidden units, the number of features d.
        init_std: standard deviation of every initial weight; None means 0.5 / (2·width)^(1/3).
    """

    kind: Literal["quadratic_mlp"] = "quadratic_mlp"
    width: Size = 128
    init_std: float | None = Field(default=None, gt=0)

    def build(self, input_spec: InputSpec, num_classes: int) -> "QuadraticNetwork":
        """The network for inputs of the given kind and K classes."""
        std = 0.5 / (2 * self.width) ** (1 / 3) if self.init_std is None else self.init_std
        return QuadraticNetwork(input_spec, num_classes, self.width, std)


class _Square(torch.autograd.Function):
    """x² with 2·x·grad in one pass over memory, where that of `square` or `x * x` takes three."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x²."""
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """2·x·grad."""
        (x,) = ctx.saved_tensors
        return torch.addcmul(x.new_zeros(()), x, grads[0], value=2)


class QuadraticNetwork(SpecifiedNetwork):
    """Parameters "first.weight" (L·vocabulary or D, width) and "head.weight" (K, width)."""

    def __init__(self, input_spec: InputSpec, num_classes: int, width: int, std: float) -> None:
        rows = torch.Size(input_spec.shape).numel() * max(1, input_spec.vocabulary)
        specs = {
            "first.weight": ParameterSpec((rows, width), scale=std, table=True),
            "head.weight": ParameterSpec((num_classes, width), scale=std),
        }
        super().__init__(specs, head=("head.weight", None))
        self._vocabulary = input_spec.vocabulary
        self._lookups = LookupCache(partial(Lookup.one_hot, vocabulary=self._vocabulary))

    def features(
        self, parameters: dict[str, Tensor], inputs: Tensor, perturbations: Perturbations = UNPERTURBED
    ) -> Tensor:
        """See `Network.features`; d = width."""
        first = parameters["first.weight"]
        if self._vocabulary:
            hidden = perturbed_table(self._lookups(inputs)(first), "first", first, inputs.shape[-1], perturbations)
        else:
            x = inputs.flatten(2).to(first.dtype)
            hidden = perturbed(linear(x, first.mT), "first", first.mT, x, perturbations)
        return _Square.apply(hidden)
