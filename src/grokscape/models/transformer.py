"""A small decoder transformer for token tasks, answering at its last position."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from grokscape.models.attention import SHORT, Gathered, Grid
from grokscape.models.linear import linear, relu_layers
from grokscape.models.lookup import Lookup, LookupCache
from grokscape.models.network import ParameterSpec, SpecifiedNetwork
from grokscape.perturbations import UNPERTURBED, Perturbations, perturbed
from grokscape.settings import Layers, Settings, Size
from grokscape.testbeds.types import InputSpec

Norm = Literal["pre", "post", "none"]


class Transformer(Settings):
    """Decoder with causal attention; the logits are read at the last position, over the answers only.

    Two operands a, b become the sequence a, ∘, b, =; any other number of tokens is followed by "=". The signs are
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
        start: whether a start sign comes before the tokens, as in the code that Power et al. published.
        init_scale: factor on every initial weight matrix and table.
    """

    kind: Literal["transformer"] = "transformer"
    layers: Layers = 2
    heads: Size = 4
    width: Size = 128
    norm: Norm = "pre"
    mlp_ratio: float = Field(default=4.0, gt=0)
    activation: Literal["relu", "gelu"] = "relu"
    bias: bool = False
    tied: bool = False
    start: bool = False
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
    signs = (2 if length == 2 else 1) + config.start
    specs = {
        "embedding": ParameterSpec((input_spec.vocabulary, width), scale=scale * width**-0.5, table=True),
        "signs": ParameterSpec((signs, width), scale=scale * width**-0.5, table=True),
        "positions": ParameterSpec((length + signs, width), scale=scale * width**-0.5, table=True),
    }

    def affine(name: str, outputs: int, inputs: int) -> None:
        """A linear map's weight, and its bias if the network has them."""
        specs[f"{name}.weight"] = ParameterSpec((outputs, inputs), "uniform", scale * inputs**-0.5)
        if config.bias:
            specs[f"{name}.bias"] = ParameterSpec((outputs,), "constant", 0.0)

    def norm(name: str) -> None:
        """A layer norm's weight, and its bias if the network has them."""
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


