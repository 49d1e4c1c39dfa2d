"""κ of hidden layers in somebody's own loop: what a Probe gives out is what layer flatness says, with slopes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokscape as gs
from grokscape.integrations import Applied
from grokscape.measures import find_measure
from grokscape.measures.curvature import sharpness
from grokscape.measures.layer_routes import Layer
from grokscape.perturbations import DifferentiableNorms
from layered import KAPPA, Net, Tokens, data, made, taken


def test_snapshots_have_the_flatness_of_layers():
    model, (x, y) = made(), data()
    expected = gs.layer_flatness(model, (x, y), ["first", "second"], exact=True)
    for layer, values in taken(model, x, y, ["first", "second"], 400).items():
        assert abs(values.mean() - expected[layer].value) <= 4 * values.std() / 20


def test_signs_go_on_from_probe_to_probe_and_begin_anew_with_a_model():
    (x, y), first, second = data(8), made(), made()
    values = [float(taken(model, x, y, ["first"], 1)["first"]) for model in (first, first, second, second)]
    assert values[:2] == values[2:]
    assert values[0] != values[1]


def test_the_model_answers_as_before_and_is_left_as_it_was():
    model, (x, _) = made(), data()
    expected = model(x)
    with gs.Probe(model, head="head", layers=["first", "second"]):
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert not model.first._forward_hooks


def test_sequences_are_one_sample_each():
    model = made(Tokens)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(7, (32, 5), generator=generator)
    y = torch.where(torch.rand(32, 5, generator=generator) < 0.3, -100, x % 3)
    expected = gs.layer_flatness(model, (x, y), ["first", "block.linear1"], exact=True)
    for layer, values in taken(model, x, y, ["first", "block.linear1"], 200).items():
        assert abs(values.mean() - expected[layer].value) <= 4 * values.std() / 200**0.5


def test_a_clamp_holds_it():
    def trained(clamp):
        model, (x, y) = made(), data()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        with gs.Probe(model, head="head", layers=["first"]) as probe:
            for step in range(600):
                loss = F.cross_entropy(model(x), y)
                loss = loss + clamp(probe.snapshot(y), step=step) if clamp else loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return gs.layer_flatness(model, (x, y), ["first"], exact=True)["first"].value, float(loss.detach())

    free, _ = trained(None)
    held, loss = trained(gs.Clamp(KAPPA, at_least=3 * free, strength=1.0, start=100))
    assert held > 0.8 * 3 * free
    assert loss < 0.1


def test_slopes_go_through_norms():
    """PyTorch's own third derivatives of a layer norm are wrong."""
    x, y = data(8)
    direction = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(step):
        model = made()
        with torch.no_grad():
            model.first.weight += step * direction
        with gs.Probe(model, head="head", layers=["first"]) as probe:
            model(x)
            return probe.snapshot(y).layers[KAPPA], model.first.weight

    (slope,) = torch.autograd.grad(*value(0.0))
    difference = (value(1e-5)[0] - value(-1e-5)[0]).detach() / 2e-5
    torch.testing.assert_close((slope * direction).sum(), difference, rtol=1e-5, atol=1e-7)


