"""Dose and response: what holding a measure at a level does to generalisation, whatever the hand that holds it."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from grokscape.report import wording
from grokscape.report.palette import INK, MUTED
from grokscape.report.plate import Axis, Layer, Line, Missing, Panel, Plate, Points, Rule
from grokscape.report.run import Run


def dose_plates(run: Run) -> list[Plate | Missing]:
    """One plate per measure that arms held back: level against final accuracy, and against the delay."""
    ordered = sorted(run.of_kind("necessity"), key=lambda finding: finding["id"].count("/"))
    plates = [plate for finding in ordered if (plate := _plate(run, finding)) is not None]
    if plates:
        return list(plates)
    remedy = "Add arms with a Clamp or Suppress at two or more doses."
    return [run.missing("doses", "Dose and response", "No arm of this study holds a property back.", remedy)]


def _plate(run: Run, finding: Mapping[str, Any]) -> Plate | None:
    data, measure = finding["data"], finding["subject"]["measure"]
    doses = [dose for dose in data["doses"] if dose["level"] is not None]
    if len(doses) < 2:
        return None
    title = run.measure_title(measure)
    levels = [value for dose in doses for value in dose["level_per_seed"] if value is not None]
    log = min(levels) > 0 and max(levels) > 10 * min(levels)
    x = Axis(f"{wording.sentence(title)}, settled level", log=log)
    delay = _delay(run, doses, x)
    panels = (_accuracy(run, doses, x), *((delay,) if delay else ()))
    caption = (
        f"Each arm at the level of {title} at which it settled. {'Left: final' if delay else 'Final'} test accuracy; "
        f"small marks are seeds, large ones medians, and a line joins the doses of one hand, from the baseline on. "
        f"{'Right: delay over that of the baseline, with intervals. ' if delay else ''}"
        f"Two arms at one level that differ in height show an effect of the hand, not of the level."
    )
    trend = " ".join(_trend(run, item) for item in data["trend"])
    statement = run.readable(finding["statement"])
    alt = f"Final test accuracy{' and delay' if delay else ''} against the settled level of {title}. {statement}"
    key = wording.anchor(f"dose-{measure}")
    return Plate(
        key,
        f"Dose and response: {title}",
        f"{caption} {trend}".strip(),
        alt,
        panels,
        columns=len(panels),
        links=(("The verdict and its rule", wording.finding_anchor(finding)), (title, f"def-{measure}")),
    )


def _trend(run: Run, item: Mapping[str, Any]) -> str:
    parts = [
        f"{what} {wording.p_value(item[key])}"
        for key, what in (("p_accuracy", "accuracy falling"), ("p_delay", "delay growing"))
        if item[key] is not None
    ]
    return f"Trend over the doses of {run.readable(item['hand'])} (Page's test): {', '.join(parts)}." if parts else ""


def _accuracy(run: Run, doses: Sequence[Mapping[str, Any]], x: Axis) -> Panel:
    layers: list[Layer] = [*_hands(doses)]
    for dose in doses:
        arm = run.arm_by_name.get(dose["arm"])
        colour, name = (arm.colour, arm.name) if arm else (INK, None)
        pairs = _pairs(dose)
        if not pairs:
            continue
        hover = [f"{dose['title']}, seed {s}: {v:.1%} at {wording.number(u)}" for u, v, s in pairs]
        layers.append(Points([p[0] for p in pairs], [p[1] for p in pairs], colour, arm=name, size=4, hover=hover))
        middle = median(p[1] for p in pairs)
        label = f"{dose['title']}: median {middle:.1%} at {wording.number(dose['level'])}"
        layers.append(Points([dose["level"]], [middle], colour, dose["title"], name, size=11, hover=[label]))
    return Panel(x, Axis("Final test accuracy", percent=True, limits=(-0.02, 1.05)), tuple(layers))


def _pairs(dose: Mapping[str, Any]) -> list[tuple[float, float, Any]]:
    """Level, final accuracy and number of the seeds that settled."""
    return [
        (u, v, s)
        for u, v, s in zip(dose["level_per_seed"], dose["final_accuracy_per_seed"], dose["seeds"])
        if u is not None and v is not None
    ]


def _hands(doses: Sequence[Mapping[str, Any]]) -> list[Line]:
    """For each hand with two doses or more, a line from the baseline through its doses by level."""
    lines = []
    for hand in dict.fromkeys(dose["hand"] for dose in doses if dose["hand"]):
        group = [doses[0], *(dose for dose in doses if dose["hand"] == hand and dose["aimed"])]
        if len(group) < 3:
            continue
        points = sorted((dose["level"], median(p[1] for p in pairs)) for dose in group if (pairs := _pairs(dose)))
        lines.append(Line([p[0] for p in points], [p[1] for p in points], MUTED, dash="solid", width=1.0, opacity=0.6))
    return lines


def _delay(run: Run, doses: Sequence[Mapping[str, Any]], x: Axis) -> Panel | None:
    layers: list[Layer] = [Rule(1.0, axis="y", label="baseline")]
    for dose in doses:
        ratio = dose["effect"] and dose["effect"]["delay_ratio"]  # the baseline has none
        if not ratio or ratio["value"] is None:
            continue
        arm = run.arm_by_name.get(dose["arm"])
        text = f"{dose['title']}: {wording.times(ratio['value'])} at {wording.number(dose['level'])}"
        layers.append(
            Points(
                [dose["level"]],
                [ratio["value"]],
                arm.colour if arm else INK,
                arm=arm.name if arm else None,
                size=9,
                y_ends=[(ratio["low"], ratio["high"])],
                hover=[text],
            )
        )
    return Panel(x, Axis("Delay over the baseline's"), tuple(layers)) if len(layers) > 1 else None
