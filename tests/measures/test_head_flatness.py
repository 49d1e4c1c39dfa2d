"""κ of the head against the whole Hessian, computed by autograd with code of its own; digits, masks and chunks."""

import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from grokscape.measures import Snapshot, chunks, functional, relative_flatness, relative_flatness_bound
from grokscape.measures.snapshot import Quantities


def problem(seed=0, samples=9, width=5, classes=4):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (samples,), generator=generator)
    return features, weight, bias, labels


def hessian_kappa(loss, weight):
    """Σ_{s,t} ⟨w_s, w_t⟩ Tr(H_st), block by block."""
    hessian = torch.autograd.functional.hessian(loss, weight)
    total = 0.0
    for s in range(weight.shape[0]):
        for t in range(weight.shape[0]):
            total += float(weight[s] @ weight[t]) * float(torch.trace(hessian[s, :, t, :]))
    return total


def soft(labels, classes):
    return torch.softmax(torch.randn(len(labels), classes, generator=torch.Generator().manual_seed(3)).double(), -1)


def huber(logits, targets):
    return F.smooth_l1_loss(logits, targets, reduction="none", beta=5.0).sum(-1)


LOSSES = {
    "hard labels": ("cross_entropy", lambda z, y, s: F.cross_entropy(z, y)),
    "soft labels": ("cross_entropy", lambda z, y, s: F.cross_entropy(z, s)),
    "smoothed labels": ("cross_entropy", lambda z, y, s: F.cross_entropy(z, y, label_smoothing=0.2)),
    "binary cross-entropy": ("binary_cross_entropy", lambda z, y, s: F.binary_cross_entropy_with_logits(z, s)),
    "squared error": ("squared_error", lambda z, y, s: F.mse_loss(z, s)),
    "a function": (huber, lambda z, y, s: huber(z, s).mean()),
    "cross-entropy as a function": (
        lambda z, s: -(s * torch.log_softmax(z, -1)).sum(-1), lambda z, y, s: F.cross_entropy(z, s)),
    "a linear function": (lambda z, s: (z * s).sum(-1), lambda z, y, s: (z * s).sum(-1).mean() + 0 * z.square().sum()),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("width", "classes"), [(5, 4), (3, 6)])
def test_equals_the_whole_hessian(loss, width, classes):
    features, weight, bias, labels = problem(width=width, classes=classes)
    targets = soft(labels, classes)
    ours, theirs = LOSSES[loss]
    expected = hessian_kappa(lambda w: theirs(features @ w.T + bias, labels, targets), weight)
    value = relative_flatness(features, weight, features @ weight.T + bias, loss=ours, targets=targets)
    assert float(value) == pytest.approx(expected, rel=1e-10, abs=1e-13)
    made = relative_flatness(features, weight, bias=bias, loss=ours, targets=targets)
    assert float(made) == pytest.approx(float(value), rel=1e-12)


def test_many_classes_of_which_the_likeliest_are_close():
    features, weight, bias, _ = problem(samples=16, width=8, classes=300)
    weight[0] *= 5
    weight[1] = weight[0] + 1e-3 * weight[1]
    bias[:2] += 300
    expected = relative_flatness(features.float().double(), weight.float().double(), bias=bias.float().double())
    found = relative_flatness(features.float(), weight.float(), bias=bias.float())
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("trainable", [True, False])
def test_many_classes_of_which_the_likeliest_are_close_keep_their_digits_where_no_gradient_is_wanted(trainable):
    features, weight, bias, _ = (tensor.float() for tensor in problem(samples=16, width=8, classes=300))
    weight[0] *= 50
    weight[1:6] = weight[0] + 1e-3 * weight[1:6]
    bias[:6] += 3000
    logits = features @ weight.T + bias
    p, wide = torch.softmax(logits.double(), -1), weight.double()
    pairs = p[:, :, None] * p[:, None, :] * (wide[:, None] - wide).square().sum(-1)
    each = features.double().square().sum(-1) * pairs.sum((1, 2)) / 2
    with torch.no_grad():
        weight.requires_grad_(trainable)
        found = relative_flatness(features, weight, logits, reduction="sample")
        torch.testing.assert_close(found.double(), each, rtol=1e-5, atol=0)
        seen = Quantities(Snapshot(features, logits, torch.zeros(16, dtype=torch.int64), weight))
        typical = features.double().square().sum(-1) * seen.log_row_variance.double().exp()
        torch.testing.assert_close(typical, each, rtol=1e-5, atol=0)


