"""From a specification to a run folder: in this process, whole or from a checkpoint."""

from collections.abc import Callable
from typing import Any

from grokscape.numerics import fresh_settings
from grokscape.store import RunFolder, write_json
from grokscape.studies.spec import StudySpec, arm_optimizer, arm_testbed
from grokscape.training import CHECKPOINT_SECONDS, Plan, Progress, Replica, Run, bound_to_length


@fresh_settings()
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


@fresh_settings()
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


def lengthen(folder: RunFolder, spec: StudySpec, steps: int) -> None:
    """Give a run more steps, which it makes when it goes on; the command that reproduces it says so.

    Raises:
        ValueError: they are fewer than it has, its learning rate depends on how many there are, or none of them is
            among the steps that the study lists to be measured at.
        RunFolderError: a process is training into the folder.
    """
    if steps < spec.steps:
        raise ValueError(f"expected more steps than the run has, {spec.steps}, got {steps}")
    bound = [arm.name for arm in spec.arms if bound_to_length(arm_optimizer(spec, arm), arm.interventions)]
    if bound:
        raise ValueError(
            f"the learning rate of arm {bound[0]!r} follows a cosine to the last of {spec.steps} steps, so a longer "
            f"run is another one: start the study anew with that many steps, in another folder"
        )
    listed = spec.evaluation.steps if spec.evaluation.every is None else None
    if listed is not None and not any(spec.steps < step < steps for step in listed):
        raise ValueError(
            f"evaluation.steps lists no step after {spec.steps}, so a longer run would be measured at its end alone: "
            f"start the study anew with that many steps and a longer list, in another folder"
        )
    StudySpec.model_validate({**dict(spec), "steps": steps})
    with folder.claim():
        command = folder.status.get("command")
        again = {} if command is None else {"command": f"{command} && {folder.command('resume')} --steps {steps}"}
        set_steps(folder, steps, **again)


def set_steps(folder: RunFolder, steps: int, **about: Any) -> None:
    """Make a run folder's study one of so many steps, not finished yet, if it has another number.

    Args:
        folder: the run folder.
        steps: their number.
        about: further entries for status.json.
    """
    if folder.spec.get("steps") != steps:
        if folder.status:
            folder.write_status(**{**folder.status, "state": "interrupted", "steps": steps, **about})
        write_json(folder.path / "spec.json", {**folder.spec, "steps": steps})
