"""The probe on heads that are more than a plain linear layer, and labels that are none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokscape as gs
from probed import LowRank, Net, gradients, net


class LowRankLinear(nn.Linear):
    """A low-rank update written as a subclass, which merges itself into the weight for evaluation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.update = nn.Parameter(torch.randn(outputs, inputs))
        self.merged = False

    def train(self, mode: bool = True):
        if self.merged == mode:
            self.weight.data += -self.update if mode else self.update
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return F.linear(x, self.weight if self.merged else self.weight + self.update, self.bias)


class Cosine(nn.Linear):
    def forward(self, x):
        return 10 * F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


def test_a_subclass_of_linear_counts_with_what_it_computes(data):
    model, (x, y) = net(), data
    model.fc = LowRankLinear(8, 3)
    with gs.Probe(model) as probe:
        logits = model(x)
        seen = probe.snapshot(y)
    torch.testing.assert_close(seen.weight, model.fc.weight + model.fc.update)
    torch.testing.assert_close(seen.features @ seen.weight.T + seen.bias, logits)
    (slope,) = gradients(seen.weight.sum(), model.fc)[2:]
    assert torch.equal(slope, torch.ones(3, 8))


def test_measuring_leaves_an_adapter_unmerged(data):
    model = net()
    model.fc = LowRankLinear(8, 3)
    before = model.fc.weight.clone()
    gs.measure(model, data, measures=["cdnv"])
    gs.layer_flatness(model, data, ["fc"], probes=1)
    assert (model.fc.merged, model.fc.training) == (False, True)
    assert torch.equal(model.fc.weight, before)


def made_cosine(model):
    model.fc = Cosine(8, 3, bias=False)


def hooked(model):
    model.fc.register_forward_hook(lambda module, inputs, output: 5 * output)


@pytest.mark.parametrize(("change", "text"), [
    (made_cosine, r"the head 'fc' \(Cosine\) does not return W φ \+ b for any weight"),
    (hooked, r"the head 'fc' \(Linear\) does not return .* \(a forward hook"),
])
def test_a_head_that_is_linear_by_name_only(data, change, text):
    model, (x, y) = net(), data
    change(model)
    with gs.Probe(model) as probe:
        model(x)
        with pytest.raises(ValueError, match=text):
            probe.snapshot(y)


class Ends(nn.Module):
    """A part that ends in a layer called `linear`, as an adapter's is."""

    def __init__(self, before: nn.Module, width: int = 8, after: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.linear, self.after = before, nn.Linear(width, 3), after or nn.Identity()

    def forward(self, x):
        return self.after(self.linear(self.before(x)))


@pytest.mark.parametrize(("part", "name"), [
    (lambda: Ends(nn.Sequential(nn.Linear(8, 8), nn.ReLU())), "1.linear"),
    (lambda: Ends(nn.LayerNorm(8)), "1.linear"),
    (lambda: Ends(nn.BatchNorm1d(8)), "1.linear"),
    (lambda: Ends(nn.Sequential(nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 5, 2), nn.Flatten()), 5), "1.linear"),
    (lambda: Ends(nn.Identity(), after=nn.Sequential(nn.ReLU(), nn.Linear(3, 3))), "1.after.1"),
])
def test_a_layer_called_linear_in_a_part_of_a_network_is_no_adapter(data, part, name):
    model, (x, y) = nn.Sequential(nn.Linear(4, 8), part()), data
    for head in (None, name):
        with gs.Probe(model, head) as probe:
            logits = model(x)
            seen = probe.snapshot(y)
        assert probe.head.name == name
        assert seen.weight is model.get_submodule(name).weight
        torch.testing.assert_close(seen.features @ seen.weight.T + seen.bias, logits)


