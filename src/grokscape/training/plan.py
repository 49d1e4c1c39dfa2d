"""What the engine is asked to do: replicas, network, length, what to measure and when."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from grokscape.interventions import Intervention, Rescale
from grokscape.measures import layers_of
from grokscape.models import Network
from grokscape.rules import OnsetRule
from grokscape.settings import Settings
from grokscape.store import CHECKPOINT_SECONDS
from grokscape.testbeds import Split
from grokscape.training.optimisers import SGD, AdamW

Precision = Literal["float32", "float64", "bf16"]
_SHARED = {"betas", "eps", "momentum", "nesterov"}
_PER_ARM = ("lr", "weight_decay", "warmup", "schedule", "sam_radius", "orthogonal_gradient")


class Evaluation(Settings):
    """What is measured, and when.

    Attributes:
        measures: names of the table of measures.
        points: number of log-spaced steps, from 0 to the last; fewer where they would coincide.
        steps: listed steps instead.
        every: further measurements at least this often (in steps), for long runs on a log grid; None for none.
        refine: spacing of extra measurements of a replica whose train or test accuracy is on the move; None for none.
        max_samples: at most this many train and test samples are used (always the same ones); None for all.
    """

    measures: tuple[str, ...]
    points: Annotated[int, Field(ge=2, le=1_000_000)] = 100
    steps: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    every: Annotated[int, Field(ge=1)] | None = None
    refine: Annotated[int, Field(ge=1)] | None = None
    max_samples: Annotated[int, Field(ge=1)] | None = None

    def grid(self, steps: int) -> list[int]:
        """The steps at which every replica is measured, ascending, 0 and the last among them."""
        if self.steps is not None:
            chosen = {0, steps, *(step for step in self.steps if step <= steps)}
        else:
            ratio = math.log1p(steps) / (self.points - 1)
            chosen = {round(math.expm1(ratio * k)) for k in range(self.points)} | {0, steps}
        if self.every is not None:
            chosen |= set(range(0, steps, self.every))
        return sorted(chosen)


@dataclass(frozen=True)
class Replica:
    """One training run of a study.

    Attributes:
        arm: name of its arm.
        seed: number of its pair: replicas with the same seed differ in nothing but the arm.
        init_seed, split_seed: seeds of the initialisation and of the split; the data order follows `init_seed`.
        split: its data.
        interventions: of its arm.
        optimizer: of its arm.
    """

    arm: str
    seed: int
    init_seed: int
    split_seed: int
    split: Split
    interventions: tuple[Intervention, ...]
    optimizer: AdamW | SGD


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        replicas: R of them; one kind of optimiser, splits of one size, inputs and classes as one network takes them.
        network: what they all train.
        steps: number of training steps.
        batch_size: samples a step; None for the full training set. Those of an epoch that fill no batch are left out.
        evaluation: what is measured, and when.
        onset: thresholds, used for levels relative to memorisation, extra measurements and early stopping.
        device: a PyTorch device.
        precision: "float32", "float64", or "bf16" (float32 weights, matrix products in bfloat16).
        compile: whether to run the network through torch.compile.
        early_stop: end when every replica has generalised and held it, or has diverged.
        checkpoint_seconds: time between checkpoints.
    """

    replicas: Sequence[Replica]
    network: Network
    steps: int
    batch_size: int | None
    evaluation: Evaluation
    onset: OnsetRule
    device: str = "cpu"
    precision: Precision = "float32"
    compile: bool = False
    early_stop: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    def __post_init__(self) -> None:
        sizes = {(len(r.split.train_labels), len(r.split.test_labels)) for r in self.replicas}
        if len(sizes) != 1:
            raise ValueError(
                f"expected splits of one size in a run, got (train, test) = {sorted(sizes)}; use one run each"
            )
        seen = dict.fromkeys((r.split.num_classes, r.split.input_spec) for r in self.replicas)
        if len(seen) != 1:
            raise ValueError(
                f"expected inputs of one shape and vocabulary, and one number of classes, in a run, as replicas share "
                f"a network, got {' and '.join(f'{classes} classes of {inputs}' for classes, inputs in seen)}; "
                f"use one run each"
            )
        classes = self.replicas[0].split.num_classes
        if classes < 2:
            raise ValueError(f"expected a task of two classes or more, got {classes}; is it the right label column?")
        kinds = {type(r.optimizer).__name__ for r in self.replicas}
        if len(kinds) != 1:
            raise ValueError(f"expected one kind of optimiser in a run, got {sorted(kinds)}; use one run each")
        shared = {json.dumps(r.optimizer.model_dump(include=_SHARED), sort_keys=True) for r in self.replicas}
        if len(shared) != 1:
            raise ValueError(
                f"arms of one run may differ in {', '.join(_PER_ARM)} of their optimiser, and in nothing else of it; "
                f"got {' and '.join(sorted(shared))}; use one run each"
            )
        train = sizes.pop()[0]
        pressed = [getattr(i, "measure", "") for r in self.replicas for i in r.interventions]
        if self.batch_size is not None and not 1 <= self.batch_size <= train:
            raise ValueError(f"expected 1 ≤ batch_size ≤ {train} training samples, got {self.batch_size}")
        for layer in layers_of((*self.evaluation.measures, *pressed)):
            self.network.check_layer(layer)
        if any(isinstance(i, Rescale) for r in self.replicas for i in r.interventions):
            _check_head_is_nothing_else(self.network, self.replicas[0].split)


@torch.no_grad()
def _check_head_is_nothing_else(network: Network, split: Split) -> None:
    """Refuse to rescale a head whose weight the features depend on: that would be another function."""
    parameters = {name: value[None] for name, value in network.init(torch.Generator().manual_seed(0)).items()}
    inputs = split.train_inputs[:4]
    inputs = (inputs if split.transform is None else split.transform.inputs(inputs, torch.float32))[None]
    network.prepare(1, torch.device("cpu"), torch.float32)
    with network.working_on(training=False):
        before = network.features(parameters, inputs)
        parameters[network.head[0]] = parameters[network.head[0]] / 2
        after = network.features(parameters, inputs)
    if not torch.equal(before, after):
        raise ValueError(
            f"Rescale divides the head's weight {network.head[0]!r}, but this network uses it before the head too, so "
            f"its function would change; use a head with a weight of its own (tied=False), or leave Rescale out"
        )
