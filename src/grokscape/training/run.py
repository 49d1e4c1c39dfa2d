"""The loop: train, measure, save, stop cleanly; into a run folder."""

import math
import platform
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grokscape.store import RunFolder, RunFolderError
from grokscape.training.allocation import keep_freed_memory
from grokscape.training.checkpoint import load_checkpoint, save_checkpoint
from grokscape.training.columns import column_table
from grokscape.training.engine import Engine
from grokscape.training.optimisers import bound_to_length
from grokscape.training.plan import Plan

_PAUSE_PER_SAVING = 20.0  # large states: at least so many times as long between two checkpoints as one takes


class Interrupted(Exception):
    """The run was asked to stop; everything so far is saved, and the message says how to go on."""


@dataclass(frozen=True)
class Progress:
    """How a run stands after a measurement of all replicas.

    Attributes:
        step, steps: training steps made, and in all.
        seconds: training time so far, earlier sittings included.
        rate: replica-steps a second in this sitting.
        arms: arm of each measured replica.
        values: column → value for each measured replica.
    """

    step: int
    steps: int
    seconds: float
    rate: float
    arms: tuple[str, ...]
    values: dict[str, list[float]]

    def medians(self) -> dict[str, dict[str, float]]:
        """Arm → column → median over the arm's replicas; NaN where no value is finite."""
        rows: dict[str, dict[str, list[float]]] = {arm: {name: [] for name in self.values} for arm in self.arms}
        for name, column in self.values.items():
            for arm, value in zip(self.arms, column, strict=True):
                if math.isfinite(value):
                    rows[arm][name].append(value)
        return {
            arm: {name: statistics.median(values) if values else math.nan for name, values in columns.items()}
            for arm, columns in rows.items()
        }


