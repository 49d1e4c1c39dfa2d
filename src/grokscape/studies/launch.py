"""From a specification to a run folder: in this process, whole or from a checkpoint."""

from collections.abc import Callable
from typing import Any

from grokscape.store import RunFolder
from grokscape.studies.spec import StudySpec, arm_optimizer, arm_testbed
from grokscape.training import CHECKPOINT_SECONDS, Plan, Progress, Replica, Run


def plan(spec: StudySpec, device: str = "cpu", checkpoint_seconds: float = CHECKPOINT_SECONDS) -> Plan:
    """Everything that the engine needs, from a study's specification: arms outermost, seeds within."""
    splits: dict[Any, Any] = {}
    replicas = []
    for arm in spec.arms:
        testbed, optimizer = arm_testbed(spec, arm), arm_optimizer(spec, arm)
        for k in range(spec.seeds):
            init_seed, split_seed = spec.pair(k)
            key = (testbed.model_dump_json(), split_seed)
            if key not in splits:
                splits[key] = testbed.split(split_seed)
            replicas.append(Replica(arm.name, k, init_seed, split_seed, splits[key], arm.interventions, optimizer))
    first = replicas[0].split
    return Plan(
        replicas=tuple(replicas),
        network=spec.model.build(first.input_spec, first.num_classes),
        steps=spec.steps,
        batch_size=spec.batch_size,
        evaluation=spec.evaluation,
        onset=spec.onset,
        device=device,
        precision=spec.precision,
        compile=spec.compile,
        early_stop=spec.early_stop,
        checkpoint_seconds=checkpoint_seconds,
    )


def train(
    spec: StudySpec,
    folder: RunFolder,
    *,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    about: dict[str, Any] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    stop: Callable[[], bool] = bool,
) -> None:
    """Train all replicas of a study into a run folder, going on from its newest checkpoint if it has one."""
    Run(plan(spec, device, checkpoint_seconds), folder, progress, about, stop).execute()
