"""Networks whose hidden layers tests look at, their data, and what a Probe says of them."""

import torch
from torch import nn

import grokscape as gs

KAPPA = "relative_flatness@first"


class Net(nn.Module):
    def __init__(self, norm=None):
        super().__init__()
        self.first, self.norm, self.second, self.head = (
            nn.Linear(4, 6), norm or nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 3))

    def forward(self, x):
        return self.head(torch.tanh(self.second(torch.tanh(self.norm(self.first(x))))))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.block, self.head = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.block(torch.tanh(self.first(self.table(x)))))


def data(samples=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0)


def made(kind=Net, *args):
    torch.manual_seed(0)
    return kind(*args).double()


def taken(model, x, y, layers, number, head="head"):
    """κ of each layer in so many passes."""
    with gs.Probe(model, head=head, layers=layers) as probe:
        probes = []
        for _ in range(number):
            model(x)
            probes.append(probe.snapshot(y).layers)
    return {layer: torch.stack([found[f"relative_flatness@{layer}"] for found in probes]).detach() for layer in layers}