def test_passes_without_a_graph_are_left_alone():
    model, (x, y) = made(), data()
    with gs.Probe(model, head="head", layers=["first"]) as probe, torch.no_grad():
        expected = Net.forward(model, x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        seen = probe.snapshot(y)
        assert not seen.layers
        with torch.enable_grad():
            model(x)
        seen = probe.snapshot(y)
    assert not seen.layers
    with pytest.raises(ValueError, match=r"expected a snapshot with relative_flatness@first, got one with no hidden"):
        find_measure(KAPPA)(seen)


def test_arms_in_loops_of_ones_own_watch_the_layers_of_their_penalties():
    model, (x, y) = made(), data()
    with Applied(model, [gs.Promote(KAPPA, strength=1.0)], head="head") as applied:
        model(x)
        assert applied.penalty(y, 0) == applied.snapshot(y).layers[KAPPA]


@pytest.mark.parametrize("layer", ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc"])
def test_language_models(layer):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    chance = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = transformers.GPT2Config(**sizes, **chance, tie_word_embeddings=False)
    model, x = transformers.GPT2LMHeadModel(config).double(), torch.arange(24).reshape(4, 6) % 11
    expected = gs.layer_flatness(model, {"input_ids": x, "labels": x}, [layer], probes=200)[layer]
    values = taken(model, x, x, [layer], 200, head="lm_head")[layer]
    error = (values.var() / 200 + expected.stderr**2).sqrt()
    assert abs(values.mean() - expected.value) < 4 * error


def test_a_spectral_norm_takes_the_steps_that_it_takes_without_a_probe():
    def vectors(probed):
        model, (x, y) = made(), data(8)
        nn.utils.parametrizations.spectral_norm(model.first)
        if probed:
            with gs.Probe(model, head="head", layers=["first"]) as probe:
                model(x)
                probe.snapshot(y).layers[KAPPA].backward()
        else:
            model(x)
        return list(model.buffers())

    for expected, found in zip(vectors(False), vectors(True), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("norm", [nn.LayerNorm(64), nn.InstanceNorm1d(4, affine=True)])
def test_norms_in_half_precision_are_as_exact_as_pytorchs_own(norm, autocast):
    x = 20 + torch.randn(8, 4, 64, generator=torch.Generator().manual_seed(0))
    expected = norm(x.bfloat16().float())
    norm = norm if autocast else copy.deepcopy(norm).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        own = norm(x.bfloat16())
        with DifferentiableNorms():
            found = norm(x.bfloat16())
    assert found.dtype == own.dtype
    assert (found - expected).abs().mean() <= 1.01 * (own - expected).abs().mean()


def test_mixed_precision():
    def values(precise):
        model, (x, y) = made().float(), data(8)
        with gs.Probe(model, head="head", layers=["first", "second"]) as probe:
            with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
                model(x.float())
            return probe.snapshot(y).layers

    torch.testing.assert_close(values(False), values(True), rtol=0.1, atol=0.05, check_dtype=False)


def test_a_frozen_layer_has_a_flatness_that_depends_on_what_comes_after():
    model, (x, y) = made(), data(8)
    expected = taken(made(), x, y, ["first"], 1)
    model.first.requires_grad_(False)
    assert taken(model, x, y, ["first"], 1) == expected


def test_weights_put_in_by_functional_call():
    (x, y), other = data(8), made()
    other.load_state_dict({name: 1.5 * value for name, value in other.state_dict().items()})
    expected, model = taken(other, x, y, ["first"], 1), made()
    with gs.Probe(model, head="head", layers=["first"]) as probe:
        torch.func.functional_call(model, dict(other.named_parameters()), (x,))
        assert probe.snapshot(y).layers[KAPPA] == expected["first"]
    assert expected != taken(made(), x, y, ["first"], 1)


def test_hooks_on_weights_change_no_flatness_and_stay():
    def clipped():
        model = made()
        for parameter in model.parameters():
            parameter.register_hook(lambda slope: slope.clamp(-1e-4, 1e-4))
        return model

    model, (x, y) = clipped(), data(8)
    assert taken(model, x, y, ["first"], 1) == taken(made(), x, y, ["first"], 1)
    assert gs.layer_flatness(model, (x, y), exact=True) == gs.layer_flatness(made(), (x, y), exact=True)
    assert sharpness(model, (x, y)) == sharpness(made(), (x, y))
    F.cross_entropy(model(x), y).backward()
    assert max(parameter.grad.abs().max() for parameter in model.parameters()) == 1e-4


def test_slopes_close_to_the_smallest_numbers_of_half_precision():
    torch.manual_seed(0)
    module, x = nn.Linear(64, 64).half(), (0.01 * torch.randn(256, 64)).half()
    layer = Layer("", module, module.weight, inputs=x, outputs=module(x))
    loss = (1e-6 * torch.randn(256, 64) * layer.outputs.float()).sum()
    slope, through = torch.autograd.grad(loss, [module.weight, layer.outputs])
    assert layer.acts_nowhere_else(slope, through)
    assert not layer.acts_nowhere_else(slope.roll(1, 0), through)
