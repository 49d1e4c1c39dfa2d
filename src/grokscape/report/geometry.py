"""The geometry of the classes and what it would make of flatness: angles against the simplex, κ against theory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grokscape.report import wording
from grokscape.report.palette import FAMILY_COLOURS, INK, MUTED, Colour, Dash
from grokscape.report.plate import Axis, Layer, Line, Missing, Panel, Plate, Rule
from grokscape.report.run import Run
from grokscape.report.trajectories import panel, rounded, shown_steps, step_axis, summarise, summary_of, values_at

ANGLE_TITLE = "Angles between class means, against the simplex"
THEORY_TITLE = "Relative flatness against what collapse would make of it"
_THEORY: tuple[tuple[str, str, Colour, Dash], ...] = (
    ("measured", "κ, measured", INK, "solid"),
    ("exact", "κ under exact collapse", FAMILY_COLOURS["flatness"][0], "dash"),
    ("bound", "bound of Prop. 5.3", FAMILY_COLOURS["collapse"][0], "longdash"),
    ("surrogate", "surrogate κ̄", MUTED, "dashdot"),
)


def angle_plate(run: Run) -> Plate | Missing:
    """Distance of the pairwise angles of centred class means from the simplex, over steps, on each split."""
    steps = shown_steps(run)
    panels = []
    for split, words in (("train", "Training samples"), ("test", "Held-out samples")):
        drawn = panel(run, "nc2_equiangular", split, steps, title=words)
        if drawn:
            layers_ = (Rule(0.0, axis="y", label="simplex"), *drawn.layers)
            panels.append(Panel(drawn.x, Axis("Mean |cos ∠ + 1/(K−1)|"), layers_, drawn.title))
    if not panels:
        return Missing(
            "angles",
            ANGLE_TITLE,
            "The trajectory holds no column train/nc2_equiangular.",
            "Put “nc2_equiangular” among the study's measures and run it again.",
        )
    caption = (
        "Under neural collapse the centred class means form a simplex: every pair has the cosine −1/(K−1). Shown is "
        "the mean distance of the cosines from that value; 0 is the simplex. Medians over seeds with the range from "
        "the 10th to the 90th percentile."
    )
    return Plate(
        "angles",
        ANGLE_TITLE,
        caption,
        f"{ANGLE_TITLE}, over training steps, one line per arm.",
        tuple(panels),
        columns=len(panels),
        links=(("Definition", "def-nc2_equiangular"),),
    )


def theory_plate(run: Run) -> Plate | Missing:
    """Measured κ, its exact value and its bound under collapse, and the surrogate κ̄, over steps, in the baseline."""
    finding = next(iter(run.of_kind("theory")), None)
    curves = _theory_curves(run, finding)
    if not curves:
        return Missing(
            "theory",
            THEORY_TITLE,
            "The trajectory holds no relative flatness on training samples.",
            "Put “relative_flatness” among the study's measures and run it again.",
        )
    drawn: list[Layer] = []
    for key, label, colour, dash in _THEORY:
        if key in curves:
            steps, values = curves[key]
            drawn.append(Line(steps, values, colour, label, dash=dash))
    caption = (
        "Baseline, training samples, median over seeds. Under exact neural collapse κ follows from the radius of the "
        "class means and the scale of the head alone; the bound is the one that Han et al. 2025 prove for that case. "
        "The surrogate κ̄ bounds κ from above always."
    )
    if "exact" not in curves:
        caption += (
            " The value under exact collapse and the bound are not shown: they need the columns "
            "train/collapse_radius, train/collapse_scale and train/mean_offset, which this run did not log."
        )
    values = [v for _, ys in curves.values() for v in ys if v is not None and v > 0]
    y = Axis("Relative flatness", log=bool(values) and max(values) > 20 * min(values))
    links = (("Numbers", wording.finding_anchor(finding)),) if finding else ()
    alt = (
        finding["statement"] if finding else "Relative flatness and its surrogate over training steps in the baseline."
    )
    return Plate("theory", THEORY_TITLE, caption, alt, (Panel(step_axis(run), y, tuple(drawn)),), links=links)


def _theory_curves(run: Run, finding: Mapping[str, Any] | None) -> dict[str, tuple[list[float], list[float | None]]]:
    steps = shown_steps(run)
    steps = steps[steps > 0]  # step 0 has no place on a logarithmic axis, but would stretch the other one
    curves: dict[str, tuple[list[float], list[float | None]]] = {}
    for key, column in (("measured", "train/relative_flatness"), ("surrogate", "train/relative_flatness_bound")):
        if column in run.frame.columns and (summary := summarise(run, column, steps).get(run.baseline)):
            curves[key] = (steps.tolist(), rounded(summary.median))
    data = finding["data"]["curves"] if finding else {}
    for key in ("exact", "bound"):
        if data.get(key):
            curves[key] = (steps.tolist(), rounded(_median_at(steps, data["steps"], data[key])))
    return curves


def _median_at(
    steps: np.ndarray, measured: Sequence[Sequence[float | None]], values: Sequence[Sequence[float | None]]
) -> np.ndarray:
    """Median over replicas of curves that were measured at steps of their own; (S,)."""
    table = []
    for at, curve in zip(np.array(measured, float), np.array(values, float)):
        known = np.isfinite(at)  # none of a replica that was never measured
        table.append(values_at(steps, at[known], curve[known]) if known.any() else np.full(len(steps), np.nan))
    return summary_of(np.array(table)).median
