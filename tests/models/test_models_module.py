"""Other people's modules as networks: batched if that can be done, the same numbers in any case."""

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from grokscape.models import Model, ModuleModel
from grokscape.testbeds import Digits, ModularArithmetic
from probed import Normed


class Plain(nn.Module):
    def __init__(self, classes=10, dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 12), nn.Tanh(), nn.Dropout(dropout))
        self.fc = nn.Linear(12, classes)

    def forward(self, x):
        return self.fc(self.body(x))


class Dropping(Plain):
    def __init__(self, always=False):
        super().__init__()
        self.always = always

    def forward(self, x):
        return self.fc(nn.functional.dropout(self.body(x), training=self.always or self.training))


def frozen():
    plain = Plain()
    plain.body.requires_grad_(False)
    return plain


def lazy():
    return nn.Sequential(nn.LazyLinear(10))


def weight_normed():
    plain = Plain()
    nn.utils.parametrizations.weight_norm(plain.fc)
    return plain


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.fc = nn.Linear(8, 11, bias=False)

    def forward(self, x):
        return self.fc(self.block(self.embedding(x)).mean(1))


class Branching(Plain):
    def forward(self, x):
        hidden = self.body(x)
        return self.fc(hidden * 2 if self.fc.weight.sum() > 0 else hidden)


class Writing(Plain):
    def forward(self, x):
        total = torch.zeros(len(x), 12, dtype=x.dtype)
        total += self.body(x).mean(1, keepdim=True)
        return self.fc(self.body(x) - total)


class Fixed(nn.Module):
    """Nothing but its head is trained."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.register_buffer("body", torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return self.fc((x @ self.body.to(x.dtype)).relu())


class Drawn(nn.Module):
    """Numbers are drawn that it keeps neither as a parameter nor as a buffer."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 10)
        self.body = torch.randn(64, 64)

    def forward(self, x):
        return self.fc((x @ self.body).relu())


