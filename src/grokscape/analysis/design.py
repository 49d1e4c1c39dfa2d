"""What a study set out to do: its arms, and what each one's interventions aim at.

Read from `spec.json`, every field with a default, so that a missing one is fine:

    arms:    [{"name", "title", "role": "baseline" | "manipulation" | "control",
               "control": "matched-level" | "random-labels" | "rescaling" | "no-delay" | "no-grokking",
               "interventions": [{"kind", "measure", "at_least", "at_most", "strength", "start", "until",
                                  "relative_to"}],
               "testbed": {…}, "optimizer": {…}, "model": {…}}]      the last three override the study's for one arm
    testbed: {"kind", …, "num_classes": K (or "p" for modular tasks)}
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Goal = Literal["block", "promote", "other"]

# Property and direction of well-known measures, for logs that carry no description of their columns.
_KNOWN: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("relative_flatness", "relative_flatness_bound", "relative_flatness_geometric"),
                    ("flatness", "lower")),
    **dict.fromkeys(("cdnv", "cdnv_sum", "nc1", "nc1_ratio", "rnc1", "rnc1_max"), ("collapse", "lower")),
    **dict.fromkeys(("nc2_equinorm", "nc2_equiangular", "nc2_etf", "nc3", "nc4"), ("collapse", "lower")),
    "ildr": ("collapse", "higher"), "loss": ("fit", "lower"), "accuracy": ("fit", "higher"),
    "weight_norm": ("norm", "lower"), "head_norm": ("norm", "lower"), "margin": ("margin", "higher"),
}


@dataclass(frozen=True)
class Aim:
    """What one intervention does to one column.

    Attributes:
        column: the trajectory's column.
        measure: its measure.
        property: its property, such as "flatness".
        goal: "block" (keep the property from arising), "promote" (bring it about) or "other".
        sign: +1 if it pushes the measure up, −1 if down, 0 if neither.
        at_least: level below which the measure must not fall, if any.
        at_most: level above which it must not rise, if any.
        start: first step at which it acts.
        until: step from which it no longer acts, if any.
        relative_to: moment at which each run's own value is the unit of the level, "memorisation" or a step, if any.
    """

    column: str
    measure: str
    property: str
    goal: Goal
    sign: int
    at_least: float | None = None
    at_most: float | None = None
    start: float = 0.0
    until: float | None = None
    relative_to: str | int | None = None

    def has_level(self) -> bool:
        """Whether it holds the measure at a level, and does not only push it."""
        return self.at_least is not None or self.at_most is not None

    def met(self, values: NDArray[np.float64], tolerance: float = 0.0) -> NDArray[np.bool_]:
        """Whether values meet its levels, or miss them by a share of `tolerance` at most; NaN meets none."""
        low = -inf if self.at_least is None else self.at_least - tolerance * abs(self.at_least)
        high = inf if self.at_most is None else self.at_most + tolerance * abs(self.at_most)
        with np.errstate(invalid="ignore"):
            return (values >= low) & (values <= high)


@dataclass(frozen=True)
class Arm:
    """One arm of a study.

    Attributes:
        name: key in the trajectory.
        title: for people.
        role: "baseline", "manipulation" or "control".
        control: kind of control, or "".
        aims: what its interventions do.
        hand: what takes hold of training: the penalised measures, caps and overridden settings, joined by " + ".
    """

    name: str
    title: str
    role: str
    control: str
    aims: tuple[Aim, ...]
    hand: str

    @property
    def until(self) -> float | None:
        """First step at which none of its measured interventions acts any more, if there is one."""
        ends = [aim.until for aim in self.aims]
        return max(end for end in ends if end is not None) if ends and None not in ends else None

    @property
    def properties(self) -> set[str]:
        """What it was made to block or promote."""
        return {aim.property for aim in self.aims if aim.goal != "other"}

    def is_to(self, goal: Goal, property_name: str) -> bool:
        """Whether it was made to block or promote a property, by whichever of its measures."""
        return any(aim.goal == goal and aim.property == property_name for aim in self.aims)

    def blocks(self, column: str) -> bool:
        """Whether it was made to keep a property from arising in this very column."""
        return any(aim.goal == "block" and aim.column == column for aim in self.aims)

    def apart_from(self, other: "Arm") -> bool:
        """Whether the two hands have no part in common: what they share may do what both do."""
        return not set(self.hand.split(" + ")) & set(other.hand.split(" + "))


def describe(column: str, columns: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Measure, split, property, direction and title of a column, from the trajectory or from well-known names."""
    split, _, name = column.rpartition("/")
    known = _KNOWN.get(name.partition("@")[0], ("other", "neither"))
    found = {key: value for key, value in columns.get(column, {}).items() if value is not None}
    return {"measure": name, "split": split, "property": known[0], "direction": known[1], "title": name} | found


