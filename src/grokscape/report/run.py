"""A run folder as the report sees it: arms with their colours, the columns and what they mean, the findings by kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from grokscape.report.palette import FAMILY_TITLES, Colour, Dash, Family, arm_style
from grokscape.store import KEYS, RunFolder, RunFolderError

_FAMILY_OF_PROPERTY: dict[str, Family] = {"flatness": "flatness", "curvature": "flatness", "collapse": "collapse"}


@dataclass(frozen=True)
class Arm:
    """An arm of the study and how it is drawn everywhere.

    Attributes:
        name: its value in the column `arm`.
        title: what people read.
        role: "baseline", "manipulation" or "control".
        family: which property it moves, or "control".
        colour: its colour in every figure.
        dash: its dash in every figure.
        intervention: what was done, in words; empty for nothing.
    """

    name: str
    title: str
    role: str
    family: Family
    colour: Colour
    dash: Dash
    intervention: str = ""


@dataclass(frozen=True)
class Run:
    """Everything of a run folder that a report can show, read once."""

    path: Path
    spec: dict[str, Any]
    status: dict[str, Any]
    frame: pl.DataFrame
    columns: dict[str, dict[str, Any]]
    findings: list[dict[str, Any]]

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
        listed = {str(arm.get("name")): arm for arm in self.spec.get("arms", []) if isinstance(arm, Mapping)}
        present = self.frame["arm"].unique(maintain_order=True).to_list() if "arm" in self.frame.columns else []
        for name in present:
            listed.setdefault(str(name), {"name": name})
        families = {name: self._family(name, arm) for name, arm in listed.items()}
        arms = []
        for family in FAMILY_TITLES:
            members = [name for name in listed if families[name] == family]
            arms += [self._arm(name, listed[name], family, rank) for rank, name in enumerate(members)]
        return tuple(arms)

    @cached_property
    def arm_by_name(self) -> dict[str, Arm]:
        """Arms by name."""
        return {arm.name: arm for arm in self.arms}

    @cached_property
    def last_step(self) -> int:
        """The last measured step; 0 before anything was measured."""
        return int(self.frame["step"].max()) if self.frame.height else 0  # pyright: ignore[reportArgumentType]

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

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The findings of one kind, in their order."""
        return [finding for finding in self.findings if finding.get("kind") == kind]

    def title_of(self, arm: object) -> str:
        """What people read for an arm's name."""
        known = self.arm_by_name.get(str(arm))
        return known.title if known else str(arm)

    def measures(self) -> dict[str, list[str]]:
        """Measure → the splits it was taken on, in the order of the columns."""
        found: dict[str, list[str]] = {}
        for column in self.frame.columns:
            split, _, measure = column.partition("/")
            if measure and column not in KEYS and self.frame[column].dtype.is_numeric():
                found.setdefault(measure, []).append(split)
        return found

    def measure_title(self, measure: str) -> str:
        """A measure's title from the columns' metadata, or its name in words."""
        for split in ("train", "test", "cross", "params"):
            title = self.columns.get(f"{split}/{measure}", {}).get("title")
            if title:
                return str(title)
        return measure.replace("_", " ")

    def measure_property(self, measure: str) -> str:
        """The family of properties a measure belongs to, "" if unknown."""
        for split in ("train", "test", "cross", "params"):
            if property_ := self.columns.get(f"{split}/{measure}", {}).get("property"):
                return str(property_)
        return ""

    def _family(self, name: str, arm: Mapping[str, Any]) -> Family:
        role = arm.get("role")
        if role == "control":
            return "control"
        interventions = [i for i in arm.get("interventions") or [] if isinstance(i, Mapping)]
        if role == "baseline" or (role is None and not interventions and name == "baseline"):
            return "baseline"
        for intervention in interventions:
            measure = str(intervention.get("measure", "")).rpartition("/")[2]
            family = _FAMILY_OF_PROPERTY.get(self.measure_property(measure))
            if family:
                return family
        return "other"

    @staticmethod
    def _arm(name: str, arm: Mapping[str, Any], family: Family, rank: int) -> Arm:
        colour, dash = arm_style(family, rank)
        words = "; ".join(_in_words(i) for i in arm.get("interventions") or [] if isinstance(i, Mapping))
        return Arm(name, str(arm.get("title") or name), str(arm.get("role") or ""), family, colour, dash, words)


def _in_words(intervention: Mapping[str, Any]) -> str:
    """An intervention as it stands in the spec, kind and measure first, unset fields left out."""
    kind, measure = intervention.get("kind", ""), intervention.get("measure", "")
    rest = [
        f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}"
        for k, v in intervention.items()
        if k not in ("kind", "measure") and v not in (None, "", [], {})
    ]
    return " ".join(part for part in (str(kind), str(measure), ", ".join(rest)) if part).replace("_", " ")


def read_run(folder: RunFolder | str | Path) -> Run:
    """Read a run folder for the report.

    Raises:
        RunFolderError: there is no run folder, or one of its files is damaged.
    """
    if not isinstance(folder, RunFolder):
        folder = RunFolder.open(folder)
    spec = folder.spec
    if not isinstance(spec, dict):
        raise RunFolderError(f"{folder.path / 'spec.json'} should hold an object, but holds {type(spec).__name__}")
    return Run(folder.path, spec, folder.status, folder.trajectory(), folder.columns(), folder.findings)
