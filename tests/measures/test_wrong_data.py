"""Models and data that do not go together: what people read who hand them to the measures."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import grokscape as gs
from grokscape.measures import MeasureWarning

INPUTS, LABELS = torch.randn(20, 4), torch.arange(20) % 3
MODEL = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
ONE_OUTPUT = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1))


def snapshot(labels):
    with gs.Probe(MODEL) as probe:
        MODEL(INPUTS)
        return probe.snapshot(labels)


@pytest.mark.parametrize("take", [gs.measure, gs.layer_flatness])
@pytest.mark.parametrize(("model", "data", "options", "text"), [
    (MODEL, (INPUTS, LABELS), {"batch_size": 0}, "expected a batch_size of 1 or more, got 0"),
    (MODEL, (INPUTS, LABELS), {"batch_size": -1}, "expected a batch_size of 1 or more, got -1"),
    (MODEL, (INPUTS, LABELS[:, None]), {}, r"expected \(20,\).* a column of indices by .squeeze\(-1\)"),
    (MODEL, (INPUTS, torch.ones(20, 3).long()), {}, r"expected \(20,\).* rows with several ones name several classes"),
    (ONE_OUTPUT, (INPUTS, LABELS * 0), {}, "the head has one output; measures of a classifier need one for each"),
    (nn.Linear(4, 3, device="meta"), (INPUTS, LABELS), {},
     "parameters on the device 'meta', which holds no numbers; load its weights"),
])
def test_what_was_expected_and_what_came(take, model, data, options, text):
    with pytest.raises(ValueError, match=text):
        take(model, data, **options)


@pytest.mark.parametrize("take", [gs.measure, gs.layer_flatness])
@pytest.mark.parametrize(("batch", "given"), [
    ((INPUTS, torch.arange(20), LABELS), "2 by position"),
    ({"pixels": INPUTS, "labels": LABELS}, "0 by position, pixels"),
])
def test_what_the_model_was_called_with_is_said_where_it_does_not_take_it(take, batch, given):
    with pytest.raises(TypeError, match=r"forward\(\)") as caught:
        take(MODEL, [batch])
    assert f"the model gets all but the labels ({given})" in caught.value.__notes__[0]


@pytest.mark.parametrize(("labels", "text"), [
    (None, "labels must be a tensor of class indices, got None"),
    (LABELS.tolist(), "labels must be a tensor, got list"),
    (F.one_hot(LABELS).float(), r"labels must be class indices \(int64\), got torch.float32; soft .* by .argmax"),
    (torch.ones(20, 3), "got torch.float32; rows with several ones .* measures need one for each sample; .* knows κ"),
    (LABELS.float(), r"got torch.float32; convert with .long\(\)"),
])
def test_labels_of_a_snapshot_are_class_indices(labels, text):
    with pytest.raises(TypeError, match=text):
        snapshot(labels)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3, dtype=torch.complex64)

    def forward(self, x):
        return self.fc(x.to(torch.complex64))


def test_a_complex_head_is_not_measured_by_its_real_part():
    with pytest.raises(TypeError, match=r"must be floating point, got torch.complex64; take .real or .abs\(\)"):
        gs.measure(Complex(), (INPUTS, LABELS))


@pytest.mark.parametrize("labels", [LABELS, LABELS.float(), LABELS.float()[:, None]])
def test_a_head_with_one_output_in_a_loop(labels):
    with gs.Probe(ONE_OUTPUT) as probe:
        ONE_OUTPUT(INPUTS)
        with pytest.raises(ValueError, match="the head has one output; measures of a classifier need one for each"):
            probe.snapshot(labels)


def test_a_head_is_named_not_numbered():
    with pytest.raises(ValueError, match="Sequential has no module 2; near: '2'"):
        gs.measure(MODEL, (INPUTS, LABELS), head=2)


def test_one_layer_may_be_named_without_a_list():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 5))
    model.add_module("head", nn.Linear(5, 3))
    assert list(gs.layer_flatness(model, (INPUTS, LABELS), layers="first")) == ["first"]
    with gs.Probe(model, layers="first") as probe:
        model(INPUTS)
        assert "first" in str(probe.snapshot(LABELS).layers)


def test_flatness_that_is_no_number_is_named_once_with_the_reason():
    inputs = INPUTS.clone()
    inputs[3, 1] = torch.nan
    with pytest.warns(MeasureWarning, match="flatness of '0', '2' is NaN: there is NaN or infinity in") as caught:
        found = gs.layer_flatness(MODEL, (inputs, LABELS))
    assert len(caught) == 1
    assert all(torch.tensor(estimate.value).isnan() for estimate in found.values())


@pytest.mark.parametrize("loss", [lambda logits, labels: 1.0, nn.CrossEntropyLoss()])
def test_a_loss_gives_one_number_for_each_sample(loss):
    with pytest.raises(ValueError, match="loss must give one value per sample, got a single one"):
        gs.layer_flatness(MODEL, (INPUTS, LABELS), loss=loss)


class Last(nn.Module):
    """A head at every pixel, channels last; its classes can be moved to where F.cross_entropy has them."""

    def __init__(self, move):
        super().__init__()
        self.head, self.move = nn.Linear(2, 3), move

    def forward(self, x):
        z = self.head(x)
        return z.movedim(-1, 1) if self.move else z


@pytest.mark.parametrize("move", [False, True])
def test_where_the_classes_are_is_not_guessed(move):
    model, x, y = Last(move), torch.randn(4, 3, 3, 2), torch.randint(3, (4, 3, 3))
    for take in (gs.layer_flatness, gs.measures.sharpness):
        with pytest.raises(ValueError, match=r"\(4, 3, 3, 3\) .* classes last, or at axis 1 as for F.cross_entropy"):
            take(model, (x, y))


def test_a_function_as_loss_says_where_the_classes_are():
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 3, 2), torch.randint(3, (4, 3, 3))
    first, last = Last(True), Last(False)
    last.load_state_dict(first.state_dict())

    def at_one(z, y):
        return F.cross_entropy(z, y, reduction="none")

    def at_the_end(z, y):
        return at_one(z.movedim(-1, 1), y)

    found = gs.layer_flatness(first, (x, y), loss=at_one, exact=True)["head"].value
    assert found == pytest.approx(gs.layer_flatness(last, (x, y), loss=at_the_end, exact=True)["head"].value)
    assert found == pytest.approx(gs.measure(last, (x, y))["relative_flatness"])
    with pytest.raises(ValueError, match="the model's logits differ from what this layer returns"):
        gs.measure(first, (x, y))


def test_soft_labels_with_classes_at_axis_1_are_refused():
    x, y = torch.randn(4, 5, 6, 2), torch.randn(4, 5, 6, 3).softmax(-1)
    gs.layer_flatness(Last(False), (x, y))
    with pytest.raises(ValueError, match=r"\(4, 3, 5, 6\) sum to 1 over axis 1; classes come last"):
        gs.layer_flatness(Last(True), (x, y.movedim(-1, 1)))
