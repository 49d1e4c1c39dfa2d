"""One engine for every study: R replicas on a leading axis, one batched training step, measures at fixed weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from grokscape.measures import Snapshot, evaluate, layers_of
from grokscape.measures.snapshot import Quantities, with_float64
from grokscape.models.linear import linear
from grokscape.models.network import SpecifiedNetwork
from grokscape.perturbations import UNPERTURBED, DifferentiableNorms, Perturbations
from grokscape.symbols import SPLITS
from grokscape.training.batches import Batches
from grokscape.training.columns import measures_of
from grokscape.training.hidden import HiddenLayers, cross_entropies, flatness_of
from grokscape.training.levers import Chunk, Levers, chunks_of, unplug_of
from grokscape.training.optimisers import Layout, Rates, orthogonal_gradient, sam_gradient
from grokscape.training.plan import Plan

_CHUNK = 32768  # samples × replicas in one forward pass of an evaluation
_CHUNK_NUMBERS = 2**24  # and so many numbers that enter
_CACHE = 2**19  # features of one training pass that stay in a CPU's cache; more replicas go through in several passes
_WIDER = 8  # an evaluation has no backward pass and many small operations: it takes this many times more replicas
_MOVING = 0.03  # change of an accuracy between two measurements from which on a replica is measured more often


@dataclass
class State:
    """Everything that changes during a run, as tensors: saving and loading it is all that resuming needs.

    Attributes:
        flat: parameters, (R, P).
        slots: matrices of the optimiser, (R, P) each.
        alive: False once a replica's loss or gradient was not finite; it is frozen from then on.
        last_good: the last step at which a replica's loss was finite.
        references: values that relative clamps wait for.
        memorised: whether train accuracy has reached its threshold at a measurement.
        streak: number of successive evaluations at which test accuracy was at its threshold.
        accuracies: train and test accuracy at the last step of the grid, (R, 2).
        moving: replicas that are measured more often.
        buffers: what the network keeps beside its parameters, such as running statistics.
    """

    flat: Tensor
    slots: dict[str, Tensor]
    alive: Tensor
    last_good: Tensor
    references: dict[str, Tensor]
    memorised: Tensor
    streak: Tensor
    accuracies: Tensor
    moving: Tensor
    buffers: dict[str, Tensor]


class Engine:
    """Trains and measures the replicas of a plan.

    Args:
        plan: what to do.

    Attributes:
        state: where it stands.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.network = plan, plan.network
        self.device = torch.device(plan.device)
        self.dtype = torch.float64 if plan.precision == "float64" else torch.float32
        self.layout = Layout(self.network.shapes)
        self.state = self._initial_state()
        like = self.state.flat
        self.batches = Batches(plan.replicas, plan.batch_size, self.device, self.dtype)
        most = self._replicas_at_once()
        self.levers = Levers([r.interventions for r in plan.replicas], like, most)
        self._training_chunks = chunks_of(self.levers.blocks, most)
        self._measuring_chunks = chunks_of(self.levers.blocks, _WIDER * most)
        self.state.references = self.levers.empty_references()
        if self.levers.gain is not None:
            self.layout.one(like, self.network.head[0]).div_(self.levers.gain[:, None, None])
        optimizers = [r.optimizer for r in plan.replicas]
        self.optimizer = optimizers[0]
        self.rates = Rates(optimizers, [unplug_of(r.interventions) for r in plan.replicas], plan.steps, like)
        self._hidden = HiddenLayers(self.network, like)
        self._orthogonal = torch.tensor([[o.orthogonal_gradient] for o in optimizers], device=self.device)
        self._radius = torch.tensor([[o.sam_radius] for o in optimizers], dtype=self.dtype, device=self.device)
        self._any_orthogonal, self._any_sam = bool(self._orthogonal.any()), bool((self._radius > 0).any())
        features = self.network.features
        self._trained_features = torch.compile(features, dynamic=False) if plan.compile else features
        self._measures = {side: measures_of(plan.evaluation.measures, side) for side in SPLITS}

    def _initial_state(self) -> State:
        plan, count = self.plan, len(self.plan.replicas)
        seeds = [r.init_seed for r in plan.replicas]
        made = {seed: self.network.initial(torch.Generator().manual_seed(seed), self.dtype) for seed in set(seeds)}
        rows = {seed: self.layout.flatten(parameters) for seed, (parameters, _) in made.items()}
        flat = torch.stack([rows[seed] for seed in seeds]).to(self.device)
        buffers = self.network.prepare(count, self.device, self.dtype)
        for row, seed in enumerate(seeds):
            for name, value in made[seed][1].items():
                if name in buffers and buffers[name].shape[1:] == value.shape:  # else made at its first forward pass
                    buffers[name][row] = value

        def full(value: float | bool, dtype: torch.dtype, *shape: int) -> Tensor:
            """One value for every replica."""
            return torch.full((count, *shape), value, dtype=dtype, device=self.device)

        return State(
            flat=flat,
            slots={name: torch.zeros_like(flat) for name in plan.replicas[0].optimizer.slots},
            alive=full(True, torch.bool),
            last_good=full(0, torch.int64),
            references={},
            memorised=full(False, torch.bool),
            streak=full(0, torch.int64),
            accuracies=full(0.0, self.dtype, 2),
            moving=full(False, torch.bool),
            buffers=buffers,
        )

    def _replicas_at_once(self) -> int:
        """All of them on an accelerator; on a CPU as many as keep a batch's features in its cache."""
        if self.device.type != "cpu":
            return len(self.plan.replicas)
        return max(1, _CACHE // (self.batches.batch_size or self.batches.train_size) // self.network.features_dim)

    # --- one training step -------------------------------------------------------------------------------------

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.plan.precision != "bf16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _compiling(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, every shape gets code of its own, whichever came before; by default only the first few do.

        Not so for people's modules, where the compiler may find something new at every call, and then had better stop.
        """
        if not (self.plan.compile and isinstance(self.network, SpecifiedNetwork)):
            return contextlib.nullcontext()
        return torch._dynamo.config.patch(recompile_limit=2**16, accumulated_recompile_limit=2**16)

    def _head(self, parameters: dict[str, Tensor], features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        weight_name, bias_name = self.network.head
        weight, bias = parameters[weight_name], None if bias_name is None else parameters[bias_name]
        with self._autocast():
            logits = linear(features, weight)
        logits = logits.to(self.dtype)
        return logits if bias is None else logits + bias[:, None], weight, bias

    def snapshot(
        self,
        parameters: dict[str, Tensor],
        inputs: Tensor,
        labels: Tensor,
        step: int,
        rows: slice,
        changes: Perturbations = UNPERTURBED,
    ) -> Snapshot:
        """What the heads of the replicas in `rows` see: features as the interventions of `step` leave them."""
        with self._autocast():
            if changes:  # compiled code cannot be differentiated twice
                with DifferentiableNorms():
                    features = self.network.features(parameters, inputs, changes)
            elif torch.is_grad_enabled():
                with self._compiling():
                    features = self._trained_features(parameters, inputs)
            else:  # other numbers of samples than in training, and of replicas: code for each of them
                features = self.network.features(parameters, inputs)
        features = self.levers.features(features.to(self.dtype), step, rows)
        logits, weight, bias = self._head(parameters, features)
        return Snapshot(features, logits, labels, weight, bias, parameters)

    def objective(self, flat: Tensor, inputs: Tensor, labels: Tensor, step: int, chunk: Chunk) -> Tensor:
        """Training loss plus penalties of a chunk's replicas, (r,)."""
        changes = self._hidden.changes(chunk.layers, labels, self._hidden.generators(chunk.layers, step))
        seen = self.snapshot(self.layout.view(flat), inputs, labels, step, chunk.rows, changes)
        loss = cross_entropies(seen, curved=bool(changes)).mean(1)
        if not self.levers.needs_parameters:
            seen = replace(seen, parameters={})
        if pressed := self.levers.layers_pressed(step, chunk):
            seen = replace(seen, layers=flatness_of(loss, changes, pressed))
        penalty = self.levers.penalty(seen, step, self.state.references, chunk)
        return loss if penalty is None else loss + penalty

    def _gradient(self, flat: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Objective (R,) and its gradient (R, P), chunk by chunk."""
        objectives: list[Tensor] = []
        grads: list[Tensor] = []
        for chunk in self._training_chunks:
            with torch.enable_grad(), self.network.working_on(chunk.rows):
                leaf = flat[chunk.rows].detach().requires_grad_()
                objective = self.objective(leaf, *self.batches.at(step, chunk.rows), step, chunk)
                grads += torch.autograd.grad(objective.sum(), leaf)
            objectives.append(objective.detach())
        return (objectives[0], grads[0]) if len(grads) == 1 else (torch.cat(objectives), torch.cat(grads))

    def _gradient_beside(self, flat: Tensor, step: int) -> Tensor:
        """Gradient (R, P) at other parameters than the replicas' own; their running statistics stay as they are."""
        before = self._buffers()
        grad = self._gradient(flat, step)[1]
        self._put_back(before, torch.ones_like(self.state.alive))
        return grad

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer.clone() for name, buffer in self.state.buffers.items()}

    def _put_back(self, before: dict[str, Tensor], rows: Tensor) -> None:
        """Give buffers their former values in the replicas where `rows` (R,) is true."""
        for name, buffer in self.state.buffers.items():
            buffer.copy_(before[name].where(rows.view(-1, *[1] * (buffer.dim() - 1)), buffer))

    def step(self, step: int) -> None:
        """Train every live replica by one step; `step` counts from 0."""
        state, before = self.state, self._buffers()
        objective, grad = self._gradient(state.flat, step)
        finite = objective.isfinite() & grad.sum(1).isfinite()
        if self._any_sam:
            grad = sam_gradient(state.flat, grad, self._radius, lambda flat: self._gradient_beside(flat, step))
            finite &= grad.sum(1).isfinite()
        if self._any_orthogonal:
            grad = torch.where(self._orthogonal, orthogonal_gradient(state.flat, grad, self.layout), grad)
        state.alive &= finite
        self._put_back(before, ~state.alive)
        state.last_good.masked_fill_(state.alive, step)
        alive = state.alive[:, None]
        if self.device.type != "cpu" or not state.alive.all():  # asking an accelerator would mean waiting for it
            grad = grad.masked_fill_(~alive, 0.0)
        lr, wd = self.rates.at(step)
        self.optimizer.update_(state.flat, grad, state.slots, lr * alive, wd, step + 1)
        self.levers.cap_(self.layout.one(state.flat, self.network.head[0]), step, state.alive)

    # --- measuring ---------------------------------------------------------------------------------------------

    def _pieces(self, side: Literal["train", "test"], rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and labels of all samples of a side, a piece at a time."""
        inputs, labels = self.batches.all(side, rows, self.plan.evaluation.max_samples)
        size = max(1, min(_CHUNK, _CHUNK_NUMBERS // inputs[0, 0].numel()) // len(labels))
        whole = labels.shape[1] <= size  # lookups are remembered by tensor: no new one where there is nothing to split
        pieces = [(inputs, labels)] if whole else zip(inputs.split(size, 1), labels.split(size, 1), strict=True)
        return ((self.batches.seen(some, rows), theirs) for some, theirs in pieces)

    def _side(self, side: Literal["train", "test"], step: int, rows: slice) -> Snapshot:
        """The snapshot of all samples of a side, of the replicas in `rows`."""
        parameters = self.layout.view(self.state.flat[rows])
        pieces = [self.snapshot(parameters, *some, step, rows) for some in self._pieces(side, rows)]
        if len(pieces) == 1:
            return pieces[0]
        features, logits, labels = (
            torch.cat([getattr(piece, name) for piece in pieces], 1) for name in ("features", "logits", "labels")
        )
        return replace(pieces[0], features=features, logits=logits, labels=labels)

    def _layers(self, step: int, chunk: Chunk) -> dict[str, Tensor]:
        """Measures of hidden layers on training samples: those of the run, and those that levels are relative to."""
        layers = dict.fromkeys((*layers_of(self._measures["train"]), *self.levers.layers_awaited(chunk)))
        parameters = self.layout.view(self.state.flat[chunk.rows])

        def losses(changes: Perturbations, inputs: Tensor, labels: Tensor) -> Tensor:
            """Cross-entropies of perturbed networks."""
            return cross_entropies(self.snapshot(parameters, inputs, labels, step, chunk.rows, changes), curved=True)

        return self._hidden.measured(tuple(layers), step, losses, lambda: self._pieces("train", chunk.rows))

    def _measure(self, step: int, chunk: Chunk) -> tuple[dict[str, Tensor], Snapshot]:
        rows = chunk.rows
        with self.network.working_on(rows, training=False):
            here = replace(self._side("train", step, rows), layers=self._layers(step, chunk))
            train, test = (Quantities(with_float64(side)) for side in (here, self._side("test", step, rows)))
        names = self._measures
        values = {
            **{f"train/{k}": v for k, v in evaluate(train, names["train"]).items()},
            **{f"test/{k}": v for k, v in evaluate(test, names["test"]).items()},
            **{f"cross/{k}": v for k, v in evaluate(test, names["cross"], around=train).items()},
            **{f"params/{k}": v for k, v in evaluate(train, names["params"]).items()},
        }
        return {name: value.to(self.device) for name, value in values.items()}, here

    @torch.no_grad()
    def measure(self, step: int) -> dict[str, Tensor]:
        """Every measured column, one value a replica, at fixed weights."""
        parts = []
        for chunk in self._measuring_chunks:
            values, train = self._measure(step, chunk)
            rows = torch.arange(chunk.rows.start, chunk.rows.stop, device=self.device)
            self._see_who_moves(rows, self._note(values, rows))
            self._take_levels(train, step, chunk, torch.ones_like(self.state.moving))
            parts.append(values)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def measure_moving(self, step: int) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Extra measurements between two steps of the grid: rows of the replicas that are due, and values.

        Due are those whose accuracy is on the move, every `refine` steps, and those with a level relative to this step.
        A chunk is always measured whole and its due replicas kept, so that values depend on no other replica.
        """
        refine = self.plan.evaluation.refine
        refined = refine is not None and step % refine == 0
        awaited = self.levers.awaited(step)
        if not refined and awaited is None:
            return
        chosen = torch.zeros_like(self.state.moving) if awaited is None else awaited & self.state.alive
        chosen = chosen | self.state.moving if refined else chosen
        for chunk in self._training_chunks:
            due = chosen[chunk.rows].nonzero()[:, 0]
            if len(due):
                values, train = self._measure(step, chunk)
                values = {name: column[due] for name, column in values.items()}
                self._note(values, due + chunk.rows.start)
                self._take_levels(train, step, chunk, chosen)
                yield (due + chunk.rows.start).tolist(), values

    def _take_levels(self, train: Snapshot, step: int, chunk: Chunk, measured: Tensor) -> None:
        """Levels of a chunk's measured replicas, out of (R,), whose moment has come."""
        state = self.state
        self.levers.record_references(state.references, train, step, state.memorised, chunk, measured)

    def _note(self, values: dict[str, Tensor], rows: Tensor) -> Tensor:
        """Keep in the state what the measured replicas, in `rows`, have reached; their train and test accuracy."""
        state, onset = self.state, self.plan.onset
        now = torch.stack([values["train/accuracy"], values["test/accuracy"]], 1).to(state.accuracies)
        state.alive[rows] &= values["train/loss"].isfinite()
        state.memorised[rows] |= now[:, 0] >= onset.train_threshold
        there = now[:, 1] >= onset.test_threshold
        state.streak[rows] = torch.where(there, state.streak[rows] + 1, torch.zeros_like(state.streak[rows]))
        return now

    def _see_who_moves(self, rows: Tensor, now: Tensor) -> None:
        """Mark replicas whose accuracy moved between two steps of the grid.

        Between any two measurements, of unequal distance, the same slow rise would look now fast, now slow.
        """
        state = self.state
        state.moving[rows] = ((now - state.accuracies[rows]).abs() >= _MOVING).any(1) & state.alive[rows]
        state.accuracies[rows] = now

    @property
    def settled(self) -> bool:
        """Whether every replica has generalised and held it, or has diverged."""
        done = (self.state.streak >= self.plan.onset.hold) & self.state.memorised
        return bool((done | ~self.state.alive).all())