class Pooled(nn.Module):
    """Its head answers at every position; they are pooled behind it."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(x.unflatten(1, (4, 16))).mean(1)


class Centred(Plain):
    """It answers around the batch, in eval mode too."""

    def forward(self, x):
        hidden = self.body(x)
        return self.fc(hidden - hidden.mean(0))


def untracked():
    plain = Plain()
    plain.body.append(nn.BatchNorm1d(12, track_running_stats=False))
    return plain


class Functional(Plain):
    def forward(self, x):
        return nn.functional.linear(self.body(x), self.fc.weight, self.fc.bias)


class Softmax(Plain):
    def forward(self, x):
        return super().forward(x).softmax(-1)


VECTORS, IMAGES, TOKENS = Digits(), Digits(inputs="image"), ModularArithmetic(p=11)
CASES = {
    "plain": (Plain, VECTORS, True),
    "batch norm": (Normed, IMAGES, True),
    "attention": (Attending, TOKENS, True),
    "fixed": (Fixed, VECTORS, True),
    "branching": (Branching, VECTORS, False),
    "writing": (Writing, VECTORS, False),
}


def network_of(factory, task, **arguments):
    return ModuleModel(factory=factory, head="fc", arguments=arguments).build(task.input_spec, task.num_classes)


def stacked(network, replicas):
    each = [network.init(torch.Generator().manual_seed(r), torch.float64) for r in range(replicas)]
    return {name: torch.stack([one[name] for one in each]).requires_grad_() for name in each[0]}


def batch(task, replicas):
    inputs = torch.stack([task.split(seed).train_inputs[:20] for seed in range(replicas)])
    return inputs.double() if inputs.is_floating_point() else inputs


@pytest.mark.parametrize("factory", [Plain, Drawn])
def test_one_of_it_is_the_module_that_was_trained(factory):
    network, (inputs,) = network_of(factory, VECTORS), batch(VECTORS, 1).float()
    parameters = network.init(torch.Generator().manual_seed(1))
    expected = network.logits({name: value[None] for name, value in parameters.items()}, inputs[None])[0]
    torch.testing.assert_close(network.single(parameters, {})(inputs), expected)


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_the_module_itself(case):
    factory, task, batched = CASES[case]
    network = network_of(factory, task)
    assert network.batched is batched, network.reason
    parameters, inputs = stacked(network, 3), batch(task, 3)
    logits = network.logits(parameters, inputs)
    gradient = torch.autograd.grad(logits.square().sum(), list(parameters.values()))
    for r in range(3):
        module = factory().double()
        module.load_state_dict({name: value[r] for name, value in parameters.items()}, strict=False)
        expected = module(inputs[r])
        torch.testing.assert_close(logits[r], expected, rtol=1e-12, atol=1e-12)
        expected.square().sum().backward()
        for (name, one), ours in zip(module.named_parameters(), gradient, strict=True):
            torch.testing.assert_close(ours[r], one.grad, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("case", "words"), [("plain", "batched"), ("branching", "control flow"), ("writing", "shape")])
def test_the_reason_is_told(case, words):
    factory, task, batched = CASES[case]
    network = network_of(factory, task)
    assert words in network.reason
    assert batched or network.reason.startswith("one replica after another")


def test_running_statistics_belong_to_their_replica():
    network, inputs = network_of(Normed, IMAGES), batch(IMAGES, 2)
    parameters = stacked(network, 2)
    buffers = network.prepare(2, torch.device("cpu"), torch.float64)
    for _ in range(3):
        network.features(parameters, inputs)
    module = Normed().double()
    module.load_state_dict({name: value[1] for name, value in parameters.items()}, strict=False)
    for _ in range(3):
        module(inputs[1])
    for name, value in module.named_buffers():
        torch.testing.assert_close(buffers[name][1], value, rtol=1e-12, atol=1e-12)
    module.eval()
    before = {name: value.clone() for name, value in buffers.items()}
    with network.working_on(training=False):
        torch.testing.assert_close(network.logits(parameters, inputs)[1], module(inputs[1]), rtol=1e-12, atol=1e-12)
    alone = {name: value[1:] for name, value in parameters.items()}
    with network.working_on(slice(1, 2), training=False):
        torch.testing.assert_close(network.logits(alone, inputs[1:])[0], module(inputs[1]), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(before[name], buffers[name]) for name in before)
    with pytest.raises(ValueError, match=r"holds buffers of 2 replicas, got parameters of 1"):
        network.features(alone, inputs[1:])


class Following(Plain):
    """Keeps a running mean in a new tensor at every step."""

    def __init__(self, cold=False):
        super().__init__()
        self.cold = cold
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x):
        hidden = self.body(x)
        if self.cold and hidden.sum() > 1e9:
            hidden = hidden * 0
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * hidden.mean(0)
        return self.fc(hidden - self.mean)


@pytest.mark.parametrize("cold", [False, True])
def test_a_buffer_that_a_module_replaces_goes_on_from_step_to_step(cold):
    network = network_of(Following, Digits(), cold=cold)
    assert network.batched is not cold
    parameters, inputs = stacked(network, 2), batch(Digits(), 2)
    buffers = network.prepare(2, torch.device("cpu"), torch.float64)
    modules = [Following(cold).double() for _ in range(2)]
    for r, module in enumerate(modules):
        module.load_state_dict({name: value[r] for name, value in parameters.items()}, strict=False)
    for _ in range(3):
        with network.working_on():
            network.features(parameters, inputs)
        for module, one in zip(modules, inputs, strict=True):
            module(one)
    torch.testing.assert_close(buffers["mean"], torch.stack([module.mean.detach() for module in modules]))
    assert not buffers["mean"].requires_grad


def test_the_seed_and_nothing_else_decides_the_initialisation():
    network = network_of(Plain, VECTORS)
    torch.manual_seed(1)
    first = network.init(torch.Generator().manual_seed(5))
    following = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), following)  # the global generator was left alone
    torch.manual_seed(2)
    second = network.init(torch.Generator().manual_seed(5))
    other = network.init(torch.Generator().manual_seed(6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_a_specification_finds_its_factory_again():
    model = ModuleModel(factory=nn.Linear, head="fc", arguments={"in_features": 3, "out_features": 2})
    written = model.model_dump_json()
    assert '"torch.nn.modules.linear:Linear"' in written
    again = TypeAdapter(Model).validate_json(written)
    assert isinstance(again, ModuleModel)
    assert isinstance(again.make(), nn.Linear)
    assert again.make().in_features == 3


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModuleModel(factory=Plain, head="body"), "a linear layer called 'body', got a Sequential; .* are body.0, fc"),
        (ModuleModel(factory=Plain, head="out"), "called 'out', got nothing"),
        (ModuleModel(factory=Plain, head="fc", arguments={"classes": 3}), "3 outputs, but the task has 10 classes"),
        (ModuleModel(factory=Plain, head="fc", arguments={"dropout": 0.5}), "'body.2' drops units with p=0.5"),
        (ModuleModel(factory=Dropping, head="fc"), r"the module draws random numbers \(dropout by f"),
        (ModuleModel(factory=Dropping, head="fc", arguments={"always": True}), "the module draws random numbers"),
        (ModuleModel(factory=frozen, head="fc"), "parameter 'body.0.weight' is frozen, and a run trains every param"),
        (ModuleModel(factory=lazy, head="0"), "parameter '0.weight' has no shape yet; give the sizes of lazy layers"),
        (ModuleModel(factory=weight_normed, head="fc"), "the head 'fc' makes its weight of other parameters"),
        (ModuleModel(factory=Centred, head="fc"), "in eval mode to depend on that sample alone, .*; use another norm"),
        (ModuleModel(factory=untracked, head="fc"), r"give BatchNorm its running statistics \(track_run"),
        (ModuleModel(factory=Functional, head="fc"), r"call its head 'fc', but it never did; call the layer itself"),
        (ModuleModel(factory=Softmax, head="fc"), "without a softmax"),
        (ModuleModel(factory=Pooled, head="fc"), r"to be \(N, d\) = .*, got \(\d+, 4, 16\); pool or pick a position"),
        (ModuleModel(factory="no.such:thing", head="fc"), "cannot import the model factory 'no.such:thing'"),
        (ModuleModel(factory="math:pi", head="fc"), "expected 'math:pi' to be a function"),
        (ModuleModel(factory=dict, head="fc"), "to make an nn.Module, got dict"),
    ],
)
def test_errors_say_what_to_do(model, words):
    with pytest.raises(ValueError, match=words):
        model.build(VECTORS.input_spec, VECTORS.num_classes)
