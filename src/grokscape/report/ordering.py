"""What comes before generalisation, and what foretells it: lead–lag forest and ranking of predictors."""

from collections.abc import Mapping, Sequence
from math import exp
from statistics import median_high
from typing import Any

from grokscape.report import wording
from grokscape.report.plate import Axis, Layer, Missing, Panel, Plate, Points, Rule, Symbol
from grokscape.report.run import Run
from grokscape.symbols import SPLITS

LAG_TITLE = "Before or after generalisation"
RANK_TITLE = "What foretells generalisation"
_SYMBOLS: dict[str, Symbol] = {"train": "circle", "test": "circle-open", "cross": "diamond", "params": "square"}
_OFFSETS = {"train": -0.16, "params": 0.0, "test": 0.08, "cross": 0.24}
_LAG_CAPTION = (
    "In the baseline, the step at which a measure is half-way (on a log scale) between its level at memorisation and "
    "its last, over the step of generalisation: left of 1 it moves before, right of 1 after. Test accuracy itself is "
    "half-way before a run counts as generalised, so only what lies left of that line leads. Means over seeds with "
    "bootstrap intervals. Filled circles: training samples; hollow: held-out samples; diamonds: held-out around "
    "training means; squares: parameters. Intervals are cut at the edges. Coming before is not causing."
)
_RANK_CAPTION = (
    "Left: of pairs in which one run generalises next, the share that a Cox model with the training loss and this "
    "measure puts in the right order, coefficients fitted without the seed (concordance); to the right of “loss "
    "alone” the measure adds something; 0.5 is guessing. Right: what one standard deviation more of the log measure "
    "does to the chance of generalising next, at equal training loss, with intervals; 1 is nothing. Marks as in the "
    "figure before."
)


def lead_lag_plate(run: Run) -> Plate | Missing:
    """Per measure: when it is half-way from its level at memorisation to its last, over the step of generalisation."""
    found = run.of_kind("lead_lag")
    moved = [f for f in found if f["estimates"]["log lag"]["value"] is not None]
    if not moved:
        return run.missing(
            "lead-lag",
            LAG_TITLE,
            "No measure has a transition in a run that memorised and generalised, so there is nothing to set in order.",
            f"{run.train_longer}, or log more measures.",
        )
    rows = _rows(moved, lambda f: f["estimates"]["log lag"]["value"])
    layers: list[Layer] = [Rule(1.0, label="generalises")]
    data = found[0]["data"]
    marks = {"memorises": _middle_ratio(data, "memorised"), "test accuracy half-way": _middle_ratio(data, "half_way")}
    layers += [Rule(place, label=name) for name, place in marks.items() if place]
    centres = [exp(f["estimates"]["log lag"]["value"]) for f in moved] + [place for place in marks.values() if place]
    limits = (min([*centres, 1.0]) / 1.4, max([*centres, 1.0]) * 1.4)
    layers += [_lag(run, finding, rows, limits) for finding in moved]
    names = _names(run, rows)
    x = Axis("Half-way step over step of generalisation", log=True, limits=limits)
    panel = Panel(x, names, tuple(layers), height=max(0.7, 0.085 * len(rows)))
    alt = f"{LAG_TITLE}. " + " ".join(f["statement"] for f in moved[:12])
    return Plate(
        "lead-lag",
        LAG_TITLE,
        _LAG_CAPTION + _unmoved(run),
        alt,
        (panel,),
        legend=False,
        links=(("Rule and numbers", wording.finding_anchor(moved[0])),),
    )


def _unmoved(run: Run) -> str:
    still = {f["subject"]["measure"] for f in run.of_kind("lead_lag") if f["verdict"] == "does not move"}
    names = ", ".join(sorted({run.measure_short(measure) for measure in still}))
    return f" On some samples these hardly move after memorisation: {names}." if names else ""


def _middle_ratio(data: Mapping[str, Any], moment: str) -> float | None:
    """Median over seeds of a moment's step over that of generalisation."""
    pairs = [m / g for m, g in zip(data[moment], data["generalised"]) if m and g]
    return median_high(pairs) if pairs else None


def _lag(run: Run, finding: Mapping[str, Any], rows: Sequence[str], limits: tuple[float, float]) -> Points:
    subject, lag = finding["subject"], finding["estimates"]["log lag"]
    known = lag["low"] is not None and lag["high"] is not None
    ends = (max(_exp(lag["low"]), limits[0]), min(_exp(lag["high"]), limits[1])) if known else (None, None)
    steps = finding["estimates"]["lag"]["value"]
    side = "before" if steps < 0 else "after"
    text = f"{_named(run, subject)}: {abs(steps):.0f} steps {side}; {finding['verdict']}"
    return _mark(subject, rows, exp(lag["value"]), text, [ends])


