"""Formulas of the paper written out once more, sharing nothing with the library; and a batch."""

import pytest
import torch
import torch.nn.functional as F


@pytest.fixture
def bound():
    """κ̄ = ‖W‖² mean ‖φ‖² (1 − ‖softmax(z/τ)‖²)."""

    def formula(features, weight, logits, temperature=1.0):
        p = (logits / temperature).softmax(-1)
        return weight.square().sum() * (features.square().sum(-1) * (1 - p.square().sum(-1))).mean()

    return formula


@pytest.fixture
def cross_entropy():
    return F.cross_entropy


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(24, 4, generator=generator), torch.arange(24) % 3
