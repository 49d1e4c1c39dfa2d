"""Our batched optimisers against torch.optim, one plain model per replica, in float64."""

import math

import pytest
import torch

from grokscape.interventions import Promote, Unplug
from grokscape.measures import Snapshot
from grokscape.training import SGD, AdamW, optimisers
from grokscape.training.levers import Levers
from grokscape.training.optimisers import Layout, Rates, orthogonal_gradient, sam_gradient

SHAPES = {"a": (3, 2), "b": (4,)}
LAYOUT = Layout(SHAPES)
STEPS = 200
RATES = [(1e-2, 0.0), (3e-3, 1.0), (5e-2, 0.1)]


def loss_of(row: torch.Tensor, step: int) -> torch.Tensor:
    """A lopsided, step-dependent function of one replica's parameters."""
    a, b = row[:6].reshape(3, 2), row[6:]
    return (a @ a.T).cos().sum() + (b**2).log1p().sum() + (b.sum() - 0.01 * step).sin() + a.sin().prod()


def ours(optimizers, start):
    flat = start.clone()
    slots = {name: torch.zeros_like(flat) for name in optimizers[0].slots}
    rates = Rates(optimizers, [None] * len(optimizers), STEPS, flat)
    for step in range(STEPS):
        leaf = flat.clone().requires_grad_()
        (grad,) = torch.autograd.grad(sum(loss_of(row, step) for row in leaf), leaf)
        lr, wd = rates.at(step)
        optimizers[0].update_(flat, grad, slots, lr, wd, step + 1)
    return flat


def theirs(make, start):
    rows = []
    for row, (lr, wd) in zip(start, RATES, strict=True):
        parameter = torch.nn.Parameter(row.clone())
        optimizer = make(parameter, lr, wd)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_of(parameter, step).backward()
            optimizer.step()
        rows.append(parameter.detach())
    return torch.stack(rows)


CASES = {
    "adamw": (
        lambda lr, wd: AdamW(lr=lr, weight_decay=wd, betas=(0.9, 0.98)),
        lambda p, lr, wd: torch.optim.AdamW([p], lr=lr, weight_decay=wd, betas=(0.9, 0.98)),
    ),
    "sgd": (
        lambda lr, wd: SGD(lr=lr, weight_decay=wd, momentum=0.0),
        lambda p, lr, wd: torch.optim.SGD([p], lr, 0.0, weight_decay=wd),
    ),
    "momentum": (
        lambda lr, wd: SGD(lr=lr, weight_decay=wd),
        lambda p, lr, wd: torch.optim.SGD([p], lr, 0.9, weight_decay=wd),
    ),
    "nesterov": (
        lambda lr, wd: SGD(lr=lr, weight_decay=wd, nesterov=True),
        lambda p, lr, wd: torch.optim.SGD([p], lr, 0.9, weight_decay=wd, nesterov=True),
    ),
}


@pytest.mark.parametrize("long", [2**15, 1])
@pytest.mark.parametrize("name", CASES)
def test_per_replica_rates_equal_torch_optim(name, long, monkeypatch):
    monkeypatch.setattr(optimisers, "_LONG", long)
    make_ours, make_theirs = CASES[name]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(RATES), sum(LAYOUT.sizes), dtype=torch.float64, generator=generator) / 2
    expected = theirs(make_theirs, start)
    assert (expected - start).abs().min(1).values.max() > 1e-4, "the test must move the parameters"
    torch.testing.assert_close(ours([make_ours(lr, wd) for lr, wd in RATES], start), expected, rtol=1e-9, atol=1e-10)


def test_orthogonal_gradient_is_orthogonal_per_parameter_and_keeps_its_length():
    generator = torch.Generator().manual_seed(1)
    flat, grad = (torch.randn(2, sum(LAYOUT.sizes), dtype=torch.float64, generator=generator) for _ in range(2))
    result = orthogonal_gradient(flat, grad, LAYOUT)
    for start, stop in ((0, 6), (6, 10)):
        weight, before, after = (x[:, start:stop] for x in (flat, grad, result))
        assert ((weight * after).sum(1).abs() < 1e-12).all()
        torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1))


