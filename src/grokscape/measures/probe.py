"""A look at the head during the forward passes of somebody's own training loop.

Shapes: B samples or sequences, T positions, M samples that carry a loss, d features, K classes.
"""

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from grokscape.measures.batches import logits_of, tensors_of
from grokscape.measures.checks import check_floating, check_labels
from grokscape.measures.hidden import HiddenLayers
from grokscape.measures.locate import (
    Hook,
    LinearHead,
    has_own_forward,
    is_compiled,
    is_linear,
    linear_layers,
    locate_head,
    unwrapped,
    without_probes,
)
from grokscape.measures.model_loss import align, check_outputs
from grokscape.measures.snapshot import Snapshot
from grokscape.numerics import full_precision, widen

Transform = Callable[[Tensor], Tensor]

_COMPILED_BEFORE = (
    " (what torch.compile made before of a function that calls the model goes on as it was: have it compiled in one "
    "`with` block around the whole loop, or call torch.compiler.reset() in it)"
)

_LOOKED_AT = 256
"""So many samples tell whether a head is linear."""


class Probe:
    """Features and logits of the last forward pass of a model, with the graph attached.

        with gs.Probe(model, head="fc") as probe:
            loss = F.cross_entropy(model(x), y) + gs.Clamp("cdnv", at_least=1.2)(probe.snapshot(y), step=step)
            loss.backward()

    It draws no random numbers from PyTorch's generator and touches no weight; at the end of the `with` block the model
    is as it was before. Under mixed precision a snapshot is in float32. A frozen backbone leaves features without a
    graph, and penalties act on the head alone. Models of `torch.compile` are compiled once more for it.

    Args:
        model: any module that ends in a linear layer; wrappers such as `DistributedDataParallel` are seen through.
        head: that layer or its name (or a container that ends in it); None to look for it. Of several heads of a model,
            whose answers it returns in a tuple or a mapping, name one.
        transform: applied to the features before they enter the head, and can be set to another function, or to None,
            at any time.
        layers: names of hidden layers, or one, whose κ snapshots shall have too, as "relative_flatness@NAME": an
            estimate with one probe for every sample, drawn anew in each pass, whose slopes take several times as long
            as the loss's.

    Attributes:
        head: the head, with its name.

    Raises:
        ValueError: no such layer, or it is not linear; several devices under one `nn.DataParallel`.
    """

    def __init__(
        self,
        model: nn.Module,
        head: str | nn.Module | None = None,
        *,
        transform: Transform | None = None,
        layers: Sequence[str] = (),
    ) -> None:
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError(
                f"the model runs on {len(model.device_ids)} devices at once in nn.DataParallel, where no place sees "
                f"the whole batch; use torch.nn.parallel.DistributedDataParallel and one Probe in each process"
            )
        self._outer, self._model = model, unwrapped(model)
        self.head: LinearHead = locate_head(model, head)
        self._named = head is not None
        if layers and is_compiled(model):
            raise ValueError("κ of hidden layers takes three derivatives, and compiled models have one: do not compile")
        self._hidden = HiddenLayers(self._model, [layers] if isinstance(layers, str) else layers)
        self._transform = transform
        self._seen: tuple[tuple[Tensor, Tensor], ...] = ()
        self._affine: tuple[Tensor, Tensor | None] | None = None
        self._output: Any = None
        self._checked = self._without_graph = False
        self._slot: str | None = None
        self._undo: list[Callable[[], None]] = []

    @property
    def transform(self) -> Transform | None:
        """Applied to the features before they enter the head; None for nothing."""
        return self._transform

    @transform.setter
    def transform(self, transform: Transform | None) -> None:
        """Take effect at once, also while the probe watches."""
        self._transform = transform
        if self._slot is not None:
            self.head.module.__dict__[f"{self._slot}_transform"] = transform

    # --- watching --------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._undo:
            raise RuntimeError("this Probe is active already; leave its `with` block first, or make a second one")
        self._forget()
        self._undo.append(self._hidden.watch())
        self._watch_model()
        if is_compiled(self._outer):
            self._swap_class()
        else:
            enter = self.head.module.register_forward_pre_hook(Hook(self._transformed), with_kwargs=True)
            leave = self.head.module.register_forward_hook(Hook(self._record), with_kwargs=True)
            self._undo += [enter.remove, leave.remove]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            self._undo.pop()()
        self._forget()

    def _forget(self) -> None:
        self._seen, self._affine, self._output = (), None, None
        self._hidden.forget()
        if self._slot is not None:
            self.head.module.__dict__[f"{self._slot}_seen"] = ()

    def _watch_model(self) -> None:
        outer = self._outer
        compiled = getattr(outer, "_compiled_call_impl", None)
        if compiled is None:
            before = outer.register_forward_pre_hook(Hook(lambda module, inputs: self._forget()))
            after = outer.register_forward_hook(Hook(self._end))
            self._undo += [before.remove, after.remove]
            return

        def call(*inputs: Any, **keywords: Any) -> Any:  # hooks would become a part of the compiled code
            """The compiled forward pass, with its output kept."""
            self._forget()
            self._output = compiled(*inputs, **keywords)
            return self._output

        outer._compiled_call_impl = call
        self._undo.append(lambda: setattr(outer, "_compiled_call_impl", compiled))

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._output = output

    def _transformed(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if self._transform is None:
            return None
        features, inputs, keywords = _entering(inputs, keywords)
        return (self._transform(features), *inputs), keywords

    def _record(self, module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Tensor) -> None:
        if self._output is not None:  # that pass is over: the head is called by itself, not through the whole model
            self._forget()
        self._seen = (*self._seen[-1:], (_entering(inputs, keywords)[0], output))
        self._without_graph = not torch.is_grad_enabled()
        if is_linear(module) and not has_own_forward(module):  # torch.func.functional_call puts other weights in
            with torch.enable_grad():  # also after a pass without a graph a penalty acts on the head
                self._affine = self.head.affine()

    # --- models that were compiled: hooks that come later are not seen by them ------------------------------

    def _swap_class(self) -> None:
        module = self.head.module
        own: type = type(module)
        slot = f"_probe{sum('_records' in kind.__dict__ for kind in own.__mro__)}"  # of its own for a probe in a probe
        module.__class__ = _recording(own, slot)
        module.__dict__ |= {f"{slot}_seen": (), f"{slot}_transform": self.transform}
        self._slot = slot

        def restore() -> None:
            """Give the module its own class back."""
            self._slot = None
            module.__class__ = own
            del module.__dict__[f"{slot}_seen"], module.__dict__[f"{slot}_transform"]

        self._undo.append(restore)

    # --- what was seen ---------------------------------------------------------------------------------------

    def _last(self) -> tuple[Tensor, Tensor]:
        calls = self._seen
        if self._slot is not None:
            calls = self.head.module.__dict__[f"{self._slot}_seen"]
        kind = type(self._model).__name__
        if not calls and self._output is None:
            raise RuntimeError(
                f"no forward pass of {kind} was seen; inside the `with` block call the model, then ask for a snapshot"
                f"{_COMPILED_BEFORE if 'torch._dynamo' in sys.modules else ''}"
            )
        if not calls:
            raise RuntimeError(
                f"layer {self.head.name!r} was not called in the last forward pass of {kind}, so it is not the head; "
                f"name the layer that makes the logits: one of {self._others()}"
            )
        if len(calls) > 1 and self._output is not None:
            raise RuntimeError(
                f"layer {self.head.name!r} was called more than once in the last forward pass of {kind}; "
                f"a snapshot needs one call that makes all logits"
            )
        return calls[-1]

    def _others(self) -> str:
        return ", ".join(repr(n) for n in list(linear_layers(self._model))[-6:] if n != self.head.name) or "none"

    @property
    def features(self) -> Tensor:
        """What entered the head in the last forward pass, as the model computed it: (B, d) or (B, T, d)."""
        return self._last()[0]

    @property
    def logits(self) -> Tensor:
        """What left the head in the last forward pass: (B, K) or (B, T, K)."""
        return self._last()[1]

    def snapshot(self, labels: Tensor) -> Snapshot:
        """What the head saw in the last forward pass, for measures and interventions.

        Positions labelled −100 are left out. Causal language models of transformers are scored on the next position, as
        they do themselves. Where a model picks one position of each sequence (a classifier made of a language model),
        so does the snapshot.

        Args:
            labels: class indices (B,), or (B, T) for sequences.

        Returns:
            A snapshot in float32 (float64 for a float64 model), with graph.

        Raises:
            RuntimeError: no forward pass was seen, or the head took no part in it, or did so in a reentrant checkpoint.
            TypeError: labels that are no class indices; features or logits that are complex.
            ValueError: the model's logits are not those of the head, or of one class, or labels do not fit them.
        """
        features, logits = self._last()
        check_floating(features=features, logits=logits)
        if self._without_graph and logits.requires_grad:
            raise RuntimeError(
                f"the head {self.head.name!r} ran in a reentrant checkpoint: what it saw has no gradient, so no "
                f"penalty would reach what comes before it; use checkpoint(…, use_reentrant=False)"
            )
        rows = len(logits)
        if self._output is not None:
            features, logits = self._matched(features, logits)
        check_outputs(logits)
        labels, features, logits = align(self._model, labels, features, logits)
        check_labels(labels, features, logits.shape[-1])
        weight, bias = self._affine or self.head.affine()
        eps = max(torch.finfo(tensor.dtype).eps for tensor in (features, logits, weight))
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        features, logits, weight = features.to(wide), logits.to(wide), weight.to(wide)
        bias = None if bias is None else bias.to(wide)
        if not self._checked and len(labels):
            self._check_affine(features, logits, weight, bias, eps)
            self._checked = True
        layers = self._hidden.flatness(logits, labels, rows) if len(labels) else {}
        return Snapshot(features, logits, labels, weight, bias, dict(self._model.named_parameters()), layers)

    def _matched(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of the samples that the model answers for."""
        several = tensors_of(self._output) if self._named else []
        if any(each.shape == logits.shape and _same(each, logits) for each in several):
            return features, logits
        answer = logits_of(self._output)
        if answer.shape == logits.shape:
            if not _same(answer, logits):
                raise ValueError(self._mismatch("the model's logits differ from what this layer returns"))
            return features, logits
        if logits.dim() == 3 and answer.shape == (logits.shape[0], logits.shape[2]):
            return self._picked(features, logits, answer)
        raise ValueError(
            self._mismatch(f"it returns {tuple(logits.shape)} and the model returns logits {tuple(answer.shape)}")
        )

    def _picked(self, features: Tensor, logits: Tensor, answer: Tensor) -> tuple[Tensor, Tensor]:
        equal = (logits.detach() == answer.detach()[:, None]).all(-1)
        if not bool(equal.any(1).all()):
            raise ValueError(self._mismatch("the model's logits are those of no single position of this layer"))
        rows, position = torch.arange(len(answer), device=answer.device), equal.int().argmax(1)
        return features[rows, position], logits[rows, position]

    def _mismatch(self, what: str) -> str:
        return (
            f"layer {self.head.name!r} is not the head of {type(self._model).__name__}: {what}. Measures need logits "
            f"z = W φ + b with nothing after it (no softmax, scale or clipping): return those, or name the layer that "
            f"makes them: one of {self._others()}"
        )

    @torch.no_grad()
    @full_precision()
    def _check_affine(
        self, features: Tensor, logits: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> None:
        """Refuse a head whose logits are not those of its weight, beyond the rounding of the pass that made them."""
        if any(isinstance(part, nn.Dropout) and part.training and part.p > 0 for part in self.head.module.modules()):
            return
        features, logits = features[:_LOOKED_AT], logits[:_LOOKED_AT]
        apart = (features @ weight.T + (0 if bias is None else bias) - logits).abs()
        sizes = features.norm(dim=-1, keepdim=True) * weight.norm(dim=-1) + (0 if bias is None else bias.abs())
        if (apart > max(4 * eps, 2e-3) * sizes).any():
            raise ValueError(
                f"the head {self.head.name!r} ({type(self.head.module).__name__}) does not return W φ + b for any "
                f"weight of its own, and measures need a linear head; end the model in a linear layer after it, or "
                f"remove what changes its output (a forward hook, a normalisation)"
            )


def _entering(inputs: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The features that a head is called with, by position or by name, and its other arguments."""
    if inputs:
        return inputs[0], inputs[1:], keywords
    name = next(iter(keywords))
    return keywords[name], (), {key: value for key, value in keywords.items() if key != name}


def _same(first: Tensor, second: Tensor) -> bool:
    """Equal up to the rounding of half precision or of TensorFloat-32."""
    tolerance = max(4 * torch.finfo(first.dtype).eps, 4 * torch.finfo(second.dtype).eps, 2e-3)
    if first.is_set_to(second):
        return True
    first, second = widen(first.detach()), widen(second.detach())
    return not (first - second).abs().max() > tolerance * second.abs().max()  # NaN on both sides is no difference


@lru_cache(maxsize=64)
def _recording(own: type, slot: str) -> type:
    """A subclass that keeps what passes through; compiled code notices the class and is compiled for it."""
    seen, transformation = f"{slot}_seen", f"{slot}_transform"

    class Recording(own):
        """The head's class, keeping what passes through."""

        _records = own

        def forward(self, *args: Any, **keywords: Any) -> Tensor:
            """Transform the features, apply the head, keep both ends."""
            features, args, keywords = _entering(args, keywords)
            transform = getattr(self, transformation)
            if transform is not None:
                features = transform(features)
            output = super().forward(features, *args, **keywords)
            if slot != "_probe0":  # what a probe that was there before has made of them
                features = self._probe0_seen[-1][0]
            setattr(self, seen, (*getattr(self, seen)[-1:], (features, output)))
            return output

        def __reduce_ex__(self, protocol: Any) -> Any:
            """A copy is of the head's own class, and has seen nothing."""
            kind, state = without_probes(own), super().__reduce_ex__(protocol)[2]
            return kind.__new__, (kind,), {k: v for k, v in state.items() if k not in (seen, transformation)}

    Recording.__name__, Recording.__qualname__ = own.__name__, own.__qualname__
    return Recording
