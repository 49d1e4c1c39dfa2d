"""A small decoder transformer for token tasks, answering at its last position."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from grokscape.models.network import ParameterSpec, SpecifiedNetwork, linear
from grokscape.testbeds.types import InputSpec

Norm = Literal["pre", "post", "none"]


class Transformer(BaseModel):
    """Decoder with causal attention; the logits are read at the last position, over the answers only.

    Two operands a, b become the sequence a, ∘, b, =; any other number of tokens is followed by "=". The two signs are
    tokens of the network, not of the task. In the last layer, queries, MLP and norm run at the last position only,
    which changes nothing in the answer. Close to Power et al. 2022 (arXiv 2201.02177).

    Attributes:
        layers: number of blocks.
        heads: attention heads per block; must divide `width`.
        width: d, the residual stream.
        norm: layer norm before each sub-layer and the head ("pre"), after each residual sum ("post"), or nowhere.
        mlp_ratio: hidden units of a block's MLP, in multiples of `width`.
        activation: of the MLP.
        bias: whether linear maps, the head included, have biases.
        tied: the token table is also the head's weight (no head bias).
        init_scale: factor on every initial weight matrix and table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["transformer"] = "transformer"
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=1)
    norm: Norm = "pre"
    mlp_ratio: float = Field(default=4.0, gt=0)
    activation: Literal["gelu", "relu"] = "gelu"
    bias: bool = True
    tied: bool = False
    init_scale: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "Transformer":
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got width={self.width} and heads={self.heads}; "
                f"the nearest width that works is {math.ceil(self.width / self.heads) * self.heads}"
            )
        return self

    def build(self, input_spec: InputSpec, num_classes: int) -> "TransformerNetwork":
        """The network for token inputs and K classes.

        Raises:
            ValueError: the inputs are not tokens, or `tied` with a vocabulary other than the classes.
        """
        if input_spec.kind != "tokens":
            raise ValueError(f"a transformer needs token inputs, got {input_spec.kind!r} inputs; use an mlp for those")
        if self.tied and input_spec.vocabulary != num_classes:
            raise ValueError(
                f"tied=True needs as many tokens as classes, got a vocabulary of {input_spec.vocabulary} and "
                f"{num_classes} classes; use tied=False"
            )
        return TransformerNetwork(self, input_spec, num_classes)


def _specs(config: Transformer, input_spec: InputSpec, num_classes: int) -> dict[str, ParameterSpec]:
    """Every parameter of the network, in the order in which it is drawn."""
    width, hidden, scale = config.width, round(config.mlp_ratio * config.width), config.init_scale
    length = input_spec.shape[0]
    signs = 2 if length == 2 else 1
    specs = {
        "embedding": ParameterSpec((input_spec.vocabulary, width), scale=scale * width**-0.5),
        "signs": ParameterSpec((signs, width), scale=scale * width**-0.5),
        "positions": ParameterSpec((length + signs, width), scale=scale * width**-0.5),
    }

    def affine(name: str, outputs: int, inputs: int) -> None:
        specs[f"{name}.weight"] = ParameterSpec((outputs, inputs), "uniform", scale * inputs**-0.5)
        if config.bias:
            specs[f"{name}.bias"] = ParameterSpec((outputs,), "constant", 0.0)

    def norm(name: str) -> None:
        specs[f"{name}.weight"] = ParameterSpec((width,), "constant", 1.0)
        specs[f"{name}.bias"] = ParameterSpec((width,), "constant", 0.0)

    for layer in range(config.layers):
        if config.norm != "none":
            norm(f"layers.{layer}.norm1")
        affine(f"layers.{layer}.qkv", 3 * width, width)
        affine(f"layers.{layer}.out", width, width)
        if config.norm != "none":
            norm(f"layers.{layer}.norm2")
        affine(f"layers.{layer}.up", hidden, width)
        affine(f"layers.{layer}.down", width, hidden)
    if config.norm == "pre":
        norm("final_norm")
    if not config.tied:
        affine("head", num_classes, width)
    return specs


class TransformerNetwork(SpecifiedNetwork):
    """See `Transformer`. Shapes in here: S positions, Q of them queries, H heads of size D = d / H."""

    def __init__(self, config: Transformer, input_spec: InputSpec, num_classes: int) -> None:
        head = ("embedding", None) if config.tied else ("head.weight", "head.bias" if config.bias else None)
        super().__init__(_specs(config, input_spec, num_classes), head=head)
        self.config = config

    def features(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """See `Network.features`; d = width, at the last position."""
        x = self._embed(parameters, inputs)
        for layer in range(self.config.layers):
            queries = 1 if layer == self.config.layers - 1 else x.shape[2]
            x = self._block(parameters, f"layers.{layer}", x, queries)
        return self._norm(parameters, "final_norm", x, "pre").squeeze(2)

    def _embed(self, parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        table, signs, positions = parameters["embedding"], parameters["signs"], parameters["positions"]
        replicas, samples, length = tokens.shape
        first = torch.arange(replicas, device=tokens.device).view(-1, 1, 1) * table.shape[1]
        operands = F.embedding(tokens + first, table.flatten(0, 1))
        signs = signs.unsqueeze(1).expand(-1, samples, -1, -1)
        if length == 2:
            x = torch.cat([operands[:, :, :1], signs[:, :, :1], operands[:, :, 1:], signs[:, :, 1:]], 2)
        else:
            x = torch.cat([operands, signs], 2)
        return x + positions.unsqueeze(1)

    def _norm(self, parameters: dict[str, Tensor], name: str, x: Tensor, where: Norm) -> Tensor:
        """Layer norm of (R, N, S, d) if the network has one at this place, else `x` itself."""
        if self.config.norm != where:
            return x
        weight, bias = (parameters[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), weight)

    def _linear(self, parameters: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        return linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))

    def _block(self, parameters: dict[str, Tensor], name: str, x: Tensor, queries: int) -> Tensor:
        """One block on (R, N, S, d), answered at the last Q positions: (R, N, Q, d)."""
        attended = self._attention(parameters, name, self._norm(parameters, f"{name}.norm1", x, "pre"), queries)
        x = self._norm(parameters, f"{name}.norm1", x[:, :, -queries:] + attended, "post")
        hidden = self._linear(parameters, f"{name}.up", self._norm(parameters, f"{name}.norm2", x, "pre"))
        hidden = F.gelu(hidden) if self.config.activation == "gelu" else F.relu(hidden)
        return self._norm(parameters, f"{name}.norm2", x + self._linear(parameters, f"{name}.down", hidden), "post")

    def _attention(self, parameters: dict[str, Tensor], name: str, x: Tensor, queries: int) -> Tensor:
        """Causal attention of the last Q of S positions."""
        width, positions = x.shape[-1], x.shape[2]
        weight, bias = parameters[f"{name}.qkv.weight"], parameters.get(f"{name}.qkv.bias")
        if queries == positions:
            q, k, v = linear(x, weight, bias).chunk(3, -1)
        else:
            last = x[:, :, -queries:]
            q = linear(last, weight[:, :width], None if bias is None else bias[:, :width])
            k, v = linear(x, weight[:, width:], None if bias is None else bias[:, width:]).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (self.config.heads, -1)).transpose(2, 3) for part in (q, k, v))
        scores = q @ k.mT * q.shape[-1] ** -0.5
        future = torch.ones(queries, positions, dtype=torch.bool, device=x.device).triu(positions - queries + 1)
        mixed = torch.softmax(scores.masked_fill(future, -math.inf), -1) @ v
        return self._linear(parameters, f"{name}.out", mixed.transpose(2, 3).flatten(-2))