def test_looking_at_a_spectral_norm_takes_no_step_of_its_iteration(data):
    model, (x, y) = net(), data
    nn.utils.parametrizations.spectral_norm(model.fc)
    with gs.Probe(model) as probe:
        logits = model(x)
        before = {name: value.clone() for name, value in model.named_buffers()}
        seen = probe.snapshot(y)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    torch.testing.assert_close(seen.features @ seen.weight.T + seen.bias, logits)


def test_a_head_in_two_parts_has_slopes_after_a_pass_without_a_graph_as_a_plain_one_has(data):
    plain, normed, (x, y) = net().eval(), net().eval(), data
    nn.utils.parametrizations.weight_norm(normed.fc)
    penalty, weights = gs.Suppress("relative_flatness", strength=0.1), normed.fc.weight
    slopes = []
    for model, of in ((plain, [plain.fc.weight]), (normed, normed.fc.parametrizations.weight.parameters())):
        with gs.Probe(model) as probe:
            with torch.no_grad():
                model(x)
            slopes.append(torch.autograd.grad(penalty(probe.snapshot(y)), list(of)))
    expected = torch.autograd.grad(weights, list(normed.fc.parametrizations.weight.parameters()), slopes[0][0])
    torch.testing.assert_close(slopes[1], expected)


