"""Features of any `nn.Module`, for stacked parameters: batched where `torch.func` can, one by one where it cannot."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from grokscape.models.network import Network
from grokscape.perturbations import UNPERTURBED, Perturbations, can_be_perturbed, perturbed_module, signs_of
from grokscape.testbeds.types import InputSpec

_Named = dict[str, Tensor]


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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._module = make().train()
            self._probe = probe = _probe(input_spec)
        _check_parameters(self._module)
        self._head = _find_head(self._module, head, num_classes)
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
        _refuse_dropout(self._module)
        self._check_chance(probe)
        self._check_answer(probe)
        self.batched, self.reason = (False, one_by_one) if one_by_one else self._try_batching(probe)
        self.buffers = {}

    def init(self, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """See `Network.init`; the module draws as it always does, from a generator seeded by `generator`."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._make()
        return {name: parameter.detach().to(dtype) for name, parameter in module.named_parameters()}

    def single(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> nn.Module:
        """See `Network.single`: the module itself, made anew."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # as the one that was trained: what is drawn need not be a buffer
            module = self._make()
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
        if _differ(whole[:2], half):
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
        self, parameters: _Named, buffers: _Named, inputs: Tensor, perturbations: Perturbations = UNPERTURBED
    ) -> Tensor:
        """What enters the head of one replica, (N, d)."""
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
            with sdpa_kernel(SDPBackend.MATH):  # fused attention can neither be batched nor differentiated twice
                functional_call(self._module, (parameters, buffers), (inputs,))
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise ValueError("expected the module's forward pass to call its head, but it never did")
        return seen[-1]

    def _as_made(self, inputs: Tensor) -> Tensor:
        """Features of the module as it was made, (N, d), without a trace in its buffers."""
        buffers = {name: buffer.clone() for name, buffer in self._module.named_buffers()}
        return self._one(dict(self._module.named_parameters()), buffers, inputs)

    def _all_at_once(
        self, parameters: _Named, buffers: _Named, inputs: Tensor, perturbations: Perturbations
    ) -> Tensor:
        def one(parameters: _Named, buffers: _Named, inputs: Tensor, sizes: _Named) -> Tensor:
            """One replica, with its own sizes."""
            own = {name: replace(perturbations[name], size=size) for name, size in sizes.items()}
            return self._one(parameters, buffers, inputs, own)

        return vmap(one)(parameters, buffers, inputs, {name: each.size for name, each in perturbations.items()})

    def _one_by_one(self, parameters: _Named, buffers: _Named, inputs: Tensor, perturbations: Perturbations) -> Tensor:
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

    def _check_answer(self, probe: Tensor) -> None:
        """Refuse a module whose answer is not what its head says about (N, d) features."""
        with self.working_on(training=False), torch.no_grad():
            answer = self._module(probe[0])
            features, some = self._as_made(probe[0]), self._as_made(probe[0, :2])
        if features.shape != (probe.shape[1], self.features_dim):
            raise ValueError(
                f"expected what enters the head to be (N, d) = {(probe.shape[1], self.features_dim)}, "
                f"got {tuple(features.shape)}; pool or pick a position before the head"
            )
        expected = nn.functional.linear(features, self._head.weight, self._head.bias)
        if not isinstance(answer, Tensor) or answer.shape != expected.shape or not torch.allclose(answer, expected):
            raise ValueError(
                "expected the module to return what its head returns (logits), got something else; "
                "return the head's output as it is, without a softmax"
            )
        if _differ(features[:2], some):
            raise ValueError(
                "expected features of a sample in eval mode to depend on that sample alone, got others in a smaller "
                "batch: what a run measures would depend on how it divides its samples; use another norm (GroupNorm, "
                "LayerNorm), or give BatchNorm its running statistics (track_running_stats=True)"
            )

    def _check_chance(self, probe: Tensor) -> None:
        """Refuse a module that gives other features for the same inputs when it trains on them once more."""
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first, second = (self._as_made(probe[0]) for _ in range(2))
        if not torch.equal(first, second):
            raise ValueError(
                "the module draws random numbers while it trains (dropout by function, noise, dropped layers); runs "
                "must follow from their seeds alone: take it out"
            )

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
                        gradient = torch.autograd.grad(features.square().sum(), places, allow_unused=True)
            except Exception as error:  # whatever torch.func cannot do with this module
                if run == self._one_by_one:
                    raise
                return False, f"one replica after another: torch.func cannot batch it ({_first_sentence(error)})"
            results.append([features, *gradient, *buffers.values()])
        for alone, together in zip(*results):
            if alone is not None and not torch.allclose(alone, together, rtol=1e-3, atol=1e-4):
                return False, "one replica after another: batched by torch.func, it gives other numbers"
        return True, "batched over replicas by torch.func"


def _probe(input_spec: InputSpec) -> Tensor:
    """Random inputs of two replicas, four samples each."""
    if input_spec.kind == "tokens":
        return torch.randint(input_spec.vocabulary, (2, 4, *input_spec.shape))
    return torch.randn(2, 4, *input_spec.shape)


def _differ(one: Tensor, other: Tensor) -> bool:
    """By more than rounding."""
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def _find_head(module: nn.Module, name: str, num_classes: int) -> nn.Linear:
    """The linear layer of that name with K outputs."""
    modules = dict(module.named_modules())
    linear = {key: one for key, one in modules.items() if isinstance(one, nn.Linear)}
    if name not in linear:
        found = f"a {type(modules[name]).__name__}" if name in modules else "nothing"
        raise ValueError(
            f"expected a linear layer called {name!r}, got {found}; "
            f"the module's linear layers are {', '.join(linear) or 'none'}"
        )
    if "weight" not in dict(linear[name].named_parameters(recurse=False)):
        raise ValueError(
            f"the head {name!r} makes its weight of other parameters (weight norm or the like), and measures and "
            f"interventions work on the weight itself; use a plain linear layer"
        )
    if linear[name].out_features != num_classes:
        raise ValueError(
            f"the head {name!r} has {linear[name].out_features} outputs, but the task has {num_classes} classes; "
            f"give the factory the right number through `arguments`"
        )
    return linear[name]


def _check_parameters(module: nn.Module) -> None:
    """Refuse parameters that a run would not treat as the module does."""
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet; give the sizes of lazy layers in the factory")
        if not parameter.requires_grad:
            raise ValueError(
                f"parameter {name!r} is frozen, and a run trains every parameter; make it a buffer "
                f"(register_buffer), which is the same for all replicas"
            )


def _refuse_dropout(module: nn.Module) -> None:
    """Dropped units would make a run depend on more than its seeds."""
    for name, one in module.named_modules():
        if isinstance(one, nn.modules.dropout._DropoutNd) and one.p > 0:
            raise ValueError(f"{name!r} drops units with p={one.p}; runs must follow from their seeds alone: set p=0")


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0][:200]
