"""Slopes by hand: of any order, of any one input, late in training, beside measures that share quantities."""

import pytest
import torch

from grokscape.measures import MEASURES, Snapshot, evaluate
from grokscape.measures.flatness import row_variance
from grokscape.measures.snapshot import Quantities
from grokscape.measures.softmax import Softmax
from grokscape.measures.statistics import ClassStatistics
from grokscape.penalties import Gate


def drawn(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def slow(logits, weight):
    """tr Cov of the rows, as its definition has it."""
    p = logits.softmax(-1)
    mean = p @ weight
    return (p[..., None] * (weight[..., None, :, :] - mean[..., :, None, :]).square()).sum((-2, -1))


def fast(logits, weight):
    return row_variance(Softmax.of(logits), weight)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_row_variance(lead):
    logits, weight = drawn((*lead, 4, 3), (*lead, 3, 5))
    torch.testing.assert_close(fast(logits, weight), slow(logits, weight))
    inputs = logits.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(fast, inputs)
    assert torch.autograd.gradgradcheck(fast, inputs)


def test_one_weight_for_all_replicas():
    logits, weight = drawn((2, 4, 3), (3, 5))
    torch.testing.assert_close(fast(logits, weight), slow(logits, weight.expand(2, -1, -1)))
    assert torch.autograd.gradcheck(fast, (logits.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("which", [0, 1])
def test_the_slope_in_one_input_alone(which):
    inputs = drawn((4, 3), (3, 5))
    inputs[which].requires_grad_()
    for create_graph in (False, True):
        (found,) = torch.autograd.grad(fast(*inputs).sum(), inputs[which], create_graph=create_graph)
        (expected,) = torch.autograd.grad(slow(*inputs).sum(), inputs[which])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("create_graph", [False, True])
def test_slopes_where_the_logits_are_made_of_the_weight(create_graph):
    features, weight = (x.requires_grad_() for x in drawn((4, 5), (3, 5)))

    def slopes(function):
        """The slopes, and with a graph what they give when differentiated once more."""
        value = function(features @ weight.mT, weight).sum()
        first = torch.autograd.grad(value, (features, weight), create_graph=create_graph)
        further = sum(slope.square().sum() for slope in first)
        return first + (torch.autograd.grad(further, (features, weight)) if create_graph else ())

    for found, expected in zip(slopes(fast), slopes(slow), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
def test_slopes_keep_their_digits_where_the_softmax_is_nearly_one_hot(scale):
    logits, weight = drawn((6, 5), (5, 7))
    logits = scale * logits
    logits[:, 2] += scale
    exact = [x.clone().requires_grad_() for x in (logits, weight)]
    single = [x.float().requires_grad_() for x in (logits, weight)]
    exact[0].data.copy_(single[0].double())
    exact[1].data.copy_(single[1].double())
    expected = torch.autograd.grad(slow(*exact).log().sum(), exact)
    found = torch.autograd.grad(fast(*single).log().sum(), single)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.double() - theirs).norm() < 2e-5 * theirs.norm()


@pytest.mark.parametrize("name", ["loss", "relative_flatness_per_loss", "head_sharpness"])
@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
def test_slopes_of_what_the_loss_is_part_of_keep_their_digits(name, scale):
    logits, features, weight = drawn((8, 4), (8, 6), (4, 6))
    labels = logits.argmax(-1)
    logits = logits + scale * torch.eye(4, dtype=torch.float64)[labels]
    logits, features, weight = (x.float() for x in (logits, features, weight))

    def slopes(dtype):
        inputs = [x.to(dtype).requires_grad_() for x in (logits, features, weight)]
        value = MEASURES[name](Snapshot(inputs[1], inputs[0], labels, inputs[2]))
        return [x.double() for x in torch.autograd.grad(value, inputs, allow_unused=True) if x is not None]

    for ours, theirs in zip(slopes(torch.float32), slopes(torch.float64), strict=True):
        assert (ours - theirs).norm() < 2e-5 * theirs.norm()


@pytest.mark.parametrize("first", ["relative_flatness", "relative_flatness_bound", "loss"])
def test_what_measures_share_keeps_its_slopes_whoever_asks_first(first):
    features, weight = (x.requires_grad_() for x in drawn((12, 4), (3, 4)))
    labels = torch.arange(12) % 3

    def slopes(*names):
        quantities = Quantities(Snapshot(features, features @ weight.mT, labels, weight))
        values = {name: MEASURES[name].of(quantities) for name in names}
        return torch.autograd.grad(values["relative_flatness_looseness"], (features, weight))

    beside, alone = slopes(first, "relative_flatness_looseness"), slopes("relative_flatness_looseness")
    for ours, theirs in zip(beside, alone, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["cdnv", "nc1", "nc1_ratio", "rnc1", "within_variance"])
def test_collapse_with_classes_that_are_absent_or_have_one_sample(name):
    (features,) = drawn((2, 9, 6))
    labels = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 3], [0, 1, 1, 1, 0, 4, 4, 4, 4]])

    def function(features):
        return MEASURES[name](Snapshot(features, features[..., :5], labels, features[:, :5]))

    assert torch.autograd.gradcheck(function, features.requires_grad_())
    assert torch.autograd.gradgradcheck(function, features)


