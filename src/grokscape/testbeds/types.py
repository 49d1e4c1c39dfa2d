"""What a task hands to a network: a split of labelled samples, and what one input looks like."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from grokscape.testbeds.augmentation import ImageTransform


@dataclass(frozen=True)
class InputSpec:
    """Shape and kind of one input.

    Attributes:
        kind: "tokens" (int64 of shape (L,), values below `vocabulary`), "vector" (float, (D,)) or "image" (float,
            (C, H, W)).
        shape: shape of one input.
        vocabulary: number of different tokens; 0 for other kinds.
        padding: the token that fills sequences up at their end, if they have different lengths.
    """

    kind: Literal["tokens", "vector", "image"]
    shape: tuple[int, ...]
    vocabulary: int = 0
    padding: int | None = None


@dataclass(frozen=True)
class Split:
    """Samples of one split seed; inputs `(N, *input_spec.shape)`, labels (N,) int64 below `num_classes`.

    Images may be stored as uint8, with a `transform` that turns them into what the network sees.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    input_spec: InputSpec
    num_classes: int
    transform: ImageTransform | None = None
