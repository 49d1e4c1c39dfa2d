"""A pretended accelerator: tensors that say they are elsewhere, compute on the CPU, and refuse to meet CPU tensors.

It finds, on any machine, a tensor that was forgotten on the CPU, a place where the host waits for the device
(`waits`), and, with `narrow`, a float64 where a device has none. Speed and kernels need the real thing.
"""

import contextlib
import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from grokscape import numerics

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)
THERE = torch.device(NAME, 0)
_FACTORIES = {torch.tensor, torch.as_tensor, torch.arange, torch.empty, torch.zeros, torch.ones, torch.full, torch.eye}
_WAITING = ("aten._local_scalar_dense.", "aten.nonzero.", "aten.masked_select.", "aten.equal.", "aten.bincount.")
_CHOOSES_ITS_DEVICE = ("aten._to_copy.", "aten.scalar_tensor.")
_INDEXING = ("aten.index.", "aten.index_put_.", "aten._index_put_impl_.")  # these take an index from anywhere

waits: list[str] = []
"""Where the host waited for the device, or copied to or from it."""
_narrow = False


class Pretended(torch.Tensor):
    """A tensor elsewhere; `inner` is what it really is."""

    @staticmethod
    def __new__(cls, inner):
        if _narrow and inner.dtype == torch.float64:
            raise TypeError(f"float64 on a device that has none, at {_place()}")
        there = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=THERE,
        )
        there.inner = inner
        return there

    def __repr__(self):
        return f"Pretended({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _dispatched(function, args, kwargs or {})


def _place() -> str:
    """The innermost line of the library that is running."""
    frame = sys._getframe()
    while frame is not None and "grokscape" not in frame.f_globals.get("__name__", ""):
        frame = frame.f_back
    return "the test" if frame is None else f"{frame.f_globals['__name__']}:{frame.f_lineno}"


def _dispatched(function, args, kwargs):
    name, met, inners = str(function), set(), {}

    def bare(tensor):
        """The real tensor; notes where it was."""
        there = isinstance(tensor, Pretended)
        if there or tensor.dim():
            met.add(there)
        if there:
            inners[id(tensor.inner)] = tensor
        return tensor.inner if there else tensor

    bare_args, bare_kwargs = (tree_map_only(torch.Tensor, bare, part) for part in (args, kwargs))
    there = True in met
    if name.startswith("aten.copy_."):
        there = isinstance(args[0], Pretended)
        if isinstance(args[1], Pretended) != there and args[1].dim():
            waits.append(f"{name} {_place()}")
    elif kwargs.get("device") is not None:
        moved = torch.device(kwargs["device"]).type == NAME
        if name.startswith(_CHOOSES_ITS_DEVICE[0]) and moved != there:
            waits.append(f"{name} {_place()}")
        there, bare_kwargs = moved, {**bare_kwargs, "device": torch.device("cpu")}
    elif met == {True, False} and not (name.startswith(_INDEXING) and isinstance(args[0], Pretended)):
        raise RuntimeError(f"{name}: a tensor on the accelerator met one on the CPU, at {_place()}")
    if there and (name.startswith(_WAITING) or (name.startswith(_INDEXING) and _by_mask(args[1]))):
        waits.append(f"{name} {_place()}")

    def back(tensor):
        """The result where it belongs; what was changed in place stays the tensor it was."""
        return inners.get(id(tensor)) if id(tensor) in inners else Pretended(tensor) if there else tensor

    return tree_map_only(torch.Tensor, back, function(*bare_args, **bare_kwargs))


def _by_mask(indices) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


class _Everything(TorchDispatchMode):
    """Sees operations that no pretended tensor enters, such as factories."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _dispatched(function, args, kwargs or {})


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, dtype):
        ctx.dtype = tensor.dtype
        return Pretended(tensor.detach().to(dtype or tensor.dtype, copy=True))

    @staticmethod
    def backward(ctx, grad):
        return grad.inner.to(ctx.dtype), None


class _Devices(TorchFunctionMode):
    """Python's front door: PyTorch would look for a driver before anything is dispatched."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if function in _FACTORIES and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == NAME:
            if function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Pretended):
                waits.append(f"{name} {_place()}")
            if isinstance(args[0], Pretended):
                return args[0].to(kwargs.get("dtype") or args[0].dtype)
            return Pretended(function(*args, **{**kwargs, "device": "cpu"}))
        if name == "new_tensor" and isinstance(args[0], Pretended):
            waits.append(f"{name} {_place()}")
            return Pretended(torch.tensor(*args[1:], dtype=args[0].dtype, **kwargs))
        if name == "tolist" and isinstance(args[0], Pretended):
            waits.append(f"tolist {_place()}")
            return args[0].inner.tolist()
        if name == "to" and not isinstance(args[0], Pretended):
            like = [other for other in args[1:] if isinstance(other, torch.Tensor)]
            wanted = [*args[1:], *kwargs.values(), *(other.device for other in like)]
            dtypes = [one for one in [*wanted, *(other.dtype for other in like)] if isinstance(one, torch.dtype)]
            if any(isinstance(one, str | torch.device) and torch.device(one).type == NAME for one in wanted):
                waits.append(f"to {_place()}")
                return _Moved.apply(args[0], dtypes[0] if dtypes else None)
        return function(*args, **kwargs)


@contextlib.contextmanager
def accelerator(narrow=False):
    """Inside, device="pretended" works. `narrow`: it has no float64."""
    global _narrow
    _narrow = narrow
    numerics.WITHOUT_FLOAT64 |= {NAME} if narrow else set()
    try:
        with _Everything(), _Devices(), torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _narrow = False
        numerics.WITHOUT_FLOAT64.discard(NAME)