def _exp(value: float) -> float:
    return exp(min(value, 100.0))


def ranking_plate(run: Run) -> Plate | Missing:
    """Per measure: concordance on held-out seeds alone and beside the training loss, and its hazard ratio."""
    finding = next((f for f in run.of_kind("hazard") if "table" in f["data"]), None)
    shown = [row for row in finding["data"]["table"] if row["concordance_adjusted"] is not None] if finding else []
    if not finding or not shown:
        reason = finding["statement"] if finding else "No measure was analysed for it."
        remedy = f"{run.train_longer}, use more seeds, or evaluate more often."
        return run.missing("ranking", RANK_TITLE, reason, remedy)
    rows = _rows([{"subject": row, "row": row} for row in shown], lambda f: -f["row"]["concordance_adjusted"])
    reference = shown[0]["concordance_loss"]
    left: list[Layer] = [Rule(reference, label="loss alone")] if reference else []
    right: list[Layer] = [Rule(1.0)]
    for row in shown:
        left.append(_concordance(run, row, rows))
        right += _hazard(run, row, rows)
    height = max(0.7, 0.085 * len(rows))
    names = _names(run, rows)
    blank = Axis(categories=("",) * len(rows))
    panels = (
        Panel(Axis("Concordance beside the loss"), names, tuple(left), height=height),
        Panel(Axis("Hazard ratio", log=True, limits=(1e-3, 1e3)), blank, tuple(right), height=height),
    )
    return Plate(
        "ranking",
        RANK_TITLE,
        _RANK_CAPTION,
        f"{RANK_TITLE}. {finding['statement']}",
        panels,
        columns=2,
        legend=False,
        links=(("Rule and numbers", wording.finding_anchor(finding)),),
    )


def _concordance(run: Run, row: Mapping[str, Any], rows: Sequence[str]) -> Points:
    text = (
        f"{_named(run, row)}: {row['concordance_adjusted']:.2f} "
        f"beside the loss, {wording.number(row['concordance'])} alone"
    )
    return _mark(row, rows, row["concordance_adjusted"], text)


def _hazard(run: Run, row: Mapping[str, Any], rows: Sequence[str]) -> list[Points]:
    ratio = row["ratio_adjusted"]
    if ratio["value"] is None or ratio["value"] <= 0:
        return []
    low, high = ratio["low"], ratio["high"]
    ends = (max(low, 1e-3), min(high, 1e3)) if low is not None and high is not None else (None, None)
    value = min(max(ratio["value"], 1e-3), 1e3)
    interval = f" ({wording.number(low)} to {wording.number(high)})" if low is not None else ""
    text = f"{_named(run, row)}: × {wording.number(ratio['value'])}{interval}"
    return [_mark(row, rows, value, text, [ends])]


def _mark(
    about: Mapping[str, Any],
    rows: Sequence[str],
    x: float,
    text: str,
    ends: Sequence[tuple[float | None, float | None]] = (),
) -> Points:
    """A measure on one split: in the measure's row, the property's colour and the split's symbol."""
    split = about["split"]
    return Points(
        [x],
        [rows.index(about["measure"]) + _OFFSETS.get(split, 0.0)],
        wording.property_colour(about["property"]),
        symbol=_SYMBOLS.get(split, "circle"),
        size=8,
        x_ends=ends,
        hover=[text],
    )


def _named(run: Run, about: Mapping[str, Any]) -> str:
    return f"{run.measure_title(about['measure'])}, {SPLITS.get(about['split'], about['split'])}"


def _rows(items: Sequence[Mapping[str, Any]], value: Any) -> list[str]:
    """Measures in the order of their smallest value."""
    best: dict[str, float] = {}
    for item in items:
        measure = item["subject"]["measure"]
        best[measure] = min(best.get(measure, float("inf")), value(item))
    return sorted(best, key=lambda measure: best[measure])


def _names(run: Run, rows: Sequence[str]) -> Axis:
    return Axis(
        categories=tuple(wording.sentence(run.measure_title(m)) for m in rows),
        colours=tuple(wording.property_colour(run.measure_property(m)) for m in rows),
    )
