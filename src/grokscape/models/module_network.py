"""Features of any `nn.Module`, for stacked parameters: batched where `torch.func` can, one by one where it cannot."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from grokscape.models.module_checks import (
    Named,
    check_first_pass,
    check_parameters,
    check_repeatable,
    check_slopes,
    check_twin,
    check_writes,
    find_head,
    first_sentence,
    made,
    random_inputs,
    refuse_dropout,
    same,
    unlike_any_norm,
)
from grokscape.models.network import Network
from grokscape.perturbations import UNPERTURBED, Perturbations, can_be_perturbed, perturbed_module, signs_of
from grokscape.testbeds.types import InputSpec


@contextlib.contextmanager
def _written_out() -> Iterator[None]:
    """Inside, attention and encoders are not fused: what is can neither be batched nor differentiated twice."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class ModuleNetwork(Network):
    """A module's function up to its head; parameters keep the module's own names.

    Buffers (running statistics and the like) are not parameters: `prepare` makes them, one row per replica, they start
    as the module's own, and change in place as the module changes them while training. Inside
    `working_on(training=False)` the module is in eval mode. Attention runs written out, so that it can be batched and
    differentiated twice.

    Args:
        make: makes a freshly initialised module from PyTorch's global generator.
        head: name of the linear layer at the end.
        input_spec: of the task.
        num_classes: K.
        one_by_one: why replicas shall run one after another; None to try whether they can be batched.

    Attributes:
        buffers: name → (R, *shape), see `prepare`.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        head: str,
        input_spec: InputSpec,
        num_classes: int,
        one_by_one: str | None = None,
    ) -> None:
        self._make = make
        self._module, twin = (made(make, 0).train() for _ in range(2))
        self._probe = probe = random_inputs(input_spec)
        check_parameters(self._module)
        check_twin(self._module, twin)
        self._head = find_head(self._module, head, num_classes)
        self.head_layer = head
        names: dict[Tensor, str] = {parameter: name for name, parameter in self._module.named_parameters()}
        bias = None if self._head.bias is None else names[self._head.bias]
        self.head = (names[self._head.weight], bias)
        self.shapes = {name: parameter.shape for name, parameter in self._module.named_parameters()}
        self.features_dim = self._head.in_features
        self.layers = {
            name: signs_of(layer)
            for name, layer in self._module.named_modules()
            if layer is not self._head and f"{name}.weight" in self.shapes and can_be_perturbed(layer)
        }
        self.buffers: dict[str, Tensor] = {}
        self._rows = slice(None)
        refuse_dropout(self._module)
        for one in (self._module, twin):
            with _written_out():
                check_first_pass(one, probe[0])
        check_repeatable(self._module, lambda training: self._as_made(probe[0], training))
        buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
        check_writes(dict(self._module.named_parameters()), lambda large: self._one(large, buffers, probe[0]))
        for training in (False, True):
            self._check_answer(probe[0], training)
        self._check_slopes(probe[0], twin.train(), twin.get_submodule(head))
        self.batched, self.reason = (False, one_by_one) if one_by_one else self._try_batching(probe)
        self.buffers = {}

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """See `Network.init`; the module draws as it always does, from a generator seeded by `generator`."""
        return self.initial(generator, dtype)[0]

    def initial(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Named, Named]:
        """See `Network.initial`."""
        module = made(self._make, int(torch.randint(2**62, (), generator=generator)))
        parameters = {name: parameter.detach().to(dtype) for name, parameter in module.named_parameters()}
        return parameters, {name: buffer.detach() for name, buffer in module.named_buffers()}

    def single(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> nn.Module:
        """See `Network.single`: the module itself, made anew."""
        module = made(self._make, 0)  # as the one that was trained: what is drawn need not be a buffer
        with torch.no_grad():
            for name, value in (*module.named_parameters(), *module.named_buffers()):
                value.data = {**parameters, **buffers}[name].clone()
        return module

    def prepare(self, replicas: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """See `Network.prepare`; called for by the first forward pass if nobody did before."""
        self.buffers = {
            name: value.detach()
            .to(device, dtype if value.is_floating_point() else None)
            .expand(replicas, *value.shape)
            .clone()
            for name, value in self._module.named_buffers()
        }
        return self.buffers

    @contextlib.contextmanager
    def working_on(self, rows: slice = slice(None), *, training: bool = True) -> Iterator[None]:
        """See `Network.working_on`."""
        self._module.train(training)
        self._rows = rows
        try:
            yield
        finally:
            self._module.train()
            self._rows = slice(None)

    def features(
        self, parameters: dict[str, Tensor], inputs: Tensor, perturbations: Perturbations = UNPERTURBED
    ) -> Tensor:
        """See `Network.features`."""
        weight = parameters[self.head[0]]
        inputs = inputs.to(weight.dtype) if inputs.is_floating_point() else inputs
        buffers = self._buffers_for(weight)
        return (self._all_at_once if self.batched else self._one_by_one)(parameters, buffers, inputs, perturbations)

    def check_layer(self, name: str) -> None:
        """See `Network.check_layer`; where samples see each other, none can be perturbed."""
        super().check_layer(name)
        seen: list[int] = []

        def cut(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            """Note the call, and let no gradient through."""
            seen.append(len(inputs[0]) if inputs else 0)
            return output.detach()

        whole, half = self._as_made(self._probe[0]), self._as_made(self._probe[0, :2])
        if not same([whole[:2]], [half]):
            raise ValueError(
                f"κ of layer {name!r} cannot be taken in a run: every sample needs a perturbation of its own, but in "
                f"this network samples of a batch see each other while it trains (BatchNorm?); use another norm"
            )
        handle = self._module.get_submodule(name).register_forward_hook(cut)
        try:
            rest = self._as_made(self._probe[0])
        finally:
            handle.remove()
        weight = self._module.get_parameter(f"{name}.weight")
        used = rest.requires_grad and torch.autograd.grad(rest.square().sum(), weight, allow_unused=True)[0] is not None
        if seen != [self._probe.shape[1]] or used:
            raise ValueError(
                f"κ of layer {name!r} cannot be taken in a run: it must be called once, on one row of inputs for each "
                f"sample, and its weight used nowhere else; choose another of {', '.join(self.layers)}"
            )

    def _buffers_for(self, like: Tensor) -> dict[str, Tensor]:
        """The buffers of the replicas whose parameters `like` is one of."""
        if not self.buffers:
            self.prepare(len(like), like.device, like.dtype)
        chosen = {name: value[self._rows] for name, value in self.buffers.items()}
        if any(len(value) != len(like) or value.device != like.device for value in chosen.values()):
            raise ValueError(
                f"the network holds buffers of {len(next(iter(chosen.values())))} replicas, got parameters of "
                f"{len(like)} on {like.device}; call `prepare` anew, or `working_on(rows)` for some of them"
            )
        return chosen

    def _one(
        self, parameters: Named, buffers: Named, inputs: Tensor, perturbations: Perturbations = UNPERTURBED
    ) -> Tensor:
        """What enters the head of one replica, (N, d)."""
        return self._called(parameters, buffers, inputs, perturbations)[0]

    def _called(
        self, parameters: Named, buffers: Named, inputs: Tensor, perturbations: Perturbations
    ) -> tuple[Tensor, Any]:
        """What enters the head of one replica, (N, d), and what the module returns."""
        seen: list[Tensor] = []

        def keep_buffers(*_: object) -> None:
            """A module may put a new tensor in a buffer's place instead of writing into it."""
            for name, buffer in self._module.named_buffers():
                if buffer is not buffers[name]:
                    buffers[name].copy_(buffer.detach())

        handles = [
            self._head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])),
            self._module.register_forward_hook(keep_buffers),
        ]
        for name, perturbation in perturbations.items():
            layer = self._module.get_submodule(name)
            handles.append(layer.register_forward_hook(partial(perturbed_module, perturbation)))
        try:
            with _written_out():  # a module may write into its inputs: they are its own
                answer = functional_call(self._module, (parameters, buffers), (inputs.clone(),))
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise ValueError(
                f"expected the module's forward pass to call its head {self.head_layer!r}, but it never did; call the "
                f"layer itself, self.{self.head_layer}(features), not a function with its weight"
            )
        return seen[-1], answer

    def _as_made(self, inputs: Tensor, training: bool = True) -> Tensor:
        """Features of the module as it was made, (N, d), without a trace in its buffers."""
        return self._call_as_made(inputs, training)[0]

    def _call_as_made(self, inputs: Tensor, training: bool) -> tuple[Tensor, Any]:
        """The same, and what the module returns."""
        buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
        with self.working_on(training=training):
            return self._called(dict(self._module.named_parameters()), buffers, inputs, UNPERTURBED)

    def _all_at_once(
        self, parameters: Named, buffers: Named, inputs: Tensor, perturbations: Perturbations
    ) -> Tensor:
        def one(parameters: Named, buffers: Named, inputs: Tensor, sizes: Named) -> Tensor:
            """One replica, with its own sizes."""
            own = {name: replace(perturbations[name], size=size) for name, size in sizes.items()}
            return self._one(parameters, buffers, inputs, own)

        return vmap(one)(parameters, buffers, inputs, {name: each.size for name, each in perturbations.items()})

    def _one_by_one(self, parameters: Named, buffers: Named, inputs: Tensor, perturbations: Perturbations) -> Tensor:
        rows = (
            self._one(
                {name: value[r] for name, value in parameters.items()},
                {name: value[r] for name, value in buffers.items()},
                inputs[r],
                {name: replace(each, size=each.size[r]) for name, each in perturbations.items()},
            )
            for r in range(len(inputs))
        )
        return torch.stack(list(rows))

    def _check_answer(self, probe: Tensor, training: bool) -> None:
        """Refuse a module whose answer is not what its head says about (N, d) features, or is more than that."""
        cut = self._head.register_forward_pre_hook(lambda _, arguments: (arguments[0].detach(), *arguments[1:]))
        try:
            with torch.enable_grad():
                features, answer = self._call_as_made(probe, training)
        finally:
            cut.remove()
        if features.shape != (len(probe), self.features_dim):
            raise ValueError(
                f"expected what enters the head to be (N, d) = {(len(probe), self.features_dim)}, "
                f"got {tuple(features.shape)}; pool or pick a position before the head"
            )
        expected = nn.functional.linear(features, self._head.weight, self._head.bias)
        if not isinstance(answer, Tensor) or answer.shape != expected.shape or not torch.allclose(answer, expected):
            raise ValueError(
                f"expected the module to return what its head returns (logits){' while it trains too' * training}, got "
                f"something else; return the head's output as it is, without a softmax"
            )
        others = {name: value for name, value in self._module.named_parameters() if name not in self.head}
        slopes = torch.autograd.grad(answer.sum(), list(others.values()), allow_unused=True) if others else ()
        for name, slope in zip(others, slopes, strict=True):
            if slope is not None:
                raise ValueError(
                    f"expected the module to return what its head returns, but parameter {name!r} goes into its answer "
                    f"behind the head or past it (a scale, a skip connection); let it act on what enters the head"
                )
        if not training and not same([features[:2]], [self._as_made(probe[:2], training)]):
            raise ValueError(
                "expected features of a sample in eval mode to depend on that sample alone, got others in a smaller "
                "batch: what a run measures would depend on how it divides its samples; use another norm (GroupNorm, "
                "LayerNorm), or give BatchNorm its running statistics (track_running_stats=True)"
            )

    def _check_slopes(self, probe: Tensor, twin: nn.Module, head: nn.Module) -> None:
        """Refuse a module that is not a function of its parameters, by its twin with others and the twin's head."""
        seen: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
        with torch.enable_grad(), _written_out():
            for parameter in twin.parameters():
                parameter.data.mul_(0.9)
            twin(probe.clone())
            handle.remove()
            if seen[-1].requires_grad:
                unlike_any_norm(seen[-1]).backward()
            parameters = {name: value.detach().clone().requires_grad_() for name, value in twin.named_parameters()}
            buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
            features, slopes = self._one(parameters, buffers, probe), [None] * len(parameters)
            if features.requires_grad:
                slopes = torch.autograd.grad(unlike_any_norm(features), list(parameters.values()), allow_unused=True)
        own = [parameter.grad for parameter in twin.parameters()]
        check_slopes((seen[-1].detach(), own), (features.detach(), list(slopes)))

    def _try_batching(self, probe: Tensor) -> tuple[bool, str]:
        """Whether two replicas at once, forward and backward, give what each gives alone; and if not, why."""
        parameters = {
            name: torch.stack([value.detach(), value.detach() * 0.9]).requires_grad_()
            for name, value in self._module.named_parameters()
        }
        results = []
        for run in (self._one_by_one, self._all_at_once):
            buffers = self.prepare(2, torch.device("cpu"), probe.dtype if probe.is_floating_point() else torch.float32)
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message=".*performance drop")
                    features = run(parameters, buffers, probe, UNPERTURBED)
                    gradient: tuple[Tensor | None, ...] = ()
                    if features.requires_grad:  # else nothing but the head is trained
                        places = list(parameters.values())
                        gradient = torch.autograd.grad(unlike_any_norm(features), places, allow_unused=True)
                    with self.working_on(training=False), torch.no_grad():
                        measured = run(parameters, buffers, probe, UNPERTURBED)
            except Exception as error:  # whatever torch.func cannot do with this module
                if run == self._one_by_one:
                    raise
                return False, f"one replica after another: torch.func cannot batch it ({first_sentence(error)})"
            results.append([[features], [measured], gradient, *([buffer] for buffer in buffers.values())])
        if not all(same(alone, together) for alone, together in zip(*results, strict=True)):
            return False, "one replica after another: batched by torch.func, it gives other numbers"
        return True, "batched over replicas by torch.func"
