"""The interventions of all replicas, stacked: neighbouring replicas with the same kinds of penalty form one block."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from grokscape.interventions import (
    Clamp,
    Intervention,
    NormalizeFeatures,
    Penalty,
    Promote,
    Rescale,
    Suppress,
    Unplug,
    WeightCap,
)
from grokscape.measures import Snapshot, find_measure, layers_of
from grokscape.penalties import (
    Gate,
    cap_factor,
    clamp_penalty,
    measure_at,
    normalize_features,
    schedule_gate,
)


def unplug_of(interventions: Sequence[Intervention]) -> Unplug | None:
    """The arm's unplugging, if it has one."""
    found = [i for i in interventions if isinstance(i, Unplug)]
    if len(found) > 1:
        raise ValueError(f"expected at most one Unplug in an arm, got {len(found)}; keep the one that should act")
    return found[0] if found else None


def check_together(interventions: Sequence[Intervention]) -> None:
    """Refuse an arm with several interventions of a kind that can act only once.

    Raises:
        ValueError: several Unplug, NormalizeFeatures, or WeightCap of one norm.
    """
    unplug_of(interventions)
    once = [(type(i).__name__, getattr(i, "norm", "")) for i in interventions]
    for kind, norm in once:
        if kind in ("NormalizeFeatures", "WeightCap") and once.count((kind, norm)) > 1:
            which = f"{kind} of the {norm} norm" if norm else kind
            raise ValueError(f"expected at most one {which} in an arm, got several; keep the one that should act")


def ended(interventions: Sequence[Intervention]) -> tuple[Intervention, ...]:
    """Interventions other than Unplug; penalties and normalisation end no later than it, caps and rescaling go on."""
    unplug = unplug_of(interventions)
    kept = tuple(i for i in interventions if not isinstance(i, Unplug))
    if unplug is None:
        return kept
    end = unplug.step
    lasting = tuple(i for i in kept if isinstance(i, Rescale | WeightCap))
    early = [i for i in kept if not isinstance(i, Rescale | WeightCap) and i.start < end]
    return lasting + tuple(replace(i, until=end if i.until is None else min(end, i.until)) for i in early)


class _Schedule:
    """Gates of several scheduled interventions at once."""

    def __init__(self, scheduled: Sequence[Any], like: Tensor) -> None:
        self._like = like
        self._start = torch.tensor([s.start for s in scheduled])
        until = [torch.inf if s.until is None else float(s.until) for s in scheduled]
        self._until = torch.tensor(until, dtype=torch.float64)  # float32 has no odd steps from 2^24 on
        self._ramp = torch.tensor([getattr(s, "ramp", 0) for s in scheduled])
        self._settled = int((self._start + self._ramp).max())
        self._ends = bool(self._until.isfinite().any())
        self._step = -1
        self._gates = self._there = torch.full_like(self._until, torch.nan, dtype=torch.float64)

    def at(self, step: int) -> Tensor:
        """Gates, one a row; recomputed only while they can change, and moved to the device only when they have."""
        self._update(step)
        return self._there

    def active(self, step: int) -> bool:
        """Whether any gate is open; known without waiting for the device."""
        self._update(step)
        return bool(self._gates.any())

    def _update(self, step: int) -> None:
        if step == self._step or (not self._ends and min(step, self._step) >= self._settled):
            return
        self._step, gates = step, schedule_gate(step, self._start, self._until, self._ramp)
        if not torch.equal(gates, self._gates):
            self._gates, self._there = gates, gates.to(self._like)


