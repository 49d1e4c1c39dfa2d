"""An arm in a plain loop: what is on before the unplugging, and what is off after it."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokscape as gs
from grokscape.integrations import Applied


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


ARM = [
    gs.Suppress("relative_flatness_bound", strength=0.5, temperature=2.0),
    gs.NormalizeFeatures(),
    gs.WeightCap(0.5),
    gs.Unplug(2, lr=0.3, weight_decay=0.1),
]


def test_an_arm_step_by_step(bound):
    net, twin = model(), model()
    x, y = torch.randn(12, 4), torch.arange(12) % 3
    mine, hand = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (net, twin))
    with Applied(net, ARM) as arm:
        for step in range(4):
            arm.before_forward(step)
            loss = F.cross_entropy(net(x), y)
            mine.zero_grad()
            (loss + arm.penalty(y, step)).backward()
            arm.before_step(mine, step)
            mine.step()
            arm.after_step(step)

            features, plugged = torch.tanh(twin[0](x)), step < 2
            features = features / features.norm(dim=1, keepdim=True) if plugged else features
            logits = twin[2](features)
            loss = F.cross_entropy(logits, y)
            loss = loss - 0.5 * bound(features, twin[2].weight, logits, 2.0) if plugged else loss
            hand.zero_grad()
            loss.backward()
            if not plugged:
                hand.param_groups[0].update(lr=0.3, weight_decay=0.1)
            hand.step()
            assert twin[2].weight.norm() > 0.5  # the cap has something to do, unplugged or not
            with torch.no_grad():
                twin[2].weight.mul_(0.5 / float(twin[2].weight.norm()))
            for one, two in zip(net.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert not net[2]._forward_pre_hooks


def test_groups_without_decay_stay_without():
    net = model()
    groups = [{"params": net[0].parameters(), "weight_decay": 0.01}, {"params": net[2].parameters(), "weight_decay": 0}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    Applied(net, [gs.Unplug(1, weight_decay=0.5)]).before_step(optimizer, 1)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0]


def test_cosine_needs_a_length():
    with pytest.raises(ValueError, match="pass steps="):
        Applied(model(), [gs.Unplug(1, cosine=True)])


class Updated(torch.nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.update = torch.nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, features):
        return super().forward(features) + features @ self.update.T


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [
    lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 3)),
    lambda: torch.nn.utils.weight_norm(torch.nn.Linear(4, 3)),
    lambda: Updated(4, 3),
])
def test_a_cap_needs_a_weight_that_it_can_change(make):
    with pytest.raises(ValueError, match=r"WeightCap needs a torch\.nn\.Linear with a weight of its own as head"):
        Applied(torch.nn.Sequential(make()), [gs.WeightCap(1)])


def test_features_have_one_radius_at_a_time():
    net, x = model(), torch.randn(5, 4)
    with Applied(net, [gs.NormalizeFeatures(1.0, until=2), gs.NormalizeFeatures(3.0, start=2)]) as arm:
        for step, radius in ((1, 1.0), (2, 3.0)):
            arm.before_forward(step)
            features = torch.tanh(net[0](x))
            expected = radius * features / features.norm(dim=1, keepdim=True)
            torch.testing.assert_close(net(x), expected @ net[2].weight.T + net[2].bias)
            torch.testing.assert_close(arm.probe.features, expected)
    both = Applied(model(), [gs.NormalizeFeatures(1.0), gs.NormalizeFeatures(3.0, start=2)])
    with both as arm, pytest.raises(ValueError, match=r"one radius at a time, got .* at step 2; leave one out"):
        arm.before_forward(2)


@pytest.mark.filterwarnings("ignore:.*the clamp rests")  # where an estimate of a hidden layer's κ is negative
@pytest.mark.parametrize("measure", ["cdnv", "relative_flatness", "relative_flatness@0"])
def test_nothing_of_a_step_waits_for_the_garbage_collector(measure):
    net, x, y, counts = model(), torch.randn(12, 4), torch.arange(12) % 3, []
    gc.collect()
    gc.disable()
    try:
        with Applied(net, [gs.Clamp(measure, at_least=1e3)]) as arm:
            for step in range(6):
                (F.cross_entropy(net(x), y) + arm.penalty(y, step)).backward()
                arm.measures(y, ["cdnv", measure])
                counts.append(sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects()))
    finally:
        gc.enable()
    assert counts[-1] == counts[1]


def test_a_held_hidden_layer_is_measured_after_the_backward_pass():
    net, x, y = model(), torch.randn(12, 4), torch.arange(12) % 3
    with Applied(net, [gs.Suppress("relative_flatness@0", strength=1.0, start=1)]) as arm:
        for step in range(2):
            loss = F.cross_entropy(net(x), y)
            penalty = arm.penalty(y, step)
            (loss + penalty).backward()
            assert arm.measures(y, ["cdnv"])["cdnv"] > 0
    assert penalty != 0


def test_a_held_hidden_layer_is_measured_as_it_was_held():
    net, x, y = model(), torch.randn(12, 4), torch.arange(12) % 3
    with Applied(net, [gs.Suppress("relative_flatness@0", strength=1.0)]) as arm:
        net(x)
        penalty = arm.penalty(y, 0)
        penalty.backward()
        assert arm.measures(y, ["relative_flatness@0"])["relative_flatness@0"] == -float(penalty.detach())
        other = y.roll(1)
        net(x)
        assert arm.penalty(other, 0) != penalty
