"""A run folder as the report sees it: arms with their colours, the columns and what they mean, the findings by kind."""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from grokscape.report.arms import Arm, arms_of
from grokscape.report.plate import Missing
from grokscape.store import RunFolder
from grokscape.symbols import SPLITS, SYMBOLS


@dataclass(frozen=True)
class Run:
    """Everything of a run folder that a report can show, read once.

    Attributes:
        path: the folder.
        spec: the study as it was asked for.
        status: how far it got.
        frame: the trajectory.
        columns: what each measured column is.
        findings: what the analysis found.
        shared: arms that are drawn alike in several runs; empty for a run that stands alone.
    """

    path: Path
    spec: dict[str, Any]
    status: dict[str, Any]
    frame: pl.DataFrame
    columns: dict[str, dict[str, Any]]
    findings: list[dict[str, Any]]
    shared: tuple[Arm, ...] = ()

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.spec.get("name") or self.path.name)

    @property
    def title(self) -> str:
        """The study's title, or its name."""
        return str(self.spec.get("title") or self.name)

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Arms in the order of legends and tables: baseline, flatness, collapse, others, controls."""
        present = self.frame["arm"].unique(maintain_order=True).to_list() if "arm" in self.frame.columns else []
        measures = {name.rpartition("/")[2] for name in self.columns}
        properties = {measure: self.measure_property(measure) for measure in measures}
        titles = {measure: self.measure_short(measure) for measure in measures}
        own = arms_of(self.spec, map(str, present), properties, titles)
        names = {arm.name for arm in own}
        return tuple(arm for arm in self.shared if arm.name in names) if self.shared else own

    @cached_property
    def arm_by_name(self) -> dict[str, Arm]:
        """Arms by name."""
        return {arm.name: arm for arm in self.arms}

    @property
    def baseline(self) -> str:
        """Name of the baseline, or of the first arm where there is none."""
        return next((arm.name for arm in self.arms if arm.role == "baseline"), self.arms[0].name if self.arms else "")

    @cached_property
    def last_step(self) -> int:
        """The last measured step; 0 before anything was measured."""
        return int(self.frame.select(pl.max("step")).item()) if self.frame.height else 0

    @property
    def train_longer(self) -> str:
        """How to give the run more steps, the beginning of a sentence."""
        steps = self.spec.get("steps") or self.last_step
        return f"Train for longer ({RunFolder(self.path).command('resume')} --steps {2 * steps})"

    @property
    def unfinished(self) -> str | None:
        """One sentence that says how far an unfinished run got; None for a finished one."""
        state = str(self.status.get("state", "unknown"))
        if state == "finished":
            return None
        goal = self.status.get("steps") or self.spec.get("steps")
        reached = self.status.get("step", self.last_step)
        how = {
            "running": "is still running",
            "interrupted": "was interrupted",
            "failed": "failed",
        }.get(state, "has not recorded that it finished")
        extent = f"step {reached} of {goal}" if goal else f"step {reached}"
        return f"This run {how}: it reached {extent}. Everything below describes that part alone and may change."

    def missing(self, key: str, title: str, reason: str, remedy: str) -> Missing:
        """A figure of findings that cannot be drawn: for the given reason, or because there are no findings at all."""
        if not self.findings:
            remedy = f"Run `grokscape analyze {self.path.name}`, then write the report again."
            return Missing(key, title, "The run has not been analysed.", remedy)
        return Missing(key, title, reason, remedy)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The findings of one kind, in their order."""
        return [finding for finding in self.findings if finding["kind"] == kind]

    def title_of(self, arm: object) -> str:
        """What people read for an arm's name."""
        known = self.arm_by_name.get(str(arm))
        return known.title if known else str(arm)

    def measures(self) -> dict[str, list[str]]:
        """Measure → the splits it was taken on, in the order of the columns."""
        found: dict[str, list[str]] = {}
        for column in self.frame.columns:
            split, _, measure = column.partition("/")
            if measure and self.frame[column].dtype.is_numeric():
                found.setdefault(measure, []).append(split)
        return found

    def measure_title(self, measure: str) -> str:
        """A measure's title from the columns' metadata, or its name in words."""
        return self._about(measure, "title") or measure.replace("_", " ")

    def measure_short(self, measure: str) -> str:
        """A measure's symbol where it has a usual one, for headings of columns; else its title."""
        return SYMBOLS.get(measure) or self.measure_title(measure)

    def readable(self, text: str) -> str:
        """A text of the analysis with measures called by their symbols instead of their columns."""
        return re.sub(r"\b[a-z]+[a-z0-9]*(?:_[a-z0-9]+)*\b", lambda word: SYMBOLS.get(word[0], word[0]), text)

    def measure_property(self, measure: str) -> str:
        """The family of properties a measure belongs to, "" if unknown."""
        return self._about(measure, "property")

    def _about(self, measure: str, what: str) -> str:
        """The first entry about a measure on any split in the columns' metadata, "" if none has it."""
        return str(next(filter(None, (self.columns.get(f"{split}/{measure}", {}).get(what) for split in SPLITS)), ""))


def read_run(folder: RunFolder | str | Path) -> Run:
    """Read a run folder for the report.

    Raises:
        RunFolderError: there is no run folder, or one of its files is damaged.
    """
    if not isinstance(folder, RunFolder):
        folder = RunFolder.open(folder)
    return Run(folder.path, folder.spec, folder.status, folder.trajectory(), folder.columns(), folder.findings)
