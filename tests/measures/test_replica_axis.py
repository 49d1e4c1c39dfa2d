"""A leading replica axis: every replica's value and gradient are its own."""

import pytest
import torch

from grokscape.measures import MEASURES, Snapshot, evaluate

REPLICAS, SAMPLES, WIDTH, CLASSES = 3, 60, 12, 7


def snapshot(seed: int, replicas: int = REPLICAS) -> Snapshot:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(replicas, SAMPLES, WIDTH, generator=generator)
    weight = torch.randn(replicas, CLASSES, WIDTH, generator=generator)
    bias = torch.randn(replicas, CLASSES, generator=generator)
    labels = torch.stack([torch.arange(SAMPLES) % CLASSES for _ in range(replicas)])
    return Snapshot(features, features @ weight.mT + bias[:, None], labels, weight, bias, {"w": weight, "b": bias})


def replica(whole: Snapshot, index: int) -> Snapshot:
    parameters = {name: value[index] for name, value in whole.parameters.items()}
    fields = (whole.features, whole.logits, whole.labels, whole.weight, whole.bias)
    return Snapshot(*(field[index] for field in fields), parameters)


def disturbed(whole: Snapshot) -> Snapshot:
    """The same replica 0, everything else replaced, by NaN too."""
    other = snapshot(1)

    def mix(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        mixed = torch.cat([mine[:1], theirs[1:]])
        if mixed.is_floating_point():
            mixed[2] = float("nan")
        return mixed

    fields = zip(
        (whole.features, whole.logits, whole.labels, whole.weight, whole.bias),
        (other.features, other.logits, other.labels, other.weight, other.bias), strict=True,
    )
    parameters = {name: mix(value, other.parameters[name]) for name, value in whole.parameters.items()}
    return Snapshot(*(mix(mine, theirs) for mine, theirs in fields), parameters)


@pytest.mark.parametrize("name", MEASURES)
def test_each_replica_alone_gives_its_value(name):
    whole = snapshot(0)
    values = MEASURES[name](whole)
    assert values.shape == (REPLICAS,)
    for index in range(REPLICAS):
        torch.testing.assert_close(values[index], MEASURES[name](replica(whole, index)), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_other_replicas_change_no_bit(name):
    first, second = snapshot(0), disturbed(snapshot(0))
    assert torch.equal(MEASURES[name](first)[0], MEASURES[name](second)[0])


@pytest.mark.parametrize("name", [name for name, row in MEASURES.items() if row.differentiable])
def test_other_replicas_change_no_bit_of_the_gradient(name):
    gradients = []
    for whole in (snapshot(0), disturbed(snapshot(0))):
        leaf = whole.features.requires_grad_() if name not in ("head_norm", "weight_norm") else None
        weight = whole.weight.requires_grad_()
        logits = whole.features @ weight.mT + whole.bias[:, None]
        value = MEASURES[name](Snapshot(whole.features, logits, whole.labels, weight, whole.bias, {"w": weight}))
        wanted = [weight] if leaf is None else [leaf, weight]
        gradients.append(torch.autograd.grad(value[0], wanted, allow_unused=True))
    for one, other in zip(*gradients, strict=True):
        assert (one is None and other is None) or torch.equal(one[0], other[0])


def test_many_at_once_equal_one_by_one():
    whole = snapshot(0)
    for name, value in evaluate(whole, MEASURES).items():
        assert torch.equal(value, MEASURES[name](whole)), name
