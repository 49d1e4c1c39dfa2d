"""Experiment trackers as further places for the columns of a trajectory: TensorBoard, Weights & Biases, MLflow.

Each arm is one run of the tracker; each column is a curve, the median over the arm's replicas. What they show is a
view: the run folder stays the record.
"""

import hashlib
import importlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

import polars as pl

from grokscape.store import KEYS, RunFolder
from grokscape.training import Progress


class Sink(Protocol):
    """One arm's run of a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of one step."""

    def close(self) -> None:
        """Write out what is not written yet."""


MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir RUN/tensorboard`."""

    def __init__(self, study: str, folder: RunFolder, arm: str, first_step: int) -> None:
        module = importlib.import_module(MODULES["tensorboard"])
        place = folder.path / "tensorboard" / _file_name(arm)
        self._writer = module.SummaryWriter(str(place), purge_step=first_step or None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write out what is not written yet."""
        self._writer.close()


class WandB:
    """Runs of Weights & Biases, grouped by run folder; WANDB_MODE=offline keeps them in the run folder."""

    def __init__(self, study: str, folder: RunFolder, arm: str, first_step: int) -> None:
        wandb = importlib.import_module(MODULES["wandb"])
        path = folder.path.resolve()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "grokscape"),
            group=f"{study} {path.name}",
            name=arm,
            id=hashlib.sha256(f"{path}\n{arm}".encode()).hexdigest()[:16],
            dir=str(path),
            config=folder.spec,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(silent=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of one step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write out what is not written yet."""
        self._run.finish()


class MLflow:
    """MLflow runs in the experiment of the study's name, where MLFLOW_TRACKING_URI says, or else in RUN/mlruns."""

    def __init__(self, study: str, folder: RunFolder, arm: str, first_step: int) -> None:
        mlflow = importlib.import_module(MODULES["mlflow"])
        self._metric = mlflow.entities.Metric
        path = folder.path.resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            uri = (path / "mlruns").as_uri()
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases refuse plain files otherwise
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(study)
        experiment = known.experiment_id if known else self._client.create_experiment(study)
        tags = {"mlflow.runName": arm, "grokscape.folder": str(path), "grokscape.arm": arm}
        mine = [
            run
            for run in self._client.search_runs([experiment])
            if all(run.data.tags.get(name) == value for name, value in tags.items())
        ]
        self._run = mine[0].info.run_id if mine else self._client.create_run(experiment, tags=tags).info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record values of one step."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[str, RunFolder, str, int], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def _file_name(arm: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in arm).strip(". ") or "arm"


class Trackers:
    """Any number of trackers, told of each measurement; use as a context manager and as a progress callback.

    Args:
        names: of `TRACKERS`.
        study: the study's name.
        folder: the run folder.

    Raises:
        ValueError: a tracker is unknown or not installed.
    """

    def __init__(self, names: Sequence[str], study: str, folder: RunFolder) -> None:
        names = self.check(names)
        self._names, self._study, self._folder = list(dict.fromkeys(names)), study, folder
        self._sinks: dict[tuple[str, str], Sink] = {}

    @staticmethod
    def check(names: Sequence[str]) -> Sequence[str]:
        """The names, or the one; a ValueError if one of them is not that of an installed tracker."""
        names = [names] if isinstance(names, str) else names
        for name in names:
            if name not in TRACKERS:
                raise ValueError(f"expected trackers among {', '.join(TRACKERS)}, got {name!r}")
            try:
                importlib.import_module(MODULES[name])
            except ImportError as error:
                raise ValueError(f"{name} is not installed ({error}): pip install 'grokscape[trackers]'") from None
        return names

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for (name, _), sink in self._sinks.items():
            if name in self._names:
                with self._containing(name):
                    sink.close()

    def __call__(self, measured: Progress) -> None:
        """Record the medians of a measurement."""
        if self._names:
            for arm, values in measured.medians().items():
                self._log(arm, measured.step, values)

    def replay(self) -> None:
        """Record the medians of the run folder's trajectory, at steps where most of an arm's replicas were measured."""
        frame = self._folder.trajectory()
        if not self._names or frame.is_empty():
            return
        columns = [name for name in frame.columns if name not in KEYS]
        median = [pl.col(name).filter(pl.col(name).is_finite()).median() for name in columns]
        replicas = frame.group_by("arm").agg(pl.col("replica").n_unique().alias("replicas"))
        rows = frame.group_by("arm", "step").agg(pl.len().alias("measured"), *median).join(replicas, on="arm")
        rows = rows.filter(pl.col("measured") * 2 > pl.col("replicas")).sort("arm", "step")
        for row in rows.iter_rows(named=True):
            values = {name: math.nan if row[name] is None else row[name] for name in columns}
            self._log(row["arm"], row["step"], values)

    def _log(self, arm: str, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name in list(self._names):
            with self._containing(name):
                if (name, arm) not in self._sinks:
                    self._sinks[name, arm] = TRACKERS[name](self._study, self._folder, arm, step)
                self._sinks[name, arm].log(step, finite)

    @contextmanager
    def _containing(self, name: str) -> Iterator[None]:
        """What goes wrong in a tracker costs the tracker, not the run."""
        try:
            yield
        except Exception as error:
            self._names.remove(name)
            warnings.warn(f"{name} failed and is left out from here on: {error}", stacklevel=2)
