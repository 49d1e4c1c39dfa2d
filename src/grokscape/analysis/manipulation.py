"""Did the manipulation do its work, and did memorisation survive it? Without that an arm says nothing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grokscape.analysis.design import Aim, Arm
from grokscape.analysis.estimation import estimate, geometric_median
from grokscape.analysis.finding import Finding
from grokscape.analysis.frames import Array, Flags, first, latest
from grokscape.analysis.record import Record
from grokscape.plural import counted, only, rounded

RULE = (
    "Held: in at least {held:.0%} of the seeds that memorised the goal is met, within {tolerance:.0%} of its level, at "
    "{held:.0%} of the evaluations from memorisation to the end of the intervention; an intervention without a level "
    "must move the measure by a factor of {factor:g} against the same seed's baseline, which must have memorised too. "
    "Idle: the baseline settles where the goal is met anyway. Memorised: {memorised:.0%} of the seeds whose baseline "
    "did so reach train accuracy {train:g} before the intervention ends, keep it, and do not diverge."
)


@dataclass(frozen=True)
class Check:
    """What a manipulation did.

    Attributes:
        arm: the arm.
        state: "held", "idle", "not held", "lost memorisation", "unmeasured" (nothing logged shows it) or "nothing to
            hold".
        held: share of the seeds that memorised (for a push: here and in the baseline) in which every aim was met.
        memorised: share of seeds whose memorisation is intact.
        n: seeds.
        reasons: why the arm says nothing, in plain words; empty if it says something.
    """

    arm: Arm
    state: str
    held: float
    memorised: float
    n: int
    reasons: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Whether the arm can say anything about what it manipulated."""
        return not self.reasons


def settled(record: Record, column: str, relative_to: str | int | None = None) -> Array:
    """Level at which a measure settled, per replica, (R,).

    Median (on a log scale) over the evaluations from generalisation, or from memorisation if it never generalised, to
    the end of the arm's interventions. A run that generalised by then did so with the measure at this level.
    """
    key = f"{column} over {relative_to}"
    if key not in record.settled:
        start, generalised, end = record.moment("memorised"), record.moment("generalised"), _ends(record)
        with np.errstate(invalid="ignore"):
            start = np.where(generalised < np.where(np.isnan(end), np.inf, end), generalised, start)
        values = record.series(column, relative_to)
        record.settled[key] = geometric_median(np.where(record.window(start, end), values, np.nan))
    return record.settled[key]


def at_memorisation(record: Record, column: str, relative_to: str | int | None = None) -> Array:
    """Value of a measure at memorisation (first measurement from then on), per replica, (R,)."""
    values = record.series(column, relative_to)
    return first(record.window(record.moment("memorised")) & ~np.isnan(values), values)


def final_level(record: Record, column: str) -> Array:
    """Level of a measure over the last evaluations, per run."""
    return geometric_median(latest(record.series(column), record.rules.final_evaluations))


def _ends(record: Record) -> Array:
    """First step at which an arm's interventions no longer act, per replica; NaN if they act to the end."""
    ends = {arm.name: np.nan if arm.until is None else arm.until for arm in record.arms}
    return np.array([ends.get(arm, np.nan) for arm in record.panel.arms])


def check(record: Record, arm: Arm) -> Check:
    """The manipulation check of one arm."""
    rules, rows = record.rules, record.panel.rows(arm.name)
    intact = intact_rows(record, rows, arm.until)
    both = intact_rows(record, comparable(record, arm), arm.until)
    lost = ~(both if len(both) else intact)
    state, held = _state(record, arm)
    reasons = []
    if len(rows) == 0:
        reasons.append("it has no runs")
    if 0 < len(rows) < rules.minimum_seeds:
        reasons.append(f"it has {counted(len(rows), 'seed')}, and a verdict needs {rules.minimum_seeds}")
    if len(rows) and 1 - lost.mean() < rules.memorised_fraction:
        reasons.append(_not_intact(lost, len(rows), len(both)))
        state = "lost memorisation"
    elif len(rows) >= rules.minimum_seeds > both.sum():
        of_all = f"{only(int(both.sum()))} of its {counted(len(rows), 'seed')}"
        reasons.append(f"in {of_all} is memorisation intact in it and in the baseline, and a verdict needs "
                       f"{rules.minimum_seeds}")
    if state == "idle":
        reasons.append("the baseline meets the same goal by itself")
    if state == "not held":
        n, started = len(_judged(record, arm)), int((~np.isnan(record.moment("memorised", arm.until)[rows])).sum())
        beside = " here and in the baseline" if n < started else ""
        of_all = f"{only(round(held * n))} of the {counted(n, 'seed')}"
        reasons.append(f"the goal was met in {of_all} that memorised{beside}")
    return Check(arm, state, held, float(intact.mean()) if len(rows) else 0.0, len(rows), tuple(reasons))