def test_many_classes_in_few_dimensions():
    features, weight, bias, labels = problem(samples=3, width=2, classes=140)
    expected = hessian_kappa(lambda w: F.cross_entropy(features @ w.T + bias, labels), weight)
    assert float(relative_flatness(features, weight, bias=bias)) == pytest.approx(expected, rel=1e-10)


def test_the_bound_is_the_trace_times_the_squared_norm():
    features, weight, bias, labels = problem()
    hessian = torch.autograd.functional.hessian(lambda w: F.cross_entropy(features @ w.T + bias, labels), weight)
    expected = float(weight.square().sum()) * float(hessian.reshape(20, 20).trace())
    assert float(relative_flatness_bound(features, weight, bias=bias)) == pytest.approx(expected, rel=1e-10)
    logits = features @ weight.T + bias
    warm = relative_flatness_bound(features, weight, logits, temperature=2.0)
    assert float(warm) == pytest.approx(float(relative_flatness_bound(features, weight, logits / 2)), rel=1e-12)


@pytest.mark.parametrize("margin", [5.0, 15.0, 30.0, 60.0])
@pytest.mark.parametrize("classes", [10, 300])
def test_digits_where_probabilities_are_one_hot(margin, classes):
    features, weight, _, _ = problem(samples=32, width=64, classes=classes)
    logits = 2 * torch.rand(32, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits[torch.arange(32), torch.arange(32) % classes] += margin
    weight = weight + 3  # a common part, which softmax does not see
    exact = relative_flatness(features, weight, logits)
    narrow = relative_flatness(features.float(), weight.float(), logits.float().double().float())
    assert float(narrow) == pytest.approx(float(relative_flatness(features, weight, logits.float().double())), rel=1e-4)
    assert 0 < exact < relative_flatness_bound(features, weight, logits)
    textbook = textbook_kappa(features, weight, logits)
    if margin <= 15:
        assert float(exact) == pytest.approx(textbook, rel=1e-6)


def textbook_kappa(features, weight, logits):
    """Σ p‖w‖² − ‖Σ p w‖², which cancels."""
    p = torch.softmax(logits, -1)
    return float((features.square().sum(-1) * (p @ weight.square().sum(-1) - (p @ weight).square().sum(-1))).mean())


def test_per_sample_and_per_class():
    features, weight, bias, labels = problem(samples=30)
    each = relative_flatness(features, weight, bias=bias, reduction="sample")
    alone = [float(relative_flatness(features[i : i + 1], weight, bias=bias)) for i in range(30)]
    assert each.tolist() == pytest.approx(alone, rel=1e-12)
    by_class = relative_flatness(features, weight, bias=bias, reduction="class", targets=labels)
    for c in range(4):
        assert float(by_class[c]) == pytest.approx(float(each[labels == c].mean()), rel=1e-12)


def test_masked_positions_do_not_count():
    features, weight, bias, labels = problem(samples=30)
    mask = torch.arange(30) % 3 > 0
    dirty = features.masked_fill(~mask[:, None], float("nan"))
    for reduction in ("mean", "class"):
        found = relative_flatness(dirty, weight, bias=bias, mask=mask, reduction=reduction, targets=labels)
        kept = relative_flatness(features[mask], weight, bias=bias, reduction=reduction, targets=labels[mask])
        torch.testing.assert_close(found, kept, rtol=1e-12, atol=0)
    each = relative_flatness(dirty, weight, bias=bias, mask=mask, reduction="sample")
    assert each[~mask].tolist() == [0.0] * 10


@pytest.mark.parametrize("size", [4, 30])
def test_replicas_share_their_labels_in_chunks_too(size):
    features, weight, bias, labels = problem(samples=30)
    many = torch.stack([features, 2 * features])
    found = relative_flatness(many, weight, bias=bias, targets=labels, reduction="class", chunk_size=size)
    for one, own in zip(many, found, strict=True):
        torch.testing.assert_close(relative_flatness(one, weight, bias=bias, targets=labels, reduction="class"), own)


@pytest.mark.parametrize("size", [1, 4, 29, 30])
def test_chunks_change_nothing(size):
    features, weight, bias, labels = problem(samples=30)
    targets = soft(labels, 4)
    for loss in ("cross_entropy", huber):
        function = partial(relative_flatness, loss=loss, targets=targets, bias=bias)
        torch.testing.assert_close(function(features, weight, chunk_size=size), function(features, weight))
        gradients = []
        for chunk in (size, None):
            leaf = weight.clone().requires_grad_()
            function(features, leaf, chunk_size=chunk).backward()
            gradients.append(leaf.grad)
        torch.testing.assert_close(*gradients)
    bound = partial(relative_flatness_bound, bias=bias)
    torch.testing.assert_close(bound(features, weight, chunk_size=size), bound(features, weight))


def test_large_inputs_are_cut_by_themselves(monkeypatch):
    features, weight, bias, _ = problem(samples=30)
    whole, sizes = relative_flatness(features, weight, bias=bias), []
    inner = functional.curvature
    monkeypatch.setattr(functional, "curvature", lambda *args: (sizes.append(args[2].numel()), inner(*args))[1])
    monkeypatch.setattr(chunks, "ELEMENTS_AT_ONCE", 20)
    torch.testing.assert_close(relative_flatness(features, weight, bias=bias), whole)
    assert max(sizes) <= 20


PEAK = """
import resource, torch
from grokscape.measures import relative_flatness
torch.set_num_threads(2)
features, weight = torch.randn(4000, 768), torch.randn(50_000, 768) / 30
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
value = relative_flatness(features, weight)
assert value > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.slow
def test_a_vocabulary_of_50_000_fits_in_memory():
    answer = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(answer.stdout) < 2500  # MiB; the logits alone would take 763, and κ several arrays of their size


def test_a_head_shared_by_replicas_broadcasts():
    features, weight, bias, _ = problem(samples=30)
    both = torch.stack([features, features.flip(0) * 2])
    found = relative_flatness(both, weight, bias=bias)
    assert found.tolist() == pytest.approx([float(relative_flatness(f, weight, bias=bias)) for f in both], rel=1e-12)


def test_half_precision_is_worked_on_in_float32():
    features, weight, bias, _ = problem()
    narrow = relative_flatness(features.bfloat16(), weight.bfloat16(), (features @ weight.T + bias).bfloat16())
    assert narrow.dtype == torch.float32
    wide = [x.bfloat16().float() for x in (features, weight, features @ weight.T + bias)]
    assert float(narrow) == float(relative_flatness(*wide))


def test_autocast_and_fast_products_outside_do_not_reach_in():
    features, weight, bias, _ = problem(samples=200, width=64)
    features, weight, bias = features.float(), weight.float(), bias.float()
    exact = relative_flatness(features, weight, bias=bias)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_flatness(features, weight, bias=bias) == exact
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("measure", [relative_flatness, relative_flatness_bound])
@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("with_logits", [False, True])
def test_nan_in_masked_samples_reaches_no_gradient(measure, chunk_size, with_logits):
    torch.manual_seed(0)
    features, weight = torch.randn(6, 3), torch.randn(4, 3, requires_grad=True)
    mask = torch.tensor([True, False, True, True, False, True])
    padded = features.where(mask[:, None], float("nan")).requires_grad_()
    logits = padded @ weight.T if with_logits else None
    found = torch.autograd.grad(measure(padded, weight, logits, mask=mask, chunk_size=chunk_size), (padded, weight))
    kept = features[mask].requires_grad_()
    expected = torch.autograd.grad(measure(kept, weight), (kept, weight))
    torch.testing.assert_close(found[0][mask], expected[0])
    if not with_logits:
        assert not found[0][~mask].any()
        torch.testing.assert_close(found[1], expected[1])
