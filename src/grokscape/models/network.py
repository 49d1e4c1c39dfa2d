"""What every network offers: named parameter shapes, initial values, and features for many replicas at once.

Shapes: R replicas, N samples, d features, K classes. A network holds no parameters; they are passed in, stacked along a
leading replica axis. On a CPU, no replica's result depends on what the others hold.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from grokscape.models.linear import linear
from grokscape.models.single import SingleNetwork
from grokscape.perturbations import UNPERTURBED, Perturbations


@dataclass(frozen=True)
class ParameterSpec:
    """Shape and initial distribution of one parameter.

    Attributes:
        shape: shape in one replica.
        law: "normal" (standard deviation `scale`), "uniform" (on [-scale, scale]) or "constant" (every entry `scale`).
        scale: see `law`.
        table: whether rows belong to inputs, which look them up, and not to outputs, as those of a linear layer do.
    """

    shape: tuple[int, ...]
    law: Literal["normal", "uniform", "constant"] = "normal"
    scale: float = 1.0
    table: bool = False

    def draw(self, generator: torch.Generator) -> Tensor:
        """Initial values in float64, on the CPU."""
        if self.law == "normal":
            return torch.randn(self.shape, generator=generator, dtype=torch.float64) * self.scale
        if self.law == "uniform":
            return (torch.rand(self.shape, generator=generator, dtype=torch.float64) * 2 - 1) * self.scale
        return torch.full(self.shape, self.scale, dtype=torch.float64)


class Network(ABC):
    """A classifier up to its linear head, as a function of stacked parameters.

    Attributes:
        shapes: parameter name → shape in one replica (without R).
        head: names of the head's weight (K, d) and bias (K,); None where it has no bias.
        head_layer: name of the linear layer that is the head, in what `single` gives.
        features_dim: d, the width of what enters the head.
        layers: hidden layers that can be perturbed, name → number of inputs of its weight as a matrix.
        batched: whether replicas run as one batched computation; if not, they run one after another.
        reason: one line that says why.
    """

    shapes: dict[str, torch.Size]
    head: tuple[str, str | None]
    head_layer: str = "head"
    features_dim: int
    layers: Mapping[str, int]
    batched: bool = True
    reason: str = "written over a replica axis"

    @abstractmethod
    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """One replica's initial parameters, on the CPU.

        Args:
            generator: source of the random numbers; advanced.
            dtype: of the result. Numbers are drawn in float64 and cast, so float32 and float64 agree up to rounding.
        """

    def initial(
        self, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What `init` gives, and what this replica has at its start in place of what `prepare` gives to all; by name.

        Args:
            generator, dtype: as those of `init`.
        """
        return self.init(generator, dtype), {}

    @abstractmethod
    def features(
        self, parameters: dict[str, Tensor], inputs: Tensor, perturbations: Perturbations = UNPERTURBED
    ) -> Tensor:
        """What enters the head.

        Args:
            parameters: name → `(R, *shape)`.
            inputs: `(R, N, *input_shape)`, int64 tokens or floating point.
            perturbations: of hidden layers, for their relative flatness.

        Returns:
            (R, N, d), differentiable (twice) in the parameters, and in the sizes of the perturbations.
        """

    def check_layer(self, name: str) -> None:
        """Refuse a hidden layer that cannot be perturbed.

        Raises:
            ValueError: there is none of that name, or its weight does more than this layer alone.
        """
        if name not in self.layers:
            raise ValueError(
                f"expected a hidden layer of the network, got {name!r}; it has {', '.join(self.layers) or 'none'}"
            )

    def prepare(self, replicas: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Make and give out the state of R replicas that is no parameter, name → `(R, *shape)`; mostly none.

        The network changes these tensors in place while training. They belong into a checkpoint.
        """
        return {}

    def working_on(self, rows: slice = slice(None), *, training: bool = True) -> AbstractContextManager[None]:
        """Inside, parameters are those of some replicas, and the network trains or is measured; the same for most.

        Args:
            rows: the replicas, out of those that `prepare` was told of.
            training: False to behave as when it is measured.
        """
        return nullcontext()

    @abstractmethod
    def single(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> nn.Module:
        """One replica as a PyTorch module that ends in a linear head, in training mode.

        Args:
            parameters: name → value, without R; copied.
            buffers: the same for what `prepare` made.
        """

    def logits(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Features through the head, (R, N, K)."""
        weight, bias = self.head
        return linear(self.features(parameters, inputs), parameters[weight], parameters[bias] if bias else None)


class SpecifiedNetwork(Network):
    """A network whose parameters are all drawn from a table of `ParameterSpec`s, in the table's order.

    Its hidden layers are the weights of two or more dimensions that are called "….weight", but for the head.
    """

    def __init__(self, specs: dict[str, ParameterSpec], head: tuple[str, str | None]) -> None:
        self.specs = specs
        self.shapes = {name: torch.Size(spec.shape) for name, spec in specs.items()}
        self.head = head
        self.features_dim = self.shapes[head[0]][1]
        self.layers = {
            name.removesuffix(".weight"): spec.shape[0] if spec.table else math.prod(spec.shape[1:])
            for name, spec in specs.items()
            if name.endswith(".weight") and len(spec.shape) > 1 and name != head[0]
        }

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """See `Network.init`."""
        return {name: spec.draw(generator).to(dtype) for name, spec in self.specs.items()}

    def single(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> SingleNetwork:
        """See `Network.single`."""
        return SingleNetwork(self, parameters)
