"""What modules do beside computing from parameters, buffers and inputs: done as in a plain loop, or refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from grokscape.models import ModuleModel
from grokscape.studies import Arm, StudySpec
from grokscape.studies.launch import plan
from grokscape.testbeds import Digits, ModularArithmetic
from grokscape.training import AdamW, Engine, Evaluation

VECTORS, TOKENS = Digits(train_samples=20), ModularArithmetic(p=11)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.more()

    def more(self):
        """What a case adds."""

    def hidden(self, x):
        return self.b(torch.tanh(self.a(x))).tanh()

    def forward(self, x):
        return self.fc(self.hidden(x))


def network_of(factory, task=VECTORS):
    return ModuleModel(factory=factory, head="fc").build(task.input_spec, task.num_classes)


def of_seeds(network, dtype=torch.float64):
    each = [network.init(torch.Generator().manual_seed(seed), dtype) for seed in range(2)]
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


def spectral(module):
    nn.utils.parametrizations.spectral_norm(module.a)


def orthogonal(module):
    nn.utils.parametrizations.orthogonal(module.a)


def phases(module):
    module.register_buffer("phases", torch.randn(3))


@pytest.mark.parametrize("more", [spectral, orthogonal, phases])
def test_every_replica_starts_with_the_buffers_that_its_own_module_was_made_with(more):
    made = []

    class Kept(Base):
        def more(self):
            more(self)
            made.append(self)

    spec = StudySpec(
        name="s", testbed=VECTORS, model=ModuleModel(factory=Kept, head="fc"), optimizer=AdamW(), steps=1, seeds=2,
        evaluation=Evaluation(measures=()), arms=(Arm(name="a", role="baseline"), Arm(name="b")),
    )  # fmt: skip
    engine = Engine(plan(spec))
    heads = engine.layout.view(engine.state.flat)["fc.weight"]
    for row, head in enumerate(heads):
        (own,) = (module for module in made if torch.equal(module.fc.weight, head))
        for name, buffer in own.named_buffers():
            assert torch.equal(engine.state.buffers[name][row], buffer)
    first, second = (engine.state.buffers[name] for name, _ in own.named_buffers()).__next__()[:2]
    assert not torch.equal(first, second)


class WritesIntoInputs(Base):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


def test_a_module_may_write_into_its_inputs():
    network = network_of(WritesIntoInputs)
    inputs = torch.stack([VECTORS.split(seed).train_inputs for seed in range(2)]).double()
    before, parameters = inputs.clone(), of_seeds(network)
    first = network.features(parameters, inputs)
    assert torch.equal(inputs, before)
    assert torch.equal(network.features(parameters, inputs), first)
    plain = network_of(Base)
    torch.testing.assert_close(first, plain.features(parameters, inputs - 0.5))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.embedding, self.body, self.fc = nn.Embedding(11, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 11)

    def forward(self, x):
        padding = (x == 0) & (torch.arange(2) > 0)
        return self.fc(self.body(self.embedding(x), src_key_padding_mask=padding)[:, 0])


def test_an_encoder_with_padding_is_measured_as_it_is_trained():
    network = network_of(Encoder, TOKENS)
    assert network.batched, network.reason
    inputs, parameters = torch.stack([TOKENS.split(seed).train_inputs for seed in range(2)]), of_seeds(network)
    trained = network.features(parameters, inputs)
    with network.working_on(training=False), torch.no_grad():
        measured = network.features(parameters, inputs)
    torch.testing.assert_close(measured, trained, rtol=1e-12, atol=1e-12)
    assert torch.backends.mha.get_fastpath_enabled()


class Scaled(Base):
    def more(self):
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * super().forward(x)


class Skipping(Base):
    def more(self):
        self.skip = nn.Linear(64, 10)
        nn.init.zeros_(self.skip.weight)
        nn.init.zeros_(self.skip.bias)

    def forward(self, x):
        return super().forward(x) + self.skip(x)


class OtherAnswer(Base):
    def forward(self, x):
        return super().forward(x) * (2 if self.training else 1)


def dropping(draw, training=True):
    class Dropping(Base):
        def hidden(self, x):
            dropped = self.training is training and draw() > 2  # never, but drawn it is
            return x[:, :8] if dropped else super().hidden(x)

    return Dropping


class Complex(Base):
    def more(self):
        self.phase = nn.Parameter(torch.randn(8, dtype=torch.cfloat))

    def hidden(self, x):
        return (super().hidden(x) * self.phase).abs()


class FromNumPy(Base):
    def more(self):
        self.a.weight.data = torch.from_numpy(np.random.default_rng().normal(size=(8, 64))).float()


class BufferFromNumPy(Base):
    def more(self):
        self.register_buffer("phases", torch.from_numpy(np.random.default_rng().normal(size=8)).float())

    def hidden(self, x):
        return super().hidden(x) + self.phases


class RootsOfNegatives(Base):
    def hidden(self, x):
        return super().hidden((x - 2).sqrt())


class SmallAndTogether(Base):
    """Samples of a batch see each other in eval mode, and features are small."""

    def hidden(self, x):
        hidden = 1e-6 * super().hidden(x)
        return hidden - hidden.mean(0)


class MadeLate(Base):
    """Something is made in the first forward pass: a buffer, or numbers by chance."""

    def hidden(self, x):
        if "late" not in self._buffers:
            self.register_buffer("late", self.numbers())
        return super().hidden(x) * self.late

    def numbers(self):
        return torch.linspace(0, 1, 8)


class DrawnLate(MadeLate):
    def numbers(self):
        with torch.no_grad():
            return torch.randn(8)


def test_a_buffer_that_is_made_in_the_first_forward_pass():
    network = network_of(MadeLate)
    network.prepare(2, torch.device("cpu"), torch.float64)
    parameters, inputs = of_seeds(network), torch.rand(2, 4, 64, dtype=torch.float64)
    found = network.features(parameters, inputs)
    hidden = torch.tanh(inputs[1] @ parameters["a.weight"][1].T + parameters["a.bias"][1])
    expected = (hidden @ parameters["b.weight"][1].T + parameters["b.bias"][1]).tanh() * torch.linspace(0, 1, 8)
    torch.testing.assert_close(found[1], expected, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_numbers_that_are_drawn_in_the_first_forward_pass_follow_from_no_seed():
    with pytest.raises(ValueError, match=r"random numbers in its first forward pass; .*draw them where it is made"):
        network_of(DrawnLate)


class LooksInEval(Base):
    """Looks at its numbers in eval mode alone, which cannot be batched."""

    def hidden(self, x):
        return super().hidden(x) if self.training or float(x.abs().max()) > 0 else x[:, :8]


def test_what_cannot_be_batched_in_eval_mode_alone_runs_one_by_one():
    network = network_of(LooksInEval)
    assert not network.batched
    assert "torch.func cannot batch it" in network.reason


ONE = Base()


def recomputing(reentrant, norm=nn.Identity, scale=1):
    class Recomputing(Base):
        def more(self):
            self.norm = norm()

        def hidden(self, x):
            x = x.clone().requires_grad_() if reentrant else x
            return self.norm(scale * checkpoint(super().hidden, x, use_reentrant=reentrant))

    return Recomputing


class Following(Base):
    """Keeps a running mean in an attribute that is no buffer."""

    def __init__(self, reads):
        super().__init__()
        self.mean, self.reads = torch.zeros(8), reads

    def hidden(self, x):
        hidden = super().hidden(x)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * hidden.detach().mean(0)
        return hidden - self.mean if self.training is self.reads else hidden


class Clipped(Base):
    def hidden(self, x):
        with torch.no_grad():
            self.a.weight.clamp_(-1, 1)
        return super().hidden(x)


class ClippedPastAutograd(Base):
    def hidden(self, x):
        with torch.no_grad():
            self.a.weight.data.clamp_(-1, 1)
        return super().hidden(x)


class LazyBuffers(Base):
    def more(self):
        self.norm = nn.LazyBatchNorm1d(affine=False)

    def hidden(self, x):
        return self.norm(super().hidden(x))


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (Scaled, r"parameter 'scale' goes into its answer behind the head or past it \(a scale, a skip"),
        (Skipping, "parameter 'skip.weight' goes into its answer behind the head or past it"),
        (OtherAnswer, r"what its head returns \(logits\) while it trains too"),
        (dropping(lambda: float(torch.rand(()))), "the module draws random numbers"),
        (dropping(random.random), "the module draws random numbers"),
        (dropping(lambda: np.random.rand()), "the module draws random numbers"),  # noqa: NPY002
        (dropping(random.random, training=False), "the module draws random numbers"),
        (Complex, "parameter 'phase' is complex, .* use torch.view_as_complex"),
        (FromNumPy, "gives parameter 'a.weight' other initial values each time"),
        (lambda: ONE, "to make a new module at each call, got the same one twice"),
        (recomputing(False), r"called with other parameters than when it has them: .*torch.utils.checkpoint"),
        (recomputing(True), r"called with other parameters than when it has them: .*torch.utils.checkpoint"),
        (recomputing(False, lambda: nn.LayerNorm(8), 100), r"for its backward pass \(torch.utils.checkpoint\)"),
        (recomputing(True, lambda: nn.BatchNorm1d(8), 100), r"for its backward pass \(torch.utils.checkpoint\)"),
        (BufferFromNumPy, "draws buffers with NumPy or Python"),
        (RootsOfNegatives, r"finite numbers to enter the head .* NaN or infinity for some drawn from \[0, 1\)"),
        (SmallAndTogether, "features of a sample in eval mode to depend on that sample alone"),
        (lambda: Following(True), "once it has trained on them; keep what changes in buffers"),
        (lambda: Following(False), "once it has trained on them; keep what changes in buffers"),
        (Clipped, r"writes into its parameter 'a.weight' in its forward pass \(max_norm of an embedding, clipped w"),
        (ClippedPastAutograd, "writes into its parameter 'a.weight' in its forward pass"),
        (LazyBuffers, "buffer 'norm.running_mean' has no shape yet; give the sizes of lazy layers"),
    ],
)
def test_what_a_run_would_do_otherwise_than_a_plain_loop_is_refused(factory, words):
    with pytest.raises(ValueError, match=words):
        network_of(factory)


@pytest.mark.parametrize("positive", [torch.sqrt, torch.log1p])
def test_a_module_may_take_roots_of_inputs_that_are_never_negative(positive):
    class OfPositive(Base):
        def hidden(self, x):
            return super().hidden(positive(x))

    network = network_of(OfPositive)
    inputs = torch.stack([VECTORS.split(seed).train_inputs for seed in range(2)]).double()
    assert network.features(of_seeds(network), inputs).isfinite().all()


def test_a_module_may_refuse_numbers_that_are_too_large_to_be_right():
    class Careful(Base):
        def hidden(self, x):
            if (self.a(x).detach().abs() > 100).any():
                raise RuntimeError("something went wrong")
            return super().hidden(x)

    assert network_of(Careful).features(of_seeds(network_of(Careful)), torch.rand(2, 3, 64).double()).shape == (2, 3, 8)


class Same(torch.autograd.Function):
    """x, whose slope comes out wrong under vmap."""

    @staticmethod
    def forward(x, slope):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.slope = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return ctx.slope * gradient, None

    @staticmethod
    def vmap(info, in_dims, x, slope):
        return Same.apply(x, 2 * slope), in_dims[0]


@pytest.mark.parametrize("end", [nn.Identity(), nn.LayerNorm(8), nn.BatchNorm1d(8)], ids=lambda end: type(end).__name__)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_wrong_slopes_are_noticed_at_any_scale_and_behind_any_norm(end, scale):
    class Ending(Base):
        def more(self):
            self.end = type(end)(8)

        def hidden(self, x):
            return self.end(scale * Same.apply(super().hidden(x), 1.0))

    network = network_of(Ending)
    assert not network.batched
    assert "it gives other numbers" in network.reason
