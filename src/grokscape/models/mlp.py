"""Plain multi-layer perceptrons."""

import math
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from grokscape.models.linear import linear
from grokscape.models.lookup import Lookup, LookupCache
from grokscape.models.network import ParameterSpec, SpecifiedNetwork
from grokscape.perturbations import UNPERTURBED, Perturbations, perturbed, perturbed_table
from grokscape.settings import Settings, Size, Sizes
from grokscape.testbeds.types import InputSpec


class MLP(Settings):
    """Hidden layers of the given widths, then a linear head; for tokens, vectors and images (flattened).

    Weights start uniform on ±init_scale/√inputs, biases at zero. Tokens enter one-hot, side by side, or through a table
    of learned embeddings. A large `init_scale` delays generalisation (Liu et al. 2022, arXiv 2210.01117).

    Attributes:
        widths: hidden units per layer; the last is the number of features d.
        activation: after every hidden layer.
        init_scale: factor on every initial weight.
        bias: whether layers and head have biases.
        embedding: width of a learned embedding per token; None for one-hot tokens. Only for tokens.
    """

    kind: Literal["mlp"] = "mlp"
    widths: Sizes = (128, 128)
    activation: Literal["relu", "gelu"] = "relu"
    init_scale: float = Field(default=1.0, gt=0)
    bias: bool = True
    embedding: Size | None = None

    def build(self, input_spec: InputSpec, num_classes: int) -> "MLPNetwork":
        """The network for inputs of the given kind and K classes.

        Raises:
            ValueError: an embedding was asked for inputs that are no tokens.
        """
        if self.embedding and input_spec.kind != "tokens":
            raise ValueError(f"embedding is for tokens, got {input_spec.kind!r} inputs; use embedding=None")
        return MLPNetwork(self, input_spec, num_classes)


class MLPNetwork(SpecifiedNetwork):
    """Parameters "layers.0.weight", "layers.0.bias", …, "head.weight" and, if asked for, "embedding".

    For one-hot tokens "layers.0.weight" is a table with one row per position and token, transposed to a linear layer's.
    """

    def __init__(self, config: MLP, input_spec: InputSpec, num_classes: int) -> None:
        self.config = config
        self._vocabulary = input_spec.vocabulary
        self._one_hot = input_spec.kind == "tokens" and not config.embedding
        length = math.prod(input_spec.shape)
        per_entry = input_spec.vocabulary if self._one_hot else (config.embedding or 1)
        sizes = (length * per_entry, *config.widths)
        specs: dict[str, ParameterSpec] = {}
        if config.embedding:
            specs["embedding"] = ParameterSpec(
                (input_spec.vocabulary, config.embedding), scale=config.init_scale, table=True
            )
        for layer, (inputs, outputs) in enumerate(zip(sizes, (*config.widths, num_classes))):
            name = "head" if layer == len(config.widths) else f"layers.{layer}"
            table = self._one_hot and layer == 0
            scale = config.init_scale * (length if table else inputs) ** -0.5  # L of the L·vocabulary entries are 1
            shape = (inputs, outputs) if table else (outputs, inputs)
            specs[f"{name}.weight"] = ParameterSpec(shape, "uniform", scale, table)
            if config.bias:
                specs[f"{name}.bias"] = ParameterSpec((outputs,), "constant", 0.0)
        super().__init__(specs, head=("head.weight", "head.bias" if config.bias else None))
        self._lookups = LookupCache(self._lookup)

    def _lookup(self, tokens: Tensor) -> Lookup:
        """Of all tokens' rows at once (one-hot), or of every token's row apart (embedding)."""
        if self._one_hot:
            return Lookup.one_hot(tokens, self._vocabulary)
        return Lookup.of(tokens.reshape(len(tokens), -1, 1), self._vocabulary)

    def features(
        self, parameters: dict[str, Tensor], inputs: Tensor, perturbations: Perturbations = UNPERTURBED
    ) -> Tensor:
        """See `Network.features`; d = the last hidden width."""
        activate = F.relu if self.config.activation == "relu" else F.gelu

        def layer(number: int, x: Tensor) -> Tensor:
            """A hidden layer before its activation."""
            name = f"layers.{number}"
            weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
            return perturbed(linear(x, weight, bias), name, weight, x, perturbations)

        if self._one_hot:
            x = self._one_hot_layer(parameters, inputs, perturbations)
        else:
            x = layer(0, self._entering(parameters, inputs))
        for number in range(1, len(self.config.widths)):
            x = layer(number, activate(x))
        return activate(x)

    def _one_hot_layer(
        self, parameters: dict[str, Tensor], tokens: Tensor, perturbations: Perturbations
    ) -> Tensor:
        """The first layer of one-hot tokens, before its activation."""
        table, bias = parameters["layers.0.weight"], parameters.get("layers.0.bias")
        x = perturbed_table(self._lookups(tokens)(table), "layers.0", table, tokens.shape[-1], perturbations)
        return x if bias is None else x + bias.unsqueeze(1)

    def _entering(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """What enters the first layer: numbers, or embedded tokens side by side."""
        if self.config.embedding:
            return self._lookups(inputs)(parameters["embedding"]).unflatten(1, inputs.shape[1:]).flatten(2)
        return inputs.flatten(2).to(parameters["layers.0.weight"].dtype)
