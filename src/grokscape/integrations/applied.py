"""The interventions of one arm at work on a module and an optimiser that are not ours."""

from collections.abc import Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from grokscape.interventions import Clamp, Intervention, NormalizeFeatures, Promote, Rescale, Suppress, WeightCap
from grokscape.measures import Probe, Snapshot, evaluate, layers_of
from grokscape.measures.locate import has_own_forward
from grokscape.penalties import normalize_features
from grokscape.training.levers import ended, unplug_of
from grokscape.training.optimisers import falling


class Applied:
    """Penalties, normalised features, weight caps and unplugging in a training loop of one's own.

        with Applied(model, [gs.Clamp("cdnv", at_least=1.2), gs.WeightCap(50)], head="fc") as arm:
            for step, (x, y) in enumerate(loader):
                arm.before_forward(step)
                loss = F.cross_entropy(model(x), y)
                (loss + arm.penalty(y, step)).backward()
                arm.before_step(optimizer, step)
                optimizer.step()
                arm.after_step(step)

    Steps are steps of the optimiser, counted from 0, as in studies.

    Args:
        model: as for `grokscape.Probe`.
        interventions: of the arm.
        head: as for `grokscape.Probe`.
        steps: length of the training, needed for an `Unplug` with cosine only.

    Attributes:
        probe: what the head saw last.

    Raises:
        ValueError: an intervention that needs a study (levels relative to another moment, rescaling), cosine without
            `steps`, a weight cap on an adapter or a parametrised weight.
    """

    def __init__(
        self,
        model: nn.Module,
        interventions: Sequence[Intervention],
        *,
        head: str | None = None,
        steps: int | None = None,
    ) -> None:
        check_outside_studies(interventions)
        kept = ended(interventions)
        self._unplug, self._steps = unplug_of(interventions), steps or 0
        if self._unplug is not None and self._unplug.cosine and steps is None:
            raise ValueError(
                "Unplug(cosine=True) needs the length of the training; pass steps= (max_steps of a Trainer)"
            )
        self._penalties = [i for i in kept if isinstance(i, Promote | Suppress | Clamp)]
        normalise = [i for i in kept if isinstance(i, NormalizeFeatures)]
        self._normalise = [(i, partial(normalize_features, radius=i.radius)) for i in normalise]
        self._caps = [i for i in kept if isinstance(i, WeightCap)]
        self.probe = Probe(model, head, layers=layers_of(penalty.measure for penalty in self._penalties))
        if self._caps and not _has_plain_weight(self.probe.head.module):
            raise ValueError(
                f"WeightCap needs a torch.nn.Linear with a weight of its own as head, got "
                f"{type(self.probe.head.module).__name__} {self.probe.head.name!r}; leave the cap out, merge the "
                f"adapter or remove the parametrisation"
            )

    def __enter__(self) -> Self:
        self.probe.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.probe.transform = None
        self.probe.__exit__(kind, error, trace)

    def before_forward(self, step: int) -> None:
        """Normalise features in the forward passes of this step, or stop doing so.

        Raises:
            ValueError: two normalisations act at this step.
        """
        acting = [(str(i), transform) for i, transform in self._normalise if i.gate(step)]
        if len(acting) > 1:
            both = " and ".join(name for name, _ in acting)
            raise ValueError(f"features can have one radius at a time, got {both} at step {step}; leave one out")
        self.probe.transform = acting[0][1] if acting else None

    def penalty(self, labels: Tensor, step: int) -> Tensor:
        """What to add to the loss of the last forward pass, a scalar; 0 where no penalty acts at this step."""
        acting = [penalty for penalty in self._penalties if penalty.gate(step)]
        if not acting:
            return torch.zeros((), device=labels.device)
        seen = self.snapshot(labels)
        return torch.stack([penalty(seen, step=step) for penalty in acting]).sum()

    def snapshot(self, labels: Tensor) -> Snapshot:
        """See `grokscape.Probe.snapshot`."""
        return self.probe.snapshot(labels)

    def measures(self, labels: Tensor, names: Iterable[str]) -> dict[str, float]:
        """Measures of the last forward pass, by name; of the hidden layers that a penalty of the arm is about, too."""
        names = list(names)
        with torch.set_grad_enabled(bool(layers_of(names))):
            seen = self.snapshot(labels)
        with torch.no_grad():
            return {name: float(value.detach()) for name, value in evaluate(seen, names).items()}

    def before_step(self, optimizer: Any, step: int) -> None:
        """Give the optimiser the settings of an `Unplug` once its step has come; call it before every optimiser step.

        Groups without weight decay stay without it where others have some.
        """
        unplug = self._unplug
        if unplug is None or step < unplug.step:
            return
        groups = optimizer.param_groups
        if unplug.lr is not None or unplug.cosine:
            share = falling(step - unplug.step, max(1, self._steps - unplug.step)) if unplug.cosine else 1.0
            for group in groups:
                top = group.setdefault("grokscape_lr", group["lr"]) if unplug.lr is None else unplug.lr
                group["lr"] = top * share
        if unplug.weight_decay is not None and step == unplug.step:
            decayed = [group for group in groups if group.get("weight_decay")] or groups
            for group in decayed:
                group["weight_decay"] = unplug.weight_decay

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Bring the head's weight back under its caps; call it after every optimiser step."""
        for cap in self._caps:
            weight = self.probe.head.module.weight
            assert isinstance(weight, Tensor)
            weight.copy_(cap(weight, step=step))


def _has_plain_weight(module: nn.Module) -> bool:
    """Whether a head is a linear layer whose weight is a parameter: not made of others, not added to."""
    plain = isinstance(module, nn.Linear) and not has_own_forward(module)
    return plain and "weight" in dict(module.named_parameters(recurse=False))


def check_outside_studies(interventions: Sequence[Intervention]) -> None:
    """Raise ValueError for interventions that only a study can carry out."""
    for intervention in interventions:
        if isinstance(intervention, Clamp) and intervention.relative_to is not None:
            raise ValueError(
                f"a clamp relative to {intervention.relative_to!r} needs measurements of the whole training set, which "
                f"studies take; give absolute levels here"
            )
        if isinstance(intervention, Rescale):
            raise ValueError("Rescale changes the initial weights, which a study makes; leave it out here")


def of_whole_sets(names: Sequence[str]) -> list[str]:
    """Those of the measures that `measure` takes: κ of hidden layers is of batches alone."""
    return [name for name in names if not layers_of([name])]
