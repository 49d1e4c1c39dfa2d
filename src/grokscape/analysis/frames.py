"""Trajectories as arrays: any training log with a step, a train and a test accuracy becomes a `Panel`.

Needed columns: `step`, `train/accuracy`, `test/accuracy`. Taken if present: `arm` (else every row belongs to
"baseline"), `seed` (else the place of the replica within its arm, or 0), `replica` (else one per arm and seed), and any
number of measures named `split/measure`. Rows in any order; a repeated evaluation counts once, the later row wins;
missing values and NaN mean "not measured", but for a train loss or train accuracy that ends in NaN or infinity: that
run has diverged.

Shapes: R replicas, T evaluations of the longest replica.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from grokscape.store import KEYS

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

TRAIN_ACCURACY = "train/accuracy"
TEST_ACCURACY = "test/accuracy"
TRAIN_LOSS = "train/loss"
NEEDED = ("step", TRAIN_ACCURACY, TEST_ACCURACY)


class FrameError(ValueError):
    """A frame that cannot be analysed; the message says which column is missing or wrong."""


def tidy(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame with `replica`, `arm`, `seed` and `step` filled in, measures as floats, sorted, each evaluation once.

    Raises:
        FrameError: a needed column is missing, a measure is not numeric, or an arm has a seed twice.
    """
    if frame.is_empty():
        return pl.DataFrame(schema={"replica": pl.Int64, "arm": pl.String, "seed": pl.Int64, "step": pl.Int64,
                                    TRAIN_ACCURACY: pl.Float64, TEST_ACCURACY: pl.Float64})
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise FrameError(f"the frame needs the columns {', '.join(NEEDED)}; it lacks {', '.join(missing)} "
                         f"and has {', '.join(frame.columns[:12])}. Rename yours with `frame.rename({{…}})`")
    if "arm" not in frame.columns:
        frame = frame.with_columns(arm=pl.lit("baseline"))
    if "seed" not in frame.columns:
        place = pl.col("replica").rank("dense").over("arm").cast(pl.Int64) - 1 if "replica" in frame.columns else 0
        frame = frame.with_columns(seed=place)
    if "replica" not in frame.columns:
        runs = frame.select("arm", "seed").unique(maintain_order=True).with_row_index("replica")
        frame = frame.join(runs, on=["arm", "seed"], how="left", nulls_equal=True, maintain_order="left")
    measures = [name for name in frame.columns if name not in KEYS]
    strange = [name for name in measures if "/" in name and not (frame[name].dtype.is_numeric()
                                                                or frame[name].dtype in (pl.Null, pl.Boolean))]
    if strange:
        raise FrameError(f"measures must be numbers; {', '.join(strange)} hold {frame[strange[0]].dtype}. "
                         f"Cast them, or drop them from the frame")
    numeric = [name for name in measures if "/" in name]
    frame = frame.with_columns(pl.col("arm").cast(pl.String), *(pl.col(name).cast(pl.Float64) for name in numeric))
    runs = frame.group_by("arm", "seed", maintain_order=True).agg(n=pl.col("replica").n_unique())
    for arm, seed, n in runs.filter(pl.col("n") > 1).iter_rows():
        raise FrameError(f"an arm has one run of each seed, for seeds are what is paired and counted; arm {arm!r} has "
                         f"{n} replicas of seed {seed}. Number them in the column `seed`, or leave that column out")
    frame = frame.unique(["replica", "step"], keep="last", maintain_order=True)
    return frame.sort("replica", "step")


