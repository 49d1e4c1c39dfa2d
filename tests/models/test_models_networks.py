"""What every network must do: replicas apart from each other, precision, and the same numbers as plain code."""

import pytest
import torch

from grokscape.models import MLP, QuadraticMLP, SmallCNN, Transformer
from grokscape.testbeds import Digits, ModularArithmetic, SparseParity

TOKENS = ModularArithmetic(p=11)
SIGNS = SparseParity(bits=9, train_samples=60, test_samples=60)
CASES = {
    "quadratic vector": (QuadraticMLP(width=16), SIGNS),
    "mlp one-hot": (MLP(widths=(12, 10)), TOKENS),
    "mlp embedding": (MLP(widths=(12,), embedding=5, activation="gelu", bias=False), TOKENS),
    "mlp image": (MLP(widths=(8, 8), init_scale=2.0), Digits(inputs="image")),
    "cnn": (SmallCNN(channels=(3, 5)), Digits(inputs="image")),
    "transformer biased": (Transformer(width=16, bias=True, activation="gelu", layers=3), TOKENS),
    "quadratic": (QuadraticMLP(width=16), TOKENS),
    "transformer": (Transformer(width=16), TOKENS),
    "transformer post": (Transformer(width=16, norm="post", layers=1), TOKENS),
    "transformer tied": (Transformer(width=16, norm="none", tied=True, bias=False), TOKENS),
}


def stacked(network, replicas, dtype=torch.float32, first_seed=0):
    each = [network.init(torch.Generator().manual_seed(first_seed + r), dtype) for r in range(replicas)]
    return {name: torch.stack([one[name] for one in each]).requires_grad_() for name in each[0]}


def batch(task, replicas, samples=30):
    splits = [task.split(seed) for seed in range(replicas)]
    return torch.stack([split.train_inputs[:samples] for split in splits])


def features_and_gradient(network, parameters, inputs):
    features = network.features(parameters, inputs)
    gradient = torch.autograd.grad(network.logits(parameters, inputs).square().sum(), list(parameters.values()))
    return features, dict(zip(parameters, gradient, strict=True))


@pytest.fixture(params=CASES)
def case(request):
    model, task = CASES[request.param]
    return model.build(task.input_spec, task.num_classes), task


def test_shapes_are_those_of_the_parameters_and_the_head(case):
    network, task = case
    parameters = stacked(network, 2)
    assert {name: value.shape[1:] for name, value in parameters.items()} == network.shapes
    assert network.shapes[network.head[0]] == (task.num_classes, network.features_dim)
    assert network.features(parameters, batch(task, 2)).shape == (2, 30, network.features_dim)
    assert network.logits(parameters, batch(task, 2)).shape == (2, 30, task.num_classes)


def test_other_replicas_change_no_bit(case):
    network, task = case
    parameters, inputs = stacked(network, 3), batch(task, 3)
    before = features_and_gradient(network, parameters, inputs)
    with torch.no_grad():
        for value in parameters.values():
            value[0] *= 7.0
            value[2] = torch.nan
    after = features_and_gradient(network, parameters, inputs)
    assert torch.equal(before[0][1], after[0][1])
    assert not torch.equal(before[0][0], after[0][0])
    for name in parameters:
        assert torch.equal(before[1][name][1], after[1][name][1]), name


def test_a_replica_alone_gives_the_same(case):
    network, task = case
    parameters, inputs = stacked(network, 3, torch.float64), batch(task, 3)
    together = features_and_gradient(network, parameters, inputs)
    alone = {name: value[1:2].detach().requires_grad_() for name, value in parameters.items()}
    features, gradient = features_and_gradient(network, alone, inputs[1:2])
    torch.testing.assert_close(features[0], together[0][1], rtol=1e-12, atol=1e-12)
    for name in parameters:
        torch.testing.assert_close(gradient[name][0], together[1][name][1], rtol=1e-12, atol=1e-12)


def test_float32_starts_where_float64_does(case):
    network, _ = case
    single, double = stacked(network, 1), stacked(network, 1, torch.float64)
    for name in single:
        assert torch.equal(single[name], double[name].float()), name


def test_another_seed_starts_elsewhere(case):
    network, _ = case
    one, other = stacked(network, 1), stacked(network, 1, first_seed=1)
    assert not torch.equal(one[network.head[0]], other[network.head[0]])


@pytest.mark.parametrize(
    ("model", "task", "uniform", "normal"),
    [
        (QuadraticMLP(width=108), TOKENS, {}, {"first": 1 / 12, "head": 1 / 12}),  # 0.5/(2·108)^⅓
        (MLP(widths=(50, 40), init_scale=3.0), TOKENS, {"layers.0": 3 / 2**0.5, "layers.1": 3 / 50**0.5,
                                                        "head": 3 / 40**0.5}, {}),
        (MLP(widths=(50,), embedding=8), TOKENS, {"layers.0": 1 / 4, "head": 1 / 50**0.5}, {"embedding": 1.0}),
        (SmallCNN(channels=(16, 9), init_scale=2.0), Digits(inputs="image"),
         {"convolutions.0": 2 / 3, "convolutions.1": 2 / 12, "head": 2 / 3}, {}),
        (Transformer(width=16, layers=1, mlp_ratio=4.0, init_scale=2.0, bias=True), TOKENS,
         {"layers.0.qkv": 0.5, "layers.0.out": 0.5, "layers.0.up": 0.5, "layers.0.down": 0.25, "head": 0.5},
         {"embedding": 0.5, "positions": 0.5}),
    ],
)
def test_weights_start_as_large_as_promised_and_biases_at_zero(model, task, uniform, normal):
    network = model.build(task.input_spec, task.num_classes)
    parameters = network.init(torch.Generator().manual_seed(0), torch.float64)
    values = {name.removesuffix(".weight"): value for name, value in parameters.items()}
    for name, bound in uniform.items():
        assert 0.9 * bound < values[name].abs().max() <= bound, name
        assert values[name].std() == pytest.approx(bound / 3**0.5, rel=0.15), name
    for name, deviation in normal.items():
        assert values[name].std() == pytest.approx(deviation, rel=0.2), name
    assert not any(value.any() for name, value in values.items() if name.endswith("bias"))


def test_no_sample_depends_on_the_others(case):
    network, task = case
    parameters, inputs = stacked(network, 1, torch.float64), batch(task, 1)
    together = network.features(parameters, inputs)
    torch.testing.assert_close(network.features(parameters, inputs[:, 3:8]), together[:, 3:8], rtol=1e-12, atol=1e-12)


def test_gradients_of_gradients_exist_and_are_right(case):
    network, task = case
    parameters, inputs = stacked(network, 2, torch.float64), batch(task, 2, 6)
    generator = torch.Generator().manual_seed(1)
    for value in parameters.values():  # away from the kink of a ReLU at blank pixels and zero biases
        value.data += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    names = list(parameters)

    def loss(*values):
        return network.logits(dict(zip(names, values, strict=True)), inputs).square().mean()

    assert torch.autograd.gradgradcheck(loss, tuple(parameters.values()), atol=1e-5, fast_mode=True)
