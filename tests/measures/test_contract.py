"""One contract for every row of the table: a measure added there is held to all of this."""

import pytest
import torch
from torch import Tensor

from grokscape.measures import DEFAULT, MEASURES, Snapshot, evaluate, find_measure

ROWS = list(MEASURES.values())
NAMES = list(MEASURES)
DIFFERENTIABLE = [row.name for row in ROWS if row.differentiable]


def snapshot(seed=0, samples=20, width=5, classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    features, weight, bias = draw(samples, width), draw(classes, width), draw(classes)
    labels = torch.arange(samples) % classes
    return Snapshot(features, features @ weight.T + bias, labels, weight, bias, {"weight": weight, "bias": bias})


def rebuilt(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Snapshot:
    return Snapshot(features, features @ weight.mT + bias[..., None, :], labels, weight, bias, {"w": weight, "b": bias})


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name):
    row = MEASURES[name]
    assert row.name == name
    assert row.function.__doc__
    assert all((row.title, row.unit, row.source))
    assert row.title[0].islower() or row.title.startswith(("SAM", "NC"))
    assert row.direction in ("lower", "higher", "neither")


def test_defaults_are_rows():
    assert set(DEFAULT) <= set(NAMES)
    assert len(set(DEFAULT)) == len(DEFAULT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lead", [(), (1,), (2,), (2, 3)])
def test_one_value_for_each_replica(name, lead):
    s = snapshot()

    def spread(value):
        return value.expand(*lead, *value.shape)

    parameters = {key: spread(value) for key, value in s.parameters.items()}
    many = Snapshot(*(spread(v) for v in (s.features, s.logits, s.labels, s.weight, s.bias)), parameters)
    value = MEASURES[name](many)
    assert value.shape == lead
    torch.testing.assert_close(value, MEASURES[name](s).expand(lead), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [*NAMES, "relative_flatness@first"])
@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("classes", [4, 200])
def test_without_samples_there_is_nothing_to_measure(name, lead, classes):
    s = snapshot(classes=classes)
    fields = (x.expand(*lead, *x.shape) for x in (s.features[:0], s.logits[:0], s.labels[:0], s.weight))
    value = find_measure(name)(Snapshot(*fields, parameters={"w": s.weight.expand(*lead, *s.weight.shape)}))
    assert value.shape == lead
    assert bool(value.isnan().all()) == (name not in ("head_norm", "weight_norm", "fourier_concentration"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_dtype(name, dtype):
    value = MEASURES[name](snapshot(dtype=dtype))
    assert value.dtype == dtype
    torch.testing.assert_close(value.double(), MEASURES[name](snapshot()), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_worked_on_in_float32(name):
    narrow = snapshot(dtype=torch.bfloat16)
    fields = (narrow.features, narrow.logits, narrow.labels, narrow.weight, narrow.bias)
    parameters = {key: value.float() for key, value in narrow.parameters.items()}
    wide = Snapshot(*(x.float() if x.is_floating_point() else x for x in fields), parameters)
    value = MEASURES[name](narrow)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, MEASURES[name](wide), rtol=0, atol=0, equal_nan=True)


def test_fast_products_outside_do_not_reach_in():
    s = snapshot(samples=200, width=64, dtype=torch.float32)
    exact = evaluate(s, NAMES)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            for name, value in evaluate(s, NAMES).items():
                assert torch.equal(value, exact[name]), name
    finally:
        torch.set_float32_matmul_precision(before)


def test_replicas_can_be_mapped_over():
    s = snapshot()
    many = torch.stack([s.features, 2 * s.features + 1, s.features.flip(0)])

    def values(features):
        return torch.stack([MEASURES[name](rebuilt(features, s.weight, s.bias, s.labels)) for name in ("cdnv", "nc1")])

    torch.testing.assert_close(torch.vmap(values)(many), torch.stack([values(features) for features in many]))


@pytest.mark.parametrize("name", NAMES)
def test_is_positive_where_it_says_so(name):
    values = torch.stack([MEASURES[name](snapshot(seed)) for seed in range(10)])
    assert values.isfinite().all()
    if MEASURES[name].positive:
        assert (values >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_samples_does_not_matter(name):
    if name in ("feature_robustness", "representativeness"):
        pytest.skip("noise is drawn sample by sample")
    s = snapshot()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    shuffled = Snapshot(s.features[order], s.logits[order], s.labels[order], s.weight, s.bias, s.parameters)
    torch.testing.assert_close(MEASURES[name](shuffled), MEASURES[name](s), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_are_right(name):
    s = snapshot(samples=12, width=4)
    inputs = [x.clone().requires_grad_() for x in (s.features, s.weight, s.bias)]

    def function(features, weight, bias):
        return MEASURES[name](rebuilt(features, weight, bias, s.labels))

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_every_way_to_a_gradient_is_one(name):
    s = snapshot(samples=12, width=4)

    def function(x):
        """Of the head's weight, of which the logits are made, and of the features."""
        return MEASURES[name](rebuilt(s.features + x.sum(0), s.weight + x, s.bias, s.labels))

    x = torch.zeros_like(s.weight).requires_grad_()
    (slope,) = torch.autograd.grad(function(x), x)
    (with_graph,) = torch.autograd.grad(function(x), x, create_graph=True)
    (several,) = torch.autograd.grad(function(x), x, torch.tensor([1.0, 2.0]).double(), is_grads_batched=True)
    for other in (with_graph, several[0], several[1] / 2, torch.func.grad(function)(x.detach())):
        torch.testing.assert_close(other, slope)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_reach_what_the_measure_is_of(name):
    s = snapshot()
    features, weight, bias = (x.clone().requires_grad_() for x in (s.features, s.weight, s.bias))
    value = MEASURES[name](rebuilt(features, weight, bias, s.labels))
    slopes = torch.autograd.grad(value, (features, weight, bias), allow_unused=True)
    assert any(slope is not None and slope.abs().sum() > 0 for slope in slopes)


def edges():
    """Inputs at which a root, a norm or a distance is zero."""
    s = snapshot(samples=24, width=6)
    quiet, dead, simplex = s.features.clone(), s.features.clone(), torch.eye(4, 6, dtype=torch.float64)
    quiet[0] = 0
    dead[s.labels < 2] = 0
    simplex[:, :4] -= 0.25
    return {
        "a sample without features": (quiet, s.weight, s.bias, s.labels),
        "classes without features": (dead, s.weight, s.bias, s.labels),
        "two balanced classes": (s.features, s.weight[:2], s.bias[:2], s.labels % 2),
        "one feature": (s.features[:, :1], s.weight[:2, :1], s.bias[:2], s.labels % 2),
        "a simplex": (simplex[s.labels], simplex, torch.zeros_like(s.bias), s.labels),
        "a zero head": (s.features, torch.zeros_like(s.weight), torch.zeros_like(s.bias), s.labels),
        "rows that are equal": (s.features, s.weight[:1].expand(4, 6), s.bias, s.labels),
        "large logits": (s.features, 1e4 * s.weight, s.bias, s.labels),
    }


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("edge", list(edges()))
def test_a_finite_value_has_a_finite_gradient(name, edge):
    *tensors, labels = edges()[edge]
    inputs = [x.clone().requires_grad_() for x in tensors]
    value = MEASURES[name](rebuilt(*inputs, labels))
    if value.isfinite():
        slopes = torch.autograd.grad(value, inputs, allow_unused=True)
        assert all(slope.isfinite().all() for slope in slopes if slope is not None)


@pytest.mark.parametrize("name", NAMES)
def test_leaves_the_snapshot_alone(name):
    s, before = snapshot(), snapshot()
    MEASURES[name](s)
    for field in ("features", "logits", "labels", "weight", "bias"):
        assert torch.equal(getattr(s, field), getattr(before, field)), field


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_one_input_is_no_number_out_and_no_error(name):
    row, s = MEASURES[name], snapshot()
    features, weight = s.features.clone(), s.weight.clone()
    features[0, 0], weight[0, 0] = float("nan"), float("nan")
    dirty = Snapshot(features, features @ weight.T, s.labels, weight, s.bias, {"weight": weight})
    value = row(dirty)
    if row.differentiable:
        assert value.isnan()
    else:
        assert not value.isinf()


@pytest.mark.parametrize("name", [row.name for row in ROWS if "statistics" in row.inputs])
def test_one_class_has_no_collapse(name):
    s = snapshot()
    one = Snapshot(s.features, s.logits, torch.zeros_like(s.labels), s.weight, s.bias)
    value = MEASURES[name](one)
    if name in ("within_variance", "rnc1", "rnc1_max", "nc4", "classes", "nc2_equinorm_weight"):
        assert value.isfinite()
    else:
        assert value.isnan()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_same_on_a_gpu(name):
    s = snapshot()
    fields = (s.features, s.logits, s.labels, s.weight, s.bias)
    there = Snapshot(*(x.cuda() for x in fields), {k: v.cuda() for k, v in s.parameters.items()})
    value = MEASURES[name](there)
    assert value.device.type == "cuda"
    torch.testing.assert_close(value.cpu(), MEASURES[name](s), rtol=1e-9, atol=1e-12)


def test_unknown_names_and_meaningless_ones_are_refused():
    s = snapshot()
    with pytest.raises(KeyError, match="no measure is called 'NCC'; there are relative_flatness"):
        evaluate(s, ["NCC"])
    with pytest.raises(ValueError, match="'nc3' has no meaning around other class means; these have: cdnv"):
        evaluate(s, ["cdnv", "nc3"], around=s)


def test_around_itself_is_itself():
    s = snapshot()
    names = [row.name for row in ROWS if row.around]
    for name, value in evaluate(s, names, around=s).items():
        torch.testing.assert_close(value, MEASURES[name](s), rtol=1e-12, atol=1e-14)
