"""The loop: train, measure, save, stop cleanly; into a run folder."""

import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grokscape.store import RunFolder
from grokscape.training.checkpoint import load_checkpoint, save_checkpoint
from grokscape.training.columns import column_table
from grokscape.training.engine import Engine
from grokscape.training.plan import Plan


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


class _Recorder:
    """Rows of the trajectory that are not on disk yet."""

    def __init__(self, folder: RunFolder, plan: Plan) -> None:
        self._folder, self._plan = folder, plan
        self._columns = column_table(plan.evaluation.measures)
        self._rows: dict[str, list[Any]] = {}

    def add(self, step: int, replicas: Sequence[int], values: dict[str, list[float]]) -> None:
        for index in replicas:
            replica = self._plan.replicas[index]
            keys = {"replica": index, "arm": replica.arm, "seed": replica.seed, "init_seed": replica.init_seed}
            for name, value in {**keys, "split_seed": replica.split_seed, "step": step}.items():
                self._rows.setdefault(name, []).append(value)
        for name, column in values.items():
            self._rows.setdefault(name, []).extend(column)

    def flush(self) -> None:
        if self._rows:
            self._folder.append(self._rows, self._columns)
            self._rows = {}


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGINT or SIGTERM into a wish that the loop looks at; the second acts as usual."""
    wish = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wish.is_set
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: object) -> None:
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
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        progress: Callable[[Progress], None] | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        self._plan, self._folder, self._progress = plan, folder, progress
        self._about = about or {}
        self._engine = Engine(plan)
        saved = load_checkpoint(folder, self._engine.state)
        self._first, self._seconds_before = saved["step"], saved["seconds"]
        self._recorder = _Recorder(folder, plan)
        self._began = self._saved = time.monotonic()
        self._measuring = 0.0

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def execute(self) -> None:
        """Run to the end.

        Raises:
            Interrupted: after SIGINT or SIGTERM; a checkpoint was written.
        """
        self._status("running", self._first)
        try:
            with _stop_requests() as stop, torch.no_grad():
                self._loop(stop)
        except Interrupted:
            raise
        except BaseException as error:
            self._status("failed", self._first, error=f"{type(error).__name__}: {error}")
            raise

    def _loop(self, stop: Callable[[], bool]) -> None:
        plan, engine = self._plan, self._engine
        grid = set(plan.evaluation.grid(plan.steps))
        step = self._first
        while True:
            self._save_if_due(step, stop)
            before = time.monotonic()
            if step in grid:
                self._measure_all(step)
            else:
                for row in engine.rows_to_refine(step):
                    self._measure_one(step, row)
            self._measuring += time.monotonic() - before
            if step == plan.steps or (plan.early_stop and engine.settled):
                break
            engine.step(step)
            step += 1
        self._recorder.flush()
        save_checkpoint(self._folder, engine.state, step, self._seconds)
        self._status("finished", step)

    def _save_if_due(self, step: int, stop: Callable[[], bool]) -> None:
        wanted = stop()
        if not wanted and time.monotonic() - self._saved < self._plan.checkpoint_seconds:
            return
        self._recorder.flush()
        save_checkpoint(self._folder, self._engine.state, step, self._seconds)
        self._saved = time.monotonic()
        self._status("interrupted" if wanted else "running", step)
        if wanted:
            raise Interrupted(
                f"stopped before step {step} of {self._plan.steps}; everything so far is in {self._folder.path}. "
                f"Go on with: grokscape resume {self._folder.path}"
            )

    def _measure_all(self, step: int) -> None:
        values = self._engine.measure(step)
        alive = self._engine.state.alive.tolist()
        kept = [index for index, good in enumerate(alive) if good]
        columns = {name: _listed(column, kept) for name, column in values.items()}
        self._recorder.add(step, kept, columns)
        if self._progress is not None:
            made = (step - self._first) * len(alive)
            rate = made / max(time.monotonic() - self._began, 1e-9)
            arms = tuple(self._plan.replicas[index].arm for index in kept)
            self._progress(Progress(step, self._plan.steps, self._seconds, rate, arms, columns))

    def _measure_one(self, step: int, row: int) -> None:
        values = self._engine.measure(step, row)
        self._recorder.add(step, [row], {name: _listed(column, [0]) for name, column in values.items()})

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
            batched=getattr(network, "batched", True),
            unbatched_because=getattr(network, "reason", None),
            versions={"python": platform.python_version(), "torch": torch.__version__},
            **self._about,
            **extra,
            replicas=replicas,
        )


def _listed(column: Tensor, rows: list[int]) -> list[float]:
    values = column.double().tolist()
    return [values[row] for row in rows]
