"""Layer flatness with a probe for each sample: against dense Hessians, and how far estimates lie apart."""

import copy
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dense import dense_kappa
from grokscape.measures import Probe, layer_flatness, layer_routes


class Language(nn.Module):
    """Attention of projected positions to each other, and a head at every position."""

    def __init__(self):
        super().__init__()
        self.enter, self.project = nn.Linear(3, 4), nn.Linear(4, 4)
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.enter(x))
        x = self.project(x)
        x = torch.softmax(x @ x.mT, -1) @ x
        return self.head(torch.tanh(self.mix(x)))


class Slow(nn.Conv1d):
    """One that has a forward pass of its own, and is not looked through."""

    def forward(self, x):
        return super().forward(x)


def convolutional(layer, *sizes, samples=5):
    torch.manual_seed(0)
    inputs = torch.randn(samples, layer.in_channels, *sizes, dtype=torch.float64)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    model(inputs)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model, inputs, torch.arange(samples) % 3


def language():
    torch.manual_seed(0)
    inputs = torch.randn(5, 4, 3, dtype=torch.float64)
    model = Language().double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model, inputs, torch.randint(3, (5, 4))


@pytest.fixture
def responses(monkeypatch):
    """Layers that were probed for each sample, one entry for each probe."""
    seen = []

    def noted(module, *more):
        seen.append(module)
        return applied(module, *more)

    applied = layer_routes.applied
    monkeypatch.setattr(layer_routes, "applied", noted)
    return seen


