"""What a layer makes of a change of its weight for each sample alone, against the layer with its weight changed."""

import pytest
import torch
from torch import nn

from grokscape.perturbations import response

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), (5, 7)),
    "strides": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (6, 5)),
    "same": (nn.Conv1d(4, 4, 3, padding="same", groups=4), (7,)),
    "circular": (nn.Conv1d(4, 2, 3, padding=2, padding_mode="circular", stride=2), (6,)),
    "reflect": (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", groups=2), (4, 5)),
    "replicate": (nn.Conv3d(4, 6, (1, 2, 3), padding=1, padding_mode="replicate", groups=2), (2, 3, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_of_a_convolution(name):
    torch.manual_seed(0)
    module, sizes = CONVOLUTIONS[name]
    module = module.double()
    inputs = torch.randn(3, 4, *sizes, dtype=torch.float64)
    groups, outputs, seen = module.groups, module.out_channels // module.groups, module.weight[0].numel()
    rows = torch.randn(3, groups, seen, dtype=torch.float64)
    column = torch.randn(3, groups, outputs, dtype=torch.float64)
    found = response(module, inputs, rows)
    for sample in range(3):
        change = (column[sample, :, :, None] * rows[sample, :, None, :]).reshape(module.weight.shape)
        expected = moved(module, inputs[sample : sample + 1], change)[0]
        made = (column[sample].flatten(), found[sample].repeat_interleave(outputs, 0))
        torch.testing.assert_close(torch.einsum("c,c...->c...", *made), expected)


@pytest.mark.parametrize("positions", [(), (5,), (2, 3)])
def test_of_a_linear_layer(positions):
    torch.manual_seed(0)
    module = nn.Linear(4, 3).double()
    inputs, rows = torch.randn(6, *positions, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    column = torch.randn(3, dtype=torch.float64)
    found = response(module, inputs, rows)
    assert found.shape == (6, *positions)
    assert torch.equal(response(module, inputs, rows[:, None]), found)
    for sample in range(6):
        expected = moved(module, inputs[sample], column[:, None] * rows[sample])
        torch.testing.assert_close(found[sample][..., None] * column, expected)


def test_derivatives():
    module, inputs = nn.Conv1d(4, 2, 2, groups=2).double(), torch.randn(3, 4, 3, dtype=torch.float64)
    rows = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, r: response(module, x, r), (inputs.requires_grad_(), rows))


@torch.no_grad()
def moved(module, inputs, change):
    """What is added to the output when the weight changes."""
    before = module(inputs)
    module.weight += change
    after = module(inputs)
    module.weight -= change
    return after - before
