"""The fast transformer against one written from torch.nn parts, over all positions, one replica at a time."""

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from grokscape.models import Transformer
from grokscape.testbeds import InputSpec

VOCABULARY, CLASSES = 5, 7


class PlainBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        width, bias = config.width, config.bias
        self.attention = nn.MultiheadAttention(width, config.heads, bias=bias, batch_first=True)
        hidden = int(config.mlp_ratio * width)
        self.up, self.down = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
        self.norm1, self.norm2 = (
            nn.Identity() if config.norm == "none" else nn.LayerNorm(width, bias=bias) for _ in range(2)
        )
        self.activation = {"relu": nn.ReLU(), "gelu": nn.GELU()}[config.activation]
        self.where = config.norm

    def forward(self, x):
        mask = torch.full((x.shape[1],) * 2, -torch.inf, dtype=x.dtype).triu(1)
        before = self.norm1(x) if self.where == "pre" else x
        x = x + self.attention(before, before, before, attn_mask=mask, need_weights=False)[0]
        x = self.norm1(x) if self.where == "post" else x
        before = self.norm2(x) if self.where == "pre" else x
        x = x + self.down(self.activation(self.up(before)))
        return self.norm2(x) if self.where == "post" else x


class PlainTransformer(nn.Module):
    def __init__(self, config, length):
        super().__init__()
        signs = (2 if length == 2 else 1) + config.start
        self.start = VOCABULARY + signs - 1 if config.start else None
        self.embedding = nn.Embedding(VOCABULARY + signs, config.width)
        self.positions = nn.Parameter(torch.zeros(length + signs, config.width))
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.layers))
        self.final = nn.LayerNorm(config.width, bias=config.bias) if config.norm == "pre" else nn.Identity()

    def forward(self, tokens):
        first, last = torch.full_like(tokens[:, :1], VOCABULARY), torch.full_like(tokens[:, :1], VOCABULARY + 1)
        if tokens.shape[1] == 2:
            tokens = torch.cat([tokens[:, :1], first, tokens[:, 1:], last], 1)
        else:
            tokens = torch.cat([tokens, first], 1)
        if self.start is not None:
            tokens = torch.cat([torch.full_like(tokens[:, :1], self.start), tokens], 1)
        x = self.embedding(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.final(x)[:, -1]


NAMES = {
    "attention.in_proj_weight": "qkv.weight",
    "attention.in_proj_bias": "qkv.bias",
    "attention.out_proj.weight": "out.weight",
    "attention.out_proj.bias": "out.bias",
}


def fill(plain, parameters):
    """Copy one replica's parameters into the plain network."""
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if name == "embedding.weight":
                value.copy_(torch.cat([parameters["embedding"], parameters["signs"]]))
                continue
            block, _, part = name.removeprefix("blocks.").partition(".")
            name = f"layers.{block}.{NAMES.get(part, part)}" if name.startswith("blocks.") else name
            value.copy_(parameters[name.replace("final.", "final_norm.")])


VARIANTS = {
    "as published": Transformer(width=16),
    "pre, biases, gelu": Transformer(width=16, norm="pre", bias=True, activation="gelu"),
    "post": Transformer(width=16, norm="post", bias=True),
    "none": Transformer(width=12, heads=3, norm="none", mlp_ratio=2),
    "one layer": Transformer(width=16, layers=1, norm="pre"),
    "three layers": Transformer(width=16, layers=3, norm="post"),
    "start sign": Transformer(width=16, start=True),
    "start sign, one layer": Transformer(width=16, layers=1, start=True, bias=True),
    "start sign, three layers": Transformer(width=16, layers=3, start=True, norm="none"),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("length", "samples"), [(2, 25), (2, 3), (1, 4), (3, 12), (9, 6)])
def test_it_equals_the_plain_one_over_all_positions(variant, length, samples):
    config = VARIANTS[variant]
    network = config.build(InputSpec("tokens", (length,), vocabulary=VOCABULARY), CLASSES)
    generator = torch.Generator().manual_seed(3)
    one = network.init(generator, torch.float64)
    one = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in one.items()}
    stacked = {name: torch.stack([value * 0, value]).requires_grad_() for name, value in one.items()}
    tokens = torch.randint(VOCABULARY, (2, samples, length), generator=generator)
    plain = PlainTransformer(config, length).double()
    fill(plain, one)

    features, expected = network.features(stacked, tokens)[1], plain(tokens[1])
    torch.testing.assert_close(features, expected, rtol=1e-10, atol=1e-12)

    direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradient = torch.autograd.grad((features * direction).sum(), [v for k, v in stacked.items() if "head" not in k])
    (expected * direction).sum().backward()
    ours = dict(zip([k for k in stacked if "head" not in k], (g[1] for g in gradient), strict=True))
    filled = PlainTransformer(config, length).double()
    fill(filled, ours)
    for (name, parameter), (_, ours_there) in zip(plain.named_parameters(), filled.named_parameters(), strict=True):
        torch.testing.assert_close(ours_there, parameter.grad, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def test_shared_states_change_nothing():
    network = Transformer(width=16).build(InputSpec("tokens", (2,), vocabulary=VOCABULARY), CLASSES)
    one = network.init(torch.Generator().manual_seed(0), torch.float64)
    stacked = {name: value.unsqueeze(0) for name, value in one.items()}
    tokens = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY)).unsqueeze(0)
    shared = network.features(stacked, tokens)
    network.share = False
    torch.testing.assert_close(network.features(stacked, tokens.clone()), shared, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [2, 9])
