"""Numbers that stay right where the textbook form does not: distances, and quantities without cancellation.

Shapes: `...` any leading axes, N rows, d features, K classes.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def squared_distances(rows: Tensor, block: slice | None = None) -> Tensor:
    """Squared Euclidean distances between rows, right to a few 1e-16 of ‖a‖² + ‖b‖² after centring.

    ‖a‖² + ‖b‖² − 2ab cancels for rows that are close; so rows are centred and the products are taken in float64. Rows
    1e-4 of their size apart keep float32's digits, rows 1e-6 apart three of them, and what is below the rounding
    (4 d times it, to be safe) is a distance of exactly zero.

    Args:
        rows: (..., K, d), floating point.
        block: only the distances from these rows.

    Returns:
        (..., K, K), or (..., block, K); differentiable.
    """
    wide = widest(rows)
    wide = wide - wide.detach().mean(-2, keepdim=True)
    norms = wide.square().sum(-1)
    some, some_norms = (wide, norms) if block is None else (wide[..., block, :], norms[..., block])
    sums = some_norms[..., :, None] + norms[..., None, :]
    distances = sums - 2 * (some @ wide.mT)
    rounding = 4 * rows.shape[-1] * torch.finfo(wide.dtype).eps
    return distances.masked_fill(distances.abs() <= rounding * sums, 0).to(rows.dtype)


def root(values: Tensor) -> Tensor:
    """√x with slope 0, not ∞, at 0."""
    positive = values > 0
    return values.where(positive, 1).sqrt().where(positive, values.detach())


def log(values: Tensor) -> Tensor:
    """log x with slope 0, not ∞, at and below 0, where it is −∞."""
    zero = values <= 0  # false for NaN
    return values.masked_fill(zero, 1).log().masked_fill(zero, -torch.inf)


def transforming() -> bool:
    """Whether PyTorch traces or transforms what runs now: derivatives by hand would be in its way."""
    level = torch._C._functorch.maybe_current_level()
    return level is not None or torch.compiler.is_compiling() or torch.autograd.forward_ad._current_level >= 0


def differentiated(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Partial slopes of `function(*inputs)` in the inputs that are needed, to be differentiated further; else None."""
    apart = [tensor.view_as(tensor) for tensor in inputs]  # one may be made of another: no slope goes through it
    wanted = [tensor for tensor, need in zip(apart, needed, strict=True) if need]
    slopes = iter(torch.autograd.grad(function(*apart), wanted, grad, create_graph=True))
    return tuple(next(slopes) if need else None for need in needed)


class _SquaredNorms(torch.autograd.Function):
    """‖x‖² of rows with the slope 2x in one pass over memory; those of PyTorch's norms take four."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """(..., d) → (...)."""
        ctx.save_for_backward(rows)
        return torch.linalg.vector_norm(rows, dim=-1).square_()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """2 · x · grad."""
        (rows,) = ctx.saved_tensors
        return (2 * grads[0])[..., None] * rows


def squared_norms(rows: Tensor) -> Tensor:
    """‖x‖² of every row: (..., d) → (...)."""
    return rows.square().sum(-1) if transforming() else _SquaredNorms.apply(rows)


def select_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table by index, for each replica its own: `table[..., index, :]`.

    Args:
        table: (..., K, d).
        index: int64 (..., N), the same leading axes.

    Returns:
        (..., N, d).
    """
    *lead, classes, width = table.shape
    if _by_products(table, classes):
        return _one_hot(index, classes, table.dtype) @ table
    return table.reshape(-1, width).index_select(0, _flat_index(index, classes)).reshape(*lead, -1, width)


def sum_by_class(values: Tensor, index: Tensor, num_classes: int) -> Tensor:
    """Sums of the values that share an index, for each replica its own.

    Args:
        values: (..., N, d).
        index: int64 (..., N), below `num_classes`.
        num_classes: K.

    Returns:
        (..., K, d).
    """
    if _by_products(values, num_classes):
        return _one_hot(index, num_classes, values.dtype).mT @ values
    *lead, _, width = values.shape
    replicas = index[..., 0].numel() if index.dim() > 1 else 1
    sums = values.new_zeros(replicas * num_classes, width)
    sums = sums.index_add(0, _flat_index(index, num_classes), values.reshape(-1, width))
    return sums.reshape(*lead, num_classes, width)


PRODUCTS_UP_TO = 1024
"""Up to so many classes, sums by class are matrix products where adding by index has no fixed order."""


def _by_products(tensor: Tensor, num_classes: int) -> bool:
    """Whether to use products: a GPU adds by index in any order, and the last bits change from run to run."""
    return tensor.device.type != "cpu" and num_classes <= PRODUCTS_UP_TO


