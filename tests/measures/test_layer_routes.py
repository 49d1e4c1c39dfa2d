"""Which route layer flatness takes: the short one only where samples and layers are apart from each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dense import dense_kappa
from grokscape.measures import layer_flatness


class Graph(nn.Module):  # its nodes are the samples
    def __init__(self):
        super().__init__()
        self.links = torch.rand(8, 8).double()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.links @ self.second(torch.tanh(self.links @ self.first(x)))


class Pairs(nn.Module):  # two views of each input, one after the other
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.second(hidden + hidden.roll(len(x) // 2, 0).square())


class Across(nn.Module):  # sequences go along the first axis, and there are as many as positions
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x.unflatten(1, (2, 2)).repeat(1, 4, 2))
        return self.second(F.scaled_dot_product_attention(*3 * [x.transpose(0, 1)]).mean(1))


def normed(convolution, norm):
    return nn.Sequential(convolution, norm(4, track_running_stats=False), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


def windows():  # a layer that acts on two windows of each sample, where the other half of the samples sees them
    return nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 3), Crossed(), nn.Flatten(), nn.Linear(6, 3))


class Crossed(nn.Module):
    def forward(self, x):
        return torch.tanh(x) * x.roll(len(x) // 2, 0)


@pytest.mark.parametrize(("make", "layers", "shape"), [
    (Graph, ("first", "second"), (8, 4)),
    (Pairs, ("first", "second"), (8, 4)),
    (Pairs, ("first", "second"), (4, 4)),
    (Pairs, ("first", "second"), (2, 4)),
    (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)), ("0", "2"),
     (8, 4)),
    (lambda: normed(nn.Conv1d(2, 4, 2), nn.BatchNorm1d), ("0",), (8, 2, 4)),
    (lambda: normed(nn.Conv2d(2, 4, 2), nn.BatchNorm2d), ("0",), (4, 2, 3, 3)),
    (windows, ("1",), (4, 4)),
    (windows, ("1",), (6, 4)),
    (Across, ("first",), (8, 4)),
])
@pytest.mark.parametrize("exact", [True, False])
def test_samples_that_see_each_other(make, layers, shape, exact):
    torch.manual_seed(0)
    model, inputs, labels = make().double(), torch.randn(*shape).double(), torch.arange(shape[0]) % 3
    model.train()(inputs)  # makes what is lazy
    found = layer_flatness(model, (inputs, labels), layers, probes=256, exact=exact)
    for layer in layers:
        expected = dense_kappa(model, f"{layer}.weight", inputs, labels)
        assert found[layer].value == pytest.approx(expected, rel=1e-9, abs=4 * found[layer].stderr)


def test_a_weight_that_is_used_outside_its_layer_too():
    class Back(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(F.linear(torch.tanh(self.encode(x)), self.encode.weight.T)))

    torch.manual_seed(0)
    model, inputs, labels = Back().double(), torch.randn(3, 4).double(), torch.tensor([0, 2, 1])
    found = layer_flatness(model, (inputs, labels), exact=True)
    for layer in ("encode", "head"):
        expected = dense_kappa(model, f"{layer}.weight", inputs, labels)
        assert found[layer].value == pytest.approx(expected, rel=1e-10)
    assert (found["encode"].probes, found["head"].probes) == (16, 3)


def test_a_layer_whose_answer_is_not_used_while_its_weight_is():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

        def forward(self, x):
            self.layer(x)
            return self.head(torch.tanh(F.linear(x, self.layer.weight)))

    torch.manual_seed(0)
    model, inputs, labels = Aside().double(), torch.randn(3, 4).double(), torch.tensor([0, 2, 1])
    found = layer_flatness(model, (inputs, labels), layers=["layer"], exact=True)["layer"].value
    assert found == pytest.approx(dense_kappa(model, "layer.weight", inputs, labels), rel=1e-10)


class UsedElsewhere(nn.Module):
    """A layer whose weight enters once more, by hand and with little effect."""

    def __init__(self, effect):
        super().__init__()
        self.effect, self.layer, self.head = effect, nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x)) + self.effect * torch.tanh(F.linear(x.flip(1), self.layer.weight)))


@pytest.mark.parametrize("effect", [1e-2, 1e-5])
def test_a_weight_with_little_effect_elsewhere_is_seen(effect):
    torch.manual_seed(0)
    model, x, y = UsedElsewhere(effect).double(), torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    found = layer_flatness(model, [(x, y)], layers=["layer"], exact=True)["layer"].value
    assert found == pytest.approx(dense_kappa(model, "layer.weight", x, y), rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_does_not_keep_a_layer_from_the_short_route(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 5)).to(dtype)
    x, y = torch.randn(500, 32, dtype=dtype), torch.randint(5, (500,))
    assert layer_flatness(model, [(x, y)], layers=["0"], probes=32)["0"].exact  # in the weight it takes 1024 products