class Beside(nn.Module):
    """An adapter under another name, with an update in two layers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.update = nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 3, bias=False))

    def forward(self, x):
        return self.linear(x) + self.update(x)


def test_an_adapter_of_any_make_counts_as_a_whole(data):
    model, (x, y) = net(), data
    model.fc = Beside(model.fc)
    with gs.Probe(model) as probe:
        model(x)
        seen = probe.snapshot(y)
    assert probe.head.name == "fc"
    update = model.fc.update[1].weight @ model.fc.update[0].weight
    torch.testing.assert_close(seen.weight, model.fc.linear.weight + update)


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_in_half_precision(data, whole):
    x, y = data
    model = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), LowRank(nn.Linear(256, 3)))
    model, x = (model.bfloat16(), x.bfloat16()) if whole else (model, x)
    with gs.Probe(model) as probe:
        with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
            model(x)
        assert probe.snapshot(y).logits.dtype == torch.float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_measuring_a_compiled_model_that_is_being_probed(data):
    model, (x, y) = net().eval(), data
    compiled = torch.compile(model, backend="eager")
    with gs.Probe(compiled, transform=lambda features: F.normalize(features, dim=-1)) as probe:
        compiled(x)
        assert gs.measure(compiled, (x, y))["rnc1_max"] == pytest.approx(gs.measure(compiled, (x, y))["rnc1"], rel=1e-5)
        probe.transform = None
        logits = compiled(x)
        assert torch.equal(probe.snapshot(y).logits, logits)
    assert type(model.fc) is nn.Linear
    assert not any(name.startswith("_probe") for name in vars(model.fc))


def test_labels_of_a_snapshot_are_a_tensor(data):
    model, (x, y) = net(), data
    with gs.Probe(model) as probe:
        model(x)
        for labels in (y.tolist(), y.numpy()):
            with pytest.raises(TypeError, match=r"labels must be a tensor, got .*; convert with torch\.as_tensor"):
                probe.snapshot(labels)


@pytest.mark.parametrize(("labels", "error", "text"), [
    (lambda y: y / 2, TypeError, r"labels must be class indices \(int64\), got torch.float32"),
    (lambda y: y + 1, ValueError, "labels must lie in 0 … 2, got 1 … 3"),
    (lambda y: y - 1, ValueError, "labels must lie in 0 … 2, got -1 … 1"),
])
def test_labels_that_are_no_classes(data, labels, error, text):
    model, (x, y) = net(), data
    with gs.Probe(model) as probe:
        model(x)
        with pytest.raises(error, match=text):
            probe.snapshot(labels(y))
    with pytest.raises(error, match=text):
        gs.measure(model, (x, labels(y)))


def test_narrow_integers_are_labels_too(data):
    model, (x, y) = net().eval(), data
    assert dict(gs.measure(model, (x, y.to(torch.uint8)))) == dict(gs.measure(model, (x, y)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_head_used_twice(data):
    class Twice(Net):
        def forward(self, x):
            return self.fc(self.body(x)) + self.fc(self.body(-x))

    model, (x, y) = Twice().eval(), data
    compiled = torch.compile(model, backend="eager")
    with gs.Probe(compiled) as probe:
        compiled(x)
        with pytest.raises(RuntimeError, match="called more than once"):
            probe.snapshot(y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_head_that_is_called_by_name(data, compiled):
    class Named(Net):
        def forward(self, x):
            return self.fc(input=self.body(x))

    model, (x, y) = Named().eval(), data
    model = torch.compile(model, backend="eager") if compiled else model
    with gs.Probe(model, transform=lambda features: 2 * features) as probe:
        logits = model(x)
        seen = probe.snapshot(y)
    torch.testing.assert_close(seen.features @ seen.weight.T + seen.bias, logits)
    probe.transform = None
    torch.testing.assert_close(model(x), seen.features / 2 @ seen.weight.T + seen.bias)


@pytest.mark.parametrize("normed", [False, True])
def test_other_weights_under_functional_call(data, normed):
    """As in meta-learning: the second pass is with weights that no module holds."""
    model, (x, y) = net().eval(), data
    if normed:
        nn.utils.parametrizations.weight_norm(model.fc)
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters()}
    with gs.Probe(model) as probe:
        for _ in range(2):
            torch.func.functional_call(model, weights, (x,))
            seen = probe.snapshot(y)
            torch.testing.assert_close(seen.features @ seen.weight.T + seen.bias, seen.logits)
            seen.weight.sum().backward()
            assert all(parameter.grad is None for parameter in model.parameters())
            weights = {name: (2 * value).detach().requires_grad_() for name, value in weights.items()}


class Heads(Net):
    """Two heads, and an answer in any form."""

    def __init__(self, form):
        super().__init__()
        self.other, self.form = nn.Linear(8, 5), form

    def forward(self, x):
        features = self.body(x)
        return self.form(self.fc(features), self.other(features))


@pytest.mark.parametrize("head", ["fc", "other"])
@pytest.mark.parametrize("form", [lambda *both: both, lambda one, two: {"one": one, "two": two}])
def test_a_head_of_several_is_named(data, form, head):
    model, (x, y) = Heads(form).eval(), data
    layer, features = model.get_submodule(head), model.body(x)
    expected = gs.relative_flatness(features, layer.weight, layer(features))
    with gs.Probe(model, head) as probe:
        model(x)
        assert gs.evaluate(probe.snapshot(y), ["relative_flatness"])["relative_flatness"] == expected
    found = gs.measure(model, (x, y), head, measures=["relative_flatness"])
    assert found["relative_flatness"] == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("form", [lambda *both: both[0].softmax(-1), lambda *both: (both[0].softmax(-1), both[1])])
def test_a_named_head_that_the_answer_changes(data, form):
    model, (x, y) = Heads(form).eval(), data
    with gs.Probe(model, "fc") as probe:
        model(x)
        with pytest.raises(ValueError, match="'fc' is not the head of Heads: the model's logits differ"):
            probe.snapshot(y)


def test_a_head_that_nobody_named_is_that_of_the_first_answer(data):
    model, (x, y) = Heads(lambda one, two: (two, one)).eval(), data
    with gs.Probe(model) as probe:
        model(x)
        with pytest.raises(ValueError, match="'fc' is not the head"):
            probe.snapshot(y)


def test_a_loss_that_comes_before_the_logits(data):
    model, (x, y) = Heads(lambda one, two: (F.cross_entropy(one, torch.zeros(24).long()), one)).eval(), data
    with gs.Probe(model) as probe:
        _, logits = model(x)
        assert probe.snapshot(y).logits.equal(logits)
