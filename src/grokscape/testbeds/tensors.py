"""A user's own data as a task."""

import hashlib
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, field_validator, model_serializer, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from grokscape.settings import Settings, Size
from grokscape.testbeds.splits import TRAIN_FRACTION, assigned, split_by_fraction
from grokscape.testbeds.types import InputSpec, Split


class TensorTask(Settings):
    """Inputs and labels of your own (tensors or NumPy arrays), split at random or as you say.

    Without test tensors, every seed splits the samples anew by `train_fraction`. With them the split is fixed and seeds
    differ in initialisation only. The data itself is not written into a specification, only a description with its
    digest: whoever goes on with such a study passes the same task again.

    Attributes:
        name: for people.
        inputs: (N, L) int64 tokens, (N, D) or (N, C, H, W) floating point.
        labels: (N,) class indices, int64.
        test_inputs: what to test on, shaped like `inputs`; None to split `inputs`.
        test_labels: their labels.
        train_fraction: share of the samples that is trained on; without effect if test tensors are given.
        vocabulary: number of different tokens; None for the largest token plus one.
        classes: number of classes K; None for the largest label plus one.
        random_labels: the control without structure: labels are shuffled (train and test apart), by the split's seed.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: Literal["tensors"] = "tensors"
    name: str = "tensors"
    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor | None = None
    test_labels: Tensor | None = None
    train_fraction: float = TRAIN_FRACTION
    vocabulary: Size | None = None
    classes: Size | None = Field(default=None, ge=2)
    random_labels: bool = False

    @classmethod
    def from_dataset(
        cls, dataset: Dataset[Any], test_dataset: Dataset[Any] | None = None, **fields: Any
    ) -> "TensorTask":
        """From PyTorch datasets of (input, label) pairs that fit in memory.

        Args:
            dataset: what to train on, or to split if `test_dataset` is None.
            test_dataset: what to test on.
            **fields: any other attribute of the task.
        """
        inputs, labels = _collect(dataset)
        if test_dataset is None:
            return cls(inputs=inputs, labels=labels, **fields)
        test_inputs, test_labels = _collect(test_dataset)
        return cls(inputs=inputs, labels=labels, test_inputs=test_inputs, test_labels=test_labels, **fields)

    @model_validator(mode="before")
    @classmethod
    def _not_a_description(cls, value: Any) -> Any:
        if isinstance(value, dict) and "digest" in value:
            raise ValueError(
                f"this describes the task {value.get('name')!r} but does not hold its data; build the TensorTask again "
                f"from the same tensors (digest {value['digest']}) and pass it as testbed= to grokscape.load or resume"
            )
        return value

    @field_validator("inputs", "labels", "test_inputs", "test_labels", mode="before")
    @classmethod
    def _tensor(cls, value: Any) -> Any:
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    @model_validator(mode="after")
    def _consistent(self) -> "TensorTask":
        _check(self.inputs, self.labels, "")
        if (self.test_inputs is None) != (self.test_labels is None):
            raise ValueError("test_inputs and test_labels belong together; give both, or neither to split `inputs`")
        if self.test_inputs is not None and self.test_labels is not None:
            _check(self.test_inputs, self.test_labels, "test_")
            test, train = (f"{tuple(x.shape[1:])} {x.dtype}" for x in (self.test_inputs, self.inputs))
            if test != train:
                raise ValueError(f"test_inputs must look like inputs, got {test} against {train}")
        for given, name, found in ((self.vocabulary, "vocabulary", 0), (self.classes, "classes", 1)):
            if given is not None and self._largest(found) >= given:
                raise ValueError(f"{name}={given} is too small for the largest index found, {self._largest(found)}")
        return self

    def _largest(self, which: int) -> int:
        """Largest token (0) or label (1) in train and test; −1 for inputs that are no tokens."""
        parts = ((self.inputs, self.test_inputs), (self.labels, self.test_labels))[which]
        return max(-1 if part is None or part.is_floating_point() else int(part.max()) for part in parts)

    @property
    def input_spec(self) -> InputSpec:
        """By type and number of dimensions of the inputs."""
        shape = tuple(self.inputs.shape[1:])
        if not self.inputs.is_floating_point():
            return InputSpec("tokens", shape, vocabulary=self.vocabulary or self._largest(0) + 1)
        return InputSpec("vector" if len(shape) == 1 else "image", shape)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.classes or max(2, self._largest(1) + 1)

    def split(self, seed: int) -> Split:
        """The given split, or a random one."""
        if self.test_inputs is None or self.test_labels is None:
            return split_by_fraction(self.inputs, self.labels, self.train_fraction, seed, self)
        labels, test_labels = assigned(self.labels, self.test_labels, seed, self.random_labels)
        return Split(self.inputs, labels, self.test_inputs, test_labels, self.input_spec, self.num_classes)

    @property
    def digest(self) -> str:
        """SHA-256 of shapes, types and contents, the first 16 digits."""
        digest = hashlib.sha256()
        for part in (self.inputs, self.labels, self.test_inputs, self.test_labels):
            if part is not None:
                digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
                digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @model_serializer
    def _describe(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "samples": len(self.labels),
            "test_samples": None if self.test_labels is None else len(self.test_labels),
            "train_fraction": self.train_fraction,
            "shape": list(self.input_spec.shape),
            "vocabulary": self.input_spec.vocabulary,
            "classes": self.num_classes,
            "random_labels": self.random_labels,
            "digest": self.digest,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TensorTask) and self._describe() == other._describe()

    def __hash__(self) -> int:
        return hash((self.name, self.digest, self.train_fraction, self.random_labels))

    def __repr__(self) -> str:
        fields = ", ".join(f"{key}={value!r}" for key, value in self._describe().items() if key != "kind")
        return f"TensorTask({fields})"


def _collect(dataset: Any) -> tuple[Tensor, Tensor]:
    """All (input, label) pairs of a dataset, stacked."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(f"expected a dataset with a length and (input, label) items, got {type(dataset).__name__}")
    items = [dataset[index] for index in range(len(dataset))]
    for index, item in enumerate(items):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"expected items (input, label), got a {type(item).__name__} at index {index}")
    inputs, labels = zip(*items, strict=True)
    if not isinstance(inputs[0], Tensor | np.ndarray | list | tuple):
        raise ValueError(
            f"expected tensors or arrays as inputs, got a {type(inputs[0]).__name__}; give the dataset a transform"
        )
    found = torch.as_tensor([float(one) for one in labels], dtype=torch.float64)
    classes = found.long()
    return torch.stack([torch.as_tensor(one) for one in inputs]), classes if bool((classes == found).all()) else found


