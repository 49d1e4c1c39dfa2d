"""A network with dropout, samples of four classes that tests measure, and measures of all of them at once."""

import torch
from torch import nn

import grokscape as gs

CLASSES = 4
NOISY = {"feature_robustness", "representativeness"}  # other batches, other noise
GATHERED = tuple(name for name in gs.MEASURES if name != "head_sharpness")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


def samples(count=150, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(9))
    return centres[labels] + torch.randn(count, 6, generator=generator), labels


def whole(model, inputs, labels, names=GATHERED, around=None):
    """The same measures from all features at once, in float64."""
    def snapshot(inputs, labels):
        features = model[:3].eval()(inputs).detach().double()
        weight, bias = model[3].weight.detach().double(), model[3].bias.detach().double()
        return gs.Snapshot(features, features @ weight.T + bias, labels, weight, bias, dict(model.named_parameters()))

    values = gs.evaluate(snapshot(inputs, labels), names, around=snapshot(*around) if around else None)
    return {name: float(value.detach()) for name, value in values.items()}