def test_orthogonal_gradient_of_zero_weights_is_the_gradient():
    grad = torch.randn(1, sum(LAYOUT.sizes), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(orthogonal_gradient(torch.zeros_like(grad), grad, LAYOUT), grad)


def test_sam_takes_the_gradient_at_the_edge_of_its_ball():
    flat = torch.tensor([[3.0, 4.0], [1.0, 0.0]])

    def gradient_at(x):
        return 2 * x  # of ‖x‖²

    result = sam_gradient(flat, gradient_at(flat), torch.tensor([[0.5], [0.0]]), gradient_at)
    torch.testing.assert_close(result, torch.tensor([[2 * 3.3, 2 * 4.4], [2.0, 0.0]]))


def test_the_orthogonal_gradient_of_a_single_number_is_zero_and_no_rounding_error():
    generator = torch.Generator().manual_seed(0)
    flat, grad = (torch.randn(50, 3, generator=generator) for _ in range(2))
    result = orthogonal_gradient(flat, grad, Layout({"one": (1,), "two": (2,)}))
    assert not result[:, 0].any()
    assert result[:, 1:].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_orthogonal_gradient_of_two_opposite_numbers_is_zero_too(dtype):
    flat = torch.tensor([[0.003, -0.003], [0.003, -0.003]], dtype=dtype)
    rounding = 100 * torch.finfo(dtype).eps
    grad = torch.tensor([[0.7, -0.7 * (1 + rounding)], [0.7, -0.69]], dtype=dtype)
    result = orthogonal_gradient(flat, grad, Layout({"head.bias": (2,)}))
    assert not result[0].any()
    torch.testing.assert_close(result[1].norm(), grad[1].norm())


def test_rates_warm_up_fall_along_a_cosine_and_jump_when_unplugged():
    optimizers = [
        AdamW(lr=0.1, weight_decay=1.0, warmup=10),
        AdamW(lr=0.1, weight_decay=1.0, schedule="cosine"),
        AdamW(lr=0.1, weight_decay=1.0),
    ]
    rates = Rates(optimizers, [None, None, Unplug(50, lr=0.4, cosine=True, weight_decay=0.2)], 100, torch.zeros(1))
    assert rates.at(0)[0][0].item() == pytest.approx(0.01)
    assert rates.at(20)[0][0].item() == pytest.approx(0.1)
    assert rates.at(25)[0][1].item() == pytest.approx(0.05 * (1 + math.cos(math.pi / 4)))
    assert [rates.at(step)[0][2].item() for step in (49, 50, 75)] == pytest.approx([0.1, 0.4, 0.2])
    assert [rates.at(step)[1][2].item() for step in (49, 50)] == pytest.approx([1.0, 0.2])


def test_unplugging_that_names_no_rate_keeps_rate_and_schedule():
    optimizers = [AdamW(lr=0.1, schedule="cosine"), AdamW(lr=0.1, warmup=80), AdamW(lr=0.1, schedule="cosine")]
    unplugs = [Unplug(50, weight_decay=0.2), Unplug(50), Unplug(50, cosine=True)]
    plain, unplugged = (Rates(optimizers, them, 100, torch.zeros(1)) for them in ([None] * 3, unplugs))
    for step in (49, 50, 75, 99):
        assert torch.equal(unplugged.at(step)[0][:2], plain.at(step)[0][:2])
    assert [unplugged.at(step)[0][2].item() for step in (50, 75)] == pytest.approx([0.05, 0.025])
    assert unplugged.at(50)[1][:, 0].tolist() == pytest.approx([0.2, 1.0, 1.0])


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        AdamW(lr=0)
    with pytest.raises(ValueError, match="Extra inputs"):
        SGD(lr=0.1, decay=1)
    with pytest.raises(ValueError, match="nesterov=True needs a momentum above 0, got momentum=0"):
        SGD(lr=0.1, momentum=0, nesterov=True)


def test_steps_are_whole_however_late():
    late = 2**24 + 1  # from here on float32 has no odd numbers
    arms = [(Promote("loss", strength=1.0, until=late),), (Promote("loss", strength=1.0, start=late),)]
    (block,) = Levers(arms, torch.zeros(1), most=2).blocks
    labels = torch.zeros(2, 4, dtype=torch.int64)
    snapshot = Snapshot(torch.ones(2, 4, 2), torch.ones(2, 4, 2), labels, torch.ones(2, 2, 2))
    acting = [(block.penalties[0](snapshot, step, None) != 0).tolist() for step in (late - 1, late)]
    assert acting == [[True, False], [False, True]]
    rates = Rates([AdamW(lr=1.0)], [Unplug(late, lr=0.5)], 2 * late, torch.zeros(1))
    assert [rates.at(step)[0].item() for step in (late - 1, late)] == [1.0, 0.5]