def _check(inputs: Tensor, labels: Tensor, prefix: str) -> None:
    """Refuse tensors that no network here could read."""
    if labels.dim() != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"{prefix}labels must be int64 class indices of shape (N,), got {labels.dtype} {tuple(labels.shape)}; "
            f"use labels.long() (of an array astype('int64')), and argmax for one-hot rows"
        )
    if len(inputs) != len(labels) or not len(labels):
        raise ValueError(
            f"{prefix}inputs and {prefix}labels need the same, positive number of samples, "
            f"got {len(inputs)} and {len(labels)}"
        )
    if inputs.dim() not in (2, 4) or (inputs.dim() == 4 and not inputs.is_floating_point()):
        raise ValueError(
            f"{prefix}inputs must be tokens (N, L), vectors (N, D) or floating-point images (N, C, H, W), "
            f"got {inputs.dtype} {tuple(inputs.shape)}"
        )
    if not inputs.is_floating_point() and inputs.dtype != torch.int64:
        raise ValueError(f"{prefix}inputs must be floating point, or int64 tokens, got {inputs.dtype}")
    if not inputs.isfinite().all():
        raise ValueError(f"{prefix}inputs must be finite, got NaN or infinity in some; leave those samples out")
    if int(labels.min()) < 0 or (not inputs.is_floating_point() and int(inputs.min()) < 0):
        raise ValueError(f"{prefix}labels and tokens count from 0, got a negative one")
