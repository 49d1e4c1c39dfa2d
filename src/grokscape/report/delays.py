"""How long generalisation takes after memorisation: survival curves and ratios of delays."""

from collections.abc import Mapping
from typing import Any

from grokscape.report import wording
from grokscape.report.arms import Arm
from grokscape.report.plate import Axis, Band, Layer, Line, Missing, Panel, Plate, Points, Rule
from grokscape.report.run import Run
from grokscape.report.trajectories import arm_axis

TITLE = "Delay from memorisation to generalisation"


def survival_plate(run: Run) -> Plate | Missing:
    """Kaplan–Meier curves of the delay, arm by arm, and each arm's restricted mean delay over the baseline's."""
    curves = _curves(run)
    if not curves:
        if len(run.arms) > 1:
            reason = "A delay starts at memorisation, and no seed memorised both in the baseline and in another arm."
            remedy = f"{run.train_longer}, or lower the study's onset.train_threshold."
        else:
            reason = "There is no arm beside the baseline whose delay could be compared with it."
            remedy = "Add an arm to the study, or compare several runs."
        return run.missing("survival", TITLE, reason, remedy)
    if not any(step > 0 for curve in curves.values() for step in (*curve["steps"], *curve["censored"])):
        reason = "Every seed that memorised had generalised by then, so there is no delay to compare."
        return Missing("survival", TITLE, reason, "Choose a testbed on which networks memorise first.")
    caption = (
        "Left: share of the seeds that have memorised and not yet generalised (Kaplan–Meier); a cross marks seeds that "
        "the run lost sight of before they did. Bands are pointwise intervals. Right: mean delay over the "
        "baseline's, restricted to the time for which all were followed, with bootstrap intervals over seeds; 1 is no "
        "difference. Test and numbers:"
    )
    ratios = _ratios(run)
    alt = f"{TITLE}. " + " ".join(f["statement"] for f in run.of_kind("survival"))
    panels = (_curve_panel(run, curves), *((ratios,) if ratios else ()))
    links = tuple((run.title_of(f["subject"]["arm"]), wording.finding_anchor(f)) for f in run.of_kind("survival"))
    return Plate("survival", TITLE, caption, alt, panels, columns=len(panels), links=links)


def _curves(run: Run) -> dict[str, Mapping[str, Any]]:
    """The curve of each arm; of the baseline's, which end where the arm beside it does, the longest."""
    curves: dict[str, Mapping[str, Any]] = {}
    for finding in run.of_kind("survival"):
        for arm, curve in finding["data"]["kaplan_meier"].items():
            if curve["steps"] and (arm not in curves or _end(curve) > _end(curves[arm])):
                curves[arm] = curve
    return curves


def _end(curve: Mapping[str, Any]) -> float:
    return float(max([*curve["steps"], *curve["censored"]]))


def _curve_panel(run: Run, curves: Mapping[str, Mapping[str, Any]]) -> Panel:
    layers: list[Layer] = []
    end = max(map(_end, curves.values()))
    for arm in run.arms:
        if arm.name in curves:
            layers += _curve(arm, curves[arm.name])
    y = Axis("Not yet generalised", percent=True, limits=(-0.02, 1.02))
    return Panel(Axis("Steps since memorisation", limits=(0, end * 1.03)), y, tuple(layers))


def _curve(arm: Arm, curve: Mapping[str, Any]) -> list[Layer]:
    steps, share = list(curve["steps"]), list(curve["share"])
    last = _end(curve)
    x, y = [*steps, last], [*share, share[-1]]
    low, high = ([*curve[k], curve[k][-1]] for k in ("low", "high"))
    band = Band(
        x,
        [v if v is not None else s for v, s in zip(low, y)],
        [v if v is not None else s for v, s in zip(high, y)],
        arm.colour,
        arm.name,
        opacity=0.06,
        stairs=True,
    )
    line = Line(x, y, arm.colour, arm.title, arm.name, arm.dash, stairs=True)
    lost = list(curve["censored"])
    at = [share[max(i for i, s in enumerate(steps) if s <= step)] for step in lost]
    hover = [f"{arm.title}: not generalised after {step:.0f} steps" for step in lost]
    marks = [Points(lost, at, arm.colour, arm=arm.name, symbol="x", size=6, hover=hover)] if lost else []
    return [band, line, *marks]


def _ratios(run: Run) -> Panel | None:
    found = {f["subject"]["arm"]: f["estimates"]["delay ratio"] for f in run.of_kind("survival")}
    arms = [arm for arm in run.arms if arm.name in found and found[arm.name]["value"] is not None]
    if not arms:
        return None
    layers: list[Layer] = [Rule(1.0, label="baseline")]
    for row, arm in enumerate(arms):
        ratio = found[arm.name]
        text = f"{arm.title}: {wording.times(ratio['value'])}"
        if ratio["low"] is not None:
            text += f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
        layers.append(
            Points(
                [ratio["value"]], [row], arm.colour, arm=arm.name, x_ends=[(ratio["low"], ratio["high"])], hover=[text]
            )
        )
    return Panel(Axis("Delay over the baseline's"), arm_axis(arms), tuple(layers), height=max(1.0, 0.07 * len(arms)))