def test_shared_quantities_are_computed_once_and_change_no_value(monkeypatch):
    train, test = (
        Snapshot(features, features @ weight.mT, torch.arange(12) % 3, weight)
        for features, weight in (drawn((12, 4), (3, 4), seed=seed) for seed in (0, 1))
    )
    around = [name for name, measure in MEASURES.items() if measure.around]
    names = [name for name, measure in MEASURES.items() if "parameters" not in measure.inputs]
    alone = evaluate(train, names), evaluate(test, names), evaluate(test, around, around=train)

    calls = []
    compute = ClassStatistics.of
    monkeypatch.setattr(ClassStatistics, "of", lambda *a, **k: calls.append(1) or compute(*a, **k))
    first, second = Quantities(train), Quantities(test)
    together = evaluate(first, names), evaluate(second, names), evaluate(second, around, around=first)
    assert len(calls) == 3
    for one, other in zip(alone, together, strict=True):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=0, equal_nan=True)


def test_what_all_rows_share_costs_no_digits():
    logits, weight = (x.float() for x in drawn((6, 5), (5, 7)))

    def slope(weight):
        weight = weight.clone().requires_grad_()
        return torch.autograd.grad(fast(logits.to(weight.dtype), weight).sum(), weight)[0]

    far = weight + 1000.0
    exact = slope((far - 1000.0).double())
    assert (slope(far).double() - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if measure.around])
def test_slopes_around_other_means_reach_both_sets_of_samples(name):
    train, test = drawn((10, 4), (7, 4))
    weight, labels = torch.eye(4, dtype=torch.float64)[:3], torch.arange(10) % 3

    def function(train, test):
        snapshots = (Snapshot(x, x @ weight.mT, labels[: len(x)], weight) for x in (train, test))
        first, second = (Quantities(snapshot) for snapshot in snapshots)
        return evaluate(second, [name], around=first)[name]

    if MEASURES[name].differentiable:
        assert torch.autograd.gradcheck(function, (train.requires_grad_(), test.requires_grad_()))


def test_an_absent_class_needs_no_eigenvalues(monkeypatch):
    monkeypatch.setattr(torch.linalg, "pinv", None)
    (features,) = drawn((9, 6))
    snapshot = Snapshot(features, features[:, :5], torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3]), features[:5])
    assert MEASURES["nc1"](snapshot) > 0


@pytest.mark.parametrize("acts", [[False, True], [True, True], [False, False]])
def test_a_gate_lets_through_what_acts_and_nothing_else(acts):
    features = torch.zeros(2, 3, 2, dtype=torch.float64, requires_grad=True)
    gate = Gate(Snapshot(features, features, torch.zeros(2, 3, dtype=torch.int64), torch.eye(2)))
    penalty = gate.snapshot.features.sum((1, 2)).sqrt()  # its slope at zero is infinite
    acts = torch.tensor(acts)
    gate(penalty, acts).sum().backward()
    assert torch.equal(features.grad[:, 0, 0], torch.where(acts, torch.inf, 0.0).double())
    assert gate.rests == (not acts.any())