def _not_intact(lost: Flags, n: int, comparable_seeds: int) -> str:
    """In how many seeds an arm did not memorise and keep it, and whether the baseline did not either."""
    share = f"in {int(lost.sum())} of {counted(len(lost), 'seed')}"
    if not comparable_seeds:
        return f"{share} memorisation was not reached, or lost, as in all of the baseline's"
    return f"memorisation was lost {share}" + (" in which the baseline kept it" if comparable_seeds < n else "")


def comparable(record: Record, arm: Arm) -> NDArray[np.int64]:
    """Rows of the runs of an arm whose seed's baseline has its memorisation intact while the arm's hand acts."""
    own, base = record.panel.paired(arm.name, record.baseline.name)
    return own[intact_rows(record, base, arm.until)]


def intact_rows(record: Record, rows: NDArray[np.int64], before: float | None = None) -> Flags:
    """Whether each run had memorised, kept it, and not diverged, before a step; the end if None."""
    memorised, accuracy, diverged = (record.moment(name, before)[rows] for name in (
        "memorised", "final_train_accuracy", "diverged"))
    return ~np.isnan(memorised) & (accuracy >= record.rules.train_threshold - record.rules.accuracy_margin) & (
        diverged == 0)


def _pushes(arm: Arm) -> bool:
    """Whether one of its interventions has a direction and no level."""
    return any(aim.sign and not aim.has_level() for aim in arm.aims)


def _judged(record: Record, arm: Arm) -> NDArray[np.int64]:
    """Rows of the runs of an arm whose goal can be met: they had memorised, and for a push the baseline as well."""
    rows = comparable(record, arm) if _pushes(arm) else record.panel.rows(arm.name)
    return rows[~np.isnan(record.moment("memorised", arm.until)[rows])]


def _state(record: Record, arm: Arm) -> tuple[str, float]:
    """Overall state and share of the judged seeds in which every aim with a direction or a level was met."""
    rows = _judged(record, arm)
    aims = [aim for aim in arm.aims if aim.sign or aim.has_level()]
    if not aims:
        return ("nothing to hold" if not arm.hand else "unmeasured"), float("nan")
    if any(np.isnan(record.series(aim.column, aim.relative_to)[rows]).all() for aim in aims):
        return "unmeasured", float("nan")
    met = np.ones(len(rows), dtype=bool)
    idle = []
    for aim in aims:
        if aim.has_level():
            met &= goal_share(record, aim, rows) >= record.rules.held_fraction
            idle.append(_idle(record, aim))
        else:
            met &= moved(record, arm, aim)[rows]
    held = float(met.mean())
    if held < record.rules.held_fraction:
        return "not held", held
    return ("idle" if idle and all(idle) and len(idle) == len(aims) else "held"), held


def goal_share(record: Record, aim: Aim, rows: NDArray[np.int64]) -> Array:
    """Share of evaluations from memorisation to the end of the intervention at which its goal is met, per row."""
    values = record.series(aim.column, aim.relative_to)
    start = np.maximum(record.moment("memorised"), aim.start)
    inside = (record.window(start, np.nan if aim.until is None else aim.until) & ~np.isnan(values))[rows]
    count = inside.sum(axis=1)
    good = (inside & aim.met(values[rows], record.rules.held_tolerance)).sum(axis=1)
    return np.divide(good, count, out=np.zeros(len(rows)), where=count > 0)


def _idle(record: Record, aim: Aim) -> bool:
    """Whether most baseline runs meet the aim by themselves: where they settle, or for "promote" before generalising.

    Without tolerance: a goal just beyond where the baseline settles is a goal.
    """
    rows = comparable(record, record.baseline)
    levels = settled(record, aim.column, aim.relative_to)[rows]
    if aim.goal == "promote":
        early = record.window(record.moment("memorised"), record.moment("generalised"))
        levels = geometric_median(np.where(early, record.series(aim.column, aim.relative_to), np.nan))[rows]
    return len(rows) > 0 and float(aim.met(levels).mean()) >= record.rules.held_fraction


def moved(record: Record, arm: Arm, aim: Aim) -> Flags:
    """Whether each run, (R,), of an arm has the measure a factor away from its seed's baseline, on the intended side.

    Compared are the two levels before the baseline generalises and those after (medians over the evaluations from
    memorisation on, while the intervention acts); one of the two must differ.
    """
    result = np.zeros(len(record.panel.seeds), dtype=bool)
    values, start, turn = record.series(aim.column, aim.relative_to), record.moment("memorised"), _paired_end(record)
    end = np.nan if aim.until is None else aim.until
    own, base = record.panel.paired(arm.name, record.baseline.name)
    for begin, last in ((start, np.fmin(turn, end)), (np.fmax(turn, start), end)):
        levels = geometric_median(np.where(record.window(begin, last), values, np.nan))
        result[own] |= aim.sign * log_ratio(levels[own], levels[base]) >= np.log(record.rules.moved_factor)
    return result


