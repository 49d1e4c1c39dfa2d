"""Wrong or degenerate input: an error or a NaN with a warning, and what the text says."""

import pytest
import torch

from grokscape.measures import (
    MeasureWarning,
    Snapshot,
    cdnv,
    decompose_gap,
    feature_robustness,
    neural_collapse,
    relative_flatness,
    relative_flatness_bound,
)
from grokscape.measures.streaming import ClassMoments

FEATURES, WEIGHT = torch.randn(6, 3), torch.randn(4, 3)
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
LOGITS = FEATURES @ WEIGHT.T
WITH_NAN = FEATURES.clone()
WITH_NAN[2, 1] = float("nan")


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda: relative_flatness(FEATURES.long(), WEIGHT, LOGITS), TypeError,
     r"features must be floating point, got torch.int64; convert with .float\(\)"),
    (lambda: relative_flatness([[1.0]], WEIGHT, LOGITS), TypeError, "features must be a tensor, got list"),
    (lambda: relative_flatness(FEATURES[0], WEIGHT, LOGITS), ValueError, r"features must be \(..., N, d\)"),
    (lambda: relative_flatness(FEATURES[:, :2], WEIGHT, LOGITS), ValueError,
     "features have 2 columns but weight has 3"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS[:, :2]), ValueError,
     r"logits must be \(..., 6, 4\) for these features and this weight, got \(6, 2\)"),
    (lambda: relative_flatness(FEATURES, WEIGHT, bias=torch.zeros(3)), ValueError,
     r"bias must be \(..., 4\), got \(3,\)"),
    (lambda: relative_flatness(FEATURES[:0], WEIGHT, LOGITS[:0]), ValueError,
     r"there are no samples: features have shape \(0, 3\)"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, loss="hinge"), ValueError,
     "loss must be one of cross_entropy, binary_cross_entropy, squared_error or a function, got 'hinge'"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, loss=lambda z, y: z.square()), ValueError,
     r"loss must give one value per sample, shape \(6,\), got \(6, 4\)"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, reduction="sum"), ValueError,
     "reduction must be 'mean', 'sample' or 'class', got 'sum'"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, reduction="class"), ValueError,
     "reduction='class' needs class indices: give targets=labels"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, reduction="class", targets=LABELS - 100), ValueError,
     r"labels must lie in 0 … 3, got -100 … -98"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, reduction="class", targets=LOGITS), TypeError,
     r"labels must be class indices \(int64\), got torch.float32"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, mask=torch.ones(6)), ValueError,
     r"mask must be bool \(..., 6\) and say which samples count, got torch.float32 \(6,\)"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, chunk_size=0), ValueError, "chunk_size must be at least 1, g"),
    (lambda: feature_robustness(FEATURES, LABELS, WEIGHT, probes=0), ValueError, "probes must be at least 1, got 0"),
    (lambda: relative_flatness_bound(FEATURES, WEIGHT, LOGITS, temperature=0), ValueError,
     "temperature must be positive, got 0"),
    (lambda: cdnv(FEATURES.long(), LABELS), TypeError, "features must be floating point"),
    (lambda: cdnv(FEATURES, LABELS.float()), TypeError, r"labels must be class indices \(int64\), got torch.float32"),
    (lambda: cdnv(FEATURES, LABELS[:4]), ValueError, r"labels must be one for each sample, \(..., 6\), got \(4,\)"),
    (lambda: cdnv(FEATURES, LABELS, num_classes=2), ValueError, "labels must lie in 0 … 1, got 0 … 2"),
    (lambda: cdnv(FEATURES, LABELS - 100), ValueError, r"got -100 … -98; leave ignored positions \(such as -100\) out"),
    (lambda: cdnv(FEATURES[:0], LABELS[:0]), ValueError, "there are no samples"),
    (lambda: neural_collapse(FEATURES, LABELS, WEIGHT[:, :2]), ValueError, "features have 3 columns but weight has 2"),
    (lambda: neural_collapse(FEATURES, LABELS + 2, WEIGHT), ValueError, "labels must lie in 0 … 3, got 2 … 4"),
    (lambda: cdnv(FEATURES, LABELS.tolist()), TypeError, "labels must be a tensor, got list; convert with torch.as_te"),
    (lambda: neural_collapse(FEATURES, LABELS.numpy(), WEIGHT), TypeError, "labels must be a tensor, got ndarray"),
    (lambda: neural_collapse(FEATURES.numpy(), LABELS, WEIGHT), TypeError, "features must be a tensor, got ndarray"),
    (lambda: relative_flatness(FEATURES, WEIGHT, mask=LABELS.numpy() > 0), TypeError, "mask must be a tensor"),
    (lambda: relative_flatness(FEATURES, WEIGHT, targets=LABELS.numpy(), reduction="class"), TypeError,
     "targets must be a tensor, got ndarray"),
    (lambda: Snapshot(FEATURES, LOGITS.numpy(), LABELS, WEIGHT), TypeError, "logits must be a tensor, got ndarray"),
    (lambda: Snapshot(FEATURES, LOGITS, LABELS.tolist(), WEIGHT), TypeError, "labels must be a tensor, got list"),
])
def test_is_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(("call", "text"), [
    (lambda: relative_flatness(WITH_NAN, WEIGHT, LOGITS),
     r"relative_flatness is NaN: there is NaN or infinity in features, first at index \[2, 1\]"),
    (lambda: relative_flatness(FEATURES, WEIGHT * float("inf"), LOGITS),
     r"relative_flatness is NaN: there is NaN or infinity in weight, first at index \[0, 0\]"),
    (lambda: relative_flatness_bound(FEATURES, WEIGHT, LOGITS / 0),
     "relative_flatness_bound is NaN: there is NaN or infinity in logits"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS.index_fill(1, torch.tensor([3]), float("inf"))),
     r"relative_flatness is NaN: there is NaN or infinity in logits, first at index \[0, 3\]"),
    (lambda: relative_flatness(FEATURES, WEIGHT, LOGITS, mask=torch.zeros(6, dtype=torch.bool)),
     "relative_flatness is NaN: the mask leaves no sample"),
    (lambda: cdnv(WITH_NAN, LABELS), r"cdnv is NaN: there is NaN or infinity in features, first at index \[2, 1\]"),
    (lambda: cdnv(FEATURES, torch.zeros(6).long()),
     "cdnv is NaN: it needs two classes with at least two samples each, and there are 1"),
    (lambda: cdnv(FEATURES, torch.arange(6)), "and there are 0"),
    (lambda: cdnv(torch.ones(6, 3), LABELS), "cdnv is NaN: the means of classes 0 and 1 coincide"),
    (lambda: cdnv(torch.ones(6, 3), torch.arange(6) // 3), "cdnv is NaN: the means of classes 0 and 1 coincide"),
])
def test_is_nan_and_says_why(call, text):
    with pytest.warns(MeasureWarning, match=text):
        assert call().isnan()


def test_a_zero_head_is_perfectly_flat_but_has_no_shape():
    assert relative_flatness(FEATURES, torch.zeros(4, 3), bias=torch.randn(4)) == 0
    with pytest.warns(MeasureWarning, match="nc2_equiangular_weight, nc3 is NaN: .* weight are zero"):
        found = neural_collapse(FEATURES, LABELS, torch.zeros(4, 3))
    assert found["cdnv"] > 0


def test_sound_input_warns_of_nothing():
    neural_collapse(FEATURES, LABELS, WEIGHT)
    relative_flatness(FEATURES, WEIGHT, LOGITS)


def test_values_are_not_looked_at_under_vmap():
    many = torch.stack([FEATURES, FEATURES * 2])
    found = torch.vmap(lambda f: relative_flatness(f, WEIGHT, f @ WEIGHT.T))(many)
    torch.testing.assert_close(found, relative_flatness(many, WEIGHT, many @ WEIGHT.T))


WIDTHS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("measure", [
    lambda labels: cdnv(FEATURES, labels),
    lambda labels: neural_collapse(FEATURES, labels, WEIGHT[:3])["nc4"],
    lambda labels: cdnv(FEATURES, labels, around=(FEATURES + 1, labels)),
    lambda labels: relative_flatness(FEATURES, WEIGHT[:3], LOGITS[:, :3], targets=labels, reduction="class"),
    lambda labels: decompose_gap(FEATURES, labels, FEATURES, labels, WEIGHT, probes=2).robustness.value,
    lambda labels: ClassMoments.empty(3, 3).update(FEATURES, labels).squares,
])
def test_labels_are_whole_numbers_of_any_width(dtype, measure):
    assert torch.equal(torch.as_tensor(measure(LABELS.to(dtype))), torch.as_tensor(measure(LABELS)))
