"""Models that are copied, compiled or computed again while a probe or a callback watches them."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import grokscape as gs
from probed import gradients, net


def stored(model):
    """The model by way of a file."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [copy.deepcopy, stored, lambda model: AveragedModel(model).module])
def test_a_copy_is_neither_watched_nor_changed(data, make, compiled):
    model, (x, y) = net().eval(), data
    plain = model(x)
    if compiled:
        model.compile(backend="eager")
    with gs.Probe(model, transform=lambda features: 2 * features) as probe:
        model(x)
        seen = probe.features
        other = make(model)  # a teacher, an average of weights, the best so far
        assert torch.equal(other(x), plain)
        assert probe.features is seen
        gs.Promote("cdnv", strength=1.0)(probe.snapshot(y)).backward()
    assert type(other.fc) is type(model.fc) is torch.nn.Linear
    assert other.fc.__dict__.keys() == model.fc.__dict__.keys()


def test_a_copy_of_a_model_with_a_watched_hidden_layer(data):
    model, (x, y) = net().eval(), data
    with gs.Probe(model, layers=["body.0"]) as probe:
        model(x)
        copy.deepcopy(model)(x)
        assert "relative_flatness@body.0" in probe.snapshot(y).layers


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_head_in_a_checkpoint(data, reentrant):
    model, (x, y) = net().eval(), data
    with gs.Probe(model) as probe:
        checkpoint(model, x.clone().requires_grad_(), use_reentrant=reentrant)
        if reentrant:
            with pytest.raises(RuntimeError, match=r"'fc' ran in a reentrant checkpoint.* use_reentrant=False"):
                probe.snapshot(y)
            return
        found = gradients(gs.Promote("cdnv", strength=1.0)(probe.snapshot(y)), model.body)
        model(x)
        expected = gradients(gs.Promote("cdnv", strength=1.0)(probe.snapshot(y)), model.body)
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_forward_that_was_compiled_before(data):
    model, (x, y) = net().eval(), data
    expected = gs.measure(model, data, measures=["relative_flatness", "cdnv"])
    model.forward = torch.compile(model.forward, backend="eager")
    model(x)
    assert dict(gs.measure(model, data, measures=["relative_flatness", "cdnv"])) == dict(expected)
    with gs.Probe(model) as probe:
        loss = F.cross_entropy(model(x), y)
        assert torch.equal(F.cross_entropy(probe.snapshot(y).logits, y), loss)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_function_that_was_compiled_before_and_calls_the_model(data):
    model, (x, y) = net().eval(), data
    step = torch.compile(lambda x: model(x), backend="eager")
    step(x)
    with gs.Probe(model) as probe:
        step(x)
        with pytest.raises(RuntimeError, match=r"no forward pass of Net was seen.* torch.compiler.reset\(\)"):
            probe.snapshot(y)
        torch.compiler.reset()
        logits = step(x)
        assert torch.equal(probe.snapshot(y).logits, logits)


class Listed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList([torch.nn.Linear(4, 8)])  # has no forward once it is scripted

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_part_that_was_scripted(data):
    model, (x, y) = net().eval(), data
    model.body = Listed()
    expected = gs.measure(model, data, measures=["relative_flatness", "cdnv"])
    model.body = torch.jit.script(model.body)
    assert dict(gs.measure(model, data, measures=["relative_flatness", "cdnv"])) == pytest.approx(dict(expected))
    with gs.Probe(model) as probe:
        assert torch.equal(model(x), probe.snapshot(y).logits)