def _paired_end(record: Record) -> Array:
    """Step at which the baseline of each replica's seed generalised, (R,), NaN if never."""
    rows = record.panel.rows(record.baseline.name)
    moments = dict(zip(record.panel.seeds[rows].tolist(), record.moment("generalised")[rows].tolist()))
    return np.array([moments.get(int(seed), np.nan) for seed in record.panel.seeds])


def log_ratio(top: Array, bottom: Array) -> Array:
    """log(top/bottom) where both are positive, else NaN."""
    ok = (top > 0) & (bottom > 0)
    return np.where(ok, np.log(np.where(ok, top, 1.0)) - np.log(np.where(ok, bottom, 1.0)), np.nan)


def manipulation_finding(record: Record, arm: Arm) -> Finding:
    """The check of one arm as a finding: what was to be held, what it was, and whether memorisation survived."""
    result, rules = check(record, arm), record.rules
    rows = record.panel.rows(arm.name)
    levels = [_level(record, arm, aim) for aim in arm.aims]
    verdict = "failed" if result.state == "lost memorisation" else \
        result.state if not result.reasons or result.state in ("idle", "not held") else "inconclusive"
    what = "; ".join(f"{record.title(aim.column)}{_goal(aim)} settled at {_number(level['value'])} "
                     f"(baseline {_number(level['baseline'])}){_carried(record, arm, aim)}"
                     for aim, level in zip(arm.aims, levels))
    outcome = "The arm says nothing: " + ", ".join(result.reasons) if result.reasons else \
        f"memorisation is intact in {round(result.memorised * result.n)} of {counted(result.n, 'seed')}"
    return Finding(
        f"manipulation/{arm.name}", "manipulation", {"arm": arm.name, "hand": arm.hand},
        f"{arm.title}: {what + '; ' if what else ''}{outcome}.", verdict,
        {"held": estimate(result.held, unit="share of seeds"),
         "memorised": estimate(result.memorised, unit="share of seeds"),
         **{f"level {level['column']}": estimate(level["value"], unit=level["unit"]) for level in levels}},
        len(rows),
        rule=RULE.format(held=rules.held_fraction, tolerance=rules.held_tolerance, factor=rules.moved_factor,
                         memorised=rules.memorised_fraction, train=rules.train_threshold),
        data={"levels": levels, "state": result.state, "reasons": result.reasons})


def _level(record: Record, arm: Arm, aim: Aim) -> dict[str, Any]:
    levels = settled(record, aim.column, aim.relative_to)
    rows = record.panel.rows(arm.name)
    own, early = levels[rows], at_memorisation(record, aim.column, aim.relative_to)[rows]
    base = levels[record.panel.rows(record.baseline.name)]
    return {"column": aim.column, "relative_to": aim.relative_to, "goal": aim.goal, "at_least": aim.at_least,
            "at_most": aim.at_most, "until": aim.until, "per_seed": own, "value": middle(own), "baseline": middle(base),
            "at_memorisation": middle(early),
            "unit": str(record.columns.get(aim.column, {}).get("unit", ""))}


def _carried(record: Record, arm: Arm, aim: Aim) -> str:
    """By how many of the samples κ, which is a mean over them, is carried where it is held up; "" if nobody knows."""
    column = f"{aim.column.rpartition('/')[0]}/relative_flatness_participation"
    if aim.measure != "relative_flatness" or aim.goal != "block" or column not in record.panel:
        return ""
    own = middle(settled(record, column)[record.panel.rows(arm.name)])
    base = middle(at_memorisation(record, column)[record.panel.rows(record.baseline.name)])
    if np.isnan([own, base]).any():
        return ""
    return f", carried by an effective {own:.1%} of the samples (baseline at memorisation {base:.1%})"


def middle(values: Array) -> float:
    """Median over seeds, NaN left out; NaN if nothing is left."""
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else float("nan")


def _goal(aim: Aim) -> str:
    levels = [f"{sign} {level:g}" for sign, level in (("≥", aim.at_least), ("≤", aim.at_most)) if level is not None]
    if not levels:
        return {"block": " (suppressed)", "promote": " (promoted)"}.get(aim.goal, "")
    moment = aim.relative_to if isinstance(aim.relative_to, str) else f"step {aim.relative_to}"
    return " held " + " and ".join(levels) + (f" × its value at {moment}," if aim.relative_to is not None else "")


def _number(value: float) -> str:
    return "unknown" if np.isnan(value) else rounded(value)
