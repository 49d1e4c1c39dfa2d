"""Curvature of the whole network's loss: Hessian trace and largest eigenvalues (through curvlinops), SAM sharpness.

None of these is invariant when weights are rescaled without changing the function; relative flatness is. They are here
to compare with.

Shapes: D parameters of the network.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from grokscape.measures.batches import Batch, as_batch, batches, differentiable, eagerly, evaluating, placement
from grokscape.measures.checks import MeasureWarning
from grokscape.measures.locate import bare
from grokscape.measures.model_loss import align, align_labels, at_least_one, forward, total_loss
from grokscape.measures.softmax import Softmax
from grokscape.numerics import Estimate, full_precision, in_float64, rademacher, widen


@full_precision()
def hessian_trace(
    model: nn.Module, data: Any, probes: int = 32, *, generator: torch.Generator | None = None, batch_size: int = 256
) -> Estimate:
    """Trace of the Hessian of the mean cross-entropy in all trainable parameters, by Hutchinson's estimator.

    Args:
        model: any module that returns logits; evaluated in evaluation mode and left as it was found.
        data: as in `grokscape.measure`.
        probes: random vectors of signs, one product with the Hessian each.
        generator: of the probes; by default one with seed 0.
        batch_size: for data that is not in batches.

    Raises:
        ImportError: curvlinops is not installed.
        ValueError: no trainable parameter, no samples, probes below 1.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}")
    generator = generator if generator is not None else torch.Generator().manual_seed(0)

    def estimate(operator: Any, samples: int, like: Tensor) -> Estimate:
        """Hutchinson's estimate of the trace per sample."""
        values = []
        for _ in range(probes):
            signs = rademacher(operator.shape[0], generator=generator, like=like)
            values.append((in_float64(signs) @ in_float64(operator @ signs) / samples).cpu())
        return Estimate.of(torch.stack(values))

    return _with_operator(model, data, batch_size, estimate)


@full_precision()
def hessian_eigenvalues(model: nn.Module, data: Any, number: int = 1, *, batch_size: int = 256) -> list[float]:
    """Largest eigenvalues of the Hessian of the mean cross-entropy, largest first, by Lanczos iteration.

    Args:
        model: any module that returns logits; evaluated in evaluation mode and left as it was found.
        data: as in `grokscape.measure`.
        number: how many, below the number of parameters.
        batch_size: for data that is not in batches.

    Raises:
        ImportError: curvlinops is not installed.
        ValueError: no trainable parameter, no samples, or as many eigenvalues as parameters.
    """

    def largest(operator: Any, samples: int, like: Tensor) -> list[float]:
        """The largest eigenvalues per sample, by Lanczos."""
        import numpy
        from scipy.sparse.linalg import eigsh

        if not 0 < number < operator.shape[0]:
            raise ValueError(f"number must lie between 1 and {operator.shape[0] - 1}, got {number}")
        start = numpy.random.default_rng(0).standard_normal(operator.shape[0])
        values = eigsh(operator.to_scipy(), k=number, which="LA", v0=start, return_eigenvectors=False)
        return sorted((float(value) / samples for value in values), reverse=True)

    return _with_operator(model, data, batch_size, largest)


def _with_operator(
    model: nn.Module, data: Any, batch_size: int, work: Callable[[Any, int, Tensor], Any]
) -> Any:
    """Do work with the Hessian of the summed loss as an operator, and the number of samples."""
    try:
        with _deprecations_ignored():
            from curvlinops import HessianLinearOperator
    except ImportError as error:
        raise ImportError("this needs curvlinops: pip install 'grokscape[curvature]'") from error
    model = bare(model)
    parameters = _trainable(model)
    device, dtype = placement(model)
    with evaluating(model), eagerly(model), _differentiating(), _deprecations_ignored():
        kept = [as_batch(raw).to(device, dtype, copy=True) for raw in batches(data, batch_size)]
        pairs = [(batch, align_labels(model, batch.labels)) for batch in kept]
        samples = at_least_one(sum(len(labels) for _, labels in pairs))
        operator = HessianLinearOperator(
            _Rows(model),
            _CrossEntropy(),
            parameters,
            [({"batch": batch}, labels) for batch, labels in pairs if len(labels)],
            check_deterministic=False,
            num_data=samples,
            batch_size_fn=lambda inputs: len(inputs["batch"].labels),
        )
        return work(operator, samples, parameters[0])


@contextmanager
def _differentiating() -> Iterator[None]:
    """Gradients on, also where the caller has turned them off, as evaluation loops do."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def _deprecations_ignored() -> Iterator[None]:
    """curvlinops and what it builds on use parts of torch that torch has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class _Rows(nn.Module):
    """A model as a function of a batch, with the logits of the samples that carry a loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Any) -> Tensor:
        """Logits of the positions that carry a label, one row each."""
        batch: Batch = inputs["batch"]
        return align(self.model, batch.labels, forward(self.model, batch))[1]


class _CrossEntropy(nn.Module):
    """The summed cross-entropy of rows, as curvlinops calls it."""

    reduction = "sum"

    def forward(self, rows: Tensor, labels: Tensor) -> Tensor:
        """With derivatives that keep their digits."""
        return Softmax.of(widen(rows)).cross_entropy(labels).sum()


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameter")
    return parameters


@full_precision()
def sharpness(model: nn.Module, data: Any, radius: float = 0.05, *, batch_size: int = 256) -> float:
    """SAM sharpness: how much the mean cross-entropy rises one step of length `radius` up its gradient.

    Args:
        model: any module that returns logits; evaluated in evaluation mode and left as it was found.
        data: as in `grokscape.measure`; gone through three times.
        radius: ρ, Euclidean length of the step in all trainable parameters.
        batch_size: for data that is not in batches.

    Raises:
        ValueError: no trainable parameter, no samples.

    Warns:
        MeasureWarning: it is NaN, because the gradient is zero or NaN.

    Source: Foret et al., ICLR 2021.
    """
    model = bare(model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parameters = _trainable(model)
    device, dtype = placement(model)
    with evaluating(model), torch.inference_mode(False):
        prepared = [as_batch(batch).to(device, dtype, copy=True) for batch in batches(data, batch_size)]
        with differentiable(parameters), _differentiating():
            slope, loss, samples = _slope(model, prepared, parameters)
        size = torch.stack([part.square().sum() for part in slope]).sum().sqrt()
        if not size > 0:  # nor where it is NaN
            reason = "NaN" if size.isnan() else "zero, and has no direction"
            warnings.warn(f"sharpness is NaN: the gradient of the loss is {reason}", MeasureWarning, stacklevel=3)
        moved = [p.detach() + radius * g / size for p, g in zip(parameters, slope, strict=True)]
        replaced = dict(zip(names, moved, strict=True))
        with torch.no_grad():
            risen = sum(float(total_loss(model, batch, "cross_entropy", replaced)[0]) for batch in prepared)
    return (risen - loss) / at_least_one(samples)


def _slope(
    model: nn.Module, prepared: Iterable[Batch], parameters: Sequence[Tensor]
) -> tuple[list[Tensor], float, int]:
    """Gradient of the summed loss, the sum, and the number of samples."""
    slope, loss, samples = [torch.zeros_like(parameter) for parameter in parameters], 0.0, 0
    for batch in prepared:
        total, count = total_loss(model, batch, "cross_entropy")
        parts = torch.autograd.grad(total, parameters, allow_unused=True)
        slope = [old if new is None else old + new for old, new in zip(slope, parts, strict=True)]
        loss, samples = loss + float(total.detach()), samples + count
    return slope, loss, samples
