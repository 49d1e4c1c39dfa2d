"""Running somebody's model over somebody's data: batches of any common form, fixed weights, and everything put back.

Accepted data: a `DataLoader` or any iterable of batches, a `Dataset` of (input, label) pairs, or tensors
(inputs, labels). Accepted batches: (inputs, …, labels), or a mapping with a "labels" (or "label") entry whose other
tensors are handed to the model by name, as transformers does. NumPy arrays count as tensors.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset, IterableDataset

from grokscape.measures.locate import evaluation_flags, is_compiled, unwrapped

IGNORED = -100
"""Label of positions that carry no loss, as in torch and transformers."""

_PREDICT_THE_NEXT = (
    "ForCausalLM", "LMHeadModel", "ModelWithLMHead", "DoubleHeadsModel", "BertGenerationDecoder", "Text2Text",
    "ForCausalImageModeling", "ForConditionalGeneration",
)
"""Ends of the names of transformers' models whose labels are those of the next position."""

_SHIFT_THEMSELVES = {
    "Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall", "CpmAnt", "FlaubertWithLMHeadModel", "MBart", "Marian",
    "Musicgen", "MusicgenMelody", "Mvp", "PLBart", "Pegasus", "ProphetNet", "TrOCR", "Whisper", "XLMWithLMHeadModel",
    "XLNetLMHeadModel",
}
"""Language models of transformers whose labels are those of the positions themselves: who calls them shifts."""

_LABEL_KEYS = ("labels", "label", "targets", "target")


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and the labels.

    Attributes:
        arguments: positional inputs.
        keywords: inputs by name.
        labels: class indices (B) or (B, T).
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    labels: Tensor

    def to(self, device: torch.device, dtype: torch.dtype | None, *, copy: bool = False) -> "Batch":
        """On a device, with floating inputs in a dtype (as they are for None).

        As a copy in any case for who keeps it: some loaders write the next batch over this one.
        """

        def moved(value: Any) -> Any:
            """A tensor there, anything else as it is."""
            if not isinstance(value, Tensor):
                return value
            return value.to(device, dtype if dtype is not None and value.is_floating_point() else None, copy=copy)

        return Batch(
            tuple(map(moved, self.arguments)),
            {name: moved(value) for name, value in self.keywords.items()},
            self.labels.to(device, copy=copy),
        )


def _tensor(value: Any) -> Any:
    """A NumPy array as a tensor of its own memory; anything else as it is."""
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def batches(data: Any, batch_size: int = 256) -> Iterable[Any]:
    """Data as an iterable of batches; datasets and tensors are cut into batches in their order.

    Raises:
        TypeError: the data has none of the accepted forms.
        ValueError: inputs and labels have different lengths; batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"expected a batch_size of 1 or more, got {batch_size}")
    if isinstance(data, DataLoader):
        return _Undisturbed(data)
    kinds = Tensor | np.ndarray
    if isinstance(data, (tuple, list)) and len(data) >= 2 and all(isinstance(part, kinds) for part in data):
        data = tuple(map(_tensor, data))
        lengths = {len(part) for part in data}
        if len(lengths) > 1:
            raise ValueError(f"inputs and labels must have one length, got {[len(part) for part in data]}")
        return _Cut(data, batch_size)
    if isinstance(data, Mapping):
        data = {name: _tensor(value) for name, value in data.items()}
        lengths = {name: len(value) for name, value in data.items() if isinstance(value, Tensor)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"data that is a mapping needs tensors or arrays of one length, got {lengths or 'none'}")
        return _Cut(data, batch_size)
    if isinstance(data, IterableDataset) or (isinstance(data, Dataset) and hasattr(data, "__len__")):
        return DataLoader(data, batch_size=batch_size)
    if isinstance(data, Iterable):
        return data
    raise TypeError(
        f"data must be a DataLoader, an iterable of batches, a Dataset of (input, label) pairs, or tensors "
        f"(inputs, labels), got {type(data).__name__}"
    )


class _Undisturbed:
    """A loader whose own generators are as they were once it has been gone through."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        holders = (self.loader, self.loader.sampler, getattr(self.loader.batch_sampler, "sampler", None))
        generators = [getattr(holder, "generator", None) for holder in holders]
        states = [(generator, generator.get_state()) for generator in generators if generator is not None]
        try:
            yield from self.loader
        finally:
            for generator, state in states:
                generator.set_state(state)


class _Cut:
    """Tensors cut along their first axis, as often as one goes over them."""

    def __init__(self, tensors: tuple[Tensor, ...] | dict[str, Any], size: int) -> None:
        self.tensors, self.size = tensors, size

    def _length(self) -> int:
        values = self.tensors.values() if isinstance(self.tensors, dict) else self.tensors
        return max(len(value) for value in values if isinstance(value, Tensor))

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._length(), self.size):
            piece = slice(start, start + self.size)
            if isinstance(self.tensors, dict):
                yield {name: value[piece] for name, value in self.tensors.items()}
            else:
                yield tuple(value[piece] for value in self.tensors)