CONVOLUTIONS = {
    "plain": (nn.Conv2d(2, 3, 2), 3, 3),
    "strides": (nn.Conv2d(2, 2, (2, 1), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), 2, 3),
    "groups": (nn.Conv1d(4, 4, 2, groups=2, padding=1), 3),
    "for each channel": (nn.Conv1d(3, 6, 2, groups=3), 4),
    "circular": (nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular"), 4),
    "reflect": (nn.Conv2d(2, 2, 2, padding=1, padding_mode="reflect", groups=2), 2, 3),
    "replicate": (nn.Conv3d(1, 2, (1, 2, 2), padding=(0, 1, 0), padding_mode="replicate"), 2, 1, 3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, responses):
    layer, *sizes = CONVOLUTIONS[name]
    model, inputs, labels = convolutional(layer, *sizes)
    found = layer_flatness(model, (inputs, labels), ["0"], probes=800, exact=False, batch_size=3)["0"]
    expected = dense_kappa(model, "0.weight", inputs, labels, groups=layer.groups)
    assert len(responses) == 2 * 800
    assert abs(found.value - expected) <= 4 * found.stderr < 0.6 * abs(expected)


@pytest.mark.parametrize("masked", [False, True])
def test_linear_layers_at_many_positions(masked, responses):
    model, inputs, labels = language()
    if masked:
        labels[:2, 1:], labels[3], labels[4, 0] = -100, -100, -100
    found = layer_flatness(model, (inputs, labels), probes=800, exact=False, batch_size=3)
    assert responses == 2 * (800 * [model.enter] + 800 * [model.project])
    for name, estimate in found.items():
        expected = dense_kappa(model, f"{name}.weight", inputs, labels)
        assert abs(estimate.value - expected) <= 4 * estimate.stderr < 0.6 * abs(expected)


def test_positions_that_nothing_mixes_take_as_few_products_as_samples():
    model, inputs, labels = language()
    labels[0, 1] = -100
    found = layer_flatness(model, (inputs, labels))
    assert {name: estimate.probes for name, estimate in found.items() if estimate.exact} == {
        "enter": 9, "project": 16, "mix": 4, "head": 3}
    for name, estimate in found.items():
        expected = dense_kappa(model, f"{name}.weight", inputs, labels)
        assert estimate.value == pytest.approx(expected, rel=1e-10)


def test_batches_of_several_lengths():
    model, inputs, labels = language()
    pieces = [(inputs[:2, :1], labels[:2, :1]), (inputs[:1], labels[:1]), (inputs[1:], labels[1:])]
    found = layer_flatness(model, pieces, ["project", "enter"], probes=12, exact=None)
    sure = layer_flatness(model, pieces, ["project", "enter"], exact=True)
    for name, estimate in found.items():
        parts = [dense_kappa(model, f"{name}.weight", x, y) * y.numel() for x, y in pieces]
        expected = sum(parts) / sum(y.numel() for _, y in pieces)
        assert estimate.exact is (name == "enter")
        assert estimate.value == pytest.approx(expected, abs=4 * estimate.stderr + 1e-12)
        assert sure[name].value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("samples", [4, 64])
def test_the_error_falls_with_the_root_of_the_number_of_samples_that_are_alike(samples):
    model, inputs, labels = convolutional(nn.Conv1d(2, 3, 2), 4)
    data = inputs[:1].repeat(samples, 1, 1), labels[:1].repeat(samples)
    fast = layer_flatness(model, data, ["0"], probes=2000, exact=False)["0"]
    model[0].__class__ = Slow
    slow = layer_flatness(model, data, ["0"], probes=2000, exact=False)["0"]
    assert slow.stderr / fast.stderr == pytest.approx(samples**0.5, rel=0.15)


@pytest.mark.parametrize("case", ["convolution", "language"])
def test_the_standard_error_is_what_estimates_differ_by(case):
    if case == "convolution":
        model, inputs, labels = convolutional(nn.Conv2d(2, 4, 2, groups=2), 3, 3)
        name, groups = "0", 2
    else:
        (model, inputs, labels), name, groups = language(), "project", 1
    found = [
        layer_flatness(model, (inputs, labels), [name], 16, exact=False, generator=torch.Generator().manual_seed(seed))
        for seed in range(200)
    ]
    values, errors = ([getattr(run[name], part) for run in found] for part in ("value", "stderr"))
    spread = statistics.stdev(values)
    assert spread == pytest.approx(statistics.fmean(error**2 for error in errors) ** 0.5, rel=0.15)
    expected = dense_kappa(model, f"{name}.weight", inputs, labels, groups=groups)
    assert abs(statistics.fmean(values) - expected) <= 4 * spread / 200**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_keeps_no_layer_from_probes_for_each_sample(dtype, responses):
    torch.manual_seed(0)
    convolutions = nn.Conv2d(8, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 8, 3)
    model = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(288, 3))
    inputs, labels = torch.randn(40, 8, 8, 8, dtype=dtype), torch.arange(40) % 3
    layer_flatness(model.to(dtype), (inputs, labels), ["0", "2"], probes=1)
    assert responses == [model[0], model[2]]


def test_a_normed_convolution_and_an_activation_in_place(responses):
    model, inputs, labels = convolutional(nn.Conv1d(2, 3, 2), 4)
    plain = nn.Sequential(*model)
    model[0] = nn.utils.parametrizations.weight_norm(copy.deepcopy(model[0]))
    model[1] = nn.Hardtanh(inplace=True)
    plain[1] = nn.Hardtanh()
    found = layer_flatness(model, (inputs, labels), ["0"], probes=800, exact=False)["0"]
    assert responses == 800 * [model[0]]
    assert abs(found.value - dense_kappa(plain, "0.weight", inputs, labels)) <= 4 * found.stderr


def test_a_convolution_of_the_name_that_transformers_gives_a_linear_layer():
    seen = []
    for kind in (nn.Conv1d, type("Conv1D", (nn.Conv1d,), {})):
        model, inputs, labels = convolutional(kind(2, 3, 2), 4)
        with Probe(model, layers=["0"]) as probe:
            model(inputs)
            seen.append(probe.snapshot(labels).layers["relative_flatness@0"])
    assert seen[0] == seen[1]


@pytest.mark.parametrize("effect", [1.0, 1e-5])
def test_a_kernel_that_is_used_elsewhere_too(effect, responses):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Conv1d(2, 2, 2, bias=False), nn.Linear(6, 3)

        def forward(self, x):
            again = F.conv1d(x.flip(2), self.layer.weight)
            return self.head(torch.tanh(self.layer(x) + effect * again.square()).flatten(1))

    torch.manual_seed(0)
    model, inputs, labels = Twice().double(), torch.randn(4, 2, 4).double(), torch.arange(4) % 3
    found = layer_flatness(model, (inputs, labels), ["layer"], probes=800, exact=False)["layer"]
    assert not responses
    assert abs(found.value - dense_kappa(model, "layer.weight", inputs, labels)) <= 4 * found.stderr
