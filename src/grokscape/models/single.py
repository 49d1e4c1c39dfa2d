"""One replica of a network as a PyTorch module: for whatever works on modules, such as layer-wise flatness."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from grokscape.models.network import SpecifiedNetwork


class SingleNetwork(nn.Module):
    """Inputs (N, *input_shape) → logits (N, K), with the parameters of one replica.

    The network's own function computes the features; then the head, a linear layer, is called. Every other weight lies
    in a layer of the kind that it belongs to, under its own name: linear maps in `nn.Linear`, convolutions in
    `nn.Conv2d`, tables whose rows are looked up in `nn.Embedding`. These hold weights and are not called, so that hooks
    on them do not run. `torch.autograd` goes through it to any order; `torch.func` does not.

    Args:
        network: what computes the features.
        parameters: name → value of one replica; copied.
    """

    def __init__(self, network: "SpecifiedNetwork", parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self._network = network
        values = {name: nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
        self._places: dict[str, tuple[nn.Module, str]] = {}
        for name, value in values.items():
            path, _, attribute = name.rpartition(".") if "." in name else (name, "", "weight")
            layer = self._layer(path, value, network.specs[name].table)
            setattr(layer, attribute, value)
            self._places[name] = layer, attribute
        weight = values[network.head[0]]
        if network.head[0] != "head.weight":
            self.head = _linear(weight)
            self.head.weight = weight

    def _layer(self, path: str, value: Tensor, table: bool) -> nn.Module:
        """The layer of that name, made for the first of its parameters."""
        *above, last = path.split(".")
        parent: nn.Module = self
        for part in above:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        if not hasattr(parent, last):
            parent.add_module(last, _empty(value, table))
        return parent.get_submodule(last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, K)."""
        parameters = {name: getattr(layer, attribute)[None] for name, (layer, attribute) in self._places.items()}
        return self.head(self._network.features(parameters, inputs[None])[0])


def _linear(weight: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    return nn.Linear(inputs, outputs, bias=False, device="meta")


def _empty(value: Tensor, table: bool) -> nn.Module:
    """A layer of the kind that a weight belongs to, without numbers in it."""
    if table:
        rows, width = value.shape
        return nn.Embedding(rows, width, device="meta")
    if value.dim() == 2:
        return _linear(value)
    if value.dim() == 4:
        outputs, inputs, height, width = value.shape
        return nn.Conv2d(inputs, outputs, (height, width), padding="same", bias=False, device="meta")
    return nn.Module()
