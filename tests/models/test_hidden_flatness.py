"""κ of hidden layers by perturbations: unbiased against the whole Hessian, with slopes, in every kind of network."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dense import dense_kappa
from grokscape.models import MLP, QuadraticMLP, SmallCNN, Transformer
from grokscape.models.module_network import ModuleNetwork
from grokscape.perturbations import DifferentiableNorms, Perturbation, curvatures
from grokscape.testbeds.types import InputSpec

TOKENS = InputSpec("tokens", (2,), vocabulary=5)
LONGER = InputSpec("tokens", (3,), vocabulary=5)
VECTOR = InputSpec("vector", (4,))
IMAGE = InputSpec("image", (2, 5, 4))
SMALL = {"layers": 2, "heads": 2, "width": 4, "mlp_ratio": 1.5}


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.mix, self.value, self.head = (
            nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(3, 4, bias=False), nn.Linear(4, 3))

    def forward(self, tokens):
        x = torch.tanh(self.mix(self.table(tokens)))
        weights = (x @ x.mT).softmax(-1)
        return self.head(F.layer_norm((weights @ self.value(x)).mean(1).tanh(), (4,)))


class Strided(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = (
            nn.Conv2d(2, 4, 3, 2, 1, groups=2), nn.InstanceNorm2d(4, affine=True), nn.Linear(4, 3))

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).square().mean((-2, -1)))


CASES = {
    "quadratic": (QuadraticMLP(width=4), TOKENS),
    "quadratic, vectors": (QuadraticMLP(width=4), VECTOR),
    "one-hot": (MLP(widths=(4, 3), activation="gelu"), TOKENS),
    "embedded": (MLP(widths=(4, 3), activation="gelu", embedding=3), TOKENS),
    "vectors": (MLP(widths=(4, 3)), VECTOR),
    "convolutions": (SmallCNN(channels=(3, 4)), IMAGE),
    "a convolution over two places": (SmallCNN(channels=(3,)), InputSpec("image", (2, 1, 2))),
    "transformer": (Transformer(**SMALL, activation="gelu"), TOKENS),
    "transformer, relu and start": (Transformer(**SMALL, start=True), TOKENS),
    "transformer, post-norm and bias": (Transformer(**SMALL, norm="post", bias=True, activation="gelu"), LONGER),
    "transformer, pre-norm and bias": (Transformer(**SMALL, bias=True, activation="gelu"), LONGER),
    "transformer, tied and without norm": (Transformer(**SMALL, norm="none", tied=True), InputSpec("tokens", (2,), 3)),
    "transformer, long": (Transformer(layers=1, heads=1, width=3, mlp_ratio=1), InputSpec("tokens", (9,), 5)),
    "module": (Attending, LONGER),
    "module with a convolution": (Strided, IMAGE),
}


def built(case):
    make, spec = CASES[case]
    network = ModuleNetwork(make, "head", spec, 3) if isinstance(make, type) else make.build(spec, 3)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    rows = [network.init(generator, torch.float64) for generator in generators]
    parameters = {name: torch.stack([row[name] for row in rows]).requires_grad_() for name in rows[0]}
    generator = torch.Generator().manual_seed(3)
    if spec.kind == "tokens":
        inputs = torch.randint(spec.vocabulary, (2, 7, *spec.shape), generator=generator)
    else:
        inputs = torch.randn(2, 7, *spec.shape, generator=generator, dtype=torch.float64)
    return network, parameters, inputs, torch.randint(3, (2, 7), generator=generator)


def loss_of(network, parameters, inputs, labels, perturbations):
    weight, bias = network.head
    with DifferentiableNorms() if perturbations else nullcontext():
        logits = network.features(parameters, inputs, perturbations) @ parameters[weight].mT
    logits = logits if bias is None else logits + parameters[bias].unsqueeze(1)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)


def kappa(network, parameters, inputs, labels, seed, layers=None, differentiable=False):
    generator = torch.Generator().manual_seed(seed)
    perturbations = {
        layer: Perturbation.draw(torch.zeros(2, dtype=torch.float64, requires_grad=True), labels.shape[1],
                                 network.layers[layer], generator)
        for layer in layers or network.layers
    }
    loss = loss_of(network, parameters, inputs, labels, perturbations)
    return curvatures(loss, perturbations, differentiable=differentiable)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_whole_hessian_in_the_mean(case):
    network, parameters, inputs, labels = built(case)
    assert network.layers
    estimates = [kappa(network, parameters, inputs, labels, seed) for seed in range(200)]
    for replica in range(2):
        single = network.single({name: value[replica].detach() for name, value in parameters.items()}, {}).double()
        for layer in network.layers:
            network.check_layer(layer)
            values = torch.stack([estimate[layer][replica] for estimate in estimates])
            table = isinstance(single.get_submodule(layer), nn.Embedding)
            kind = {"transposed": table, "groups": getattr(single.get_submodule(layer), "groups", 1)}
            expected = dense_kappa(single, f"{layer}.weight", inputs[replica], labels[replica], **kind)
            apart, error = abs(values.mean() - expected), values.std() / len(values) ** 0.5
            assert apart <= 4 * error + 1e-9 * abs(expected), (layer, values.mean(), expected, error)


def is_table(case, layer):
    return layer == "first" or (case, layer) == ("one-hot", "layers.0")


@pytest.mark.parametrize(("case", "layer"), [(case, layer) for case in CASES for layer in built(case)[0].layers])
def test_equals_a_change_of_the_weight_for_one_sample(case, layer):
    """V = (W r₁) r₂ᵀ; where the sample has one position, added up over unit vectors in the place of r₂."""
    network, parameters, inputs, labels = built(case)
    inputs, labels, weight = inputs[:, :1], labels[:, :1], parameters[f"{layer}.weight"]
    groups = 2 if case == "module with a convolution" else 1
    matrix = (weight.mT if is_table(case, layer) else weight.flatten(2)).unflatten(1, (groups, -1)).detach()
    size = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    found = Perturbation.draw(size, 1, network.layers[layer], torch.Generator().manual_seed(5))
    value = curvatures(loss_of(network, parameters, inputs, labels, {layer: found}), {layer: found})[layer]

    def along(rows):
        change = torch.einsum("rgoi,gi->rgo", matrix, found.columns.view(groups, -1)).unsqueeze(-1) * rows
        change = change.flatten(1, 2)
        change = change.mT if is_table(case, layer) else change.reshape(weight.shape)
        step = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        moved = {**parameters, f"{layer}.weight": weight + step.view(2, *[1] * (weight.dim() - 1)) * change}
        (slope,) = torch.autograd.grad(loss_of(network, moved, inputs, labels, {}).sum(), step, create_graph=True)
        return torch.autograd.grad(slope.sum(), step)[0]

    by_signs = along(found.rows.view(groups, 1, -1))
    by_units = sum(along(unit) for unit in torch.eye(matrix.shape[-1], dtype=torch.float64))
    assert torch.allclose(value, by_signs, rtol=1e-9) or (groups == 1 and torch.allclose(value, by_units, rtol=1e-9))
    assert value.any()


@pytest.mark.parametrize("case", CASES)
def test_zero_perturbations_change_nothing_but_rounding(case):
    network, parameters, inputs, labels = built(case)
    bare = loss_of(network, parameters, inputs, labels, {})
    generator = torch.Generator().manual_seed(0)
    perturbations = {layer: Perturbation.draw(torch.zeros(2, dtype=torch.float64), 7, width, generator)
                     for layer, width in network.layers.items()}
    torch.testing.assert_close(loss_of(network, parameters, inputs, labels, perturbations), bare, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("case", "layer"), [(case, layer) for case in CASES for layer in built(case)[0].layers])
def test_slope(case, layer):
    """The gradient of κ, a third derivative, against differences along a random direction."""
    network, parameters, inputs, labels = built(case)
    generator = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(each.shape, generator=generator, dtype=torch.float64)
                 for name, each in parameters.items()}

    def at(step, **more):
        moved = {name: each + step * direction[name] for name, each in parameters.items()}
        return kappa(network, moved, inputs, labels, 0, [layer], **more)[layer].sum()

    value = at(0, differentiable=True)
    slopes = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    along = sum((slope * way).sum() for slope, way in zip(slopes, direction.values()) if slope is not None)
    torch.testing.assert_close(along, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-4, atol=1e-6)
