"""Optimisers over a flat (R, P) parameter matrix: R replicas, P parameters each, learning rate and decay per replica.

Everything is elementwise along P or reduces within a row, so replicas never touch each other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from grokscape.interventions import Intervention, NonNegative, Positive, Step, Unplug
from grokscape.settings import Settings

Unit = Annotated[float, Field(ge=0, lt=1)]

_LONG = 2**15
"""From so many parameters on, one kernel for each replica costs less than the passes that one for all would need."""


class _Optimizer(Settings):
    lr: Positive
    weight_decay: NonNegative = 0.0
    warmup: Step = 0
    schedule: Literal["constant", "cosine"] = "constant"
    sam_radius: NonNegative = 0.0
    orthogonal_gradient: bool = False


class AdamW(_Optimizer):
    """AdamW with decoupled weight decay (Loshchilov & Hutter 2019): θ ← θ − lr·wd·θ − lr·m̂/(√v̂ + eps).

    Attributes:
        lr: learning rate.
        weight_decay: wd above, per unit of learning rate.
        warmup: steps over which the learning rate rises linearly to `lr`.
        schedule: "constant", or "cosine" to zero at the last step.
        sam_radius: radius of sharpness-aware minimisation (Foret et al. 2021); 0 is off.
        orthogonal_gradient: remove from each parameter's gradient its component along the parameter and keep its
            length (⊥Grad, Prieto et al. 2025), which removes the delay of grokking.
        betas, eps: of Adam.
    """

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NonNegative = 1.0
    betas: tuple[Unit, Unit] = (0.9, 0.98)
    eps: Positive = 1e-8

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state's matrices."""
        return ("exp_avg", "exp_avg_sq")

    def update_(self, flat: Tensor, grad: Tensor, slots: Mapping[str, Tensor], lr: Tensor, wd: Tensor, t: int) -> None:
        """One step in place; `lr` and `wd` are (R, 1), `t` counts from 1."""
        mean, square = slots["exp_avg"], slots["exp_avg_sq"]
        if flat.device.type == "cpu" and flat.shape[1] >= _LONG:
            for i, (rate, decay) in enumerate(torch.cat([lr, wd], 1).tolist()):
                self._fused_(flat[i], grad[i], mean[i], square[i], t, rate, decay)
            return
        direction = torch.zeros_like(flat)  # the kernel knows one rate for all replicas: take its direction alone
        self._fused_(direction, grad, mean, square, t, 1.0, 0.0)
        flat.mul_(1 - lr * wd).addcmul_(direction, lr)

    def _fused_(self, into: Tensor, grad: Tensor, mean: Tensor, square: Tensor, t: int, lr: float, wd: float) -> None:
        """The kernel of torch.optim, in place."""
        torch._fused_adamw_(
            [into], [grad], [mean], [square], [], [torch.full((), float(t), device=into.device)],
            lr=lr, beta1=self.betas[0], beta2=self.betas[1], weight_decay=wd, eps=self.eps,
            amsgrad=False, maximize=False,
        )


class SGD(_Optimizer):
    """Stochastic gradient descent as in PyTorch: g ← g + wd·θ; v ← μv + g; θ ← θ − lr·v (Nesterov: lr·(g + μv)).

    Attributes:
        lr, weight_decay, warmup, schedule, sam_radius, orthogonal_gradient: as in `AdamW`; the decay is coupled (L2).
        momentum: μ.
        nesterov: look-ahead form; needs momentum.
    """

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.01
    momentum: Unit = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _looks_ahead_along_something(self) -> "SGD":
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs a momentum above 0, got momentum=0; without momentum leave it out")
        return self

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state's matrices."""
        return ("momentum",) if self.momentum else ()

    def update_(self, flat: Tensor, grad: Tensor, slots: Mapping[str, Tensor], lr: Tensor, wd: Tensor, t: int) -> None:
        """One step in place; `lr` and `wd` are (R, 1), `t` counts from 1."""
        grad = torch.addcmul(grad, flat, wd)
        if self.momentum:
            velocity = slots["momentum"].mul_(self.momentum).add_(grad)  # starts at zero, so the first step is g
            grad = grad.add(velocity, alpha=self.momentum) if self.nesterov else velocity
        flat.addcmul_(grad, lr, value=-1)


Optimizer = Annotated[AdamW | SGD, Field(discriminator="kind")]


class Layout:
    """Where each named parameter lies in a flat row of P numbers."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """One replica's parameters as a row (P,)."""
        return torch.cat([parameters[name].reshape(-1) for name in self.shapes])

    def view(self, flat: Tensor) -> dict[str, Tensor]:
        """Views into (R, P) as named tensors (R, *shape)."""
        pieces = flat.split(self.sizes, dim=1)
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.view(flat.shape[0], *shape) for (name, shape), piece in named}

    def one(self, flat: Tensor, name: str) -> Tensor:
        """A view into (R, P) as one of the named tensors."""
        index = list(self.shapes).index(name)
        return flat.narrow(1, sum(self.sizes[:index]), self.sizes[index]).view(flat.shape[0], *self.shapes[name])


