"""A small decoder transformer for token tasks, answering at its last position."""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from grokscape.models.attention import causal_attention
from grokscape.models.lookup import Lookup, LookupCache
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
        bias: whether linear maps (the head too) and norms have additive terms.
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
    activation: Literal["relu", "gelu"] = "relu"
    bias: bool = False
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
        if config.bias:
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


class _States(NamedTuple):
    """Residual streams of a batch as rows of one matrix per replica: shared ones first, then every sample's own.

    Causality makes the first P positions of a, ∘, b, = a function of a alone: they are kept once per token. Before the
    first attention the others are functions of b alone, and kept once per token too.

    Attributes:
        rows: (R, U·P + N·(S − P), f).
        prefix: (U, P), tokens and positions kept per token; (0, 0) where every sample keeps all its own.
        rest: (N, S − P), samples (or tokens, as long as `second` is there) and their positions.
        first: which token's prefix belongs to a sample; None where P = 0.
        second: which token's other positions belong to a sample; None once every sample has its own.
    """

    rows: Tensor
    prefix: tuple[int, int]
    rest: tuple[int, int]
    first: Lookup | None = None
    second: Lookup | None = None

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that stand like these as (R, U, P, f) and (R, N, S − P, f)."""
        prefix, rest = rows.split([math.prod(self.prefix), math.prod(self.rest)], 1)
        return prefix.unflatten(1, self.prefix), rest.unflatten(1, self.rest)

    def settled(self) -> "_States":
        """The same with its own rest for every sample."""
        if self.second is None:
            return self
        prefix, rest = self.split(self.rows)
        rest = _per_sample(self.second, rest)
        rows = torch.cat([prefix.flatten(1, 2), rest.flatten(1, 2)], 1)
        return _States(rows, self.prefix, rest.shape[1:3], self.first)

    def last(self) -> "_States":
        """The last position of every sample alone."""
        rest = _per_sample(self.second, self.split(self.rows)[1][:, :, -1:])
        return _States(rest.flatten(1, 2), (0, 0), rest.shape[1:3])


def _per_sample(lookup: Lookup | None, states: Tensor) -> Tensor:
    """States per token (R, U, P, f) → states per sample (R, N, P, f)."""
    return states if lookup is None else lookup(states.flatten(2)).unflatten(2, states.shape[2:])


class TransformerNetwork(SpecifiedNetwork):
    """See `Transformer`. Shapes in here: S positions, U tokens in the vocabulary, M rows.

    Two things make it fast and change no result: the last block answers at the last position only, and states that
    depend on one operand alone are computed once per token instead of once per sample (`share`, where U < N).
    """

    def __init__(self, config: Transformer, input_spec: InputSpec, num_classes: int) -> None:
        head = ("embedding", None) if config.tied else ("head.weight", "head.bias" if config.bias else None)
        super().__init__(_specs(config, input_spec, num_classes), head=head)
        self.config = config
        self.share = input_spec.shape[0] == 2
        self._vocabulary = input_spec.vocabulary
        self._lookups = LookupCache(self._find_lookups)

    def features(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """See `Network.features`; d = width, at the last position."""
        shared = self.share and inputs.shape[1] > self._vocabulary
        states = self._embed_tokens(parameters, inputs) if shared else self._embed(parameters, inputs)
        for layer in range(self.config.layers):
            states = self._block(parameters, f"layers.{layer}", states, last=layer == self.config.layers - 1)
        return self._norm(parameters, "final_norm", states.rows, "pre")

    def _find_lookups(self, tokens: Tensor) -> tuple[Lookup, Lookup]:
        first, second = (Lookup.of(tokens[..., i : i + 1], self._vocabulary) for i in (0, 1))
        return first, second

    def _embed_tokens(self, parameters: dict[str, Tensor], tokens: Tensor) -> _States:
        """a, ∘ for every token a, and b, = for every token b."""
        table, signs, positions = parameters["embedding"], parameters["signs"], parameters["positions"]
        signs = signs.unsqueeze(2).expand(-1, -1, table.shape[1], -1)
        parts = (torch.stack([table, signs[:, i]], 2) + positions[:, None, 2 * i : 2 * i + 2] for i in (0, 1))
        rows = torch.cat([part.flatten(1, 2) for part in parts], 1)
        return _States(rows, (table.shape[1], 2), (table.shape[1], 2), *self._lookups(tokens))

    def _embed(self, parameters: dict[str, Tensor], tokens: Tensor) -> _States:
        """The whole sequence for every sample."""
        table, signs, positions = parameters["embedding"], parameters["signs"], parameters["positions"]
        replicas, samples, length = tokens.shape
        operands = Lookup.of(tokens.reshape(replicas, -1, 1), table.shape[1])(table).unflatten(1, (samples, length))
        signs = signs.unsqueeze(1).expand(-1, samples, -1, -1)
        if length == 2:
            x = torch.cat([operands[:, :, :1], signs[:, :, :1], operands[:, :, 1:], signs[:, :, 1:]], 2)
        else:
            x = torch.cat([operands, signs], 2)
        return _States((x + positions.unsqueeze(1)).flatten(1, 2), (0, 0), x.shape[1:3])

    def _block(self, parameters: dict[str, Tensor], name: str, states: _States, *, last: bool) -> _States:
        """One block; the last one returns the last position alone."""
        attended = self._attention(parameters, name, states, last=last)
        states = states.last() if last else states.settled()
        x = states.rows + linear(attended, parameters[f"{name}.out.weight"], parameters.get(f"{name}.out.bias"))
        x = self._norm(parameters, f"{name}.norm1", x, "post")
        hidden = self._linear(parameters, f"{name}.norm2", f"{name}.up", self._standardised(x))
        hidden = F.gelu(hidden) if self.config.activation == "gelu" else hidden.relu_()
        x = x + linear(hidden, parameters[f"{name}.down.weight"], parameters.get(f"{name}.down.bias"))
        return states._replace(rows=self._norm(parameters, f"{name}.norm2", x, "post"))

    def _attention(self, parameters: dict[str, Tensor], name: str, states: _States, *, last: bool) -> Tensor:
        """What each position gathers from those before it, as rows; in the last block, the last position only."""
        width, heads = self.config.width, self.config.heads
        norm, qkv = f"{name}.norm1", f"{name}.qkv"
        rows = self._standardised(states.rows)
        sizes = [width, 2 * width]
        prefix_query = None
        if last:
            final = states.split(rows)[1][:, :, -1]
            query = self._linear(parameters, norm, qkv, final, slice(width)).unsqueeze(2)
            query = _per_sample(states.second, query)
            prefix_keys, keys = states.split(self._linear(parameters, norm, qkv, rows, slice(width, None)))
            keys = _per_sample(states.second, keys)
        else:
            prefix, rest = states.split(self._linear(parameters, norm, qkv, rows))
            query, keys = _per_sample(states.second, rest).split(sizes, -1)
            prefix_query, prefix_keys = prefix.split(sizes, -1)
        if states.first is not None:
            keys = torch.cat([_per_sample(states.first, prefix_keys), keys], 2)
        attended = causal_attention(query, keys, heads).flatten(1, 2)
        if prefix_query is None or states.first is None:
            return attended
        return torch.cat([causal_attention(prefix_query, prefix_keys, heads).flatten(1, 2), attended], 1)

    def _standardised(self, x: Tensor) -> Tensor:
        """Rows of mean 0 and variance 1 before a sub-layer, if the network has norms there, else `x` itself."""
        return F.layer_norm(x, x.shape[-1:]) if self.config.norm == "pre" else x

    def _norm(self, parameters: dict[str, Tensor], name: str, x: Tensor, where: Norm) -> Tensor:
        """Layer norm of rows (R, M, d) if the network has one at this place, else `x` itself."""
        if self.config.norm != where:
            return x
        x, weight = F.layer_norm(x, x.shape[-1:]), parameters[f"{name}.weight"].unsqueeze(1)
        return torch.addcmul(parameters[f"{name}.bias"].unsqueeze(1), x, weight) if self.config.bias else x * weight

    def _linear(
        self, parameters: dict[str, Tensor], norm: str, name: str, x: Tensor, outputs: slice = slice(None)
    ) -> Tensor:
        """Linear map of standardised rows, with the norm's own weight and bias folded in: fewer passes over rows."""
        weight, bias = parameters[f"{name}.weight"][:, outputs], parameters.get(f"{name}.bias")
        bias = None if bias is None else bias[:, outputs]
        if self.config.norm == "pre":
            if bias is not None:
                bias = bias + (weight @ parameters[f"{norm}.bias"].unsqueeze(-1)).squeeze(-1)
            weight = weight * parameters[f"{norm}.weight"].unsqueeze(1)
        return linear(x, weight, bias)
