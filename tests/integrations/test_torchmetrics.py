"""The metrics equal one pass over all samples, also when two processes saw half each."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from grokscape.measures import neural_collapse, relative_flatness
from probed import LowRank

try:
    from grokscape.integrations.torchmetrics import NeuralCollapse, RelativeFlatness
except RuntimeError as error:  # a torchvision built for another torch breaks the import of torchmetrics
    pytest.skip(f"torchmetrics cannot be imported here: {error}", allow_module_level=True)


def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (120,), generator=generator)
    features = torch.randn(5, 8, generator=generator)[labels] + torch.randn(120, 8, generator=generator)
    weight = torch.randn(5, 8, generator=generator)
    return features, labels, weight


def filled(pieces):
    features, labels, weight = data()
    head = torch.nn.Linear(8, 5)
    head.weight.data.copy_(weight)
    flatness, collapse = RelativeFlatness(), NeuralCollapse(5, 8, head=head)
    for piece in pieces:
        flatness.update(features[piece], weight, features[piece] @ weight.T)
        collapse.update(features[piece], labels[piece])
    return flatness, collapse


def check(flatness, collapse):
    features, labels, weight = (part.double() if part.is_floating_point() else part for part in data())
    torch.testing.assert_close(flatness, relative_flatness(features, weight, features @ weight.T), rtol=1e-5, atol=0)
    expected = neural_collapse(features, labels, weight)
    assert set(collapse) == set(expected) - {"nc4", "ildr"}
    for name, value in collapse.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_batches_equal_one_pass():
    flatness, collapse = filled([slice(0, 50), slice(50, 51), slice(51, 120)])
    check(flatness.compute(), collapse.compute())


def test_calls_add_up_and_give_the_value_of_their_batch():
    features, labels, weight = data()
    flatness, collapse = filled([slice(0, 50)])
    for piece in (slice(50, 80), slice(80, 120)):
        flatness(features[piece], weight, features[piece] @ weight.T)
        own = collapse(features[piece], labels[piece])
        torch.testing.assert_close(own["nc1"], neural_collapse(features[piece].double(), labels[piece])["nc1"])
    check(flatness.compute(), collapse.compute())


def test_metrics_merge():
    (flatness, collapse), others = filled([slice(0, 50)]), filled([slice(50, 80)])
    flatness.merge_state(others[0])
    collapse.merge_state(others[1])
    features, labels, weight = data()
    flatness.update(features[80:], weight, features[80:] @ weight.T)
    collapse.update(features[80:], labels[80:])
    check(flatness.compute(), collapse.compute())


def test_reset_forgets():
    _, collapse = filled([slice(0, 50)])
    collapse.reset()
    features, labels, _ = data()
    collapse.update(features, labels)
    assert collapse.compute() == filled([slice(0, 120)])[1].compute()


def test_without_a_head_nothing_is_said_about_one():
    features, labels, _ = data()
    collapse = NeuralCollapse(5, 8)
    collapse.update(features, labels)
    assert {"nc3", "nc2_equinorm_weight"}.isdisjoint(collapse.compute())
    assert not list(NeuralCollapse(5, 8, head=torch.nn.Linear(8, 5)).parameters())


def _process(rank, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    flatness, collapse = filled([slice(0, 30), slice(30, 45)] if rank == 0 else [slice(45, 120)])
    check(flatness.compute(), collapse.compute())
    assert collapse.moments.dim() == 1  # synced for the computation only
    dist.destroy_process_group()


def test_two_processes_equal_one_pass(tmp_path):
    mp.spawn(_process, args=(str(tmp_path),), nprocs=2)


@pytest.mark.parametrize("change", [lambda holder: holder.to(torch.bfloat16), lambda holder: holder.half()])
def test_sums_stay_wide_in_a_module_of_half_precision(change):
    flatness, collapse = filled([slice(0, 50)])
    change(torch.nn.ModuleList([flatness, collapse]))
    features, labels, weight = data()
    flatness.update(features[50:], weight, features[50:] @ weight.T)
    collapse.update(features[50:], labels[50:])
    check(flatness.compute(), collapse.compute())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_loss_of_ones_own_in_validation(mode):
    features, labels, weight = data()
    flatness = RelativeFlatness(loss=lambda logits, targets: F.cross_entropy(logits, targets, reduction="none"))
    with mode():
        flatness.update(features + 0, weight + 0, features @ weight.T, labels + 0)
    expected = relative_flatness(features.double(), weight.double())
    torch.testing.assert_close(flatness.compute(), expected, rtol=1e-5, atol=0)


def test_a_head_with_an_adapter_counts_as_a_whole():
    features, labels, weight = data()
    head = LowRank(torch.nn.Linear(8, 5))
    collapse = NeuralCollapse(5, 8, head=head)
    collapse.update(features, labels)
    with torch.no_grad():
        weight = head(torch.eye(8)).T - head(torch.zeros(8))[:, None]
    expected = neural_collapse(features.double(), labels, weight.double())["nc3"]
    torch.testing.assert_close(collapse.compute()["nc3"], expected, rtol=1e-5, atol=0)
