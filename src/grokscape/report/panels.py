"""What the page's script needs to draw trajectories: summaries of every column, and which panels to begin with."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from grokscape.report.arms import Arm
from grokscape.report.html import summary_json
from grokscape.report.interactive import DASHES
from grokscape.report.onsets import Outcomes
from grokscape.report.plate import Missing
from grokscape.report.run import Run
from grokscape.report.trajectories import (
    DEFAULT_MEASURES,
    MOST_STEPS,
    Summary,
    is_logarithmic,
    shown_steps,
    summarise,
)
from grokscape.report.wording import sentence
from grokscape.symbols import SPLITS

MOST_NUMBERS = 200_000  # about 1.3 MB of the page
FEWEST_STEPS = 60


def trajectories(run: Run, found: Outcomes) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the template and the script need to draw trajectories."""
    measures = run.measures() if run.frame.height else {}
    order = [m for m in DEFAULT_MEASURES if m in measures] + [m for m in measures if m not in DEFAULT_MEASURES]
    curves = 3 * max(1, len(run.arms)) * max(1, sum(len(splits) for splits in measures.values()))
    steps = shown_steps(run, max(FEWEST_STEPS, min(MOST_STEPS, MOST_NUMBERS // curves)))
    columns, described = _columns(run, {m: measures[m] for m in order}, steps, MOST_NUMBERS - curves * len(steps))
    onsets = {
        arm.name: {"m": found.median_onset(arm.name, "memorised"), "g": found.median_onset(arm.name, "generalised")}
        for arm in run.arms
    }
    log_steps = run.last_step > 200
    payload = {
        "steps": steps.tolist(),
        "columns": columns,
        "measures": described,
        "arms": arms_for_page(run.arms),
        "onsets": onsets,
        "splits": SPLITS,
        "log_steps": log_steps,
    }
    seeds = any("s" in summary for arms in columns.values() for summary in arms.values())
    return {**_panels(run, order, measures, len(steps), seeds), "log_steps": log_steps}, payload


def arms_for_page(arms: Iterable[Arm]) -> list[dict[str, str]]:
    """How the page's script draws arms."""
    return [
        {"name": a.name, "title": a.title, "colour": f"{a.colour.light}|{a.colour.dark}", "dash": DASHES[a.dash]}
        for a in arms
    ]


def _columns(
    run: Run, measures: Mapping[str, Sequence[str]], steps: Any, budget: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every column's summaries and every measure's description; single seeds as long as there is room for them."""
    columns: dict[str, Any] = {}
    described: dict[str, Any] = {}
    for measure, splits in measures.items():
        every: list[Summary] = []
        for split in splits:
            summaries = summarise(run, f"{split}/{measure}", steps)
            size = sum(summary.seeds.size for summary in summaries.values())
            budget -= size
            columns[f"{split}/{measure}"] = {a: summary_json(s, seeds=budget >= 0) for a, s in summaries.items()}
            every += summaries.values()
        percent = measure == "accuracy"
        title, log = sentence(run.measure_title(measure)), not percent and is_logarithmic(every)
        described[measure] = {"title": title, "splits": list(splits), "percent": percent, "log": log}
    return columns, described


def _panels(
    run: Run, order: Sequence[str], measures: Mapping[str, Sequence[str]], steps: int, seeds: bool
) -> dict[str, Any]:
    present = [s for s in ("train", "test", "cross") if any(s in splits for splits in measures.values())]
    caption = (
        "All panels share one axis of steps: point anywhere, or move the slider, to read every panel at that step; "
        "drag to zoom all, double-click to zoom out. Lines are medians over seeds, bands reach from the 10th to the "
        f"90th percentile{', thin lines are single seeds' if seeds else ''}. Accuracy and loss are those of held-out "
        "samples, other measures those of the samples chosen below, first the training samples. Triangles on the axis "
        "mark the median onset of memorisation (hollow) and of generalisation (filled)."
    )
    panels = [
        {
            "measure": m,
            "title": (title := sentence(run.measure_title(m))),
            "shown": m in DEFAULT_MEASURES,
            "alt": f"{title} over training steps, one line per arm; the table beside it reads the lines at one step",
        }
        for m in order
    ]
    missing = Missing(
        "no-trajectories",
        "Trajectories",
        "Nothing has been measured yet.",
        "Write the report again once the run has reached its first evaluation.",
    )
    return {
        "panels": panels,
        "splits": [{"name": s, "title": SPLITS[s]} for s in present],
        "caption": caption,
        "last_index": max(steps - 1, 0),
        "seeds": seeds,
        "missing": missing,
    }
