"""`grokscape.measure` on models and data of other people's making, against whole-tensor evaluation."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import grokscape as gs
from grokscape.measures import measuring
from measured import CLASSES, GATHERED, NOISY, network, samples, whole


def test_held_out_data_around_its_own_and_around_training_means():
    model = network()
    train, test = samples(), samples(80, seed=1)
    found = gs.measure(model, train, test_loader=test)
    own = whole(model, *test)
    around = [name for name, row in gs.MEASURES.items() if row.around]
    crossed = whole(model, *test, names=around, around=train)
    for name, value in own.items():
        if gs.MEASURES[name].property != "norm":
            assert found[f"test/{name}"] == pytest.approx(value, rel=0.2 if name in NOISY else 1e-4, abs=1e-6), name
    assert {name for name in found if name.startswith("cross/")} == {f"cross/{name}" for name in around}
    for name, value in crossed.items():
        assert found[f"cross/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("batch_size", [4, 256])
def test_held_out_samples_of_classes_without_training_are_left_out_around_training_means(batch_size):
    model, (inputs, labels), test = network(), samples(), samples(80, seed=1)
    lone = (labels == 1).nonzero()[0]  # of class 1 one sample is trained, of class 0 none
    kept = torch.cat([(labels > 1).nonzero()[:, 0], lone])
    train = inputs[kept], labels[kept]
    found = gs.measure(model, train, test_loader=test, batch_size=batch_size)
    names = [name for name, row in gs.MEASURES.items() if row.around]
    crossed = whole(model, *test, names=names, around=train)
    assert crossed["nc1"] > 0
    for name, value in crossed.items():
        assert found[f"cross/{name}"] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    own = whole(model, *test, names=["nc1", "cdnv", "classes"])
    assert {name: found[f"test/{name}"] for name in own} == pytest.approx(own, rel=1e-4)


def test_a_second_pass_gives_what_kept_features_give(monkeypatch):
    model, data = network(), samples()
    kept = gs.measure(model, data)
    monkeypatch.setattr(measuring, "KEPT_ELEMENTS", 100)
    shuffled = DataLoader(TensorDataset(*data), batch_size=32, shuffle=True)
    again = gs.measure(model, shuffled)
    for name in ("nc4", "ildr"):
        assert again[name] == pytest.approx(kept[name], rel=1e-6)


def test_data_that_ends_before_a_needed_second_pass_gives_nan_and_says_so(monkeypatch):
    monkeypatch.setattr(measuring, "KEPT_ELEMENTS", 100)
    with pytest.warns(gs.measures.MeasureWarning, match=r"nc4, ildr NaN: the features are too many to keep"):
        found = gs.measure(network(), iter([samples()]))
    assert found["nc1"] > 0
    assert found["nc4"] != found["nc4"]


def test_why_a_measure_is_missing_is_not_put_down_to_a_second_pass_that_nobody_needed():
    inputs, labels = samples()
    with pytest.warns(gs.measures.MeasureWarning, match=r"cdnv NaN: .*coincide"):
        gs.measure(network(), iter([(torch.ones_like(inputs), labels)]), measures="cdnv")


@pytest.mark.parametrize("training", [True, False])
def test_training_flags_and_gradients_are_as_before(training):
    model = network().train(training)
    model[2].train(not training)
    gs.measure(model, samples())
    assert model.training is training
    assert model[2].training is not training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not model[3]._forward_hooks


def test_dtype_follows_the_model():
    inputs, labels = samples()
    found = gs.measure(network().double(), (inputs, labels))
    assert found["relative_flatness"] == pytest.approx(whole(network(), inputs, labels)["relative_flatness"], rel=1e-4)


def test_the_head_is_found_and_named():
    found = gs.measure(network(), samples())
    assert (found.head, found.head_found) == ("3", True)
    named = gs.measure(network(), samples(), head="3")
    assert named.head_found is False
    assert str(found).startswith("head '3' (found), 150 train samples")


def test_the_projection_of_attention_is_no_head():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.output, self.attention = nn.Linear(6, CLASSES), nn.MultiheadAttention(6, 2, batch_first=True)

        def forward(self, x):
            return self.output(self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0])

    assert gs.measure(Attends(), samples()).head == "output"


def test_a_model_says_itself_which_layer_makes_its_logits():
    class Says(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.classifier = nn.Linear(6, CLASSES), nn.Linear(6, 6)

        def get_output_embeddings(self):
            return self.words

        def forward(self, x):
            return self.words(torch.tanh(self.classifier(x)))

    assert gs.measure(Says(), samples()).head == "words"


def test_ignored_labels_are_left_out():
    inputs, labels = samples()
    masked = labels.clone()
    masked[::3] = -100
    kept = masked >= 0
    found = gs.measure(network(), (inputs, masked))
    assert found.samples == {"train": int(kept.sum())}
    assert found["cdnv"] == pytest.approx(gs.measure(network(), (inputs[kept], labels[kept]))["cdnv"], rel=1e-9)


def test_prints_and_exports():
    found = gs.measure(network(), samples(), measures=["relative_flatness", "nc4"], test_loader=samples(60, 3))
    lines = str(found).splitlines()
    assert lines[2].split() == ["measure", "train", "test", "cross"]
    assert lines[3].startswith("relative_flatness ")
    assert found.to_dict()["values"]["nc4"] == found["nc4"]
    frame = found.to_frame()
    assert frame.columns[:3] == ["measure", "split", "value"]
    assert frame.filter(split="cross")["measure"].to_list() == ["nc4"]
    with pytest.raises(KeyError, match="'nc9' was not measured"):
        found["nc9"]


def test_progress_is_told():
    told = []
    gs.measure(network(), samples(), batch_size=100, progress=told.append)
    assert told == ["train: batch 1, 100 samples", "train: batch 2, 50 samples"]


def test_a_class_without_samples_is_left_out_and_noted():
    inputs, labels = samples()
    labels = labels.where(labels != 2, 1)
    found = gs.measure(network(), (inputs, labels))
    assert found["classes"] == 3
    assert found.notes == ("train: 1 of 4 classes have fewer than two samples and are left out",)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x):
        return 2 * self.head(x)


@pytest.mark.parametrize(("call", "error", "text"), [
    (lambda: gs.measure(network(), samples(), head="9"), ValueError, "Sequential has no module '9'"),
    (lambda: gs.measure(network(), samples(), head="1"), ValueError, "module '1' .* is a ReLU, which is not"),
    (lambda: gs.measure(network(), samples(), head="0"), ValueError, "layer '0' is not the head"),
    (lambda: gs.measure(Scaled(), samples()), ValueError, "layer 'head' is not the head of Scaled"),
    (lambda: gs.measure(network(), samples(), head=nn.Linear(2, 2)), ValueError, "head is a Linear that is no part"),
    (lambda: gs.measure(network(), (torch.zeros(0, 6), torch.zeros(0).long())), ValueError, "are no train samples"),
    (lambda: gs.measure(network(), samples(), measures=["ncc"]), KeyError, "no measure is called 'ncc'"),
    (lambda: gs.measure(network(), samples(), measures=["head_sharpness"]), ValueError, "all samples at once"),
    (lambda: gs.measure(network(), 3), TypeError, "data must be a DataLoader"),
    (lambda: gs.measure(network(), [3]), TypeError, r"a batch must be \(inputs, labels\)"),
    (lambda: gs.measure(network(), [{"x": torch.zeros(2, 6)}]), ValueError, "needs an entry 'labels'"),
    (lambda: gs.measure(network(), (torch.zeros(3, 6), torch.zeros(2))), ValueError, "must have one length"),
    (lambda: gs.measure(network(), (torch.zeros(2, 6), torch.tensor([0, 4]))), ValueError, "lie in 0 … 3, got 0 … 4"),
    (lambda: gs.measure(network(), [(torch.zeros(2, 6), torch.zeros(2, 3).long())]), ValueError,
     r"labels of shape \(2, 3\) do not fit logits of shape \(2, 4\)"),
    (lambda: gs.measure(network(), [(torch.zeros(2, 6), None)]), TypeError, "a tensor or an array, got a NoneType"),
    (lambda: gs.measure(network(), [({"input": torch.zeros(2, 6)}, torch.zeros(2).long(), torch.arange(2))]), TypeError,
     r"begins with a mapping must be \(inputs, labels\), got 3 parts"),
    (lambda: gs.measure(network(), [(torch.zeros(6), 1)]), ValueError, "got a single number; put samples into batches"),
    (lambda: gs.measure(network(), {"input": [[0.0] * 6], "labels": [0]}), ValueError, "of one length, got none"),
    (lambda: gs.measure(torch.jit.script(network()), samples()), ValueError, "before it is scripted"),
    (lambda: gs.measure(nn.Linear(6, 1), (torch.zeros(2, 6), torch.zeros(2).long())), ValueError, "has one output"),
])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_errors_say_what_to_do(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_samples_of_different_batches_have_different_noise():
    inputs, labels = samples(400)
    found = gs.measure(network(), (inputs, labels), batch_size=1)
    assert found["feature_robustness"] == pytest.approx(0.02**2 / 2 * found["relative_flatness"], rel=0.06)


@pytest.mark.parametrize("name", GATHERED)
def test_each_measure_by_itself_is_what_it_is_among_all(name):
    alone = gs.measure(network(), samples(), measures=name)
    assert alone[name] == gs.measure(network(), samples())[name]


def test_wide_features_are_no_matter_of_their_square():
    model = nn.Sequential(nn.Flatten(), nn.Linear(100_000, CLASSES))
    data = torch.randn(20, 100_000), torch.arange(20) % CLASSES
    found = gs.measure(model, data, measures=["relative_flatness", "cdnv", "rnc1", "nc4"])
    assert found["rnc1"] > 0


@pytest.mark.filterwarnings("ignore::grokscape.measures.MeasureWarning")
@pytest.mark.parametrize("at", ["train", "test"])
def test_features_that_are_no_numbers_are_the_reason_and_no_perfect_collapse(at):
    clean, (inputs, labels) = samples(), samples(seed=1)
    inputs[3] = float("nan")
    loaders = ((inputs, labels), clean) if at == "train" else (clean, (inputs, labels))
    found = gs.measure(network(), loaders[0], test_loader=loaders[1], measures=["nc4", "nc1"])
    assert math.isnan(found["nc4" if at == "train" else "test/nc4"])
    assert math.isnan(found["cross/nc4"])
    assert "cross: nc4, nc1 NaN: there is NaN or infinity in class_means" in " ".join(found.notes)


def test_derivatives_inside_inference_mode():
    model, data = network(), samples()
    expected = gs.layer_flatness(model, data), gs.measures.sharpness(model, data)
    with torch.inference_mode():
        assert (gs.layer_flatness(model, data), gs.measures.sharpness(model, data)) == expected


def products_of_measuring(name, width, classes, batch_size):
    model = nn.Linear(width, classes)
    data = torch.randn(80, width), torch.randint(classes, (80,))
    with FlopCounterMode(display=False) as counter:
        gs.measure(model, data, measures=name, batch_size=batch_size)
    return counter.get_total_flops()


def test_what_nobody_asked_for_is_not_computed():
    forward = 2 * 80 * 6 * 300
    assert products_of_measuring("accuracy", 6, 300, 10) < 1.5 * forward


def test_distances_between_the_rows_of_the_head_are_computed_once():
    at_once = products_of_measuring("relative_flatness", 200, 100, 80)
    assert products_of_measuring("relative_flatness", 200, 100, 10) <= at_once