class TransformerNetwork(SpecifiedNetwork):
    """See `Transformer`. Shapes in here: S positions, U tokens in the vocabulary, M rows.

    Two things make it fast and change no result: the last block answers at the last position only, and states that
    depend on one operand alone are computed once per token instead of once per sample (`share`, where U < N). A
    perturbation differs from sample to sample, and so do then all states; it is differentiated three times, for which
    plain attention is faster than looking up.
    """

    def __init__(self, config: Transformer, input_spec: InputSpec, num_classes: int) -> None:
        head = ("embedding", None) if config.tied else ("head.weight", "head.bias" if config.bias else None)
        super().__init__(_specs(config, input_spec, num_classes), head=head)
        self.config = config
        self.share = input_spec.shape[0] == 2
        self._vocabulary = input_spec.vocabulary
        self._places = LookupCache(self._find_places)

    def features(
        self, parameters: dict[str, Tensor], inputs: Tensor, perturbations: Perturbations = UNPERTURBED
    ) -> Tensor:
        """See `Network.features`; d = width, at the last position."""
        shared = self._shares(inputs) and not perturbations
        places = self._grid(inputs) if perturbations else self._places(inputs)
        rows = self._embed_tokens(parameters) if shared else self._embed(parameters, inputs)
        for layer in range(self.config.layers):
            rows = self._block(parameters, layer, rows, places, perturbations)
        return self._norm(parameters, "final_norm", rows, "pre")

    def _shares(self, tokens: Tensor) -> bool:
        return self.share and tokens.shape[1] > self._vocabulary

    def _find_places(self, tokens: Tensor) -> Grid | Gathered:
        layers, heads, positions = self.config.layers, self.config.heads, self.shapes["positions"][0]
        if self._shares(tokens):
            return Gathered.per_token(tokens, self._vocabulary, self.config.start, layers, heads)
        if positions <= SHORT:
            return Gathered.per_sample(tokens, positions, layers, heads)
        return self._grid(tokens)

    def _grid(self, tokens: Tensor) -> Grid:
        return Grid(tokens.shape[1], self.shapes["positions"][0], self.config.heads)

    def _embed_tokens(self, parameters: dict[str, Tensor]) -> Tensor:
        """Start, every token as a, ∘, every token as b, =."""
        table, signs, positions = parameters["embedding"], parameters["signs"], parameters["positions"]
        start, a, plus, b, equals = positions.split([int(self.config.start), 1, 1, 1, 1], 1)
        parts = [table + a, signs[:, :1] + plus, table + b, signs[:, 1:2] + equals]
        return torch.cat([signs[:, 2:] + start, *parts], 1)

    def _embed(self, parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
        """The whole sequence for every sample."""
        table, signs, positions = parameters["embedding"], parameters["signs"], parameters["positions"]
        replicas, samples, length = tokens.shape
        operands = Lookup.of(tokens.reshape(replicas, -1, 1), table.shape[1])(table).unflatten(1, (samples, length))
        signs = signs.unsqueeze(1).expand(-1, samples, -1, -1)
        if length == 2:
            parts = [operands[:, :, :1], signs[:, :, :1], operands[:, :, 1:], signs[:, :, 1:2]]
        else:
            parts = [operands, signs[:, :, :1]]
        x = torch.cat([signs[:, :, -1:], *parts] if self.config.start else parts, 2)
        return (x + positions.unsqueeze(1)).flatten(1, 2)

    def _block(
        self,
        parameters: dict[str, Tensor],
        layer: int,
        rows: Tensor,
        places: Grid | Gathered,
        perturbations: Perturbations,
    ) -> Tensor:
        """One block; the last one returns the last position alone."""
        name, width = f"layers.{layer}", self.config.width
        weight, bias = self._folded(parameters, f"{name}.norm1", f"{name}.qkv")
        to_query, to_keys_values = weight.split([width, 2 * width], 1)
        of_query, of_keys_values = (None, None) if bias is None else bias.split([width, 2 * width], 1)
        x = self._standardised(rows)
        keys_values = linear(x, to_keys_values, of_keys_values)
        last = layer == self.config.layers - 1
        if last:
            rows, query = places.last(rows), linear(places.last(x), to_query, of_query)
        else:
            query = linear(x, to_query, of_query)
            if layer == 0:
                rows, query = places.spread(rows), places.spread(query)
        if (found := perturbations.get(f"{name}.qkv")) is not None:
            change = found(parameters[f"{name}.qkv.weight"], self._entering(parameters, f"{name}.norm1", x))
            of_query, of_keys_values = change.split([width, 2 * width], -1)
            query = query + (places.last(of_query) if last else of_query)
            keys_values = keys_values + of_keys_values
        gathered, out = places.attend(layer, query, keys_values), parameters[f"{name}.out.weight"]
        x = linear(gathered, out, parameters.get(f"{name}.out.bias"), plus=rows)
        x = perturbed(x, f"{name}.out", out, gathered, perturbations)
        x = self._norm(parameters, f"{name}.norm1", x, "post")
        return self._norm(parameters, f"{name}.norm2", self._mlp(parameters, name, x, perturbations), "post")

    def _mlp(self, parameters: dict[str, Tensor], name: str, x: Tensor, perturbations: Perturbations) -> Tensor:
        """A block's MLP on top of what enters it."""
        before, (up, up_bias) = self._standardised(x), self._folded(parameters, f"{name}.norm2", f"{name}.up")
        down, down_bias = parameters[f"{name}.down.weight"], parameters.get(f"{name}.down.bias")
        if self.config.activation == "relu" and up_bias is None and not perturbations:
            return relu_layers(before, up, down, x)
        hidden = linear(before, up, up_bias)
        if f"{name}.up" in perturbations:
            entering = self._entering(parameters, f"{name}.norm2", before)
            hidden = perturbed(hidden, f"{name}.up", parameters[f"{name}.up.weight"], entering, perturbations)
        hidden = F.gelu(hidden) if self.config.activation == "gelu" else hidden.relu_()
        return perturbed(linear(hidden, down, down_bias, plus=x), f"{name}.down", down, hidden, perturbations)

    def _standardised(self, x: Tensor) -> Tensor:
        """Rows of mean 0 and variance 1 before a sub-layer, if the network has norms there, else `x` itself."""
        return F.layer_norm(x, x.shape[-1:]) if self.config.norm == "pre" else x

    def _norm(self, parameters: dict[str, Tensor], name: str, x: Tensor, where: Norm) -> Tensor:
        """Layer norm of rows (R, M, d) if the network has one at this place, else `x` itself."""
        if self.config.norm != where:
            return x
        return self._scaled(parameters, name, F.layer_norm(x, x.shape[-1:]))

    def _entering(self, parameters: dict[str, Tensor], norm: str, standardised: Tensor) -> Tensor:
        """What a sub-layer's first map gets, out of standardised rows."""
        return self._scaled(parameters, norm, standardised) if self.config.norm == "pre" else standardised

    def _scaled(self, parameters: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
        """Standardised rows as a layer norm of this network gives them out."""
        weight = parameters[f"{name}.weight"].unsqueeze(1)
        return torch.addcmul(parameters[f"{name}.bias"].unsqueeze(1), x, weight) if self.config.bias else x * weight

    def _folded(self, parameters: dict[str, Tensor], norm: str, name: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a linear map of standardised rows, the norm's own folded in: fewer passes over rows."""
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        if self.config.norm == "pre":
            if bias is not None:
                bias = bias + (weight @ parameters[f"{norm}.bias"].unsqueeze(-1)).squeeze(-1)
            weight = weight * parameters[f"{norm}.weight"].unsqueeze(1)
        return weight, bias
