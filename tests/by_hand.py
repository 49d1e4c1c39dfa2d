"""What docs/verdicts.md says, done run by run in plain Python: an oracle that shares no code with the analysis.

It reads rows (dicts), the plan and the columns' descriptions, and knows nothing of arrays, panels or polars. Rules have
their defaults, but for what the plan says.
"""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

TRAIN, TEST = "train/accuracy", "test/accuracy"
RULES = {"train_threshold": 0.99, "test_threshold": 0.95, "hold": 3, "minimum_seeds": 5, "final_evaluations": 5}
ROUNDING = 2e-7  # of an accuracy in float32
APART = ("random-labels", "rescaling", "no-delay", "no-grokking")


def read(folder):
    """The study in a run folder, by other means than ours."""
    rows, columns = [], {}
    for part in sorted(Path(folder).glob("trajectory/*.parquet")):
        table = pq.read_table(part)
        columns |= json.loads(table.schema.metadata[b"grokscape.columns"])
        rows += table.to_pylist()
    spec, status = (json.loads((Path(folder) / name).read_text()) for name in ("spec.json", "status.json"))
    return Study(rows, spec, columns, [one for one in status["replicas"] if one["diverged_at"] is not None])


def median(values):
    known = [value for value in values if not math.isnan(value)]
    return float(np.median(known)) if known else math.nan


def level_of(values):
    """Median on a log scale, if all are positive."""
    return math.exp(median(map(math.log, values))) if values and min(values) > 0 else median(values)


def onset(points, threshold, hold):
    """First evaluation from which all of `hold` are there, and the one before (or itself)."""
    for place in range(len(points) - hold + 1):
        if all(value >= threshold - ROUNDING for _, value in points[place: place + hold]):
            return points[place][0], points[max(place - 1, 0)][0]
    return None


def log_ratio(top, bottom):
    return math.log(top / bottom) if top > 0 and bottom > 0 else math.nan


def greater(values, bound):
    """p value of Student's t test, certain where all are alike."""
    if len(values) < 2:
        return 1.0
    if np.ptp(values) <= 1e-12 * max(np.max(np.abs(values)), abs(bound)):
        return float(not np.mean(values) > bound + 1e-12)
    return float(stats.ttest_1samp(values, bound, alternative="greater").pvalue)


def holm(p):
    corrected, least = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda one: p[one])):
        least = max(least, (len(p) - rank) * p[place])
        corrected[place] = min(1.0, least)
    return corrected


