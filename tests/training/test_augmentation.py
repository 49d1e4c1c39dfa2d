"""Augmented images in the engine: the same for all arms of a seed, another at every step, never when measuring."""

import pytest
import torch

from grokscape.testbeds.augmentation import ImageTransform, channel_statistics
from grokscape.testbeds.types import InputSpec, Split
from grokscape.training import SGD, Replica
from grokscape.training.batches import Batches

ALL = slice(None)


def images(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture
def split():
    generator = torch.Generator().manual_seed(0)
    train, test, labels = images(12, generator), images(6, generator), torch.arange(12) % 2
    transform = ImageTransform(*channel_statistics(train), crop=1, flip=True)
    return Split(train, labels, test, labels[:6], InputSpec("image", (3, 8, 8)), 2, transform)


def batches(split, seeds):
    replicas = [Replica(f"arm{i}", i, seed, 0, split, (), SGD()) for i, seed in enumerate(seeds)]
    return Batches(replicas, 4, torch.device("cpu"), torch.float32)


def test_arms_of_a_seed_see_the_same_and_steps_differ(split):
    found = batches(split, [5, 5, 6])
    first, _ = found.at(2, ALL)
    again, _ = batches(split, [5, 5, 6]).at(2, ALL)
    assert torch.equal(first, again)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first, found.at(3, ALL)[0])


def test_every_window_is_a_shift_or_a_mirrored_shift(split):
    transform, picture = split.transform, split.train_inputs[:1]
    padded = torch.nn.functional.pad(picture, (1, 1, 1, 1))
    windows = [padded[..., i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    allowed = [*windows, *(window.flip(-1) for window in windows)]
    seen = [transform.augmented(picture, 1, step) for step in range(60)]
    which = [next(k for k, one in enumerate(allowed) if torch.equal(one, image)) for image in seen]
    assert len(set(which)) > 9


def test_measuring_normalises_and_does_not_augment(split):
    found = batches(split, [5])
    stored, _ = found.all("train", ALL)
    seen = found.seen(stored, ALL)[0]
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)
    by_hand = split.train_inputs.double() / 255
    by_hand = (by_hand - by_hand.mean((0, 2, 3), keepdim=True)) / by_hand.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(seen.double(), by_hand, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("floating", [False, True])
def test_a_channel_that_is_the_same_everywhere_is_only_moved(floating):
    train = torch.full((4, 2, 3, 3), 51, dtype=torch.uint8)
    train[:, 0] = torch.arange(36).view(4, 3, 3)
    train = train.float() / 255 if floating else train
    mean, std = channel_statistics(train)
    assert (mean[1], std[1]) == (pytest.approx(0.2), 1.0)
    assert std[0] == pytest.approx(float(torch.arange(36.0).std(correction=0)) / 255)
