"""A study's record: what was planned and what happened, side by side. The rest of the analysis starts from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from grokscape.analysis.design import Arm, arms_of, describe
from grokscape.analysis.frames import Array, Flags, Panel, first
from grokscape.analysis.onsets import outcomes
from grokscape.rules import Rules
from grokscape.store import RunFolder

_OF_THEORY = ("collapse_radius", "collapse_scale", "mean_offset")


@dataclass(frozen=True)
class Record:
    """Plan and trajectories of one study.

    Attributes:
        name: of the study.
        spec: the plan as it was written.
        columns: description of each measured column.
        panel: the trajectories.
        rules: margins and thresholds.
        arms: baseline first.
        settled: levels worked out so far (see `manipulation.settled`).
    """

    name: str
    spec: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, Any]]
    panel: Panel
    rules: Rules
    arms: tuple[Arm, ...]
    settled: dict[str, Array] = field(default_factory=dict)
    _until: dict[float, pl.DataFrame] = field(default_factory=dict)
    _moments: dict[tuple[str, float | None], Array] = field(default_factory=dict)

    @classmethod
    def of(cls, frame: pl.DataFrame, spec: Mapping[str, Any] | None = None,
           columns: Mapping[str, Mapping[str, Any]] | None = None, status: Mapping[str, Any] | None = None) -> "Record":
        """The record of any trajectory; without a spec its arms are only compared, with default rules."""
        spec, panel = spec or {}, Panel.of(frame, status)
        known = {name: describe(name, columns or {}) for name in panel.frame.columns if "/" in name}
        present = list(dict.fromkeys(panel.replicas["arm"].to_list()))
        arms = tuple(arms_of(spec, known, present))
        return cls(str(spec.get("name") or "study"), spec, known, panel, Rules.of(spec), arms)

    @classmethod
    def read(cls, folder: RunFolder | str | Path) -> "Record":
        """The record that a run folder holds."""
        folder = folder if isinstance(folder, RunFolder) else RunFolder.open(folder)
        return cls.of(folder.trajectory(), folder.spec, folder.columns(), folder.status)

    @property
    def baseline(self) -> Arm:
        """The arm that the others are compared with; a record of nothing has none."""
        return self.arms[0]

    def arm(self, name: str) -> Arm:
        """An arm by name."""
        return next(arm for arm in self.arms if arm.name == name)

    @cached_property
    def results(self) -> pl.DataFrame:
        """What became of each replica (see `onsets.outcomes`)."""
        return outcomes(self.panel, self.rules)

    def results_before(self, step: float | None) -> pl.DataFrame:
        """What had become of each replica before a step, in the panel's order; the end of the study if None."""
        if step is None:
            return self.results
        if step not in self._until:
            frame = self.panel.frame.filter(pl.col("step") < step)
            last = self.panel.frame.group_by("replica").agg(pl.col("step").max())
            gone = self.panel.replicas.filter("diverged").join(last, on="replica", how="left").filter(
                (pl.col("step") < pl.lit(frame["step"].max())).fill_null(True)).with_columns(diverged_at=pl.lit(0))
            found = outcomes(Panel.of(frame, {"replicas": gone.to_dicts()}), self.rules).drop("arm", "seed")
            placed = self.panel.replicas.drop("diverged").join(found, on="replica", how="left", maintain_order="left")
            self._until[step] = placed.with_columns(pl.col(pl.Boolean).fill_null(False))
        return self._until[step]

    def measured(self) -> list[str]:
        """Columns of measures that hold a number, without losses, accuracies and what only the theory needs."""
        return [name for name, about in self.columns.items()
                if about["property"] != "fit" and about["measure"] not in _OF_THEORY
                and self.panel.frame[name].is_not_nan().fill_null(False).any()]

    def series(self, column: str, relative_to: str | int | None = None) -> Array:
        """Values of a column, (R, T), or multiples of each run's own value at a moment: NaN before it.

        Memorisation is here the first evaluation at its threshold, which is when training notices it.
        """
        if column not in self.panel:
            return np.full(self.panel.steps.shape, np.nan)
        values = self.panel[column]
        if relative_to is None:
            return values
        moment = self.moment("memorised_first") if relative_to == "memorisation" else np.full(len(values), relative_to)
        known = self.window(moment.astype(float)) & ~np.isnan(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(known, values, np.nan) / first(known, values)[:, None]
        return np.where(np.isfinite(ratio), ratio, np.nan)

    def title(self, column: str) -> str:
        """How people call a column's measure."""
        return describe(column, self.columns)["title"]

    def sign(self, column: str) -> float:
        """+1 if a lower value means more of the column's property, −1 if a higher one does."""
        return -1.0 if describe(column, self.columns)["direction"] == "higher" else 1.0

    def moment(self, name: str, before: float | None = None) -> Array:
        """A column of `results_before` as floats, (R,), NaN for null."""
        if (name, before) not in self._moments:
            values = self.results_before(before)[name]
            self._moments[name, before] = values.cast(pl.Float64).fill_null(np.nan).to_numpy()
        return self._moments[name, before]

    def window(self, start: Array, end: Array | float = np.nan) -> Flags:
        """Evaluations from `start` on and before `end`, (R, T); NaN as a start gives none, NaN as an end gives all."""
        steps, end = self.panel.steps, np.broadcast_to(end, start.shape)
        with np.errstate(invalid="ignore"):
            return (steps >= start[:, None]) & ~(steps >= end[:, None])