class _Recorder:
    """Rows of the trajectory that are not on disk yet."""

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._columns = column_table(plan.evaluation.measures)
        self._rows: dict[str, list[Any]] = {}

    def add(self, step: int, replicas: Sequence[int], values: dict[str, list[float]]) -> None:
        """Keep one measurement of some replicas; nothing where none of them is left."""
        if not replicas:
            return
        for index in replicas:
            replica = self._plan.replicas[index]
            keys = {"replica": index, "arm": replica.arm, "seed": replica.seed, "init_seed": replica.init_seed}
            for name, value in {**keys, "split_seed": replica.split_seed, "step": step}.items():
                self._rows.setdefault(name, []).append(value)
        for name, column in values.items():
            self._rows.setdefault(name, []).extend(column)

    def flush(self) -> None:
        """Write what has been kept since the last time."""
        if self._rows:
            self._folder.append(self._rows, self._columns)
            self._rows = {}


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT, SIGTERM or SIGHUP into a wish that a loop looks at; the second acts as usual."""
    wish = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wish.is_set
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup stays in force
        numbers.append(signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: object) -> None:
        """Wish to stop, and let the next signal act as usual."""
        wish.set()
        for each in numbers:
            signal.signal(each, before[each])

    for number in numbers:
        signal.signal(number, note)
    try:
        yield wish.is_set
    finally:
        for number in numbers:
            signal.signal(number, before[number])


class Run:
    """One run of a plan in a folder, from its start or its newest checkpoint.

    Args:
        plan: what to do.
        folder: where it is recorded.
        progress: called after each measurement of all replicas.
        about: extra entries for status.json.
        stop: asked between two steps whether to save and stop, besides signals.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        progress: Callable[[Progress], None] | None = None,
        about: dict[str, Any] | None = None,
        stop: Callable[[], bool] = bool,
    ) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self._about, self._stop = about or {}, stop
        self._engine = Engine(plan)
        self._recorder = _Recorder(folder, plan)
        self._first = self._saved_step = 0
        self._seconds_before = self._measuring = 0.0
        self._began = time.monotonic()
        self._next_save = self._began + plan.checkpoint_seconds

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def execute(self) -> None:
        """Run to the end.

        Raises:
            Interrupted: after SIGINT, SIGTERM or SIGHUP; a checkpoint was written.
            RunFolderError: another process is at work in the folder.
        """
        keep_freed_memory()
        with self._folder.claim(), torch.no_grad(), stop_requests() as signalled:
            saved = load_checkpoint(self._folder, self._engine.state)
            self._first = self._saved_step = saved["step"]
            self._seconds_before, self._measuring = saved.get("seconds", 0.0), saved.get("seconds_measuring", 0.0)
            self._began = time.monotonic()
            measured = bool(saved.get("measured"))
            if measured and self._ends(self._first):  # killed between its last checkpoint and its last status
                self._finished(self._first)
                return
            self._check_length(saved.get("steps", self._plan.steps))
            self._status("running", self._first)
            try:
                self._loop(lambda: signalled() or self._stop(), measured)
            except Interrupted:
                raise
            except KeyboardInterrupt:  # a second Ctrl-C, while the first one was being seen to
                self._status("interrupted", self._saved_step)
                raise
            except BaseException as error:
                self._status("failed", self._saved_step, error=f"{type(error).__name__}: {error}")
                raise

    def _ends(self, step: int, measured: bool = True) -> bool:
        return step == self._plan.steps or (self._plan.early_stop and measured and self._engine.settled)

    def _check_length(self, steps: int) -> None:
        """Refuse a run that has another number of steps than when it was saved, where it would not be the same run."""
        plan = self._plan
        bound = steps != plan.steps and any(bound_to_length(r.optimizer, r.interventions) for r in plan.replicas)
        if bound or plan.steps < self._first:
            reason = "a cosine ends with the run" if bound else f"{self._first} steps are made"
            raise RunFolderError(f"{self._folder.path} was to have {steps} steps, now {plan.steps}, but {reason}; "
                                 f'put "steps" in spec.json back')

    def _loop(self, stop: Callable[[], bool], measured: bool) -> None:
        """From the first step of this sitting, which may be measured already, to the end."""
        grid = set(self._plan.evaluation.grid(self._plan.steps))
        step = self._first
        while True:
            self._save_if_due(step, stop, measured)
            if not measured:
                before = time.monotonic()
                measured = self._measure_all(step) if step in grid else self._measure_moving(step)
                self._measuring += time.monotonic() - before
                if self._ends(step, measured):
                    break
            self._engine.step(step)
            step, measured = step + 1, False
        self._save(step, measured=True)
        self._finished(step)

    def _finished(self, step: int) -> None:
        self._status("finished", step, parts=len(self._folder.parts()))

    def _save(self, step: int, measured: bool) -> None:
        began = time.monotonic()
        self._recorder.flush()
        times = {"seconds": self._seconds, "seconds_measuring": self._measuring}
        save_checkpoint(self._folder, self._engine.state, step, measured=measured, **times)
        self._saved_step = step
        now = time.monotonic()
        self._next_save = now + max(self._plan.checkpoint_seconds, _PAUSE_PER_SAVING * (now - began))

    def _save_if_due(self, step: int, stop: Callable[[], bool], measured: bool) -> None:
        wanted = stop()
        if not wanted and time.monotonic() < self._next_save:
            return
        self._save(step, measured)
        self._status("interrupted" if wanted else "running", step)
        if wanted:
            raise Interrupted(
                f"stopped before step {step} of {self._plan.steps}; everything so far is in {self._folder.path}. "
                f"Go on with: {self._folder.command('resume')}"
            )

    def _measure_all(self, step: int) -> bool:
        values = self._engine.measure(step)
        alive = self._engine.state.alive.tolist()
        kept = [index for index, good in enumerate(alive) if good]
        if not step and not kept:
            raise ValueError(
                "expected a finite training loss before the first step, got NaN or infinity in every replica: "
                "look for inputs of extreme size, or make the model's initial weights smaller"
            )
        columns = _listed(values, kept)
        self._recorder.add(step, kept, columns)
        if self._progress is not None:
            made = (step - self._first) * len(alive)
            rate = made / max(time.monotonic() - self._began, 1e-9)
            arms = tuple(self._plan.replicas[index].arm for index in kept)
            self._progress(Progress(step, self._plan.steps, self._seconds, rate, arms, columns))
        return True

    def _measure_moving(self, step: int) -> bool:
        measured = False
        for rows, values in self._engine.measure_moving(step):
            alive = self._engine.state.alive.tolist()
            kept = [position for position, row in enumerate(rows) if alive[row]]
            self._recorder.add(step, [rows[position] for position in kept], _listed(values, kept))
            measured = True
        return measured

    def _status(self, state: str, step: int, **extra: Any) -> None:
        last_good = self._engine.state.last_good.tolist()
        alive = self._engine.state.alive.tolist()
        replicas = [
            {"replica": i, "arm": r.arm, "seed": r.seed, "diverged_at": None if alive[i] else last_good[i]}
            for i, r in enumerate(self._plan.replicas)
        ]
        network = self._plan.network
        self._folder.write_status(
            state=state,
            step=step,
            steps=self._plan.steps,
            seconds=round(self._seconds, 3),
            seconds_measuring=round(self._measuring, 3),
            device=str(self._plan.device),
            threads=torch.get_num_threads(),
            batched=network.batched,
            unbatched_because=network.reason,
            versions={"python": platform.python_version(), "torch": torch.__version__},
            **self._about,
            **extra,
            replicas=replicas,
        )


def _listed(values: dict[str, Tensor], rows: list[int]) -> dict[str, list[float]]:
    """Some rows of every column, fetched from the device in one go."""
    columns = torch.stack(list(values.values())).tolist()
    return {name: [column[row] for row in rows] for name, column in zip(values, columns, strict=True)}
