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
    (LABELS.float(), r"got torch.float32; convert with .long\(\)"),
])
def test_labels_of_a_snapshot_are_class_indices(labels, text):
    with pytest.raises(TypeError, match=text):
        snapshot(labels)


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
