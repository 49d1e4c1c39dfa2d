"""Real images: the 1797 handwritten digits of 8 × 8 pixels that ship with scikit-learn."""

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from grokscape.settings import Settings
from grokscape.testbeds.augmentation import ImageTransform
from grokscape.testbeds.splits import stratified_split
from grokscape.testbeds.types import InputSpec, Split

SMALLEST_CLASS = 174


class Digits(Settings):
    """Ten handwritten digits, few of them to train on, all others to test on.

    With a small training set and a large initialisation, generalisation comes late (Liu et al. 2022, arXiv 2210.01117).
    Pixels run from 0 to 1. Every digit has the same number of training samples, up to one: which digits have one more
    is the split's choice.

    Attributes:
        train_samples: number of training images, at least one per class.
        inputs: "vector" (64,) or "image" (1, 8, 8).
        augment: whether training images are shifted by up to a pixel, anew at every step.
        random_labels: the control without structure: all labels are shuffled, by the split's seed.
    """

    kind: Literal["digits"] = "digits"
    train_samples: int = Field(default=200, ge=10, le=10 * SMALLEST_CLASS - 10)
    inputs: Literal["vector", "image"] = "vector"
    augment: bool = False
    random_labels: bool = False

    @model_validator(mode="after")
    def _images_are_shifted(self) -> "Digits":
        if self.augment and self.inputs != "image":
            raise ValueError("augment=True shifts images; use inputs='image' with it")
        return self

    @property
    def input_spec(self) -> InputSpec:
        """64 pixels, or one channel of 8 × 8."""
        return InputSpec(self.inputs, (64,) if self.inputs == "vector" else (1, 8, 8))

    @property
    def num_classes(self) -> int:
        """10."""
        return 10

    def table(self) -> tuple[Tensor, Tensor]:
        """Every image `(1797, *shape)` and its digit (1797,)."""
        from sklearn.datasets import load_digits  # its import takes a second

        pixels, digits = load_digits(return_X_y=True)
        images = torch.from_numpy(pixels).float().div(16).view(-1, *self.input_spec.shape)
        return images, torch.from_numpy(digits).long()

    def split(self, seed: int) -> Split:
        """A random split with equal classes in training."""
        split = stratified_split(*self.table(), self.train_samples, seed, self)
        return replace(split, transform=ImageTransform((0.0,), (1.0,), crop=1)) if self.augment else split
