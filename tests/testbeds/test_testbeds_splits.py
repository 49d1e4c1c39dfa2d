"""Splits: sizes, disjointness, seeds, balance, controls; and what a task refuses."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.utils.data import TensorDataset

from grokscape.testbeds import Digits, ModularArithmetic, SparseParity, SymmetricGroup, Task, TensorTask

GENERATOR = torch.Generator().manual_seed(0)
OWN_INPUTS, OWN_LABELS = torch.randn(40, 3, generator=GENERATOR), torch.arange(40) % 4

TASKS = {
    "modular": (ModularArithmetic(p=31), 480, 481),
    "modular 40 %": (ModularArithmetic(p=53, train_fraction=0.4), 1124, 1685),
    "division": (ModularArithmetic(operation="x/y", p=13, train_fraction=0.3), 47, 109),
    "permutations": (SymmetricGroup(degree=4), 288, 288),
    "parity": (SparseParity(bits=20, train_samples=300, test_samples=200), 300, 200),
    "parity, dense": (SparseParity(bits=8, train_samples=100, test_samples=100), 100, 100),
    "parity, all": (SparseParity(bits=10, train_samples=300, test_samples=None), 300, 724),
    "digits": (Digits(train_samples=203), 203, 1594),
    "own": (TensorTask(inputs=OWN_INPUTS, labels=OWN_LABELS, train_fraction=0.25), 10, 30),
}


def rows(inputs):
    return {tuple(row) for row in inputs.flatten(1).tolist()}


@pytest.mark.parametrize("name", TASKS)
def test_sizes_disjointness_and_seeds(name):
    task, train, test = TASKS[name]
    split, again, other = task.split(3), task.split(3), task.split(4)
    for one in (split, other):
        assert (len(one.train_labels), len(one.test_labels)) == (train, test)
        assert one.train_inputs.shape == (train, *task.input_spec.shape)
        assert one.train_labels.dtype == torch.int64
        everything = torch.cat([one.train_labels, one.test_labels])
        assert 0 <= int(everything.min()) <= int(everything.max()) < one.num_classes == task.num_classes
        assert not rows(one.train_inputs) & rows(one.test_inputs)
    assert torch.equal(split.train_inputs, again.train_inputs)
    assert torch.equal(split.test_labels, again.test_labels)
    assert not torch.equal(split.train_inputs, other.train_inputs)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("parity", "parity, dense")])
def test_train_and_test_together_are_the_whole(name):
    task, train, test = TASKS[name]
    split = task.split(0)
    whole = rows(torch.cat([split.train_inputs, split.test_inputs]))
    assert len(whole) == train + test
    assert whole == rows(torch.cat([task.split(1).train_inputs, task.split(1).test_inputs]))


@pytest.mark.parametrize("name", TASKS)
def test_random_labels_keep_inputs_and_forget_answers(name):
    task, *_ = TASKS[name]
    control = task.model_copy(update={"random_labels": True})
    true, shuffled = task.split(0), control.split(0)
    assert torch.equal(true.train_inputs, shuffled.train_inputs)
    for side in ("train_labels", "test_labels"):
        own, others = (getattr(one, side).bincount(minlength=task.num_classes) for one in (true, shuffled))
        assert torch.equal(own, others), side
    labels = [torch.cat([one.train_labels, one.test_labels]) for one in (true, shuffled)]
    counts = [label.bincount(minlength=task.num_classes) for label in labels]
    agreement = (labels[0] == labels[1]).float().mean()
    chance = (counts[0] / counts[0].sum()).square().sum()
    assert agreement < chance + 5 * (chance / len(labels[0])).sqrt()
    assert not torch.equal(shuffled.train_labels, control.split(1).train_labels)
    assert torch.equal(shuffled.train_labels, control.split(0).train_labels)


@pytest.mark.parametrize("samples", [10, 200, 203])
def test_digits_are_balanced(samples):
    for seed in range(3):
        counts = Digits(train_samples=samples).split(seed).train_labels.bincount(minlength=10)
        assert int(counts.max() - counts.min()) == (1 if samples % 10 else 0)


def test_digits_are_the_images_of_scikit_learn():
    from sklearn.datasets import load_digits

    inputs, labels = Digits(inputs="image").table()
    assert inputs.shape == (1797, 1, 8, 8)
    assert float(inputs.max()) == 1.0
    assert (inputs[7, 0] * 16).tolist() == load_digits().images[7].tolist()
    assert labels.tolist() == load_digits().target.tolist()


@pytest.mark.parametrize(("bits", "relevant"), [(8, 1), (8, 3), (40, 3)])
def test_parity_is_the_sign_of_a_product(bits, relevant):
    split = SparseParity(bits=bits, relevant=relevant, train_samples=150, test_samples=100).split(0)
    signs = split.train_inputs[:, :relevant].prod(1)
    assert set(split.train_inputs.flatten().tolist()) == {-1.0, 1.0}
    assert split.train_labels.tolist() == [int(sign < 0) for sign in signs.tolist()]
    ones = (split.train_inputs < 0).float().mean(0)
    assert float((ones - 0.5).abs().max()) < 0.2


@pytest.mark.parametrize("name", [name for name in TASKS if name != "own"])
def test_a_specification_gives_the_task_again(name):
    task, *_ = TASKS[name]
    assert TypeAdapter(Task).validate_json(task.model_dump_json()) == task


def test_own_tensors_are_described_not_written():
    task = TensorTask(name="mine", inputs=OWN_INPUTS, labels=OWN_LABELS)
    assert TensorTask(name="mine", inputs=OWN_INPUTS.numpy(), labels=OWN_LABELS.numpy()) == task
    description = task.model_dump(mode="json")
    assert description["samples"] == 40
    assert "inputs" not in description
    assert TypeAdapter(Task).validate_python(task) is task
    same, other = (TensorTask(name="mine", inputs=OWN_INPUTS + x, labels=OWN_LABELS) for x in (0, 1e-3))
    assert task == same
    assert hash(task) == hash(same)
    assert task != other
    with pytest.raises(ValidationError, match=r"describes the task 'mine' but does not hold its data"):
        TypeAdapter(Task).validate_python(description)


def test_own_datasets_with_a_fixed_split():
    train, test = TensorDataset(OWN_INPUTS, OWN_LABELS), TensorDataset(OWN_INPUTS + 1, OWN_LABELS)
    task = TensorTask.from_dataset(train, test, name="given", classes=6)
    split = task.split(0)
    assert torch.equal(split.train_inputs, OWN_INPUTS)
    assert torch.equal(split.test_inputs, OWN_INPUTS + 1)
    assert split.num_classes == 6
    assert torch.equal(task.split(9).train_inputs, OWN_INPUTS)
    halves = TensorTask.from_dataset(train).split(0)
    assert len(halves.train_labels) == len(halves.test_labels) == 20


def test_own_tokens():
    tokens = torch.arange(12).view(6, 2)
    task = TensorTask(inputs=tokens, labels=torch.arange(6) % 2, vocabulary=20)
    assert (task.input_spec.kind, task.input_spec.vocabulary) == ("tokens", 20)
    assert TensorTask(inputs=tokens, labels=torch.arange(6) % 2).input_spec.vocabulary == 12


def own(**changes):
    fields = {"inputs": OWN_INPUTS, "labels": OWN_LABELS} | changes
    return TensorTask(**fields)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ModularArithmetic(train_fraction=0), "greater than 0"),
        (lambda: ModularArithmetic(train_fraction=1), "less than 1"),
        (lambda: ModularArithmetic(operation="x/y", p=12), "prime p, got p=12; the nearest primes are 11 and 13"),
        (lambda: ModularArithmetic(operation="x*y+1"), r"did you mean 'x\*y'.*Allowed: 'x\+y', 'x-y'"),
        (lambda: ModularArithmetic(operation="sum"), r"unknown operation 'sum'\. Allowed: "),
        (lambda: ModularArithmetic(modulus=3), "Extra inputs are not permitted"),
        (lambda: SymmetricGroup(operation="yx"), "unknown operation 'yx'"),
        (lambda: SparseParity(bits=4, relevant=5), "relevant must be at most bits=4, got relevant=5"),
        (lambda: SparseParity(test_samples=None), "needs bits <= 16, got bits=40"),
        (lambda: SparseParity(bits=8, train_samples=250, test_samples=10), "8 bits give 256 different inputs"),
        (lambda: Digits(train_samples=9), "greater than or equal to 10"),
        (lambda: own(labels=OWN_LABELS.float()), r"must be int64 class indices .* got torch.float32 \(40,\)"),
        (lambda: own(labels=OWN_LABELS[:-1]), "got 40 and 39"),
        (lambda: own(labels=OWN_LABELS - 1), "count from 0"),
        (lambda: own(inputs=OWN_INPUTS[:, None]), r"got torch.float32 \(40, 1, 3\)"),
        (lambda: own(inputs=OWN_INPUTS.int()), "int64 tokens, got torch.int32"),
        (lambda: own(inputs=OWN_INPUTS / 0), "must be finite, got NaN or infinity"),
        (lambda: own(classes=3), "classes=3 is too small for the largest index found, 3"),
        (lambda: own(test_inputs=OWN_INPUTS), "belong together"),
        (lambda: own(test_inputs=OWN_INPUTS[:, :2], test_labels=OWN_LABELS), "must look like inputs"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, words):
    with pytest.raises(ValidationError, match=words):
        make()


def test_a_fraction_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"leaves 0 to train on and 25 to test on"):
        ModularArithmetic(p=5, train_fraction=0.01).split(0)


@pytest.mark.parametrize("spelling", ["x·y", "x × y", "x*y"])
def test_operations_can_be_spelt_as_in_print(spelling):
    assert ModularArithmetic(operation=spelling).operation == "x*y"
    assert ModularArithmetic(operation="x² + xy + y²").operation == "x^2+xy+y^2"
    assert ModularArithmetic(operation="x/y if y odd else x−y").operation == "x/y if y odd else x-y"
    assert SymmetricGroup(operation="xyx⁻¹").operation == "xyx^-1"


def test_a_dataset_of_other_items_says_so():
    class Named(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"inputs": torch.zeros(3), "labels": 0}

    with pytest.raises(ValueError, match=r"expected items \(input, label\), got a dict at index 0"):
        TensorTask.from_dataset(Named())
    with pytest.raises(ValueError, match="expected tensors or arrays as inputs, got a str; give the dataset a transfo"):
        TensorTask.from_dataset([("a picture", 0)])
    with pytest.raises(ValidationError, match=r"must be int64 class indices .* got torch.float64 \(2,\)"):
        TensorTask.from_dataset([(torch.zeros(3), 0.25), (torch.ones(3), 1.0)])