class StackedPenalty:
    """One kind of penalty with its numbers per replica of a block."""

    def __init__(self, penalties: Sequence[Penalty], like: Tensor) -> None:
        first = penalties[0]
        self.measure, self.temperature = first.measure, first.temperature
        self.is_clamp = isinstance(first, Clamp)
        self.relative_to = [getattr(p, "relative_to", None) for p in penalties]
        self._schedule = _Schedule(penalties, like)

        def stack(values: list[float]) -> Tensor:
            """One number a replica, as a tensor."""
            return torch.tensor(values, dtype=like.dtype, device=like.device)

        self._strength = stack([p.strength if isinstance(p, Clamp) else p.signed_strength for p in penalties])
        self._low = stack([getattr(p, "at_least", None) or 0.0 for p in penalties])
        self._high = stack([getattr(p, "at_most", None) or torch.inf for p in penalties])
        self._relative = torch.tensor([moment is not None for moment in self.relative_to], device=like.device)

    @property
    def is_relative(self) -> bool:
        """Whether any replica's levels wait for a reference value."""
        return any(moment is not None for moment in self.relative_to)

    def active(self, step: int) -> bool:
        """Whether any replica of the block feels it at this step."""
        return self._schedule.active(step)

    def value(self, snapshot: Snapshot) -> Tensor:
        """The measure, one number a replica."""
        return measure_at(self.measure, snapshot, self.temperature)

    def __call__(self, snapshot: Snapshot, step: int, reference: Tensor | None) -> Tensor:
        """Penalty per replica of the block."""
        strength = self._strength * self._schedule.at(step)
        gate = Gate(snapshot)
        if not self.is_clamp:
            value = self.value(gate.snapshot)
            return gate((strength * value).where(strength != 0, 0), strength != 0)
        scale = 1.0 if reference is None else torch.where(self._relative, reference, torch.ones_like(reference))
        value = self.value(gate.snapshot)
        penalty = gate(clamp_penalty(value, strength, self._low * scale, self._high * scale))
        return penalty.detach() if gate.rests else penalty


