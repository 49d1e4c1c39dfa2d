"""The probe on models of every common make: what it sees, what it leaves alone, and what it says when it cannot."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokscape as gs
from probed import LowRank, Net, gradients, net


def by_hand(model: Net, x, y, strength: float):
    """Cross-entropy plus κ̄ written out from the paper's formula, without the library."""
    phi = model.body(x)
    logits = phi @ model.fc.weight.T + model.fc.bias
    p = logits.softmax(1)
    bound = model.fc.weight.square().sum() * (phi.square().sum(1) * (1 - p.square().sum(1))).mean()
    return F.cross_entropy(logits, y) + strength * bound


def assert_same(first, second, **tolerance):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("head", [None, "fc"])
def test_penalty_gradient_equals_the_one_by_hand(data, head):
    model, twin, (x, y) = net(), net(), data
    torch.manual_seed(5)
    with gs.Probe(model, head=head) as probe:
        loss = F.cross_entropy(model(x), y)
        loss = loss + gs.Promote("relative_flatness_bound", strength=0.1)(probe.snapshot(y), step=0)
    torch.manual_seed(5)
    assert_same(gradients(loss, model), gradients(by_hand(twin, x, y, 0.1), twin), rtol=1e-4, atol=1e-6)


def test_a_probe_changes_no_weight_no_buffer_and_no_random_number(data):
    x, y = data

    def train(probed: bool):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(7)
        for _ in range(4):
            optimizer.zero_grad()
            if probed:
                with gs.Probe(model) as probe:
                    loss = F.cross_entropy(model(x), y)
                    assert torch.isfinite(gs.relative_flatness(
                        (s := probe.snapshot(y)).features, s.weight, s.logits))
            else:
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return model.state_dict(), torch.get_rng_state()

    (with_probe, numbers), (without, same_numbers) = train(True), train(False)
    assert torch.equal(numbers, same_numbers)
    assert with_probe.keys() == without.keys()
    assert all(torch.equal(with_probe[name], without[name]) for name in without)


def test_everything_is_restored(data):
    model, (x, y) = net(), data
    before = copy.deepcopy(dict(model.fc.__dict__)).keys(), type(model.fc)
    with gs.Probe(model) as probe:
        model(x)
        assert probe.snapshot(y).features.shape == (24, 8)
    assert (dict(model.fc.__dict__).keys(), type(model.fc)) == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert model.training


def test_mixed_precision_gives_a_float32_snapshot(data):
    model, (x, y) = net(), data
    with gs.Probe(model) as probe, torch.autocast("cpu", torch.bfloat16):
        model(x)
        seen = probe.snapshot(y)
    assert probe.head.name == "fc"
    assert seen.features.dtype == seen.logits.dtype == seen.weight.dtype == torch.float32
    assert all(g is not None for g in gradients(gs.Promote("cdnv", strength=1.0)(seen), model.body))


def test_gradient_accumulation_adds_up(data):
    x, y = data
    model = net().eval()
    penalty = gs.Promote("relative_flatness_bound", strength=0.1)
    with gs.Probe(model) as probe:
        for part in (slice(0, 12), slice(12, 24)):
            loss = F.cross_entropy(model(x[part]), y[part]) + penalty(probe.snapshot(y[part]))
            (loss / 2).backward()
    expected = gradients(by_hand(model, x, y, 0.1), model)
    used = [p.grad for p in model.parameters()]
    assert_same(used, expected, rtol=1e-4, atol=1e-6)  # both are means over samples, so they add up exactly


def test_a_frozen_backbone_leaves_the_head_to_the_penalty(data):
    model, (x, y) = net(), data
    model.body.requires_grad_(False)
    with gs.Probe(model) as probe:
        model(x)
        seen = probe.snapshot(y)
    assert not seen.features.requires_grad
    gs.Promote("relative_flatness", strength=1.0)(seen).backward()
    assert model.fc.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.body.parameters())