def orthogonal_gradient(flat: Tensor, grad: Tensor, layout: Layout) -> Tensor:
    """Each parameter's gradient without its component along the parameter, at its former length; (R, P).

    Zero where nothing but rounding is left (less than half of the digits), as of a parameter of one number, or of the
    bias of a head with two classes, whose gradient lies along it.
    """
    pieces = []
    for weight, gradient in zip(flat.split(layout.sizes, 1), grad.split(layout.sizes, 1), strict=True):
        square = (weight * weight).sum(1, keepdim=True)
        along = (weight * gradient).sum(1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
        rest = gradient - along * weight
        size = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        length = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        pieces.append(rest * torch.where(size > torch.finfo(size.dtype).eps ** 0.5 * length, length / size, 0))
    return torch.cat(pieces, 1)


def sam_gradient(flat: Tensor, grad: Tensor, radius: Tensor, gradient_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Gradient at θ + radius·g/‖g‖ (norm over all parameters of a replica); `radius` is (R, 1), zero is off."""
    length = torch.linalg.vector_norm(grad, dim=1, keepdim=True)
    ascent = radius * grad / torch.where(length > 0, length, torch.ones_like(length))
    return torch.where(radius > 0, gradient_at(flat + ascent), grad)


def bound_to_length(optimizer: AdamW | SGD, interventions: Sequence[Intervention]) -> bool:
    """Whether the learning rate at a step depends on how many steps there are in all."""
    return optimizer.schedule == "cosine" or any(isinstance(one, Unplug) and one.cosine for one in interventions)


def falling(step: int, steps: int) -> float:
    """Half a cosine, from 1 at step 0 to 0 at the last."""
    return 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


def _scheduled(optimizer: AdamW | SGD, step: int, steps: int) -> float:
    """An optimiser's own learning rate at a step."""
    share = falling(step, steps) if optimizer.schedule == "cosine" else 1.0
    return optimizer.lr * min((step + 1) / max(optimizer.warmup, 1), 1.0) * share


class Rates:
    """Learning rate and decay of every replica at every step, with warm-up, cosine and unplugging."""

    def __init__(
        self, optimizers: Sequence[AdamW | SGD], unplugs: Sequence[Unplug | None], steps: int, like: Tensor
    ) -> None:
        def column(values: Sequence[float]) -> Tensor:
            """One number a replica, (R, 1)."""
            return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]

        both = list(zip(optimizers, unplugs, strict=True))
        self.steps = steps
        self._lr = column([o.lr for o in optimizers])
        self._wd = column([o.weight_decay for o in optimizers])
        self._warmup = column([float(max(o.warmup, 1)) for o in optimizers])
        self._cosine = column([float(o.schedule == "cosine") for o in optimizers]) > 0
        moments = [2**62 if u is None else u.step for u in unplugs]  # whole: float32 has no odd steps from 2^24 on
        self._unplug = torch.tensor(moments, device=like.device)[:, None]
        self._kept = column([float(u is None or (u.lr is None and not u.cosine)) for u in unplugs]) > 0
        self._lr_after = column(
            [o.lr if u is None else _scheduled(o, u.step, steps) if u.lr is None else u.lr for o, u in both]
        )
        self._wd_after = column(
            [o.weight_decay if u is None or u.weight_decay is None else u.weight_decay for o, u in both]
        )
        self._cosine_after = column([float(u is not None and u.cosine) for u in unplugs]) > 0
        steady = not any(unplugs) and all(o.schedule == "constant" for o in optimizers)
        self._constant_from = max(o.warmup for o in optimizers) if steady else math.inf

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Learning rate and weight decay at a step (counted from 0), each (R, 1)."""
        if step >= self._constant_from:
            return self._lr, self._wd
        before = self._lr * ((step + 1) / self._warmup).clamp(max=1)
        before = torch.where(self._cosine, before * falling(step, self.steps), before)
        passed, whole = step - self._unplug, (self.steps - self._unplug).clamp(min=1)
        share = (passed.to(self._lr) / whole.to(self._lr)).clamp(0, 1)
        after = torch.where(self._cosine_after, self._lr_after * 0.5 * (1 + (math.pi * share).cos()), self._lr_after)
        after = torch.where(self._kept, before, after)
        unplugged = step >= self._unplug
        return torch.where(unplugged, after, before), torch.where(unplugged, self._wd_after, self._wd)
