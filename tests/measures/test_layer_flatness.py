"""κ of hidden layers against dense Hessians of small networks, on both routes, and the convergence of estimates."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dense import dense_kappa
from grokscape.measures import MeasureWarning, layer_flatness, relative_flatness


class Conv1D(nn.Module):
    """A linear layer with its weight as (inputs, outputs), under the names that transformers uses."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, dtype=torch.float64))
        self.nf = outputs

    def forward(self, x):
        return x @ self.weight


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


def convolutional(kind, shape, groups=1):
    model = nn.Sequential(kind(2, 4, 2, groups=groups), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    return model, torch.randn(3, 2, *shape)


def network(name):
    torch.manual_seed(0)
    labels = torch.tensor([0, 2, 1])
    if name == "mlp":
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
        return model, torch.randn(3, 4), labels, {"0": "0.weight", "2": "2.weight"}, {}
    if name == "tied":
        return Tied(), torch.tensor([[0, 1], [2, 3], [4, 0]]), torch.tensor([[1, 2], [3, 4], [0, 1]]), {
            "head": "embed.weight", "mix": "mix.weight"}, {}
    if name == "attention":
        return Attention(), torch.randn(3, 2, 4), labels, {
            "attend": "attend.in_proj_weight", "attend.out_proj": "attend.out_proj.weight"}, {}
    if name == "transposed":
        return nn.Sequential(Conv1D(5, 4), nn.Tanh(), nn.Linear(5, 3)), torch.randn(3, 4), labels, {"0": "0.weight"}, {
            "transposed": True}
    if name == "embedding":
        model = nn.Sequential(nn.Embedding(6, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
        return model, torch.tensor([[0, 1], [5, 1], [2, 2]]), labels, {"0": "0.weight", "3": "3.weight"}, {
            "transposed": True}
    if name == "normalised":
        model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.GELU(), nn.Flatten(), nn.Linear(12, 3))
        model[1].running_var.uniform_(0.5, 2)
        return model, torch.randn(3, 2, 3, 3), labels, {"0": "0.weight"}, {}
    kinds = {"conv1d": (nn.Conv1d, (3,), 1), "conv2d": (nn.Conv2d, (3, 3), 1), "conv3d": (nn.Conv3d, (2, 3, 2), 1),
             "groups": (nn.Conv2d, (2, 3), 2)}
    kind, shape, groups = kinds[name]
    model, inputs = convolutional(kind, shape, groups)
    model(inputs)
    return model, inputs, labels, {"0": "0.weight", "3": "3.weight"}, {"groups": groups}


CASES = ("mlp", "tied", "attention", "transposed", "embedding", "normalised", "conv1d", "conv2d", "conv3d", "groups")


def build(name):
    model, inputs, labels, layers, how = network(name)
    model = model.double().eval()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    return model, inputs, labels, layers, how


@pytest.mark.parametrize("name", CASES)
def test_exact_values_equal_the_dense_hessian(name):
    model, inputs, labels, layers, how = build(name)
    found = layer_flatness(model, (inputs, labels), layers=list(layers), exact=True, batch_size=2)
    for layer, parameter in layers.items():
        options = how if layer == "0" else {}
        expected = dense_kappa(model, parameter, inputs, labels, **options)
        assert found[layer].exact
        assert found[layer].stderr == 0
        assert found[layer].value == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("probes", [8, 64, 256])
@pytest.mark.parametrize("name", ["mlp", "attention", "groups"])
def test_estimates_lie_within_four_standard_errors(name, probes):
    model, inputs, labels, layers, how = build(name)
    found = layer_flatness(model, (inputs, labels), layers=list(layers), probes=probes, exact=False)
    for layer, parameter in layers.items():
        expected = dense_kappa(model, parameter, inputs, labels, **(how if layer == "0" else {}))
        estimate = found[layer]
        assert estimate.probes == probes
        assert estimate.stderr > 0
        assert abs(estimate.value - expected) <= 4 * estimate.stderr


def test_standard_errors_shrink_with_probes():
    model, inputs, labels, _, _ = build("conv2d")
    few, many = (layer_flatness(model, (inputs, labels), ["0"], probes, exact=False)["0"] for probes in (16, 256))
    assert math.log(few.stderr / many.stderr) == pytest.approx(math.log(4), abs=math.log(2))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    model, inputs, labels, _, _ = build("normalised")
    model.train(training)
    model[4].weight.requires_grad_(False)
    mean = model[1].running_mean.clone()
    layer_flatness(model, (inputs, labels), probes=2)
    assert model.training is training
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, True, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(model[1].running_mean, mean)
    assert not any(module._forward_hooks for module in model.modules())


def test_names_default_to_every_layer_and_the_seed_is_the_generators():
    model, inputs, labels, _, _ = build("attention")
    first, same, other = (
        layer_flatness(model, (inputs, labels), probes=3, exact=False, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert set(first) == {"attend", "attend.out_proj", "head"}
    assert first == same
    assert first != other


def test_embeddings_are_left_out_unless_named():
    model, inputs, labels, _, _ = build("embedding")
    assert set(layer_flatness(model, (inputs, labels))) == {"3"}


def test_the_batches_of_a_data_set_do_not_matter():
    model, inputs, labels, _, _ = build("mlp")
    whole, cut = (layer_flatness(model, (inputs, labels), exact=True, batch_size=size) for size in (3, 1))
    for name, estimate in whole.items():
        assert cut[name].value == pytest.approx(estimate.value, rel=1e-10)


def test_progress_is_told():
    model, inputs, labels, _, _ = build("mlp")
    told = []
    layer_flatness(model, (inputs, labels), ["0"], batch_size=2, progress=told.append)
    assert told == ["layer flatness: batch 1, 2 samples, 1 layer", "layer flatness: batch 2, 3 samples, 1 layer"]


@pytest.mark.parametrize(("call", "text"), [
    (lambda m, x, y: layer_flatness(m, (x, y), ["9"]), r"the model has no layer '9'; named_modules\(\) has 0, 1, 2"),
    (lambda m, x, y: layer_flatness(m, (x, y), ["1"]), "layer '1' is a ReLU, which has no real linear weight; supp"),
    (lambda m, x, y: layer_flatness(m[1:2], (x, y)), "the model has no layer with a linear weight"),
    (lambda m, x, y: layer_flatness(m, (x, y), probes=0), "probes must be at least 1, got 0"),
    (lambda m, x, y: layer_flatness(m, (x[:0], y[:0])), "there are no samples to measure"),
    (lambda m, x, y: layer_flatness(m, (x, y), loss="squared_error"), "squared_error needs targets of the shape"),
    (lambda m, x, y: layer_flatness(m, (x, y), loss="hinge"), "loss must be one of cross_entropy, binary"),
])
def test_errors_say_what_to_do(call, text):
    model, inputs, labels, _, _ = build("mlp")
    with pytest.raises(ValueError, match=text):
        call(model, inputs, labels)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "squared_error", "a function"])
def test_other_losses_of_the_last_layer_are_the_head_s(loss):
    model, inputs, _, _, _ = build("mlp")
    targets = torch.rand(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = loss if loss != "a function" else lambda z, y: (z - y).pow(4).sum(-1)
    found = layer_flatness(model, (inputs, targets), ["2"], exact=True, loss=loss)
    hidden = model[:2](inputs).detach()
    weight, bias = model[2].weight.detach(), model[2].bias.detach()
    expected = relative_flatness(hidden, weight, bias=bias, loss=loss, targets=targets)
    assert found["2"].value == pytest.approx(float(expected), rel=1e-10)


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("flat", [False, True])
def test_ignored_positions_are_no_samples_of_a_loss_that_is_a_function(ahead, flat):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, labels = torch.randn(4, 3, 4, dtype=torch.float64), torch.randint(3, (4, 3))
    labels[0], labels[1:, 1] = -100, -100  # a batch without a sample, and a position amid samples

    def loss(logits, labels):
        logits, labels = logits[:, : 3 - ahead], labels[:, ahead:]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return losses if flat else losses.view(labels.shape)

    found = layer_flatness(model, [(inputs[:1], labels[:1]), (inputs[1:], labels[1:])], loss=loss, exact=True)
    kept = labels[:, ahead:] != -100
    expected = layer_flatness(model, (inputs[:, : 3 - ahead][kept], labels[:, ahead:][kept]), exact=True)
    assert [e.value for e in found.values()] == pytest.approx([e.value for e in expected.values()], rel=1e-10)


class Scaled(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


def normed(convolution, kind):
    if kind == "weight":
        return nn.utils.parametrizations.weight_norm(convolution)
    if kind == "spectral":
        return nn.utils.parametrizations.spectral_norm(convolution)
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(convolution)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("kind", ["weight", "spectral", "weight by hook"])
def test_a_weight_made_of_other_parameters_is_a_weight(kind, trainable):
    model, inputs, labels, _, _ = build("conv2d")
    plain = copy.deepcopy(model)
    model[0] = normed(model[0], kind).train()
    model.requires_grad_(trainable)
    buffers = [buffer.clone() for buffer in model.buffers()]
    found = layer_flatness(model, (inputs, labels), exact=True, batch_size=2)
    assert all(torch.equal(*pair) for pair in zip(buffers, model.buffers(), strict=True))
    model.eval()(inputs)
    plain[0].weight.data = model[0].weight.detach().clone()
    assert found["0"].value == pytest.approx(dense_kappa(plain, "0.weight", inputs, labels), rel=1e-10)
    assert all(parameter.requires_grad is trainable for parameter in model.parameters())


@pytest.mark.parametrize("hooked", [True, False])
def test_an_output_that_is_not_the_weight_times_the_input(hooked):
    model, inputs, labels, _, _ = build("mlp")
    if hooked:
        model[0].register_forward_hook(lambda module, arguments, output: 3 * output)
    else:
        model[0].__class__ = Scaled
    found = layer_flatness(model, (inputs, labels), ["0"], exact=True)
    assert found["0"].value == pytest.approx(dense_kappa(model, "0.weight", inputs, labels), rel=1e-10)


@pytest.mark.parametrize("name", ["mlp", "conv2d"])
def test_half_precision(name):
    model, inputs, labels, _, _ = build(name)
    found = layer_flatness(model.bfloat16(), (inputs, labels), exact=True)
    for layer, estimate in layer_flatness(model.double(), (inputs.bfloat16(), labels), exact=True).items():
        assert found[layer].value == pytest.approx(estimate.value, rel=0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["before", "in place", "a part"])
def test_compiled_models(how):
    model, inputs, labels, _, _ = build("mlp")
    expected = layer_flatness(model, (inputs, labels))
    if how == "before":
        model = torch.compile(model, backend="aot_eager")
    else:
        (model if how == "in place" else model[2]).compile(backend="aot_eager")
    model(inputs)
    assert layer_flatness(model, (inputs, labels)) == expected


def test_a_layer_without_gradients_is_no_number_and_says_so():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.unused, self.head = nn.Conv1d(1, 2, 2), nn.Linear(2, 2), nn.Linear(6, 3)

        def forward(self, x):
            with torch.no_grad():
                x = self.mix(x[:, None]).flatten(1)
            return self.head(x)

    torch.manual_seed(0)
    with pytest.warns(MeasureWarning, match="layer '(mix|unused)' is NaN: the loss has no gradient in it"):
        found = layer_flatness(Cut(), (torch.randn(3, 4), torch.tensor([0, 1, 2])))
    assert [math.isnan(found[name].value) for name in ("mix", "unused", "head")] == [True, True, False]


@pytest.mark.parametrize(("labels", "loss", "text"), [
    (torch.tensor([0, 3]), "cross_entropy", "labels must lie in 0 … 2, got 0 … 3"),
    (torch.tensor([0, 2]), F.cross_entropy, "loss must give one value per sample, got a single one"),
])
def test_labels_and_losses_that_do_not_fit(labels, loss, text):
    with pytest.raises(ValueError, match=text):
        layer_flatness(nn.Sequential(nn.Linear(4, 3)), [(torch.randn(2, 4), labels)], loss=loss)


def test_complex_layers_are_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 6, dtype=torch.complex64)
            self.head = nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.second(torch.complex(*(2 * [self.first(x)]))).abs())

    torch.manual_seed(0)
    model, x, y = Net(), torch.randn(8, 4), torch.arange(8) % 3
    found = layer_flatness(model, (x, y), exact=True)
    assert list(found) == ["first", "head"]
    assert found["first"].value == pytest.approx(dense_kappa(model, "first.weight", x, y), rel=1e-4)
    with pytest.raises(ValueError, match="which has no real linear weight"):
        layer_flatness(model, (x, y), ["second"])


def test_classes_that_do_not_come_last():
    model, x, y = nn.Conv2d(2, 3, 1), torch.randn(4, 2, 5, 6), torch.zeros(4, 5, 6).long()
    with pytest.raises(ValueError, match=r"classes come last, move them by .movedim\(1, -1\)"):
        layer_flatness(model, [(x, y)])


def test_hardsigmoid_of_which_pytorch_has_one_derivative():
    class Hard(nn.Module):
        def forward(self, x):
            return (x / 6 + 0.5).clamp(0, 1)

    def made(gate):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), gate, nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 3
    found = layer_flatness(made(nn.Hardsigmoid(inplace=True)), (x, y), ["0"], exact=True)["0"].value
    assert found == pytest.approx(dense_kappa(made(Hard()), "0.weight", x, y), rel=1e-9)