class Study:
    """Runs by (arm, seed), and what became of them."""

    def __init__(self, rows, spec, columns, gone):
        self.columns, self.rules = columns, RULES | spec["onset"] | spec["verdict"]
        self.arms = {arm["name"]: arm for arm in spec["arms"]}
        self.base = next(name for name, arm in self.arms.items() if arm["role"] == "baseline")
        self.gone = {(one["arm"], one["seed"]) for one in gone}
        self.runs, self.fates = {}, {}
        for row in sorted(rows, key=lambda row: row["step"]):
            self.runs.setdefault((row["arm"], row["seed"]), []).append(row)

    def seeds(self, arm):
        return sorted(seed for name, seed in self.runs if name == arm)

    def points(self, run, column, start=-math.inf, end=math.inf, relative_to=None):
        """(step, value) of what was measured; in units of its first value from a moment on, if asked for."""
        found = [(row["step"], row[column]) for row in self.runs[run]
                 if row.get(column) is not None and math.isfinite(row[column])]
        if relative_to is not None:
            enough = self.rules["train_threshold"] - ROUNDING
            over = [step for step, value in self.points(run, TRAIN) if value >= enough]
            moment = relative_to if relative_to != "memorisation" else over[0] if over else math.inf
            found = [point for point in found if point[0] >= moment]
            found = [(step, value / found[0][1]) for step, value in found]
        return [(step, value) for step, value in found if start <= step < end]

    def fate(self, run, end=math.inf):
        """What had become of a run before a step."""
        if (run, end) not in self.fates:
            train, test = (self.points(run, column, end=end) for column in (TRAIN, TEST))
            last = max((row["step"] for rows in self.runs.values() for row in rows if row["step"] < end), default=None)
            broken = run in self.gone and (end == math.inf or self.runs[run][-1]["step"] < last)
            ends = [median(value for _, value in points[-self.rules["final_evaluations"]:]) for points in (train, test)]
            memorised = onset(train, self.rules["train_threshold"], self.rules["hold"])
            self.fates[run, end] = {
                "memorised": memorised, "generalised": onset(test, self.rules["test_threshold"], self.rules["hold"]),
                "followed": last if broken else test[-1][0] if test else None, "accuracy": ends[1],
                "intact": memorised is not None and ends[0] >= self.rules["train_threshold"] - 0.05 and not broken}
        return self.fates[run, end]

    # ------------------------------------------------------------------ what was done

    def aims(self, arm):
        given = self.arms[arm]["interventions"]
        unplugged = [one["step"] for one in given if one["kind"] == "unplug"]
        found = []
        for one in (one for one in given if one.get("measure")):
            places = [one["measure"], *(f"{split}/{one['measure']}" for split in ("train", "params", "test", "cross"))]
            column = next((place for place in places if place in self.columns), f"train/{one['measure']}")
            about = self.columns[column]
            low, high = one.get("at_least"), one.get("at_most")
            toward = {"lower": -1, "higher": 1}.get(about["direction"], 0)
            push = {"promote": toward, "suppress": -toward}.get(one["kind"])
            sign = push if push is not None else (low is not None) - (high is not None)
            ends = [end for end in (one.get("until"), *unplugged) if end is not None]
            found.append({"column": column, "property": about["property"], "sign": sign, "low": low, "high": high,
                          "goal": "other" if not sign * toward else "promote" if sign == toward else "block",
                          "start": one.get("start") or 0, "end": min(ends, default=math.inf),
                          "relative_to": one.get("relative_to")})
        return found

    def end(self, arm):
        return max((aim["end"] for aim in self.aims(arm)), default=math.inf)

    def hand(self, arm):
        plan = self.arms[arm]
        kinds = {one.get("measure") or one["kind"] for one in plan["interventions"] if one["kind"] != "unplug"}
        places = "testbed", "optimizer", "model"
        return kinds | {f"{place}.{key}" for place in places for key in plan.get(place) or {}}

    def settled(self, run, column, relative_to=None):
        fate, end = self.fate(run), self.end(run[0])
        since = next((fate[name][0] for name in ("generalised", "memorised")
                      if fate[name] and (name == "memorised" or fate[name][0] < end)), math.inf)
        return level_of([value for _, value in self.points(run, column, since, end, relative_to)])

    # ------------------------------------------------------------------ whether it was a manipulation

    def yardsticks(self, arm):
        """Seeds of an arm whose baseline has its memorisation intact while the arm acts."""
        end = self.end(arm)
        return [seed for seed in self.seeds(arm)
                if (self.base, seed) in self.runs and self.fate((self.base, seed), end)["intact"]]

    def met(self, arm, seed, aim):
        run, base = (arm, seed), (self.base, seed)
        if aim["low"] is None and aim["high"] is None:
            turn = self.fate(base)["generalised"]
            turn = turn[0] if turn else math.inf
            for start, end in ((0, min(turn, aim["end"])), (turn if turn < math.inf else 0, aim["end"])):
                own, other = (level_of([value for _, value in self.points(
                    one, aim["column"], max(start, self.fate(one)["memorised"][0]), end, aim["relative_to"])])
                    for one in (run, base))
                if aim["sign"] * log_ratio(own, other) >= math.log(1.25):
                    return True
            return False
        start = max(self.fate(run)["memorised"][0], aim["start"])
        values = [value for _, value in self.points(run, aim["column"], start, aim["end"], aim["relative_to"])]
        good = [(aim["low"] is None or value >= aim["low"] - 0.2 * abs(aim["low"]))
                and (aim["high"] is None or value <= aim["high"] + 0.2 * abs(aim["high"])) for value in values]
        return bool(good) and np.mean(good) >= 0.8

    def idle(self, aim):
        if aim["low"] is None and aim["high"] is None:
            return False
        there = []
        for run in ((self.base, seed) for seed in self.seeds(self.base)):
            fate = self.fate(run)
            if fate["intact"]:
                start, end = (fate[name][0] if fate[name] else math.inf for name in ("memorised", "generalised"))
                before = self.points(run, aim["column"], start, end, aim["relative_to"])
                level = self.settled(run, aim["column"], aim["relative_to"]) if aim["goal"] != "promote" else \
                    level_of([value for _, value in before])
                there.append(level >= (-math.inf if aim["low"] is None else aim["low"])
                             and level <= (math.inf if aim["high"] is None else aim["high"]))
        return bool(there) and np.mean(there) >= 0.8

    def check(self, arm):
        """State, share of seeds that met the goal, and whether the arm says something."""
        seeds, fates = self.seeds(arm), {seed: self.fate((arm, seed), self.end(arm)) for seed in self.seeds(arm)}
        aims = [aim for aim in self.aims(arm) if aim["sign"] or aim["low"] is not None or aim["high"] is not None]
        intact, judged = ({seed for seed in seeds if fates[seed][name]} for name in ("intact", "memorised"))
        yardsticks = self.yardsticks(arm)
        both = [seed for seed in yardsticks if seed in intact]
        if any(aim["low"] is None and aim["high"] is None for aim in aims):
            judged &= set(yardsticks)
        state, held = "nothing to hold" if not self.hand(arm) else "unmeasured", math.nan
        if aims and all(any(self.points((arm, seed), aim["column"], relative_to=aim["relative_to"]) for seed in judged)
                        for aim in aims):
            held = np.mean([all(self.met(arm, seed, aim) for aim in aims) for seed in judged])
            state = "not held" if held < 0.8 else "idle" if all(map(self.idle, aims)) else "held"
        share = len(both) / len(yardsticks) if yardsticks else len(intact) / len(seeds)
        if share < 0.75:
            state = "lost memorisation"
        speaks = state in ("held", "unmeasured", "nothing to hold") and len(both) >= self.rules["minimum_seeds"]
        return state, held, speaks

    # ------------------------------------------------------------------ what it did

    def delays(self, arm, seeds, clock):
        """Delays of the arm and of the baseline, (shortest, middle, longest) each, cut at τ; τ, infinite if all end."""
        times = {}
        for seed in seeds:
            for run in ((arm, seed), (self.base, seed)):
                fate = self.fate(run, self.end(arm))
                start = (0.0, 0.0) if clock == "time" else fate["memorised"]
                stop = fate["generalised"] or (fate["followed"],) * 2
                if start is not None and stop[0] is not None:
                    times[run] = start, stop, fate["generalised"] is not None
        both = [seed for seed in seeds if (arm, seed) in times and (self.base, seed) in times]
        middle = {run: max(sum(stop) / 2 - sum(start) / 2, 0.0) for run, (start, stop, _) in times.items()}
        limit = min((middle[name, seed] for name in (arm, self.base) for seed in both if not times[name, seed][2]),
                    default=math.inf)
        found = []
        for name in (arm, self.base):
            shared = [self.shared([times[name, seed][0][0] for seed in both]),
                      self.shared([times[name, seed][1][0] for seed in both if times[name, seed][2]])]
            spans = [[], [], []]
            for seed in both:
                start, stop, _ = times[name, seed]
                begin, end = (ends[::-1] if tied else [sum(ends) / 2] * 2 for ends, tied in zip((start, stop), shared))
                for span, time in zip(spans, (end[0] - begin[1], middle[name, seed], end[1] - begin[0])):
                    span.append(min(max(time, 0.0), limit))
            found.append(np.array(spans))
        return *found, limit

    def shared(self, steps):
        """Whether more than four fifths of the onsets were seen at one evaluation."""
        return bool(steps) and max(map(steps.count, steps)) > 0.8 * len(steps)

    def clock(self):
        runs = [self.fate((self.base, seed)) for seed in self.seeds(self.base)]
        soon = [(fate["generalised"] or (fate["followed"],))[0] <= fate["memorised"][0] for fate in runs
                if fate["memorised"]]
        return "time" if soon and np.mean(soon) >= 0.5 else "delay"

    def gap(self, arm, seed):
        """Difference in final test accuracy at the last step to which both runs were followed."""
        last = min(self.fate((name, seed))["followed"] for name in (arm, self.base))
        seen = ([value for step, value in self.points((name, seed), TEST, end=self.end(arm)) if step <= last]
                for name in (arm, self.base))
        own, base = (median(values[-self.rules["final_evaluations"]:]) for values in seen)
        return own - base

    def late(self, arm, seed, seeds, clock):
        """Whether a run has not generalised where it is compared, but may: not followed for twice the longest delay."""
        fates = {run: self.fate(run, self.end(arm)) for one in seeds for run in ((arm, one), (self.base, one))}
        since = {run: 0 if clock == "time" or not fate["memorised"] else fate["memorised"][0]
                 for run, fate in fates.items()}
        delays = [fate["generalised"][0] - since[run] for run, fate in fates.items()
                  if run[0] == self.base and fate["generalised"]]
        run, base = (arm, seed), (self.base, seed)
        last = min(fates[run]["followed"], fates[base]["followed"])
        done = fates[run]["generalised"] and fates[run]["generalised"][0] <= last
        return not done and last - since[run] < 2 * max(delays, default=0)

    def effect(self, arm):
        """Numbers of one arm before correction."""
        seeds, clock = self.yardsticks(arm), self.clock()
        kept = [seed for seed in seeds if self.fate((arm, seed), self.end(arm))["intact"]]
        gaps = {seed: self.gap(arm, seed) for seed in seeds}
        (_, own, slow), (base_fast, base, _), limit = self.delays(arm, seeds, clock)
        (fast_kept, _, _), (_, _, base_slow_kept), _ = self.delays(arm, kept, clock)
        (_, _, slow_time), (base_fast_time, _, _), _ = self.delays(arm, seeds, "time")
        late = {seed for seed in kept if self.late(arm, seed, seeds, clock)}
        worse = greater([0.0 if seed in late else -gaps[seed] for seed in kept], 0.05)
        slower = greater(fast_kept - 2 * base_slow_kept, 0)
        not_worse = greater([gap for gap in gaps.values() if not math.isnan(gap)], -0.05)
        long_enough = len(base) and base.mean() > 0 and limit >= 2 * base.mean()
        not_slower = greater(np.minimum(2 * base_fast, limit) - slow, 0) if long_enough else 1.0
        faster, sooner = greater(base_fast / 2 - slow, 0), greater(base_fast_time - slow_time, 0)
        some = len(base) and base.mean() > 0
        return {"p_harmed": min(1.0, 2 * min(worse, slower if some else 1.0)), "p_intact": max(not_worse, not_slower),
                "p_hastened": max(faster if some else 1.0, sooner, not_worse), "n": len(gaps),
                "ratio": own.mean() / base.mean() if some else math.nan}

    def effects(self):
        """Arm → its numbers and its call."""
        found = {arm: self.effect(arm) for arm, plan in self.arms.items()
                 if arm != self.base and plan.get("control") not in APART}
        valid = [arm for arm in found if self.check(arm)[2]]
        for name in ("p_harmed", "p_intact", "p_hastened"):
            for arm, p in zip(valid, holm([found[arm][name] for arm in valid])):
                found[arm][name] = p
        for arm, numbers in found.items():
            calls = [name for name in ("harmed", "hastened", "intact") if numbers[f"p_{name}"] <= 0.05]
            numbers["call"] = "says nothing" if arm not in valid else [*calls, "unclear"][0]
        return found

    # ------------------------------------------------------------------ what follows

    def levels(self, column, property_name, found):
        """Arms that say something and block the measure, weakest first."""
        sign = -1 if self.columns[column]["direction"] == "higher" else 1
        base = {seed: self.settled((self.base, seed), column) for seed in self.seeds(self.base)}
        early = {seed: self.points((self.base, seed), column, self.fate((self.base, seed))["memorised"][0])
                 for seed in base if self.fate((self.base, seed))["memorised"]}
        way = median([sign * log_ratio(early[seed][0][1], base[seed]) for seed in base if early.get(seed)])
        result = []
        for arm, numbers in found.items():
            shift = median([sign * log_ratio(self.settled((arm, seed), column), base[seed])
                            for seed in self.seeds(arm) if seed in base])
            blocked = [aim for aim in self.aims(arm) if aim["goal"] == "block" and aim["property"] == property_name]
            by_design = self.check(arm)[0] == "held" and any(aim["column"] == column for aim in blocked)
            plan = self.arms[arm]
            if numbers["call"] != "says nothing" and shift >= (0.0 if by_design else math.log(2)):
                result.append({"arm": arm, "shift": shift, "share": shift / way if way > 0 else math.nan,
                               "aimed": bool(blocked) and plan["role"] == "manipulation", "call": numbers["call"],
                               "matching": plan.get("control") == "matched-level", "hand": self.hand(arm)})
        return sorted(result, key=lambda one: one["shift"])

    def verdict(self, column, property_name, found):
        """The verdict on a measure."""
        levels = self.levels(column, property_name, found)
        harmful = [one for one in levels if one["call"] == "harmed" and (one["aimed"] or one["matching"])]
        clean = [one for one in harmful if not any(
            two["hand"] != one["hand"] and two["call"] in ("intact", "hastened")
            and two["shift"] >= one["shift"] - math.log(1.1) for two in levels)]
        known = [one["hand"] for one in harmful if one not in clean]
        if any(one["aimed"] and not one["hand"] & two["hand"] and abs(one["shift"] - two["shift"]) <= math.log(2)
               for one in clean for two in clean if one["hand"] not in known and two["hand"] not in known):
            return "consistent with necessary"
        harmed = [one for one in levels if one["call"] == "harmed" and one["aimed"]]
        if harmed:
            return "inconclusive" if all(one in clean for one in harmed) else "belongs to the manipulation"
        aimed = [one for one in levels if one["aimed"]]
        good = aimed and aimed[-1]["call"] in ("intact", "hastened") and not aimed[-1]["share"] < 0.5
        return "not necessary" if good else "inconclusive"