def column_of(measure: str, columns: Mapping[str, Any]) -> str:
    """The column that a measure's name means: itself, or on the training split, or of the parameters, or elsewhere."""
    places = [measure, *(f"{split}/{measure}" for split in ("train", "params", "test", "cross"))]
    return next((place for place in places if place in columns), f"train/{measure}")


def arms_of(spec: Mapping[str, Any], columns: Mapping[str, Mapping[str, Any]], present: list[str]) -> list[Arm]:
    """The study's arms in its order, then arms that only the trajectory knows; the first is the baseline.

    A log without a spec has its arm called "baseline", or else its first arm, as the baseline.
    """
    listed = {str(item["name"]): item for item in spec.get("arms") or []}
    items = [*listed.values(), *({"name": name} for name in present if name not in listed)]
    arms = [_arm(item, columns) for item in items]
    names = [arm.name for arm in arms]
    marked = [arm.name for arm in arms if arm.role == "baseline"]
    first = marked[0] if marked else "baseline" if "baseline" in names else names[0] if names else ""
    rest = [arm for arm in arms if arm.name != first]
    chosen = [replace(arm, role="baseline", control="") for arm in arms if arm.name == first]
    return chosen + rest


def _arm(item: Mapping[str, Any], columns: Mapping[str, Mapping[str, Any]]) -> Arm:
    interventions = item.get("interventions") or []
    aims = tuple(_aim(one, interventions, columns) for one in interventions if one.get("measure"))
    overrides = [f"{place}.{key}" for place in ("testbed", "optimizer", "model") for key in (item.get(place) or {})]
    kinds = (one.get("measure") or one["kind"] for one in interventions if one["kind"] != "unplug")
    control = str(item.get("control") or "")
    if not control and (item.get("testbed") or {}).get("random_labels"):
        control = "random-labels"
    role = str(item.get("role") or "manipulation")
    return Arm(str(item["name"]), str(item.get("title") or item["name"]), role, control if role == "control" else "",
               aims, " + ".join(sorted({*kinds, *overrides})))


def _aim(one: Mapping[str, Any], siblings: list[Mapping[str, Any]], columns: Mapping[str, Mapping[str, Any]]) -> Aim:
    column = column_of(str(one["measure"]), columns)
    about = describe(column, columns)
    at_least, at_most = one.get("at_least"), one.get("at_most")
    toward = {"lower": -1, "higher": 1}.get(about["direction"], 0)
    if one["kind"] in ("suppress", "promote"):
        sign = toward if one["kind"] == "promote" else -toward
    else:
        sign = 0 if (at_least is None) == (at_most is None) else 1 if at_least is not None else -1
    goal: Goal = "other" if sign * toward == 0 else "promote" if sign == toward else "block"
    ends = [end for end in (one.get("until"), *(other.get("step") for other in siblings if other["kind"] == "unplug"))
            if end is not None]
    return Aim(column, about["measure"], about["property"], goal, sign, at_least, at_most, float(one.get("start") or 0),
               float(min(ends)) if ends else None, one.get("relative_to"))