@pytest.mark.parametrize("head", [None, "fc"])
def test_an_adapter_counts_with_what_it_adds(data, head):
    model, (x, y) = net(), data
    model.fc = LowRank(model.fc)
    with gs.Probe(model, head=head) as probe:
        model(x)
        seen = probe.snapshot(y)
    a, b = model.fc.lora_A["default"].weight, model.fc.lora_B["default"].weight
    assert probe.head.name == "fc"
    torch.testing.assert_close(seen.weight, model.fc.base_layer.weight + 0.5 * b @ a)
    torch.testing.assert_close(seen.bias, model.fc.base_layer.bias)
    gs.Promote("relative_flatness", strength=1.0)(seen).backward()
    assert a.grad.abs().sum() > 0
    assert model.fc.base_layer.weight.grad is None


def test_an_adapter_with_dropout_draws_no_more_random_numbers(data):
    model, (x, y) = net(), data
    model.fc = LowRank(model.fc, dropout=0.5)
    with gs.Probe(model) as probe:
        model(x)
        before = torch.get_rng_state()
        probe.snapshot(y)
    assert torch.equal(before, torch.get_rng_state())
    assert model.fc.dropout.training


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *inputs):
        return self.module(*inputs)


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel])
def test_wrappers_are_seen_through(data, wrap):
    model, (x, y) = net(), data
    with gs.Probe(wrap(model), head="fc") as probe:
        wrapped_logits = probe._outer(x)
        seen = probe.snapshot(y)
    assert torch.equal(seen.logits, wrapped_logits)
    assert "fc.weight" in seen.parameters


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_that_was_compiled_before(data, in_place):
    model, (x, y) = net().eval(), data
    if in_place:
        model.compile(backend="eager", fullgraph=True)
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager", fullgraph=True)
    plain = compiled(x)
    names, kind = list(compiled.state_dict()), type(model.fc)
    for _ in range(2):
        with gs.Probe(compiled, head="fc") as probe:
            logits = compiled(x)
            loss = gs.Promote("relative_flatness_bound", strength=0.1)(probe.snapshot(y)) + F.cross_entropy(logits, y)
            assert list(compiled.state_dict()) == names
    twin = net().eval()
    assert_same(gradients(loss, model)[2:], gradients(by_hand(twin, x, y, 0.1), twin)[2:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(compiled(x), plain)
    assert type(model.fc) is kind


def test_transform_acts_before_the_head_and_can_be_taken_off(data):
    model, (x, y) = net().eval(), data
    with gs.Probe(model, transform=gs.NormalizeFeatures()) as probe:
        logits = model(x)
        torch.testing.assert_close(probe.snapshot(y).features.norm(dim=1), torch.ones(24))
        assert torch.equal(probe.logits, logits)
        probe.transform = None
        model(x)
        assert torch.equal(probe.features, model.body(x))


# --- sequences ---------------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """Logits at every position of a sequence."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, tokens):
        return {"logits": self.head(self.table(tokens))}


class LastToken(Tagger):
    """The same, answering at the last token that is not padding (0)."""

    def forward(self, tokens):
        last = (tokens != 0).sum(1) - 1
        return {"loss": None, "logits": super().forward(tokens)["logits"][torch.arange(len(tokens)), last]}


def test_ignored_positions_are_left_out():
    torch.manual_seed(0)
    model, tokens, labels = Tagger(), torch.randint(0, 11, (4, 6)), torch.randint(0, 5, (4, 6))
    labels[:, 3:] = -100
    with gs.Probe(model) as probe:
        logits = model(tokens)["logits"]
        seen = probe.snapshot(labels)
    assert seen.features.shape == (12, 6)
    assert torch.equal(seen.logits, logits[:, :3].flatten(0, 1))
    assert torch.equal(seen.labels, labels[:, :3].flatten())


def test_a_classifier_that_answers_at_one_position():
    torch.manual_seed(0)
    model = LastToken()
    tokens = torch.tensor([[3, 4, 5, 0], [6, 0, 0, 0], [1, 2, 3, 4]])
    with gs.Probe(model) as probe:
        logits = model(tokens)["logits"]
        seen = probe.snapshot(torch.tensor([0, 1, 2]))
    assert torch.equal(seen.logits, logits)
    assert torch.equal(seen.features, model.table(torch.tensor([5, 6, 4])))


# --- what cannot be probed ------------------------------------------------------------------------------------------


def test_a_model_without_a_linear_layer():
    with pytest.raises(ValueError, match=r"no linear layer in Sequential.*end the model in torch\.nn\.Linear"):
        gs.Probe(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()))


def test_a_head_that_does_not_exist_names_the_near_ones():
    with pytest.raises(ValueError, match=r"Net has no module 'fcc'; near: 'fc'"):
        gs.Probe(net(), head="fcc")


def test_a_head_that_is_not_linear_names_the_linear_ones():
    with pytest.raises(ValueError, match=r"'body\.1' of Net is a BatchNorm1d, which is not linear.*'fc'"):
        gs.Probe(net(), head="body.1")


def test_the_head_itself_is_a_name_for_it():
    model = net()
    assert gs.Probe(model, model.fc).head.name == "fc"
    with pytest.raises(ValueError, match="head is a Linear that is no part of the model"):
        gs.Probe(model, nn.Linear(8, 3))


def test_a_container_stands_for_its_last_linear_layer():
    assert gs.Probe(net(), head="body").head.name == "body.0"


def test_a_layer_that_takes_no_part(data):
    model, (x, y) = net(), data
    with gs.Probe(model, head="aux") as probe:
        model(x)
        with pytest.raises(RuntimeError, match=r"'aux' was not called in the last forward pass of Net.*'fc'"):
            probe.snapshot(y)


def test_a_layer_that_is_not_the_last(data):
    model, (x, y) = net(), data
    message = r"'body\.0' is not the head of Net: it returns \(24, 8\).*\(24, 3\).*'fc'"
    with gs.Probe(model, head="body.0") as probe:
        model(x)
        with pytest.raises(ValueError, match=message):
            probe.snapshot(y)


def test_something_after_the_head(data):
    model, (x, y) = nn.Sequential(net(), nn.Softmax(dim=1)), data
    with gs.Probe(model) as probe:
        model(x)
        with pytest.raises(ValueError, match=r"'0\.fc' is not the head.*no softmax, scale or clipping"):
            probe.snapshot(y)


def test_something_after_the_head_that_shows_only_later(data):
    class Capped(Net):
        def forward(self, x):
            return 5 * torch.tanh(super().forward(x) / 5)

    torch.manual_seed(0)
    model, (x, y) = Capped().eval(), data
    model.fc.weight.data *= 0.01
    model.fc.bias.data.zero_()
    with gs.Probe(model) as probe:
        model(x)
        probe.snapshot(y)
        model.fc.weight.data *= 1000
        model(x)
        with pytest.raises(ValueError, match="the model's logits differ from what this layer returns"):
            probe.snapshot(y)


def test_no_forward_pass_yet(data):
    with gs.Probe(net()) as probe, pytest.raises(RuntimeError, match=r"no forward pass of Net was seen"):
        probe.snapshot(data[1])


def test_a_head_used_twice(data):
    class Twice(Net):
        def forward(self, x):
            return self.fc(self.body(x)) + self.fc(self.body(-x))

    torch.manual_seed(0)
    model, (x, y) = Twice(), data
    with gs.Probe(model) as probe:
        model(x)
        with pytest.raises(RuntimeError, match="called more than once"):
            probe.snapshot(y)


def test_a_model_that_is_called_by_its_parts(data):
    model, (x, y) = net(), data
    with gs.Probe(model) as probe:
        for inputs in (x, -x, 2 * x):
            features = model.body(inputs)
            logits = model.fc(features)
            seen = probe.snapshot(y)
            assert torch.equal(seen.logits, logits)
            assert torch.equal(seen.features, features)
            assert len(probe._seen) <= 2  # what was seen before is not kept, nor is its graph
            with torch.no_grad():
                model(inputs)
            assert torch.equal(probe.logits, model.fc(probe.features))


def test_labels_that_do_not_fit(data):
    model, (x, y) = net(), data
    with gs.Probe(model) as probe:
        model(x)
        with pytest.raises(ValueError, match=r"labels of shape \(23,\) do not fit"):
            probe.snapshot(y[:23])


def test_a_probe_is_entered_once(data):
    probe = gs.Probe(net())
    with probe, pytest.raises(RuntimeError, match="active already"):
        probe.__enter__()
