"""Small networks with a head, batch norm and dropout, and an adapter, that several tests measure or train."""

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, width: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.aux = nn.Linear(4, 7)
        self.body = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.body(x))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.fc = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 10)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.convolution(x))).mean((2, 3)))


class LowRank(nn.Module):
    """A linear layer with a low-rank update, as adapters write it."""

    def __init__(self, base: nn.Linear, rank: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.base_layer(x) + 0.5 * self.lora_B["default"](self.lora_A["default"](self.dropout(x)))


def net(**options) -> Net:
    torch.manual_seed(0)
    return Net(**options)


def gradients(loss, model):
    return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
