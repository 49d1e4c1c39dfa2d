"""The figures of Han et al. 2025 (arXiv 2509.17738), drawn from our own runs.

The same quantities on the same axes under the same names; where the paper draws its surrogate κ̄ so do we. What a figure
needs that a run did not log is named in the error.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from grokscape.report.arms import Arm
from grokscape.report.drawing import Style, write_plate
from grokscape.report.palette import FAMILY_COLOURS, INK, MUTED, Colour, Dash
from grokscape.report.plate import Axis, Band, Layer, Line, Panel, Plate, Rule
from grokscape.report.run import Run, read_run
from grokscape.report.trajectories import arm_axis, is_logarithmic, layers, rounded, shown_steps, step_axis, summarise
from grokscape.store import RunFolder


class FigureError(ValueError):
    """A figure that a run cannot give; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Recipe:
    """How to draw one figure of the paper.

    Attributes:
        title: what it shows.
        draw: from a run and the figure's name to a plate.
    """

    title: str
    draw: Callable[[Run, str], Plate]


def figure(name: str, folder: RunFolder | str | Path, style: Style = "paper") -> list[Path]:
    """Draw a figure of the paper from a run and write it as SVG, PDF and PNG into its `figures/`; return the paths.

    Args:
        name: "fig1" … "fig20"; see `RECIPES`.
        folder: the run.
        style: "paper" or "talk".

    Raises:
        FigureError: there is no such figure, or the run lacks what it needs.
        RunFolderError: there is no run folder, or one of its files is damaged.
        ValueError: `style` is unknown.
    """
    if name not in RECIPES:
        raise FigureError(
            f"expected one of {', '.join(RECIPES)}, got {name!r}; `fig1` shows grokking with both measures"
        )
    run = read_run(folder)
    return write_plate(RECIPES[name].draw(run, name), run.path / "figures", style)


def _grokking(run: Run, name: str) -> Plate:
    """Accuracy over steps with CDNV, and with κ̄, each on an axis of its own."""
    _need(run, name, "train/accuracy", "test/accuracy", "train/cdnv", "train/relative_flatness_bound")
    first, second = FAMILY_COLOURS["collapse"][0], FAMILY_COLOURS["flatness"][0]
    panels = (
        _twin(run, "train/cdnv", "CDNV", first, "Neural collapse"),
        _twin(run, "train/relative_flatness_bound", "κ̄", second, "Relative flatness"),
    )
    return _plate(name, panels, 2)


def _twin(run: Run, column: str, label: str, colour: Colour, title: str) -> Panel:
    steps, arm = shown_steps(run), run.baseline
    drawn: list[Layer] = [
        *_curve(run, "train/accuracy", arm, steps, MUTED, "train accuracy", "dash"),
        *_curve(run, "test/accuracy", arm, steps, INK, "test accuracy", "solid"),
        *_curve(run, column, arm, steps, colour, label, "solid", right=True),
    ]
    log = is_logarithmic(list(summarise(run, column, steps).values()))
    right = Axis(label, log=log, colours=(colour,))
    return Panel(step_axis(run), Axis("Accuracy", percent=True, limits=(-0.02, 1.02)), tuple(drawn), title, right=right)


def _curve(
    run: Run, column: str, arm: str, steps: Any, colour: Colour, label: str, dash: Dash, *, right: bool = False
) -> list[Layer]:
    summary = summarise(run, column, steps).get(arm)
    if summary is None:
        return []
    x = steps.tolist()
    band = Band(x, rounded(summary.low), rounded(summary.high), colour, arm, right=right)
    line = Line(x, rounded(summary.median), colour, label, arm, dash, right=right)
    return [band, line] if summary.replicas > 1 else [line]


def _collapse(run: Run, name: str) -> Plate:
    """Accuracy, CDNV and κ̄ of the baseline and of the arms that hold collapse back."""
    return _arms_plate(run, name, "collapse", "test")


def _collapse_training(run: Run, name: str) -> Plate:
    """The same on training samples."""
    return _arms_plate(run, name, "collapse", "train")


def _flatness(run: Run, name: str) -> Plate:
    """Accuracy, κ̄ and CDNV of the baseline and of the arms that hold flatness back, with the step of release."""
    return _arms_plate(run, name, "flatness", "test")


def _angles(run: Run, name: str) -> Plate:
    """The angles between class means at the end of training, a box for each seed, and the angle of the simplex."""
    arms = _against(run, name, "collapse")
    columns = [f"train/class_angle_{part}" for part in ("min", "q25", "median", "q75", "max")]
    _need(run, name, "train/classes", *columns)
    last = run.frame.sort("step").group_by("replica").last().sort("replica").drop_nulls(columns).drop_nans(columns)
    drawn: list[Layer] = [
        layer
        for place, arm in enumerate(arms)
        for layer in _boxes(last.filter(pl.col("arm") == arm.name).select(columns).rows(), place, arm)
    ]
    if classes := last["train/classes"].to_list():
        drawn.insert(0, Rule(math.degrees(math.acos(-1 / (max(classes) - 1))), label="simplex"))
    angles = Axis("Angle between centred class means, degrees; line: all pairs, box: middle half, tick: median")
    return _plate(name, (Panel(angles, arm_axis(arms), tuple(drawn), height=max(1.0, 0.4 * len(arms))),), 1)


