"""Linear maps of replicas: derivatives by hand against numerical ones, to the second order."""

import pytest
import torch

from grokscape.models.linear import linear, relu_layers

R, M, I, H, O = 2, 5, 3, 4, 2


def drawn(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("extra", [(), ("bias",), ("plus",), ("bias", "plus")])
def test_linear(extra):
    shapes = {"bias": (R, O), "plus": (R, M, O)}
    inputs, weight, *others = drawn((R, M, I), (R, O, I), *(shapes[name] for name in extra))

    def function(inputs, weight, *others):
        return linear(inputs, weight, **dict(zip(extra, others, strict=True)))

    given = dict(zip(extra, others, strict=True))
    for r in range(R):
        expected = inputs[r] @ weight[r].T + given.get("bias", torch.zeros(R, O))[r]
        expected = expected + given.get("plus", torch.zeros(R, M, O))[r]
        torch.testing.assert_close(function(inputs, weight, *others)[r], expected)
    assert torch.autograd.gradcheck(function, (inputs, weight, *others))
    assert torch.autograd.gradgradcheck(function, (inputs, weight, *others))


def test_linear_over_positions():
    inputs, weight, plus = drawn((R, 3, M, I), (R, O, I), (R, 3, M, O))
    expected = torch.einsum("rpmi,roi->rpmo", inputs, weight) + plus
    torch.testing.assert_close(linear(inputs, weight, plus=plus), expected)


def test_relu_layers():
    inputs, up, down, plus = drawn((R, M, I), (R, H, I), (R, O, H), (R, M, O))
    for r in range(R):
        expected = (inputs[r] @ up[r].T).relu() @ down[r].T + plus[r]
        torch.testing.assert_close(relu_layers(inputs, up, down, plus)[r], expected)
    assert torch.autograd.gradcheck(relu_layers, (inputs, up, down, plus))
    assert torch.autograd.gradgradcheck(relu_layers, (inputs, up, down, plus))


def test_the_gradient_by_hand_is_the_one_with_a_graph():
    inputs = drawn((R, M, I), (R, H, I), (R, O, H), (R, M, O))
    result = relu_layers(*inputs)
    weight = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view_as(result)
    with_graph = torch.autograd.grad((result * weight).sum(), inputs, create_graph=True)
    without = torch.autograd.grad((result * weight).sum(), inputs)
    for one, other in zip(with_graph, without, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_weights_lie_as_the_weights_do():
    inputs, weight = drawn((R, M, I), (R, O, I))
    (of_weight,) = torch.autograd.grad(linear(inputs, weight).sum(), weight)
    assert of_weight.stride() == weight.stride()


def test_gradients_that_nobody_asks_for_are_not_computed():
    inputs, weight = drawn((R, M, I), (R, O, I))
    with torch.profiler.profile() as seen:
        linear(inputs.detach(), weight).sum().backward()
    assert sum(event.name == "aten::bmm" for event in seen.events()) == 2  # forward, and the weight's gradient


def test_low_precision_where_it_is_on():
    all_of_them = drawn((R, M, I), (R, H, I), (R, O, H), (R, M, O))
    inputs, up, down, plus = (x.float().detach().requires_grad_() for x in all_of_them)
    exact = relu_layers(inputs, up, down, plus)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = relu_layers(inputs, up, down, plus)
        assert linear(inputs, up).dtype == torch.bfloat16
    assert 0 < (rounded - exact).norm() < 0.05 * exact.norm()
    torch.autograd.grad(rounded.sum(), (inputs, up, down, plus))


def test_low_precision_does_not_round_what_is_added_to():
    inputs, up, down, plus = (x.float().detach() for x in drawn((R, M, I), (R, H, I), (R, O, H), (R, M, O)))
    bias = torch.full((R, O), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relu_layers(torch.zeros_like(inputs), up, down, plus), plus)
        hidden = torch.zeros_like(linear(inputs, up))
        assert torch.equal(linear(hidden, down, bias, plus), plus + 0.5)
        assert torch.equal(linear(hidden[:, None], down, bias, plus[:, None]), plus[:, None] + 0.5)


def test_transformations_of_functions_pass_through():
    inputs, weight = (x.detach() for x in drawn((3, R, M, I), (3, R, O, I)))
    batched = torch.func.vmap(linear)(inputs, weight)
    torch.testing.assert_close(batched, torch.stack([linear(x, w) for x, w in zip(inputs, weight, strict=True)]))
    grad = torch.func.grad(lambda w: linear(inputs[0], w).square().sum())(weight[0])
    torch.testing.assert_close(grad, 2 * linear(inputs[0], weight[0]).mT @ inputs[0])