@dataclass(frozen=True)
class Block:
    """Neighbouring replicas, from row `start` to before `stop`, that carry the same kinds of penalty."""

    start: int
    stop: int
    penalties: tuple[StackedPenalty, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Hidden layers that its penalties are about."""
        return layers_of(penalty.measure for penalty in self.penalties)


def _penalties(interventions: Sequence[Intervention]) -> list[Penalty]:
    return [i for i in interventions if isinstance(i, Promote | Suppress | Clamp)]


def _blocks(arms: Sequence[Sequence[Intervention]], like: Tensor, most: int) -> list[Block]:
    """Runs of rows with the same kinds of penalty, none longer than `most`."""
    rows = [_penalties(arm) for arm in arms]
    kinds = [[(isinstance(p, Clamp), p.measure, p.temperature) for p in row] for row in rows]
    edges = [0, *(i for i in range(1, len(arms)) if kinds[i] != kinds[i - 1]), len(arms)]
    pieces = [(i, min(i + most, stop)) for start, stop in itertools.pairwise(edges) for i in range(start, stop, most)]
    return [
        Block(start, stop, tuple(StackedPenalty(column, like) for column in zip(*rows[start:stop], strict=True)))
        for start, stop in pieces
    ]


@dataclass(frozen=True)
class Chunk:
    """Neighbouring blocks, `first` to before `last`, whose replicas go through the network together.

    Attributes:
        first, last: the blocks.
        rows: their replicas.
        layers: hidden layers that their penalties are about; the same for all, as they change how a pass is computed.
    """

    first: int
    last: int
    rows: slice
    layers: tuple[str, ...] = ()


def chunks_of(blocks: Sequence[Block], most: int) -> list[Chunk]:
    """As many neighbouring blocks in a chunk as fit into `most` replicas; at least one."""
    chunks: list[Chunk] = []
    for index, block in enumerate(blocks):
        if chunks and block.stop - chunks[-1].rows.start <= most and block.layers == chunks[-1].layers:
            last = chunks.pop()
            chunks.append(Chunk(last.first, index + 1, slice(last.rows.start, block.stop), last.layers))
        else:
            chunks.append(Chunk(index, index + 1, slice(block.start, block.stop), block.layers))
    return chunks


def cut(snapshot: Snapshot, blocks: Sequence[Block]) -> list[Snapshot]:
    """The snapshot cut along the replica axis, a piece for each block; one split of each tensor for all pieces."""
    if len(blocks) == 1:
        return [snapshot]
    sizes = [block.stop - block.start for block in blocks]
    names = [n for n in ("features", "logits", "labels", "weight", "bias") if getattr(snapshot, n) is not None]
    fields = {name: getattr(snapshot, name).split(sizes) for name in names}
    parameters = {name: tensor.split(sizes) for name, tensor in snapshot.parameters.items()}
    layers = {name: tensor.split(sizes) for name, tensor in snapshot.layers.items()}
    return [
        Snapshot(
            **{name: pieces[i] for name, pieces in fields.items()},
            parameters={name: pieces[i] for name, pieces in parameters.items()},
            layers={name: pieces[i] for name, pieces in layers.items()},
        )
        for i in range(len(blocks))
    ]


def _awaited(arms: Sequence[Sequence[Intervention]], device: torch.device) -> dict[int, Tensor]:
    """Step → the replicas (R,) with a level relative to it."""
    steps = [{i.relative_to for i in arm if isinstance(i, Clamp) and isinstance(i.relative_to, int)} for arm in arms]
    return {step: torch.tensor([step in mine for mine in steps], device=device) for step in set().union(*steps)}


_Group = tuple[Tensor, _Schedule, Tensor]


class Levers:
    """All interventions of a run.

    Args:
        arms: the interventions of each replica, R of them.
        like: a tensor whose dtype and device to use.
        most: number of replicas that go through the network together.

    Attributes:
        blocks: replicas with the same kinds of penalty, at most `most` of them in each.
    """

    def __init__(self, arms: Sequence[Sequence[Intervention]], like: Tensor, most: int) -> None:
        for arm in set(arms):
            check_together(arm)
        arms = [ended(arm) for arm in arms]
        self.replicas = len(arms)
        self.blocks = _blocks(arms, like, most)
        penalties = [penalty for block in self.blocks for penalty in block.penalties]
        self.needs_parameters = any(
            row is not None and "parameters" in row.inputs for row in (find_measure(p.measure) for p in penalties)
        )
        self._like = like
        self._awaited = _awaited(arms, like.device)
        factors = [math.prod(i.factor for i in arm if isinstance(i, Rescale)) for arm in arms]
        gain = torch.tensor(factors, dtype=like.dtype, device=like.device)
        self.gain = None if bool((gain == 1).all()) else gain
        owned = [(row, i) for row, arm in enumerate(arms) for i in arm]
        self._normalise = self._stacked([(row, i, i.radius) for row, i in owned if isinstance(i, NormalizeFeatures)])
        caps = [(row, i, i.at_most) for row, i in owned if isinstance(i, WeightCap)]
        self._caps = {norm: self._stacked([cap for cap in caps if cap[1].norm == norm])
                      for norm in ("frobenius", "spectral")}

    def _stacked(self, found: Sequence[tuple[int, NormalizeFeatures | WeightCap, float]]) -> _Group | None:
        """Scheduled interventions with their replicas and levels."""
        if not found:
            return None
        owners, scheduled, levels = zip(*found)
        values = torch.tensor(levels, dtype=self._like.dtype, device=self._like.device)
        return torch.tensor(owners, device=self._like.device), _Schedule(scheduled, self._like), values

    def _acting(self, group: _Group | None, step: int, neutral: float) -> Tensor | None:
        """Value per replica (R,), `neutral` where nothing acts; None if nothing acts anywhere."""
        if group is None:
            return None
        owners, schedule, values = group
        if not schedule.active(step):
            return None
        gates, full = schedule.at(step), self._like.new_full((self.replicas,), neutral)
        full[owners] = torch.where(gates > 0, values, torch.full_like(values, neutral))
        return full

    def features(self, features: Tensor, step: int, rows: slice) -> Tensor:
        """Features (r, N, d) of the replicas in `rows`, as the head gets them at this step."""
        radius = self._acting(self._normalise, step, torch.nan)
        if radius is not None:
            radius = radius[rows, None, None].to(features.device)
            rests = radius.isnan()  # ones there: slopes of very short features overflow, and 0 · ∞ is no number
            normalised = normalize_features(features.masked_fill(rests, 1), radius.nan_to_num(1.0))
            features = torch.where(rests, features, normalised)
        return features if self.gain is None else features * self.gain[rows, None, None].to(features.device)

    def layers_pressed(self, step: int, chunk: Chunk) -> tuple[str, ...]:
        """Hidden layers whose measures a chunk's penalties need at this step."""
        return layers_of(penalty.measure for penalty in self._penalties(chunk) if penalty.active(step))

    def layers_awaited(self, chunk: Chunk) -> tuple[str, ...]:
        """Hidden layers whose measures a chunk's levels are relative to."""
        return layers_of(penalty.measure for penalty in self._penalties(chunk) if penalty.is_relative)

    def _penalties(self, chunk: Chunk) -> list[StackedPenalty]:
        return [penalty for block in self.blocks[chunk.first : chunk.last] for penalty in block.penalties]

    def penalty(
        self, snapshot: Snapshot, step: int, references: Mapping[str, Tensor], chunk: Chunk
    ) -> Tensor | None:
        """Sum of the penalties per replica of a chunk; None if none acts."""
        if not any(penalty.active(step) for penalty in self._penalties(chunk)):
            return None
        blocks, totals = self.blocks[chunk.first : chunk.last], []
        for b, (block, piece) in enumerate(zip(blocks, cut(snapshot, blocks), strict=True), chunk.first):
            total = self._like.new_zeros(block.stop - block.start)
            for k, penalty in enumerate(block.penalties):
                if penalty.active(step):
                    total = total + penalty(piece, step, references.get(f"{b}.{k}"))
            totals.append(total)
        return torch.cat(totals)

    def cap_(self, weight: Tensor, step: int, alive: Tensor) -> None:
        """Scale head weights (R, K, d) of live replicas, bool (R,), down in place to their caps at this step."""
        for norm, group in self._caps.items():
            cap = self._acting(group, step, torch.inf)
            if cap is not None:
                weight.mul_(cap_factor(weight, cap.where(alive, torch.inf), norm))

    def awaited(self, step: int) -> Tensor | None:
        """Which replicas (R,) have a level relative to this very step; None if nobody has."""
        return self._awaited.get(step)

    def empty_references(self) -> dict[str, Tensor]:
        """NaN for every level that waits for its moment, keyed by block and penalty."""
        return {
            f"{b}.{k}": self._like.new_full((block.stop - block.start,), torch.nan)
            for b, block in enumerate(self.blocks)
            for k, penalty in enumerate(block.penalties)
            if penalty.is_relative
        }

    def record_references(
        self,
        references: dict[str, Tensor],
        snapshot: Snapshot,
        step: int,
        memorised: Tensor,
        chunk: Chunk,
        measured: Tensor,
    ) -> None:
        """Fill in references of a chunk's measured replicas whose moment has come, from its training set's snapshot.

        Which replicas have memorised, and which are `measured`, are (R,).
        """
        blocks = self.blocks[chunk.first : chunk.last]
        for key, reference in references.items():
            b, k = map(int, key.split("."))
            if not chunk.first <= b < chunk.last:
                continue
            block = self.blocks[b]
            penalty = block.penalties[k]
            due = [
                bool(memorised[block.start + i]) if moment == "memorisation" else moment is not None and step >= moment
                for i, moment in enumerate(penalty.relative_to)
            ]
            fresh = torch.tensor(due, device=reference.device) & measured[block.start : block.stop] & reference.isnan()
            if fresh.any():
                value = penalty.value(cut(snapshot, blocks)[b - chunk.first])
                references[key] = torch.where(fresh, value, reference)