@dataclass(frozen=True)
class Panel:
    """All replicas of a study, evaluation by evaluation.

    Attributes:
        frame: the tidy frame.
        replicas: one row per replica: `replica`, `arm`, `seed`, `diverged` (bool); row r is array row r.
        steps: (R, T) step of each evaluation, NaN beyond a replica's last.
    """

    frame: pl.DataFrame
    replicas: pl.DataFrame
    steps: Array
    _place: tuple[NDArray[np.int64], NDArray[np.int64]]
    _cache: dict[str, Array] = field(default_factory=dict)

    @classmethod
    def of(cls, frame: pl.DataFrame, status: Mapping[str, Any] | None = None) -> "Panel":
        """Arrange a frame; `status` (see the run folder) names replicas that diverged, even before their first row."""
        frame = tidy(frame)
        listed = (status or {}).get("replicas") or []
        replicas = _replicas(frame, listed)
        index = {replica: row for row, replica in enumerate(replicas["replica"])}
        row = np.array([index[replica] for replica in frame["replica"]], dtype=np.int64)
        starts = np.flatnonzero(np.r_[True, row[1:] != row[:-1]]) if len(row) else np.array([], dtype=np.int64)
        lengths = np.diff(np.r_[starts, len(row)])
        column = np.arange(len(row)) - np.repeat(starts, lengths)
        steps = np.full((len(replicas), int(lengths.max(initial=0))), np.nan)
        steps[row, column] = frame["step"].to_numpy()
        return cls(frame, replicas, steps, (row, column))

    def __contains__(self, column: str) -> bool:
        return column in self.frame.columns

    def __getitem__(self, column: str) -> Array:
        """Values of a column, (R, T), NaN where nothing was measured."""
        if column not in self._cache:
            values = np.full(self.steps.shape, np.nan)
            values[self._place] = self.frame[column].cast(pl.Float64).fill_null(np.nan).to_numpy()
            values[~np.isfinite(values)] = np.nan
            self._cache[column] = values
        return self._cache[column]

    @cached_property
    def arms(self) -> NDArray[np.str_]:
        """Arm of each replica, (R,)."""
        return np.array(self.replicas["arm"].to_list(), dtype=str)

    @cached_property
    def seeds(self) -> NDArray[np.int64]:
        """Seed of each replica, (R,); replicas of one seed share initialisation and split."""
        return self.replicas["seed"].to_numpy().astype(np.int64)

    @cached_property
    def diverged(self) -> NDArray[np.bool_]:
        """Whether training broke down, (R,)."""
        return self.replicas["diverged"].to_numpy().astype(bool)

    @cached_property
    def horizon(self) -> float:
        """The last step that any replica reached; NaN if nothing was measured."""
        return float(np.nanmax(self.steps)) if np.isfinite(self.steps).any() else float("nan")

    def rows(self, arm: str) -> NDArray[np.int64]:
        """Rows of an arm, by seed."""
        rows = np.flatnonzero(self.arms == arm)
        return rows[np.argsort(self.seeds[rows], kind="stable")]

    def paired(self, *arms: str) -> NDArray[np.int64]:
        """Rows (A, n) of A arms, of the n seeds that they all have, by seed."""
        rows = [{int(self.seeds[row]): row for row in self.rows(arm)} for arm in arms]
        shared = sorted(set.intersection(*map(set, rows)))
        return np.array([[row[seed] for seed in shared] for row in rows], dtype=np.int64)


def _replicas(frame: pl.DataFrame, listed: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per replica of the frame or the status, with whether it diverged."""
    marks = [name for name in (TRAIN_LOSS, TRAIN_ACCURACY) if name in frame.columns]
    broken = pl.any_horizontal(~pl.col(name).fill_null(0.0).last().is_finite() for name in marks)
    seen = frame.group_by("replica", maintain_order=True).agg(
        pl.col("arm").first(), pl.col("seed").first().cast(pl.Int64), diverged=broken)
    known = {item["replica"]: item for item in listed if "replica" in item}
    gone = {replica for replica, item in known.items() if item.get("diverged_at") is not None}
    seen = seen.with_columns(pl.col("diverged") | pl.col("replica").is_in(list(gone)), pl.col("replica").cast(pl.Int64))
    absent = [item for replica, item in known.items() if replica in gone and replica not in set(seen["replica"])]
    if absent:
        extra = pl.DataFrame({"replica": [int(item["replica"]) for item in absent],
                              "arm": [str(item.get("arm", "baseline")) for item in absent],
                              "seed": [int(item.get("seed", 0)) for item in absent],
                              "diverged": [True] * len(absent)})
        seen = pl.concat([seen, extra])
    return seen.sort("replica")


def first(met: Flags, values: Array) -> Array:
    """Value at the first place of each row of (R, T) where a condition is met, NaN where it never is."""
    if not met.shape[1]:
        return np.full(len(met), np.nan)
    place = met.argmax(axis=1)
    return np.where(met.any(axis=1), values[np.arange(len(met)), place], np.nan)


def latest(values: Array, count: int) -> Array:
    """The last `count` measured values of each row of (R, T), NaN elsewhere."""
    measured = ~np.isnan(values)
    return np.where(measured[:, ::-1].cumsum(axis=1)[:, ::-1] <= count, values, np.nan)


def compress(values: Array, steps: Array) -> tuple[Array, Array]:
    """Move what was not measured to the end of each row, so that neighbours are consecutive evaluations."""
    order = np.argsort(np.isnan(values), axis=1, kind="stable")
    values = np.take_along_axis(values, order, axis=1)
    return values, np.where(np.isnan(values), np.nan, np.take_along_axis(steps, order, axis=1))
