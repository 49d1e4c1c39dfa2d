"""Hidden layers whose κ a Probe cannot give: what is refused, in which words, and when it is looked at."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import grokscape as gs
from grokscape.measures.layer_routes import Layer
from layered import KAPPA, Net, Tokens, data, made, taken


@pytest.mark.parametrize(("layers", "message"), [
    (["third"], r"got 'third', which is nothing; the model has first, head"),
    (["norm"], r"got 'norm', which is a LayerNorm; the model has first"),
    (["second"], r"without a forward of its own, got 'second', which is a Masked"),
])
def test_no_such_layer(layers, message):
    class Masked(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.weight * (self.weight > 0), self.bias)

    model = made()
    model.second = Masked(6, 5)
    with pytest.raises(ValueError, match=message):
        gs.Probe(model, head="head", layers=layers)


def test_a_weight_of_two_layers():
    model = made()
    model.second = nn.Linear(6, 6).double()
    model.third = nn.Linear(6, 6).double()
    model.third.weight = model.second.weight
    with pytest.raises(ValueError, match="used in second and third"):
        gs.Probe(model, head="head", layers=["second"])


def test_samples_that_see_each_other():
    model, (x, _) = made(Net, nn.BatchNorm1d(6)), data()
    with gs.Probe(model, head="head", layers=["first"]):
        with pytest.raises(ValueError, match=r"'norm' \(BatchNorm1d, in training mode\) samples see each other"):
            model(x)
        model.eval()
        model(x)


def test_a_layer_that_is_called_twice():
    class Twice(Net):
        def forward(self, x):
            return super().forward(x + self.first(x).mean(-1, keepdim=True))

    model, (x, y) = made(Twice), data()
    with gs.Probe(model, head="head", layers=["first"]) as probe:
        model(x)
        with pytest.raises(RuntimeError, match="it was called on 64 rows and 64 rows"):
            probe.snapshot(y)


def test_compiled_models():
    with pytest.raises(ValueError, match="do not compile"):
        gs.Probe(torch.compile(made(), backend="eager"), head="head", layers=["first"])


def test_no_temperature():
    with pytest.raises(ValueError, match="knows no temperature"):
        gs.Clamp(KAPPA, at_least=1, temperature=2)


def test_of_a_trained_model():
    with pytest.raises(ValueError, match=r"take layer_flatness\(model, data, \['first'\]\)"):
        gs.measure(made(), data(), head="head", measures=[KAPPA])


class PositionsFirst(Tokens):
    def forward(self, x):
        hidden = torch.tanh(self.first(self.table(x)))
        return self.head(self.block(hidden.transpose(0, 1)).transpose(0, 1))


class Graph(Net):
    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.head(torch.tanh(self.second(hidden + hidden.roll(1, 0))))


class Elsewhere(Net):
    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)) @ self.first.weight @ self.first.weight.T)))


@pytest.mark.parametrize(("kind", "x", "message"), [
    (Graph, torch.randn(8, 4, dtype=torch.float64), "samples .* see each other, as on a graph"),
    (PositionsFirst, torch.arange(40).reshape(5, 8) % 7, "samples .* see each other, .* positions first"),
    (Elsewhere, torch.randn(8, 4, dtype=torch.float64), "another gradient in its weight than through its outputs"),
])
def test_a_layer_of_which_perturbations_say_something_else(kind, x, message):
    model, y = made(kind), (x if x.dim() > 2 else torch.zeros(x.shape[:2] if not x.is_floating_point() else 8).long())
    with gs.Probe(model, head="head", layers=["first"]) as probe:
        model(x)
        with pytest.raises(ValueError, match=f"κ of layer 'first' cannot be taken in a loop: .*{message}"):
            probe.snapshot(y)


def test_a_hook_that_changes_the_outputs():
    model, (x, y) = made(), data(8)
    model.first.register_forward_hook(lambda module, inputs, output: output**2)
    with gs.Probe(model, head="head", layers=["first"]) as probe:
        model(x)
        with pytest.raises(ValueError, match="a hook changes the outputs"):
            probe.snapshot(y)


@pytest.mark.parametrize(("reentrant", "message"), [
    (False, r"'first' is computed again .* checkpoints: turn them off"),
    (True, r"called on nothing, or without gradients \(torch.no_grad, a reentrant checkpoint\)"),
])
def test_checkpoints(reentrant, message):
    class Recomputed(Net):
        def forward(self, x):
            return self.head(checkpoint(lambda x: torch.tanh(self.second(self.first(x))), x, use_reentrant=reentrant))

    model, (x, y) = made(Recomputed), data(8)
    with gs.Probe(model, head="head", layers=["first"]) as probe:
        model(x.requires_grad_())
        with pytest.raises(RuntimeError, match=message):
            probe.snapshot(y)


@pytest.mark.parametrize(("value", "label"), [(torch.nan, 0), (torch.inf, 0), (torch.nan, -100)])
def test_a_sample_that_is_not_finite_is_not_taken_for_one_that_others_see(value, label):
    model, (x, y) = made(), data(8)
    x[3], y[3] = value, label
    assert taken(model, x, y, ["first"], 1)["first"].isnan()


def test_a_layer_is_checked_once_there_are_numbers():
    model, (x, y) = made(Graph), data(8)
    with gs.Probe(model, head="head", layers=["first"]) as probe:
        model(torch.full_like(x, torch.nan))
        probe.snapshot(y)
        model(x)
        with pytest.raises(ValueError, match="see each other"):
            probe.snapshot(y)


def test_a_layer_is_checked_once_in_each_mode_of_its_model(monkeypatch):
    class Mixing(Net):
        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            return self.head(torch.tanh(self.second(hidden + hidden.roll(1, 0) if self.training else hidden)))

    looks, looked = [], Layer.is_apart
    monkeypatch.setattr(Layer, "is_apart", lambda layer, *rest: looks.append(layer.name) or looked(layer, *rest))
    model, (x, y) = made(Mixing).eval(), data(8)
    for _ in range(3):
        taken(model, x, y, ["second", "first"], 2)
    assert looks == ["second", "first"]
    with pytest.raises(ValueError, match="layer 'first' cannot be taken in a loop: every sample"):
        taken(model.train(), x, y, ["second", "first"], 1)