def test_bfloat16_products_stay_near(length):
    network = Transformer(width=16, start=True).build(InputSpec("tokens", (length,), vocabulary=VOCABULARY), CLASSES)
    one = network.init(torch.Generator().manual_seed(0))
    stacked = {name: value.unsqueeze(0).requires_grad_() for name, value in one.items()}
    tokens = torch.randint(VOCABULARY, (1, 20, length), generator=torch.Generator().manual_seed(1))

    def gradient():
        logits = network.logits(stacked, tokens)
        return torch.autograd.grad(logits.float().square().mean(), stacked["layers.0.qkv.weight"])[0]

    exact = gradient()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradient()
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.filterwarnings("ignore:.*Function.* should not be instantiated")  # the compiler's own doing
@pytest.mark.parametrize(("length", "norm"), [(2, "pre"), (2, "post"), (9, "pre")])
def test_the_compiler_sees_all_of_it(length, norm):
    spec = InputSpec("tokens", (length,), vocabulary=VOCABULARY)
    network = Transformer(width=16, norm=norm).build(spec, CLASSES)
    one = network.init(torch.Generator().manual_seed(0), torch.float64)
    stacked = {name: value.unsqueeze(0).requires_grad_() for name, value in one.items()}
    tokens = torch.randint(VOCABULARY, (1, 20, length), generator=torch.Generator().manual_seed(1))
    torch._dynamo.reset()
    compiled = torch.compile(network.features, backend="aot_eager", fullgraph=True)

    def gradient(features):
        return torch.autograd.grad(features(stacked, tokens).square().sum(), stacked["layers.0.qkv.weight"])[0]

    torch.testing.assert_close(gradient(compiled), gradient(network.features), rtol=1e-10, atol=1e-12)


def test_inputs_written_to_are_looked_up_anew():
    network = Transformer(width=16).build(InputSpec("tokens", (2,), vocabulary=VOCABULARY), CLASSES)
    stacked = {name: value.unsqueeze(0) for name, value in network.init(torch.Generator().manual_seed(0)).items()}
    tokens = torch.cartesian_prod(torch.arange(VOCABULARY), torch.arange(VOCABULARY)).unsqueeze(0)
    network.features(stacked, tokens)
    tokens[0, 0] = torch.tensor([3, 4])
    assert torch.equal(network.features(stacked, tokens), network.features(stacked, tokens.clone()))


def test_errors_say_what_to_do():
    with pytest.raises(ValidationError, match=r"width=10 and heads=4; the nearest width that works is 12"):
        Transformer(width=10, heads=4)
    with pytest.raises(ValueError, match=r"needs token inputs, got 'vector' inputs; use an mlp"):
        Transformer().build(InputSpec("vector", (4,)), 2)
    with pytest.raises(ValueError, match=r"vocabulary of 5 and 7 classes; use tied=False"):
        Transformer(tied=True).build(InputSpec("tokens", (2,), vocabulary=VOCABULARY), CLASSES)