def as_batch(batch: Any) -> Batch:
    """A batch in one form.

    Raises:
        TypeError: it is neither a sequence that ends in labels nor a mapping with labels, or its inputs are lists, or
            there is something besides a mapping of inputs and labels.
        ValueError: a mapping has no labels, or there is one label alone.
    """
    if isinstance(batch, Mapping):
        key = next((key for key in _LABEL_KEYS if key in batch), None)
        if key is None:
            raise ValueError(f"a batch that is a mapping needs an entry 'labels', got {sorted(map(str, batch))}")
        tensors = {str(name): _tensor(value) for name, value in batch.items() if name != key}
        for name, value in tensors.items():
            if _holds_numbers(value):
                what = f"{name} of a batch must be a tensor or an array"
                raise TypeError(f"{what}, got a list of numbers; use torch.tensor")
        inputs = {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
        return Batch((), inputs, _labels(batch[key]))
    if isinstance(batch, Sequence) and len(batch) >= 2 and not isinstance(batch, str):
        if isinstance(batch[0], Mapping):
            if len(batch) > 2:
                raise TypeError(f"a batch that begins with a mapping must be (inputs, labels), got {len(batch)} parts")
            inputs = {str(name): _tensor(value) for name, value in batch[0].items()}
            return Batch((), inputs, _labels(batch[-1]))
        if _holds_numbers(batch[0]):
            raise TypeError("inputs of a batch must be tensors or arrays, got a list of numbers; use torch.tensor")
        return Batch(tuple(map(_tensor, batch[:-1])), {}, _labels(batch[-1]))
    raise TypeError(
        f"a batch must be (inputs, labels) or a mapping with 'labels', got {type(batch).__name__}"
        + (f" of length {len(batch)}" if isinstance(batch, Sequence) else "")
    )


def _labels(value: Any) -> Tensor:
    """The labels of a batch as a tensor."""
    try:
        labels = value if isinstance(value, Tensor) else torch.as_tensor(_tensor(value))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise TypeError(f"labels, the last part of a batch, must be a tensor or an array, got a {kind}") from error
    if labels.dim() == 0:
        raise ValueError(
            "a batch needs labels for all of its samples, got a single number; put samples into batches by a DataLoader"
        )
    return labels


def _holds_numbers(value: Any) -> bool:
    """Whether it is a list of numbers, of lists of them, and so on."""
    nested = isinstance(value, list)
    while isinstance(value, list) and value:
        value = value[0]
    return nested and isinstance(value, int | float)


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output: a tensor, `.logits`, ["logits"], or the first matrix of a tuple (loss, logits).

    Raises:
        TypeError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, Mapping):
        logits = output.get("logits")
    if logits is None and isinstance(output, (tuple, list)):
        logits = next((part for part in output if isinstance(part, Tensor) and part.dim() > 1), None)
    if isinstance(logits, Tensor):
        return logits
    raise TypeError(
        f"the model must return logits (a tensor, or an output with .logits), got {type(output).__name__}; of several "
        f"heads a Probe and measure take the one that head= names, anything else a model that returns one"
    )


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors in a model's output, where it is a tensor, a mapping or a sequence."""
    if isinstance(output, Mapping):
        output = list(output.values())
    return [part for part in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(part, Tensor)]


def without_adapters(model: nn.Module) -> nn.Module:
    """The model inside wrappers and adapters of peft."""
    model = unwrapped(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def shifts_labels(model: nn.Module) -> bool:
    """Whether a model predicts the next position from each, as the causal language models of transformers do.

    Those that also see pictures or sound do so too, unless an encoder sees them; adapters of peft are seen through.
    """
    model = without_adapters(model)
    names = [kind.__name__ for kind in type(model).__mro__]
    causal = next((name for name in names if name.endswith(_PREDICT_THE_NEXT)), None)
    if causal is not None and causal.endswith("ForConditionalGeneration"):
        return not getattr(getattr(model, "config", None), "is_encoder_decoder", True)
    return causal is not None and causal.removesuffix("ForCausalLM") not in _SHIFT_THEMSELVES


def placement(model: nn.Module) -> tuple[torch.device, torch.dtype | None]:
    """Device and floating dtype of a model's first floating parameter.

    Raises:
        ValueError: a parameter before it holds no numbers.
    """
    for parameter in model.parameters():
        if parameter.is_meta:
            raise ValueError("the model has parameters on the device 'meta', which holds no numbers; load its weights")
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    return torch.device("cpu"), None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and a second derivative through attention; flags and generators are as they were after.

    A data loader draws from the global generator whenever it is iterated over, even where it does not shuffle, and
    what augments data often from those of Python and NumPy.
    """
    device, _ = placement(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (that is what data sets use)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            evaluation_flags(model),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            sdpa_kernel(SDPBackend.MATH),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def eagerly(model: nn.Module) -> Iterator[None]:
    """A compiled model as it was written: compiled code has no second derivative, and may not notice a probe."""
    with torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext():
        yield


@contextmanager
def differentiable(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Gradients on for these parameters, without hooks that change them; all is restored after, no .grad is left."""
    found = [(each, each.requires_grad, dict(each._backward_hooks or {})) for each in parameters]
    for parameter, _, hooks in found:
        parameter.requires_grad_(True)
        if hooks:
            parameter._backward_hooks.clear()  # type: ignore[union-attr]
    try:
        yield
    finally:
        for parameter, flag, hooks in found:
            parameter.requires_grad_(flag)
            if hooks:
                parameter._backward_hooks.update(hooks)  # type: ignore[union-attr]
