"""Data in all forms that `grokscape.measure` takes, of which it keeps nothing and whose random numbers it leaves."""

import random
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import grokscape as gs
from measured import CLASSES, NOISY, network, samples, whole


def forms(inputs, labels):
    yield "tensors", (inputs, labels)
    yield "dataset", TensorDataset(inputs, labels)
    yield "loader", DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
    yield "list of batches", [(inputs[:50], labels[:50]), (inputs[50:], labels[50:])]
    yield "one-shot iterator", iter([(inputs[:50], labels[:50]), (inputs[50:], labels[50:])])
    inputs, labels = inputs.numpy(), labels.numpy()
    inputs.flags.writeable = False
    yield "arrays", [inputs, labels]
    yield "batches of arrays", [(inputs[:50], labels[:50]), (inputs[50:], labels[50:])]


@pytest.mark.parametrize("form", range(7))
def test_every_form_of_data_gives_the_numbers_of_one_pass(form):
    inputs, labels = samples()
    model = network()
    _, data = list(forms(inputs, labels))[form]
    found = gs.measure(model, data, head="3", batch_size=64)
    expected = whole(model, inputs, labels)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.2 if name in NOISY else 1e-4, abs=1e-6), name


class Rewritten:
    """Batches that all lie in one place."""

    def __iter__(self):
        inputs, labels = samples()
        place = torch.empty(50, 6), torch.empty(50, dtype=torch.long)
        for start in range(0, 150, 50):
            yield place[0].copy_(inputs[start:start + 50]), place[1].copy_(labels[start:start + 50])


def test_batches_that_are_written_over():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(6, CLASSES))  # its features are the loader's own memory
    found, expected = gs.measure(head, Rewritten()), gs.measure(head, samples(), batch_size=50)
    assert dict(found) == dict(expected)


class FirstPosition(nn.Module):
    """A model whose features are a view of all positions, as in transformers on pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, CLASSES)
        self.made = []

    def forward(self, x):
        states = x[:, None].expand(-1, 100, -1).clone()
        self.made.append(weakref.ref(states))
        return self.fc(states[:, 0])


def test_what_features_are_a_view_of_is_not_kept():
    model, alive = FirstPosition(), []
    gs.measure(
        model, samples(), batch_size=30, progress=lambda _: alive.append(sum(each() is not None for each in model.made))
    )
    assert alive == [1] * 5


def test_arrays_by_name_and_lists_of_numbers():
    class ByName(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    model, (x, y) = ByName(network()), samples()
    expected = gs.measure(model, (x, y), measures="cdnv")["cdnv"]
    named = {"x": x.numpy(), "labels": y.numpy()}
    for data in (named, [named], [({"x": x.numpy()}, y.numpy())]):
        assert gs.measure(model, data, measures="cdnv")["cdnv"] == pytest.approx(expected)
    for data in ((x.tolist(), y.tolist()), [(x.tolist(), y)]):
        with pytest.raises(TypeError, match=r"must be tensors or arrays, got a list of numbers"):
            gs.measure(model, data)
    with pytest.raises(TypeError, match="lengths of a batch must be a tensor or an array, got a list of numbers"):
        gs.measure(model, [{"x": x, "lengths": [1] * len(x), "labels": y}])


@pytest.mark.parametrize("shuffle", [None, False, True])
def test_no_random_number_is_drawn(shuffle):
    data = TensorDataset(*samples())
    data = data if shuffle is None else DataLoader(data, 32, shuffle=shuffle)
    model = network()
    before = torch.get_rng_state()
    gs.measure(model, data)
    gs.layer_flatness(model, data, probes=1)
    gs.measures.sharpness(model, data)
    assert torch.equal(torch.get_rng_state(), before)


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 30

    def __getitem__(self, index):
        return random.random() * torch.ones(6) + float(np.random.rand()), index % CLASSES  # noqa: NPY002


def test_the_random_numbers_of_augmentation_are_the_callers():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = Augmented()[0][0]
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    gs.measure(network(), Augmented())
    assert torch.equal(Augmented()[0][0], expected)


def test_a_loader_s_own_generator_is_left_alone():
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(*samples()), 32, shuffle=True, generator=generator)
    before = generator.get_state()
    gs.measure(network(), loader)
    gs.layer_flatness(network(), loader, probes=1)
    assert torch.equal(generator.get_state(), before)


def test_a_stream_of_samples_is_cut_into_batches():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(*samples(), strict=True))

    assert dict(gs.measure(network(), Stream())) == dict(gs.measure(network(), samples()))


def test_a_batch_without_a_label_changes_nothing():
    inputs, labels = samples()
    empty = inputs, torch.full_like(labels, -100)
    assert dict(gs.measure(network(), [empty, (inputs, labels), empty])) == dict(gs.measure(network(), samples()))