def _boxes(rows: Sequence[tuple[float, ...]], place: int, arm: Arm) -> list[Layer]:
    """Boxes below each other within a category: all pairs, the middle half of them, and the median."""
    height = 0.8 / max(len(rows), 1)
    layers: list[Layer] = []
    for row, (smallest, lower, median, upper, largest) in enumerate(rows):
        low, high = place - 0.4 + (row + 0.15) * height, place - 0.4 + (row + 0.85) * height
        middle = (low + high) / 2
        layers += [
            Line((smallest, largest), (middle, middle), arm.colour, arm=arm.name, width=1.0),
            Band((lower, upper), (low, low), (high, high), arm.colour, arm.name, opacity=0.3),
            Line((median, median), (low, high), arm.colour, arm=arm.name),
        ]
    return layers


def _representativeness(run: Run, name: str) -> Plate:
    """Representativeness over steps beside the accuracies."""
    column = "cross/representativeness"  # held-out loss beyond that of noisy *training* features
    _need(run, name, "train/accuracy", "test/accuracy", column)
    return _plate(name, (_twin(run, column, "Representativeness", FAMILY_COLOURS["control"][0], ""),), 1)


def _arms_plate(run: Run, name: str, family: str, split: str) -> Plate:
    arms = _against(run, name, family)
    accuracy = "Test accuracy" if split == "test" else "Training accuracy"
    shown = {f"{split}/accuracy": accuracy, "train/cdnv": "CDNV", "train/relative_flatness_bound": "κ̄"}
    _need(run, name, *shown)
    released = sorted({step for arm in arms if (step := _release(run, arm)) is not None})
    rules = [Rule(step, label="released" if step == released[0] else "") for step in released]
    return _plate(name, tuple(_measure_panel(run, column, arms, title, rules) for column, title in shown.items()), 3)


def _measure_panel(run: Run, column: str, arms: Sequence[Arm], title: str, rules: Sequence[Rule]) -> Panel:
    steps = shown_steps(run)
    summaries = summarise(run, column, steps, seeds_shown=0)
    known = [arm for arm in arms if arm.name in summaries]
    drawn = [layer for arm in known for layer in layers(arm, steps, summaries[arm.name])]
    percent = column.endswith("/accuracy")
    log = not percent and is_logarithmic([summaries[arm.name] for arm in known])
    limits = (-0.02, 1.02) if percent else None
    return Panel(step_axis(run), Axis(title, log=log, percent=percent, limits=limits), (*rules, *drawn))


def _plate(name: str, panels: tuple[Panel, ...], columns: int) -> Plate:
    title = RECIPES[name].title
    return Plate(name, title, "", title, panels, columns=columns)


_MEASURES = {"collapse": "“cdnv”", "flatness": "“relative_flatness_bound” or “relative_flatness”"}


def _against(run: Run, name: str, family: str) -> list[Arm]:
    """The baseline and the arms that hold a property back.

    Raises:
        FigureError: there is no such arm.
    """
    specs = {str(arm.get("name")): arm for arm in run.spec.get("arms") or []}
    held = [arm for arm in run.arms if arm.family == family and _holds_back(specs.get(arm.name, {}))]
    if not held:
        raise FigureError(
            f"{name} ({RECIPES[name].title}) compares the baseline with arms that hold {family} back; "
            f"{run.path.name} has none. Run a study with an arm that has a Suppress or Clamp on {_MEASURES[family]}"
        )
    return [arm for arm in run.arms if arm.role == "baseline"] + held


def _holds_back(spec: Mapping[str, Any]) -> bool:
    items = [item for item in spec.get("interventions") or [] if isinstance(item, Mapping)]
    return any(
        item.get("kind") == "suppress" or (item.get("at_least") is not None and item.get("kind") == "clamp")
        for item in items
    )


def _release(run: Run, arm: Arm) -> float | None:
    """Step at which an arm's interventions end, if they do."""
    spec: Mapping[str, Any] = next((item for item in run.spec.get("arms") or [] if item.get("name") == arm.name), {})
    items = spec.get("interventions") or []
    ends = [item["step"] for item in items if item.get("kind") == "unplug"] or [
        item["until"] for item in items if item.get("until")
    ]
    return float(max(ends)) if ends else None


def _need(run: Run, name: str, *columns: str) -> None:
    missing = [column for column in columns if column not in run.frame.columns]
    if not missing:
        return
    if not run.frame.height:
        raise FigureError(
            f"{name} cannot be drawn: {run.path.name} has measured nothing yet; wait for its first evaluation"
        )
    measures = ", ".join(sorted({column.rpartition("/")[2] for column in missing}))
    raise FigureError(
        f"{name} ({RECIPES[name].title}) needs the columns {', '.join(columns)}; {run.path.name} lacks "
        f"{', '.join(missing)}. Put {measures} among the study's measures and run it again"
    )


_HELD = "flatness held back, then released"
RECIPES: dict[str, Recipe] = {
    "fig1": Recipe("grokking with neural collapse and relative flatness", _grokking),
    "fig2": Recipe("collapse held back: accuracy, CDNV, κ̄", _collapse),
    "fig3": Recipe("collapse held back: angles between class means at the end", _angles),
    "fig4": Recipe(_HELD, _flatness),
    "fig5": Recipe("collapse held back, on training samples", _collapse_training),
    "fig6": Recipe("collapse held back at several strengths", _collapse),
    "fig7": Recipe("collapse held back at several strengths, with augmentation", _collapse),
    **{f"fig{n}": Recipe(f"{_HELD}: residual network", _flatness) for n in (8, 9, 10)},
    "fig11": Recipe(f"{_HELD}, at several strengths", _flatness),
    "fig12": Recipe(f"{_HELD}, at several caps", _flatness),
    **{f"fig{n}": Recipe(f"{_HELD}: vision transformer", _flatness) for n in (13, 14, 15)},
    **{f"fig{n}": Recipe(f"{_HELD}: language model", _flatness) for n in (16, 17, 18, 19)},
    "fig20": Recipe("representativeness in grokking", _representativeness),
}