def _one_hot(index: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    return (index[..., None] == torch.arange(num_classes, device=index.device)).to(dtype)


def _flat_index(index: Tensor, num_classes: int) -> Tensor:
    """Index into a table whose replica axes and rows were flattened to one axis."""
    if index.dim() == 1:
        return index
    flat = index.reshape(-1, index.shape[-1])
    offset = torch.arange(flat.shape[0], device=index.device) * num_classes
    return (flat + offset[:, None]).reshape(-1)


def finite_or_identity(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Square matrices (..., n, n) with the identity in place of those that are not finite, and which are (...).

    Eigenvalues of a batch fail for all if one matrix holds NaN; so a replica that diverged is taken out first.
    """
    finite = matrix.isfinite().all(-1).all(-1)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return matrix.where(finite[..., None, None], identity), finite


def pseudo_inverse(matrix: Tensor, null: Tensor, rtol: float) -> Tensor:
    """Pseudo-inverse of symmetric positive semi-definite matrices, eigenvalues up to `rtol` times the largest as zero.

    With no such eigenvalues but those known beforehand it is (A + sP)⁻¹ − P/s, on a CPU several times faster to have
    than eigenvalues, which all other matrices take.

    Args:
        matrix: A, (..., n, n), finite.
        null: P, projector onto directions in which every A is zero by construction, (..., n, n).
        rtol: see above.

    Returns:
        (..., n, n).
    """
    if matrix.device.type != "cpu":
        return torch.linalg.pinv(matrix, rtol=rtol, hermitian=True)
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    scale = trace.where(trace > 0, 1) / matrix.shape[-1]
    filled = matrix + scale * null
    inverse = torch.linalg.inv_ex(filled).inverse
    size = torch.linalg.vector_norm(inverse.detach(), dim=(-2, -1), keepdim=True)
    regular = size * trace.detach() * rtol < 1  # no eigenvalue of `filled` is below 1 / size
    if not holds(regular.all()):
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        inverse = torch.linalg.inv_ex(filled.where(regular, identity)).inverse
        others = torch.linalg.pinv(matrix, rtol=rtol, hermitian=True)
        return (inverse - null / scale).where(regular, others)
    return inverse - null / scale


def holds(condition: Tensor) -> bool:
    """Truth of a tensor that has a value; False where values cannot be looked at (tracing, vmap)."""
    if torch.compiler.is_compiling():
        return False
    try:
        return bool(condition)
    except RuntimeError:
        return False


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products in the full precision of their dtype, whatever autocast and the float32 setting say outside.

    Differences of curvature late in training live in the digits that bfloat16 and TF32 products drop.
    """
    if torch.compiler.is_compiling():
        yield
        return
    with ExitStack() as stack:
        _end_autocast(stack)
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:  # somebody has used the settings of single backends, with which this one cannot be asked
            backends: Any = torch.backends
            for backend in (backends.cuda.matmul, backends.mkldnn.matmul):
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        else:
            if before != "highest":
                torch.set_float32_matmul_precision("highest")
                stack.callback(torch.set_float32_matmul_precision, before)
        yield


def _end_autocast(stack: ExitStack) -> None:
    """Compute in the dtype of the numbers until the stack is closed."""
    for device in ("cpu", "cuda", "mps"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))


@contextmanager
def fresh_settings() -> Iterator[None]:
    """Autocast, default dtype and device as in a new process; what they, and the generator, were before is put back.

    So that a run follows from its specification, whatever the session that it is started from has set.
    """
    with ExitStack() as stack:
        _end_autocast(stack)
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":  # the mode that this enters slows every call down
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        yield


WITHOUT_FLOAT64 = {"mps"}
"""Devices whose widest type is float32: Apple's GPUs."""


def has_float64(device: torch.device) -> bool:
    """Whether a device can hold float64."""
    return device.type not in WITHOUT_FLOAT64


def in_float64(tensor: Tensor) -> Tensor:
    """In float64; on the CPU if the tensor's own device has no such type."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()


def widest(tensor: Tensor) -> Tensor:
    """In the widest type of the tensor's device."""
    return tensor.double() if has_float64(tensor.device) else tensor.float()


def widen(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True)
class Estimate:
    """A number with what its uncertainty is.

    Attributes:
        value: the estimate.
        stderr: its standard error; 0 if it is exact, NaN if there was one probe only.
        probes: how many products with the Hessian it took.
        exact: whether it is exact up to rounding.
    """

    value: float
    stderr: float
    probes: int
    exact: bool = False

    @classmethod
    def of(cls, samples: Tensor) -> "Estimate":
        """Mean and standard error of independent unbiased samples (n,)."""
        count = samples.numel()
        spread = float(samples.double().std()) / count**0.5 if count > 1 else float("nan")
        return cls(float(samples.double().mean()), spread, count)

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.6g}" if self.exact else f"{self.value:.6g} ± {self.stderr:.2g}"


def rademacher(*shape: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Independent signs ±1 of a shape, drawn on the generator's device, with dtype and device of `like`."""
    signs = torch.randint(0, 2, shape, generator=generator, device=generator.device)
    return (2 * signs - 1).to(device=like.device, dtype=like.dtype)
